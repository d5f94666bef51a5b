from __future__ import annotations

import copy
import html.parser
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vader import report as package
from vader.commands import main as vader
from vader.report import (
    Report,
    ReportError,
    decide,
    decide_equal,
    decide_ratio,
    frame,
    load,
    read_reports,
    seed_interval,
    table,
    validate,
)
from vader.report.claims import EQUAL_PAIRS, claims_page, collect_claims
from vader.report.schema import check_row, report_digest
from vader.store.files import write_json
from vader.store.runs import Run
from vader.store.weights import resolve

MEASURED = {
    "system": "ours", "dataset": "furniture_chairs", "metric": "kd", "value": 12.5, "source": "measured",
    "scale": 1000, "std": 0.5, "n": 3, "features": "efficientnet-lite0", "resolution": 48,
}  # fmt: skip
STATED = {
    "system": "ours", "dataset": "photoshape_chairs", "metric": "fid", "value": 11.28, "source": "paper",
    "features": "inception-v3",
}  # fmt: skip
CLAIM = {
    "id": "table1.chairs.ours_beats_dls", "text": "Ours is better.", "where": "Tab. 1", "verdict": "holds",
    "evidence": "0.5 [0.4, 0.6]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


def example(notebook: str = "table1", profile: str = "laptop", data: str = "procedural", seed: int = 0) -> Report:
    report = Report(notebook, profile, seed, data)
    report.row(**MEASURED)
    report.row(**STATED)
    report.claim(**CLAIM)
    return report


# ------------------------------------------------------------------------------------------------- the contract


def test_a_report_is_written_as_the_contract_has_it(folder):
    file = example().save()
    assert file == folder / "table1.laptop.json"
    report = json.loads(file.read_text())
    assert report.keys() == {
        "notebook", "profile", "seed", "created", "commit", "digest", "environment", "wall_seconds", "rows", "claims",
    }  # fmt: skip
    assert report["rows"] == [MEASURED, STATED] and report["claims"] == [CLAIM]
    assert report["environment"].keys() >= {"python", "torch", "device"}
    assert load("table1", "laptop") == report
    validate(report)


def test_other_data_than_the_default_make_a_report_of_their_own(folder):
    files = [example().save(), example(data="furniture").save()]
    assert [file.name for file in files] == ["table1.laptop.json", "table1-furniture.laptop.json"]
    assert load("table1", "laptop", "furniture")["notebook"] == "table1-furniture"


def test_the_digest_is_of_results_not_of_time_and_place(monkeypatch):
    first = example().as_dict()
    monkeypatch.setattr("vader.report.report.utc_now", lambda: "2001-01-01T00:00:00Z")
    monkeypatch.setattr(
        "vader.report.report.environment", lambda device: {"commit": "x", "python": "", "torch": "", "device": ""}
    )
    later = example()
    later.row(system="ours", dataset="furniture_chairs", metric="seconds", value=3.2, std=0.1, n=5, source="measured")
    assert later.as_dict()["digest"] == first["digest"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"profile": "gpu"}, {"notebook": "table2"}, {"rows": [MEASURED]}, {"rows": [STATED, MEASURED]},
        {"rows": [{**MEASURED, "value": math.nextafter(12.5, 13)}, STATED]},
        {"claims": [{**CLAIM, "verdict": "fails"}]},
    ],
)  # fmt: skip
def test_the_digest_changes_with_any_result(change):
    report = example().as_dict()
    assert report_digest({**report, **change}) != report["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "kis"}, r"metric 'kis' is unknown \(did you mean 'kid'\?\), expected one of fid, kid"),
        (
            {"metric": "kid"},
            "features are 'efficientnet-lite0'; with other ones than inception-v3 it is called fd or kd",
        ),
        ({"features": "inception-v3"}, "with these it is called fid or kid"),
        ({"features": None}, "features missing, expected the network that kd uses"),
        ({"system": "stylegan"}, "system 'stylegan' is unknown"),
        ({"system": "ours-"}, "system 'ours-' is unknown"),
        ({"source": "guess"}, "source 'guess' is unknown, expected one of measured, paper"),
        ({"n": None}, "n missing, expected what the measured value is over"),
        ({"n": 0}, "n is 0, expected a positive integer"),
        ({"n": 2.5}, "n is 2.5, expected a positive integer"),
        ({"std": None}, "std missing, expected it or low and high"),
        ({"std": -1.0}, "std is -1.0, expected it not to be negative"),
        ({"value": math.nan}, "value is nan, expected a finite number"),
        ({"value": "12"}, "value is '12', expected a finite number"),
        ({"value": True}, "value is True, expected a finite number"),
        ({"low": 1.0}, "low and high are 1.0 and None"),
        ({"low": 2.0, "high": 1.0}, "low and high are 2.0 and 1.0, expected low <= high"),
        ({"feature": "x"}, r"field 'feature' is unknown \(did you mean 'features'\?\)"),
        ({"dataset": ""}, "dataset is '', expected a text"),
    ],
)
def test_a_row_that_breaks_the_contract_is_refused_where_it_is_added(change, message):
    report = Report("table1", "laptop", 0)
    report.row(**STATED)
    with pytest.raises(ReportError, match=f"table1.laptop, row 1.*{message}"):
        report.row(**{**MEASURED, **change})
    assert len(report.rows) == 1


def test_an_interval_does_instead_of_a_standard_deviation_and_counts_need_neither():
    report = Report("table1", "laptop", 0)
    report.row(**{**MEASURED, "std": None, "low": 12.0, "high": 13.0})
    report.row(system="ours-no_attention", dataset="furniture_chairs", metric="parameters", value=10, source="measured")
    assert report.rows[1]["n"] == 1 and report.rows[1]["std"] == 0
    validate(report.as_dict())


def test_numbers_of_numpy_and_torch_are_taken(folder):
    report = Report("table1", "laptop", 0)
    report.row(**{**MEASURED, "value": torch.tensor(0.5), "std": np.float32(0.25), "n": np.int64(3)})
    report.save()
    assert load("table1", "laptop")["rows"][0]["value"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "Table1: chairs"}, "expected it to look like table1.chairs.ours_beats_diffrf"),
        ({"verdict": "maybe"}, "verdict 'maybe' is unknown"),
        ({"evidence": " "}, "evidence is ' ', expected a text"),
    ],
)
def test_a_claim_that_breaks_the_contract_is_refused(change, message):
    with pytest.raises(ReportError, match=message):
        Report("table1", "laptop", 0).claim(**{**CLAIM, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("commit"), "'commit'"),
        (lambda r: r.update(extra=1), "'extra'"),
        (lambda r: r.update(created="yesterday"), "created is 'yesterday'"),
        (lambda r: r.update(profile="Laptop!"), "profile is 'Laptop!'"),
        (lambda r: r.update(seed="0"), "seed is '0', expected an integer"),
        (lambda r: r["environment"].pop("device"), "environment has no device"),
        (lambda r: r["rows"].append(r["rows"][0]), "rows 0 and 2 are both of"),
        (lambda r: r["claims"].append(r["claims"][0]), "claims 0 and 1 are both of"),
        (lambda r: r["claims"][0].update(id="table2.x"), "expected the notebook's name in front"),
        (lambda r: r["rows"][0].update(value=99.0), "digest is"),
    ],
)
def test_a_report_changed_by_hand_is_refused_with_its_name(folder, change, message):
    file = example().save()
    report = json.loads(file.read_text())
    change(report)
    write_json(file, report)
    with pytest.raises(ReportError, match=message) as error:
        read_reports()
    assert str(error.value).startswith(str(file))


def test_a_report_under_another_name_and_one_that_is_no_json_are_refused(folder):
    file = example().save()
    other = file.rename(folder / "table2.laptop.json")
    with pytest.raises(ReportError, match=r"table2.laptop.json: holds the report table1.laptop"):
        read_reports()
    other.write_text("{")
    with pytest.raises(ReportError, match=r"table2.laptop.json: not readable as JSON"):
        read_reports()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path / "file"))
    with pytest.raises(ReportError, match=r"file/table1.laptop.json: cannot be written .* set VADER_REPORTS"):
        example().save()


def test_a_picture_lies_beside_its_report_and_is_the_same_every_time(folder):
    from matplotlib.figure import Figure

    def drawn() -> Figure:
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        return figure

    report = example(data="furniture")
    file = report.picture("furniture_chairs", drawn())
    assert file == folder / "table1-furniture.laptop.furniture_chairs.png"
    first = file.read_bytes()
    assert first.startswith(b"\x89PNG") and b"matplotlib" not in first and len(first) < 5_000
    assert report.picture("furniture_chairs", drawn()).read_bytes() == first
    assert read_reports() == []


def test_smoke_reports_and_benchmarks_are_not_read_as_results(folder):
    example(profile="smoke").save()
    (folder / "benchmarks.cpu.json").write_text("{}")
    assert read_reports() == []
    example().save()
    assert len(read_reports()) == 1


def test_what_the_numbers_rest_on_is_noted(tmp_path):
    class Weights:
        def describe(self):
            return {"need": "vgg16", "source": "package"}

    report = example()
    report.used(Weights())
    report.used(Run(tmp_path / "chairs-1", "chairs", "d" * 64, {}, {"seed": 0, "device": "GPU", "seconds": 2.0}, {}))
    environment = report.as_dict()["environment"]
    assert environment["weights"] == [{"need": "vgg16", "source": "package"}]
    assert environment["runs"][0]["device"] == "GPU" and environment["runs"][0]["origin"] == "own run"


def test_weights_that_are_resolved_meanwhile_are_noted_once(monkeypatch):
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    resolve("alexnet")
    assert example().as_dict()["environment"]["weights"] == []
    report = example()
    found = [resolve("alexnet"), resolve("alexnet")]
    [entry] = report.as_dict()["environment"]["weights"]
    assert entry == found[0].describe() and entry["source"] == "embedded in vader"


# --------------------------------------------------------------------------------------------------- verdicts


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_verdict_needs_an_interval_that_excludes_zero(difference, below, above):
    low, high = difference - below, difference + above
    verdict = decide(difference, low, high)
    assert (verdict == "holds") == (low > 0)
    assert (verdict == "fails") == (high < 0)
    assert verdict in ("holds", "fails", "inconclusive")


@pytest.mark.parametrize(
    ("pairs", "verdict"), [(0, "inconclusive"), (EQUAL_PAIRS - 1, "inconclusive"), (EQUAL_PAIRS, "fails")]
)
def test_a_gain_fails_where_both_sides_are_equal_in_all_of_many_pairs(pairs, verdict):
    assert decide(0, 0, 0, pairs) == decide(-0.0, -0.0, 0.0, pairs) == verdict
    assert decide(0, -1, 1, pairs) == "inconclusive", "some pairs differ"
    assert decide(1, 0, 2, pairs) == decide(-1, -2, 0, pairs) == "inconclusive"


def test_so_many_equal_pairs_that_fewer_than_one_in_twenty_differs():
    share = 1 / 20
    assert (1 - share) ** EQUAL_PAIRS < 0.05 < (1 - share) ** (EQUAL_PAIRS - 2)


def test_an_interval_that_touches_zero_decides_nothing():
    assert decide(1, 0, 2) == decide(-1, -2, 0) == decide(0, 0, 0) == "inconclusive"
    assert decide(-1, 0.5, 2) == "inconclusive", "an interval on the other side of zero than the difference"


@pytest.mark.parametrize("numbers", [(0, 1, -1), (math.nan, -1, 1), (0, -math.inf, 1)])
def test_an_interval_that_is_none_is_refused(numbers):
    with pytest.raises(ReportError, match="expected finite low <= high"):
        decide(*numbers)


def test_the_interval_over_seeds_is_students():
    mean, low, high = seed_interval([1.0, 2.0, 3.0])
    reach = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %, standard deviation 1
    assert (mean, low, high) == pytest.approx((2, 2 - reach, 2 + reach), rel=1e-9)
    with pytest.raises(ReportError, match="at least 2 results, got 1"):
        seed_interval([1.0])


def test_the_interval_over_seeds_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    covered = [low <= 0 <= high for _, low, high in map(seed_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors


# ----------------------------------------------------------------------------------------------------- tables


def rows(*profiles: str) -> list[dict]:
    return [{**row, "profile": profile} for profile in profiles for row in (MEASURED, STATED)]


def test_the_paper_and_each_profile_have_columns_of_their_own():
    data = table([*rows("laptop"), {**MEASURED, "profile": "gpu", "value": 3.0}]).data
    assert list(data.columns) == [
        ("measured, gpu profile", "furniture chairs", "KD ↓ (efficientnet-lite0) ×1000"),
        ("measured, laptop profile", "furniture chairs", "KD ↓ (efficientnet-lite0) ×1000"),
        ("paper", "photoshape chairs", "FID ↓"),
    ]
    assert data.loc["Ours"].tolist() == ["3 ± 0.5", "12.5 ± 0.5", "11.28"]


def test_a_system_without_a_number_has_a_dash_and_variants_have_lines():
    more = [
        {**MEASURED, "profile": "laptop", "system": "dls", "variant": "fitted Gaussian", "std": None},
        {**STATED, "profile": "laptop", "system": "pi_gan"},
        {**MEASURED, "profile": "laptop", "system": "ours-no_attention", "metric": "parameters", "value": 1234567},
    ]
    more[0] |= {"low": 12.0, "high": 13.0}
    del more[0]["std"]
    data = table([*rows("laptop"), *more]).data
    assert list(data.index) == ["Ours", "Direct latent sampling (fitted Gaussian)", "π-GAN", "Ours (no attention)"]
    assert data.iloc[1].tolist() == ["12.5 [12, 13]", "–", "–"]
    assert "1,234,567" in data.iloc[3].tolist()


def test_two_numbers_for_one_cell_and_none_at_all_are_refused():
    with pytest.raises(ValueError, match="two numbers for one cell of the table: Ours, measured, laptop"):
        table(rows("laptop") + [{**MEASURED, "profile": "laptop", "resolution": 64}])
    with pytest.raises(ValueError, match="no rows to show of psnr"):
        table(rows("laptop"), ["psnr"])


def test_the_html_of_a_table_is_the_same_every_time():
    assert example().table().to_html() == example().table().to_html()


def test_rows_of_many_reports_make_one_frame():
    data = frame([example().as_dict(), example(profile="gpu").as_dict()])
    assert len(data) == 4 and data.profile.tolist() == ["laptop", "laptop", "gpu", "gpu"]
    assert data.value.tolist() == [12.5, 11.28] * 2


# ----------------------------------------------------------------------------------------------------- claims


class Page(html.parser.HTMLParser):
    """The claims on a page, and what it links and asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.claims, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href")]
        if tag == "article":
            self.claims.append("")

    def handle_data(self, data):
        if self.claims:
            self.claims[-1] += data


def test_claims_are_collected_by_profile_with_the_failed_ones_first(folder, capsys):
    report = example()
    report.claim(**{**CLAIM, "id": "table1.a", "verdict": "not_tested"})
    report.claim(**{**CLAIM, "id": "table1.z", "verdict": "fails", "text": "a < b & c"})
    report.save()
    example(profile="gpu").save()
    example(profile="smoke").save()
    assert vader(["report", "claims"]) == 0
    ledger = json.loads((folder / "claims.json").read_text())
    assert ledger["profiles"].keys() == {"gpu", "laptop"}
    assert [claim["id"] for claim in ledger["profiles"]["laptop"]["claims"]] == [
        "table1.z", "table1.chairs.ours_beats_dls", "table1.a",
    ]  # fmt: skip
    assert ledger["profiles"]["laptop"]["counts"] == {"fails": 1, "inconclusive": 0, "holds": 1, "not_tested": 1}
    page = Page((folder / "claims.html").read_text())
    assert page.claims[1].split()[0] == "fails" and "a < b & c" in page.claims[1]
    assert page.links[0] == "style.css" and all(
        re.match(r"table1\.(gpu|laptop)\.html#table1\.", a) for a in page.links[1:]
    )
    assert (folder / "style.css").is_file()
    assert read_reports()  # the ledger itself is not taken for a report
    assert str(folder / "claims.html") in capsys.readouterr().out


def test_a_claim_that_another_report_of_the_profile_decides_is_not_listed_as_untested():
    untested, decided, elsewhere = example(), example(data="furniture"), example(profile="gpu")
    for report, verdict in ((untested, "not_tested"), (decided, "fails"), (elsewhere, "not_tested")):
        report.claim(**{**CLAIM, "id": "table1.a", "verdict": verdict})
    profiles = collect_claims([r.as_dict() for r in (untested, decided, elsewhere)])["profiles"]
    listed = {p: [c["verdict"] for c in part["claims"] if c["id"] == "table1.a"] for p, part in profiles.items()}
    assert listed == {"laptop": ["fails"], "gpu": ["not_tested"]}


def test_the_name_of_the_data_in_a_claim_makes_no_other_claim_of_one_that_is_untested():
    """Nor does it join two claims that are decided, or claims of two notebooks."""
    told = {"table1.heads.many": "not_tested", "table1.furniture.many": "holds", "table1.chairs.many": "fails"}
    told |= {"table1.heads.other": "not_tested", "table1.many_more": "not_tested"}
    report, elsewhere = example(data="heads"), example(data="furniture")
    for id, verdict in told.items():
        (report if verdict == "not_tested" else elsewhere).claim(**{**CLAIM, "id": id, "verdict": verdict})
    part = collect_claims([r.as_dict() for r in (report, elsewhere)])["profiles"]["laptop"]
    assert {c["id"] for c in part["claims"]} & told.keys() == told.keys() - {"table1.heads.many"}
    assert part["counts"]["not_tested"] == 2


def test_what_a_report_tells_apart_itself_stays_untested_where_its_neighbour_is_decided():
    """Tables do not decide for chairs: both are of one report's data."""
    told = {"table1.chairs.many": "not_tested", "table1.tables.many": "holds"}
    report = example(data="furniture")
    for id, verdict in told.items():
        report.claim(**{**CLAIM, "id": id, "verdict": verdict})
    claims = collect_claims([report.as_dict()])["profiles"]["laptop"]["claims"]
    assert {c["id"]: c["verdict"] for c in claims}.items() >= told.items()


def test_an_effect_of_the_papers_size_is_recorded_beside_a_claim():
    known = {**CLAIM, "id": "table2.embedding_length.psnr", "evidence": "loss 0.2 dB (95 % interval -0.3 to 0.7)"}
    ledger = collect_claims([example().as_dict() | {"claims": [known, {**CLAIM, "id": "table1.z"}]}])
    claims = {claim["id"]: claim for claim in ledger["profiles"]["laptop"]["claims"]}
    told = claims["table2.embedding_length.psnr"]
    assert (told["paper_effect"], told["excludes_paper_effect"], told["verdict"]) == (1.255, True, CLAIM["verdict"])
    assert not {"paper_effect", "excludes_paper_effect"} & claims["table1.z"].keys()
    words = "By the paper&#39;s PSNR the difference is 1.25, outside of the interval"
    assert words in claims_page(ledger) and claims_page(ledger).count("By the paper") == 1


def test_one_comparison_of_two_notebooks_is_one_claim():
    """Of the same runs, with the same numbers. Where either differs, both stay."""
    said = "difference 4.95 (95 % interval over seeds -13.4 to 23.3)"

    def made(notebook: str, runs: tuple[str, ...] = ("a",), evidence: str = said) -> dict:
        claim = {"id": f"{notebook}.eight_beats_four", "text": "x", "where": "x", "verdict": "inconclusive"}
        told = {"notebook": notebook, "profile": "laptop", "seed": 0, "digest": "d", "commit": "c"}
        found = {"environment": {"runs": [{"digest": run} for run in runs]}, "claims": [claim | {"evidence": evidence}]}
        return told | found

    def listed(*reports: dict) -> list:
        part = collect_claims(reports)["profiles"]["laptop"]
        assert part["counts"]["inconclusive"] == len(part["claims"])
        return [(claim["id"].partition(".")[0], claim.get("also")) for claim in part["claims"]]

    assert listed(made("figure10"), made("figure3")) == [("figure3", ["figure10.eight_beats_four"])]
    both = [("figure10", None), ("figure3", None)]
    assert listed(made("figure10"), made("figure3", ("b",))) == both
    assert listed(made("figure10", ()), made("figure3", ())) == both, "no runs are no evidence that both are one"
    assert listed(made("figure10"), made("figure3", evidence=said.replace("4.95", "4.96"))) == both


def test_the_ledger_does_not_depend_on_the_order_of_reports():
    reports = [example().as_dict(), example(data="furniture").as_dict(), example(profile="gpu").as_dict()]
    assert claims_page(collect_claims(reports)) == claims_page(collect_claims(copy.deepcopy(reports)[::-1]))


def test_the_command_reports_errors_on_one_line(folder, capsys):
    assert vader(["report", "table9"]) == 1
    assert "error: no notebook is called 'table9'" in capsys.readouterr().err
    folder.mkdir(parents=True)
    (folder / "table1.laptop.json").write_text("[")
    assert vader(["report", "claims"]) == 1
    assert "table1.laptop.json: not readable as JSON" in capsys.readouterr().err


def test_the_names_of_the_package_are_what_it_exports():
    assert all(hasattr(package, name) for name in package.__all__)
    check_row("row", MEASURED)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((0.5, 0.4, 0.6), "holds"),
        ((2.0, 1.5, 3.0), "fails"),
        ((0.9, 0.7, 1.1), "inconclusive"),
        ((0.5, -0.1, 0.9), "inconclusive"),
    ],
)
def test_a_ratio_is_decided_by_its_interval(ratio, verdict):
    assert decide_ratio(*ratio) == verdict


def test_claims_together_are_those_one_by_one(capsys):
    together, single = (Report("figure2", "smoke", 0, "people_heads") for _ in range(2))
    together.claim_each({"a": ("A", "Tab. 1", ("holds", "1 against 2"))}, "balls, profile smoke")
    single.claim("figure2.a", "A", where="Tab. 1", verdict="holds", evidence="1 against 2; balls, profile smoke")
    assert together.claims == single.claims and capsys.readouterr().out == "a: holds; 1 against 2\n"


@pytest.mark.parametrize(
    ("ratio", "verdict", "said"),
    [
        ((1.02, 0.96, 1.10), "holds", "all of it between 0.8 and 1.25"),
        ((0.61, 0.32, 0.78), "fails", "all of it below 0.8"),
        ((16.7, 7.3, 24.6), "fails", "all of it above 1.25"),
        ((1.13, 1.06, 1.42), "inconclusive", "it reaches across 1.25"),
        ((0.9, 0.7, 1.0), "inconclusive", "it reaches across 0.8"),
        ((1.09, 0.48, 2.26), "inconclusive", "it reaches across 0.8 and 1.25"),
        ((0.0, 0.0, 0.0), "fails", "all of it below 0.8"),
    ],
)
def test_equality_is_bounded_from_both_sides(ratio, verdict, said):
    assert decide_equal(*ratio) == (verdict, said)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1.01, 100))
def test_equality_and_its_failures_exclude_each_other_and_mirror(low, high, within):
    low, high = min(low, high), max(low, high)
    verdict, said = decide_equal(low, low, high, within)
    assert (verdict == "holds") == (1 / within <= low and high <= within)
    assert (verdict == "fails") == (high < 1 / within or low > within)
    assert ("below" in said or "above" in said) == (verdict == "fails")


def test_equality_without_numbers_is_refused():
    for numbers in ((1, 2, 1), (math.nan, 0, 1), (1, 0, math.inf), (1, 0.9, 1.1, 1.0)):
        with pytest.raises(ReportError, match="expected finite low <= high and a factor above 1"):
            decide_equal(*numbers)
