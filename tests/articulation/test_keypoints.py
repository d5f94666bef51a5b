"""Keypoints: soft-argmax against a loop, the U-Net's shapes, and the grid that 3D keypoints start on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vader.articulation.keypoints import CanonicalKeypoints, Hourglass, KeypointPredictor, pixel_centres, soft_argmax
from vader.settings.articulation import ArticulationConfig
from vader.settings.checks import ConfigError

SMALL = ArticulationConfig(keypoints_per_axis=2, predictor_resolution=16, predictor_channels=4, predictor_blocks=2)


def test_soft_argmax_is_the_mean_position_under_the_softmax():
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    points = soft_argmax(maps, 0.7)
    for n in range(2):
        for c in range(3):
            shares = (maps[n, c] / 0.7).exp()
            shares = shares / shares.sum()
            x = sum(shares[i, j] * ((2 * j + 1) / 5 - 1) for i in range(4) for j in range(5))
            y = sum(shares[i, j] * ((2 * i + 1) / 4 - 1) for i in range(4) for j in range(5))
            torch.testing.assert_close(points[n, c], torch.stack([x, y]), atol=1e-6, rtol=1e-5)


def test_soft_argmax_of_a_peak_is_the_centre_of_its_pixel_and_finite_for_large_maps():
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 2, 6] = 1e6
    assert soft_argmax(maps, 0.1)[0, 0].tolist() == pytest.approx([(2 * 6 + 1) / 8 - 1, (2 * 2 + 1) / 8 - 1])
    assert pixel_centres(4).tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_hourglass_of_the_paper_has_the_first_order_motion_models_widths():
    net = Hourglass(3, 32, 1024, 5)
    shapes = [tuple(block[0].weight.shape[:2]) for block in net.down]
    assert shapes == [(64, 3), (128, 64), (256, 128), (512, 256), (1024, 512)]
    shapes = [tuple(block[1].weight.shape[:2]) for block in net.up]
    assert shapes == [(512, 1024), (256, 1024), (128, 512), (64, 256), (32, 128)]
    assert net.out_channels == 35


def test_predictor_reads_images_of_any_size_and_answers_in_their_own_frame():
    torch.manual_seed(0)
    predictor = KeypointPredictor(SMALL, 3).eval()
    for size in (16, 24):
        points = predictor(torch.rand(2, size, size, 3))
        assert points.shape == (2, 3, 8, 2)
        assert (points.abs() < 1).all()


def test_predictor_follows_a_shift_of_the_image_by_its_own_stride():
    """Convolutional up to its borders: a picture 4 pixels, the U-Net's stride, further right moves all peaks so."""
    torch.manual_seed(0)
    settings = dataclasses.replace(SMALL, predictor_resolution=64, temperature=1e-3)
    predictor = KeypointPredictor(settings, 1).eval()
    image = torch.zeros(1, 64, 64, 3)
    image[:, 28:36, 28:36] = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(1))
    near = (predictor(image).abs() < 0.4).all(-1)  # peaks at the square, not at the border
    moved = predictor(image.roll(4, dims=2)) - predictor(image)
    assert near.any()
    torch.testing.assert_close(moved[near], torch.tensor([8 / 64, 0.0]).expand_as(moved[near]), atol=2e-3, rtol=0)


def test_canonical_keypoints_start_on_a_grid_inside_of_what_the_camera_sees():
    settings = ArticulationConfig()
    keypoints = CanonicalKeypoints(settings, 10)
    points = keypoints()
    assert points.shape == (10, 125, 3) and settings.keypoints == 125
    axis = (2 * torch.arange(1, 6) / 6 - 1) / 1.075
    expected = torch.cartesian_prod(axis, axis, axis)
    torch.testing.assert_close(points[7], expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        keypoints.raw.mul_(1e4)
    assert (keypoints().abs() <= 1 / 1.075 + 1e-6).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keypoints_per_axis=1), "keypoints_per_axis is 1, expected at least 2"),
        (dict(predictor_kernel=4), "predictor_kernel is 4, expected an odd number"),
        (dict(predictor_resolution=48), "predictor_resolution 48 cannot be halved 5 times"),
        (dict(near=12.0), "near is 12 and far is 11.5, expected near < far"),
        (dict(temperature=0.0), "temperature is 0, expected a positive number"),
        (dict(pull_weight=-1.0), "pull_weight is -1, expected 0 or more"),
        (dict(ray_stride=0), "ray_stride is 0, expected at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ArticulationConfig(**change)
