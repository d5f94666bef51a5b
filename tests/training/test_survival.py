"""What happens to long runs happens here to short ones: kills at any moment, full disks, damaged files, NaN."""

from __future__ import annotations

import errno
import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.ranks import CPU, Drawing, draw_on_a_full_disk, draw_to_the_end, last_clock, start
from vader.store import runs
from vader.store.files import read_json, read_weights, write_json
from vader.store.runs import Paused, RunError
from vader.training import checkpoints, fit

KILLS_INSIDE, KILLS_ANYWHERE = 12, 14
STEPS = 120


def weights(work: Path) -> torch.Tensor:
    return read_weights(work / "drawing.safetensors")[0]["weight"]


def undisturbed(work: Path, total: int = STEPS) -> torch.Tensor:
    work.mkdir()
    fit(Drawing(total), work, runs.Record(work, 0))
    return weights(work)


def test_no_kill_loses_a_finished_checkpoint_or_changes_the_result(tmp_path):
    expected, work = undisturbed(tmp_path / "whole"), tmp_path / "killed"
    work.mkdir()
    journal, random_moment = work / "journal", random.Random(0)
    journal.touch()
    moments = [*range(KILLS_INSIDE), *[None] * KILLS_ANYWHERE]
    begun = 0
    for die_at in moments:
        before = journal.stat().st_size
        process = start(draw_to_the_end, work, STEPS, die_at)
        if die_at is None:
            while process.is_alive() and journal.stat().st_size == before:  # it has resumed and gone a step
                time.sleep(0.002)
            time.sleep(random_moment.uniform(0, 0.02))
            process.kill()
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, "the training ended before it could be killed: add steps"
        finished = int((journal.read_text().split() or ["0"])[-1])
        assert last_clock(work) >= finished, "a finished checkpoint was lost"
        begun += any(work.glob("checkpoint-*.tmp"))
    assert begun >= KILLS_INSIDE // 2, "too few kills fell into a write"
    process = start(draw_to_the_end, work, STEPS)
    process.join(240)
    assert process.exitcode == 0
    assert torch.equal(weights(work), expected)
    assert len(checkpoints.checkpoints(work)) == checkpoints.KEPT and not list(work.glob("checkpoint-*.tmp"))


class KilledAt(Drawing):
    """A training that is stopped, before any checkpoint, in a way that no code catches."""

    def __init__(self, clock: int) -> None:
        super().__init__(STEPS)
        self.last = clock

    def step(self, clock: int) -> dict[str, torch.Tensor]:
        if clock >= self.last:
            raise KeyboardInterrupt
        return super().step(clock)


def test_a_training_killed_before_its_first_checkpoint_counts_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr("vader.training.loop.RECORD_SECONDS", 0.0)
    for clock in (0, 5):
        with pytest.raises(KeyboardInterrupt):
            fit(KilledAt(clock), tmp_path, runs.Record(tmp_path, 0))
    assert not checkpoints.checkpoints(tmp_path)
    sessions = read_json(tmp_path / "record.json")["sessions"]
    assert len(sessions) == 2 and 0 < sessions[0]["seconds"] < 60 and 0 < sessions[1]["seconds"] < 60
    record = runs.Record(tmp_path, 0)
    fit(Drawing(8), tmp_path, record)
    found = read_json(tmp_path / "record.json")
    assert found["seconds"] == sum(session["seconds"] for session in found["sessions"]) and len(found["sessions"]) == 3
    clocks = [point["clock"] for point in found["curves"]["drawing"]]
    assert clocks == sorted(set(clocks)), "points of the lost part are there twice"


def paused(work: Path, steps: int, total: int = 8) -> None:
    """A training that stopped with checkpoints after each of its first steps."""
    work.mkdir(exist_ok=True)
    for _ in range(steps):
        with pytest.raises(Paused):
            fit(Drawing(total), work, runs.Record(work, 0), max_seconds=0.0)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_detected_and_the_one_before_it_used(tmp_path, capfd, damage):
    work = tmp_path / "work"
    paused(work, 3)
    newest, before = checkpoints.checkpoints(work)
    damage(newest / "shared.pt")
    fit(Drawing(8), work, runs.Record(work, 0))
    said = capfd.readouterr().err
    assert f"{newest}" in said and "is damaged" in said and f"using {before.name} in its place" in said
    assert torch.equal(weights(work), undisturbed(tmp_path / "whole", 8))


def test_where_all_checkpoints_are_damaged_nothing_starts_over_by_itself(tmp_path):
    paused(tmp_path, 2)
    for folder in checkpoints.checkpoints(tmp_path):
        flip(folder / "shared.pt")
    with pytest.raises(RunError, match="is damaged, SHA-256 is .* no earlier one; remove it to start over"):
        fit(Drawing(8), tmp_path, runs.Record(tmp_path, 0))


def test_a_checkpoint_of_another_task_schema_model_or_settings_is_refused(tmp_path):
    def attempt(task, match):
        with pytest.raises(RunError, match=match):
            fit(task, tmp_path, runs.Record(tmp_path, 0))

    write_json(tmp_path / "settings.json", {"settings": {"rate": {"value": 1}, "seed": 0}})
    paused(tmp_path, 1)
    attempt(Drawing(8, size=3), r"(?s)not a checkpoint of this drawing training \(.*size mismatch.*\[512\]")
    other = Drawing(8)
    other.name = "autodecoder"
    attempt(other, "not a checkpoint of this autodecoder training: its task is 'drawing'")
    write_json(tmp_path / "settings.json", {"settings": {"rate": {"value": 2}, "seed": 0, "new": True}})
    attempt(Drawing(8), r'rate\.value is 1, expected 2; new is "absent", expected true; remove it')
    head = tmp_path / checkpoints.checkpoints(tmp_path)[0] / "checkpoint.json"
    write_json(head, read_json(head) | {"schema": 99})
    attempt(Drawing(8), "its schema is 99, expected 1")


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"checkpoint\.pt: not a checkpoint of this version; remove it"):
        fit(Drawing(8), tmp_path, runs.Record(tmp_path, 0))


def test_a_full_disk_stops_training_and_leaves_the_earlier_checkpoint(tmp_path):
    with pytest.raises(Paused):
        fit(Drawing(8, size=20_000), tmp_path, runs.Record(tmp_path, 0), max_seconds=0.0)
    start(draw_on_a_full_disk, tmp_path).join(240)
    error = (tmp_path / "error").read_text()
    assert "checkpoint-000000000002: cannot be written" in error and "File too large" in error
    assert "checkpoint-000000000001 stays, and the run resumes from it" in error
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-000000000001"]
    fit(Drawing(8, size=20_000), tmp_path, runs.Record(tmp_path, 0))


# ----------------------------------------------------------------------------------------------- not a number


class Sick(Drawing):
    """Its loss is NaN at one clock."""

    def __init__(self, total: int = 8, at: int = 5, what: str = "loss") -> None:
        super().__init__(total)
        self.at, self.what = at, what

    def step(self, clock: int) -> dict[str, torch.Tensor]:
        losses = super().step(clock)
        if clock == self.at:
            self.model.weight.grad.fill_(float("nan"))
            losses = {"loss": losses["loss"] * float("nan")} if self.what == "loss" else losses
        return losses


def test_a_step_that_is_not_finite_is_named_and_no_checkpoint_has_it(tmp_path):
    message = r"not finite at 5 seen \(step 5\).*loss nan; objects of the step: object-5; checkpoint-000000000005 is"
    with pytest.raises(RunError, match=message):
        fit(Sick(), tmp_path, runs.Record(tmp_path, 0), checkpoint_seconds=0)
    state = checkpoints.read(checkpoints.checkpoints(tmp_path)[0], "shared", CPU)
    assert state["modules"]["model"]["weight"].isfinite().all()


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(RunError, match="has weights that are not finite at 6 seen"):
        fit(Sick(what="gradient"), tmp_path, runs.Record(tmp_path, 0), checkpoint_seconds=0)
    assert checkpoints.checkpoints(tmp_path)[0].name == "checkpoint-000000000005"


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_can_be_skipped_and_is_counted(tmp_path, what):
    task, record = Sick(what=what), runs.Record(tmp_path, 0)
    task.clip_norm = 1e9  # whose norm also shows a gradient that is not finite
    fit(task, tmp_path, record, skip_non_finite=True)
    assert record.content["curves"]["skipped"] == [{"clock": 5, "steps": 1.0}]
    assert weights(tmp_path).isfinite().all()


# ------------------------------------------------------------------------------------------------- bounds and logs


def test_gradients_are_clipped_by_norm_and_by_value(tmp_path):
    seen = []

    class Watched(Drawing):
        def after_step(self, clock):
            seen.append(self.model.weight.grad.clone())

    plain, by_norm, by_value = Watched(1), Watched(1), Watched(1)
    by_norm.clip_norm, by_value.clip_value = 0.01, 0.001
    for i, task in enumerate((plain, by_norm, by_value)):
        (tmp_path / str(i)).mkdir()
        fit(task, tmp_path / str(i), runs.Record(tmp_path / str(i), 0))
    whole, normed, valued = seen
    assert whole.norm() > 0.02 and whole.abs().max() > 0.002
    torch.testing.assert_close(normed, whole * 0.01 / whole.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(valued, whole.clamp(-0.001, 0.001), rtol=0, atol=0)
    line = json.loads((tmp_path / "1" / "log.jsonl").read_text())
    assert line["gradient_norm"] == pytest.approx(whole.norm().item(), rel=1e-5)


def test_the_log_has_losses_rate_speed_and_memory(tmp_path):
    paused(tmp_path, 2)
    fit(Drawing(8), tmp_path, runs.Record(tmp_path, 0))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["clock"] for line in lines] == list(range(8)) and [line["session"] for line in lines][:3] == [1, 2, 3]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.1 * (1 - i / 8) for i in range(8)])
    assert all(line["per_second"] >= 0 and line["peak_memory_bytes"] > 0 and line["loss"] > 0 for line in lines)


def test_tensorboard_is_written_where_it_is_asked_for_and_there(tmp_path):
    import importlib.util

    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ImportError, match=r"vader\[scale\]"):
            fit(Drawing(2), tmp_path, runs.Record(tmp_path, 0), tensorboard=True)
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        fit(Drawing(2), tmp_path, runs.Record(tmp_path, 0), tensorboard=True)
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("drawing/loss")] == [0, 1]


def _full(*_args, **_options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("loop._Log.write", r"No space left on device\), so training stops; checkpoint-\d*2 stays"),
        ("checkpoints.sync", r"checkpoint-\d*3: cannot be written .*; checkpoint-\d*2 stays"),
    ],
)
def test_a_disk_that_fills_up_is_one_error_and_what_is_saved_stays(tmp_path, monkeypatch, place, message):
    paused(tmp_path, 2)
    with monkeypatch.context() as full, pytest.raises(RunError, match=message) as error:
        full.setattr(f"vader.training.{place}", _full)
        fit(Drawing(8), tmp_path, runs.Record(tmp_path, 0), checkpoint_seconds=0.0)
    assert "\n" not in str(error.value)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)][0] == "checkpoint-000000000002"
    fit(Drawing(8), tmp_path, runs.Record(tmp_path, 0))


def test_weights_that_do_not_fit_the_disk_are_an_error_and_leave_no_half_file(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def cut(_tensors, file, **_options):
        Path(file).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vader.store.files.save_file", cut)
    with pytest.raises(RunError, match=r"drawing\.safetensors: weights cannot be written .*No space left"):
        fit(Drawing(8), tmp_path, runs.Record(tmp_path, 0))
    assert not list(tmp_path.glob("*.tmp"))
