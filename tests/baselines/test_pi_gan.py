"""pi-GAN: its networks at initialisation, how its stages follow each other, and runs that resume and refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.tiny import balls
from vader.baselines import pi_gan
from vader.baselines.adversarial import RealViews
from vader.baselines.gan import GANSystem
from vader.baselines.pi_gan import PiGANTraining, ProgressiveDiscriminator, SirenGenerator
from vader.rendering.cameras import sample_orbit
from vader.settings.checks import ConfigError
from vader.settings.gans import PI_GAN_PROFILES, PiGANConfig
from vader.store.files import read_weights
from vader.store.runs import Paused, Record, RunError
from vader.training import fit


def tiny(**changes) -> PiGANConfig:
    sizes = dict(images_seen=48, resolutions=(8, 16), fade_images=8, channels=16, num_samples=6)
    return dataclasses.replace(PI_GAN_PROFILES["smoke"], **(sizes | changes))


def test_siren_activations_keep_their_statistics_through_the_layers():
    # sin has second moment 1/2 of a wide input; W ~ U(+-sqrt(6/n)/25) makes W x of variance 1/25^2, which the
    # frequencies (30 +- 15 s) raise to (30/25)^2 and more. Without that scale it would be 625 times as large.
    torch.manual_seed(0)
    settings = tiny(channels=192, layers=5, latent_dim=64, mapping_dim=64)
    generator = SirenGenerator(settings)
    with torch.no_grad():
        scene = generator.scene(torch.randn(4, 64))
        frequencies, phases = scene
        scale = (frequencies - 30) / 15
        assert abs(scale.mean()) < 0.05 and abs(phases.mean()) < 0.05
        assert scale.std().item() == pytest.approx(0.25 * math.sqrt(2 / 1.04), rel=0.1)  # Kaiming's gain, a quarter
        assert phases.std().item() == pytest.approx(0.25 * math.sqrt(2 / 1.04), rel=0.1)
        x = torch.rand(4, 1500, 3) * 2 - 1
        for i, layer in enumerate(generator.layers):
            if i > 0:
                linear = frequencies[:, i, None] * (x @ layer.linear.weight.T)
                gain = (30**2 + (15 * scale.std().item()) ** 2) / 25**2
                assert linear.square().mean().item() == pytest.approx(gain, rel=0.12), f"layer {i}"
            x = layer(x, frequencies[:, i], phases[:, i])
            assert x.square().mean().item() == pytest.approx(0.5, abs=0.03), f"layer {i}"


def test_film_folded_into_the_weights_is_film():
    torch.manual_seed(0)
    layer = pi_gan.FiLMLayer(5, 7)
    x, frequencies, phases = torch.randn(2, 9, 5), 30 + torch.randn(2, 7), torch.randn(2, 7)
    slow = torch.stack([torch.sin(frequencies[i] * layer.linear(x[i]) + phases[i]) for i in range(2)])
    torch.testing.assert_close(layer(x, frequencies, phases), slow, rtol=1e-4, atol=1e-5)


def test_the_colour_alone_depends_on_the_view_direction():
    torch.manual_seed(0)
    generator = SirenGenerator(tiny())
    scene = generator.scene(torch.randn(1, 16))
    points = torch.rand(1, 3, 4, 3) * 2 - 1
    one, other = (torch.nn.functional.normalize(torch.randn(1, 3, 3), dim=-1) for _ in range(2))
    (density, colour), (same, changed) = (generator.radiance(scene, points, d) for d in (one, other))
    assert torch.equal(density, same) and not torch.allclose(colour, changed, atol=1e-3)
    torch.testing.assert_close(density.flatten(1), generator.density(scene, points.flatten(1, 2)))


def test_an_untrained_scene_is_thin_fog():
    torch.manual_seed(0)
    sigma = SirenGenerator(tiny(channels=64)).density(
        (torch.full((1, 3, 64), 30.0), torch.zeros(1, 3, 64)), torch.rand(1, 500, 3)
    )
    assert 0.1 < sigma.mean() < 2  # some light passes two units of it, and some does not


def test_stages_follow_the_images_seen():
    settings = tiny(images_seen=1000, batch_size=10, resolutions=(8, 16, 32), shares=(0.5, 0.3, 0.2), fade_images=100)
    assert settings.stage(0) == (8, 1.0) and settings.stage(499) == (8, 1.0)
    assert settings.stage(500) == (16, pytest.approx(0.1))
    assert settings.stage(550) == (16, pytest.approx(0.6))
    assert settings.stage(600) == (16, 1.0)
    assert settings.stage(800) == (32, pytest.approx(0.1)) and settings.stage(2000) == (32, 1.0)


def test_a_stage_fades_in_from_what_the_coarser_layers_said():
    torch.manual_seed(0)
    discriminator = ProgressiveDiscriminator(tiny())
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    coarse = discriminator(torch.nn.functional.avg_pool2d(images, 2))[0]
    assert torch.allclose(discriminator(images, alpha=1e-6)[0], coarse, atol=1e-4)
    assert not torch.allclose(discriminator(images, alpha=1.0)[0], coarse, atol=1e-3)


def test_the_real_images_come_at_the_stage_s_resolution(config, data):
    task = PiGANTraining(config, tiny(), data, torch.device("cpu"))
    for clock, resolution in ((0, 8), (47, 16)):
        torch.manual_seed(1)
        images, cameras = task.real(clock)
        fake, fake_cameras, _ = task.fake(clock)
        assert images.shape == fake.shape == (4, 3, resolution, resolution)
        assert (fake_cameras.width, len(cameras)) == (resolution, 4)
        assert images.min() >= -1 and images.max() > 0


@pytest.mark.parametrize("changes", [{}, {"r1_every": 2, "shares": (0.4, 0.6)}])
def test_a_paused_and_resumed_run_equals_an_uninterrupted_one(config, data, tmp_path, monkeypatch, changes):
    settings = tiny(**changes)
    whole = pi_gan.PI_GAN.run(config, data, "cpu", settings=settings)
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "pieces"))
    pauses = 0
    while True:
        try:
            pieces = pi_gan.PI_GAN.run(config, data, "cpu", 0.0, settings)
            break
        except Paused:
            pauses += 1
    assert pauses >= 3
    ours, theirs = (read_weights(r.weights("generator"))[0] for r in (whole, pieces))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [r.record["curves"]["pi_gan"] for r in (whole, pieces)]
    assert curves[0] == curves[1] and len(curves[0]) == 12


def test_the_generator_learns_the_size_of_a_ball(config, tmp_path):
    # One ball, black all around: pictures start as fog, and a discriminator that works pushes them towards it.
    data = balls(config, objects=1)
    settings = tiny(
        images_seen=480, channels=24, num_samples=8, resolutions=(16,), shares=(1.0,), generator_lr=2e-3,
        mapping_lr=2e-4, discriminator_lr=2e-3, ema_half_life=8, pose_weight=0.0,
    )  # fmt: skip
    task = PiGANTraining(config, settings, data, torch.device("cpu"))
    [ball] = data.split("train")
    cameras = ball.cameras[:4]

    def error(generator) -> float:
        system = GANSystem("pi_gan", generator, task.views.cameras, 16)
        return (system.pictures([0], [cameras], 0)[0] - ball.colours(slice(0, 4))).square().mean().item()

    before = error(task.ema.module)
    fit(task, tmp_path, Record(tmp_path, 0))
    after = error(task.ema.module)
    assert after < 0.4 * before, (before, after)


def test_a_sample_depends_on_its_number_and_seed_alone(config, data):
    torch.manual_seed(0)
    generator = SirenGenerator(tiny()).eval()
    system = GANSystem("pi_gan", generator, RealViews(data, torch.device("cpu")).cameras, 8)
    cameras = [sample_orbit(2, config.data, torch.Generator().manual_seed(i)) for i in range(3)]
    pictures = system.pictures([4, 5, 6], cameras, seed=1)
    assert pictures.shape == (3, 2, 16, 16, 3) and 0 <= pictures.min() and pictures.max() <= 1
    assert torch.equal(system.pictures([5], cameras[1:2], seed=1)[0], pictures[1])
    assert not torch.equal(system.pictures([5], cameras[1:2], seed=2)[0], pictures[1])
    grid = system.density([5], seed=1, resolution=5)
    assert grid.shape == (1, 5, 5, 5)
    corner = generator.density(system.scene(5, 1), torch.tensor([[[0.5, -1.0, 1.0]]])).item()
    assert grid[0, 4, 0, 3].item() == pytest.approx(corner, rel=1e-5)  # (z, y, x)
    with pytest.raises(ConfigError, match="2 sets of cameras, expected one for each of 3"):
        system.pictures([4, 5, 6], cameras[:2], seed=1)


def test_a_run_of_another_data_set_or_size_is_refused(config, data):
    run = pi_gan.PI_GAN.run(config, data, "cpu", settings=tiny(images_seen=4))
    other = dataclasses.replace(data, name="cubes", digest="2" * 64)
    with pytest.raises(RunError, match=r"data is '0000.* expected '2222.*\(cubes\)"):
        pi_gan.PI_GAN.load(run, config, other, settings=tiny(images_seen=4))
    with pytest.raises(RunError, match="pi_gan is .* expected"):
        pi_gan.PI_GAN.load(run, config, data, settings=tiny(images_seen=8))
    system = pi_gan.PI_GAN.load(run, config, data, settings=tiny(images_seen=4))
    assert system.name == "pi_gan" and not any(p.requires_grad for p in system.generator.parameters())
    assert pi_gan.PI_GAN.run(config, other, "cpu", settings=tiny(images_seen=4)).folder != run.folder


def test_nan_stops_the_training_and_is_passed_on_by_generation(config, data, tmp_path):
    task = PiGANTraining(config, tiny(), data, torch.device("cpu"))
    with torch.no_grad():
        task.generator.to_density.bias.fill_(float("nan"))
    with pytest.raises(RunError, match="pi_gan loss .* expected finite"):
        fit(task, tmp_path, Record(tmp_path, 0))
    system = GANSystem("pi_gan", task.generator, task.views.cameras, 4)
    assert system.density([0], 0, 4).isnan().all()
    cameras = sample_orbit(1, config.data, torch.Generator().manual_seed(0))
    assert system.pictures([0], [cameras], 0).isnan().all()


def test_one_value_that_is_not_finite_makes_a_sample_nan(config, data, monkeypatch):
    torch.manual_seed(0)
    generator = SirenGenerator(tiny()).eval()
    system = GANSystem("pi_gan", generator, RealViews(data, torch.device("cpu")).cameras, 4)
    density, radiance = generator.density, generator.radiance

    def broken(scene, points):  # at one corner of the cube, of some samples
        sigma = density(scene, points)
        return torch.where((points == 1).all(-1) & (scene[1][0, 0, 0] > 0), torch.inf, sigma)

    monkeypatch.setattr(generator, "density", broken)
    monkeypatch.setattr(generator, "radiance", lambda s, p, d: (radiance(s, p, d)[0], radiance(s, p, d)[1] * torch.inf))
    sick = {i: bool(system.scene(i, 0)[1][0, 0, 0] > 0) for i in range(6)}
    assert set(sick.values()) == {True, False}
    grids = system.density(range(6), 0, 3)
    assert [bool(grid.isnan().all()) for grid in grids] == list(sick.values())
    assert [bool(grid.isfinite().all()) for grid in grids] == [not value for value in sick.values()]
    cameras = sample_orbit(1, config.data, torch.Generator().manual_seed(0))
    assert system.pictures([0], [cameras], 0).isnan().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(resolutions=(8, 24)), "expected each twice the one before"),
        (dict(shares=(0.5, 0.6)), "adding up to 1"),
        (dict(r1_every=0), "r1_every is 0"),
        (dict(generator_lr=0.0), "generator_lr is 0"),
        (dict(layers=0), "layers is 0"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_data_of_another_resolution_and_an_unknown_profile(config, data):
    with pytest.raises(ConfigError, match="balls has 16x16 pixels, expected 32x32"):
        PiGANTraining(config, tiny(resolutions=(16, 32)), data, torch.device("cpu"))
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        pi_gan.PI_GAN.settings("labtop")
