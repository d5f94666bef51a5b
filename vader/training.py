"""One training loop for both stages: schedule, precision, checkpoints, resume.

The clock is images (stage 1) or latents (stage 2) seen. All randomness of a step comes from (seed, rank, clock), so
a resumed run draws what an uninterrupted one would have drawn. `autodecoder_run` and `diffusion_run` are how the
rest of the package asks for trained weights: found in the run store, or trained now. As a command:

    python -m vader.training --profile laptop --data furniture_chairs [--stage all] [--max-seconds 540]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import costs, runs
from .articulation.articulated import Articulation, rigid
from .autodecoder.reconstruction import Reconstruction
from .config import Experiment
from .data import SequenceSet, prepare
from .diffusion.denoising import Denoising
from .diffusion.text import text_digest, text_embeddings
from .profiles import experiment
from .runs import Paused, Run, RunError

CHECKPOINT_SECONDS = 60
LOG_POINTS = 400  # points on a run's loss curve


class Task(Protocol):
    """What a stage brings to the loop."""

    name: str  # of the stage, its loss curve and its weights
    total: int  # clock at which training ends
    per_step: int  # how far a step advances the clock
    seed: int
    device: torch.device
    optimizer: torch.optim.Optimizer
    warmup: int  # clock over which the learning rate rises from 0

    def step(self, clock: int) -> dict[str, Tensor]:
        """Forward and backward: gradients into the parameters, named losses ('loss' their sum) out."""

    def after_step(self, clock: int) -> None:
        """What follows the optimiser (the EMA)."""

    def state(self) -> dict[str, nn.Module]:
        """The modules a checkpoint holds."""

    def save(self, work: Path) -> None:
        """Write the finished stage's weights into its work folder."""


def select_device(name: str = "auto") -> torch.device:
    """'auto' is CUDA if there is one, else the CPU; a device that is named but absent is an error."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"device is {name!r}, but this torch finds no CUDA device")
    return torch.device(name)


def stream_seed(seed: int, rank: int, clock: int) -> int:
    """Seed of a step's random stream."""
    digest = hashlib.sha256(f"{seed}/{rank}/{clock}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def learning_rate_factor(clock: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup`, then linear decay to 0 at `total` (C.2)."""
    rise = min(1.0, (clock + 1) / warmup) if warmup else 1.0
    return rise * (1 - clock / total)


def fit(task: Task, work: Path, record: runs.Record, max_seconds: float | None = None) -> None:
    """Train `task` to its end in the folder `work`, from its checkpoint if there is one, and save its weights.

    Raises Paused after a checkpoint when `max_seconds` are over or the process is told to terminate (SIGTERM), and
    RunError when the loss is no longer finite.
    """
    checkpoint = work / "checkpoint.pt"
    clock = _load_checkpoint(checkpoint, task) if checkpoint.exists() else 0
    record.rewind(task.name, clock)
    bar = tqdm(total=task.total, initial=clock, desc=task.name, unit_scale=True, disable=None, smoothing=0.1)
    with bar, _sigterm_noted() as told_to_stop:
        _run_steps(task, work, record, clock, max_seconds, bar, told_to_stop)
    task.save(work)
    record.save()


def _run_steps(
    task: Task,
    work: Path,
    record: runs.Record,
    clock: int,
    max_seconds: float | None,
    bar: tqdm,
    told_to_stop: list[int],
) -> None:
    """The loop itself, from `clock` to the end."""
    checkpoint = work / "checkpoint.pt"
    rates = [group["lr"] for group in task.optimizer.param_groups]
    every = max(1, task.total // task.per_step // LOG_POINTS)
    started = saved = time.monotonic()
    while clock < task.total:
        torch.manual_seed(stream_seed(task.seed, 0, clock))
        factor = learning_rate_factor(clock, task.total, task.warmup)
        for group, rate in zip(task.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        task.optimizer.zero_grad(set_to_none=True)
        losses = task.step(clock)
        if clock // task.per_step % every == 0:
            values = {name: value.item() for name, value in losses.items()}
            if not all(abs(value) < float("inf") for value in values.values()):
                raise RunError(f"{work}: {task.name} loss is {values} at {clock} seen, expected finite numbers")
            record.log(task.name, clock, **values)
            bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
        task.optimizer.step()
        task.after_step(clock)
        clock += task.per_step
        bar.update(task.per_step)
        now = time.monotonic()
        pause = bool(told_to_stop) or (max_seconds is not None and now - started > max_seconds)
        if pause or now - saved > CHECKPOINT_SECONDS:
            _save_checkpoint(checkpoint, task, clock, rates)
            record.save()
            saved = now
        if pause and clock < task.total:
            raise Paused(f"{work}: {task.name} paused at {clock:,} of {task.total:,} seen; run it again to resume")


@contextlib.contextmanager
def _sigterm_noted() -> Iterator[list[int]]:
    """A list that SIGTERM is appended to instead of ending the process: the step in progress is finished first."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _save_checkpoint(file: Path, task: Task, clock: int, rates: list[float]) -> None:
    content = {
        "clock": clock,
        "optimizer": task.optimizer.state_dict(),
        "modules": {name: module.state_dict() for name, module in task.state().items()},
    }
    for group, rate in zip(content["optimizer"]["param_groups"], rates, strict=True):
        group["lr"] = rate  # the schedule starts from the full rate
    partial = file.with_name(file.name + ".tmp")
    torch.save(content, partial)
    partial.replace(file)


def _load_checkpoint(file: Path, task: Task) -> int:
    try:
        content = torch.load(file, weights_only=True, map_location=task.device)
        for name, module in task.state().items():
            module.load_state_dict(content["modules"][name])
        task.optimizer.load_state_dict(content["optimizer"])
        return content["clock"]
    except Exception as error:
        raise RunError(
            f"{file}: not a checkpoint of this {task.name} training ({error}); remove it to start over"
        ) from error


# ------------------------------------------------------------------------------------------------------ the stages


def autodecoder_settings(config: Experiment, data: SequenceSet) -> dict[str, Any]:
    """What decides a stage-1 run."""
    return {
        "stage": "autodecoder",
        "data": data.digest,
        "autodecoder": config.autodecoder,
        "reconstruction": config.reconstruction,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
    }


def autodecoder_run(
    config: Experiment, data: SequenceSet, device: str = "auto", max_seconds: float | None = None
) -> Run:
    """The stage-1 run of an experiment: found, or trained on the data's training objects.

    Of an articulated one, `data` are videos, and poses are learned as well (`articulated_run`).
    """
    if config.articulated:
        return articulated_run(config, data, device, max_seconds)
    settings = autodecoder_settings(config, data)

    def train(work: Path) -> None:
        task = Reconstruction(config, data, select_device(device))
        record = runs.Record(work, config.seed, task.device, pixels=data.pixel_record(), **task.facts())
        fit(task, work, record, max_seconds)

    return runs.get(f"{data.name}-autodecoder", settings, train, data)


def articulated_run(
    config: Experiment, data: SequenceSet, device: str = "auto", max_seconds: float | None = None
) -> Run:
    """The stage-1 run of videos; with more than one part it starts from a run with one, which is trained first."""
    start = None
    if config.autodecoder.lbs_channels > 1 and config.articulation.rigid_images:
        start = articulated_run(rigid(config, config.articulation.rigid_images), data, device, max_seconds)
    settings = autodecoder_settings(config, data)
    settings |= {"articulation": config.articulation, "start": start.digest if start else None}

    def train(work: Path) -> None:
        task = Articulation(config, data, select_device(device), start)
        record = runs.Record(work, config.seed, task.device, pixels=data.pixel_record(), **task.facts())
        fit(task, work, record, max_seconds)

    return runs.get(f"{data.name}-autodecoder", settings, train, data)


def diffusion_run(config: Experiment, data: SequenceSet, device: str = "auto", max_seconds: float | None = None) -> Run:
    """The stage-2 run of an experiment, on the latents of its stage-1 run, which is trained first if need be.

    Of a conditional experiment, the captions and their encoding are settings too. Raises DataError, before any
    training, for a caption that is missing.
    """
    conditions = {"text": text_digest(data, config.text)} if config.conditional else {}
    stage1 = autodecoder_run(config, data, device, max_seconds)
    settings = {
        "stage": "diffusion",
        "autodecoder": stage1.digest,
        "unet": config.unet,
        "diffusion": config.diffusion,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
        **conditions,
    }

    def train(work: Path) -> None:
        contexts = None
        if config.conditional:
            contexts = text_embeddings(data, config.text).rows(data, "train", config.unet.context_dim)
        task = Denoising(config, stage1, select_device(device), contexts)
        fit(task, work, runs.Record(work, config.seed, task.device, **task.facts()), max_seconds)

    return runs.get(f"{data.name}-diffusion", settings, train)


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit status 0 when finished, 75 (temporary failure: run it again) when paused."""
    parser = argparse.ArgumentParser(prog="python -m vader.training", description=main.__doc__)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--data", required=True, help="data set, e.g. furniture_chairs")
    parser.add_argument("--stage", choices=("autodecoder", "diffusion", "all"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-seconds", type=float, help="stop after this long with a checkpoint, to be resumed")
    parser.add_argument("--source", help="where the furniture models are, if not in their usual place")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    config = experiment(options.profile, options.data).replace(seed=options.seed)
    if options.dry_run:
        print(plan(config))
        return 0
    data = prepare(config.data, **({"source": options.source} if options.source else {}))
    stage = autodecoder_run if options.stage == "autodecoder" else diffusion_run
    try:
        run = stage(config, data, options.device, options.max_seconds)
    except Paused as pause:
        print(pause, file=sys.stderr)
        return 75
    print(f"{run.folder} ({run.record['seconds']:.0f} s on {run.record['device']})")
    return 0


def plan(config: Experiment) -> str:
    """Parameters and steps of both stages, in words."""
    size = costs.parameters(config)
    first, second = config.reconstruction, config.diffusion
    images = first.objects_per_step * first.views_per_object
    one_part = config.articulation.rigid_images if config.autodecoder.lbs_channels > 1 else 0
    before = [f"before it, the same with one part: {one_part:,} images"] if one_part else []
    return "\n".join(
        [
            f"{config.data.name}, profile {config.profile}, seed {config.seed}; runs are kept in {runs.runs_dir()}",
            f"stage 1: decoder {size['G1'] + size['G2']:,} + embeddings {size['embedding']:,} parameters, "
            f"{first.images_seen:,} images in {-(-first.images_seen // images):,} steps of {images}",
            *before,
            f"stage 2: U-Net {size['denoiser']:,} parameters, "
            f"{second.latents_seen:,} latents in {-(-second.latents_seen // second.batch_size):,} steps "
            f"of {second.batch_size}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
