"""Poses of each training video as smooth curves over time, found by rendering; the predictor is then told them.

A predictor that all parts and subjects share takes thousands of steps to tell where a limb is even if it is told, and
many times that from what a step's pictures say about a limb of few pixels. So a second stage can begin with poses that
are parameters of each video, as its embedding is: a part is where the first stage's model has the whole subject, turned
about the part's own centroid and shifted across the picture. Shifts along the camera's axis are left out: a narrow
camera does not see them. Motion is smooth, and a few cosines of time say it: every frame of a video is evidence for
each of them. Held-out frames and other videos have no curves; for them there is only what the predictor has learned.
UVA [63] has nothing like it, and trains far longer.
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
        centroids: (n, p, 3) what parts turn about, in the canonical cube.
        harmonics: cosines of a curve, of 0 to (harmonics - 1) / 2 cycles in a video.
        roll: radians about z that a coefficient of 1 stands for; about x and y, and for shifts, it is 1."""
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
        """What the parts do against the whole subject there, (b, v, p, 3, 4). share: of how far they do it, (b,)."""
        waves = torch.arange(self.coefficients.shape[-1], device=frames.device)
        phase = (frames + 0.5) / self.lengths[videos, None]
        coefficients = self.coefficients[videos] * torch.as_tensor(share, device=frames.device).view(-1, 1, 1, 1)
        values = torch.einsum("bpck,bvk->bvpc", coefficients, (math.pi * phase[..., None] * waves).cos())
        turns, shifts = values.split([TURNS, SHIFTS], dim=-1)
        return turn_about(self.centroids[videos, None], self.radians * turns, shifts)
