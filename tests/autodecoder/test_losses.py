"""Eq. 1 and 2 against slow and independent computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from vader.autodecoder.losses import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PyramidalPerceptualLoss,
    downsample,
    foreground_loss,
    image_losses,
    pyramid_l1,
)
from vader.settings.autodecoder import ReconstructionConfig


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny_network() -> nn.Sequential:
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU())


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_downsampling_is_a_gaussian_blur_then_a_stride(scale):
    stride, sigma = round(1 / scale), (1 / scale - 1) / 2
    images = torch.rand(2, 3, 24, 24)
    blurred = gaussian_blur(images, 2 * round(4 * sigma) + 1, sigma)[:, :, ::stride, ::stride]
    ours = downsample(images, scale)
    assert ours.shape == blurred.shape
    margin = math.ceil(4 * sigma / stride)
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    assert torch.allclose(ours[inner], blurred[inner], atol=1e-6)
    assert downsample(images, 1.0) is images


def test_eq_1_against_a_loop():
    network = tiny_network()
    loss = PyramidalPerceptualLoss(network, (1, 4), (1.0, 0.5))
    rendered, target = torch.rand(2, 16, 16, 3), torch.rand(2, 16, 16, 3)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    total = 0.0
    for scale in (1.0, 0.5):
        a, b = (downsample(x.movedim(-1, 1), scale) for x in (rendered, target))
        for depth in (2, 5):
            difference = network[:depth]((a - mean) / std) - network[:depth]((b - mean) / std)
            total += difference.abs().mean().item()
    assert loss(rendered, target).item() == pytest.approx(total, rel=1e-5)
    assert loss(target, target).item() == 0


def test_eq_1_reaches_the_rendering_and_not_the_network():
    loss = PyramidalPerceptualLoss(tiny_network(), (1, 4), (1.0,))
    rendered = torch.rand(1, 8, 8, 3, requires_grad=True)
    loss(rendered, torch.rand(1, 8, 8, 3)).backward()
    assert rendered.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.parameters())


def test_layers_that_small_images_cannot_reach_are_left_out():
    loss = PyramidalPerceptualLoss(tiny_network(), (1, 4), (1.0, 0.25))
    assert len(loss.extract(torch.rand(1, 3, 8, 8))) == 2
    assert len(loss.extract(torch.rand(1, 3, 1, 1))) == 1
    assert torch.isfinite(loss(torch.rand(1, 4, 4, 3), torch.rand(1, 4, 4, 3)))


def test_pyramid_l1_of_a_constant_difference():
    target = torch.zeros(1, 32, 32, 3)
    assert pyramid_l1(target + 0.25, target, (1.0,)).item() == pytest.approx(0.25)
    assert pyramid_l1(target, target, (1.0, 0.5, 0.25)).item() == 0
    at_three_scales = pyramid_l1(target + 0.25, target, (1.0, 0.5, 0.25)).item()
    assert 0.25 < at_three_scales < 0.75  # the blur meets black beyond the border


def test_eq_2():
    occupancy, mask = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert foreground_loss(occupancy, mask).item() == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("together, computed", [(False, [2, 2, 1, 1, 2, 2]), (True, [2, 2, 2, 2, 2, 2])])
def test_features_of_a_named_image_are_computed_once_and_change_nothing(together, computed):
    network = tiny_network()
    seen = []
    plain, keeping = (PyramidalPerceptualLoss(network, (1, 4), (1.0, 0.5)) for _ in range(2))
    extract = keeping.extract
    keeping.extract = lambda images: seen.append((len(images), torch.is_grad_enabled())) or extract(images)
    keeping.room, keeping.together = 10**6, together
    images = torch.rand(5, 16, 16, 3)
    for names in ([0, 3], [3, 1], [0, 1], [4, 2]):
        rendered = torch.rand(2, 16, 16, 3)
        expected = plain(rendered, images[names])
        torch.testing.assert_close(keeping(rendered, images[names], names), expected)
    assert [n for n, learning in seen if not learning] == computed  # new images, or all, at each of two scales
    assert sorted(keeping.kept) == [0, 1, 2, 3, 4]
    size = 4 * (16 * 16 * 4 + 8 * 8 * 5 + 8 * 8 * 4 + 4 * 4 * 5)
    assert keeping.room == 10**6 - 5 * size
    keeping.kept.clear()
    keeping.room = size + 7  # for one of them
    for _ in range(2):
        torch.testing.assert_close(keeping(images[:2], images[2:4], [2, 3]), plain(images[:2], images[2:4]))
    assert len(keeping.kept) == 1 and keeping.room == 7


def test_weighted_pixels_count_as_often_as_their_weights_say():
    rendered, target, weights = torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8)
    expected = ((rendered - target).abs().mean(-1) * weights).mean()
    assert pyramid_l1(rendered, target, (1.0,), weights).item() == pytest.approx(expected.item(), rel=1e-5)
    scales = (1.0, 0.5)
    plain = pyramid_l1(rendered, target, scales)
    assert pyramid_l1(rendered, target, scales, torch.ones(2, 8, 8)).item() == pytest.approx(plain.item())
    settings = ReconstructionConfig(perceptual_network="none", pixel_weight=2.0, pyramid_scales=scales)
    masks = torch.rand(2, 8, 8)
    found = image_losses(settings, None, rendered, masks, target, masks, weights=weights)
    assert found["pixels"].item() == pytest.approx(2 * pyramid_l1(rendered, target, scales, weights).item())
    assert found["foreground"] == 0, "silhouettes are not weighted"
