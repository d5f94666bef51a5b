"""Rays of the CUDA kernels: from cameras or from origins and directions, cut to the cube, with depths of samples."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _hash_uniform(seed_term, index):
    """`reference.hash_uniform` of int64 indices; seed_term is seed * 0x9E3779B9 mod 2^32."""
    x = (index + seed_term).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def _clip_axis(origin, direction, enter, leave):
    """Depths of a ray inside the cube, narrowed by the two faces across an axis; nothing is left where it misses."""
    along = tl.abs(direction) < 1e-9
    inverse = 1.0 / tl.where(along, 1.0, direction)
    t0, t1 = (-1 - origin) * inverse, (1 - origin) * inverse
    first, last = tl.minimum(t0, t1), tl.maximum(t0, t1)
    misses = along & (tl.abs(origin) > 1)
    enter = tl.where(misses, float("inf"), tl.where(along, enter, tl.maximum(enter, first)))
    return enter, tl.where(along, leave, tl.minimum(leave, last))


@triton.jit
def _camera_ray(cameras, lenses, camera, pixel, width, exists):
    """Origin and unit direction through a pixel's centre, of world_to_camera (3, 4) and intrinsics (3, 3)."""
    e, k = cameras + camera * 12, lenses + camera * 9
    u, v = (pixel % width).to(tl.float32) + 0.5, (pixel // width).to(tl.float32) + 0.5
    a, b, c = tl.load(k, exists, 1.0), tl.load(k + 1, exists, 0.0), tl.load(k + 2, exists, 0.0)
    d, f, g = tl.load(k + 3, exists, 0.0), tl.load(k + 4, exists, 1.0), tl.load(k + 5, exists, 0.0)
    h, i, j = tl.load(k + 6, exists, 0.0), tl.load(k + 7, exists, 0.0), tl.load(k + 8, exists, 1.0)
    # (u, v, 1) under the adjugate of the intrinsics, over their determinant
    determinant = a * (f * j - g * i) - b * (d * j - g * h) + c * (d * i - f * h)
    x = ((f * j - g * i) * u + (c * i - b * j) * v + (b * g - c * f)) / determinant
    y = ((g * h - d * j) * u + (a * j - c * h) * v + (c * d - a * g)) / determinant
    z = ((d * i - f * h) * u + (b * h - a * i) * v + (a * f - b * d)) / determinant
    r00, r01, r02 = tl.load(e, exists, 1.0), tl.load(e + 1, exists, 0.0), tl.load(e + 2, exists, 0.0)
    r10, r11, r12 = tl.load(e + 4, exists, 0.0), tl.load(e + 5, exists, 1.0), tl.load(e + 6, exists, 0.0)
    r20, r21, r22 = tl.load(e + 8, exists, 0.0), tl.load(e + 9, exists, 0.0), tl.load(e + 10, exists, 1.0)
    tx, ty, tz = tl.load(e + 3, exists, 0.0), tl.load(e + 7, exists, 0.0), tl.load(e + 11, exists, 0.0)
    dx, dy, dz = r00 * x + r10 * y + r20 * z, r01 * x + r11 * y + r21 * z, r02 * x + r12 * y + r22 * z
    length = 1.0 / tl.sqrt(dx * dx + dy * dy + dz * dz)
    ox, oy, oz = -(r00 * tx + r10 * ty + r20 * tz), -(r01 * tx + r11 * ty + r21 * tz), -(r02 * tx + r12 * ty + r22 * tz)
    return ox, oy, oz, dx * length, dy * length, dz * length


@triton.jit
def cut_ray(origins, directions, ray, exists, near, far, area, width, n, d_size, h_size, w_size, CAMERAS: tl.constexpr):
    """A ray in voxel units, its depth of entry and its step; the step is 0 where there is nothing to march."""
    if CAMERAS:
        ox, oy, oz, dx, dy, dz = _camera_ray(origins, directions, ray // area, ray % area, width, exists)
    else:
        o, d = origins + ray * 3, directions + ray * 3
        ox, oy, oz = tl.load(o, exists, 0.0), tl.load(o + 1, exists, 0.0), tl.load(o + 2, exists, 0.0)
        dx, dy, dz = tl.load(d, exists, 0.0), tl.load(d + 1, exists, 0.0), tl.load(d + 2, exists, 0.0)
    enter, leave = tl.zeros_like(ox) + near, tl.zeros_like(ox) + far
    enter, leave = _clip_axis(ox, dx, enter, leave)
    enter, leave = _clip_axis(oy, dy, enter, leave)
    enter, leave = _clip_axis(oz, dz, enter, leave)
    step = tl.where(exists & (leave > enter), (leave - enter) / n, 0.0)
    enter = tl.where(step > 0, enter, 0.0)
    sx, sy, sz = 0.5 * (w_size - 1), 0.5 * (h_size - 1), 0.5 * (d_size - 1)
    return ((ox + 1) * sx, (oy + 1) * sy, (oz + 1) * sz, dx * sx, dy * sy, dz * sz), enter, step


@triton.jit
def depth_of(i, t0, step, seed_term, first, STRATIFIED: tl.constexpr):
    """Depth of sample i: the centre of its bin, or a random point in it; `first` numbers a ray's samples."""
    offset = tl.zeros_like(t0) + 0.5
    if STRATIFIED:
        offset = _hash_uniform(seed_term, first + i)
    return t0 + (i + offset) * step
