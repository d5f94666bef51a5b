"""The fused renderer's CPU kernels: one march forward, one backward, compiled by numba.

A ray is walked front to back in segments of eight samples, and nothing is stored per sample of the picture. The
backward march recomputes what it needs: with L = sum_i w_i s_i and s_i = g_c . c_i + g_o + g_d t_i for the incoming
gradients (g_c, g_o, g_d) of Eq. 6, Eq. 7 and the depth,

    dL/dc_i = w_i g_c,    dL/dsigma_i = step (T_{i+1} s_i - sum_{j>i} w_j s_j),

and the sum over later samples is L (from the forward result) less what has been passed.

Volumes are (b, z, y, x, 4), so that two voxels which are neighbours in x are eight adjacent floats. Places, weights
and absorption of a segment's samples are computed side by side, a lane each (`simd`). A trilinear fetch is four loads
with multiply-adds, its transpose four load-add-stores. Adding up what consecutive samples give to one cell before it is
stored gains nothing at 64^3 voxels and 128 samples, and loses a tenth at 32^3 and 48.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .kernels.occupancy import CELL
from .kernels.simd import (
    FASTMATH,
    HALF,
    ONE,
    ZERO,
    behind8,
    blues8,
    densities8,
    exp8,
    greens8,
    lane8,
    less8,
    load8,
    more8,
    pack8,
    products8,
    reds8,
    splat8,
    store8,
    store_cells,
    sums8,
    total8,
    trunc8,
    uniform8,
    where_not_less8,
)

RAYS_PER_TASK = 64
SEGMENT = 8  # samples marched, or skipped, together
LANES = tuple(np.float32(k) for k in range(8))
PARALLEL = np.float32(1e-9)  # a ray with less of a direction never crosses the faces across that axis


@njit(inline="always")
def _clip_axis(origin, direction, enter, leave):
    """Depths of a ray inside the cube, narrowed by the two faces across an axis; enter = inf where it misses them."""
    if abs(direction) < PARALLEL:
        return (np.float32(np.inf) if abs(origin) > ONE else enter), leave
    inverse = ONE / direction
    t0, t1 = (-ONE - origin) * inverse, (ONE - origin) * inverse
    return max(enter, min(t0, t1)), min(leave, max(t0, t1))


@njit(inline="always")
def _depths_inside(origin, direction, near, far):
    """`rays.clip_to_cube` of one ray; leave <= enter where it misses."""
    enter, leave = _clip_axis(origin[0], direction[0], near, far)
    enter, leave = _clip_axis(origin[1], direction[1], enter, leave)
    return _clip_axis(origin[2], direction[2], enter, leave)


@njit(inline="always")
def _in_voxels(vector, shape, shift):
    """x, y and z of a direction (shift 0) or a place (shift 1) in voxel units."""
    sx, sy, sz = np.float32(shape[3] - 1), np.float32(shape[2] - 1), np.float32(shape[1] - 1)
    return (vector[0] + shift) * (HALF * sx), (vector[1] + shift) * (HALF * sy), (vector[2] + shift) * (HALF * sz)


@njit(inline="always")
def _depths8(i, t0, step, seed, stratified, first):
    """Depths of the samples from i on: centres of their bins, or random points; `first` numbers the ray's samples."""
    bins = splat8(np.float32(i)) + pack8(*LANES)
    if stratified:
        term = (np.uint64(first + i) + np.uint64(seed) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
        return splat8(t0) + (bins + uniform8(np.uint32(term))) * splat8(step)
    return splat8(t0) + (bins + splat8(HALF)) * splat8(step)


@njit(inline="always")
def _axis8(origin, direction, t, size):
    """Lower voxel indices along an axis and the fractions towards the next ones."""
    last = np.float32(size - 1)
    position = less8(more8(splat8(origin) + splat8(direction) * t, splat8(ZERO)), splat8(last))
    whole = less8(trunc8(position), splat8(last - ONE))
    return whole, position - whole


@njit(inline="always")
def _locate8(t, origin, direction, shape, cells, weights):
    """Fill in the cells of eight samples (flat index of the lowest voxel) and five weights of each.

    weights (5, 8): the fraction along x, then those of the four edges (y, z) = (0, 0), (1, 0), (0, 1), (1, 1).
    """
    ix, fx = _axis8(origin[0], direction[0], t, shape[3])
    iy, fy = _axis8(origin[1], direction[1], t, shape[2])
    iz, fz = _axis8(origin[2], direction[2], t, shape[1])
    store_cells(ix, iy, iz, np.int32(shape[3]), np.int32(shape[2]), cells)
    w11 = fy * fz
    store8(weights, 0, fx)
    store8(weights, 8, splat8(ONE) - fy - fz + w11)
    store8(weights, 16, fy - w11)
    store8(weights, 24, fz - w11)
    store8(weights, 32, w11)


@njit(inline="always")
def _both_x(weights, j):
    """Weights of a cell's lower and upper x: four lanes each."""
    lower = pack8(ONE, ONE, ONE, ONE, ZERO, ZERO, ZERO, ZERO)
    return lower + pack8(-ONE, -ONE, -ONE, -ONE, ONE, ONE, ONE, ONE) * splat8(weights[j])


@njit(inline="always")
def _fetch(flat, k, sy, sz, weights, j):
    """Trilinear (density, r, g, b) at the cell of flat index k, as two terms: those of its lower and upper x."""
    lower_z = splat8(weights[8 + j]) * load8(flat, k) + splat8(weights[16 + j]) * load8(flat, k + sy)
    upper_z = splat8(weights[24 + j]) * load8(flat, k + sz) + splat8(weights[32 + j]) * load8(flat, k + sz + sy)
    return (lower_z + upper_z) * _both_x(weights, j)


@njit(forceinline=True)
def _fetch8(flat, first, cells, sy, sz, weights):
    """`_fetch` for eight samples, in cells counted from voxel `first` on."""
    return (
        _fetch(flat, 4 * (first + cells[0]), sy, sz, weights, 0),
        _fetch(flat, 4 * (first + cells[1]), sy, sz, weights, 1),
        _fetch(flat, 4 * (first + cells[2]), sy, sz, weights, 2),
        _fetch(flat, 4 * (first + cells[3]), sy, sz, weights, 3),
        _fetch(flat, 4 * (first + cells[4]), sy, sz, weights, 4),
        _fetch(flat, 4 * (first + cells[5]), sy, sz, weights, 5),
        _fetch(flat, 4 * (first + cells[6]), sy, sz, weights, 6),
        _fetch(flat, 4 * (first + cells[7]), sy, sz, weights, 7),
    )


@njit(inline="always")
def _near(position, size):
    return min(int(max(position, ZERO)), size - 2) // CELL


@njit(inline="always")
def _is_near(near, b, o, d, t, shape):
    """Entry of a map `near` (`occupancy.empty_space`) at depth t of a ray in voxel units."""
    z, y, x = _near(o[2] + d[2] * t, shape[1]), _near(o[1] + d[1] * t, shape[2]), _near(o[0] + d[0] * t, shape[3])
    return near[b, z, y, x] != 0


@njit(inline="always")
def _any_solid(solid, first, cells):
    """Whether any of eight samples lies in a cell that is not empty."""
    found = solid[first + cells[0]]
    for j in range(1, SEGMENT):
        found |= solid[first + cells[j]]
    return found != 0


@njit(inline="always")
def _absorb(density, step, light, count, stop):
    """Light after each of eight samples, and the weights of those that at least `stop` of the light reaches.

    Samples from `count` on are not there.
    """
    if count < SEGMENT:
        density = where_not_less8(density, splat8(np.float32(count - 1)), pack8(*LANES))
    passing = exp8(density * splat8(-step))
    after = splat8(light) * products8(passing)
    before = behind8(after, splat8(light))
    weights = before * (splat8(ONE) - passing)  # not a difference of products: nothing where the density is 0
    return after, (where_not_less8(weights, before, splat8(stop)) if stop > ZERO else weights)


@njit(inline="always")
def _light_left(after, stop, passed):
    """What is left behind eight samples: behind the first one that leaves less than `stop`, or behind the last."""
    light = lane8(after, 7)
    if light < stop:
        store8(passed, 0, after)
        for j in range(SEGMENT):
            if passed[j] < stop:
                return passed[j]
    return light


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def forward(
    volume, origins, directions, near, far, n, seed, stratified, stop, solid, close, skipping, colour, seen, far_off
):
    """Fill colour (b, r, 3), occupancy `seen` and depth `far_off` (b, r).

    If `skipping`, segments of a ray are left out that cross no cell of which `solid` is 1, or that have 0 in `close`
    around their middle (`occupancy.empty_space`).
    """
    shape, r_count = volume.shape, origins.shape[1]
    flat, full = volume.reshape(-1), solid.reshape(-1)
    sy, sz = shape[3] * 4, shape[2] * shape[3] * 4
    chunks = (r_count + RAYS_PER_TASK - 1) // RAYS_PER_TASK
    for task in prange(shape[0] * chunks):
        b, start = task // chunks, (task % chunks) * RAYS_PER_TASK
        voxels = b * shape[1] * shape[2] * shape[3]
        cells, weights, passed = np.empty(8, np.int32), np.empty(40, np.float32), np.empty(8, np.float32)
        for r in range(start, min(start + RAYS_PER_TASK, r_count)):
            t0, t1 = _depths_inside(origins[b, r], directions[b, r], near, far)
            step = (t1 - t0) / np.float32(n)
            origin, direction = _in_voxels(origins[b, r], shape, ONE), _in_voxels(directions[b, r], shape, ZERO)
            light = ONE
            red = green = blue = occupancy = depth = splat8(ZERO)
            for i in range(0, n if t1 > t0 else 0, SEGMENT):
                if skipping:
                    middle = t0 + np.float32(i + SEGMENT // 2) * step
                    if not _is_near(close, b, origin, direction, middle, shape):
                        continue
                t = _depths8(i, t0, step, seed, stratified, (b * r_count + r) * n)
                _locate8(t, origin, direction, shape, cells, weights)
                if skipping and not _any_solid(full, voxels, cells):
                    continue
                v = _fetch8(flat, voxels, cells, sy, sz, weights)
                after, w = _absorb(densities8(*v), step, light, n - i, stop)
                red, green, blue = red + w * reds8(*v), green + w * greens8(*v), blue + w * blues8(*v)
                occupancy, depth = occupancy + w, depth + w * t
                light = _light_left(after, stop, passed)
                if light < stop:
                    break
            colour[b, r, 0], colour[b, r, 1], colour[b, r, 2] = total8(red), total8(green), total8(blue)
            seen[b, r], far_off[b, r] = total8(occupancy), total8(depth)


@njit(inline="always")
def _add_to_cell(g, k, sy, sz, weights, j, values):
    """The transpose of `_fetch`: values (density, r, g, b) twice."""
    push = values * _both_x(weights, j)
    store8(g, k, load8(g, k) + splat8(weights[8 + j]) * push)
    store8(g, k + sy, load8(g, k + sy) + splat8(weights[16 + j]) * push)
    store8(g, k + sz, load8(g, k + sz) + splat8(weights[24 + j]) * push)
    store8(g, k + sz + sy, load8(g, k + sz + sy) + splat8(weights[32 + j]) * push)


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def backward(
    volume, origins, directions, near, far, n, seed, stratified, stop, solid, close, skipping, out, grad_out, grad
):
    """Add the volume's gradient into grad (p, b, d, h, w, 4): p partial sums that no two threads share.

    out and grad_out are the results of `forward` and their gradients: colour, occupancy, depth.
    If `skipping`, samples in cells that are not `solid` add nothing: the gradient of a density of 0 is incomplete.
    """
    shape, r_count, parts = volume.shape, origins.shape[1], grad.shape[0]
    flat, full = volume.reshape(-1), solid.reshape(-1)
    sy, sz = shape[3] * 4, shape[2] * shape[3] * 4
    of_density = pack8(ONE, ZERO, ZERO, ZERO, ONE, ZERO, ZERO, ZERO)
    for task in prange(shape[0] * parts):
        b, part = task // parts, task % parts
        voxels = b * shape[1] * shape[2] * shape[3]
        g = grad[part, b].reshape(-1)
        cells, weights, passed = np.empty(8, np.int32), np.empty(40, np.float32), np.empty(8, np.float32)
        pushes = np.empty(16, np.float32)
        for r in range(part * r_count // parts, (part + 1) * r_count // parts):
            g_red, g_green, g_blue = grad_out[0][b, r, 0], grad_out[0][b, r, 1], grad_out[0][b, r, 2]
            g_occupancy, g_depth = grad_out[1][b, r], grad_out[2][b, r]
            of_colour = pack8(ZERO, g_red, g_green, g_blue, ZERO, g_red, g_green, g_blue)
            later = g_red * out[0][b, r, 0] + g_green * out[0][b, r, 1] + g_blue * out[0][b, r, 2]
            later += g_occupancy * out[1][b, r] + g_depth * out[2][b, r]
            t0, t1 = _depths_inside(origins[b, r], directions[b, r], near, far)
            step = (t1 - t0) / np.float32(n)
            origin, direction = _in_voxels(origins[b, r], shape, ONE), _in_voxels(directions[b, r], shape, ZERO)
            light = ONE
            for i in range(0, n if t1 > t0 else 0, SEGMENT):
                if skipping:
                    middle = t0 + np.float32(i + SEGMENT // 2) * step
                    if not _is_near(close, b, origin, direction, middle, shape):
                        continue
                t = _depths8(i, t0, step, seed, stratified, (b * r_count + r) * n)
                _locate8(t, origin, direction, shape, cells, weights)
                if skipping and not _any_solid(full, voxels, cells):
                    continue
                v = _fetch8(flat, voxels, cells, sy, sz, weights)
                score = splat8(g_occupancy) + splat8(g_depth) * t + splat8(g_red) * reds8(*v)
                score = score + splat8(g_green) * greens8(*v) + splat8(g_blue) * blues8(*v)
                after, w = _absorb(densities8(*v), step, light, n - i, stop)
                left = splat8(later) - sums8(w * score)
                later = lane8(left, 7)
                store8(pushes, 0, w)
                of_sigma = splat8(step) * (after * score - left)
                if stop > ZERO:
                    of_sigma = where_not_less8(of_sigma, behind8(after, splat8(light)), splat8(stop))
                store8(pushes, 8, of_sigma)
                for j in range(min(SEGMENT, n - i)):
                    if skipping and full[voxels + cells[j]] == 0:
                        continue
                    push = splat8(pushes[j]) * of_colour + splat8(pushes[8 + j]) * of_density
                    _add_to_cell(g, 4 * cells[j], sy, sz, weights, j, push)
                light = _light_left(after, stop, passed)
                if light < stop:
                    break
