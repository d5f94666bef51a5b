"""Bytes that a step of stage 1 exchanges, against the number of objects: measured on ranks here, modelled beyond.

There are three ways to keep a library of N embeddings:

- *dense*: all rows on every rank, their gradient reduced as DDP does.
- *partitioned*: every rank owns the rows that it trains.
- *hashed* (B.3): codebooks on every rank.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch

from ..autodecoder.reconstruction import Reconstruction
from ..data import Sequence, SequenceSet
from ..evaluation import costs
from ..rendering.cameras import sample_orbit
from ..settings.experiment import Experiment
from ..training.distributed import current, joined, stream_seed

LIBRARIES = ("dense", "partitioned", "hashed")


def variants(config: Experiment, microbatches: int, hash_rows: int, hash_codebooks: int = 256) -> dict[str, Experiment]:
    """The three ways, with steps that up to `microbatches` ranks can share."""
    changes = {
        "dense": ({}, {}),
        "partitioned": (dict(partitioned=True), {}),
        "hashed": (dict(partitioned=True), dict(hash_rows=hash_rows, hash_codebooks=hash_codebooks)),
    }
    plain = config.replace(
        autodecoder=dict(hash_rows=0, hash_codebooks=256), reconstruction=dict(microbatches=microbatches)
    )
    return {name: plain.replace(reconstruction=r, autodecoder=a) for name, (r, a) in changes.items()}


def modelled(config: Experiment, objects: int, ranks: int) -> int:
    """Bytes that a rank puts into the exchanges of a step, counted on a model that was never built."""
    return sum(costs.exchanged(config, "autodecoder", ranks, objects).values())


@dataclass(frozen=True)
class Steps:
    """Bytes and seconds of some steps on one rank."""

    bytes: dict[str, float]  # per step, by kind
    seconds: list[float]  # of each step
    processor: float  # share of these seconds in which this rank's one thread had a core


def measure(jobs: dict[Any, tuple[Experiment, int]], ranks: int, steps: int = 2) -> dict[Any, Steps]:
    """Train every job (experiment, objects) for some steps on a group of gloo ranks; what the first rank put in."""
    return on_ranks(_measure, ranks, jobs, steps)[0]


def on_ranks(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """function(*arguments) in a group of so many processes of this machine, one thread each; what each returned."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once
    with ProcessPoolExecutor(ranks, context) as pool:
        futures = [pool.submit(_member, function, rank, ranks, port, arguments) for rank in range(ranks)]
        return [future.result() for future in futures]


def _member(function: Callable[..., Any], rank: int, ranks: int, port: int, arguments: tuple) -> Any:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    with joined():
        return function(*arguments)


def _measure(jobs: dict[Any, tuple[Experiment, int]], steps: int) -> dict[Any, Steps]:
    measured = {}
    for key, (config, objects) in jobs.items():
        ranks, seconds = current(), []
        task = Reconstruction(config, noise_pictures(config, objects), torch.device("cpu"), ranks)
        processor = time.process_time()
        for step in range(steps):
            begun = time.perf_counter()
            clock = step * task.per_step
            torch.manual_seed(stream_seed(config.seed, 0, clock))
            task.optimizer.zero_grad(set_to_none=True)
            task.step(clock)
            ranks.largest([0, 0, 0])  # as the loop does
            task.optimizer.step()
            seconds.append(time.perf_counter() - begun)
        processor = (time.process_time() - processor) / sum(seconds)
        measured[key] = Steps({kind: count / steps for kind, count in ranks.sent.items()}, seconds, processor)
    return measured


def noise_pictures(config: Experiment, objects: int) -> SequenceSet:
    """Objects with random pixels: what they show changes neither the exchange nor the cost of a step."""
    data, sequences = config.data, []
    for index in range(objects):
        generator = torch.Generator().manual_seed(index)
        cameras = sample_orbit(data.train_views + data.heldout_views, data, generator)
        shape = (len(cameras), data.resolution, data.resolution)
        images = torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8)
        masks = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        sequences.append(Sequence(f"noise-{index}", images, masks, cameras, "train"))
    return SequenceSet("noise", "0" * 64, tuple(sequences), data.train_views, data.heldout_views, None, "1" * 64)
