from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from vader.commands import main as vader
from vader.settings.autodecoder import AutodecoderConfig
from vader.store import runs
from vader.store.files import pack_weights, plain, read_json, write_json
from vader.store.runs import Record, RunError

SETTINGS = {"stage": "autodecoder", "network": AutodecoderConfig(), "seed": 0}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """An empty run store, and an empty place for reference runs."""
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(runs, "reference_runs_dir", lambda: tmp_path / "reports" / "runs")
    return tmp_path / "runs"


def train(work: Path) -> None:
    record = Record(work, seed=0, pixels={"checksum": "a"})
    record.log("autodecoder", 100, loss=1.0)
    (work / "checkpoint.pt").write_bytes(b"state")
    runs.save_weights(work / "decoder.safetensors", nn.Linear(2, 2), {"n": 2})
    record.save()


def never(work: Path) -> None:
    raise AssertionError("trained although the run exists")


def test_every_setting_is_in_the_digest():
    base = runs.digest(SETTINGS)
    network = plain(AutodecoderConfig())
    assert runs.digest({**SETTINGS, "network": network}) == base
    for name, value in dataclasses.asdict(AutodecoderConfig()).items():
        assert runs.digest({**SETTINGS, "network": {**network, name: [value]}}) != base, name


def test_the_digest_spells_out_defaults_so_that_a_changed_one_is_another_run():
    @dataclasses.dataclass(frozen=True)
    class Before:
        rate: float = 0.1

    @dataclasses.dataclass(frozen=True)
    class After:
        rate: float = 0.2

    assert runs.digest(Before()) != runs.digest(After())
    assert runs.digest(Before()) == runs.digest(After(rate=0.1))


def test_the_digest_is_that_of_a_canonical_text(monkeypatch):
    settings = {"seed": 0, "rate": 5e-4, "shape": (4, 8), "name": "é"}
    text = '{"schema":1,"settings":{"name":"\\u00e9","rate":0.0005,"seed":0,"shape":[4,8]}}'
    assert runs.digest(settings) == hashlib.sha256(text.encode()).hexdigest()
    before = runs.digest(settings)
    monkeypatch.setattr(runs, "SCHEMA_VERSION", 2)
    assert runs.digest(settings) != before


def test_get_trains_once_and_then_finds(store):
    run = runs.get("chairs", SETTINGS, train)
    assert run.folder == store / f"chairs-{runs.digest(SETTINGS)[:12]}" and run.origin == "own run"
    assert sorted(file.name for file in run.folder.iterdir()) == [
        "DONE", "decoder.safetensors", "record.json", "settings.json",
    ]  # fmt: skip
    again = runs.get("chairs", SETTINGS, never)
    assert again.folder == run.folder and again.settings == json.loads(json.dumps(runs.plain(SETTINGS)))
    assert runs.load_weights(again.weights("decoder"), nn.Linear(2, 2)) == {"n": 2}
    with pytest.raises(RunError, match=r"has no unet\.safetensors, expected one of \['decoder\.safetensors'\]"):
        run.weights("unet")


def test_another_name_or_setting_is_another_run():
    runs.get("chairs", SETTINGS, train)
    assert runs.find("tables", SETTINGS) is None
    assert runs.find("chairs", {**SETTINGS, "seed": 1}) is None


def test_a_training_that_stops_leaves_a_folder_to_resume(store):
    def half(work: Path) -> None:
        (work / "checkpoint.pt").write_bytes(b"half")
        raise runs.Paused("time is over")

    with pytest.raises(runs.Paused):
        runs.get("chairs", SETTINGS, half)
    assert runs.find("chairs", SETTINGS) is None
    seen = []

    def rest(work: Path) -> None:
        seen.append((work / "checkpoint.pt").read_bytes())
        train(work)

    runs.get("chairs", SETTINGS, rest)
    assert seen == [b"half"] and not list(store.glob("*.partial"))


class Killed(BaseException):
    """What no code catches."""


def kill_at(monkeypatch, step: str) -> None:
    """Make `publish` die before a step."""

    def die(*_arguments, **_options):
        raise Killed

    if step == "DONE":
        write = runs.write_json
        monkeypatch.setattr(
            runs, "write_json", lambda file, value: die() if file.name == "DONE" else write(file, value)
        )
    else:
        monkeypatch.setattr(
            *{"hash": (runs, "sha256"), "rename": (Path, "rename"), "clean": (Path, "unlink")}[step], die
        )


def get_and_die(monkeypatch, step: str) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):

        def train_and_die(work: Path) -> None:
            train(work)
            kill_at(patch, step)

        runs.get("chairs", SETTINGS, train_and_die)


@pytest.mark.parametrize("step", ["hash", "DONE"])
def test_killed_before_done_the_run_is_partial_and_resumes(monkeypatch, step):
    get_and_die(monkeypatch, step)
    assert runs.find("chairs", SETTINGS) is None
    run = runs.get("chairs", SETTINGS, lambda work: None)  # a training that finds itself complete
    assert run.files.keys() == {"decoder.safetensors"}


def test_killed_between_done_and_rename_the_run_is_published_without_training(monkeypatch):
    get_and_die(monkeypatch, "rename")
    folder = runs.run_folder("chairs", SETTINGS)
    work = folder.with_name(folder.name + ".partial")
    assert (work / "DONE").exists() and not folder.exists()
    assert runs.find("chairs", SETTINGS) is None and not runs.finished("chairs", SETTINGS)
    assert runs.get("chairs", SETTINGS, never).folder == folder and not work.exists()


def test_killed_after_done_the_run_is_whole(monkeypatch):
    get_and_die(monkeypatch, "clean")
    assert runs.find("chairs", SETTINGS).files.keys() == {"decoder.safetensors"}


def test_a_killed_process_leaves_no_lock(store):
    script = (
        "import os, signal; from vader.store import runs\n"
        "runs.get('chairs', {'seed': 0}, lambda work: os.kill(os.getpid(), signal.SIGKILL))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert result.returncode == -9 and len(list(store.glob("*.partial"))) == 1
    runs.get("chairs", {"seed": 0}, train)


def test_two_that_want_one_run_train_it_once(capsys):
    trained, results = [], []

    def slow(work: Path) -> None:
        trained.append(work)
        time.sleep(0.3)
        train(work)

    threads = [threading.Thread(target=lambda: results.append(runs.get("chairs", SETTINGS, slow))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1 and results[0].folder == results[1].folder
    assert "waiting for another process that trains chairs-" in capsys.readouterr().err


def test_a_training_without_weights_or_record_is_not_published():
    with pytest.raises(RunError, match=r"\.partial: has no \*\.safetensors"):
        runs.get("chairs", SETTINGS, lambda work: Record(work, 0).save())
    with pytest.raises(RunError, match=r"record\.json: no such file"):
        runs.get("tables", SETTINGS, lambda work: None)


def test_changed_weights_missing_weights_and_changed_settings_are_refused():
    run = runs.get("chairs", SETTINGS, train)
    head = read_json(run.folder / "settings.json")
    write_json(run.folder / "settings.json", {**head, "settings": {**head["settings"], "seed": 7}})
    with pytest.raises(RunError, match=r"settings\.json: digest is"):
        runs.find("chairs", SETTINGS)
    write_json(run.folder / "settings.json", head)
    content = run.weights("decoder").read_bytes()
    run.weights("decoder").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=r"decoder\.safetensors: SHA-256 is"):
        runs.find("chairs", SETTINGS)
    run.weights("decoder").unlink()
    with pytest.raises(RunError, match=r"decoder\.safetensors: no such file"):
        runs.find("chairs", SETTINGS)


def test_packed_weights_are_refused_that_are_whole_but_not_those_of_the_training(store):
    """Other packed weights read as well as the right ones. Only their SHA-256 in DONE tells them apart."""
    run = runs.get("chairs", SETTINGS, train)
    assert vader(["runs", "commit", run.folder.name]) == 0
    shutil.rmtree(run.folder)
    committed = runs.find("chairs", SETTINGS)
    [packed] = committed.folder.glob("*.xz")
    assert read_json(committed.folder / "DONE")["files"] == {
        packed.name: hashlib.sha256(packed.read_bytes()).hexdigest()
    }
    other = store / "other.safetensors"
    runs.save_weights(other, nn.Linear(2, 2), {"n": 2})
    shutil.copyfile(pack_weights(other), packed)
    assert runs.read_weights(packed)[1] == {"n": 2}
    with pytest.raises(RunError, match=r"decoder\.safetensors\.xz: SHA-256 is"):
        runs.find("chairs", SETTINGS)
    packed.unlink()
    with pytest.raises(RunError, match=r"decoder\.safetensors\.xz: no such file"):
        runs.find("chairs", SETTINGS)


def test_an_unwritable_store_is_said_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(RunError, match=r"file/runs: cannot be written .* set VADER_RUNS"):
        runs.get("chairs", SETTINGS, never)


def test_a_partial_run_of_other_settings_is_refused_field_by_field(store):
    work = runs.begin("chairs", SETTINGS)
    changed = plain(SETTINGS) | {"seed": 7, "clip": 0.5}
    del changed["stage"]
    head = read_json(work / "settings.json")
    write_json(work / "settings.json", {**head, "settings": changed, "digest": runs.digest(changed)})
    with pytest.raises(RunError) as error:
        runs.begin("chairs", SETTINGS)
    message = str(error.value)
    assert f"{work}: is a run of other settings" in message and "move it away" in message
    for line in (
        'stage is "absent", expected "autodecoder"',
        "seed is 7, expected 0",
        'clip is 0.5, expected "absent"',
    ):
        assert line in message
    assert "network" not in message


@pytest.mark.parametrize("name", ["", "../chairs", "a b", "-x"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(RunError, match="is no file name"):
        runs.run_folder(name, SETTINGS)


class Pixels:
    def __init__(self, large: bool = False) -> None:
        self.large = large

    def compare_pixels(self, record: dict) -> str | None:
        if self.large:
            raise ValueError("levels differ by 0.3 of 255")
        return None if record == {"checksum": "a"} else "levels differ by 0.003 of 255"


def test_pixels_that_differ_a_little_are_reported_and_others_are_an_error(recwarn):
    run = runs.get("chairs", SETTINGS, train, Pixels())
    assert not recwarn.list
    write_json(run.folder / "record.json", {**run.record, "pixels": {"checksum": "b"}})
    with pytest.warns(UserWarning, match=r"chairs-\w{12}: levels differ by 0.003 of 255"):
        runs.get("chairs", SETTINGS, never, Pixels())
    with pytest.raises(RunError, match=r"chairs-\w{12}: levels differ by 0.3 of 255"):
        runs.get("chairs", SETTINGS, never, Pixels(large=True))


def test_a_committed_run_is_found_where_there_is_no_own_one(store, capsys):
    run = runs.get("chairs", SETTINGS, train)
    (run.folder / "checkpoint-old.pt").write_bytes(b"")
    assert vader(["runs", "commit", run.folder.name]) == 0
    committed = store.parent / "reports" / "runs" / run.folder.name
    assert sorted(path.name for path in committed.iterdir()) == [
        "DONE", "decoder.safetensors.xz", "record.json", "settings.json",
    ]  # fmt: skip
    assert (run.folder / "decoder.safetensors").is_file()
    assert runs.find("chairs", SETTINGS).origin == "own run"
    trained = runs.read_weights(run.weights("decoder"))
    shutil.rmtree(run.folder)
    found = runs.get("chairs", SETTINGS, never)
    assert found.folder == committed and found.origin == "reference run"
    same = runs.read_weights(found.weights("decoder"))
    assert same[1] == trained[1] and all(torch.equal(same[0][name], trained[0][name]) for name in trained[0])
    with pytest.raises(RunError, match=r"has no denoiser.safetensors, expected one of \['decoder.safetensors.xz'\]"):
        found.weights("denoiser")
    assert vader(["runs", "list"]) == 0
    assert f"{committed}: reference run" in capsys.readouterr().out
    (store / "broken-0").mkdir()
    runs.begin("tables", SETTINGS)
    assert vader(["runs", "list"]) == 0
    listed = capsys.readouterr().out
    assert "broken-0: has no DONE" in listed and ".partial: partial" in listed and f"{committed}: reference" in listed
    assert vader(["runs", "commit", str(committed)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_record_adds_up_sessions_and_forgets_what_a_resumed_training_repeats(tmp_path):
    first = Record(tmp_path, seed=3, data="x")
    for clock in (0, 10, 20):
        first.log("diffusion", clock, loss=torch.tensor(1.0))
    first.save()
    second = Record(tmp_path, seed=3, data="x")
    second.rewind("diffusion", 15)
    second.log("diffusion", 15, loss=0.5)  # the first step after a checkpoint at 15
    second.save()
    record = read_json(tmp_path / "record.json")
    assert [point["clock"] for point in record["curves"]["diffusion"]] == [0, 10, 15]
    assert record["seed"] == 3 and record["data"] == "x" and len(record["sessions"]) == 2
    assert record["seconds"] == pytest.approx(sum(session["seconds"] for session in record["sessions"]), rel=1e-12)
    assert record["peak_memory_bytes"] > 1e6
    assert record["sessions"][0].keys() >= {"started", "commit", "torch", "versions", "device", "threads"}
