"""Scores inside the faces of talking heads, whose place is known: how sharp they are, and whether mouths open.

Scores of whole frames hardly see a face, which is a tenth of their pixels. Boxes (t, 4) are squares around it: left,
top, right and bottom in pixels (`data.sets.people.face_truth`). No model has seen them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Video
from ..generation.animation import Animator
from .metrics import MetricError
from .metrics.images import LPIPS, foreground_psnr

SIDE = 64  # pixels of a crop; LPIPS asks for 32 at least
PROBED = 16  # pixels of a crop's side as the probe sees it, which looks at its lower half in grey
OPEN = 0.3  # from here on a jaw is called open: half of the most; closed is 0, and what lies between is left out
DECAY = 1.0  # of the probe's weights, on standardised pixels
FOLDS = 8


def crops(images: Tensor, boxes: Tensor, side: int = SIDE) -> Tensor:
    """Squares (t, side, side, c) of images (t, h, w, c), interpolated linearly, black outside of the image."""
    height, width = images.shape[1:3]
    steps = (torch.arange(side) + 0.5) / side
    x, y = (low[:, None] + steps * (high - low)[:, None] for low, high in zip(boxes.T[:2], boxes.T[2:], strict=True))
    x, y = (2 * x / width - 1)[:, None, :].expand(-1, side, -1), (2 * y / height - 1)[:, :, None].expand(-1, -1, side)
    taken = F.grid_sample(images.movedim(-1, 1), torch.stack([x, y], dim=-1), align_corners=False)
    return taken.movedim(1, -1)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels of images have their centres in the boxes, (t, h, w) bool."""
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    left, top, right, bottom = boxes.T[:, :, None, None]
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def heldout_pictures(animator: Animator, video: Video) -> Tensor:
    """The held-out frames of a training video as the model shows them, (t, h, w, 3) in [0, 1]."""
    frames = video.frames[video.train_frames :]
    if not len(frames):
        raise MetricError(f"video {video.key!r} has no held-out frames, expected some to be scored on")
    return animator.animate(animator.volume(video.key), frames).colour.clamp(0, 1)


def face_scores(pictures: Tensor, video: Video, boxes: Tensor, perceptual: LPIPS) -> tuple[float, float]:
    """PSNR in dB over the subject's pixels in the boxes, and LPIPS of the crops: means over the held-out frames.

    pictures: of `heldout_pictures`; boxes: of these frames.
    """
    held = slice(video.train_frames, None)
    frames, masks = video.frames[held].float() / 255, video.masks[held].float() / 255
    sharp = foreground_psnr(pictures, frames, masks * inside(boxes, *masks.shape[1:]))
    return sharp.item(), perceptual(crops(pictures, boxes), crops(frames, boxes)).mean().item()


# --------------------------------------------------------------------------------------------------------- mouths


def mouth_pixels(pictures: Tensor, boxes: Tensor) -> Tensor:
    """What the probe sees of pictures (t, h, w, 3) of one person: the lower half of each crop in grey, less its mean
    over the frames, so that who it is does not matter. (t, PROBED^2 / 2)."""
    grey = crops(pictures, boxes).mean(-1, keepdim=True).movedim(-1, 1)
    lower = F.avg_pool2d(grey, SIDE // PROBED)[:, 0, PROBED // 2 :].flatten(1)
    return lower - lower.mean(0)


@dataclass(frozen=True)
class Probe:
    """How well a linear rule tells open mouths from closed ones, on people that it was not fitted to."""

    accuracy: float  # mean of those on open and on closed mouths: 0.5 by chance
    low: float  # its 95 % bootstrap interval over people
    high: float
    opened: int  # frames
    closed: int


def mouth_probe(pixels: Sequence[Tensor], jaws: Sequence[Tensor], resamples: int = 2000, seed: int = 0) -> Probe:
    """A linear probe with cross-validation over people. pixels: (t, f) of each person; jaws: (t,), how far it is open.

    Of FOLDS groups of people each is judged by a ridge regression that was fitted to the others. Raises MetricError
    for fewer people than that, and where a fit or the test has open or closed mouths only.
    """
    if len(pixels) != len(jaws) or len(pixels) < FOLDS:
        raise MetricError(f"{len(pixels)} people and {len(jaws)} jaws, expected as many, {FOLDS} at least")
    used = [(jaw >= OPEN) | (jaw == 0) for jaw in jaws]
    x = torch.cat([p[u] for p, u in zip(pixels, used, strict=True)]).double()
    opened = torch.cat([jaw[u] > 0 for jaw, u in zip(jaws, used, strict=True)])
    person = torch.cat([torch.full((int(u.sum()),), k) for k, u in enumerate(used)])
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    fold = (order.argsort() % FOLDS)[person]
    hits = torch.zeros(len(x), dtype=torch.float64)
    for k in range(FOLDS):
        own = fold == k
        hits[own] = ((_ridge(x[~own], opened[~own])(x[own]) > 0) == opened[own]).double()
    sums = torch.zeros(2, 2, len(pixels), dtype=torch.float64)  # hits and frames, of closed and open mouths, by person
    for kind in (0, 1):
        chosen = opened == bool(kind)
        sums[0, kind].index_add_(0, person[chosen], hits[chosen])
        sums[1, kind].index_add_(0, person[chosen], torch.ones(int(chosen.sum()), dtype=torch.float64))
    drawn = torch.randint(len(pixels), (resamples, len(pixels)), generator=torch.Generator().manual_seed(seed))
    found = sums[:, :, drawn].sum(-1)
    low, high = (found[0] / found[1]).mean(0).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    total = sums.sum(-1)
    return Probe(float((total[0] / total[1]).mean()), low, high, int(total[1, 1]), int(total[1, 0]))


def _ridge(x: Tensor, opened: Tensor):
    """The linear rule (n, f) -> (n,), above 0 for open, of a ridge regression in which both kinds weigh the same."""
    counts = [int((~opened).sum()), int(opened.sum())]
    if min(counts) == 0:
        raise MetricError(f"{counts[1]} open and {counts[0]} closed mouths to fit a probe to, expected some of both")
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-3)
    weight = torch.where(opened, 0.5 / counts[1], 0.5 / counts[0]).double()
    z = torch.cat([(x - mean) / scale, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    penalty = DECAY * torch.eye(z.shape[1], dtype=x.dtype)
    penalty[-1, -1] = 0
    solution = torch.linalg.solve(z.T @ (weight[:, None] * z) + penalty, z.T @ (weight * (2.0 * opened - 1)))
    return lambda new: ((new - mean) / scale) @ solution[:-1] + solution[-1]
