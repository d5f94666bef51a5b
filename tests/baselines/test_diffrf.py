"""DiffRF: the rendering loss against finite differences and loops, diffusers' ancestral sampling, runs that resume."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler

from vader.baselines import diffrf as module
from vader.baselines.diffrf import (
    FieldDiffusion,
    FieldUNet,
    depth_to_space,
    diffrf_run,
    diffrf_system,
    estimate_x0,
    load_diffrf,
    noise_schedule,
    sample_fields,
    space_to_depth,
)
from vader.baselines.radiance_fields import TrainingRays, fields_run, load_fields, photometric_loss, to_volume
from vader.commands import main as vader
from vader.commands import train as train_command
from vader.diffusion.edm import standard_normal
from vader.diffusion.sampling import object_generators
from vader.settings.checks import ConfigError
from vader.settings.diffrf import PROFILES, DiffRFConfig, FieldDiffusionConfig, diffrf
from vader.store.files import read_weights, save_weights
from vader.store.runs import Paused, RunError

CPU = torch.device("cpu")


def tiny(**changes) -> DiffRFConfig:
    """The smoke profile, smaller still."""
    parts = dict(
        fields=dict(resolution=8, rays_per_object=320, rays_per_step=64, num_samples=12),
        unet=dict(channels=8, channels_per_head=8, channel_mult=(1, 1), attention_resolutions=(2,)),
        diffusion=dict(fields_seen=32, batch_size=4, guidance_rays=16, guidance_samples=8),
        sampler=dict(num_steps=4),
    )
    for name, values in changes.items():
        parts[name] = {**parts.get(name, {}), **values} if isinstance(values, dict) else values
    return diffrf("smoke").replace(**parts)


def random_fields(config: DiffRFConfig, n: int = 4) -> torch.Tensor:
    return torch.rand(n, *config.fields.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


# ------------------------------------------------------------------------------------------------------- the model


def test_a_cell_holds_the_patch_it_stands_for():
    x = torch.randn(2, 3, 4, 6, 8)
    cells = space_to_depth(x, 2)
    assert cells.shape == (2, 24, 2, 3, 4)
    for d in range(2):
        for h in range(3):
            for w in range(4):
                patch = x[:, :, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
                assert torch.equal(cells[:, :, d, h, w], patch.flatten(1))
    assert torch.equal(depth_to_space(cells, 2), x)
    assert torch.equal(space_to_depth(x, 1), x)


def test_the_estimate_undoes_the_noise():
    schedule = noise_schedule(FieldDiffusionConfig())
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([0.0015, 0.05])
    x0, noise, t = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2), torch.tensor([0, 100, 300])
    abar = schedule.alphas_cumprod[t]
    x = schedule.add_noise(x0, noise, t)
    assert torch.allclose(estimate_x0(noise, x, abar, "epsilon"), x0, atol=1e-4)
    assert torch.equal(estimate_x0(x0, x, abar, "sample"), x0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_gradient_of_the_rendering_loss_against_finite_differences(data, prediction):
    """From the U-Net's output over the estimate of x_0 and the reference renderer to the loss, in float64."""
    config = tiny(
        fields=dict(resolution=5), diffusion=dict(patch_size=1), unet=dict(channel_mult=(1,), attention_resolutions=())
    ).fields
    torch.manual_seed(0)
    rays = TrainingRays(data, CPU).draw(torch.tensor([0, 2]), 12)
    rays = dataclasses.replace(rays, **{f.name: getattr(rays, f.name).double() for f in dataclasses.fields(rays)})
    x, output = torch.rand(2, 2, *config.shape, dtype=torch.float64) * 1.6 - 0.8
    abar = torch.tensor([0.9, 0.4], dtype=torch.float64)

    def loss(output, rays=rays, x=x, abar=abar, backend="reference"):
        volume = to_volume(estimate_x0(output, x, abar, prediction), config)
        return (abar**2 * photometric_loss(volume, rays, 6, 1.0, stratified_seed=4, backend=backend)).sum()

    output.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(output), output)
    largest = gradient.flatten().abs().topk(12).indices.tolist()
    for index in [*largest, *torch.randperm(gradient.numel())[:12].tolist()]:
        step = torch.zeros(gradient.numel(), dtype=torch.float64)
        step[index] = 1e-5
        step = step.view_as(output)
        with torch.no_grad():
            difference = (loss(output + step) - loss(output - step)) / 2e-5
        assert difference.item() == pytest.approx(gradient.flatten()[index].item(), rel=1e-5, abs=1e-10)

    single = dataclasses.replace(rays, **{f.name: getattr(rays, f.name).float() for f in dataclasses.fields(rays)})
    output = output.detach().float().requires_grad_()
    (fused,) = torch.autograd.grad(loss(output, single, x.float(), abar.float(), "auto"), output)
    assert torch.allclose(fused, gradient.float(), atol=1e-4 * gradient.abs().max().item())


def test_a_step_weighs_the_rendering_loss_by_the_squared_signal(data):
    config = tiny(diffusion=dict(guidance_weight=0.3))
    task = FieldDiffusion(config, data, random_fields(config), CPU)
    with torch.no_grad():
        torch.nn.init.normal_(
            task.denoiser.network.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(1)
        )
    torch.manual_seed(7)
    losses = task.step(0)
    torch.manual_seed(7)  # the same draws, in the order that the task makes them
    objects, t = torch.randint(4, (4,)), torch.randint(1000, (4,))
    noise = torch.randn(4, *config.fields.shape)
    abar = torch.cumprod(1 - torch.linspace(0.0015, 0.05, 1000), 0)[t]
    root = abar.view(-1, 1, 1, 1, 1)
    x0 = task.fields[objects]
    estimate = task.denoiser(root.sqrt() * x0 + (1 - root).sqrt() * noise, t)
    rays, seed = task.rays.draw(objects, 16), int(torch.randint(2**31, ()))
    errors = photometric_loss(to_volume(estimate, config.fields), rays, 8, 1.0, seed, "reference")
    expected = sum(0.3 * a.item() ** 2 * e.item() for a, e in zip(abar, errors, strict=True)) / 4
    assert losses["rendering"].item() == pytest.approx(expected, rel=1e-4)
    assert losses["field"].item() == pytest.approx((estimate - x0).square().mean().item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(expected + losses["field"].item(), rel=1e-4)


def test_an_untrained_network_predicts_no_noise_and_scores_1(data):
    config = tiny(diffusion=dict(prediction="epsilon", guidance_weight=0.0, batch_size=16))
    losses = FieldDiffusion(config, data, random_fields(config), CPU).step(0)
    assert losses.keys() == {"loss", "field"}
    assert losses["field"].item() == pytest.approx(1, abs=0.03)


# -------------------------------------------------------------------------------------------------------- sampling


@pytest.fixture
def model():
    torch.manual_seed(2)
    model = FieldUNet(tiny()).eval()
    torch.nn.init.normal_(model.network.conv_out.weight, std=0.2)
    return model


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_all_steps_with_fresh_noise_are_ddpms_ancestral_sampling(model, prediction):
    config = tiny(
        diffusion=dict(timesteps=12, beta_end=0.5, prediction=prediction), sampler=dict(num_steps=12, eta=1.0)
    )
    found = sample_fields(model, config, [3, 8], seed=5)
    schedule = DDPMScheduler(12, beta_start=0.0015, beta_end=0.5, prediction_type=prediction, clip_sample=True)
    generators = object_generators(5, [3, 8])
    x = standard_normal((2, *config.fields.shape), generators, CPU)
    with torch.no_grad():
        for t in range(11, -1, -1):
            x = schedule.step(model(x, torch.full((2,), t)), t, x, generator=generators).prev_sample
    assert torch.allclose(found, x, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_depends_on_its_number_and_seed_alone(model, eta):
    config = tiny(sampler=dict(eta=eta))
    together = sample_fields(model, config, range(4), seed=1)
    assert together.abs().max() <= 1 and not torch.allclose(together[0], together[1], atol=1e-2)
    assert torch.allclose(sample_fields(model, config, [2], seed=1)[0], together[2], atol=1e-5)
    assert not torch.allclose(sample_fields(model, config, [2], seed=2)[0], together[2], atol=1e-2)


def test_a_network_that_returns_nan_gives_volumes_that_say_so(model):
    torch.nn.init.constant_(model.network.conv_out.bias, float("nan"))
    assert to_volume(sample_fields(model, tiny(), [0], seed=0), tiny().fields).isnan().all()


# ------------------------------------------------------------------------------------------------------------ runs


def test_it_learns_and_samples_what_it_saw(data):
    """Of one ball, every sample is that ball."""
    one = dataclasses.replace(data, sequences=data.sequences[3:4])
    config = tiny(
        fields=dict(rays_per_object=40 * 128, rays_per_step=128),
        unet=dict(channels=16, channels_per_head=16),
        diffusion=dict(fields_seen=480, batch_size=6, warmup_fields=60, learning_rate=5e-3, ema_half_life=30),
    )
    run = diffrf_run(config, one, "cpu")
    losses = [point["loss"] for point in run.record["curves"]["diffrf"]]
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    fields = load_fields(fields_run(config.fields, one, 0, "cpu"), config.fields, one)
    wanted = to_volume(fields, config.fields)[0]
    volumes = diffrf_system(run, config, one, "cpu")([0, 1], 0)
    assert volumes.shape == (2, *config.fields.shape) and volumes[:, 0].min() >= 0
    solid, empty = wanted[0] > 5, wanted[0] < 0.1
    assert solid.sum() > 4 and volumes[:, 0, solid].mean() > 20 * volumes[:, 0, empty].mean()
    assert diffrf_run(config, one, "cpu").folder == run.folder


def test_the_fields_are_not_needed_once_the_run_is_there(data, tmp_path, monkeypatch):
    config = tiny()
    run = diffrf_run(config, data, "cpu")

    def refuse(*_):
        raise AssertionError("fields are asked for")

    monkeypatch.setattr(module, "fields_run", refuse)
    assert diffrf_run(config.replace(sampler=dict(num_steps=2)), data, "cpu").digest == run.digest
    with pytest.raises(AssertionError, match="asked for"):
        diffrf_run(config.replace(fields=dict(sparsity=0.0)), data, "cpu")


def test_a_paused_and_resumed_run_equals_an_uninterrupted_one(data, tmp_path, monkeypatch):
    whole = diffrf_run(tiny(), data, "cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "pieces"))
    pauses = 0
    for _ in range(100):
        try:
            pieces = diffrf_run(tiny(), data, "cpu", max_seconds=0.0)
            break
        except Paused:
            pauses += 1
    assert pauses >= 6, "both stages pause"
    a, b = (read_weights(run.weights("denoiser"))[0] for run in (whole, pieces))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert pieces.record["objects"] == [s.key for s in data.split("train")]


def test_the_run_of_another_data_set_or_setting_is_refused(data):
    run = diffrf_run(tiny(), data, "cpu")
    other = dataclasses.replace(data, digest="f" * 64)
    with pytest.raises(RunError, match="fields is .*0000.*, expected .*ffff"):
        load_diffrf(run, tiny(), other)
    with pytest.raises(RunError, match="diffusion is .*, expected .*'fields_seen': 64"):
        diffrf_system(run, tiny(diffusion=dict(fields_seen=64)), data, "cpu")


def test_fields_with_nan_are_refused_before_training(data):
    config = tiny()
    run = fields_run(config.fields, data, 0, "cpu")
    tensors, metadata = read_weights(run.weights("fields"))
    tensors["fields"][1] = float("nan")
    save_weights(run.weights("fields"), tensors, metadata)
    with pytest.raises(RunError, match="SHA-256"):  # the store sees that the file was changed
        diffrf_run(config, data, "cpu")
    with pytest.raises(ConfigError, match=r"fields are \(3, 4, 8, 8, 8\), expected \(4, 4, 8, 8, 8\)"):
        FieldDiffusion(config, data, random_fields(config, 3), CPU)


# ------------------------------------------------------------------------------------------ settings and commands


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(diffusion=dict(prediction="sampel")), r"did you mean 'sample'\?"),
        (dict(diffusion=dict(beta_end=1.5)), "expected 0 < beta_start <= beta_end < 1"),
        (dict(diffusion=dict(patch_size=3)), "resolution 8 does not divide into patches of patch_size 3"),
        (dict(fields=dict(resolution=10)), "resolution 5 cannot be halved 1 times"),
        (dict(sampler=dict(num_steps=2000)), "num_steps is 2000, expected at most the 1000 timesteps"),
        (dict(sampler=dict(eta=2.0)), "eta is 2, expected 0 to 1"),
        (dict(unet=dict(context_dim=8, cross_attention_resolutions=(2,))), "no captions here"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**change)


def test_profiles():
    assert all(isinstance(diffrf(name), DiffRFConfig) for name in PROFILES)
    paper = diffrf("paper")
    assert paper == DiffRFConfig() and paper.diffusion.timesteps == paper.sampler.num_steps == 1000
    assert paper.diffusion.prediction == "epsilon" and paper.fields.resolution == 32
    with pytest.raises(ConfigError, match=r"'labtop' is unknown \(did you mean 'laptop'\?\)"):
        diffrf("labtop")


def test_the_plan_counts_steps_and_operations(capsys):
    assert vader(["train", "furniture_chairs", "--system", "diffrf", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "fields: 64 of 32³" in plan and "2,420,608 parameters" in plan and "83.3 GFLOP a step, 6,000 steps" in plan


def test_the_command_pauses_with_status_75_and_resumes(data, monkeypatch, capsys):
    monkeypatch.setattr(train_command, "prepare", lambda config: data)
    monkeypatch.setattr(train_command, "diffrf", lambda profile, seed: tiny())
    arguments = ["train", "procedural_chairs", "--system", "diffrf", "--profile", "smoke", "--device", "cpu"]
    assert vader([*arguments, "--max-seconds", "0"]) == 75
    assert "fields paused at" in capsys.readouterr().err
    fields_run(tiny().fields, data, tiny().seed, "cpu")
    assert vader([*arguments, "--max-seconds", "0"]) == 75
    assert "diffrf paused at" in capsys.readouterr().err
    assert vader(arguments) == 0
    assert "balls-diffrf-" in capsys.readouterr().out


def test_without_diffusers_an_error_says_what_to_install(data, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'vader\[baselines\]'"):
        diffrf_run(tiny(), data, "cpu")
