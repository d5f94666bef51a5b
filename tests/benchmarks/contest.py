"""Timing contestants side by side: in one process, in turns, in wall-clock and in CPU seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one contestant; CPU seconds are those of all threads, not of child processes."""

    wall: list[float]
    cpu: list[float]


@dataclass(frozen=True)
class Quantity:
    """A measured or counted number of one system that is no ratio of two contestants."""

    system: str
    work: str
    name: str
    value: float


def alternate(
    contestants: dict[str, Callable[[], object]], repeats: int, device: torch.device | str = "cpu"
) -> dict[str, Timing]:
    """Run every contestant once to warm up, then all of them in turn, `repeats` times."""
    on_cuda = torch.device(device).type == "cuda"
    for run in contestants.values():
        run()
    timings = {name: Timing([], []) for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            if on_cuda:
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if on_cuda:
                torch.cuda.synchronize()
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
    return timings


def speed_rows(system: str, ours: Timing, peers: dict[str, Timing], work: str, share: float = 1.0) -> list[dict]:
    """Rows of a benchmark report: how many times as long each peer takes, repetition by repetition.

    share: the part of the peers' work that they were given; their seconds are divided by it.
    """
    rows = []
    for against, peer in peers.items():
        for clock in ("wall", "cpu"):
            pairs = zip(getattr(peer, clock), getattr(ours, clock), strict=True)
            ratios = [theirs / share / own for theirs, own in pairs]
            rows.append(
                {
                    "system": system,
                    "against": against,
                    "work": f"{work}, {clock} seconds",
                    "metric": "speed_ratio",
                    "value": statistics.median(ratios),
                    "min": min(ratios),
                    "max": max(ratios),
                    "n": len(ratios),
                }
            )
    return rows
