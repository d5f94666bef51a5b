"""What is committed under reports/: reports keep the contract and their expected values, runs are whole.

`reports/expected.json` says what a committed report should hold: {"table1.laptop": [{"system": …, "dataset": …,
"metric": …, "value": …, "rtol": …, "atol": …, "trivial": …, "why": …}]}. `trivial` is what a method that learned
nothing would get, and no tolerance may reach halfway there. The other fields (variant, features, source, …) narrow
down the row.
"""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from vader import stages
from vader.data.prepared import data_digest
from vader.data.sets import procedural
from vader.report import read_reports
from vader.report.claims import claims_page, collect_claims
from vader.report.ledger.causes import check, read_causes
from vader.report.page import STYLE
from vader.report.readme import END, START, excerpt
from vader.settings.profiles import experiment
from vader.store import runs
from vader.store.files import read_json
from vader.store.runs import open_run

from .pages import asked_for, faults_of_page

REPORTS = Path(__file__).parents[2] / "reports"
FILES = sorted(f for f in REPORTS.glob("*.*.json") if not f.name.startswith("benchmarks.") and ".smoke." not in f.name)
RUNS = sorted(folder for folder in (REPORTS / "runs").glob("*") if folder.is_dir())
EXPECTED = read_json(REPORTS / "expected.json") if (REPORTS / "expected.json").exists() else {}
CHECKS = {"value", "rtol", "atol", "trivial", "why"}


def tolerance(entry: dict) -> float:
    return entry["atol"] + entry["rtol"] * abs(entry["value"])


def faults_of_expectation(entry: dict) -> list[str]:
    """What is wrong with an entry of expected.json itself."""
    missing = sorted((CHECKS | {"system", "dataset", "metric"}) - entry.keys())
    if missing:
        return [f"lacks {missing}"]
    faults = (
        [] if tolerance(entry) < abs(entry["value"] - entry["trivial"]) / 2 else ["tolerates half the way to trivial"]
    )
    return faults + ([] if entry["why"].strip() else ["says no why"])


def faults_of_report(report: dict, entries: list[dict]) -> list[str]:
    """Where a report does not hold what is expected of it."""
    faults = []
    for entry in entries:
        wanted = {key: value for key, value in entry.items() if key not in CHECKS}
        # null: the row has no such field
        values = [row["value"] for row in report["rows"] if all(row.get(key) == wanted[key] for key in wanted)]
        if len(values) != 1 or not math.isclose(values[0], entry["value"], rel_tol=0, abs_tol=tolerance(entry)):
            faults.append(f"{wanted}: found {values}, expected {entry['value']} ± {tolerance(entry):g}")
    return faults


def faults_of_benchmark(report: dict) -> list[str]:
    """Where a benchmark report breaks its contract."""
    faults = []
    for i, row in enumerate(report["rows"]):
        if not {"system", "against", "work", "metric", "value", "min", "max", "n"} <= row.keys():
            faults.append(f"row {i} lacks fields")
        elif row["metric"] not in ("speed_ratio", "memory_ratio"):
            faults.append(f"row {i}: metric is {row['metric']!r}")
        elif not (0 < row["min"] <= row["value"] <= row["max"] and row["n"] >= 1):
            faults.append(f"row {i}: expected 0 < min <= value <= max and n >= 1")
    return faults


# ------------------------------------------------------------------------------------------- what is committed


def test_every_report_keeps_the_contract():
    assert len(read_reports(REPORTS)) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_report_holds_what_is_expected_of_it(file):
    assert faults_of_report(read_json(file), EXPECTED.get(file.stem, [])) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_report_has_a_small_page_that_needs_no_network_and_shows_its_pictures(file):
    page = file.with_suffix(".html")
    assert faults_of_page(page) == [] and page.stat().st_size <= 300_000
    assert {picture.name for picture in REPORTS.glob(f"{file.stem}.*.png")} <= set(asked_for(page.read_text("utf-8")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_reference_runs_of_a_report_are_here_or_one_command_trains_them(file, monkeypatch):
    report = read_json(file)
    committed = {open_run(folder).digest for folder in RUNS}
    used = [run for run in report["environment"]["runs"] if run["origin"] == "reference run"]
    for run in used:
        assert run["digest"] in committed or run["digest"] in trained(run["run"], report, monkeypatch), run["run"]


def trained(run: str, report: dict, monkeypatch) -> list[str]:
    """Digests of both stages that `vader train --profile … --data …` would train now, for the data of a run's name.

    Only procedural data have a digest that is known without the data.
    """
    name = run.partition("-")[0]
    if name not in procedural.CATEGORIES:
        return []
    config, digests = experiment(report["profile"], name).replace(seed=report["seed"]), []

    def note(name: str, settings: dict, *_) -> SimpleNamespace:
        digests.append(runs.digest(settings))
        return SimpleNamespace(digest=digests[-1])

    monkeypatch.setattr(stages, "_get", note)
    digest = data_digest(config.data, procedural.sources(config.data))
    stages.diffusion_run(config, SimpleNamespace(name=name, digest=digest))
    return digests


def test_a_run_of_other_settings_is_not_taken_for_one_that_a_command_trains(monkeypatch):
    report = {"profile": "laptop", "seed": 0}
    first, second = trained("procedural_chairs-autodecoder-0", report, monkeypatch)
    used = read_json(REPORTS / "figure9.laptop.json")["environment"]["runs"]
    assert [run["digest"] for run in used if "chairs-autodecoder" in run["run"]] == [first] and first != second
    assert not {first, second} & set(trained("procedural_chairs-autodecoder-0", {**report, "seed": 1}, monkeypatch))
    assert not {first, second} & set(trained("procedural_tables-autodecoder-0", report, monkeypatch))
    assert trained("furniture_chairs-autodecoder-0", report, monkeypatch) == []


def test_the_ledger_of_claims_is_that_of_the_reports():
    if not FILES and not (REPORTS / "claims.json").exists():
        pytest.skip("no report is committed yet")
    ledger = collect_claims(read_reports(REPORTS), read_causes(REPORTS))
    assert json.loads(json.dumps(ledger)) == read_json(REPORTS / "claims.json"), "vader report claims renews it"
    assert (REPORTS / "claims.html").read_text(encoding="utf-8") == claims_page(ledger)


def test_every_failing_claim_has_a_likelier_cause_in_a_sentence_of_measured_numbers():
    assert check(read_reports(REPORTS), read_causes(REPORTS)) == []


def test_the_pages_style_is_the_packages_and_the_ledger_asks_for_nothing_else():
    assert (REPORTS / STYLE).read_bytes() == (REPORTS.parent / "vader" / "report" / STYLE).read_bytes()
    assert asked_for((REPORTS / "claims.html").read_text(encoding="utf-8")) == [STYLE]


def test_readme_shows_the_numbers_of_the_reports():
    text = (REPORTS.parent / "README.md").read_text(encoding="utf-8")
    shown = text.partition(START)[2].partition(END)[0].strip()
    assert shown == excerpt(read_reports(REPORTS)), "vader report claims renews it"


def test_the_excerpt_keeps_measured_and_stated_numbers_apart():
    row = {"system": "ours", "dataset": "furniture_chairs", "metric": "kd", "value": 12.345, "std": 0.5}
    stated = {**row, "dataset": "abo_tables", "metric": "fid", "value": 18.44, "source": "paper"}
    del stated["std"]
    report = {"notebook": "table1-furniture", "profile": "laptop", "rows": [{**row, "source": "measured"}, stated]}
    smoke = {**report, "profile": "smoke", "rows": [{**row, "source": "measured", "value": 99.0}]}
    lines = excerpt([smoke, report]).splitlines()
    ours = [cell.strip() for cell in lines[2].split("|")]
    assert ours[2] == "12.35 ± 0.5" and ours[5] == "18.44 / –"
    assert not any("99" in line for line in lines)
    assert set(lines[3].split("|")[2:6]) == {" – "}


def test_the_excerpt_says_for_how_long_a_rival_was_trained_beside_ours():
    def row(system, dataset, variant, seconds):
        named = {"system": system, "dataset": dataset, "metric": "seconds", "variant": variant, "source": "measured"}
        return {**named, "value": seconds}

    rows = [
        row("ours", "furniture_chairs", "training, autodecoder", 300.0),
        row("ours", "furniture_chairs", "training, diffusion", 100.0),
        row("eg3d", "furniture_chairs", "training, adversarial", 100.0),
        row("ours", "furniture_tables", "training, autodecoder", 100.0),
        row("pi_gan", "furniture_tables", "training, adversarial", 150.0),
    ]
    report = {"notebook": "table1-furniture", "profile": "laptop", "rows": rows}
    status = {line.split(" | ")[0][2:]: line.split(" | ")[-1][:-2] for line in excerpt([report]).splitlines()[2:]}
    assert status["EG3D"] == "scaled down, trained for 0.25 (chairs) of our time"
    assert status["π-GAN"] == "scaled down, trained for 1.5 (tables) of our time"
    assert status["Ours"] == status["DiffRF"] == "scaled down"
    assert "trained" not in status["Direct latent sampling (fitted prior)"]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_reference_run_is_whole_and_says_where_it_comes_from(folder):
    run = open_run(folder)
    assert folder.name == f"{run.name}-{run.digest[:12]}" and run.files
    assert run.record["seconds"] > 0 and run.record["device"]
    assert run.record["curves"] or run.weights("table").is_file(), "a sweep's table has none of its own"
    assert all(session["commit"] and session["versions"] for session in run.record["sessions"])


# What was made from a tree with uncommitted changes, so that no commit has its code. Made anew, it leaves this list.
UNCOMMITTED = {
    "benchmarks.nvidia-h100-80gb-hbm3.json",
    "budget-furniture_tables-laptop.json",
    "figure3.laptop.json",
    "figure6-puppets.laptop.json",
    "figure9.laptop.json",
    "parts-puppets_waving.laptop.json",
    "text_to_3d.laptop.json",
    "furniture_chairs-eg3d-5bdc7bcc4235",
    "puppets-autodecoder-c84aed9fef02",
    "table3-people_heads.laptop.json",  # only in another report's numbers, made in the same checkout
}


def commits() -> dict[str, set[str]]:
    """{report or run: the commits that it names}."""
    found = {}
    for file in [*FILES, *REPORTS.glob("benchmarks.*.json"), *REPORTS.glob("budget-*.json")]:
        report = read_json(file)
        found[file.name] = {report.get("commit") or report["environment"]["commit"]}
    return found | {run.name: {s["commit"] for s in open_run(run).record["sessions"]} for run in RUNS}


# Reports of an earlier training of a committed run: equal settings, other weights. Made anew, they leave this list.
OTHER_TRAINING = {("figure2-people_heads.laptop.json", "people_heads-autodecoder-fe385fafb30c")}


def test_a_report_rests_on_the_training_that_is_committed_not_on_another_of_its_settings():
    committed = {run.name: open_run(run).record["seconds"] for run in RUNS}
    used = [(file.name, run) for file in FILES for run in read_json(file)["environment"].get("runs", [])]
    assert sum(run["run"] in committed for _, run in used) >= len(RUNS), "each is in some report"
    other = {(name, run["run"]) for name, run in used if run["seconds"] != committed.get(run["run"], run["seconds"])}
    assert other == OTHER_TRAINING


def test_what_was_made_from_uncommitted_changes_is_known():
    found = {name for name, named in commits().items() if any(commit.endswith("+") for commit in named)}
    assert found == UNCOMMITTED, "commit first and make it anew, or say so here"


def test_every_commit_that_is_named_exists():
    def git(*words: str) -> str:
        found = subprocess.run(["git", "-C", str(REPORTS.parent), *words], capture_output=True, text=True)
        return found.stdout.strip() if found.returncode == 0 else ""

    if git("rev-parse", "--is-shallow-repository") != "false" or git("rev-parse", "--show-prefix"):
        pytest.skip("this is no clone with its history")
    history = set(git("rev-list", "HEAD").split())
    missing = {name for name, named in commits().items() if {c.removesuffix("+") for c in named} - history}
    assert not missing


def test_reference_runs_are_small():
    files = [file for folder in RUNS for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files if ".safetensors" in file.suffixes) <= 40e6
    assert sum(file.stat().st_size for file in files) <= 41 * 2**20
    assert not [file for file in files if file.name.startswith("checkpoint")]


@pytest.mark.parametrize("file", sorted(REPORTS.glob("benchmarks.*.json")), ids=lambda file: file.stem)
def test_a_benchmark_keeps_the_contract(file):
    assert faults_of_benchmark(read_json(file)) == []


def test_expectations_are_tight_and_of_reports_that_exist():
    assert EXPECTED.keys() <= {file.stem for file in FILES}
    assert [fault for entries in EXPECTED.values() for entry in entries for fault in faults_of_expectation(entry)] == []


# ------------------------------------------------------------------------------------- that the checks can fail

ENTRY = {
    "system": "ours", "dataset": "furniture_chairs", "metric": "psnr", "value": 30.0, "rtol": 0.0, "atol": 0.5,
    "trivial": 15.0, "why": "two seeds differ by 0.2",
}  # fmt: skip
ROW = {"system": "ours", "dataset": "furniture_chairs", "metric": "psnr", "value": 30.4, "source": "measured"}


def test_a_number_outside_its_tolerance_is_found():
    assert faults_of_report({"rows": [ROW]}, [ENTRY]) == []
    for rows in ([{**ROW, "value": 30.6}], [{**ROW, "value": 29.4}], [{**ROW, "dataset": "x"}], [ROW, ROW], []):
        (fault,) = faults_of_report({"rows": rows}, [ENTRY])
        assert "expected 30.0 ± 0.5" in fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, []),
        ({"atol": 7.6}, ["tolerates half the way to trivial"]),
        ({"rtol": 0.3}, ["tolerates half the way to trivial"]),
        ({"trivial": 30.5}, ["tolerates half the way to trivial"]),
        ({"why": " "}, ["says no why"]),
    ],
)
def test_a_tolerance_that_would_pass_a_trivial_method_is_found(change, fault):
    assert faults_of_expectation({**ENTRY, **change}) == fault
    assert faults_of_expectation({"value": 1.0}) == [
        "lacks ['atol', 'dataset', 'metric', 'rtol', 'system', 'trivial', 'why']"
    ]


@pytest.mark.parametrize("change", [{"value": 9.0}, {"min": 0.0}, {"n": 0}, {"metric": "speed"}])
def test_a_benchmark_row_that_breaks_the_contract_is_found(change):
    row = {"system": "fused", "against": "pytorch3d", "work": "w", "metric": "speed_ratio"}
    row |= {"value": 8.0, "min": 7.0, "max": 8.5, "n": 5}
    assert faults_of_benchmark({"rows": [row]}) == []
    assert len(faults_of_benchmark({"rows": [row, {**row, **change}, {"system": "fused"}]})) == 2
