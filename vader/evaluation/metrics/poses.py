"""Scores for poses and parts that were learned without supervision, where the ground truth is known.

A learned canonical frame is one of many that explain the same pictures. Learned poses are [R | t] and true ones
[Q | u], both from a part to the same camera. Let S = [R_s | t_s] map between the frames of a part, and let k be the
ratio of the units. A perfect model has R = Q R_s and k t = Q t_s + u. `pose_errors` fits the one similarity to all
frames it is given and measures the remaining error. Give it one video at a time, or several to ask for one frame
across them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import MetricError


@dataclass(frozen=True)
class PoseErrors:
    """The errors per frame after the best similarity, and that similarity."""

    rotation: Tensor  # (n,) degrees
    translation: Tensor  # (n,) distance in the truth's units
    frame: Tensor  # (3, 3) R_s
    scale: float  # k


def pose_errors(learned: Tensor, truth: Tensor) -> PoseErrors:
    """Errors of learned poses (n, 3, 4) against true ones (n, 3 or 4, 4), part to camera, OpenCV axes.

    Raises MetricError for other shapes, fewer than two frames, and matrices that are not finite.
    """
    if learned.ndim != 3 or learned.shape[1:] != (3, 4) or truth.shape[0] != len(learned) or truth.shape[2:] != (4,):
        raise MetricError(f"poses are {tuple(learned.shape)} and {tuple(truth.shape)}, expected (n, 3, 4) of each")
    if len(learned) < 2:
        raise MetricError("poses of one frame: any is right after an alignment, expected at least two")
    learned, truth = learned.double().cpu(), truth[:, :3].double().cpu()
    if not (torch.isfinite(learned).all() and torch.isfinite(truth).all()):
        raise MetricError("poses have a NaN or infinite entry, expected finite numbers")
    r, t, q, u = learned[..., :3], learned[..., 3], truth[..., :3], truth[..., 3]
    frame = nearest_rotation((q.mT @ r).sum(0))
    # k t - Q t_s = u, linear in (k, t_s)
    system = torch.cat([t[..., None], -q], dim=-1).flatten(0, 1)
    solution = torch.linalg.lstsq(system, u.flatten()[:, None], driver="gelsd").solution[:, 0]
    left = (system @ solution).view(-1, 3) - u
    return PoseErrors(rotation_angle(q @ frame, r), left.norm(dim=1), frame, solution[0].item())


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation (3, 3) closest to a matrix in the Frobenius norm."""
    u, _, v = torch.linalg.svd(matrix)
    sign = torch.ones(3, dtype=matrix.dtype)
    sign[2] = torch.det(u @ v).sign()
    return u @ torch.diag(sign) @ v


def rotation_angle(a: Tensor, b: Tensor) -> Tensor:
    """Degrees (n,) between rotations (n, 3, 3); exact for small ones."""
    chord = (a - b).flatten(1).norm(dim=1) / 8**0.5  # sin(angle / 2)
    return torch.rad2deg(2 * chord.clamp(max=1).asin())


def contingency(a: Tensor, b: Tensor) -> Tensor:
    """How often label i of `a` meets label j of `b`, both (n,) of integers >= 0: (max a + 1, max b + 1)."""
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise MetricError(f"labels are {tuple(a.shape)} and {tuple(b.shape)}, expected two (n,) with n > 0")
    rows, columns = int(a.max()) + 1, int(b.max()) + 1
    return torch.bincount(a.long() * columns + b.long(), minlength=rows * columns).view(rows, columns)


def adjusted_rand_index(a: Tensor, b: Tensor) -> float:
    """Agreement of two labellings (n,) whatever the labels are called: 1 if equal, 0 on average if independent."""
    table = contingency(a, b).double()
    pairs = lambda counts: (counts * (counts - 1) / 2).sum().item()  # noqa: E731
    together, of_a, of_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    n = len(a)
    expected = of_a * of_b / (n * (n - 1) / 2) if n > 1 else 0.0
    most = (of_a + of_b) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def match_parts(learned: Tensor, truth: Tensor, parts: int) -> list[int]:
    """For each of `parts` true parts, the learned one that covers most of its pixels, -1 where there is none.

    learned, truth: labels (n,) of the pixels that have both.
    """
    if len(truth) == 0:
        return [-1] * parts
    table = contingency(learned, truth)
    seen = table.shape[1]
    return [int(table[:, j].argmax()) if j < seen and table[:, j].sum() else -1 for j in range(parts)]


def silhouette_iou(occupancy: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union (n,) of what is at least half covered, (n, h, w) each in [0, 1]."""
    if occupancy.shape != mask.shape or occupancy.ndim != 3:
        raise MetricError(f"occupancy {tuple(occupancy.shape)} and mask {tuple(mask.shape)}, expected two (n, h, w)")
    a, b = occupancy >= 0.5, mask >= 0.5
    union = (a | b).sum((1, 2))
    if (union == 0).any():
        raise MetricError(f"image {int((union == 0).nonzero()[0])}: neither silhouette has a pixel")
    return (a & b).sum((1, 2)) / union


def normal_error(normals: Tensor, truth: Tensor, shown: Tensor) -> Tensor:
    """Mean angle in degrees (n,) between normals (n, h, w, 3) over the pixels `shown` (n, h, w); their lengths do not
    matter. NaN for an image that shows nothing."""
    if normals.shape != truth.shape or normals.shape[:3] != shown.shape or normals.shape[-1] != 3:
        shapes = ", ".join(str(tuple(x.shape)) for x in (normals, truth, shown))
        raise MetricError(f"normals, truth and shown are {shapes}, expected (n, h, w, 3) twice and (n, h, w)")
    a, b = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (normals, truth))
    angle = 2 * torch.rad2deg(((a - b).norm(dim=-1) / 2).clamp(max=1).asin())
    return (angle * shown).sum((1, 2)) / shown.sum((1, 2))
