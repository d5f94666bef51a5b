"""Denoisers made fast for sampling: in low precision, compiled where that works, recorded as CUDA graphs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.checks import require
from ..training.graphs import Recordings, cuda_graph
from .edm import Denoise, Denoiser
from .products import measure_convolutions


class GraphedDenoiser:
    """A denoiser of which evaluations, and whole samplings (`sample`), are recorded as CUDA graphs: a launch each.

    A recording holds for the shapes it was made of. Where the first one fails all runs as it is from then on, which is
    said once. record: what makes one (`cuda_graph`).
    """

    def __init__(self, denoise: Denoiser, record: Callable = cuda_graph) -> None:
        self.denoise, self.recorded, self.graphs = denoise, Recordings(record), "CUDA graph"

    @property
    def execution(self) -> str:
        """How the network runs, for a record."""
        return f"{how_it_runs(self.denoise)}, {self.graphs}"

    def __call__(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        return self.replay("evaluation", self.denoise, x, sigma, context)

    def replay(self, name: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """function(*inputs), recorded under this name at the first call with these shapes and replayed from then on."""
        if self.graphs != "CUDA graph":
            return function(*inputs)
        try:
            return self.recorded.replay(name, function, *inputs).clone()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if len(self.recorded):  # a replay's error is no matter of recording
                raise
            self.graphs = f"eager (recording failed: {type(error).__name__})"
            warnings.warn(f"sampling is not recorded as a graph ({error}); it runs as it is", stacklevel=3)
            return function(*inputs)


def for_inference(
    denoiser: Denoiser,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    compile: bool = False,
    graphs: bool | None = None,
    products: bool = False,
) -> Denoise:
    """A frozen copy of a denoiser to sample with: network in `dtype` and channels last, state as the caller's x.

    On CUDA samplings are replayed as graphs unless `graphs` is False; `compile` fuses the network first. Where that
    fails the network runs as it is, and the copy's `execution` says so. `products` measures of each convolution whether
    it is faster as a matrix product (`products`); it is off until that has been shown on a device.
    """
    cuda = torch.device(device).type == "cuda"
    require(cuda or not (compile or graphs), f"compile and graphs need a CUDA device, got {device}")
    require(not (compile and products), "products are measured of a network that is not compiled, expected one of them")
    require(not cuda or torch.cuda.is_available(), f"device is '{device}', but this torch finds no CUDA device")
    denoiser = copy.deepcopy(denoiser).eval().requires_grad_(False)
    denoiser.network.to(device=device, dtype=dtype, memory_format=torch.channels_last_3d)
    denoiser.network.execution = compiled(denoiser.network) if compile else "not compiled"
    if products:
        measure_convolutions(denoiser.network)
        denoiser.network.execution = "not compiled, convolutions as measured"
    if not cuda or graphs is False:
        return denoiser
    torch.backends.cudnn.benchmark = True  # shapes stay the same, and are many times the same
    return GraphedDenoiser(denoiser)


def compiled(network: nn.Module, **options: Any) -> str:
    """Have a network compiled when it is first called. Returns how it runs, which is also its `execution`.

    What fails in compiling must not end a sampling or a training: from then on the network is called as it is, warns
    once, and its `execution` names the error.
    """
    plain, fast = network.forward, torch.compile(network.forward, **options)

    def forward(*arguments: Any, **named: Any) -> Any:
        try:
            return fast(*arguments, **named)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = plain(*arguments, **named)  # an error of the network's own is raised here
            network.forward, network.execution = plain, f"not compiled ({type(error).__name__})"
            warnings.warn(f"{type(network).__name__} is {network.execution}: {error}", stacklevel=2)
            return result

    network.forward, network.execution = forward, "compiled"
    return network.execution


def how_it_runs(denoise: Denoise) -> str:
    """Whether a denoiser's network is compiled, and why not where that failed."""
    return getattr(denoise, "execution", getattr(getattr(denoise, "network", None), "execution", "not compiled"))
