"""Empty space: maps of a volume that tell the rays of the CPU kernels what they may jump over."""

from __future__ import annotations

import math

from numba import njit, prange

CELL = 2  # cells along an edge of a block of the coarser map


@njit(cache=True)
def _spread(line, reach):
    """A line of a map in which every entry becomes the largest within `reach` of it."""
    start = line.copy()
    for k in range(len(line)):
        for j in range(max(0, k - reach), min(len(line), k + reach + 1)):
            line[k] |= start[j]


@njit(parallel=True, cache=True)
def empty_space(volume, threshold, segment, solid, close):
    """Fill the maps of what a ray may jump over, uint8.

    solid (b, d, h, w): 0 for the lowest voxel of a cell in which no density exceeds the threshold. close (b, z, y, x):
    0 for a block of CELL^3 cells if so is every cell within reach of it: in a piece of a ray whose middle lies in the
    block. The piece is the share `segment` of a way through the cube, n - 1 voxel spacings along an axis of n voxels.
    """
    _, d, h, w, _ = volume.shape
    reach_z, reach_y, reach_x = [int(math.ceil(segment / 2 * (size - 1) / CELL)) for size in (d, h, w)]
    for b in prange(volume.shape[0]):
        here, found = solid[b], close[b]
        for z in range(d):
            for y in range(h):
                for x in range(w):
                    here[z, y, x] = not volume[b, z, y, x, 0] <= threshold  # NaN is not empty
        for z in range(d):  # a cell takes part of its eight voxels
            for y in range(h):
                for x in range(w - 1):
                    here[z, y, x] |= here[z, y, x + 1]
        for z in range(d):
            for y in range(h - 1):
                for x in range(w):
                    here[z, y, x] |= here[z, y + 1, x]
        for z in range(d - 1):
            for y in range(h):
                for x in range(w):
                    here[z, y, x] |= here[z + 1, y, x]
        for z in range(found.shape[0]):
            for y in range(found.shape[1]):
                for x in range(found.shape[2]):
                    found[z, y, x] = 0
        for z in range(d - 1):
            for y in range(h - 1):
                for x in range(w - 1):
                    found[z // CELL, y // CELL, x // CELL] |= here[z, y, x]
        for z in range(found.shape[0]):
            for y in range(found.shape[1]):
                _spread(found[z, y], reach_x)
            for x in range(found.shape[2]):
                _spread(found[z, :, x], reach_y)
        for y in range(found.shape[1]):
            for x in range(found.shape[2]):
                _spread(found[:, y, x], reach_z)
