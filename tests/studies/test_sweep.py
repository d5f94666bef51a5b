"""Sweeps: what their experiments differ in, that a table is measured once, resumed, and the same from any processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.autodecoder.reconstruction import Reconstruction
from vader.data import DataError, prepare
from vader.data.prepared import data_digest
from vader.data.sets import procedural
from vader.evaluation import costs
from vader.evaluation.metrics.surfaces import solid_parts
from vader.report import seed_interval
from vader.report.paper import TABLE2, table2_rows
from vader.report.schema import check_row
from vader.settings import profiles
from vader.settings.checks import ConfigError
from vader.settings.profiles import differences
from vader.stages import autodecoder_settings
from vader.store import runs
from vader.store.files import read_json
from vader.store.runs import Paused
from vader.studies import sweep
from vader.training.process import sigterm_noted

PROFILES = ("smoke", "laptop")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))


# --------------------------------------------------------------------------------------------- what is swept over


@pytest.mark.parametrize("profile", PROFILES)
def test_table2_removes_one_component_after_the_other(profile):
    ablation = sweep.table2(profile)
    assert list(ablation.experiments) == list(TABLE2) and ablation.experiments["ours"] == ablation.base
    variants = list(ablation.experiments.values())
    changed = [set(differences(b, a)) for a, b in zip(variants, variants[1:], strict=False)]
    stage1 = {"reconstruction.views_per_object", "reconstruction.images_seen", "reconstruction.density_noise_images"}
    assert changed == [
        stage1,
        {"autodecoder.attention_resolutions"},
        {"autodecoder.depth"},
        {"autodecoder.embedding_dim"},
    ]
    assert variants[-1].autodecoder.embedding_dim * 16 == variants[0].autodecoder.embedding_dim
    assert variants[-1].autodecoder.depth == 1 and variants[-1].autodecoder.attention_resolutions == ()


def test_the_seed_is_the_first_of_several():
    assert sweep.table2("laptop").seeds == (0, 1, 2) and sweep.table2("laptop", 5).seeds == (5, 6, 7)
    shared = sweep.figure3("smoke", 3)
    assert shared.base.seed == 3 and shared.seeds == (3, 4)


def test_table2_at_the_laptop_has_the_papers_embeddings():
    lengths = [e.autodecoder.embedding_dim for e in sweep.table2("laptop").experiments.values()]
    assert lengths == [1024, 1024, 1024, 1024, 64]


def test_the_papers_table2_is_rows_of_a_report():
    rows = table2_rows()
    for row in rows:
        check_row("row", {key: value for key, value in row.items() if value is not None})
    found = {(row["system"], row["metric"]): row["value"] for row in rows}
    assert found["ours", "psnr"] == 27.719 and found["ours-without_embedding_length", "lpips"] == 8.332


@pytest.mark.parametrize("profile", PROFILES)
def test_table2_decodes_as_many_objects_in_every_training(profile):
    decoded = set()
    for experiment in sweep.table2(profile).experiments.values():
        stage1 = experiment.reconstruction
        decoded.add(
            (stage1.images_seen / stage1.views_per_object, stage1.density_noise_images / stage1.views_per_object)
        )
    assert len(decoded) == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_figure3_shifts_the_unet_and_keeps_its_size(profile):
    ablation = sweep.figure3(profile)
    steps = sweep.STEPS[profile]
    assert set(ablation.experiments) == {sweep.latents(r, n) for r in (4, 8, 16) for n in steps}
    found = {r: ablation.experiments[sweep.latents(r, steps[0])] for r in (4, 8, 16)}
    assert [e.unet.attention_resolutions for e in found.values()] == [(2,), (4,), (8,)]
    assert [e.autodecoder.latent_shape[1] for e in found.values()] == [4, 8, 16]
    sizes = [costs.parameters(e)["denoiser"] for e in found.values()]
    assert max(sizes) < (1.1 if profile == "laptop" else 1.2) * min(sizes)
    for e in ablation.experiments.values():
        assert e.sampler.s_churn == 0 and e.unet.channels == ablation.base.unet.channels
    base = ablation.base.diffusion
    for r, share in sweep.EQUAL_TIME.items():
        assert found[r].diffusion.latents_seen == pytest.approx(share * base.latents_seen, rel=0.02)
        assert found[r].diffusion.warmup_latents == pytest.approx(share * base.warmup_latents, abs=1)


def test_figure3_trains_each_resolution_once_for_all_steps():
    """Experiments that differ in the sampler have equal settings of training, and neighbours have not."""
    ablation = sweep.figure3("laptop")
    trained = [(e.autodecoder, e.unet, e.diffusion) for e in ablation.experiments.values()]
    assert trained[:3] == trained[3:6] == trained[6:] and trained[0] != trained[1] != trained[2]


def test_the_laptops_figure3_rests_on_the_autodecoder_of_procedural_chairs():
    base, plain = sweep.figure3("laptop").base, profiles.experiment("laptop", "procedural_chairs")
    data = SimpleNamespace(digest=data_digest(plain.data, procedural.sources(plain.data)))
    used = read_json(ROOT / "reports" / "figure9.laptop.json")["environment"]["runs"]
    assert runs.digest(autodecoder_settings(base, data)) in {run["digest"] for run in used}


def test_where_the_decoder_is_split_changes_nothing_about_its_training():
    """Draws, loss and gradients of stage 1 at every tap, but for rounding, as memory formats may differ."""
    results = []
    for tap in (4, 8):
        config = tiny_experiment(autodecoder=dict(latent_resolution=tap))
        task = Reconstruction(config, balls(config), torch.device("cpu"))
        torch.manual_seed(0)
        loss = task.step(0)["loss"]
        results.append((loss, [p.grad for p in task.model.parameters()], list(task.model.state_dict())))
    (loss_a, grads_a, names_a), (loss_b, grads_b, names_b) = results
    assert names_a == names_b
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-5, atol=0)
    for a, b in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_base_without_what_is_removed_is_refused(monkeypatch):
    base = sweep.table2("smoke").base
    monkeypatch.setattr(sweep, "study", lambda *_: base.replace(autodecoder=dict(depth=1)))
    with pytest.raises(ConfigError, match="no depth or attention that could be removed"):
        sweep.table2("smoke")
    monkeypatch.setattr(sweep, "study", lambda *_: base.replace(sampler=dict(s_churn=15.0)))
    with pytest.raises(ConfigError, match="s_churn is 15.0, expected 0"):
        sweep.figure3("smoke")


# ------------------------------------------------------------------------------------------------------ the table

CALLS: list[tuple[int, int]] = []


def fake(sweep, experiment, data, device, max_seconds):
    """Measurements that depend on the experiment, as those of a training would."""
    CALLS.append((experiment.sampler.num_steps, experiment.seed))
    steps, seed = experiment.sampler.num_steps, experiment.seed
    return {"kd": torch.tensor(100.0 / steps + seed), "each": torch.arange(3.0) + steps}


def pausing(sweep, experiment, data, device, max_seconds):
    if len(CALLS) == 2:
        raise Paused("time is over")
    return fake(sweep, experiment, data, device, max_seconds)


@pytest.fixture
def small():
    CALLS.clear()
    base = tiny_experiment()
    experiments = {f"steps_{n}": base.replace(sampler=dict(num_steps=n)) for n in (2, 4)}
    return sweep.Sweep("small", base, experiments, (0, 1), "equal", fake)


def test_a_table_is_measured_once_and_read_by_seed(small):
    data = balls(small.base)
    found = sweep.table(small, data)
    assert CALLS == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert found.over_seeds("steps_2", "kd") == [50.0, 51.0] and found.over_seeds("steps_4", "each") == [5.0, 5.0]
    assert found.difference("steps_2", "steps_4", "kd") == (25.0, 25.0, 25.0)
    row = found.row("steps_2", "kd", 10)
    assert (row["value"], row["n"], row["scale"]) == (505.0, 2, 10) and row["std"] == pytest.approx(10 / math.sqrt(2))
    assert row["low"] < 505 < row["high"]
    assert found.run.record["budget"] == "equal" and not (found.run.folder / "checkpoint").exists()
    again = sweep.table(small, data)
    assert len(CALLS) == 4 and again.run.digest == found.run.digest
    other = dataclasses.replace(small, seeds=(0, 2))
    assert sweep.table(other, data).run.digest != found.run.digest


def test_differences_are_of_trainings_with_the_same_seed(small):
    """Means and sorted lists alike would hide which training belongs to which."""
    kd = {("ours", 0): 1.0, ("ours", 1): 5.0, ("less", 0): 4.0, ("less", 1): 2.0}
    found = sweep.Table(small, None, {(*job, "kd"): torch.tensor(value) for job, value in kd.items()})
    assert found.difference("ours", "less", "kd") == seed_interval([-3.0, 3.0])


def test_a_table_that_was_paused_goes_on_where_it_stopped(small):
    data = balls(small.base)
    with pytest.raises(Paused, match="2 of 4 experiments measured"):
        sweep.table(dataclasses.replace(small, measure=pausing), data)
    assert CALLS == [(2, 0), (2, 1)]
    found = sweep.table(small, data)
    assert CALLS == [(2, 0), (2, 1), (4, 0), (4, 1)] and found.over_seeds("steps_2", "kd") == [50.0, 51.0]
    with pytest.raises(Paused, match="0 of 4 experiments measured"):
        sweep.table(dataclasses.replace(small, name="late"), data, max_seconds=-1)
    assert len(CALLS) == 4, "nothing is begun after the time is over"


def test_what_pauses_a_training_pauses_the_sweep(small):
    """SIGTERM reaches the training in progress only; no other may be begun after it."""

    def told(sweep, experiment, data, device, max_seconds):
        CALLS.append(experiment.seed)
        raise Paused("told to stop")

    with pytest.raises(Paused, match="0 of 4 experiments measured"):
        sweep.table(dataclasses.replace(small, measure=told), balls(small.base))
    assert len(CALLS) == 1


def test_a_sweep_in_processes_passes_sigterm_on(small, tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    config = small.base.replace(data=dict(num_objects=2, heldout_objects=1, train_views=2, heldout_views=1))
    monkeypatch.setattr(sweep, "_work", interrupted_work)
    with pytest.raises(Paused, match="0 of 4 experiments measured"):
        sweep.table(small, prepare(config.data), workers=2)
    told = sorted(tmp_path.rglob("told-*"))
    assert 1 <= len(told) <= 3, "those that were begun, of which the pool takes one in advance"
    assert sweep.table(small, prepare(config.data)).over_seeds("steps_4", "kd") == [25.0, 26.0]


def interrupted_work(job):
    """Have the sweep told to stop, as a user does, and train until it passes that on, which it does once: a job that
    is begun after another was told ends soon by itself. Only the first one tells: when a later one begins, the sweep
    may have ended, and with it what takes the signal."""
    file = job[3]
    with sigterm_noted() as told_to_stop:
        with contextlib.suppress(FileExistsError):
            (file.parent / "asked").touch(exist_ok=False)
            os.kill(os.getppid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not told_to_stop and time.monotonic() < deadline:
            if any(file.parent.glob("told-*")):
                deadline = min(deadline, time.monotonic() + 1)
            time.sleep(0.05)
    if told_to_stop:
        (file.parent / f"told-{job[1]}-{job[2]}").touch()
    return "told to stop"


def test_other_processes_measure_the_same(small, tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    config = small.base.replace(data=dict(num_objects=2, heldout_objects=1, train_views=2, heldout_views=1))
    data = prepare(config.data)
    monkeypatch.setattr(sweep, "_work", fake_work)
    found = sweep.table(small, data, workers=2)
    assert CALLS == [], "nothing is measured in this process"
    assert found.over_seeds("steps_4", "kd") == [25.0, 26.0] and found.over_seeds("steps_2", "each") == [3.0, 3.0]
    with pytest.raises(DataError, match="lies in memory only, expected a prepared set for 2 processes"):
        sweep.table(dataclasses.replace(small, name="other"), balls(small.base), workers=2)


def fake_work(job):
    assert len(sweep._DATA[0]) == 3 and torch.get_num_threads() == 1
    return sweep._measure(sweep._DATA[0], *job)


# --------------------------------------------------------------------------------------------- real measurements


def test_both_measures_on_balls(monkeypatch):
    small = dict(max_channels=16, resolution=32)
    base = tiny_experiment(
        data=dict(resolution=32),
        autodecoder=small,
        reconstruction=dict(images_seen=16, num_samples=8),
        unet=dict(channels=8, channels_per_head=8),
        diffusion=dict(latents_seen=8),
        evaluation=dict(num_samples=4, views=4, sampling_seeds=(0,)),
    )
    data = balls(base)
    monkeypatch.setattr(sweep, "study", lambda *_: base)
    monkeypatch.setitem(sweep.STEPS, "smoke", (2, 3))
    ablation = sweep.figure3("smoke")
    found = {
        (n, seed): ablation.measure(
            ablation, ablation.experiments[sweep.latents(16, n)].replace(seed=seed), data, "cpu", None
        )
        for n, seed in ((2, 0), (3, 0), (3, 1))
    }
    quantities = {"fd", "kd", "partial", "spurious", "seconds_per_sample", "flops", "seconds", "parameters"}
    assert set(found[2, 0]) == set(found[3, 1]) == quantities and set(found[3, 0]) == quantities | {"pictures"}
    assert found[3, 0]["pictures"].shape == (4, 64, 6 * 64, 3)
    assert all(torch.isfinite(x.double()).all() for values in found.values() for x in values.values())
    trained = sorted(folder.name for folder in runs.runs_dir().glob("balls-*") if folder.is_dir())
    assert len(trained) == 3, "one autodecoder, and a denoiser for each seed"
    assert not torch.equal(found[3, 0]["kd"], found[3, 1]["kd"])
    reconstruction = sweep.measure_reconstruction(ablation, base, data, "cpu", None)
    assert reconstruction["psnr"].shape == reconstruction["lpips"].shape == (4,)
    with pytest.raises(Paused, match="trained, its samples are still to be measured"):
        ablation.measure(ablation, ablation.experiments[sweep.latents(16, 2)], data, "cpu", -1.0)


def test_solid_parts_of_a_known_volume():
    density = torch.zeros(16, 16, 16)
    density[4:8, 4:8, 4:8] = 1e3  # 64 voxels
    assert solid_parts(density) == (64, 0.0)
    density[8, 8, 8] = 1e3  # touches a corner
    assert solid_parts(density) == (65, 0.0)
    density[12, 12, 0:5] = 1e3
    density[0, 0, 0] = torch.nan
    solid, spurious = solid_parts(density)
    assert solid == 70 and spurious == pytest.approx(5 / 70)
    assert solid_parts(torch.full((4, 4, 4), 0.1)) == (0, 0.0)
    assert solid_parts(torch.full((4, 4, 4), 0.1), threshold=0.05) == (64, 0.0)


@pytest.mark.parametrize(
    ("difference", "verdict"), [((1, 0.5, 2), "holds"), ((-1, -2, -0.5), "fails"), ((1, -1, 3), "inconclusive")]
)
def test_a_verdict_and_its_sentence(difference, verdict):
    found, text = sweep.verdict(difference, 10, " dB")
    assert found == verdict
    assert text == "{:.3g} dB (95 % interval over seeds {:.3g} to {:.3g})".format(*(10 * x for x in difference))
