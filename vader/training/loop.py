"""One training loop for all stages: schedule, clipping, logs, checkpoints, resume; on one rank or on many.

The clock is images (stage 1) or latents (stage 2) seen. All randomness of a step comes from (seed, microbatch,
clock), so a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from ..settings.checks import require
from ..store import runs
from ..store.files import read_json
from ..store.provenance import peak_memory
from ..store.runs import Paused, RunError
from . import checkpoints
from .distributed import ALONE, Ranks, current, stream_seed
from .launch import PROGRESS
from .process import keep_freed_memory, sigterm_noted
from .sharding import load_module, local, shape_moments, whole

CHECKPOINT_SECONDS = 60.0
RECORD_SECONDS = 10.0  # between saved records: what a killed process leaves of the time it took
LOG_POINTS = 400  # points on a run's loss curve
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


class DistributedTask(Task, Protocol):
    """What a task has besides where it trains on several ranks, clips gradients or names its data; all optional.

    Its losses are then this rank's part of a sum over ranks, its gradients are summed already (`Ranks.accumulate`),
    and `save` is called on every rank.
    """

    ranks: Ranks
    clip_norm: float  # largest norm of all gradients together; 0: any
    clip_value: float  # largest magnitude of a gradient's entry; 0: any
    rows: Rows | None  # a library of which every rank has a part

    def batch(self, clock: int) -> list[str]:
        """Keys of the objects that the step at this clock draws."""


class Rows(Protocol):
    """Parameters that no other rank has, by partition of the library."""

    partitions: list[int]  # this rank's

    def parameters(self) -> list[nn.Parameter]: ...

    def state(self, partition: int) -> dict[str, Tensor]: ...

    def load_state(self, partition: int, state: dict[str, Tensor]) -> None: ...


def learning_rate_factor(clock: int, total: int, warmup: int) -> float:
    """Linear warm-up over `warmup`, then linear decay to 0 at `total` (C.2)."""
    rise = min(1.0, (clock + 1) / warmup) if warmup else 1.0
    return rise * (1 - clock / total)


def fit(
    task: Task,
    work: Path,
    record: runs.Record,
    max_seconds: float | None = None,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tensorboard: bool = False,
    skip_non_finite: bool = False,
) -> None:
    """Train `task` to its end in the folder `work`, from its newest checkpoint if there is one, and save its weights.

    Every `checkpoint_seconds` a checkpoint is written, two are kept (`checkpoints`). `log.jsonl` and, if asked for,
    TensorBoard get losses, learning rate, images per second and memory. A step whose loss or gradient is not finite
    ends the training, or, with `skip_non_finite`, leaves the weights as they are and is counted in the record.

    Raises Paused after a checkpoint when `max_seconds` are over or the process is told to terminate (SIGTERM), and
    RunError when the loss is not finite (naming the step and its objects), when the disk is full, or
    when none of those there can be used. Raises ConfigError where there are more ranks than the task knows of.
    """
    ranks: Ranks = getattr(task, "ranks", ALONE)
    there = current().size
    require(ranks.size == there, f"{task.name} trains on one rank only, but there are {there}")
    if task.device.type == "cpu":
        keep_freed_memory()
    file = Path(work) / "settings.json"
    settings = read_json(file)["settings"] if file.is_file() else None
    clock = _resume(task, work, settings, ranks)
    for curve in (task.name, "skipped"):
        record.rewind(curve, clock)
    try:
        if ranks.first:
            record.save()  # a process that is killed before its first checkpoint has a session, too
        with _Log(task, work, record, clock, tensorboard and ranks.first) as log, sigterm_noted() as told_to_stop:
            loop = _Loop(task, work, log, ranks, settings, skip_non_finite)
            loop.run(clock, max_seconds, checkpoint_seconds, told_to_stop)
        if ranks.first or ranks.size > 1:
            task.save(work)
        if ranks.first:
            record.save()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunError(f"{work}: cannot be written ({error}), so training stops; {checkpoints.kept(work)}") from error
    ranks.told()  # nobody leaves before the weights are written


class _Loop:
    """A training under way."""

    def __init__(self, task: Task, work: Path, log: _Log, ranks: Ranks, settings: Any, skip: bool) -> None:
        self.task, self.work, self.log, self.ranks, self.settings, self.skip = task, work, log, ranks, settings, skip
        self.rates = [group["lr"] for group in task.optimizer.param_groups]
        rows = getattr(task, "rows", None)
        self.rows: list[nn.Parameter] = rows.parameters() if rows else []
        mine = {id(p) for p in self.rows}
        groups = task.optimizer.param_groups
        self.shared = [p for group in groups for p in group["params"] if id(p) not in mine]
        self.buffers = [b for module in task.state().values() for b in module.buffers()]
        self.clip_norm, self.clip_value = getattr(task, "clip_norm", 0.0), getattr(task, "clip_value", 0.0)
        # clock of the first step that was not finite, on the device, so that noting it waits for nothing
        self.sick = torch.full((), math.inf, dtype=torch.float64, device=task.device)

    def run(self, clock: int, max_seconds: float | None, checkpoint_seconds: float, told_to_stop: list[int]) -> None:
        task = self.task
        every = max(1, task.total // task.per_step // LOG_POINTS)
        started = saved = time.monotonic()
        while clock < task.total:
            torch.manual_seed(stream_seed(task.seed, 0, clock))
            factor = learning_rate_factor(clock, task.total, task.warmup)
            for group, rate in zip(task.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            task.optimizer.zero_grad(set_to_none=True)
            before = [b.clone() for b in self.buffers] if self.skip else []
            losses = task.step(clock)
            norm = self._clip()
            self._note(clock, losses["loss"], norm)
            logged = clock // task.per_step % every == 0
            now = time.monotonic()
            over = bool(told_to_stop) or (max_seconds is not None and now - started > max_seconds)
            due = over or now - saved > checkpoint_seconds
            look = self.skip or logged or due or task.device.type == "cpu"
            sick = -self.sick.item() if look else -math.inf  # the earliest over ranks is the largest of these
            over, due, sick = self.ranks.largest([over, due, sick])
            if sick > -math.inf and not self.skip:
                raise RunError(self._diagnosis(int(-sick), losses))
            if sick > -math.inf:
                self.sick.fill_(math.inf)
                for buffer, old in zip(self.buffers, before, strict=True):
                    buffer.copy_(old)
                self.log.record.log("skipped", clock, steps=1)
            else:
                if logged:
                    self.log.write(clock, self._mean(losses), factor * self.rates[0], norm)
                task.optimizer.step()
                task.after_step(clock)
            clock += task.per_step
            self.log.bar.update(task.per_step)
            if due:
                self._save(clock)
                saved = time.monotonic()
            if over and clock < task.total:
                raise Paused(
                    f"{self.work}: {task.name} paused at {clock:,} of {task.total:,} seen; run it again to resume"
                )

    def _clip(self) -> Tensor | None:
        """Bound the gradients as the task wishes; their norm over everything before that, if it was needed."""
        norm = None
        if not (self.clip_value or self.clip_norm):
            return norm
        # torch's functions that clip refuse divided gradients beside whole ones
        parts = [local(p.grad for p in group if p.grad is not None) for group in (self.shared, self.rows)]
        if self.clip_value:
            for gradients in filter(None, parts):
                torch._foreach_clamp_min_(gradients, -self.clip_value)
                torch._foreach_clamp_max_(gradients, self.clip_value)
        if self.clip_norm:
            square = get_total_norm([p.grad for p in self.rows if p.grad is not None]).square().to(self.task.device)
            square = self.ranks.sum(square, "norm") if self.rows else square
            shared = get_total_norm([p.grad for p in self.shared if p.grad is not None])
            norm = (square + whole(shared).square()).sqrt()
            factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradients in filter(None, parts):
                torch._foreach_mul_(gradients, factor.to(gradients[0].device))
        return norm

    def _note(self, clock: int, loss: Tensor, norm: Tensor | None) -> None:
        finite = loss.isfinite() if norm is None else loss.isfinite() & norm.isfinite()
        self.sick = torch.where(finite, self.sick, self.sick.clamp(max=clock))

    def _mean(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """The losses of a step over all ranks."""
        values = torch.stack([value.double() for value in losses.values()])
        return dict(zip(losses, self.ranks.sum(values, "losses").tolist(), strict=True))

    def _diagnosis(self, clock: int, losses: dict[str, Tensor]) -> str:
        task = self.task
        text = f"{self.work}: {task.name} loss or its gradient is not finite at {clock:,} seen (step "
        text += f"{clock // task.per_step:,}), expected finite numbers; this rank's latest losses: "
        text += ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        if hasattr(task, "batch"):
            torch.manual_seed(stream_seed(task.seed, 0, clock))
            text += f"; objects of the step: {', '.join(task.batch(clock))}"
        left = checkpoints.checkpoints(self.work)
        return text + f"; {left[0].name + ' is from before' if left else 'there is no checkpoint from before'}"

    def _save(self, clock: int) -> None:
        """Write a checkpoint, unless a weight is not finite (after a gradient that was not): then it is an error."""
        with torch.no_grad():
            weights = [*self.shared, *self.rows, *(b for b in self.buffers if b.is_floating_point())]
            finite = all(norm.isfinite() for norm in torch._foreach_norm(local(weights), math.inf)) if weights else True
        if self.ranks.largest([not finite])[0]:
            raise RunError(
                f"{self.work}: {self.task.name} has weights that are not finite at {clock:,} seen, though its losses "
                "were; the last checkpoint is from before"
            )
        rows = getattr(self.task, "rows", None)
        content = self._content()
        parts = [(checkpoints.SHARED, lambda: content)] if self.ranks.first else []
        parts += [(checkpoints.rows_part(j), lambda j=j: rows.state(j)) for j in (rows.partitions if rows else [])]
        checkpoints.write(self.work, self.task.name, clock, parts, self.settings, self.ranks)
        if self.ranks.first:
            self.log.record.save()

    def _content(self) -> dict[str, Any]:
        optimizer = self.task.optimizer.state_dict()
        # the schedule starts from the full rate; groups of rows, which come last, are not in the content
        for group, rate in zip(optimizer["param_groups"], self.rates, strict=False):
            group["lr"] = rate
        modules = {name: module.state_dict() for name, module in self.task.state().items()}
        return whole({"optimizer": optimizer, "modules": modules})


def _resume(task: Task, work: Path, settings: Any, ranks: Ranks) -> int:
    """Put the newest usable checkpoint into the task and return its clock, 0 where there is none."""
    rows = getattr(task, "rows", None)
    own = rows.partitions if rows else []
    parts = [checkpoints.SHARED, *map(checkpoints.rows_part, own)]
    folder = checkpoints.newest(work, task.name, parts, settings, ranks)
    if folder is None:
        return 0
    content = checkpoints.read(folder, checkpoints.SHARED, task.device)
    try:
        for name, module in task.state().items():
            load_module(module, content["modules"][name])
        task.optimizer.load_state_dict(content["optimizer"])
        for optimizer in getattr(task.optimizer, "parts", [task.optimizer]):
            shape_moments(optimizer)
        for j in own:
            rows.load_state(j, checkpoints.read(folder, checkpoints.rows_part(j), task.device))
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RunError(
            f"{folder}: not a checkpoint of this {task.name} training ({error}); remove it to start over"
        ) from error
    return int(folder.name.split("-")[1])


class _Log:
    """Where a training shows: the record's curve, `log.jsonl`, TensorBoard if asked for, and a progress bar."""

    def __init__(self, task: Task, work: Path, record: runs.Record, clock: int, tensorboard: bool) -> None:
        self.task, self.record, self.clock, self.since = task, record, clock, time.monotonic()
        self.saved = self.since
        self.first = getattr(task, "ranks", ALONE).first
        self.file = Path(work) / "log.jsonl"
        self.writer = _summary_writer(Path(work) / "tensorboard") if tensorboard else None
        self.bar = tqdm(
            total=task.total,
            initial=clock,
            desc=task.name,
            unit_scale=True,
            disable=not self.first or (None if PROGRESS not in os.environ else False),
            smoothing=0.1,
        )

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def write(self, clock: int, losses: dict[str, float], rate: float, norm: Tensor | None) -> None:
        """A point: losses into the record, these and the machine's state into the logs."""
        now, memory = time.monotonic(), peak_memory(self.task.device)
        speed = (clock - self.clock) / max(now - self.since, 1e-9)
        self.clock, self.since = clock, now
        if not self.first:
            return
        self.record.log(self.task.name, clock, **{name: float(f"{loss:.6g}") for name, loss in losses.items()})
        if now - self.saved > RECORD_SECONDS:
            self.record.save()
            self.saved = now
        self.bar.set_postfix(loss=f"{losses['loss']:.4g}", refresh=False)
        values = {**losses, "learning_rate": rate, "per_second": speed, "peak_memory_bytes": memory}
        if norm is not None:
            values["gradient_norm"] = norm.item()
        with open(self.file, "a", encoding="utf-8") as stream:
            session = len(self.record.content["sessions"])
            stream.write(json.dumps({"clock": clock, "session": session, **values}) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{self.task.name}/{name}", value, clock)


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard logs need the extra 'scale': pip install 'vader[scale]'") from error
    return SummaryWriter(str(folder))
