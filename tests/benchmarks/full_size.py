"""One training step of each stage at the paper's own size (Table 5, Chairs) with a batch of one: time and memory.

Each stage runs in a process of its own, whose peak memory is that of the stage with Python and its libraries. VGG-16
stands in for VGG-19, so that the weights that the small profiles use are enough.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import torch
from torch import Tensor

from vader.diffusion.denoising import Denoising
from vader.settings.experiment import Experiment
from vader.settings.table5 import PAPER
from vader.store.provenance import peak_memory
from vader.store.runs import Run

from . import stage1
from .contest import Quantity, alternate


def batch_of_one() -> Experiment:
    """The Chairs column for one object with four views a step, one latent a step."""
    return PAPER["photoshape_chairs"].replace(
        data=dict(num_objects=1),
        reconstruction=dict(objects_per_step=1, perceptual_images=4, perceptual_network="vgg16"),
        diffusion=dict(batch_size=1),
    )


class LatentNoise(Denoising):
    """Stage 2 on a latent of noise: what it holds does not change the cost."""

    def features(self, autodecoder_run: Run) -> Tensor:
        return torch.randn(1, *self.config.autodecoder.latent_shape)


def first_stage(device: torch.device, config: Experiment) -> list[Quantity]:
    """Seconds, shares and peak memory of stage 1."""
    return _with_memory(stage1.breakdown(device, config, repeats=1), device)


def second_stage(device: torch.device, config: Experiment) -> list[Quantity]:
    """Seconds, shares and peak memory of stage 2."""
    task = LatentNoise(config, SimpleNamespace(record={"objects": ["noise"]}), device)

    def network() -> None:
        task.step(0)

    def optimizer() -> None:
        task.optimizer.step()

    def ema() -> None:
        task.after_step(0)

    def step() -> None:
        for part in (network, optimizer, ema):
            part()

    parts: dict[str, Callable[[], None]] = {
        "step": step,
        "U-Net, forward and backward": network,
        "optimizer": optimizer,
        "EMA": ema,
    }
    timings = alternate(parts, 1, device)
    seconds = {name: statistics.median(timing.wall) for name, timing in timings.items()}
    work = f"{config.profile} step: {config.diffusion.batch_size} latent of {config.autodecoder.latent_shape}, "
    quantities = stage1.shares_of_step("stage 2", work + config.diffusion.precision, seconds)
    return _with_memory(quantities, device)


def measure(device: torch.device) -> list[Quantity]:
    """Both stages, one after the other."""
    found = []
    for stage in (first_stage, second_stage):
        with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as pool:
            found += pool.submit(stage, device, batch_of_one()).result()
    return found


def _with_memory(quantities: list[Quantity], device: torch.device) -> list[Quantity]:
    first = quantities[0]
    return [*quantities, Quantity(first.system, first.work, "peak memory, GiB", peak_memory(device) / 2**30)]
