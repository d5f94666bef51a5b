"""The fused renderer's CPU kernels: one march forward, one backward, compiled by numba.

A ray is walked front to back with its state in registers; nothing is stored per sample. The backward march
recomputes what it needs: with L = sum_i w_i s_i and s_i = g_c . c_i + g_o + g_d t_i for the incoming gradients
(g_c, g_o, g_d) of Eq. 6, Eq. 7 and the depth,

    dL/dc_i = w_i g_c,    dL/dsigma_i = step (T_{i+1} s_i - sum_{j>i} w_j s_j),

and the sum over later samples is L (from the forward result) less what has been passed. Volumes are
(b, z, y, x, 4) so that the four channels of a voxel load as one vector.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import njit, prange

# The four channels of a tap are adjacent and go through the same arithmetic: with LLVM's SLP pass they become one
# vector operation, which halves the backward march. numba leaves the pass off by default.
numba.config.SLP_VECTORIZE = 1

# Products may be reordered and fused; NaN and infinity keep their meaning, so bad input stays visible.
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}
ONE, HALF, ZERO = np.float32(1), np.float32(0.5), np.float32(0)
RAYS_PER_TASK = 64


@njit(inline="always")
def _hash_uniform(seed, index):
    """`volume.hash_uniform` for one index."""
    mask = np.uint64(0xFFFFFFFF)
    x = (np.uint64(index) + np.uint64(seed) * np.uint64(0x9E3779B9)) & mask
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & mask
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & mask
    x = x ^ (x >> np.uint64(16))
    return np.float32(x >> np.uint64(8)) * np.float32(2**-24)


@njit(inline="always")
def _cell(position, size):
    """Lower voxel index along an axis and the fraction towards the next one."""
    index = min(max(int(position), 0), size - 2)
    return index, min(max(position - np.float32(index), ZERO), ONE)


@njit(inline="always")
def _corner_weights(fx, fy, fz):
    """The eight trilinear weights, x fastest, then y, then z."""
    yz11 = fy * fz
    yz10, yz01 = fy - yz11, fz - yz11
    yz00 = ONE - fy - yz01
    gx = ONE - fx
    return yz00 * gx, yz00 * fx, yz10 * gx, yz10 * fx, yz01 * gx, yz01 * fx, yz11 * gx, yz11 * fx


@njit(inline="always")
def _interpolate(v, k, sy, sz, w, c):
    """Channel c at the cell whose lowest corner starts at flat index k."""
    k0, k1, k2, k3 = k + c, k + sy + c, k + sz + c, k + sz + sy + c
    lower = w[0] * v[k0] + w[1] * v[k0 + 4] + w[2] * v[k1] + w[3] * v[k1 + 4]
    return lower + w[4] * v[k2] + w[5] * v[k2 + 4] + w[6] * v[k3] + w[7] * v[k3 + 4]


@njit(inline="always")
def _grid_ray(o, d, size):
    """Origin and direction along one axis in voxel units."""
    scale = HALF * np.float32(size - 1)
    return (o + ONE) * scale, d * scale


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def forward(volume, origins, directions, enter, leave, n, seed, stratified, stop, out):
    """Fill out (b, r, 6) with colour, occupancy, depth and the light left at the end of each ray."""
    b_count, d_size, h_size, w_size, _ = volume.shape
    r_count = origins.shape[1]
    flat = volume.reshape(-1)
    sy, sz = w_size * 4, h_size * w_size * 4
    chunks = (r_count + RAYS_PER_TASK - 1) // RAYS_PER_TASK
    for task in prange(b_count * chunks):
        b, first = task // chunks, (task % chunks) * RAYS_PER_TASK
        base = b * d_size * sz
        for r in range(first, min(first + RAYS_PER_TASK, r_count)):
            light, red, green, blue, occupancy, depth = ONE, ZERO, ZERO, ZERO, ZERO, ZERO
            t0, t1 = enter[b, r], leave[b, r]
            step = (t1 - t0) / np.float32(n)
            ox, dx = _grid_ray(origins[b, r, 0], directions[b, r, 0], w_size)
            oy, dy = _grid_ray(origins[b, r, 1], directions[b, r, 1], h_size)
            oz, dz = _grid_ray(origins[b, r, 2], directions[b, r, 2], d_size)
            samples = n if t1 > t0 else 0
            for i in range(samples):
                offset = _hash_uniform(seed, (b * r_count + r) * n + i) if stratified else HALF
                t = t0 + (np.float32(i) + offset) * step
                ix, fx = _cell(ox + t * dx, w_size)
                iy, fy = _cell(oy + t * dy, h_size)
                iz, fz = _cell(oz + t * dz, d_size)
                k = base + iz * sz + iy * sy + ix * 4
                w = _corner_weights(fx, fy, fz)
                density = _interpolate(flat, k, sy, sz, w, 0)
                if density != ZERO:
                    after = light * math.exp(-density * step)
                    weight = light - after
                    red += weight * _interpolate(flat, k, sy, sz, w, 1)
                    green += weight * _interpolate(flat, k, sy, sz, w, 2)
                    blue += weight * _interpolate(flat, k, sy, sz, w, 3)
                    occupancy += weight
                    depth += weight * t
                    light = after
                    if light < stop:
                        break
            out[b, r, 0], out[b, r, 1], out[b, r, 2] = red, green, blue
            out[b, r, 3], out[b, r, 4], out[b, r, 5] = occupancy, depth, light


@njit(inline="always")
def _scatter(grad, k, w, g0, g1, g2, g3):
    """Add w * (g0, g1, g2, g3) to the four channels of the voxel at flat index k."""
    grad[k] += w * g0
    grad[k + 1] += w * g1
    grad[k + 2] += w * g2
    grad[k + 3] += w * g3


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def backward(volume, origins, directions, enter, leave, n, seed, stratified, stop, out, grad_out, grad):
    """Add the volume's gradient into grad (p, b, d, h, w, 4): p partial sums that no two threads share."""
    b_count, d_size, h_size, w_size, _ = volume.shape
    r_count = origins.shape[1]
    parts = grad.shape[0]
    flat = volume.reshape(-1)
    sy, sz = w_size * 4, h_size * w_size * 4
    for task in prange(b_count * parts):
        b, part = task // parts, task % parts
        base = b * d_size * sz
        g = grad[part, b].reshape(-1)
        for r in range(part * r_count // parts, (part + 1) * r_count // parts):
            g_red, g_green, g_blue = grad_out[b, r, 0], grad_out[b, r, 1], grad_out[b, r, 2]
            g_occupancy, g_depth = grad_out[b, r, 3], grad_out[b, r, 4]
            later = g_red * out[b, r, 0] + g_green * out[b, r, 1] + g_blue * out[b, r, 2]
            later += g_occupancy * out[b, r, 3] + g_depth * out[b, r, 4]
            light = ONE
            t0, t1 = enter[b, r], leave[b, r]
            step = (t1 - t0) / np.float32(n)
            ox, dx = _grid_ray(origins[b, r, 0], directions[b, r, 0], w_size)
            oy, dy = _grid_ray(origins[b, r, 1], directions[b, r, 1], h_size)
            oz, dz = _grid_ray(origins[b, r, 2], directions[b, r, 2], d_size)
            samples = n if t1 > t0 else 0
            for i in range(samples):
                offset = _hash_uniform(seed, (b * r_count + r) * n + i) if stratified else HALF
                t = t0 + (np.float32(i) + offset) * step
                ix, fx = _cell(ox + t * dx, w_size)
                iy, fy = _cell(oy + t * dy, h_size)
                iz, fz = _cell(oz + t * dz, d_size)
                k = iz * sz + iy * sy + ix * 4
                w = _corner_weights(fx, fy, fz)
                density = _interpolate(flat, base + k, sy, sz, w, 0)
                score = g_occupancy + g_depth * t
                score += g_red * _interpolate(flat, base + k, sy, sz, w, 1)
                score += g_green * _interpolate(flat, base + k, sy, sz, w, 2)
                score += g_blue * _interpolate(flat, base + k, sy, sz, w, 3)
                k1, k2, k3 = k + sy, k + sz, k + sz + sy
                if density != ZERO:
                    after = light * math.exp(-density * step)
                    weight = light - after
                    later -= weight * score
                    g0 = step * (after * score - later)
                    g1, g2, g3 = weight * g_red, weight * g_green, weight * g_blue
                    _scatter(g, k, w[0], g0, g1, g2, g3)
                    _scatter(g, k + 4, w[1], g0, g1, g2, g3)
                    _scatter(g, k1, w[2], g0, g1, g2, g3)
                    _scatter(g, k1 + 4, w[3], g0, g1, g2, g3)
                    _scatter(g, k2, w[4], g0, g1, g2, g3)
                    _scatter(g, k2 + 4, w[5], g0, g1, g2, g3)
                    _scatter(g, k3, w[6], g0, g1, g2, g3)
                    _scatter(g, k3 + 4, w[7], g0, g1, g2, g3)
                    light = after
                    if light < stop:
                        break
                else:  # empty: no colour gradient, but the density still learns what it would have hidden
                    g0 = step * (light * score - later)
                    g[k] += w[0] * g0
                    g[k + 4] += w[1] * g0
                    g[k1] += w[2] * g0
                    g[k1 + 4] += w[3] * g0
                    g[k2] += w[4] * g0
                    g[k2 + 4] += w[5] * g0
                    g[k3] += w[6] * g0
                    g[k3 + 4] += w[7] * g0
