"""The fused renderer: the reference's function as one pass forward and one backward (Eq. 6-7).

`render_rays_fused` agrees with `reference.render_rays_reference` in colour, occupancy, depth and the gradient of the
volume, and stores nothing per sample: beside the volume and its gradient, five numbers per ray. CPU kernels are
compiled by numba (`cpu`), CUDA kernels by Triton (`cuda`). Gradients reach the volume only; a caller
that needs those of rays or cameras (articulation, pose learning) takes the reference.

Both passes are torch operators behind an `autograd.Function`, which costs a small scene a third of what a
`torch.library.custom_op` with its own autograd does: DDP and `torch.compile` treat them as any other operation.
"""

from __future__ import annotations

import functools
import math
import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import attempt, check_memory, fused_backend
from .cameras import Cameras
from .rays import Rendering, RenderingError, check_bounds
from .reference import render_rays_reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Not every threading layer of numba can run two parallel loops at once: the simplest ends the process.
_NUMBA_LOOP = threading.Lock()
DIAGONAL = 2 * math.sqrt(3)  # the longest way through the cube
MOST_VOXELS = 2**29  # kernels count the floats of an object in 32 bits
FULL = 0.8  # a volume of which more than this share is not empty is marched through faster than looked up


def _channels_last(volume: Tensor) -> Tensor:
    """(b, c, d, h, w) -> contiguous (b, d, h, w, 4); no copy for four channels in channels_last_3d."""
    return volume[:, :4].movedim(1, -1).contiguous()


def _numba_threads() -> int:
    """Have numba's next parallel loop take as many threads as torch does; that number."""
    import numba

    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:  # numba's first loop sets OpenMP's number, which is torch's, to its own
        torch.set_num_threads(wanted)
    return threads


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().float().contiguous().numpy() for x in tensors]


def _rays_of(origins: Tensor, directions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Origins and directions (b, r, 3), made of cameras where there is a width."""
    if not width:
        return origins, directions
    cameras = Cameras(origins.flatten(0, 1), directions.flatten(0, 1), height, width)
    return tuple(x.view(len(origins), -1, 3) for x in cameras.rays())


def _numba_arguments(
    volume, origins, directions, near, far, height, width, num_samples, seed, stop, solid, close, drawn
):
    """What both CPU kernels take first; a negative seed stands for bin centres."""
    seed = seed if drawn is None else int(drawn) & 0xFFFFFFFF
    origins, directions = _rays_of(origins, directions, height, width)
    arrays = _arrays(_channels_last(volume), origins, directions)
    skipping = solid is not None
    maps = [x.numpy() for x in (solid, close)] if skipping else [np.zeros((1, 1, 1, 1), np.uint8)] * 2
    depths = np.float32(near), np.float32(far)
    return *arrays, *depths, num_samples, np.uint32(max(seed, 0)), seed >= 0, np.float32(stop), *maps, skipping


# Rays are origins and directions (b, r, 3), or where there is a width, world_to_camera (b, v, 3, 4) and intrinsics
# (b, v, 3, 3) of v pictures. Maps are those of `empty_space`. A seed that was drawn, an int64, goes before the other:
# what is recorded in a graph reads it anew. Parts are of the CUDA kernels' rays (`cuda.forward`).
_RAYS = "Tensor volume, Tensor origins, Tensor directions, float near, float far, int height, int width"
_HOW = "int num_samples, int seed, float stop, Tensor? solid, Tensor? close, Tensor? drawn"
torch.library.define("vader::render_forward", f"({_RAYS}, {_HOW}) -> (Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "vader::render_backward",
    f"({_RAYS}, {_HOW}, Tensor colour, Tensor occupancy, Tensor depth, Tensor parts, Tensor? grad_colour,"
    " Tensor? grad_occupancy, Tensor? grad_depth) -> Tensor",
)
render_forward, render_backward = torch.ops.vader.render_forward, torch.ops.vader.render_backward


def _results(volume: Tensor, origins: Tensor, height: int, width: int, num_samples: int, stop: float) -> tuple:
    """Memory for colour (b, r, 3), occupancy and depth (b, r), and parts (b, r, p, 5), p = 0 but on CUDA."""
    b, r = origins.shape[:2]
    r *= height * width if width else 1
    parts = 0
    if volume.device.type == "cuda":
        from .cuda import parts_of_rays

        parts = parts_of_rays(b * r, num_samples, stop)
    return tuple(volume.new_empty(b, r, *more, dtype=torch.float32) for more in ((3,), (), (), (parts, 5)))


@torch.library.impl("vader::render_forward", "cpu")
def _(volume, origins, directions, near, far, height, width, *options):
    from . import cpu

    results = _results(volume, origins, height, width, options[0], options[2])
    arguments = _numba_arguments(volume, origins, directions, near, far, height, width, *options)
    with _NUMBA_LOOP:
        _numba_threads()
        cpu.forward(*arguments, *(x.numpy() for x in results[:3]))
    return results


def _cuda_rays(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    return origins.detach().float().contiguous(), directions.detach().float().contiguous()


@torch.library.impl("vader::render_forward", "cuda")
def _(volume, origins, directions, near, far, height, width, num_samples, seed, stop, solid, close, drawn):
    from . import cuda

    results = _results(volume, origins, height, width, num_samples, stop)
    options = (near, far, height, width, num_samples, seed, stop)
    cuda.forward(_channels_last(volume), _cuda_rays(origins, directions), (solid, drawn), results, options)
    return results


@torch.library.impl("vader::render_backward", "cpu")
def _(volume, origins, directions, *options_and_results):
    from . import cpu

    *options, colour, occupancy, depth, _, grad_colour, grad_occupancy, grad_depth = options_and_results
    b, _, d, h, w = volume.shape
    results = colour, occupancy, depth
    above = (grad_colour, grad_occupancy, grad_depth)
    above = [torch.zeros_like(x) if g is None else g for x, g in zip(results, above, strict=True)]
    arguments = _numba_arguments(volume, origins, directions, *options)
    with _NUMBA_LOOP:
        # Every thread owns an object; where few objects do not divide among the threads, several threads own partial
        # sums of one.
        threads = _numba_threads()
        parts = threads // math.gcd(threads, b) if 0 < b < 2 * threads else 1
        grad = torch.zeros(parts, b, d, h, w, 4)
        cpu.backward(*arguments, tuple(_arrays(*results)), tuple(_arrays(*above)), grad.numpy())
    return _volume_gradient(grad[0] if parts == 1 else grad.sum(0), volume)


@torch.library.impl("vader::render_backward", "cuda")
def _(volume, origins, directions, near, far, height, width, num_samples, seed, stop, solid, close, drawn, *results):
    from . import cuda

    options = (near, far, height, width, num_samples, seed, stop)
    rays, values = _cuda_rays(origins, directions), _channels_last(volume)
    return _volume_gradient(cuda.backward(values, rays, (solid, drawn), results[:4], results[4:], options), volume)


def _volume_gradient(grad: Tensor, volume: Tensor) -> Tensor:
    """Kernel gradient (b, d, h, w, 4) as that of volume (b, c, d, h, w): 0 for channels that are not rendered."""
    if volume.shape[1] > 4:  # padding by nothing would copy
        grad = F.pad(grad, (0, volume.shape[1] - 4))
    return grad.movedim(-1, 1).to(volume.dtype)


@torch.library.register_fake("vader::render_forward")
def _(volume, origins, directions, near, far, height, width, *options):
    return _results(volume, origins, height, width, options[0], options[2])


@torch.library.register_fake("vader::render_backward")
def _(volume, *options):
    b, c, d, h, w = volume.shape
    return volume.new_empty(b, d, h, w, c).movedim(-1, 1)


def _by_reference(volume, origins, directions, near, far, height, width, num_samples, seed, stop, solid, close, drawn):
    """Colour, occupancy and depth by the reference, from the operators' arguments."""
    rays = _rays_of(origins, directions, height, width)
    seed = drawn if drawn is not None else None if seed < 0 else seed
    rendering = render_rays_reference(volume.float(), *rays, num_samples, seed, stop, near, far)
    return rendering.colour, rendering.occupancy, rendering.depth


class _Render(torch.autograd.Function):
    """Both operators as one differentiable function of the volume; the reference where they cannot be compiled."""

    @staticmethod
    def forward(ctx, volume, *options):
        def plain():
            return *_by_reference(volume, *options), volume.new_empty(0)

        results = attempt(volume.device, lambda: render_forward(volume, *options), plain)
        ctx.numbers = options[2:9]
        ctx.save_for_backward(volume, *options[:2], *options[9:], *results)
        ctx.set_materialize_grads(False)
        return results[:3]

    @staticmethod
    @once_differentiable
    def backward(ctx, *above):
        volume, origins, directions, solid, close, drawn, *results = ctx.saved_tensors
        options = (origins, directions, *ctx.numbers, solid, close, drawn)

        def plain():
            with torch.enable_grad():
                leaf = volume.detach().requires_grad_()
                pairs = [(x, g) for x, g in zip(_by_reference(leaf, *options), above, strict=True) if g is not None]
                return torch.autograd.grad([x for x, _ in pairs], leaf, [g for _, g in pairs])[0]

        grad = attempt(volume.device, lambda: render_backward(volume, *options, *results, *above), plain)
        return grad, *[None] * 12


def empty_space(volume: Tensor, threshold: float, num_samples: int) -> tuple[Tensor | None, Tensor | None]:
    """What rays of so many samples may jump over in a volume (`occupancy.empty_space`; on CUDA `cuda.empty_bricks`).

    None twice where little of it is empty; on CUDA nothing is read back, so there the map is always taken.
    """
    if volume.device.type == "cuda":
        from . import cuda

        return cuda.empty_bricks(_channels_last(volume), threshold), None
    from . import cpu
    from .kernels import occupancy

    b, _, *sizes = volume.shape
    blocks = [-(-(size - 1) // occupancy.CELL) for size in sizes]
    solid, close = torch.empty(b, *sizes, dtype=torch.uint8), torch.empty(b, *blocks, dtype=torch.uint8)
    [values] = _arrays(_channels_last(volume))
    with _NUMBA_LOOP:
        _numba_threads()
        occupancy.empty_space(values, np.float32(threshold), cpu.SEGMENT / num_samples, solid.numpy(), close.numpy())
    return (solid, close) if close.numel() and close.float().mean() <= FULL else (None, None)


def render_rays_fused(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    stratified_seed: int | Tensor | None = None,
    stop: float = 0.0,
    near: float = 0.0,
    far: float = float("inf"),
    skip_empty: bool = False,
    rectified: bool = False,
    image: tuple[int, int] = (0, 0),
) -> Rendering:
    """`reference.render_rays_reference` in one pass; arguments and result as there.

    Gradients flow to `volume` (float32, bfloat16 or float16; float32 inside) alone. On the CPU they are the same bits
    for the same number of threads, on CUDA up to the order of a sum. `skip_empty` and `rectified` as in `render_rays`.
    With an `image` (height, width) the rays are those of cameras: `origins` holds world_to_camera (b, v, 3, 4) and
    `directions` the intrinsics (b, v, 3, 3).

    Raises:
        RenderingError: no kernel for this device or dtype, rays that ask for a gradient, skipping with one, a volume
            of more voxels than the kernels count or than memory holds.
    """
    check_bounds(near, far)
    check_memory(volume)
    backend = fused_backend(volume.device)
    if backend is None:
        raise RenderingError(f"no fused renderer for {volume.device.type}: numba (CPU) or triton (CUDA) is needed")
    if volume.dtype not in DTYPES:
        raise RenderingError(f"volume is {volume.dtype}, expected one of {DTYPES} for the fused renderer")
    if volume[0:1, 0].numel() > MOST_VOXELS:
        raise RenderingError(f"volume has {volume[0, 0].numel():,} voxels, expected at most {MOST_VOXELS:,} an object")
    if torch.is_grad_enabled() and (origins.requires_grad or directions.requires_grad):
        raise RenderingError("the fused renderer has no gradient for rays: take backend='reference'")
    learning = torch.is_grad_enabled() and volume.requires_grad
    if skip_empty and learning and not rectified:
        raise RenderingError("skip_empty leaves out samples that a gradient needs: render under torch.no_grad()")
    drawn = stratified_seed if isinstance(stratified_seed, Tensor) else None
    seed = -1 if stratified_seed is None or drawn is not None else stratified_seed & 0xFFFFFFFF
    maps = None, None
    if (skip_empty or rectified) and not torch.compiler.is_compiling():
        threshold = 0.0 if learning else stop / DIAGONAL
        find = functools.partial(empty_space, volume.detach(), threshold, num_samples)
        maps = attempt(volume.device, find, lambda: (None, None))
    rays = (origins, directions, near, far, *image)
    colour, occupancy, depth = _Render.apply(volume, *rays, num_samples, seed, stop, *maps, drawn)
    return Rendering(colour, occupancy, depth, fused_backend(volume.device) or "reference")
