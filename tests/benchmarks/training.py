"""Training: two ranks against one, what the loop adds to a step, and four views of an object against one."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from tests.ranks import given_latents
from vader.autodecoder.reconstruction import Reconstruction
from vader.settings.experiment import Experiment
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER
from vader.store import runs
from vader.store.runs import Paused, RunError
from vader.studies.scaling import measure, noise_pictures
from vader.training import fit

from .contest import Quantity, alternate, speed_rows

CPU = torch.device("cpu")


def laptop(**reconstruction) -> Experiment:
    return experiment("laptop", "furniture_chairs").replace(reconstruction=reconstruction)


def two_ranks(config: Experiment | None = None, repeats: int = 3, steps: int = 8) -> list[dict]:
    """Two gloo ranks, a core each, against one rank on one core: the same steps of the same two microbatches.

    Raises RunError where other processes had the cores for more than a fifth of the time: what two ranks gain is then
    what these lose.
    """
    config = config or laptop(microbatches=2, partitioned=True)
    settings = config.reconstruction
    ratios = []
    for _ in range(repeats):
        measured = [measure({"": (config, config.data.num_objects)}, n, steps)[""] for n in (1, 2)]
        if (share := min(m.processor for m in measured)) < 0.8:
            raise RunError(f"ranks had a core for {share:.0%} of the time, expected 80 %; have nothing else run")
        one, two = (statistics.median(m.seconds[1:]) for m in measured)
        ratios.append(one / two)
    work = f"{config.profile} step of {settings.objects_per_step} objects x {settings.views_per_object} views"
    return [
        {
            "system": "two ranks",
            "against": "one rank",
            "work": f"{work}, one thread a rank, wall seconds",
            "metric": "speed_ratio",
            "value": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "n": repeats,
        }
    ]


def loop_share(config: Experiment | None = None, seconds: float = 130.0, checkpoint_seconds: float = 60.0):
    """Shares of training time that go into logs, moving average and checkpoints (one a minute, and the last)."""
    config = config or laptop()
    latents = torch.randn(config.data.num_objects, *config.autodecoder.latent_shape)
    tasks = {
        "stage 1": Reconstruction(config, noise_pictures(config, config.data.num_objects), CPU),
        "stage 2": given_latents(config, latents),
    }
    return [
        Quantity("training loop", f"{config.profile} {name}", "share of the time besides step and optimiser", share)
        for name, task in tasks.items()
        for share in [_share(task, seconds, checkpoint_seconds)]
    ]


def _share(task, seconds: float, checkpoint_seconds: float) -> float:
    spent = 0.0

    def timed(function):
        def run(*arguments):
            nonlocal spent
            begun = time.perf_counter()
            result = function(*arguments)
            spent += time.perf_counter() - begun
            return result

        return run

    task.step, task.optimizer.step = timed(task.step), timed(task.optimizer.step)
    with tempfile.TemporaryDirectory() as folder:
        record = runs.Record(Path(folder), 0)
        begun = time.perf_counter()
        try:
            fit(task, Path(folder), record, seconds, checkpoint_seconds=checkpoint_seconds)
        except Paused:
            pass
        return 1 - spent / (time.perf_counter() - begun)


def views(channels: tuple[int, ...] = (128, 256, 512), repeats: int = 5, **data: int) -> list[dict]:
    """Four views of an object against one, on the paper's chairs decoder at half its resolution and several widths.

    Images are twice as wide as the volume and all of them go through VGG, as in the paper (VGG-16 for its VGG-19).
    """
    data = {"num_objects": 1, "train_views": 4, "heldout_views": 1, "resolution": 64} | data
    rows = []
    for width in channels:
        config = PAPER["photoshape_chairs"].replace(
            data=data, autodecoder=dict(max_channels=width, resolution=data["resolution"] // 2)
        )
        tasks = {}
        for count in (1, 4):
            seen = dict(objects_per_step=1, views_per_object=count, num_samples=64)
            seen |= dict(perceptual_images=count, perceptual_network="vgg16")
            one = config.replace(reconstruction=seen)
            tasks[count] = Reconstruction(one, noise_pictures(one, 1), CPU)
        timings = alternate({f"{n} views": lambda task=task: _step(task) for n, task in tasks.items()}, repeats)
        work = f"step of one object, {config.autodecoder.resolution}^3 voxels, {width} channels, depth 4, VGG-16"
        rows += speed_rows("1 view", timings["1 views"], {"4 views": timings["4 views"]}, work)
    return rows


def _step(task: Reconstruction) -> None:
    task.optimizer.zero_grad(set_to_none=True)
    task.step(0)
    task.optimizer.step()
