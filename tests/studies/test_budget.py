"""The cost of a training: which steps are timed, and that a table of costs survives its file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import balls
from vader.commands import main as vader
from vader.commands import study
from vader.settings.diffrf import diffrf
from vader.settings.profiles import experiment
from vader.studies import budget

ROOT = Path(__file__).parents[2]


class Sleepy:
    """A task whose steps grow dearer: 1 ms in its first half, 5 ms in its second, and 12 ms more at every 4th."""

    name, per_step, total, warmup, seed, device = "sleepy", 2, 400, 0, 0, torch.device("cpu")

    def __init__(self):
        self.weight = nn.Parameter(torch.ones(3))
        self.optimizer = torch.optim.Adam([self.weight], lr=0.1)
        self.clocks = []
        self.settings = type("Settings", (), {"r1_every": 4})

    def step(self, clock):
        self.clocks.append(clock)
        self.weight.square().sum().backward()
        time.sleep(0.001 * (1 if clock < 200 else 5) + 0.012 * (clock // 2 % 4 == 0))

    def after_step(self, clock):
        pass


def test_steps_are_timed_along_the_whole_training_in_whole_cycles_and_leave_the_weights():
    task = Sleepy()
    seconds = budget.timed_steps(task, places=4)
    assert [len([c for c in task.clocks if low <= c < low + 100]) for low in (0, 100, 200, 300)] == [4, 4, 4, 4]
    assert sum(c // 2 % 4 == 0 for c in task.clocks) == 4  # one in four carries the penalty, as in training
    assert task.clocks[0] == 50 and max(task.clocks) < task.total
    assert seconds > 0.003 + 0.003  # sleeps never end early: 1 or 5 ms, and 12 ms every fourth step
    assert torch.equal(task.weight, torch.ones(3))


def test_a_cycle_longer_than_the_training_takes_what_there_is():
    task = Sleepy()
    task.total, task.settings = 6, type("Settings", (), {"r1_every": 8})
    budget.timed_steps(task, places=2)
    assert task.clocks == [0, 2, 4] * 2


def test_minutes_are_those_of_all_steps_at_the_median_turn():
    assert budget.Cost("ours", "diffusion", 8_000, 1_000, (0.5, 0.12, 0.06)).minutes == pytest.approx(2)


def test_every_system_of_table_1_is_timed_and_what_was_measured_is_read_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path / "reports"))
    (tmp_path / "reports").mkdir()
    short = experiment("smoke", "procedural_chairs").replace(reconstruction=dict(images_seen=64))
    monkeypatch.setattr(study, "prepare", lambda data: balls(short))
    monkeypatch.setattr(study, "experiment", lambda profile, data: short)
    monkeypatch.setattr(budget.measure, "__defaults__", (2, 1))  # turns, places
    assert budget.read_budget(short) == []
    assert vader(["study", "budget", "--profile", "smoke", "--data", "procedural_chairs"]) == 0
    costs = budget.read_budget(short)
    assert [(c.system, c.stage) for c in costs] == [
        ("ours", "autodecoder"),
        ("ours", "diffusion"),
        ("diffrf", "fields"),
        ("diffrf", "diffusion"),
        ("eg3d", "adversarial"),
        ("pi_gan", "adversarial"),
    ]
    settings = diffrf("smoke").diffusion
    assert (costs[3].seen, costs[3].steps) == (settings.fields_seen, settings.fields_seen // settings.batch_size)
    assert all(c.minutes > 0 and len(c.seconds_per_step) == 2 for c in costs)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["ours", "diffrf", "eg3d", "pi_gan"]
    total = sum(c.minutes for c in costs[:2])
    assert said[0].startswith(f"ours: {total:.0f} minutes of one core: autodecoder {costs[0].minutes:.0f} (")


def test_committed_costs_are_those_of_the_committed_trainings(monkeypatch, tmp_path):
    """The file has the lengths of the trainings as they are now, those of the runs' records, for all systems."""
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))  # a moved folder of reports does not hide them
    for name in ("furniture_chairs", "furniture_tables"):
        config = experiment("laptop", name)
        costs = {(c.system, c.stage): c for c in budget.read_budget(config)}
        written = json.loads((ROOT / "reports" / f"budget-{name}-laptop.json").read_text())["costs"]
        assert {(c["system"], c["stage"]): (c["seen"], c["steps"]) for c in written} == {
            key: (cost.seen, cost.steps) for key, cost in costs.items()
        }
        for system, stage in costs.keys() - {("diffrf", "fields")}:  # those are part of its run's training
            run = stage if system == "ours" else system
            [record] = (ROOT / "reports" / "runs").glob(f"{name}-{run}-*/record.json")
            [curve] = json.loads(record.read_text())["curves"].values()
            assert curve[-1]["clock"] == pytest.approx(costs[system, stage].seen, rel=0.005)  # points are apart
