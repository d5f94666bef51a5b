"""Recorded training steps, on a CPU: a recording that computes again stands for a CUDA graph."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ranks import given_latents
from tests.tiny import balls, tiny_experiment
from vader.autodecoder.losses import PyramidalPerceptualLoss
from vader.autodecoder.reconstruction import Reconstruction
from vader.rendering import fused
from vader.store import runs
from vader.store.files import read_json
from vader.store.runs import Paused
from vader.training import fit, graphs
from vader.training.distributed import stream_seed
from vader.training.graphs import GraphedLosses, how_it_steps

CPU = torch.device("cpu")


def recomputed(function, inputs):
    """A replay computes again from the tensors that were recorded, into the same results."""
    losses, gradients = function(*inputs)

    def replay():
        again, more = function(*inputs)
        for name, value in again.items():
            losses[name].copy_(value)
        for old, new in zip(gradients, more, strict=True):
            if old is not None:
                old.copy_(new)

    return replay, (losses, gradients)


def broken(function, inputs):
    function(*inputs)
    raise RuntimeError("operation not permitted when stream is capturing")


def reconstruction(record=None, noise: float = 0.0, **changes) -> Reconstruction:
    """A stage-1 training with a perceptual loss that keeps features; as it is, or with recorded steps."""
    changes = dict(density_noise=noise, perceptual_images=2, images_seen=24) | changes
    config = tiny_experiment(reconstruction=changes)
    task = Reconstruction(config, balls(config), CPU)
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1))
    for parameter in network.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    task.perceptual = PyramidalPerceptualLoss(network, (1, 3), (1.0, 0.5))
    task.perceptual.room = 10**6
    if record:
        task.graphed = GraphedLosses(task._losses, task.model, record)
    return task


def denoising(record=None):
    config = tiny_experiment(unet=dict(dropout=0.1))
    task = given_latents(config, torch.randn(4, *config.autodecoder.latent_shape, generator=generator(1)))
    if record:
        task.graphed = GraphedLosses(task._losses, task.denoiser, record)
    return task


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(task, folder, pauses: int = 0) -> dict[str, torch.Tensor]:
    """All weights and buffers after the whole training; paused and resumed by another task so many times."""
    folder.mkdir()
    make = task if callable(task) else lambda: task
    for _ in range(pauses):
        with pytest.raises(Paused):
            fit(make(), folder, runs.Record(folder, 0), max_seconds=0)
    last = make()
    fit(last, folder, runs.Record(folder, 0))
    return {f"{name}.{key}": x for name, module in last.state().items() for key, x in module.state_dict().items()}


@pytest.mark.parametrize(
    "make, changes", [(reconstruction, {}), (reconstruction, {"microbatches": 2}), (denoising, {})]
)
def test_a_recorded_training_is_the_plain_one_and_resumes_bit_by_bit(tmp_path, make, changes):
    expected = trained(lambda: make(**changes), tmp_path / "plain")
    for pauses in (0, 2):
        found = trained(lambda: make(recomputed, **changes), tmp_path / f"recorded {pauses}", pauses)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], x) for name, x in expected.items())


def step(task, clock: int) -> dict[str, torch.Tensor]:
    task.optimizer.zero_grad()
    torch.manual_seed(stream_seed(task.seed, 0, clock))
    losses = task.step(clock)
    return {name: x.clone() for name, x in losses.items()} | {
        f"gradient {k}": p.grad.clone() for k, p in enumerate(task.model.parameters())
    }


def test_losses_are_those_of_the_step_and_randomness_is_a_function_of_the_clock():
    plain, recorded = reconstruction(), reconstruction(recomputed)
    for clock in (0, 4, 4, 8):
        theirs, ours = step(plain, clock), step(recorded, clock)
        assert list(theirs) == list(ours) and {"loss", "foreground", "pixels", "perceptual"} < set(ours)
        assert all(torch.equal(theirs[name], x) for name, x in ours.items())
    noisy = reconstruction(recomputed, noise=0.3)
    first, other, again = (step(noisy, clock)["loss"] for clock in (4, 8, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(noisy.graphed.recordings) == 1
    assert not torch.equal(first, step(reconstruction(recomputed, noise=0.1), 4)["loss"])  # its scale is an input


class ReadsBack(TorchDispatchMode):
    """Refuses what a graph cannot hold: numbers that go from the device to the host, and sizes that depend on data."""

    REFUSED = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function.name() not in self.REFUSED, function.name()
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("make", [reconstruction, denoising])
def test_nothing_is_read_back_in_what_is_recorded(monkeypatch, make):
    monkeypatch.setattr(fused, "empty_space", lambda *a: (None, None))  # on CUDA a map is taken as it is
    read = []

    def watched(function, inputs):
        with ReadsBack():
            read.append(function(*inputs))
        return recomputed(function, inputs)

    task = make(watched)
    torch.manual_seed(0)
    task.step(0)
    assert len(read) == 1
    with pytest.raises(AssertionError, match="_local_scalar_dense"), ReadsBack():  # it would notice
        torch.ones(1).item()


def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_says_so(tmp_path):
    plain, failing = reconstruction(), reconstruction(broken)
    with pytest.warns(UserWarning, match="not recorded as a graph .operation not permitted.*; it runs as it is"):
        assert torch.equal(step(failing, 4)["loss"], step(plain, 4)["loss"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(step(failing, 8)["loss"], step(plain, 8)["loss"])
    assert failing.execution()["step"] == "eager (recording failed: RuntimeError)"
    record = runs.Record(tmp_path, 0)
    record.execution = failing.execution
    record.save()
    assert read_json(tmp_path / "record.json")["sessions"][0]["execution"]["step"].startswith("eager (recording")


def test_graphs_are_for_cuda_and_for_steps_that_one_rank_takes(monkeypatch):
    assert reconstruction().graphed is None and reconstruction().execution()["step"] == "eager"
    module, cuda = nn.Linear(2, 2), torch.device("cuda")
    assert graphs.graphed(module, module, cuda).execution == "CUDA graph"
    assert graphs.graphed(module, module, cuda, "several ranks") is None
    assert how_it_steps(None, cuda, "several ranks") == "eager (several ranks)"
    monkeypatch.setattr(graphs, "GRAPHS", False)
    assert graphs.graphed(module, module, cuda) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_step_recorded_on_cuda_is_the_eager_one(monkeypatch, noise):
    """With noise, too: a graph draws from the stream that the step's seed has set."""
    config = tiny_experiment(reconstruction=dict(density_noise=noise, images_seen=24))
    found = []
    for recorded in (False, True):
        monkeypatch.setattr(graphs, "GRAPHS", recorded)
        task = Reconstruction(config, balls(config), torch.device("cuda"))
        assert (task.graphed is not None) == recorded
        found.append([step(task, clock) for clock in (0, 4, 8)])
    for eager, graph in zip(*found, strict=True):
        torch.testing.assert_close(eager, graph, atol=1e-4, rtol=1e-3)
