"""The fused renderer's CPU kernels: one march forward, one backward, compiled by numba.

A ray is walked front to back in blocks of samples that stay in the first-level cache; nothing is stored per sample
of the picture. The backward march recomputes what it needs: with L = sum_i w_i s_i and s_i = g_c . c_i + g_o + g_d t_i
for the incoming gradients (g_c, g_o, g_d) of Eq. 6, Eq. 7 and the depth,

    dL/dc_i = w_i g_c,    dL/dsigma_i = step (T_{i+1} s_i - sum_{j>i} w_j s_j),

and the sum over later samples is L (from the forward result) less what has been passed.

Volumes are (b, z, y, x, 4), so that two voxels which are neighbours in x are eight adjacent floats. numba compiles
scalars, and LLVM does not find this structure by itself; hence `Float8`, a value of eight floats (one AVX register,
two NEON ones): a trilinear fetch is four loads with multiply-adds, its transpose four load-add-stores.
"""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

# Products and sums may fuse, divisions become reciprocals; NaN and infinity keep their meaning, so that bad input
# stays visible, and sums keep their order.
FASTMATH = {"contract", "nsz", "arcp"}
ONE, HALF, ZERO = np.float32(1), np.float32(0.5), np.float32(0)
RAYS_PER_TASK = 64
SEGMENT, CELL = 8, 2  # samples that are skipped together; voxel spacings along a cell of the map that says so
BLOCK = 4 * SEGMENT  # samples marched together: long enough to hide latency, short enough to stop early


class Float8(types.Type):
    """Eight float32; `*`, `+` and `-` work lane by lane."""

    def __init__(self):
        super().__init__(name="Float8")


FLOAT8, VECTOR = Float8(), ir.VectorType(ir.FloatType(), 8)


@register_default(Float8)
class _Float8Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


def _lanewise(parameters, emit):
    """An intrinsic of Float8 arguments and result from a function that emits LLVM: builder, *arguments -> value."""

    @intrinsic
    def unary(typing, a):
        return FLOAT8(FLOAT8), lambda context, builder, signature, arguments: emit(builder, *arguments)

    @intrinsic
    def binary(typing, a, b):
        return FLOAT8(FLOAT8, FLOAT8), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return unary if parameters == 1 else binary


def _define_operator(symbol, instruction):
    apply = _lanewise(2, lambda builder, a, b: getattr(builder, instruction)(a, b, flags=tuple(FASTMATH)))

    @overload(symbol)
    def choose(a, b):
        if isinstance(a, Float8) and isinstance(b, Float8):
            return lambda a, b: apply(a, b)


_define_operator(operator.mul, "fmul")
_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")


def _llvm_function(name):
    def emit(builder, a):
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR]), name)
        return builder.call(function, [a])

    return _lanewise(1, emit)


def _emit_exp2(builder, n):
    integers = ir.VectorType(ir.IntType(32), 8)
    biased = builder.add(builder.fptosi(n, integers), ir.Constant(integers, [127] * 8))
    return builder.bitcast(builder.shl(biased, ir.Constant(integers, [23] * 8)), VECTOR)


trunc8 = _llvm_function("llvm.trunc.v8f32")
round8 = _llvm_function("llvm.rint.v8f32")
whole_exp2 = _lanewise(1, _emit_exp2)  # 2^n for whole n in [-126, 127]
# The smaller and the larger of two, lane by lane; b where a is NaN, which keeps a bad position inside the volume.
less8 = _lanewise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
more8 = _lanewise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def pack8(typing, *lanes):
    """Float8 of eight float32."""

    def generate(context, builder, signature, arguments):
        vector = ir.Constant(VECTOR, ir.Undefined)
        for lane, value in enumerate(cgutils.unpack_tuple(builder, arguments[0])):
            vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), lane))
        return vector

    return FLOAT8(types.StarArgTuple([types.float32] * 8)), generate


@intrinsic
def lane8(typing, vector, lane):
    """One lane of a Float8 as a float32."""
    return types.float32(FLOAT8, types.int32), lambda context, builder, signature, arguments: builder.extract_element(
        *arguments
    )


def _address(context, builder, array_type, array, index):
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), VECTOR.as_pointer())


@intrinsic
def load8(typing, array, index):
    """array[index : index + 8] of a contiguous float32 array, unchecked."""

    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=4)

    return FLOAT8(array, types.intp), generate


@intrinsic
def store8(typing, array, index, value):
    """array[index : index + 8] = value, unchecked."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOAT8), generate


@njit(inline="always")
def splat8(x):
    return pack8(x, x, x, x, x, x, x, x)


@njit(inline="always")
def exp8(x):
    """exp(x) for x <= 0 within 2 ulp (exp(-87) below -87): 2^n times the Cephes polynomial on [-ln 2 / 2, ln 2 / 2]."""
    x = more8(splat8(np.float32(-87)), x)
    n = round8(x * splat8(np.float32(1.4426950408889634)))
    r = x - n * splat8(np.float32(0.693359375)) + n * splat8(np.float32(2.12194440e-4))
    p = splat8(np.float32(1.9875691500e-4))
    p = p * r + splat8(np.float32(1.3981999507e-3))
    p = p * r + splat8(np.float32(8.3334519073e-3))
    p = p * r + splat8(np.float32(4.1665795894e-2))
    p = p * r + splat8(np.float32(1.6666665459e-1))
    p = p * r + splat8(np.float32(5.0000001201e-1))
    return (p * (r * r) + (r + splat8(ONE))) * whole_exp2(n)


@njit(inline="always")
def hash_uniform(seed, index):
    """`volume.hash_uniform` for one index."""
    mask = np.uint64(0xFFFFFFFF)
    x = (np.uint64(index) + np.uint64(seed) * np.uint64(0x9E3779B9)) & mask
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & mask
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & mask
    x = x ^ (x >> np.uint64(16))
    return np.float32(x >> np.uint64(8)) * np.float32(2**-24)


@njit(inline="always")
def _sample_depth(i, t0, step, seed, stratified, first):
    """Depth of sample i: the centre of its bin, or a random point in it; `first` numbers the ray's samples."""
    offset = hash_uniform(seed, first + i) if stratified else HALF
    return t0 + (np.float32(i) + offset) * step


@njit(inline="always")
def _grid_ray(origin, direction, shape):
    """A ray in voxel units as (x, y, z, 0) twice: origin, direction, last position inside."""
    lx, ly, lz = np.float32(shape[3] - 1), np.float32(shape[2] - 1), np.float32(shape[1] - 1)
    ox, oy, oz = (origin[0] + ONE) * (HALF * lx), (origin[1] + ONE) * (HALF * ly), (origin[2] + ONE) * (HALF * lz)
    dx, dy, dz = direction[0] * (HALF * lx), direction[1] * (HALF * ly), direction[2] * (HALF * lz)
    return (
        pack8(ox, oy, oz, ZERO, ox, oy, oz, ZERO),
        pack8(dx, dy, dz, ZERO, dx, dy, dz, ZERO),
        pack8(lx, ly, lz, ONE, lx, ly, lz, ONE),
    )


@njit(inline="always")
def _cell(position, last, sy, sz):
    """Flat index of a cell's lowest corner, weights of its (lower, upper) x and of its four (y, z) edges."""
    position = less8(more8(position, splat8(ZERO)), last)
    whole = less8(trunc8(position), last - splat8(ONE))
    fraction = position - whole
    index = int(lane8(whole, 2)) * sz + int(lane8(whole, 1)) * sy + int(lane8(whole, 0)) * 4
    lower = pack8(ONE, ONE, ONE, ONE, ZERO, ZERO, ZERO, ZERO)
    upwards = pack8(-ONE, -ONE, -ONE, -ONE, ONE, ONE, ONE, ONE)
    wx = lower + upwards * splat8(lane8(fraction, 0))
    fy, fz = splat8(lane8(fraction, 1)), splat8(lane8(fraction, 2))
    w11 = fy * fz
    w10, w01 = fy - w11, fz - w11
    return index, wx, splat8(ONE) - fy - w01, w10, w01, w11


@njit(inline="always")
def _fetch(flat, k, sy, sz, wx, w00, w10, w01, w11):
    """Trilinear (density, r, g, b) at the cell of flat index k, as two terms: those of its lower and upper x."""
    lower_z = w00 * load8(flat, k) + w10 * load8(flat, k + sy)
    return (lower_z + w01 * load8(flat, k + sz) + w11 * load8(flat, k + sz + sy)) * wx


@njit(inline="always")
def _is_occupied(occupied, b, position, last):
    """Entry of an `occupancy.occupied_cells` map (b, z, y, x) at a position in voxel units."""
    whole = trunc8(less8(more8(position, splat8(ZERO)), last - splat8(ONE)) * splat8(ONE / np.float32(CELL)))
    return occupied[b, int(lane8(whole, 2)), int(lane8(whole, 1)), int(lane8(whole, 0))]


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def forward(volume, origins, directions, enter, leave, n, seed, stratified, stop, occupied, skipping, out):
    """Fill out (b, r, 6) with colour, occupancy, depth and the light left at the end of each ray.

    If `skipping`, a ray leaves out the segments of SEGMENT samples around whose middle `occupied` (b, z, y, x) is 0.
    """
    shape, r_count = volume.shape, origins.shape[1]
    flat = volume.reshape(-1)
    sy, sz = shape[3] * 4, shape[2] * shape[3] * 4
    segments = (n + SEGMENT - 1) // SEGMENT
    chunks = (r_count + RAYS_PER_TASK - 1) // RAYS_PER_TASK
    for task in prange(shape[0] * chunks):
        b, start = task // chunks, (task % chunks) * RAYS_PER_TASK
        base = b * shape[1] * sz
        values, depths = np.empty(8 * BLOCK, np.float32), np.empty(BLOCK, np.float32)
        passes, firsts = np.zeros(BLOCK, np.float32), np.empty(segments + 1, np.int64)
        for r in range(start, min(start + RAYS_PER_TASK, r_count)):
            t0, t1 = enter[b, r], leave[b, r]
            step = (t1 - t0) / np.float32(n)
            origin, direction, last = _grid_ray(origins[b, r], directions[b, r], shape)
            total, light, occupancy, depth = splat8(ZERO), ONE, ZERO, ZERO
            wanted = 0
            for i in range(0, n if t1 > t0 else 0, SEGMENT):
                firsts[wanted] = i
                middle = origin + direction * splat8(t0 + np.float32(i + SEGMENT // 2) * step)
                wanted += _is_occupied(occupied, b, middle, last) if skipping else 1
            q = 0
            while q < wanted and light >= stop:
                count, empty = 0, True
                while q < wanted and count < BLOCK:
                    for i in range(firsts[q], min(firsts[q] + SEGMENT, n)):
                        t = _sample_depth(i, t0, step, seed, stratified, (b * r_count + r) * n)
                        k, wx, w00, w10, w01, w11 = _cell(origin + direction * splat8(t), last, sy, sz)
                        pair = _fetch(flat, base + k, sy, sz, wx, w00, w10, w01, w11)
                        density = lane8(pair, 0) + lane8(pair, 4)
                        empty &= density == ZERO
                        store8(values, 8 * count, pair)
                        depths[count], passes[count] = t, -density * step
                        count += 1
                    q += 1
                if empty:
                    continue
                for j in range(0, count, 8):
                    store8(passes, j, exp8(load8(passes, j)))
                for j in range(count):
                    after = light * passes[j]
                    weight = light - after
                    total = total + splat8(weight) * load8(values, 8 * j)
                    occupancy += weight
                    depth += weight * depths[j]
                    light = after
                    if light < stop:
                        break
            for c in range(3):
                out[b, r, c] = lane8(total, c + 1) + lane8(total, c + 5)
            out[b, r, 3], out[b, r, 4], out[b, r, 5] = occupancy, depth, light


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def backward(volume, origins, directions, enter, leave, n, seed, stratified, stop, out, grad_out, grad):
    """Add the volume's gradient into grad (p, b, d, h, w, 4): p partial sums that no two threads share."""
    shape, r_count, parts = volume.shape, origins.shape[1], grad.shape[0]
    flat = volume.reshape(-1)
    sy, sz = shape[3] * 4, shape[2] * shape[3] * 4
    for task in prange(shape[0] * parts):
        b, part = task // parts, task % parts
        base = b * shape[1] * sz
        g = grad[part, b].reshape(-1)
        corners, weights = np.empty(BLOCK, np.int64), np.empty(40 * BLOCK, np.float32)
        scores, passes = np.empty(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
        for r in range(part * r_count // parts, (part + 1) * r_count // parts):
            g_red, g_green, g_blue = grad_out[b, r, 0], grad_out[b, r, 1], grad_out[b, r, 2]
            g_occupancy, g_depth = grad_out[b, r, 3], grad_out[b, r, 4]
            later = g_red * out[b, r, 0] + g_green * out[b, r, 1] + g_blue * out[b, r, 2]
            later += g_occupancy * out[b, r, 3] + g_depth * out[b, r, 4]
            t0, t1 = enter[b, r], leave[b, r]
            step = (t1 - t0) / np.float32(n)
            origin, direction, last = _grid_ray(origins[b, r], directions[b, r], shape)
            light = ONE
            for i in range(0, n if t1 > t0 else 0, BLOCK):
                count = min(BLOCK, n - i)
                for j in range(count):
                    t = _sample_depth(i + j, t0, step, seed, stratified, (b * r_count + r) * n)
                    k, wx, w00, w10, w01, w11 = _cell(origin + direction * splat8(t), last, sy, sz)
                    pair = _fetch(flat, base + k, sy, sz, wx, w00, w10, w01, w11)
                    score = g_occupancy + g_depth * t + g_red * (lane8(pair, 1) + lane8(pair, 5))
                    score += g_green * (lane8(pair, 2) + lane8(pair, 6)) + g_blue * (lane8(pair, 3) + lane8(pair, 7))
                    corners[j], scores[j], passes[j] = k, score, -(lane8(pair, 0) + lane8(pair, 4)) * step
                    store8(weights, 40 * j, wx)
                    store8(weights, 40 * j + 8, w00)
                    store8(weights, 40 * j + 16, w10)
                    store8(weights, 40 * j + 24, w01)
                    store8(weights, 40 * j + 32, w11)
                for j in range(0, count, 8):
                    store8(passes, j, exp8(load8(passes, j)))
                for j in range(count):
                    k, score = corners[j], scores[j]
                    after = light * passes[j]
                    weight = light - after
                    later -= weight * score
                    g0 = step * (after * score - later)
                    g1, g2, g3 = weight * g_red, weight * g_green, weight * g_blue
                    push = pack8(g0, g1, g2, g3, g0, g1, g2, g3) * load8(weights, 40 * j)
                    store8(g, k, load8(g, k) + load8(weights, 40 * j + 8) * push)
                    store8(g, k + sy, load8(g, k + sy) + load8(weights, 40 * j + 16) * push)
                    store8(g, k + sz, load8(g, k + sz) + load8(weights, 40 * j + 24) * push)
                    store8(g, k + sz + sy, load8(g, k + sz + sy) + load8(weights, 40 * j + 32) * push)
                    light = after
                    if light < stop:
                        break
                if light < stop:
                    break
