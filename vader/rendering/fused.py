"""The reference renderer's function as one fused pass forward and one backward (Eq. 6-7).

`render_rays_fused` agrees with `volume.render_rays_reference` in colour, occupancy, depth and the gradient of the
volume, and stores nothing per sample: beside the volume and its gradient, six numbers per ray. Kernels are compiled
for the CPU by numba (`fused_cpu`); other devices take the reference. Gradients reach the volume only; a caller that
needs those of rays or cameras (articulation, pose learning) takes the reference too.

It is a torch custom operator: autograd, DDP and `torch.compile` treat it as any other operation.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import numpy as np
import torch
from torch import Tensor

from .volume import Rendering, RenderingError, clip_to_cube

# Column of the kernels' result: red, green, blue, occupancy, depth, light left.
OUTPUTS = 6


@functools.cache
def fused_backend(device: torch.device) -> str | None:
    """'numba' if it is there and compiles the fused kernel for this kind of device (the CPU), else None."""
    return "numba" if device.type == "cpu" and importlib.util.find_spec("numba") else None


def _channels_last(volume: Tensor) -> Tensor:
    """(b, c, d, h, w) -> contiguous float32 (b, d, h, w, 4); no copy for a float32 volume in channels_last_3d."""
    return volume[:, :4].movedim(1, -1).float().contiguous()


def _numba_threads() -> int:
    """Have numba's next parallel loop take as many threads as torch does; that number."""
    import numba

    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads


def _kernel_arguments(volume, origins, directions, enter, leave, num_samples, seed, stop):
    arrays = [x.detach().float().contiguous().numpy() for x in (origins, directions, enter, leave)]
    stratified = seed >= 0
    return (
        _channels_last(volume.detach()).numpy(),
        *arrays,
        num_samples,
        np.uint32((seed if stratified else 0) & 0xFFFFFFFF),
        stratified,
        np.float32(stop),
    )


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
) -> Tensor:
    """Kernel entry: (b, r, 6) of colour, occupancy, depth and remaining light; `seed` < 0 samples bin centres."""
    from . import fused_cpu

    out = torch.empty(*enter.shape, OUTPUTS)
    _numba_threads()
    fused_cpu.forward(
        *_kernel_arguments(volume, origins, directions, enter, leave, num_samples, seed, stop), out.numpy()
    )
    return out


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
    from . import fused_cpu

    b, _, d, h, w = volume.shape
    # Every thread owns an object; where few objects do not divide among the threads, several threads own partial
    # sums of one.
    threads = _numba_threads()
    parts = threads // math.gcd(threads, b) if b < 2 * threads else 1
    grad = torch.zeros(parts, b, d, h, w, 4)
    fused_cpu.backward(
        *_kernel_arguments(volume, origins, directions, enter, leave, num_samples, seed, stop),
        out.numpy(),
        grad_out.float().contiguous().numpy(),
        grad.numpy(),
    )
    return volume_gradient(grad[0] if parts == 1 else grad.sum(0), volume)


def volume_gradient(grad: Tensor, volume: Tensor) -> Tensor:
    """Kernel gradient (b, d, h, w, 4) in the shape and precision of the volume (b, c, d, h, w)."""
    grad = grad.movedim(-1, 1).to(volume.dtype)
    extra = volume.shape[1] - 4
    if extra:  # skinning weights and the like are not rendered here
        grad = torch.cat([grad, grad.new_zeros(grad.shape[0], extra, *grad.shape[2:])], dim=1)
    return grad


@render_forward.register_fake
def _(volume, origins, directions, enter, leave, num_samples, seed, stop):
    return enter.new_empty(*enter.shape, OUTPUTS)


@render_backward.register_fake
def _(volume, origins, directions, enter, leave, num_samples, seed, stop, out, grad_out):
    b, c, d, h, w = volume.shape
    layout = volume.new_empty(b, d, h, w, c).movedim(-1, 1)
    return layout if c == 4 else layout.contiguous()


def _setup_context(ctx, inputs, output):
    *tensors, ctx.num_samples, ctx.seed, ctx.stop = inputs
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, grad_out):
    *tensors, out = ctx.saved_tensors
    grad = render_backward(*tensors, ctx.num_samples, ctx.seed, ctx.stop, out, grad_out)
    return grad, *[None] * 7


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
) -> Rendering:
    """`volume.render_rays_reference` in one pass; arguments and result as there.

    Gradients flow to `volume` (float32 or bfloat16) alone.

    Raises:
        RenderingError: no kernel for this device, or rays that ask for a gradient.
    """
    backend = fused_backend(volume.device)
    if backend is None:
        raise RenderingError(f"no fused renderer for {volume.device.type}: it needs a CPU and numba")
    if torch.is_grad_enabled() and (origins.requires_grad or directions.requires_grad):
        raise RenderingError("the fused renderer has no gradient for rays: take backend='reference'")
    enter, leave = clip_to_cube(origins, directions, near, far)
    seed = -1 if stratified_seed is None else stratified_seed & 0x7FFFFFFF
    out = render_forward(volume, origins, directions, enter, leave, num_samples, seed, stop)
    return Rendering(out[..., :3], out[..., 3], out[..., 4], backend)
