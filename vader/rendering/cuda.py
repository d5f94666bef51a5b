"""The fused renderer's CUDA kernels, written in Triton: the marches of `cpu`, a thread per ray.

Volumes are (b, z, y, x, 4) in float32, float16 or bfloat16: a thread reads the four channels of a voxel as one
vector, keeps its ray in registers and works in float32. The backward march adds into one float32 gradient per object
with atomics, so the order of those sums, and with it their last bits, varies from run to run.

Notation as in `cpu`. In Triton's interpreter (TRITON_INTERPRET=1) the kernels run on CPU tensors as well.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

RAYS = 32  # rays per program: one warp, which stops as soon as none of its rays has light left


@triton.jit
def _hash_uniform(seed_term, index):
    """`volume.hash_uniform` of int64 indices; seed_term is seed * 0x9E3779B9 mod 2^32."""
    x = (index + seed_term).to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def _axis(origin, direction, t, size):
    """Lower voxel index along an axis and the fraction towards the next one."""
    scale = 0.5 * (size - 1)
    position = tl.minimum(tl.maximum((origin + 1) * scale + t * (direction * scale), 0.0), size - 1.0)
    index = tl.minimum(position.to(tl.int32), size - 2)
    return index, position - index.to(tl.float32)


@triton.jit
def _locate(ray, t, d_size, h_size, w_size):
    """Flat voxel index of the lowest corner of a cell and the fractions along x, y and z."""
    ix, fx = _axis(ray[0], ray[3], t, w_size)
    iy, fy = _axis(ray[1], ray[4], t, h_size)
    iz, fz = _axis(ray[2], ray[5], t, d_size)
    return (iz * h_size + iy) * w_size + ix, fx, fy, fz


@triton.jit
def _add_voxel(values, volume, index, weight, active):
    """values (rays, 4) plus the four channels of a voxel times a weight."""
    pointers = volume + index[:, None] * 4 + tl.arange(0, 4)[None, :]
    voxel = tl.load(pointers, mask=active[:, None], other=0.0).to(tl.float32)
    return tl.fma(voxel, tl.broadcast_to(weight[:, None], voxel.shape), values)


@triton.jit
def _add_to_voxel(grad, index, weight, values, active):
    """The transpose of `_add_voxel`."""
    pointers = grad + index[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.atomic_add(pointers, values * weight[:, None], mask=active[:, None], sem="relaxed")


@triton.jit
def _fetch(volume, k, fx, fy, fz, h_size, w_size, active):
    """Trilinear density, red, green and blue, (rays,) each."""
    row, plane = w_size, h_size * w_size
    gx, gy, gz = 1 - fx, 1 - fy, 1 - fz
    values = tl.zeros((k.shape[0], 4), tl.float32)
    values = _add_voxel(values, volume, k, gx * gy * gz, active)
    values = _add_voxel(values, volume, k + 1, fx * gy * gz, active)
    values = _add_voxel(values, volume, k + row, gx * fy * gz, active)
    values = _add_voxel(values, volume, k + row + 1, fx * fy * gz, active)
    k += plane
    values = _add_voxel(values, volume, k, gx * gy * fz, active)
    values = _add_voxel(values, volume, k + 1, fx * gy * fz, active)
    values = _add_voxel(values, volume, k + row, gx * fy * fz, active)
    values = _add_voxel(values, volume, k + row + 1, fx * fy * fz, active)
    density_green, red_blue = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
    density, green = tl.split(density_green)
    red, blue = tl.split(red_blue)
    return density, red, green, blue


@triton.jit
def _scatter(grad, k, fx, fy, fz, density, red, green, blue, h_size, w_size, active):
    """The transpose of `_fetch`."""
    values = tl.reshape(tl.join(tl.join(density, green), tl.join(red, blue)), (density.shape[0], 4))
    row, plane = w_size, h_size * w_size
    gx, gy, gz = 1 - fx, 1 - fy, 1 - fz
    _add_to_voxel(grad, k, gx * gy * gz, values, active)
    _add_to_voxel(grad, k + 1, fx * gy * gz, values, active)
    _add_to_voxel(grad, k + row, gx * fy * gz, values, active)
    _add_to_voxel(grad, k + row + 1, fx * fy * gz, values, active)
    k += plane
    _add_to_voxel(grad, k, gx * gy * fz, values, active)
    _add_to_voxel(grad, k + 1, fx * gy * fz, values, active)
    _add_to_voxel(grad, k + row, gx * fy * fz, values, active)
    _add_to_voxel(grad, k + row + 1, fx * fy * fz, values, active)


@triton.jit
def _load_ray(origins, directions, enter, leave, ray, exists, n):
    """Origin and direction (six numbers), depth of entry, step; the step is 0 where there is nothing to march."""
    o, d = origins + ray * 3, directions + ray * 3
    origin = tl.load(o, exists, 0.0), tl.load(o + 1, exists, 0.0), tl.load(o + 2, exists, 0.0)
    direction = tl.load(d, exists, 0.0), tl.load(d + 1, exists, 0.0), tl.load(d + 2, exists, 0.0)
    t0 = tl.load(enter + ray, exists, 0.0)
    step = (tl.load(leave + ray, exists, 0.0) - t0) / n
    return (origin[0], origin[1], origin[2], direction[0], direction[1], direction[2]), t0, step


@triton.jit(do_not_specialize=["seed_term", "n"])
def _forward(volume, origins, directions, enter, leave, out, r_count, d_size, h_size, w_size, n, seed_term, stop,
             STRATIFIED: tl.constexpr, EARLY: tl.constexpr, RAYS: tl.constexpr):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    exists = row < r_count
    ray = b * r_count + row
    volume += b * d_size * h_size * w_size * 4
    line, t0, step = _load_ray(origins, directions, enter, leave, ray, exists, n)
    light = tl.full((RAYS,), 1.0, tl.float32)
    red = tl.zeros((RAYS,), tl.float32)
    green, blue, occupancy, depth = red, red, red, red
    active = step > 0
    i = 0
    running = True
    while running:
        offset = 0.5
        if STRATIFIED:
            offset = _hash_uniform(seed_term, ray * n + i)
        t = t0 + (i + offset) * step
        k, fx, fy, fz = _locate(line, t, d_size, h_size, w_size)
        density, r, g, b_ = _fetch(volume, k, fx, fy, fz, h_size, w_size, active)
        after = light * tl.exp(-density * step)
        weight = light - after
        red += weight * r
        green += weight * g
        blue += weight * b_
        occupancy += weight
        depth += weight * t
        light = after
        i += 1
        running = i < n
        if EARLY:
            active = active & (light >= stop)
            running = running & (tl.max(active.to(tl.int32), axis=0) > 0)
    out += ray * 6
    tl.store(out, red, exists)
    tl.store(out + 1, green, exists)
    tl.store(out + 2, blue, exists)
    tl.store(out + 3, occupancy, exists)
    tl.store(out + 4, depth, exists)
    tl.store(out + 5, light, exists)


@triton.jit(do_not_specialize=["seed_term", "n"])
def _backward(volume, origins, directions, enter, leave, out, grad_out, grad, r_count, d_size, h_size, w_size, n,
              seed_term, stop, STRATIFIED: tl.constexpr, EARLY: tl.constexpr, RAYS: tl.constexpr):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    exists = row < r_count
    ray = b * r_count + row
    volume += b * d_size * h_size * w_size * 4
    grad += b * d_size * h_size * w_size * 4
    line, t0, step = _load_ray(origins, directions, enter, leave, ray, exists, n)
    out += ray * 6
    grad_out += ray * 6
    g_red, g_green = tl.load(grad_out, exists, 0.0), tl.load(grad_out + 1, exists, 0.0)
    g_blue, g_occupancy = tl.load(grad_out + 2, exists, 0.0), tl.load(grad_out + 3, exists, 0.0)
    g_depth = tl.load(grad_out + 4, exists, 0.0)
    later = g_red * tl.load(out, exists, 0.0) + g_green * tl.load(out + 1, exists, 0.0)
    later += g_blue * tl.load(out + 2, exists, 0.0) + g_occupancy * tl.load(out + 3, exists, 0.0)
    later += g_depth * tl.load(out + 4, exists, 0.0)
    light = tl.full((RAYS,), 1.0, tl.float32)
    active = step > 0
    i = 0
    running = True
    while running:
        offset = 0.5
        if STRATIFIED:
            offset = _hash_uniform(seed_term, ray * n + i)
        t = t0 + (i + offset) * step
        k, fx, fy, fz = _locate(line, t, d_size, h_size, w_size)
        density, r, g, b_ = _fetch(volume, k, fx, fy, fz, h_size, w_size, active)
        score = g_red * r + g_green * g + g_blue * b_ + g_occupancy + g_depth * t
        after = light * tl.exp(-density * step)
        weight = light - after
        later -= weight * score
        _scatter(grad, k, fx, fy, fz, step * (after * score - later), weight * g_red, weight * g_green,
                 weight * g_blue, h_size, w_size, active)  # fmt: skip
        light = after
        i += 1
        running = i < n
        if EARLY:
            active = active & (light >= stop)
            running = running & (tl.max(active.to(tl.int32), axis=0) > 0)


def _launch(kernel, volume: Tensor, rays: tuple[Tensor, ...], results: tuple[Tensor, ...], n, seed, stop) -> None:
    b, d, h, w, _ = volume.shape
    r = rays[2].shape[1]
    seed_term = max(seed, 0) * 0x9E3779B9 & 0xFFFFFFFF
    with torch.cuda.device_of(volume):
        kernel[(triton.cdiv(r, RAYS), b)](
            volume, *rays, *results, r, d, h, w, n, seed_term, stop,
            STRATIFIED=seed >= 0, EARLY=stop > 0, RAYS=RAYS, num_warps=1,
        )  # fmt: skip


def forward(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    enter: Tensor,
    leave: Tensor,
    num_samples: int,
    seed: int,
    stop: float,
) -> Tensor:
    """(b, r, 6) of colour, occupancy, depth and the light left, from contiguous arguments: volume (b, d, h, w, 4)."""
    out = enter.new_empty(*enter.shape, 6)
    _launch(_forward, volume, (origins, directions, enter, leave), (out,), num_samples, seed, stop)
    return out


def backward(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    enter: Tensor,
    leave: Tensor,
    num_samples: int,
    seed: int,
    stop: float,
    out: Tensor,
    grad_out: Tensor,
) -> Tensor:
    """Gradient of the volume, float32 (b, d, h, w, 4)."""
    grad = torch.zeros_like(volume, dtype=torch.float32)
    _launch(_backward, volume, (origins, directions, enter, leave), (out, grad_out, grad), num_samples, seed, stop)
    return grad


def kernel_source(name: str, precision: str, stratified: bool = True, early: bool = False):
    """Source of '_forward' or '_backward' for a volume in 'fp32' or 'bf16', for `triton.compile`: needs no GPU."""
    kernel = {"_forward": _forward, "_backward": _backward}[name]
    types = {"volume": f"*{precision}", "seed_term": "i64", "stop": "fp32"}
    types |= dict.fromkeys(("r_count", "d_size", "h_size", "w_size", "n"), "i32")
    types |= dict.fromkeys(("STRATIFIED", "EARLY", "RAYS"), "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    constants = {"STRATIFIED": stratified, "EARLY": early, "RAYS": RAYS}
    return triton.compiler.ASTSource(kernel, signature, constants, aligned)
