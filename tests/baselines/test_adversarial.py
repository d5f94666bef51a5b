"""The losses against slow oracles, the real stream, and a discriminator that tells real from fake."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.tiny import balls, tiny_experiment
from vader.baselines import eg3d, gan, pi_gan
from vader.baselines.adversarial import (
    RealViews,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    resized,
    view_directions,
)
from vader.baselines.pi_gan import PiGANTraining
from vader.commands import main as vader
from vader.commands import train as train_command
from vader.rendering.cameras import sample_orbit
from vader.settings.gans import PI_GAN_PROFILES
from vader.settings.profiles import experiment
from vader.store.runs import Paused


def test_losses_are_the_logistic_ones():
    fake, real = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 3.0])
    softplus = [math.log1p(math.exp(u)) for u in (0.0, 2.0, 1.0, -3.0)]
    assert discriminator_loss(fake, real).item() == pytest.approx(sum(softplus) / 2)
    assert generator_loss(fake).item() == pytest.approx((math.log(2) + math.log1p(math.exp(-2.0))) / 2)


def test_r1_against_finite_differences():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)).double()
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    found = r1_penalty(critic(images)[:, 0], images)
    step, slow = 1e-5, 0.0
    with torch.no_grad():
        for index in range(images.numel()):
            up, down = (images.flatten().clone() for _ in range(2))
            up[index] += step
            down[index] -= step
            difference = (critic(up.view_as(images)) - critic(down.view_as(images))).sum() / (2 * step)
            slow += difference.item() ** 2 / len(images)
    assert found.item() == pytest.approx(slow, rel=1e-6)
    # and its own gradient, which is what trains the discriminator
    weight = critic[0].weight
    [gradient] = torch.autograd.grad(found, weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0, 1, 1] += sign * step
        values.append(r1_penalty(critic(images)[:, 0], images).item())
        with torch.no_grad():
            weight[0, 0, 1, 1] -= sign * step
    assert gradient[0, 0, 1, 1].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_smaller_pictures_of_the_same_view():
    config = tiny_experiment().data
    cameras = sample_orbit(3, config, torch.Generator().manual_seed(0))
    points = torch.rand(5, 3) - 0.5
    half = resized(cameras, 8)
    assert (half.height, half.width) == (8, 8)
    torch.testing.assert_close(half.project(points), cameras.project(points) / 2)
    torch.testing.assert_close(view_directions(cameras) * config.camera_distance, cameras.centres())


def test_real_images_and_poses_are_those_of_training_views():
    config = tiny_experiment()
    data = balls(config)
    views = RealViews(data, torch.device("cpu"))
    known = {s.images[v].numpy().tobytes() for s in data.split("train") for v in range(data.train_views)}
    torch.manual_seed(0)
    images, cameras = views.draw(200)
    levels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    assert {image.numpy().tobytes() for image in levels} <= known
    centres = torch.cat([s.cameras.centres()[: data.train_views] for s in data.split("train")])
    drawn = torch.cat([cameras.centres(), views.draw_cameras(200).centres()])
    assert ((drawn[:, None] - centres).norm(dim=-1).amin(1) < 1e-6).all()
    assert len(drawn.unique(dim=0)) > 0.8 * len(centres)


def test_a_step_updates_each_network_by_its_own_loss():
    config = tiny_experiment()
    settings = dataclasses.replace(
        PI_GAN_PROFILES["smoke"], resolutions=(8, 16), channels=16, num_samples=6, r1_every=1, pose_weight=0.5
    )
    task = PiGANTraining(config, settings, balls(config), torch.device("cpu"))
    torch.manual_seed(3)
    losses = task.step(0)
    assert {"loss", "discriminator", "generator", "r1", "pose"} <= losses.keys()
    found = {name: p.grad.clone() for name, p in task.discriminator.named_parameters() if p.grad is not None}
    own = [p.grad.clone() for p in task.generator.parameters()]
    task.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(3)  # again, each alone
    fake, cameras, _ = task.fake(0)
    real, _ = task.real(0)
    logits, guess = task.judge(fake, cameras, 0)
    pose = settings.pose_weight * (guess - view_directions(cameras)).square().mean()
    wanted = torch.autograd.grad(generator_loss(logits) + pose, list(task.generator.parameters()), retain_graph=True)
    for a, b in zip(own, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    real.requires_grad_()
    on_real, _ = task.judge(real, cameras, 0)
    critic = discriminator_loss(logits, on_real) + settings.r1_weight / 2 * r1_penalty(on_real, real) + pose
    parameters = dict(task.discriminator.named_parameters())
    wanted = torch.autograd.grad(critic, [parameters[name] for name in found])
    for (name, a), b in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, msg=name)


def test_the_discriminator_tells_real_from_fake():
    config = tiny_experiment()
    settings = dataclasses.replace(
        PI_GAN_PROFILES["smoke"], resolutions=(8, 16), channels=16, num_samples=6, discriminator_lr=2e-3, r1_weight=0.0
    )
    task = PiGANTraining(config, settings, balls(config), torch.device("cpu"))
    gaps = []
    for step in range(60):
        torch.manual_seed(step)
        task.optimizer.zero_grad(set_to_none=True)
        losses = task.step(step * settings.batch_size)
        for parameter in task.generator.parameters():
            parameter.grad = None  # the generator stands still
        task.optimizer.step()
        gaps.append((losses["real"] - losses["fake"]).item())
    assert sum(gaps[:5]) / 5 < 0.5 < 2 < sum(gaps[-5:]) / 5


def test_operations_of_a_step_are_counted_and_leave_no_trace():
    config = tiny_experiment()
    settings = dataclasses.replace(PI_GAN_PROFILES["smoke"], resolutions=(8, 16), channels=16, num_samples=6)
    task = PiGANTraining(config, settings, balls(config), torch.device("cpu"))
    points, c = 4 * 8 * 8 * 6, 16
    field = 2 * points * (3 * c + c * c + c * (c + 3) + 4 * c)  # one forward pass, all layers
    assert 3 * field - 2 * points * 3 * c < task.step_flops(4)  # no gradient of the points
    assert 2 * task.step_flops(4) < task.step_flops(settings.images_seen) < 5 * task.step_flops(4)  # 16 x 16 pixels
    assert all(p.grad is None for p in task.generator.parameters())


@pytest.mark.parametrize("paused", [False, True])
def test_the_command_trains_or_says_that_it_paused(monkeypatch, capsys, paused):
    config = tiny_experiment()
    seen = {}

    def run(self, *arguments):
        seen["arguments"] = arguments
        if paused:
            raise Paused("run it again to resume")
        return SimpleNamespace(folder="runs/x", record={"seconds": 3.2, "device": "cpu"})

    monkeypatch.setattr(train_command, "prepare", lambda data: balls(config))
    monkeypatch.setattr(gan.Baseline, "run", run)
    arguments = ["train", "procedural_chairs", "--system", "pi_gan", "--profile", "smoke"]
    arguments += ["--seed", "2", "--device", "cpu"]
    assert vader([*arguments, "--max-seconds", "9"]) == (75 if paused else 0)
    found, data, device, seconds = seen["arguments"]
    assert (found.profile, found.seed, data.name, device, seconds) == ("smoke", 2, "balls", "cpu", 9.0)
    output = capsys.readouterr()
    assert "run it again" in output.err if paused else output.out == "runs/x (3 s on cpu)\n"


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu", "paper"])
def test_every_profile_fits_its_data(profile):
    data = experiment(profile, "photoshape_chairs" if profile == "paper" else "furniture_chairs").data
    ours, theirs = pi_gan.PI_GAN.settings(profile), eg3d.EG3D.settings(profile)
    assert ours.resolutions[-1] == theirs.resolution == data.resolution
    with torch.device("meta"):
        eg3d.TriPlaneGenerator(theirs)
        images = torch.empty(4, 6, data.resolution, data.resolution)
        assert eg3d.DualDiscriminator(theirs)(images, torch.empty(4, eg3d.POSE_DIM)).shape == (4,)
        pi_gan.SirenGenerator(ours)
        discriminator = pi_gan.ProgressiveDiscriminator(ours)
        for r in ours.resolutions:
            assert discriminator(torch.empty(2, 3, r, r), 0.5 if r > ours.resolutions[0] else 1.0)[1].shape == (2, 3)
