"""Work recorded as CUDA graphs, a launch each: sampling loops, and the gradients of a training step's microbatch.

A step of the small profiles is thousands of kernels of some microseconds, which a processor cannot issue as fast as a
GPU runs them. Recorded once, they are issued together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

GRAPHS = True  # whether steps that can be recorded are


def cuda_graph(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> tuple[Callable[[], None], Any]:
    """Record a function of these tensors as a CUDA graph: what replays it, and its result, which a replay renews."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces before the recording
        for _ in range(2):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*inputs)
    return graph.replay, output


class Recordings:
    """Functions of tensors, each recorded at its first call with these shapes and replayed from then on.

    record: what makes a recording (`cuda_graph`).
    """

    def __init__(self, record: Callable = cuda_graph) -> None:
        self.record = record
        self.made: dict[Any, tuple[Callable[[], None], Any, list[Tensor | None]]] = {}

    def __len__(self) -> int:
        return len(self.made)

    def replay(self, name: Any, function: Callable[..., Any], *inputs: Tensor | None) -> Any:
        """function(*inputs) of the recording under this name; the next replay overwrites the result."""
        key = (name, *(None if x is None else (x.shape, x.dtype) for x in inputs))
        if key not in self.made:
            held = [None if x is None else x.clone() for x in inputs]
            self.made[key] = (*self.record(function, held), held)
        replay, output, held = self.made[key]
        for mine, given in zip(held, inputs, strict=True):
            if given is not None:
                mine.copy_(given)
        replay()
        return output


class _Replayed(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, above: Tensor):
        known = [k for k, g in enumerate(ctx.gradients) if g is not None]
        scaled = torch._foreach_mul([ctx.gradients[k] for k in known], above)
        found: list[Tensor | None] = [None] * len(ctx.gradients)
        for k, gradient in zip(known, scaled, strict=True):
            found[k] = gradient
        return None, None, *found


class GraphedLosses:
    """The named losses of a microbatch ('loss' their sum) and their gradients, recorded as one graph.

    function(*inputs) uses these tensors, the parameters and buffers of `module` and the device's random stream, and
    nothing that the host decides anew. A call gives what function(*inputs) gives, and the backward of its 'loss' hands
    out gradients that are there by then. Recording leaves buffers and random streams as they were. Where it fails the
    function runs as it is from then on, which is said once, and `execution` says so.
    """

    def __init__(
        self, function: Callable[..., dict[str, Tensor]], module: nn.Module, record: Callable = cuda_graph
    ) -> None:
        self.function, self.recordings = function, Recordings(self._recording)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.buffers, self.record = list(module.buffers()), record
        self.execution = "CUDA graph"

    def __call__(self, *inputs: Tensor | None) -> dict[str, Tensor]:
        if self.execution != "CUDA graph":
            return self.function(*inputs)
        try:
            losses, gradients = self.recordings.replay("losses", self._gradients, *inputs)
        except Exception as error:
            if len(self.recordings):  # a replay's error is no matter of recording
                raise
            self.execution = f"eager (recording failed: {type(error).__name__})"
            warnings.warn(f"the training step is not recorded as a graph ({error}); it runs as it is", stacklevel=2)
            return self.function(*inputs)
        found = {name: value.clone() for name, value in losses.items()}
        return found | {"loss": _Replayed.apply(losses["loss"], gradients, *self.parameters)}

    def _gradients(self, *inputs: Tensor | None) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        with torch.enable_grad():
            losses = self.function(*inputs)
            gradients = torch.autograd.grad(losses["loss"], self.parameters, allow_unused=True)
        return {name: value.detach() for name, value in losses.items()}, list(gradients)

    def _recording(self, function: Callable[..., Any], held: list[Tensor | None]) -> tuple[Callable[[], None], Any]:
        before, device = [b.clone() for b in self.buffers], self.parameters[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=True):
            try:
                return self.record(function, held)
            finally:
                with torch.no_grad():
                    for buffer, old in zip(self.buffers, before, strict=True):
                        buffer.copy_(old)


def graphed(
    function: Callable[..., dict[str, Tensor]], module: nn.Module, device: torch.device, why_not: str = ""
) -> GraphedLosses | None:
    """`GraphedLosses` on CUDA, unless there is a reason against it."""
    if device.type != "cuda" or why_not or not GRAPHS:
        return None
    torch.backends.cudnn.benchmark = True  # shapes stay the same, so algorithms are measured once
    return GraphedLosses(function, module)


def how_it_steps(losses: GraphedLosses | None, device: torch.device, why_not: str = "") -> str:
    """For records: 'CUDA graph', or 'eager' and on CUDA why."""
    if losses is not None:
        return losses.execution
    return f"eager ({why_not})" if why_not and device.type == "cuda" else "eager"
