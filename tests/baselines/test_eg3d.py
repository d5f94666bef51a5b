"""EG3D: its layers against slow loops, what its networks are told, and runs that resume and refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import balls
from vader.baselines import eg3d
from vader.baselines.adversarial import RealViews, resized
from vader.baselines.eg3d import DualDiscriminator, EG3DTraining, TriPlaneGenerator, sample_planes
from vader.baselines.gan import GANSystem
from vader.baselines.stylegan2 import Linear, ModulatedConv, activate, enlarge, minibatch_deviation
from vader.rendering.cameras import sample_orbit
from vader.rendering.render import render_views
from vader.settings.checks import ConfigError
from vader.settings.gans import EG3D_PROFILES, EG3DConfig
from vader.store.files import read_weights
from vader.store.runs import Paused, Record, RunError
from vader.training import fit


def tiny(**changes) -> EG3DConfig:
    sizes = dict(images_seen=48, resolution=16, rendering_resolution=8, num_samples=6, plane_resolution=8)
    return dataclasses.replace(EG3D_PROFILES["smoke"], **(sizes | changes))


def orbit(config, n: int, seed: int = 0):
    return sample_orbit(n, config.data, torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------ layers


def test_tri_plane_lookup_against_a_slow_loop():
    torch.manual_seed(0)
    planes = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    points = torch.rand(2, 9, 3, dtype=torch.float64) * 2 - 1
    points[0, 0] = torch.tensor([-1.0, 1.0, 1.0])  # a corner
    found = sample_planes(planes, points)
    for b in range(2):
        for p in range(9):
            x, y, z = ((points[b, p] + 1) / 2 * 5).tolist()  # corners of the planes are those of the cube
            wanted = torch.zeros(4, dtype=torch.float64)
            for plane, (row, column) in zip(planes[b], ((y, x), (z, y), (x, z)), strict=True):
                i, j = min(int(row), 4), min(int(column), 4)
                u, v = row - i, column - j
                wanted += (1 - u) * ((1 - v) * plane[:, i, j] + v * plane[:, i, j + 1])
                wanted += u * ((1 - v) * plane[:, i + 1, j] + v * plane[:, i + 1, j + 1])
            torch.testing.assert_close(found[b, :, p], wanted)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_against_a_loop_over_samples(demodulate):
    torch.manual_seed(0)
    layer = ModulatedConv(3, 5, style_dim=4, demodulate=demodulate).double()
    layer.bias.data.normal_()
    x, w = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 4).double()
    slow = []
    for image, style in zip(x, layer.style(w), strict=True):
        weight = layer.weight / math.sqrt(27) * style[None, :, None, None]
        if demodulate:
            for o in range(5):
                weight = torch.cat([weight[:o], weight[o : o + 1] / weight[o].norm(), weight[o + 1 :]])
        slow.append(F.conv2d(image[None], weight, layer.bias, padding=1)[0])
    torch.testing.assert_close(layer(x, w), torch.stack(slow), rtol=1e-6, atol=1e-6)


def test_demodulation_keeps_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    layer = ModulatedConv(32, 48, style_dim=4)
    for factor in (0.1, 10.0):
        y = layer(torch.randn(4, 32, 20, 20), factor * torch.randn(4, 4))
        assert y[:, :, 1:-1, 1:-1].var().item() == pytest.approx(1, rel=0.1)


def test_equalised_layers_start_at_unit_variance_and_learn_at_their_rate():
    torch.manual_seed(0)
    for rate in (1.0, 0.01):
        layer = Linear(256, 200, bias=1.0, rate=rate)
        y = layer(torch.randn(50, 256))
        assert y.mean().item() == pytest.approx(1, abs=0.05) and y.var().item() == pytest.approx(1, rel=0.1)
        before = layer(torch.zeros(1, 256))
        layer.bias.data += 1  # an optimiser moves every number by the same
        assert (layer(torch.zeros(1, 256)) - before).mean().item() == pytest.approx(rate, rel=1e-4)
    x = torch.randn(100_000)
    assert activate(x).square().mean().item() == pytest.approx(1.04, rel=0.02)


def test_enlarging_is_stylegan2_s_filter():
    row = torch.zeros(1, 1, 1, 7)
    row[..., 3] = 1.0
    wide = enlarge(row)[0, 0, 0]
    assert wide.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.75, 0.75, 0.25, 0, 0, 0, 0, 0])


def test_minibatch_deviation_against_a_loop():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 2, 2)
    found = minibatch_deviation(x)
    assert torch.equal(found[:, :3], x)
    for i in range(8):  # groups of four: every second picture
        group = x[i % 2 :: 2]
        wanted = (group.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[i, 3], wanted.expand(2, 2))
    assert minibatch_deviation(x[:1].expand(4, -1, -1, -1))[:, 3].max() < 1e-3


# ---------------------------------------------------------------------------------------------------- networks


def test_raw_and_final_picture_agree_on_an_untouched_super_resolution(config):
    torch.manual_seed(0)
    generator = TriPlaneGenerator(tiny())
    cameras = orbit(config, 2)
    scene = generator.scene(torch.randn(2, 16), cameras)
    with torch.no_grad():
        for block in generator.superresolution:
            block.to_image.weight.zero_()
    pictures = generator.render(scene, cameras, 6, None)
    assert pictures["raw"].shape == (2, 3, 8, 8) and pictures["image"].shape == (2, 3, 16, 16)
    torch.testing.assert_close(pictures["image"], enlarge(pictures["raw"]))
    assert pictures["raw"].min() >= -1 and pictures["raw"].max() <= 1


def test_raw_pictures_are_the_volume_s_own_rendering(config):
    # the same field, laid out on a fine grid, through the renderer of volumes
    torch.manual_seed(1)
    generator = TriPlaneGenerator(tiny(density_bias=0.0)).eval()
    camera = orbit(config, 1)
    with torch.no_grad():
        scene = generator.scene(torch.randn(1, 16), camera)
        axis = torch.linspace(-1, 1, 57)  # 7 cells of 8 pieces: bilinear planes are met at their knots
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        sigma, features = generator.decode(scene, torch.stack([x, y, z], -1).reshape(1, -1, 3))
        volume = torch.cat([sigma[:, None], features[:, :3]], dim=1).view(1, 4, 57, 57, 57)
        wanted = render_views(volume, resized(camera, 8), 200, normals=False)["colour"][0, 0]
        raw = generator.render(scene, camera, 200, None)["raw"][0]
    assert (((raw + 1) / 2).permute(1, 2, 0) - wanted).abs().max() < 0.01


def test_a_pose_label_maps_the_camera_s_points_into_the_world(config):
    cameras = orbit(config, 4)
    labels = eg3d.pose_label(cameras)
    assert labels.shape == (4, 16) and torch.allclose(labels[:, 14:], torch.tensor(0.5))
    points = torch.randn(4, 3)
    to_world = labels[:, :12].view(4, 3, 4)
    world = (to_world[:, :, :3] @ points[..., None])[..., 0] + to_world[:, :, 3]
    back = (cameras.world_to_camera[:, :, :3] @ world[..., None])[..., 0] + cameras.world_to_camera[:, :, 3]
    torch.testing.assert_close(back, points, rtol=1e-4, atol=1e-5)
    half_angle = math.degrees(math.atan(0.5 / labels[0, 12].item()))
    assert half_angle == pytest.approx(config.data.field_of_view / 2, rel=1e-4)


def test_the_discriminator_sees_both_pictures_and_the_camera(config):
    torch.manual_seed(0)
    discriminator = DualDiscriminator(tiny())
    images, labels = torch.randn(4, 6, 16, 16), eg3d.pose_label(orbit(config, 4))
    logits = discriminator(images, labels)
    for channels in (slice(0, 3), slice(3, 6)):
        changed = images.clone()
        changed[:, channels] = 0
        assert not torch.allclose(discriminator(changed, labels), logits, atol=1e-3)
    assert not torch.allclose(discriminator(images, labels.flip(0)), logits, atol=1e-3)


@pytest.mark.parametrize("swap", [0.0, 0.5, 1.0])
def test_swapping_tells_the_generator_another_camera(config, data, swap, monkeypatch):
    task = EG3DTraining(config, tiny(swap=swap, batch_size=40), data, torch.device("cpu"))
    told = {}
    scene = task.generator.scene
    monkeypatch.setattr(task.generator, "scene", lambda z, cameras: told.update(cameras=cameras) or scene(z, cameras))
    torch.manual_seed(0)
    _, cameras, _ = task.fake(0)
    kept = (told["cameras"].world_to_camera == cameras.world_to_camera).all(2).all(1).float().mean().item()
    assert kept == pytest.approx(1 - swap, abs=0.2)  # 24 views: one in 24 is swapped for itself


def test_density_regularisation_is_the_variation_of_a_known_field():
    class Ramp:
        config = tiny()

        def density(self, scene, points):
            return 3.0 * points[..., 0]

    torch.manual_seed(0)
    planes = torch.zeros(50, 1)
    found = eg3d.density_variation(Ramp(), (planes,), 2000, 0.01)
    wanted = 3.0 * 0.01 * math.sqrt(2 / math.pi) / tiny().density_scale  # E|d| of a normal; the clamp takes a little
    assert found.item() == pytest.approx(wanted, rel=0.02)


# ---------------------------------------------------------------------------------------------------- training


def test_real_images_are_shown_as_generated_ones_are(config, data):
    task = EG3DTraining(config, tiny(), data, torch.device("cpu"))
    torch.manual_seed(0)
    real, _ = task.real(0)
    fake, _, penalties = task.fake(0)
    assert real.shape == fake.shape == (4, 6, 16, 16) and penalties["density"] > 0
    torch.testing.assert_close(real[:, 3:], enlarge(F.avg_pool2d(real[:, :3], 2)))


def test_a_paused_and_resumed_run_equals_an_uninterrupted_one(config, data, tmp_path, monkeypatch):
    settings = tiny(images_seen=24, r1_every=2)
    whole = eg3d.EG3D.run(config, data, "cpu", settings=settings)
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "pieces"))
    pauses = 0
    while True:
        try:
            pieces = eg3d.EG3D.run(config, data, "cpu", 0.0, settings)
            break
        except Paused:
            pauses += 1
    assert pauses >= 3
    ours, theirs = (read_weights(r.weights("generator"))[0] for r in (whole, pieces))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    curves = [r.record["curves"]["eg3d"] for r in (whole, pieces)]
    assert curves[0] == curves[1] and len(curves[0]) == 6 and "r1" in curves[0][0] and "r1" not in curves[0][1]


def test_the_generator_learns_a_ball(config, tmp_path):
    data = balls(config, objects=1)
    settings = tiny(images_seen=480, ema_half_life=8, generator_lr=5e-3, discriminator_lr=4e-3)
    task = EG3DTraining(config, settings, data, torch.device("cpu"))
    [ball] = data.split("train")
    cameras = ball.cameras[:4]

    def error() -> float:
        system = GANSystem("eg3d", task.ema.module, task.views.cameras, 12)
        return (system.pictures([0], [cameras], 0)[0] - ball.colours(slice(0, 4))).square().mean().item()

    before = error()
    fit(task, tmp_path, Record(tmp_path, 0))
    after = error()
    assert after < 0.4 * before, (before, after)


def test_a_sample_depends_on_its_number_and_seed_alone(config, data):
    torch.manual_seed(0)
    generator = TriPlaneGenerator(tiny()).eval()
    system = GANSystem("eg3d", generator, RealViews(data, torch.device("cpu")).cameras, 8)
    cameras = [orbit(config, 2, seed) for seed in range(3)]
    pictures = system.pictures([4, 5, 6], cameras, seed=1)
    assert pictures.shape == (3, 2, 16, 16, 3) and 0 <= pictures.min() and pictures.max() <= 1
    assert torch.equal(system.pictures([5], cameras[1:2], seed=1)[0], pictures[1])
    assert not torch.equal(system.pictures([5], cameras[1:2], seed=2)[0], pictures[1])
    grid = system.density([5], seed=1, resolution=5)
    corner = generator.density(system.scene(5, 1), torch.tensor([[[0.5, -1.0, 1.0]]])).item()
    assert grid.shape == (1, 5, 5, 5) and grid[0, 4, 0, 3].item() == pytest.approx(corner, rel=1e-5)  # (z, y, x)
    one, both = (generator.style(torch.ones(1, 16), c) for c in (system.poses[0], system.poses[1]))
    assert not torch.allclose(one, both)  # the pose that an object is given matters, so it has to be one


def test_a_run_of_another_data_set_is_refused(config, data):
    settings = tiny(images_seen=4)
    run = eg3d.EG3D.run(config, data, "cpu", settings=settings)
    other = dataclasses.replace(data, name="cubes", digest="2" * 64)
    with pytest.raises(RunError, match=r"data is '0000.* expected '2222.*\(cubes\)"):
        eg3d.EG3D.load(run, config, other, settings=settings)
    assert eg3d.EG3D.load(run, config, data, settings=settings).name == "eg3d"


def test_nan_stops_the_training_and_is_passed_on_by_generation(config, data, tmp_path):
    task = EG3DTraining(config, tiny(), data, torch.device("cpu"))
    with torch.no_grad():
        task.generator.start.fill_(float("nan"))
    with pytest.raises(RunError, match="eg3d loss .* expected finite"):
        fit(task, tmp_path, Record(tmp_path, 0))
    system = GANSystem("eg3d", task.generator, task.views.cameras, 4)
    assert system.density([0], 0, 4).isnan().all()
    assert system.pictures([0], [orbit(config, 1)], 0).isnan().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(plane_resolution=24), "plane_resolution is 24"),
        (dict(plane_channels=2), "plane_channels is 2"),
        (dict(rendering_resolution=5), "expected two or four times"),
        (dict(swap=1.5), "swap is 1.5"),
        (dict(r1_weight=-1.0), "r1_weight is -1"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_pictures_of_another_resolution(config, data):
    with pytest.raises(ConfigError, match="balls has 16x16 pixels, expected 32x32"):
        EG3DTraining(config, tiny(resolution=32), data, torch.device("cpu"))
    generator = TriPlaneGenerator(tiny(resolution=32))
    with pytest.raises(ConfigError, match="cameras have 16x16 pixels, but this EG3D makes 32x32"):
        GANSystem("eg3d", generator, orbit(config, 3), 4).pictures([0], [orbit(config, 1)], 0)
