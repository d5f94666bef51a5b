"""PSNR by hand, LPIPS against the package it comes from."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vader.evaluation.metrics import MetricError
from vader.evaluation.metrics.images import LPIPS, psnr
from vader.store import weights


def test_psnr_of_a_constant_error():
    target = torch.full((2, 8, 8, 3), 0.5)
    prediction = target + torch.tensor([0.1, -0.01])[:, None, None, None]
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([20.0, 40.0]))
    assert psnr(target, target).tolist() == [math.inf, math.inf]


def test_black_background_flatters():
    """A quarter of the pixels, all wrong by 0.1, on a perfect background: 6.02 dB more over all pixels."""
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1
    target = 0.5 * mask[..., None].expand(1, 8, 8, 3)
    prediction = target + 0.1 * mask[..., None]
    torch.testing.assert_close(psnr(prediction, target, mask), torch.tensor([20.0]))
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([20 + 10 * math.log10(4)]))
    half = torch.where(mask > 0, 0.6, 0.4)  # antialiased edges: at least half covered counts
    torch.testing.assert_close(psnr(prediction, target, half), torch.tensor([20.0]))


def test_predictions_are_clamped():
    target = torch.ones(1, 4, 4, 3)
    assert psnr(target + 3, target).item() == math.inf


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 0.5))
def test_psnr_against_a_loop(seed, scale):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(3, 5, 4, 3, generator=g)
    prediction = (target + scale * torch.randn(target.shape, generator=g)).clamp(0, 1)
    mask = torch.rand(3, 5, 4, generator=g)
    mask[:, 0, 0] = 1
    for i, (whole, inside) in enumerate(zip(psnr(prediction, target), psnr(prediction, target, mask), strict=True)):
        errors = {
            (y, x): sum((float(prediction[i, y, x, c]) - float(target[i, y, x, c])) ** 2 for c in range(3)) / 3
            for y in range(5)
            for x in range(4)
        }
        chosen = [e for (y, x), e in errors.items() if mask[i, y, x] >= 0.5]
        assert whole.item() == pytest.approx(-10 * math.log10(sum(errors.values()) / 20), rel=1e-4)
        assert inside.item() == pytest.approx(-10 * math.log10(sum(chosen) / len(chosen)), rel=1e-4)


@pytest.mark.parametrize(
    ("prediction", "target", "mask", "message"),
    [
        (torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 5, 3), None, "expected two"),
        (torch.zeros(1, 4, 4, 3), torch.zeros(1, 4, 4, 3), torch.ones(1, 4, 5), "mask has shape"),
        (
            torch.zeros(2, 4, 4, 3),
            torch.zeros(2, 4, 4, 3),
            torch.ones(2, 4, 4) * torch.tensor([[[1.0]], [[0]]]),
            "image 1",
        ),
        (torch.full((1, 4, 4, 3), torch.nan), torch.zeros(1, 4, 4, 3), None, "prediction holds NaN"),
        (torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 3), 255.0), None, "target ranges over"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.zeros(1, 4, 4, 3, dtype=torch.uint8), None, "uint8"),
    ],
)
def test_psnr_refuses(prediction, target, mask, message):
    with pytest.raises(MetricError, match=message):
        psnr(prediction, target, mask)


@pytest.fixture
def backbones(tmp_path, monkeypatch):
    """Random backbones in the resolver's folder: LPIPS must equal the package whatever they are."""
    torch.manual_seed(0)
    states = {
        "alexnet": torchvision.models.AlexNet().features.state_dict(),
        "vgg16": {k: 0.03 * torch.randn_like(v) for k, v in weights.vgg_layers("vgg16").state_dict().items()},
    }
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}_features.safetensors")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    return states


@pytest.mark.parametrize(("network", "backbone"), [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_is_the_packages(network, backbone, backbones):
    lpips = pytest.importorskip("lpips")
    metric = LPIPS(network)
    assert metric.backbone.need == backbone and metric.backbone.source == "folder $VADER_WEIGHTS"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    slices = [getattr(reference.net, f"slice{i}") for i in range(1, 6)]
    for part in slices:
        for name, layer in part.named_children():
            for parameter, value in layer.named_parameters():
                value.data.copy_(backbones[backbone][f"{name}.{parameter}"])
    a, b = torch.rand(2, 3, 48, 40, 3, generator=torch.Generator().manual_seed(1))
    expected = reference(a.movedim(-1, 1), b.movedim(-1, 1), normalize=True).flatten()
    torch.testing.assert_close(metric(a, b, batch_size=2), expected.detach())
    assert metric(a, a).abs().max() == 0
    assert (metric(a, b) > 0.01).all()


def real_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of the photographs that come with scikit-image, and versions of them: (12, 64, 64, 3) twice."""
    data = pytest.importorskip("skimage.data")
    corners = {"astronaut": (70, 190), "coffee": (120, 220), "chelsea": (80, 130)}  # a face, a cup, a cat's eyes
    references, versions = [], []
    for name, (top, left) in corners.items():
        photograph = torch.from_numpy(getattr(data, name)().copy()).double() / 255

        def crop(down: int, right: int, photograph=photograph, top=top, left=left) -> torch.Tensor:
            return photograph[top + down : top + down + 64, left + right : left + right + 64]

        blurred = sum(crop(y, x) for y in range(-2, 3) for x in range(-2, 3)) / 25
        changed = (blurred, crop(1, 3), (8 * crop(0, 0)).round() / 8, crop(0, 0).flip(1))
        references += [crop(0, 0)] * len(changed)
        versions += changed
    return torch.stack(references).float(), torch.stack(versions).float()


# of `real_pairs`, with AlexNet's weights in float32 (SHA-256 of the file: 5856c3e3339d...)
LPIPS_FLOAT32 = [
    0.33616, 0.02867, 0.02584, 0.07877, 0.1002, 0.01032, 0.11414, 0.27641, 0.2062, 0.05232, 0.03713, 0.2392,
]  # fmt: skip


def test_embedded_weights_measure_as_those_in_float32_do(monkeypatch):
    pytest.importorskip("lpips")
    pairs = real_pairs()
    folder = os.environ.get("VADER_WEIGHTS")
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    embedded = LPIPS()
    assert embedded.backbone.source == "embedded in vader"
    measured = embedded(*pairs)
    torch.testing.assert_close(measured, torch.tensor(LPIPS_FLOAT32), rtol=0, atol=1e-3)
    if folder and (Path(folder) / "alexnet_features.safetensors").is_file():
        monkeypatch.setenv("VADER_WEIGHTS", folder)
        torch.testing.assert_close(measured, LPIPS()(*pairs), rtol=0, atol=1e-3)


def test_lpips_refuses(backbones, monkeypatch):
    pytest.importorskip("lpips")
    metric = LPIPS()
    small = torch.zeros(1, 16, 16, 3)
    with pytest.raises(MetricError, match="at least 32 x 32"):
        metric(small, small)
    with pytest.raises(MetricError, match="no network 'resnet'"):
        LPIPS("resnet")
