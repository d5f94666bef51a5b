"""Work on a CPU for all cores: whole jobs side by side, each on a core of its own.

Where every operation is shared among the cores, they wait for each other at each of thousands of small operations. If
something else runs on one core, all of them wait for that one: twenty times as long and more. Jobs that share nothing
wait once, at the end. Their results are also the same bits for every number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

BATCH = 16  # samples that one core computes at once: fewer cost more each, and more leave cores without work
Job, Result = TypeVar("Job"), TypeVar("Result")


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Operations of torch and of numpy's linear algebra take one thread each; how many torch took before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield threads
    finally:
        torch.set_num_threads(threads)


def side_by_side(
    work: Callable[[Job], Result], jobs: Iterable[Job], device: torch.device | str = "cpu"
) -> Iterator[Result]:
    """work(job) of all jobs in their order, on a CPU as many at once as torch has threads; elsewhere one by one.

    `work` runs in other threads: it must change nothing that two jobs share, and has to turn off gradients itself. It
    may have jobs of its own, which are then done one by one.
    """
    if torch.device(device).type != "cpu" or torch.get_num_threads() == 1:
        yield from map(work, jobs)
        return
    with one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, jobs)


def spread(
    system: Callable[[Sequence[int], int], Tensor], device: torch.device, batch: int = BATCH
) -> Callable[[Sequence[int], int], Tensor]:
    """A system of `generation` that on a CPU draws its samples (n, ...) in batches, a core for each."""

    def draw(indices: Sequence[int], seed: int) -> Tensor:
        size = batch if device.type == "cpu" else len(indices)
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        return torch.cat(list(side_by_side(lambda batch: system(batch, seed), batches, device)))

    return draw
