"""Which renderer a device has: kernels that are compiled for it, or the reference, and why that."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from subprocess import SubprocessError
from typing import TypeVar

import torch
from torch import Tensor

from ..store.provenance import available_memory
from .rays import RenderingError

Result = TypeVar("Result")
OLDEST = (8, 0)  # compute capability of CUDA devices: older ones lack bfloat16
LARGE = 2**28  # bytes that are not asked for without looking whether they are there
FAILED: dict[str, str] = {}  # kind of device -> why its kernels were given up


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # refused by an import hook, or there in name only
        return False


# Kind of device: what compiles its kernels. Decided at import, since compiled code cannot search the file system.
BACKENDS = {kind: compiler for kind, compiler in {"cpu": "numba", "cuda": "triton"}.items() if _installed(compiler)}


def fused_backend(device: torch.device) -> str | None:
    """'numba' or 'triton', whichever compiles the fused kernels for this device; None where the reference renders."""
    if device.type == "cuda" and not torch.compiler.is_compiling() and _lacks(device):
        return None
    return None if device.type in FAILED else BACKENDS.get(device.type)


@functools.cache
def _lacks(device: torch.device) -> str:
    """What a CUDA device lacks for the kernels, which is said once; '' where it lacks nothing."""
    found, lack = torch.cuda.get_device_capability(device), ""
    if "cuda" not in BACKENDS:
        lack = "Triton is not installed, which the fused renderer needs"
    elif found < OLDEST:
        lack = f"compute capability {found[0]}.{found[1]}, the fused renderer needs {OLDEST[0]}.{OLDEST[1]} or newer"
    if lack:
        warnings.warn(f"{device}: {lack}; the reference renders", stacklevel=3)
    return lack


def how_it_renders(device: torch.device) -> str:
    """For records: what compiles the kernels, or 'reference' with the reason."""
    backend = fused_backend(device)
    if backend is not None:
        return backend
    missing = {"cpu": "numba is not installed", "cuda": "Triton is not installed"}.get(device.type, "no kernels")
    reason = FAILED.get(device.type) or (_lacks(device) if device.type == "cuda" else "") or missing
    return f"reference ({reason})"


def attempt(device: torch.device, fast: Callable[[], Result], plain: Callable[[], Result]) -> Result:
    """fast(), or plain() where the kernels of this kind of device cannot be compiled, which is said once and kept.

    Any other error is raised: what fails in running would fail again, or hide a fault.
    """
    if torch.compiler.is_compiling():
        return fast()
    if device.type in FAILED:
        return plain()
    try:
        return fast()
    except Exception as error:
        if not _in_compiling(error):
            raise
        FAILED[device.type] = f"{BACKENDS.get(device.type)}: {type(error).__name__}"
        warnings.warn(f"{device}: the fused renderer is not compiled ({error}); the reference renders", stacklevel=3)
        return plain()


def _in_compiling(error: Exception) -> bool:
    """Whether an error is a compiler's, which may be Triton, ptxas, the C compiler of its launcher, or numba."""
    if isinstance(error, (RenderingError, torch.OutOfMemoryError, torch.AcceleratorError)):
        return False
    module = type(error).__module__
    if module.startswith(("triton.", "numba.")) or isinstance(error, (ImportError, OSError, SubprocessError)):
        return True
    # passes of the compiler, and a C compiler that is not found; what a launch meets is said to be CUDA's
    text = str(error)
    return type(error) is RuntimeError and ("PassManager" in text or "C compiler" in text or "ptxas" in text)


def check_memory(volume: Tensor) -> None:
    """Raise `RenderingError` for volumes (b, c, d, h, w) whose copies for the renderer do not fit into memory.

    These are four channels in float32, and as many again for a gradient.
    """
    learning = torch.is_grad_enabled() and volume.requires_grad
    needed = (2 if learning else 1) * 16 * volume[:, 0].numel()
    if needed <= LARGE or torch.compiler.is_compiling():
        return
    if volume.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    free = available_memory(volume.device)
    if free is not None and needed > free:
        what = "rendered and for its gradient" if learning else "rendered"
        raise RenderingError(
            f"a volume of shape {tuple(volume.shape)} needs {needed / 2**30:,.1f} GiB to be {what}, but "
            f"{volume.device} has {free / 2**30:,.1f} GiB free, expected fewer objects at once or a lower resolution"
        )
