"""The fused renderer on CUDA: one launch forward, one backward, and one for the map of what is empty.

The kernels are `kernels.march`. Nothing is read back from the device here, so all of it can be recorded in a graph.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .kernels.march import backward_kernel, bricks_kernel, forward_kernel

RAYS = 32  # rays per program: one warp, which stops as soon as none of its rays has light left
BRICK = 4  # cells along an edge of what `empty_bricks` finds empty
PARTS = 0  # of a ray that are marched at once: 1, 2 or 4; 0: as `parts_of_rays` finds
KEEP = True  # voxels stay in registers until their ray leaves them; False loads and adds all for every sample
BACKWARD_REGISTERS = 128  # of which 16 warps fit on a multiprocessor; the compiler alone would take 157


def _launch(kernel, volume: Tensor, rays: tuple[Tensor, Tensor], maps: tuple[Tensor | None, Tensor | None],
            tensors: tuple, options: tuple, r: int, parts: Tensor, more: tuple = (),
            flags: dict[str, bool] | None = None, **launch: Any) -> None:  # fmt: skip
    b, d, h, w, _ = volume.shape
    near, far, height, width, n, seed, stop = options
    seed_term = max(seed, 0) * 0x9E3779B9 & 0xFFFFFFFF
    bricks, drawn = maps
    if b * r == 0:  # a grid of nothing is an error
        return
    somewhere = tuple(volume if x is None else x for x in maps)
    with torch.cuda.device_of(volume):
        kernel[(triton.cdiv(r, RAYS), b)](
            volume, *rays, *somewhere, *tensors, near, far, r, max(1, height * width),
            max(1, width), d, h, w, n, seed_term, stop, *more, **(flags or {}), CAMERAS=width > 0,
            STRATIFIED=seed >= 0 or drawn is not None, SEEDS=drawn is not None, EARLY=stop > 0,
            SKIP=bricks is not None, KEEP=KEEP, RAYS=RAYS, PARTS=parts.shape[2], BRICK=BRICK,
            num_warps=parts.shape[2], **launch,
        )  # fmt: skip


def empty_bricks(volume: Tensor, threshold: float) -> Tensor:
    """uint8 (b, z, y, x): 0 for the BRICK^3 cells of a volume (b, d, h, w, 4) with no density above the threshold."""
    b, d, h, w, _ = volume.shape
    bricks = volume.new_empty(b, *((size - 2) // BRICK + 1 for size in (d, h, w)), dtype=torch.uint8)
    if b:
        with torch.cuda.device_of(volume):
            bricks_kernel[(bricks[0].numel(), b)](volume, bricks, threshold, d, h, w, BRICK=BRICK, num_warps=1)
    return bricks


def parts_of_rays(rays: int, samples: int, stop: float) -> int:
    """In how many parts each ray is marched at once, so that so many rays fill a GPU: 1, 2 or 4.

    60,000 rays are a warp for each of the four schedulers of 132 multiprocessors, four times over. A ray that may end
    early is not divided, and no part is shorter than a few samples.
    """
    wanted = 1 if stop > 0 else PARTS or (1 if rays >= 60_000 else 2 if rays >= 30_000 else 4)
    return wanted if samples >= 8 * wanted else 1


def forward(volume: Tensor, rays: tuple[Tensor, Tensor], maps: tuple[Tensor | None, Tensor | None], results: tuple,
            options: tuple) -> None:  # fmt: skip
    """Fill colour (b, r, 3), occupancy and depth (b, r), and what each of p parts of a ray does alone, (b, r, p, 5).

    All arguments are contiguous: volume (b, d, h, w, 4); rays: origins and directions (b, r, 3), or with a width
    world_to_camera (b, v, 3, 4) and intrinsics (b, v, 3, 3). maps: bricks and the seed, an int64, each or None.
    options: near, far, height, width, samples, seed (negative: bin centres), stop.
    """
    _launch(forward_kernel, volume, rays, maps, results, options, results[1].shape[1], results[3])


def backward(volume: Tensor, rays: tuple[Tensor, Tensor], maps: tuple[Tensor | None, Tensor | None], results: tuple,
             above: tuple[Tensor | None, Tensor | None, Tensor | None], options: tuple) -> Tensor:  # fmt: skip
    """Gradient of the volume, float32 (b, d, h, w, 4), from those of `forward`'s first three results, or None."""
    grad = torch.zeros_like(volume, dtype=torch.float32)
    r = results[1].shape[1]
    above = [g if g is None else _rows(g, r) for g in above]
    strides = tuple(1 if g is None else g.stride(1) for g in above)
    pointers = tuple(volume if g is None else g for g in above)
    flags = {name: g is not None for name, g in zip(("COLOUR", "SEEN", "FAR_OFF"), above, strict=True)}
    _launch(
        backward_kernel, volume, rays, maps, (*results, *pointers, grad), options, r, results[3], strides, flags,
        maxnreg=BACKWARD_REGISTERS if KEEP else None,
    )  # fmt: skip
    return grad


def _rows(grad: Tensor, r: int) -> Tensor:
    """A gradient (b, r, ...) whose rays follow each other at one distance: as it is, where it is a slice of another."""
    regular = grad.dtype == torch.float32 and grad.stride(0) == r * grad.stride(1)
    return grad if regular and (grad.ndim == 2 or grad.stride(2) == 1) else grad.float().contiguous()


def kernel_source(name: str, precision: str, stratified: bool = True, early: bool = False, **flags: bool | int):
    """Source of 'forward', 'backward' or 'bricks' for a volume in 'fp32' or 'bf16', for `triton.compile`: no GPU."""
    kernel = {"forward": forward_kernel, "backward": backward_kernel, "bricks": bricks_kernel}[name]
    constants = {"STRATIFIED": stratified, "EARLY": early, "CAMERAS": True, "SKIP": False, "KEEP": True}
    constants |= {"COLOUR": True, "SEEN": True, "FAR_OFF": True, "RAYS": RAYS, "BRICK": BRICK}
    constants |= {"SEEDS": False, "PARTS": 1} | flags
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {"volume": f"*{precision}", "bricks": "*u8", "seeds": "*i64", "seed_term": "i64"}
    types |= dict.fromkeys(("stop", "near", "far", "threshold"), "fp32")
    integers = ("r_count", "area", "width", "d_size", "h_size", "w_size", "n", "colour_row", "seen_row", "far_off_row")
    types |= dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return triton.compiler.ASTSource(kernel, signature, constants, aligned)
