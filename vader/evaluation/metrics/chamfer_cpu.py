"""Chamfer kernels for the CPU, compiled by numba. Clouds are float32 (..., 3, p): one row per coordinate.

Minima are taken of the bit patterns as integers, which order non-negative floats alike: LLVM turns
those into vector instructions, while it leaves a floating-point minimum inside a loop scalar.
The kernels release the interpreter's lock: the caller runs slices of the work in threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FASTMATH = {"contract", "reassoc", "nsz"}
FAR = np.float32(np.inf).view(np.int32)


@njit(inline="always")
def _bits(x):
    return np.float32(x).view(np.int32)


@njit(inline="always")
def _value(bits):
    return np.float64(np.int32(bits).view(np.float32))


@njit(fastmath=FASTMATH, cache=True)
def chamfer(x, y):
    """Mean squared distance from the points of x (3, p) to the nearest of y (3, q), and from y to x."""
    p, q = x.shape[1], y.shape[1]
    x0, x1, x2 = x[0], x[1], x[2]
    y0, y1, y2 = y[0], y[1], y[2]
    nearest = np.full(q, FAR, np.int32)  # to each y, of the points of x so far
    there = 0.0
    whole = p - p % 4
    for i in range(0, whole, 4):  # four points of x share each load of y
        a0, a1, a2 = x0[i], x1[i], x2[i]
        b0, b1, b2 = x0[i + 1], x1[i + 1], x2[i + 1]
        c0, c1, c2 = x0[i + 2], x1[i + 2], x2[i + 2]
        d0, d1, d2 = x0[i + 3], x1[i + 3], x2[i + 3]
        near_a, near_b, near_c, near_d = FAR, FAR, FAR, FAR
        for j in range(q):
            u, v, w = y0[j], y1[j], y2[j]
            a = _bits((u - a0) * (u - a0) + (v - a1) * (v - a1) + (w - a2) * (w - a2))
            b = _bits((u - b0) * (u - b0) + (v - b1) * (v - b1) + (w - b2) * (w - b2))
            c = _bits((u - c0) * (u - c0) + (v - c1) * (v - c1) + (w - c2) * (w - c2))
            d = _bits((u - d0) * (u - d0) + (v - d1) * (v - d1) + (w - d2) * (w - d2))
            near_a, near_b, near_c, near_d = min(near_a, a), min(near_b, b), min(near_c, c), min(near_d, d)
            nearest[j] = min(nearest[j], min(min(a, b), min(c, d)))
        there += _value(near_a) + _value(near_b) + _value(near_c) + _value(near_d)
    for i in range(whole, p):
        near = FAR
        for j in range(q):
            u, v, w = y0[j] - x0[i], y1[j] - x1[i], y2[j] - x2[i]
            a = _bits(u * u + v * v + w * w)
            near = min(near, a)
            nearest[j] = min(nearest[j], a)
        there += _value(near)
    back = 0.0
    for j in range(q):
        back += _value(nearest[j])
    return there / p, back / q


@njit(nogil=True, cache=True)
def chamfer_pairs(clouds, first, second, out):
    """out[k] = the chamfer distance, mean form, of clouds[first[k]] (n, 3, p) and clouds[second[k]]."""
    for k in range(len(out)):
        there, back = chamfer(clouds[first[k]], clouds[second[k]])
        out[k] = there + back


@njit(fastmath=FASTMATH, cache=True)
def _nearest(cloud, centres, out):
    """Distance from each centre (3, c) to the nearest point of the cloud (3, p)."""
    y0, y1, y2 = cloud[0], cloud[1], cloud[2]
    for i in range(centres.shape[1]):
        a0, a1, a2 = centres[0, i], centres[1, i], centres[2, i]
        near = FAR
        for j in range(cloud.shape[1]):
            u, v, w = y0[j] - a0, y1[j] - a1, y2[j] - a2
            near = min(near, _bits(u * u + v * v + w * w))
        out[i] = np.sqrt(np.int32(near).view(np.float32))


@njit(fastmath=FASTMATH, nogil=True, cache=True)
def one_way_bounds(clouds, centres, cells, offsets, out):
    """out[j, i] <= mean over the points x of cloud i of the squared distance to clouds[j] (m, 3, p).

    A point in a cell lies within its offset (n, p) of the cell's centre: it is no nearer to a cloud
    than the centre is, less that offset. centres (3, c), cells (n, p) indices into c, out (m, n).
    """
    table = np.empty(centres.shape[1], np.float32)
    for j in range(len(clouds)):
        _nearest(clouds[j], centres, table)
        for i in range(len(cells)):
            total = np.float32(0)
            for k in range(cells.shape[1]):
                gap = max(table[cells[i, k]] - offsets[i, k], np.float32(0))
                total += gap * gap
            out[j, i] = total / np.float32(cells.shape[1])
