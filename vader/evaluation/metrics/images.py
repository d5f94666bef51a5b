"""Metrics between two images: PSNR over all or foreground pixels, and LPIPS.

Images are (n, h, w, 3) colours in [0, 1], as composited on black. Black pixels are easy to get right, so at
20 dB over all pixels a chair can still be a grey blob. Always report the PSNR of the foreground beside it.
PSNR is in 0..inf dB, higher is better, inf for equal images. LPIPS is in 0..~1, lower is better, 0 for equal
images.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from ...store.weights import Resolved, fit, load_state, resolve
from . import MetricError, optional_import


def psnr(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (n,); report the mean over images.

    prediction, target: (n, h, w, 3) in [0, 1]. `prediction` is clamped to it, as an image file would.
    mask: (n, h, w) in [0, 1], the target's foreground. If given, only pixels at least half covered count.
    Raises `MetricError` for unequal shapes, NaN, and an image whose mask is empty.
    """
    _check(prediction, target)
    error = (prediction.clamp(0, 1) - target).square().mean(-1)  # (n, h, w)
    if mask is None:
        mse = error.mean((1, 2))
    else:
        if mask.shape != error.shape:
            raise MetricError(f"mask has shape {tuple(mask.shape)}, expected {tuple(error.shape)}")
        inside = mask >= 0.5
        pixels = inside.sum((1, 2))
        if (pixels == 0).any():
            raise MetricError(f"image {int((pixels == 0).nonzero()[0])}: its mask has no foreground pixel")
        mse = (error * inside).sum((1, 2)) / pixels
    return -10 * mse.log10()


def foreground_psnr(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of `psnr` inside the masks over the images that have a foreground pixel, (); NaN where none has one."""
    shown = has_foreground(mask)
    return psnr(prediction[shown], target[shown], mask[shown]).mean()


def has_foreground(mask: Tensor) -> Tensor:
    """Which of the masks (n, h, w) in [0, 1] have a pixel that is at least half covered, (n,) bool."""
    return (mask >= 0.5).flatten(1).any(1)


class LPIPS:
    """Learned perceptual distance, `lpips` 0.1 with the backbone of `vader.store.weights`.

    network: "alex" (the field's default for evaluation) or "vgg", which is VGG-16 and therefore no
    judge of a model trained with a VGG loss. `backbone` records which weights were taken.
    """

    def __init__(self, network: Literal["alex", "vgg"] = "alex", device: torch.device | str = "cpu") -> None:
        lpips = optional_import("lpips")
        backbones = {"alex": "alexnet", "vgg": "vgg16"}
        if network not in backbones:
            raise MetricError(f"LPIPS has no network {network!r}; known are {sorted(backbones)}")
        self.backbone: Resolved = resolve(backbones[network])
        with warnings.catch_warnings():  # it calls torchvision in a way that is deprecated
            warnings.simplefilter("ignore", UserWarning)
            # the heads ship with the package; pnet_rand stops it from downloading the backbone
            self.model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        state = load_state(self.backbone, "features.")
        slices = [getattr(self.model.net, f"slice{i}") for i in range(1, self.model.net.N_slices + 1)]
        merged = torch.nn.ModuleDict({name: layer for part in slices for name, layer in part.named_children()})
        fit(merged, state, self.backbone, unused=("classifier.",))
        self.model.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.inference_mode()
    def __call__(self, prediction: Tensor, target: Tensor, batch_size: int = 64) -> Tensor:
        """Distance of each pair of images, (n, h, w, 3) in [0, 1] with h, w >= 32, as (n,). Raises `MetricError`."""
        _check(prediction, target)
        if min(prediction.shape[1:3]) < 32:
            raise MetricError(f"LPIPS of {tuple(prediction.shape[1:3])} images, expected at least 32 x 32")
        distances = []
        for a, b in zip(prediction.split(batch_size), target.split(batch_size), strict=True):
            a, b = (x.to(self.device).clamp(0, 1).movedim(-1, 1) * 2 - 1 for x in (a, b))
            distances.append(self.model(a, b).flatten().cpu())
        return torch.cat(distances)


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[-1] != 3:
        raise MetricError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)}: expected two (n, h, w, 3)"
        )
    for name, images in (("prediction", prediction), ("target", target)):
        if not images.is_floating_point():
            raise MetricError(f"{name} is {images.dtype}, expected floating-point colours in [0, 1]")
        if not torch.isfinite(images).all():
            raise MetricError(f"{name} holds NaN or infinity, expected colours in [0, 1]")
    if target.numel() and not 0 <= target.min() <= target.max() <= 1:
        raise MetricError(f"target ranges over [{target.min():.3g}, {target.max():.3g}], expected [0, 1]")
