"""3x3x3 convolutions as one matrix product each, taken where measuring shows that they are faster.

At 4^3 or 8^3 cells and hundreds of channels a convolution of one object has few rows and much weight. Then a library's
product over all 27 taps can come nearer to the rate at which weights are read than its convolution does. Which one
does depends on shape, device and version, so both are measured, once for each shape.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.graphs import cuda_graph

Run = Callable[[Tensor], Tensor]
MOST_ROWS = 4096  # cells of all objects: beyond, the copies of 27 neighbours are larger than what they save
REPEATS = 5


@functools.lru_cache(maxsize=16)
def neighbours(size: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Of each cell of a volume (d, h, w): the flat indices of its 27 neighbours, (d * h * w, 27), in the order of taps.

    A neighbour outside the volume has the index d * h * w, one beyond the last cell.
    """
    d, h, w = size
    cells = torch.full((d + 2, h + 2, w + 2), d * h * w)
    cells[1:-1, 1:-1, 1:-1] = torch.arange(d * h * w).view(d, h, w)
    shifted = [cells[z : z + d, y : y + h, x : x + w] for z in range(3) for y in range(3) for x in range(3)]
    return torch.stack(shifted, dim=-1).flatten(0, 2).to(device)


def product_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.conv3d(x, weight, bias, padding=1)` of 3x3x3 weights, as a product: (b, c, d, h, w) -> (b, o, d, h, w).

    In channels_last_3d neither x nor the weights are copied, but for each cell's neighbours.
    """
    b, c, *size = x.shape
    tokens = F.pad(x.flatten(2).mT, (0, 0, 0, 1))  # (b, cells + 1, c): the last is what lies outside
    rows = tokens[:, neighbours(tuple(size), x.device)].flatten(2)  # (b, cells, 27 c)
    out = F.linear(rows, weight.permute(0, 2, 3, 4, 1).flatten(1), bias)
    return out.mT.unflatten(2, size)


def seconds_of(run: Run, x: Tensor) -> float:
    """What a call takes, as it will be run: on CUDA within a graph, so that no launch is counted."""
    if x.device.type != "cuda":
        taken = []
        for _ in range(REPEATS + 1):
            begun = time.perf_counter()
            run(x)
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken[1:])
    replay, _ = cuda_graph(lambda x: [run(x) for _ in range(10)][-1], [x])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    for event in events:
        event.record()
        replay()
    torch.cuda.synchronize()
    pairs = zip(events[:-1], events[1:], strict=True)
    return statistics.median(first.elapsed_time(second) for first, second in pairs) / 1e4


class MeasuredConv3d(nn.Module):
    """A frozen 3x3x3 convolution that runs as a convolution or as a product, whichever its first call found faster."""

    def __init__(self, conv: nn.Conv3d, measure: Callable[[Run, Tensor], float] = seconds_of) -> None:
        super().__init__()
        self.conv, self.measure = conv, measure
        self.chosen: dict[tuple, str] = {}  # by shape and type of the input

    def product(self, x: Tensor) -> Tensor:
        return product_conv3d(x, self.conv.weight, self.conv.bias)

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        key = (tuple(x.shape), x.dtype)
        if key not in self.chosen:
            self.chosen[key] = self._faster(x)
        return self.product(x) if self.chosen[key] == "product" else self.conv(x)

    def _faster(self, x: Tensor) -> str:
        if not 0 < len(x) * x.shape[2:].numel() <= MOST_ROWS:
            return "convolution"
        seconds = {"convolution": self.measure(self.conv, x), "product": self.measure(self.product, x)}
        return min(seconds, key=seconds.get)


def measure_convolutions(network: nn.Module, measure: Callable[[Run, Tensor], float] = seconds_of) -> None:
    """Replace the 3x3x3 convolutions of a frozen network by those that are measured at their first call."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and child.kernel_size == (3, 3, 3) and child.padding == (1, 1, 1):
                setattr(parent, name, MeasuredConv3d(child, measure))


def choices(network: nn.Module) -> Counter[tuple[int, str]]:
    """How many shapes of convolutions were found faster as which: {(objects, 'convolution' or 'product'): number}."""
    convs = [module for module in network.modules() if isinstance(module, MeasuredConv3d)]
    return Counter((key[0][0], choice) for conv in convs for key, choice in conv.chosen.items())
