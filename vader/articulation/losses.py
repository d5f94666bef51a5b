"""Losses of keypoints and poses that UVA [63] adds to the image losses (Sec. 3.2 builds on it).

The paper keeps UVA's procedure and names no weights. Its foreground supervision (Eq. 2) replaces UVA's mask, which
comes from another method. All terms are means, so that UVA's weights apply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..settings.articulation import ArticulationConfig
from .poses import neutral, random_affine, warp_images, warp_points

if TYPE_CHECKING:
    from .pose_model import PoseModel


def equivariance_loss(predict: Callable[[Tensor], Tensor], images: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Keypoints move with the image: mean |points - A predict(image o A)| over random affine maps A.

    images: (n, h, w, 3). points: (n, p, k, 2), the prediction on them. sigma: of the maps' entries.
    """
    maps = random_affine(len(images), sigma).to(images.device)
    moved = predict(warp_images(maps, images)).flatten(1, 2)
    return (points.flatten(1, 2) - warp_points(maps, moved)).abs().mean()


def projection_loss(points2d: Tensor, projected: Tensor) -> Tensor:
    """2D keypoints lie where the pose projects the 3D ones: mean |difference|; both (n, p, k, 2) in [-1, 1]."""
    return (points2d - projected).abs().mean()


def pull_loss(poses: Tensor, part_density: Tensor, threshold: float) -> Tensor:
    """Parts that hold hardly any density are pulled to the pose of the part that holds most, so that they can get some.

    Where that part holds less than `threshold` itself, all are pulled to the neutral pose.

    poses: (n, p, 3, 4); part_density: (p,), mean raw density of each part, without a gradient.
    """
    lacking = (threshold - part_density).clamp_min(0)
    if part_density.max() < threshold:
        target = neutral(1, 1, device=poses.device, dtype=poses.dtype)
    else:
        largest = int(part_density.argmax())
        target = poses[:, largest : largest + 1].detach()
    return (lacking * (poses - target).abs().mean(dim=(0, 2, 3))).mean()


def pose_losses(
    settings: ArticulationConfig,
    pose_model: PoseModel,
    images: Tensor,
    poses: Tensor,
    points2d: Tensor,
    part_density: Tensor,
    neutral_start: bool,
) -> dict[str, Tensor]:
    """The three losses above with their weights, those of weight 0 left out; arguments as there."""
    losses = {}
    if settings.equivariance_weight:
        loss = equivariance_loss(pose_model.predictor, images, points2d, settings.equivariance_sigma)
        losses["equivariance"] = settings.equivariance_weight * loss
    weight = settings.settling_weight if neutral_start else settings.projection_weight
    if weight:
        losses["projection"] = weight * projection_loss(points2d, pose_model.project(poses))
    if settings.pull_weight:
        losses["pull"] = settings.pull_weight * pull_loss(poses, part_density, settings.pull_threshold)
    return losses


def ray_lattice(height: int, width: int, stride: int) -> tuple[Tensor, int, int]:
    """Row-major indices of every `stride`-th pixel and row of an image, at a random offset; their rows and columns."""
    dy, dx = torch.randint(stride, (2,)).tolist()
    rows, columns = torch.arange(dy, height, stride), torch.arange(dx, width, stride)
    return (rows[:, None] * width + columns).flatten(), len(rows), len(columns)


def change_weights(videos: Iterable[Tensor], weight: float) -> Tensor | None:
    """How much each pixel of videos (t, h, w, 3) uint8 counts in the pixel loss, (videos, h, w), of mean 1 in each;
    None, where all count alike, for the weight 0.

    It is 1 + `weight` times how much the pixel changes over the frames (the standard deviation, mean over colours),
    relative to the mean over all pixels: a face that talks gets more than a wall, and than a cheek.
    """
    if weight == 0:
        return None
    maps = []
    for frames in videos:
        change = frames.float().std(0, correction=0).mean(-1)
        relative = change / change.mean() if change.any() else torch.ones_like(change)
        maps.append((1 + weight * relative) / (1 + weight))
    return torch.stack(maps)
