"""Samples on disk: independent of batches and interruptions, never mixed with another setting's."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vader.diffusion.edm import Denoiser
from vader.diffusion.inference import GraphedDenoiser, compiled, for_inference, how_it_runs
from vader.diffusion.sampling import (
    SamplingError,
    _heun,
    from_the_middle,
    heun_steps,
    largest_batch,
    object_generators,
    sample,
    sample_objects,
    sample_to_disk,
)
from vader.diffusion.unet3d import UNet3D
from vader.settings.checks import ConfigError
from vader.settings.diffusion import SamplerConfig, UNetConfig

CONFIG = SamplerConfig(num_steps=4, s_churn=2.0)
SHAPE = (3, 2, 2, 2)


class Analytic:
    """A pointwise denoiser that counts evaluations and can be interrupted before one of them."""

    def __init__(self, interrupt_at: int | None = None):
        self.calls, self.interrupt_at = 0, interrupt_at

    def __call__(self, x, sigma, context=None):
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        centre = 0.1 if context is None else context.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1)
        return centre + torch.tanh(x) / (1 + sigma.view(-1, 1, 1, 1, 1) ** 2)


def small_denoiser() -> Denoiser:
    torch.manual_seed(0)
    config = UNetConfig(channels=16, depth=1, channel_mult=(1, 1), attention_resolutions=(2,), channels_per_head=8)
    denoiser = Denoiser(UNet3D(config, 4, 4))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_samples_do_not_depend_on_the_batch_size(tmp_path, batch_size):
    expected = sample_objects(Analytic(), CONFIG, range(7), SHAPE, seed=5)
    found = sample_to_disk(Analytic(), CONFIG, 7, SHAPE, 5, tmp_path / "samples.npy", batch_size=batch_size)
    assert found.dtype == np.float32 and found.shape == (7, *SHAPE)
    np.testing.assert_array_equal(found, expected.numpy())


def test_objects_have_their_own_noise_from_seed_and_index():
    first = sample_objects(Analytic(), CONFIG, [4, 0, 9], SHAPE, seed=5)
    assert torch.equal(first[1:], sample_objects(Analytic(), CONFIG, [0, 9], SHAPE, seed=5))
    assert len(torch.unique(first.flatten(1), dim=0)) == 3
    assert not torch.equal(first, sample_objects(Analytic(), CONFIG, [4, 0, 9], SHAPE, seed=6))
    seeds = {g.initial_seed() for seed in range(50) for g in object_generators(seed, range(200))}
    assert len(seeds) == 50 * 200


def test_samples_are_the_samplers(tmp_path):
    found = sample_to_disk(Analytic(), CONFIG, 1, SHAPE, 5, tmp_path / "samples.npy")
    (generator,) = object_generators(5, [0])
    noise = torch.randn(SHAPE, generator=generator)[None]
    np.testing.assert_array_equal(found, sample(Analytic(), noise, CONFIG, [generator]).numpy())


@pytest.mark.parametrize("interrupt_at", [1, 7, 8, 17])
def test_interrupted_sampling_continues_to_the_same_samples(tmp_path, interrupt_at):
    path, per_batch = tmp_path / "deep" / "samples.npy", 2 * CONFIG.num_steps - 1
    interrupted = Analytic(interrupt_at)
    with pytest.raises(KeyboardInterrupt):
        sample_to_disk(interrupted, CONFIG, 8, SHAPE, 5, path, batch_size=3)
    assert not path.exists()
    rest = Analytic()
    found = sample_to_disk(rest, CONFIG, 8, SHAPE, 5, path, batch_size=3)
    assert rest.calls == per_batch * (3 - (interrupt_at - 1) // per_batch), "finished batches are not computed again"
    np.testing.assert_array_equal(found, sample_objects(Analytic(), CONFIG, range(8), SHAPE, 5).numpy())
    assert sorted(p.name for p in path.parent.iterdir()) == ["samples.npy", "samples.npy.json"]


def test_finished_samples_are_returned_as_they_are(tmp_path):
    path, again = tmp_path / "samples.npy", Analytic()
    first = sample_to_disk(Analytic(), CONFIG, 3, SHAPE, 5, path)
    np.testing.assert_array_equal(first, sample_to_disk(again, CONFIG, 3, SHAPE, 5, path))
    assert again.calls == 0


def test_lost_array_is_sampled_again(tmp_path):
    path = tmp_path / "samples.npy"
    first = np.array(sample_to_disk(Analytic(), CONFIG, 3, SHAPE, 5, path))
    path.unlink()
    np.testing.assert_array_equal(first, sample_to_disk(Analytic(), CONFIG, 3, SHAPE, 5, path))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(config=SamplerConfig(num_steps=5)), "sampler"),
        (dict(count=9), "count"),
        (dict(shape=(1, 2, 2, 2)), "shape"),
        (dict(seed=6), "seed"),
        (dict(weights="another"), "weights"),
        (dict(context=torch.ones(3, 1, 1)), "context"),
    ],
)
def test_samples_of_other_settings_are_refused_and_left_alone(tmp_path, changes, field):
    path = tmp_path / "samples.npy"
    settings = dict(config=CONFIG, count=3, shape=SHAPE, seed=5, path=path, weights="one")
    before = np.array(sample_to_disk(Analytic(), **settings))
    with pytest.raises(SamplingError, match=rf"samples.npy: holds samples with another {field}; delete"):
        sample_to_disk(Analytic(), **(settings | changes))
    np.testing.assert_array_equal(np.load(path), before)


def test_foreign_file_is_never_overwritten(tmp_path):
    path = tmp_path / "samples.npy"
    np.save(path, np.arange(3))
    with pytest.raises(SamplingError, match="exists without samples.npy.json"):
        sample_to_disk(Analytic(), CONFIG, 3, SHAPE, 5, path)
    assert np.load(path).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="expected a file name that ends in .npy"):
        sample_to_disk(Analytic(), CONFIG, 3, SHAPE, 5, tmp_path / "samples.bin")


def test_each_object_gets_its_own_context(tmp_path):
    context = torch.arange(5.0).view(5, 1, 1).expand(5, 2, 3)
    config = SamplerConfig(num_steps=4, guidance=2.0)
    found = sample_to_disk(Analytic(), config, 5, SHAPE, 5, tmp_path / "a.npy", context=context, batch_size=2)
    for i in range(5):
        alone = sample_objects(Analytic(), config, [i], SHAPE, 5, context[i : i + 1])
        np.testing.assert_allclose(found[i], alone[0].numpy(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="not one row for each of the 5 objects"):
        sample_to_disk(Analytic(), config, 5, SHAPE, 5, tmp_path / "b.npy", context=context[:4])


def test_record_says_what_was_sampled(tmp_path):
    sample_to_disk(Analytic(), CONFIG, 3, SHAPE, 5, tmp_path / "samples.npy", weights="abc")
    record = json.loads((tmp_path / "samples.npy.json").read_text())
    assert record["done"] == 3
    assert record["settings"]["sampler"]["num_steps"] == 4
    assert (record["settings"]["weights"], record["settings"]["seed"]) == ("abc", 5)


def test_inference_copy_is_frozen_lower_in_precision_and_close():
    denoiser = small_denoiser().train()
    before = {name: p.clone() for name, p in denoiser.named_parameters()}
    low = for_inference(denoiser)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert not low.training and not any(p.requires_grad for p in low.parameters())
    assert denoiser.training and all(torch.equal(p, before[name]) for name, p in denoiser.named_parameters())
    config = SamplerConfig(num_steps=6)
    exact = sample_objects(denoiser.eval(), config, range(4), (4, 4, 4, 4), seed=0)
    rounded = sample_objects(low, config, range(4), (4, 4, 4, 4), seed=0)
    assert rounded.dtype == torch.float32
    assert 0 < ((rounded - exact).norm() / exact.norm()).item() < 0.05
    same = sample_objects(for_inference(denoiser, dtype=torch.float32), config, range(4), (4, 4, 4, 4), seed=0)
    torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-4)


def recomputed(function, inputs):
    """A recording for CPUs: a replay computes again from the tensors that were recorded, into the same result."""
    output = function(*inputs)
    return lambda: output.copy_(function(*inputs)), output


@pytest.mark.parametrize("config", [SamplerConfig(num_steps=5), CONFIG])
def test_a_recorded_sampling_is_the_loop_and_is_recorded_once(config):
    denoiser = for_inference(small_denoiser(), dtype=torch.float32)
    recordings = []
    graphed = GraphedDenoiser(denoiser, lambda *a: recordings.append(a) or recomputed(*a))
    for seed, n in ((0, 2), (1, 2), (0, 3)):
        arguments = (config, range(n), (4, 4, 4, 4), seed)
        torch.testing.assert_close(sample_objects(graphed, *arguments), sample_objects(denoiser, *arguments))
    assert len(recordings) == 2  # one for each batch size
    assert graphed.execution == "not compiled, CUDA graph"
    level = torch.tensor([0.5, 2.0])
    x = torch.randn(2, 4, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(graphed(x, level), denoiser(x, level))


def test_a_sampling_that_cannot_be_recorded_runs_as_it_is_and_says_so(tmp_path):
    denoiser = for_inference(small_denoiser(), dtype=torch.float32)
    errors = [RuntimeError("operation not permitted when stream is capturing")]

    def broken(function, inputs):
        raise errors[0]

    graphed = GraphedDenoiser(denoiser, broken)
    with pytest.warns(UserWarning, match="not recorded as a graph .operation not permitted.*; it runs as it is"):
        found = sample_to_disk(graphed, CONFIG, 2, (4, 4, 4, 4), 0, tmp_path / "samples.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sample_objects(graphed, CONFIG, range(2), (4, 4, 4, 4), 0)
    assert torch.equal(torch.from_numpy(found.copy()), again)
    assert torch.equal(again, sample_objects(denoiser, CONFIG, range(2), (4, 4, 4, 4), 0))
    record = json.loads((tmp_path / "samples.npy.json").read_text())
    assert record["execution"] == "not compiled, eager (recording failed: RuntimeError)"

    errors[0] = torch.OutOfMemoryError("no memory")  # smaller batches may fit: that is no matter of recording
    with pytest.raises(torch.OutOfMemoryError):
        sample_objects(GraphedDenoiser(denoiser, broken), CONFIG, range(2), (4, 4, 4, 4), 0)


def test_an_error_after_a_recording_is_raised():
    def recorded_once(function, inputs):
        if len(graphed.recorded):
            raise RuntimeError("an illegal memory access")
        return recomputed(function, inputs)

    graphed = GraphedDenoiser(for_inference(small_denoiser(), dtype=torch.float32), recorded_once)
    sample_objects(graphed, CONFIG, range(2), (4, 4, 4, 4), 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sample_objects(graphed, CONFIG, range(3), (4, 4, 4, 4), 0)
    assert graphed.execution == "not compiled, CUDA graph"


def test_a_device_that_is_not_there_is_named_before_the_network_is_copied(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is 'cuda:1', but this torch finds no CUDA device"):
        for_inference(None, "cuda:1")


def test_what_depends_on_the_level_alone_is_computed_before_the_loop():
    denoiser = for_inference(small_denoiser(), dtype=torch.float32)
    config = SamplerConfig(num_steps=5, s_churn=2.0)
    calls = []
    denoiser.network.embed_noise.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    once = sample_objects(denoiser, config, range(3), (4, 4, 4, 4), 0)
    assert calls == [9]  # 2 N - 1 evaluations
    each = sample_objects(lambda *a: denoiser(*a), config, range(3), (4, 4, 4, 4), 0)
    assert calls == [9] + 9 * [3]
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-4)


class Calls(TorchDispatchMode):
    """Counts the operations that are not views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not function.is_view and function.name() not in ("aten::detach", "aten::promote_types"):
            self.names.append(function.name())
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("churn, each", [(0.0, 3), (2.0, 4)])
def test_a_step_of_the_loop_is_three_operations_beside_the_network(churn, each):
    steps, number = heun_steps(SamplerConfig(num_steps=6, s_churn=churn)), []
    x, noise, estimate = torch.rand(2, *SHAPE), torch.rand(2, *SHAPE), torch.rand(2, *SHAPE)
    with Calls() as calls:
        _heun(lambda *a: number.append(a[1]) or estimate, x, steps, lambda i: noise, None)
    assert number == list(range(11))
    assert len(calls.names) <= 1 + 6 * each  # and memory for the Euler step


def test_operations_of_an_evaluation_are_bounded_and_those_of_the_level_are_out_of_it():
    """As a GPU has them, a kernel or more each. The meta device takes its paths, and computes nothing."""
    denoiser = for_inference(small_denoiser(), dtype=torch.float32).to("meta")
    x = torch.rand(2, 4, 4, 4, 4, device="meta").contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        estimate = denoiser.at_levels([2.0, 0.5, 0.1], x)
        with Calls() as prepared:
            estimate(x, 1, None)
        with Calls() as plain:
            denoiser(x, torch.full((2,), 0.5, device="meta"))
    assert len(prepared.names) <= 210 and len(plain.names) - len(prepared.names) >= 30
    names = ("aten::native_group_norm", "aten::addmm")
    counts = [tuple(calls.names.count(name) for name in names) for calls in (prepared, plain)]
    assert counts == [(25, 4), (25, 16)]  # embedding and ten FiLM vectors are ready


@pytest.mark.parametrize(("steps", "churn"), [(8, 15.0), (9, 4.0), (36, 15.0), (2, 0.0)])
def test_the_second_half_of_a_sampler_has_its_levels_and_its_fresh_noise(steps, churn):
    config = SamplerConfig(num_steps=steps, sigma_min=0.5, s_churn=churn)
    later = from_the_middle(config) if steps > 3 else None
    if later is None:
        with pytest.raises(ConfigError, match="num_steps is 1, expected at least 2"):
            from_the_middle(config)
        return
    torch.testing.assert_close(heun_steps(later), heun_steps(config)[steps // 2 :])


def test_what_sampling_starts_from_is_noised_to_the_highest_level():
    """A denoiser that finds nothing to change leaves start + sigma_max n; one that knows the object finds it."""
    config, shape = SamplerConfig(num_steps=4, sigma_max=3.0), (2, 3, 3, 3)
    start = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    same = sample_objects(lambda x, *_: x, config, [5, 6], shape, 1, start=start)
    noise = sample_objects(lambda x, *_: x, config, [5, 6], shape, 1) / 3
    torch.testing.assert_close(same, start + 3 * noise)
    known = sample_objects(lambda x, *_: start, config, [5, 6], shape, 1, start=start)
    torch.testing.assert_close(known, start)


def test_no_objects_are_no_samples():
    assert sample_objects(small_denoiser(), SamplerConfig(num_steps=3), [], (4, 4, 4, 4), 0).shape == (0, 4, 4, 4, 4)


def test_a_network_that_does_not_compile_runs_as_it_is_and_says_so(monkeypatch, tmp_path):
    def broken(function, **options):
        def fail(*arguments, **named):
            raise RuntimeError("no compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    denoiser = for_inference(small_denoiser(), dtype=torch.float32)
    expected = sample_objects(denoiser, CONFIG, range(2), (4, 4, 4, 4), 0)
    assert compiled(denoiser.network) == "compiled"
    with pytest.warns(UserWarning, match=r"UNet3D is not compiled \(RuntimeError\): no compiler here"):
        file = tmp_path / "samples.npy"
        found = sample_to_disk(denoiser, CONFIG, 2, (4, 4, 4, 4), 0, file)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert how_it_runs(denoiser) == "not compiled (RuntimeError)"
    assert json.loads((tmp_path / "samples.npy.json").read_text())["execution"] == "not compiled (RuntimeError)"


def test_graphs_and_compilation_are_for_cuda():
    for options in (dict(graphs=True), dict(compile=True)):
        with pytest.raises(ConfigError, match="need a CUDA device, got cpu"):
            for_inference(small_denoiser(), "cpu", **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_give_the_eager_samples_and_a_batch_fits():
    denoiser = small_denoiser()
    config = SamplerConfig(num_steps=6)
    eager = for_inference(denoiser, "cuda", torch.float32, graphs=False)
    graphed = for_inference(denoiser, "cuda", torch.float32)
    for n in (2, 5, 2):
        arguments = (config, range(n), (4, 4, 4, 4), 0, None, "cuda")
        torch.testing.assert_close(sample_objects(graphed, *arguments), sample_objects(eager, *arguments))
    assert len(graphed.recorded) == 2
    assert 1 <= largest_batch(eager, (4, 4, 4, 4), None, "cuda") <= 256
