"""The fused renderer: the reference's function as one pass forward and one backward (Eq. 6-7).

`render_rays_fused` agrees with `reference.render_rays_reference` in colour, occupancy, depth and the gradient of the
volume, and stores nothing per sample: beside the volume and its gradient, six numbers per ray. CPU kernels are
compiled by numba (`cpu`), CUDA kernels by Triton (`cuda`). Gradients reach the volume only; a caller
that needs those of rays or cameras (articulation, pose learning) takes the reference.

It is a torch custom operator: autograd, DDP and `torch.compile` treat it as any other operation.
"""

from __future__ import annotations

import importlib.util
import math
import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .occupancy import occupied_cells
from .rays import Rendering, RenderingError, clip_to_cube

# Column of the kernels' result: red, green, blue, occupancy, depth, light left.
OUTPUTS = 6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Not every threading layer of numba can run two parallel loops at once: the simplest ends the process.
_NUMBA_LOOP = threading.Lock()
DIAGONAL = 2 * math.sqrt(3)  # the longest way through the cube


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # refused by an import hook, or there in name only
        return False


# Kind of device: what compiles its kernels. Decided at import, since compiled code cannot search the file system.
BACKENDS = {kind: compiler for kind, compiler in {"cpu": "numba", "cuda": "triton"}.items() if _installed(compiler)}


def fused_backend(device: torch.device) -> str | None:
    """'numba' or 'triton', whichever compiles the fused kernel for this kind of device; None where neither does."""
    return BACKENDS.get(device.type)


def _channels_last(volume: Tensor) -> Tensor:
    """(b, c, d, h, w) -> contiguous (b, d, h, w, 4); no copy for four channels in channels_last_3d."""
    return volume[:, :4].movedim(1, -1).contiguous()


def _rays(*tensors: Tensor) -> list[Tensor]:
    return [x.float().contiguous() for x in tensors]


def _numba_threads() -> int:
    """Have numba's next parallel loop take as many threads as torch does; that number."""
    import numba

    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:  # numba's first loop sets OpenMP's number, which is torch's, to its own
        torch.set_num_threads(wanted)
    return threads


def _numba_arguments(volume, rays, num_samples, seed, stop):
    """What both CPU kernels take first; a negative seed stands for bin centres."""
    arrays = [x.detach().numpy() for x in (_channels_last(volume).float(), *_rays(*rays))]
    return *arrays, num_samples, np.uint32(max(seed, 0)), seed >= 0, np.float32(stop)


@torch.library.custom_op("vader::render_forward", mutates_args=(), device_types="cpu")
def render_forward(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    enter: Tensor,
    leave: Tensor,
    num_samples: int,
    seed: int,
    stop: float,
    occupied: Tensor | None,
) -> Tensor:
    """Kernel entry: (b, r, 6) of colour, occupancy, depth and remaining light.

    `seed` < 0 samples bin centres; `occupied` (`occupancy.occupied_cells`) tells what not to jump over, on the CPU.
    """
    from . import cpu

    out = torch.empty(*enter.shape, OUTPUTS)
    skipping = occupied is not None
    occupied = occupied.numpy() if skipping else np.zeros((1, 1, 1, 1), np.uint8)
    arguments = _numba_arguments(volume, (origins, directions, enter, leave), num_samples, seed, stop)
    with _NUMBA_LOOP:
        _numba_threads()
        cpu.forward(*arguments, occupied, skipping, out.numpy())
    return out


@render_forward.register_kernel("cuda")
def _(volume, origins, directions, enter, leave, num_samples, seed, stop, occupied):
    from . import cuda

    rays = _rays(origins, directions, enter, leave)
    return cuda.forward(_channels_last(volume), *rays, num_samples, seed, stop)


@torch.library.custom_op("vader::render_backward", mutates_args=(), device_types="cpu")
def render_backward(
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
    """Kernel entry: gradient of the volume, (b, c, d, h, w) in channels_last_3d memory."""
    from . import cpu

    b, _, d, h, w = volume.shape
    # Every thread owns an object; where few objects do not divide among the threads, several threads own partial
    # sums of one.
    threads = _numba_threads()
    parts = threads // math.gcd(threads, b) if b < 2 * threads else 1
    grad = torch.zeros(parts, b, d, h, w, 4)
    arguments = _numba_arguments(volume, (origins, directions, enter, leave), num_samples, seed, stop)
    cpu.backward(*arguments, out.numpy(), *(x.numpy() for x in _rays(grad_out)), grad.numpy())
    return _volume_gradient(grad[0] if parts == 1 else grad.sum(0), volume)


@render_backward.register_kernel("cuda")
def _(volume, origins, directions, enter, leave, num_samples, seed, stop, out, grad_out):
    from . import cuda

    rays = _rays(origins, directions, enter, leave)
    grad = cuda.backward(_channels_last(volume), *rays, num_samples, seed, stop, out, *_rays(grad_out))
    return _volume_gradient(grad, volume)


def _volume_gradient(grad: Tensor, volume: Tensor) -> Tensor:
    """Kernel gradient (b, d, h, w, 4) as that of volume (b, c, d, h, w): 0 for channels that are not rendered."""
    if volume.shape[1] > 4:  # padding by nothing would copy
        grad = F.pad(grad, (0, volume.shape[1] - 4))
    return grad.movedim(-1, 1).to(volume.dtype)


@render_forward.register_fake
def _(volume, origins, directions, enter, leave, num_samples, seed, stop, occupied):
    return enter.new_empty(*enter.shape, OUTPUTS, dtype=torch.float32)


@render_backward.register_fake
def _(volume, origins, directions, enter, leave, num_samples, seed, stop, out, grad_out):
    b, c, d, h, w = volume.shape
    return volume.new_empty(b, d, h, w, c).movedim(-1, 1)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_samples, ctx.seed, ctx.stop, _ = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, grad_out):
    *tensors, out = ctx.saved_tensors
    grad = render_backward(*tensors, ctx.num_samples, ctx.seed, ctx.stop, out, grad_out)
    return grad, *[None] * 8


render_forward.register_autograd(_backward, setup_context=_setup_context)


def render_rays_fused(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    stratified_seed: int | None = None,
    stop: float = 0.0,
    near: float = 0.0,
    far: float = float("inf"),
    skip_empty: bool = False,
) -> Rendering:
    """`reference.render_rays_reference` in one pass; arguments and result as there.

    Gradients flow to `volume` (float32, bfloat16 or float16; float32 inside) alone. On the CPU they are the same bits
    for the same number of threads, on CUDA up to the order of a sum. `skip_empty`, without gradients, lets a CPU ray
    jump over parts so thin that all it leaves out absorbs at most `stop` of its light.

    Raises:
        RenderingError: no kernel for this device or dtype, rays that ask for a gradient, skipping with one.
    """
    backend = fused_backend(volume.device)
    if backend is None:
        raise RenderingError(f"no fused renderer for {volume.device.type}: numba (CPU) or triton (CUDA) is needed")
    if volume.dtype not in DTYPES:
        raise RenderingError(f"volume is {volume.dtype}, expected one of {DTYPES} for the fused renderer")
    if torch.is_grad_enabled() and (origins.requires_grad or directions.requires_grad):
        raise RenderingError("the fused renderer has no gradient for rays: take backend='reference'")
    if skip_empty and torch.is_grad_enabled() and volume.requires_grad:
        raise RenderingError("skip_empty leaves out samples that a gradient needs: render under torch.no_grad()")
    enter, leave = clip_to_cube(origins, directions, near, far)
    seed = -1 if stratified_seed is None else stratified_seed & 0xFFFFFFFF
    occupied = None
    if skip_empty and backend == "numba":
        from .cpu import CELL, SEGMENT

        occupied = occupied_cells(volume[:, 0].float(), stop / DIAGONAL, CELL, SEGMENT / num_samples)
    out = render_forward(volume, origins, directions, enter, leave, num_samples, seed, stop, occupied)
    return Rendering(out[..., :3], out[..., 3], out[..., 4], backend)
