"""Sampling of many objects: independent of the batch size, streamed to disk, resumed after an interruption.

Object i of seed s has its own random stream, derived from (s, i), for its initial noise and for the noise that
S_churn adds. The batch it is computed in changes it by rounding errors only.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..settings.checks import require
from ..settings.diffusion import SamplerConfig
from ..store.files import write_json
from .edm import Denoise, Denoiser, sample, standard_normal

MAX_BATCH = 256  # beyond it a GPU gains nothing, and an interruption costs more


class SamplingError(RuntimeError):
    """Samples on disk that another setting made."""


class GraphedDenoiser:
    """A denoiser recorded as a CUDA graph for each shape it meets, so that an evaluation is a single launch."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor | None], Tensor]] = {}

    def __call__(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        key = (x.shape, x.dtype, None if context is None else context.shape)
        if key not in self.recorded:
            self.recorded[key] = self._record([x, sigma, context])
        graph, inputs, output = self.recorded[key]
        for held, given in zip(inputs, (x, sigma, context), strict=True):
            if given is not None:
                held.copy_(given)
        graph.replay()
        return output.clone()

    def _record(self, arguments: list[Tensor | None]) -> tuple[torch.cuda.CUDAGraph, list[Tensor | None], Tensor]:
        inputs = [None if a is None else a.clone() for a in arguments]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels and workspaces before the recording
            for _ in range(3):
                self.denoise(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.denoise(*inputs)
        return graph, inputs, output


def for_inference(
    denoiser: Denoiser,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    compile: bool = False,
    graphs: bool | None = None,
) -> Denoise:
    """A frozen copy of a denoiser to sample with: network in `dtype` and channels last, state as the caller's x.

    On CUDA evaluations are replayed as graphs unless `graphs` is False; `compile` fuses the network first.
    """
    cuda = torch.device(device).type == "cuda"
    require(cuda or not (compile or graphs), f"compile and graphs need a CUDA device, got {device}")
    denoiser = copy.deepcopy(denoiser).eval().requires_grad_(False)
    denoiser.network.to(device=device, dtype=dtype, memory_format=torch.channels_last_3d)
    if compile:
        denoiser.network.compile()
    return GraphedDenoiser(denoiser) if cuda and graphs is not False else denoiser


def object_generators(seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per object, seeded by (seed, index)."""
    states = (np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] for index in indices)
    return [torch.Generator(device).manual_seed(int(state >> np.uint64(1))) for state in states]


def sample_objects(
    denoise: Denoise,
    config: SamplerConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    seed: int,
    context: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The samples (len(indices), *shape) of these objects; context (len(indices), l, k) is theirs, in this order.

    The initial noise is the same on every device; the noise of S_churn is drawn where the samples live.
    """
    generators = object_generators(seed, indices)
    noise = standard_normal((len(indices), *shape), generators, device)
    if noise.ndim == 5:
        noise = noise.contiguous(memory_format=torch.channels_last_3d)  # as the network's outputs
    if torch.device(device).type != "cpu":
        generators = object_generators(seed, indices, device)
    return sample(denoise, noise, config, generators, None if context is None else context.to(device))


@torch.no_grad()
def largest_batch(denoise: Denoise, shape: tuple[int, ...], context: Tensor | None, device: torch.device | str) -> int:
    """Objects that fit into 80 % of the free memory of a CUDA device, from the peaks of two small evaluations."""

    def peak(n: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        rows = None if context is None else context[:1].to(device).expand(n, *context.shape[1:])
        denoise(torch.zeros((n, *shape), device=device), torch.ones(n, device=device), rows)
        return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)

    peak(1)  # workspaces of the libraries
    small, large = peak(2), peak(6)
    each = max((large - small) / 4, 1)
    return int(min(max((0.8 * torch.cuda.mem_get_info(device)[0] - small) / each, 1), MAX_BATCH))


def _sampled_before(path: Path, record: Path, settings: dict[str, Any]) -> int:
    """How many samples an earlier call with these settings has made. Raises SamplingError for one with others."""
    if not record.exists():
        if path.exists():
            raise SamplingError(f"{path}: exists without {record.name}, expected samples from here; move it away")
        return 0
    found = json.loads(record.read_text())
    differ = [name for name, value in settings.items() if found["settings"].get(name) != value]
    if differ:
        raise SamplingError(f"{path}: holds samples with another {', '.join(differ)}; delete {record.name} to redo")
    return found["done"]


def sample_to_disk(
    denoise: Denoise,
    config: SamplerConfig,
    count: int,
    shape: tuple[int, ...],
    seed: int,
    path: Path | str,
    weights: str = "",
    context: Tensor | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Sample objects 0 ... count - 1 into the file `path` (.npy); return it memory-mapped: (count, *shape) float32.

    An interrupted call is continued by the next one, and a finished file is returned as it is; `<path>.json` beside it
    holds the settings, with `weights` (a digest) naming the denoiser. `context` is (count, l, k). The batch size is
    16, or on CUDA what fits into memory.

    Raises `SamplingError` if the file there was made with other settings.
    """
    path = Path(path)
    require(path.suffix == ".npy", f"{path}: expected a file name that ends in .npy")
    require(context is None or len(context) == count, f"context is not one row for each of the {count} objects")
    record, partial = path.with_name(path.name + ".json"), path.with_name(path.name + ".partial")
    settings = {
        "sampler": asdict(config),
        "count": count,
        "shape": list(shape),
        "seed": seed,
        "weights": weights,
        "context": context is not None and hashlib.sha256(context.float().cpu().numpy().tobytes()).hexdigest(),
    }
    done = _sampled_before(path, record, settings)
    if path.exists() and done == count:
        return np.load(path, mmap_mode="r")
    done = done if partial.exists() else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(partial, mode="r+" if done else "w+", dtype=np.float32, shape=(count, *shape))
    if batch_size is None:
        on_cuda = torch.device(device).type == "cuda"
        batch_size = largest_batch(denoise, shape, context, device) if on_cuda else 16
    with tqdm(total=count, initial=done, desc="sampling", unit="object", disable=None) as bar:
        for start in range(done, count, batch_size):
            indices = range(start, min(start + batch_size, count))
            rows = None if context is None else context[indices.start : indices.stop]
            array[indices.start : indices.stop] = (
                sample_objects(denoise, config, indices, shape, seed, rows, device).float().cpu().numpy()
            )
            array.flush()
            write_json(record, {"settings": settings, "done": indices.stop})
            bar.update(len(indices))
    del array
    os.replace(partial, path)
    return np.load(path, mmap_mode="r")
