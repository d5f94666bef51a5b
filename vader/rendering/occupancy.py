"""Empty space: a max-pooled map of the density, which tells a ray what it may jump over."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def occupied_cells(density: Tensor, threshold: float, cell: int, segment: float) -> Tensor:
    """Cells of a density (b, d, h, w) not to be jumped over, uint8 (b, cells_z, cells_y, cells_x).

    A cell spans `cell` voxel spacings along each axis and includes the voxels on all its faces. It is 0 if no
    trilinear density exceeds `threshold` within reach: in it, or in a piece of a ray whose middle it contains. The
    piece is the share `segment` of a way through the cube, which covers at most n - 1 spacings of an axis of n voxels.
    """
    sizes = density.shape[1:]
    cells = [-(-(size - 1) // cell) for size in sizes]
    d, h, w = (n * cell + 1 - size for n, size in zip(cells, sizes, strict=True))
    peaks = F.max_pool3d(F.pad(density[:, None], (0, w, 0, h, 0, d)), cell + 1, cell)
    for axis, size in enumerate(sizes):
        window, padding = [1, 1, 1], [0, 0, 0]
        padding[axis] = math.ceil(segment / 2 * (size - 1) / cell)
        window[axis] = 2 * padding[axis] + 1
        peaks = F.max_pool3d(peaks, window, 1, padding)
    return (~(peaks <= threshold))[:, 0].to(torch.uint8)  # NaN is not empty
