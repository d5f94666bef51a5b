"""Poses of each training video as smooth curves over time, found by rendering and later taught to the predictor.

A predictor that all parts and subjects share takes thousands of steps to find a limb, even from given poses. From a
step's pictures of a limb of few pixels it takes many times that. So a second training can begin with poses that are
parameters of each video, as its embedding is. A part starts where the first training's model has the whole subject. It
turns about its own centroid and shifts across the picture. Shifts along the camera's axis are left out, since a narrow
camera does not see them.

Motion is smooth, and a few cosines of time describe it, so every frame of a video is evidence for each of them.
Held-out frames and other videos have no curves. For them the predictor alone reads poses. UVA [63] has nothing like it,
and trains far longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..poses import compose, turn_about

TURNS, SHIFTS = 3, 2  # of a part in a frame: a rotation vector in radians, and x and y in the canonical cube's units


class Tracks(nn.Module):
    """Poses of the parts in the training frames of videos, which start as `roots` say."""

    def __init__(self, roots: Sequence[Tensor], centroids: Tensor, harmonics: int, roll: float = 1.0):
        """roots: poses (t_i, 3, 4) of the whole subject in each training frame of each of n videos.
        centroids: (n, p, 3), the points that parts turn about, in the canonical cube.
        harmonics: cosines of a curve, of 0 to (harmonics - 1) / 2 cycles in a video.
        roll: radians of a turn about z for a coefficient of 1. Turns about x and y, and shifts, have their coefficient
            as it is."""
        super().__init__()
        n, parts, _ = centroids.shape
        lengths = torch.tensor([len(video) for video in roots])
        whole = torch.zeros(n, int(lengths.max()), 3, 4)
        for into, video in zip(whole, roots, strict=True):
            into[: len(video)] = video
        self.coefficients = nn.Parameter(torch.zeros(n, parts, TURNS + SHIFTS, harmonics))
        self.register_buffer("radians", torch.tensor([1.0, 1.0, roll]), persistent=False)
        for name, values in (("roots", whole), ("centroids", centroids), ("lengths", lengths)):
            self.register_buffer(name, values, persistent=False)  # made anew from the first stage's run

    def forward(self, videos: Tensor, frames: Tensor) -> Tensor:
        """Poses (b, v, p, 3, 4) of the parts in frames (b, v), counted from each video's first, of videos (b,)."""
        return compose(self.roots[videos[:, None], frames][:, :, None], self.own(videos, frames))

    def own(self, videos: Tensor, frames: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """Motion of the parts relative to the whole subject, (b, v, p, 3, 4), scaled by a share (b,)."""
        waves = torch.arange(self.coefficients.shape[-1], device=frames.device)
        phase = (frames + 0.5) / self.lengths[videos, None]
        coefficients = self.coefficients[videos] * torch.as_tensor(share, device=frames.device).view(-1, 1, 1, 1)
        values = torch.einsum("bpck,bvk->bvpc", coefficients, (math.pi * phase[..., None] * waves).cos())
        turns, shifts = values.split([TURNS, SHIFTS], dim=-1)
        return turn_about(self.centroids[videos, None], self.radians * turns, shifts)
