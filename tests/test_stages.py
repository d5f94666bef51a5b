"""The loop: it learns, it resumes where it was, and it says what is wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

import pytest
import torch

from tests.tiny import balls, tiny_articulated, tiny_experiment
from vader.articulation.learning.one_part import rigid
from vader.autodecoder.reconstruction import Reconstruction, load_autodecoder
from vader.commands import main as vader
from vader.commands import train as training_command
from vader.data import DataError
from vader.diffusion.denoising import extract_latents, load_denoiser
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment
from vader.stages import autodecoder_run, autodecoder_settings, diffusion_run, require_weights
from vader.store import runs, weights
from vader.store.files import read_json, read_weights, save_weights
from vader.store.runs import Paused, RunError
from vader.store.weights import WeightsError
from vader.training import fit, learning_rate_factor, select_device, stream_seed


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def config():
    return tiny_experiment()


@pytest.fixture
def data(config):
    return balls(config)


def weights_of(run):
    return {part: read_weights(run.folder / part)[0] for part in run.files}


def assert_same_weights(a, b):
    for part, tensors in weights_of(a).items():
        others = weights_of(b)[part]
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), name


def test_stage_1_learns_and_is_found_again(data):
    config = tiny_experiment(reconstruction=dict(images_seen=800))
    run = autodecoder_run(config, data, "cpu")
    losses = [point["pixels"] for point in run.record["curves"]["autodecoder"]]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert run.record["objects"] == [s.key for s in data.split("train")]
    assert autodecoder_run(config, data, "cpu").folder == run.folder
    assert not list(run.folder.glob("checkpoint*"))


def test_stage_2_learns_the_latents_of_stage_1(data):
    config = tiny_experiment(diffusion=dict(latents_seen=1_600, batch_size=16))
    run = diffusion_run(config, data, "cpu")
    losses = [point["loss"] for point in run.record["curves"]["diffusion"]]
    assert sum(losses[:5]) / 5 == pytest.approx(1, abs=0.35)  # EDM's weighting makes an untrained network score 1
    assert sum(losses[-20:]) / 20 < 0.87
    denoiser, statistics = load_denoiser(run, config)
    features = extract_latents(load_autodecoder(autodecoder_run(config, data, "cpu"), config))
    normalized = statistics.normalize(features)
    quartiles = torch.quantile(normalized.flatten(), torch.tensor([0.25, 0.5, 0.75]))
    assert quartiles[1].item() == pytest.approx(0, abs=1e-3)
    assert 0.7413 * (quartiles[2] - quartiles[0]).item() == pytest.approx(0.5, rel=1e-2)
    assert not any(p.requires_grad for p in denoiser.parameters())


@pytest.mark.parametrize("stage", [autodecoder_run, diffusion_run])
def test_two_runs_of_one_seed_are_equal_bit_for_bit(stage, config, data, tmp_path, monkeypatch):
    first = stage(config, data, "cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "again"))
    second = stage(config, data, "cpu")
    assert first.digest == second.digest and first.folder != second.folder
    assert_same_weights(first, second)
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "other"))
    other = stage(dataclasses.replace(config, seed=1), data, "cpu")
    assert other.digest != first.digest


@pytest.mark.parametrize("stage", [autodecoder_run, diffusion_run])
def test_a_paused_and_resumed_run_equals_an_uninterrupted_one(stage, config, data, tmp_path, monkeypatch):
    whole = stage(config, data, "cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "pieces"))
    pauses = 0
    for _ in range(100):
        try:
            pieces = stage(config, data, "cpu", max_seconds=0.0)
            break
        except Paused:
            pauses += 1
    assert pauses >= 3
    assert_same_weights(whole, pieces)
    name = "diffusion" if stage is diffusion_run else "autodecoder"
    clocks = [point["clock"] for point in pieces.record["curves"][name]]
    assert clocks == sorted(set(clocks)), "a resumed training logs no point twice"
    assert clocks == [point["clock"] for point in whole.record["curves"][name]]


def test_sigterm_saves_and_pauses(config, data):
    config = tiny_experiment(reconstruction=dict(images_seen=400_000))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    timer.start()
    try:
        with pytest.raises(Paused, match="run it again to resume"):
            autodecoder_run(config, data, "cpu")
    finally:
        timer.cancel()
    assert signal.getsignal(signal.SIGTERM) == before
    [checkpoint] = (runs.runs_dir()).glob("*.partial/checkpoint-*")
    assert read_json(checkpoint / "checkpoint.json")["clock"] > 0


def test_a_loss_that_is_not_finite_stops_before_the_weights_take_it(config, data, tmp_path):
    task = Reconstruction(config, data, torch.device("cpu"))
    with torch.no_grad():
        task.model.decoder.head.bias.fill_(float("nan"))
    message = r"autodecoder loss .* not finite at 0 seen \(step 0\).*objects of the step: ball-\d, ball-\d; there is no"
    with pytest.raises(RunError, match=message):
        fit(task, tmp_path, runs.Record(tmp_path, 0))
    assert not list(tmp_path.glob("checkpoint*"))


def test_the_learning_rate_rises_then_falls_to_zero():
    assert learning_rate_factor(0, 100, 0) == 1
    assert learning_rate_factor(50, 100, 0) == 0.5
    assert learning_rate_factor(100, 100, 0) == 0
    assert learning_rate_factor(4, 100, 10) == pytest.approx(0.5 * 0.96)


def test_random_streams_differ_by_seed_rank_and_clock():
    seeds = {stream_seed(s, r, c) for s in range(3) for r in range(3) for c in range(0, 96, 32)}
    assert len(seeds) == 27


def test_a_step_uses_each_object_and_each_view_once(config, data):
    task = Reconstruction(config, data, torch.device("cpu"))
    batch = task.draw(0)
    assert batch.images.shape == (2, 2, 16, 16, 3)
    assert len(batch.objects.unique()) == 2
    assert all(not torch.equal(*poses) for poses in batch.world_to_camera)


def test_more_objects_a_step_than_there_are(data):
    config = tiny_experiment(reconstruction=dict(objects_per_step=5))
    with pytest.raises(ConfigError, match="objects_per_step is 5, but balls has 4"):
        Reconstruction(config, data, torch.device("cpu"))


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RunError, match="finds no CUDA device"):
        select_device("cuda")
    for name in ("gpu", "cuda:first", ""):
        with pytest.raises(RunError, match=f"device is '{name}', expected auto, cpu, cuda or cuda:N"):
            select_device(name)
    assert select_device("auto").type == "cpu"


def test_the_plan_counts_parameters_and_steps(capsys):
    assert vader(["train", "photoshape_chairs", "--profile", "paper", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "decoder 55,2" in plan and "U-Net 21" in plan


@pytest.mark.parametrize("error", [DataError, WeightsError, RunError])
def test_the_command_says_what_is_wrong_and_fails(monkeypatch, capsys, error):
    def missing(*_, **__):
        raise error("mesh.ply: file is missing")

    monkeypatch.setattr(training_command, "prepare", missing)
    assert vader(["train", "procedural_chairs", "--profile", "smoke"]) == 1
    assert capsys.readouterr().err == "error: mesh.ply: file is missing\n"


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """No VGG anywhere, no reference runs, and a data folder of one's own."""

    def unreachable(url):
        raise OSError("no network in this test")

    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    monkeypatch.setattr(weights, "_download", unreachable)
    monkeypatch.setattr(runs, "reference_runs_dir", lambda: tmp_path / "committed")
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_that_lacks_its_network_says_so_before_it_makes_data(ranks, no_weights, monkeypatch, capsys):
    for late in ("prepare", "launch"):
        monkeypatch.setattr(training_command, late, lambda *_, late=late, **__: pytest.fail(f"{late} came first"))
    assert vader(["train", "furniture_chairs", "--ranks", str(ranks), "--microbatches", "2"]) == 1
    [first, *ways] = capsys.readouterr().err.splitlines()
    start = "error: furniture_chairs, profile laptop: stage 1 trains with vgg16 (Eq. 1), and the weights of vgg16 were"
    assert first.startswith(start)
    assert [way.split(":")[0].strip() for way in ways] == ["explicit path", "package", "hub"]
    assert "vgg16_features.safetensors" in ways[0] and "VADER_WEIGHTS" in ways[0] and "no network" in ways[2]
    assert not (no_weights / "data").exists() and not (no_weights / "runs").exists()


def test_weights_are_required_only_for_what_is_still_to_be_trained(no_weights, monkeypatch):
    laptop, smoke = experiment("laptop", "furniture_chairs"), experiment("smoke", "furniture_chairs")
    require_weights(smoke)
    with pytest.raises(WeightsError, match="vgg16 were not found"):
        require_weights(smoke, laptop)
    keep_finished("furniture_chairs-autodecoder", autodecoder_settings(laptop) | {"data": "a" * 64})
    require_weights(laptop)
    for other in (laptop.replace(seed=1), laptop.replace(reconstruction=dict(perceptual_weight=1.0))):
        with pytest.raises(WeightsError):
            require_weights(laptop, other)


@pytest.mark.parametrize("started_here", [True, False])
def test_an_articulated_training_needs_weights_until_the_run_with_all_parts_is_there(started_here, no_weights):
    """The one that it started from is no end: it is needed to train, not to find what is trained."""
    config = tiny_articulated(reconstruction=dict(perceptual_network="vgg16"))
    one = rigid(config, config.articulation.rigid_images)
    for start, stage in ((None, one), ("b" * 64, config))[not started_here :]:
        with pytest.raises(WeightsError):
            require_weights(config)
        settings = autodecoder_settings(stage) | {"articulation": stage.articulation, "start": start, "data": "a" * 64}
        keep_finished("puppets-autodecoder", settings)
    require_weights(config)


def test_studies_and_rivals_say_it_before_they_make_data_too(no_weights, capsys):
    for arguments in (["budget", "--data", "procedural_chairs"], ["figure3"]):
        assert vader(["study", *arguments]) == 1
        assert "the weights of vgg16 were not found" in capsys.readouterr().err
    assert not (no_weights / "data").exists()


def keep_finished(name, settings):
    """A run of these settings among the own ones, trained by nobody."""
    work = runs.begin(name, settings)
    runs.Record(work, 0).save()
    save_weights(work / "autodecoder.safetensors", {"x": torch.zeros(1)}, {})
    runs.publish(work)
