"""Initial regions of the parts: each subject's silhouette is divided around the discs that it holds.

Parts that start as copies of one have skinning weights that are about equal everywhere. They get about equal gradients
and move as one, and UVA [63] waits until chance has told them apart. Limbs are thinner than the part that they hang on.
So the largest discs within a silhouette are trunk and head, and smaller ones lie along arms and legs.

As long as all parts have the same pose, no picture depends on the division of space. Training goes on from there: poses
tell the parts apart, and pictures move their borders. Only the learned volumes' own silhouettes are read.

Discs (n, 3) are x, y and radius in [-1, 1] image coordinates as in `keypoints`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...rendering.cameras import Cameras
from ...rendering.rays import voxel_centres
from ..poses import neutral, project
from ..skinning import posed_views

SPACING = 1.3  # centres of other discs are at least so many of a disc's radii away from its own
SMALLEST = 1.5  # radius in pixels; thinner parts of a silhouette are no limb of their own
ROUNDS = 50  # of numbering discs, at most; it settles in a few


class Division:
    """The initial regions of each subject's parts, and the volumes that they divide."""

    def __init__(self, volumes: Tensor, parts: int, camera: Cameras, num_samples: int):
        """volumes: density and colour of all subjects (n, 4, S, S, S), as learned with one part."""
        self.volumes, size, device = volumes, volumes.shape[-1], volumes.device
        still = neutral(1, 1, 1, device=device)
        silhouettes = []
        for volume in volumes:
            whole = torch.cat([volume, torch.zeros_like(volume[:1])])[None]  # as one part
            silhouettes.append(posed_views(whole, still, camera, num_samples)["occupancy"][0, 0] > 0.5)
        discs = [inscribed_discs(silhouette, parts) for silhouette in silhouettes]
        divided = zip(discs, number_discs(discs), strict=True)
        self.labels = torch.stack([regions(*pair, camera, size) for pair in divided]).to(device)
        self.within = torch.stack([within(silhouette, camera, size) for silhouette in silhouettes]).to(device)

    def centroids(self, parts: int) -> Tensor:
        """Centroids (n, p, 3) of the dense voxels in each part's initial region, the origin where it has none."""
        points = voxel_centres(self.labels.shape[-1], self.labels.device)
        owned = F.one_hot(self.labels.flatten(1).long(), parts) * (self.volumes[:, 0] > 0).flatten(1)[..., None]
        return owned.float().mT @ points / owned.sum(1).clamp_min(1)[..., None]

    def told(self, volume: Tensor, objects: Tensor) -> Tensor:
        """Cross-entropy of the skinning weights of volumes (b, 4 + p, S, S, S) of subjects (b,) to where parts start:
        the mean of what it is inside of the silhouettes and outside."""
        told = F.cross_entropy(volume[:, 4:].float(), self.labels[objects].long(), reduction="none")
        inside = self.within[objects]
        return torch.stack([told[where].mean() for where in (inside, ~inside) if where.any()]).mean()

    def changed(self, volume: Tensor, objects: Tensor, density_scale: float) -> Tensor:
        """Mean squared change of raw density, and of colours near density, since parts began to divide the volumes."""
        before = self.volumes[objects]
        density = (volume[:, :1] - before[:, :1]) / density_scale
        shown = F.max_pool3d((before[:, :1] > 0).float(), 3, stride=1, padding=1)
        colour = (volume[:, 1:4] - before[:, 1:]) * shown
        return density.square().mean() + colour.square().mean()


def inscribed_discs(silhouette: Tensor, most: int) -> Tensor:
    """Up to `most` of the largest discs that a silhouette (h, h), bool, holds, the largest first: (n, 3)."""
    from scipy.ndimage import distance_transform_edt

    size = len(silhouette)
    radii = distance_transform_edt(np.pad(silhouette.cpu().numpy(), 1))[1:-1, 1:-1]  # the picture's edge is an outline
    rows, columns = np.indices(radii.shape)
    free, discs = radii.copy(), []
    while len(discs) < most and free.max() >= SMALLEST:
        row, column = np.unravel_index(free.argmax(), free.shape)
        radius = radii[row, column]
        discs.append(((2 * column + 1) / size - 1, (2 * row + 1) / size - 1, 2 * radius / size))
        free[np.hypot(rows - row, columns - column) < SPACING * radius] = 0
    return torch.tensor(discs).view(-1, 3)


def number_discs(discs: Sequence[Tensor]) -> list[Tensor]:
    """The part that each of the subjects' discs (n_i, 3) belongs to, (n_i,) each, below the largest n_i.

    A number means about the same place and size for all subjects, and a subject has one disc of it at most."""
    from scipy.optimize import linear_sum_assignment

    if not any(map(len, discs)):
        return [torch.zeros(0, dtype=torch.int64) for _ in discs]
    means = max(discs, key=len).double()  # the first of those with the most discs names them
    numbers: list[Tensor] = []
    for _ in range(ROUNDS):
        matched = [torch.from_numpy(linear_sum_assignment(torch.cdist(d.double(), means))[1]) for d in discs]
        if numbers and all(map(torch.equal, matched, numbers)):
            break
        numbers = matched
        every, owner = torch.cat([*discs]).double(), torch.cat(numbers)
        means = torch.stack([every[owner == part].mean(0) for part in range(len(means))])  # its first has all of them
    return numbers


def regions(discs: Tensor, numbers: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """The number of the disc that each voxel belongs to, (S, S, S) = (z, y, x) uint8, in the neutral pose.

    Space is divided by the discs' power diagram, whose borders are the lines in which they overlap, and equally at all
    depths along a ray of `camera`. Without discs, as where no subject is seen, all of it is part 0.
    """
    if not len(discs):
        return torch.zeros(resolution, resolution, resolution, dtype=torch.uint8)
    seen = _seen(camera, resolution)
    power = (seen[:, None] - discs[:, :2].to(seen)).square().sum(-1) - discs[:, 2].to(seen).square()
    return numbers.to(torch.uint8)[power.argmin(1)].view(resolution, resolution, resolution)


def within(silhouette: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """The voxels that a silhouette (h, w), bool, shows, (S, S, S) = (z, y, x) bool, in the neutral pose."""
    seen = _seen(camera, resolution).view(1, 1, -1, 2)
    shown = F.grid_sample(silhouette.float().cpu()[None, None], seen, align_corners=False)
    return shown.view(resolution, resolution, resolution) > 0.5


def _seen(camera: Cameras, resolution: int) -> Tensor:
    """Where `camera` sees the voxels in the neutral pose, (S^3, 2)."""
    return project(neutral(1), voxel_centres(resolution)[None], camera).view(-1, 2)
