"""Training costs of the systems of Table 1 on one core, from timed samples of their steps.

A run's record has its seconds of wall time, on a machine that may have done other things besides. Here the trainings of
all systems are timed in turns on the same machine, so that their costs can be compared:

    vader study budget --profile laptop --data furniture_chairs

writes `reports/budget-<data>-<profile>.json`, which `table1` reads. Run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..autodecoder.reconstruction import Reconstruction
from ..baselines.diffrf import FieldDiffusion
from ..baselines.eg3d import EG3D
from ..baselines.pi_gan import PI_GAN
from ..baselines.radiance_fields import FieldFitting
from ..data import SequenceSet
from ..diffusion.denoising import Denoising
from ..settings.diffrf import diffrf
from ..settings.experiment import Experiment
from ..stages import autodecoder_run
from ..store.files import read_json, write_json
from ..store.paths import project_root, reports_dir
from ..store.provenance import environment
from ..training.loop import Task
from ..training.process import keep_freed_memory

PLACES = 8  # along a training at which steps are timed: what a step costs may change (π-GAN's grows with its pictures)
TURNS = 3


@dataclass(frozen=True)
class Cost:
    """Cost of one training: its `steps` in all, and the seconds of one step, once for each turn."""

    system: str
    stage: str
    seen: int  # images (stage 1, GANs), rays, latents or fields: the clock of its loop
    steps: int
    seconds_per_step: tuple[float, ...]

    @property
    def minutes(self) -> float:
        """Minutes of the whole training, at the median over turns."""
        return self.steps * statistics.median(self.seconds_per_step) / 60


def trainings(config: Experiment, data: SequenceSet) -> dict[tuple[str, str], Callable[[], Task]]:
    """{(system, stage): its task}, of ours and of the three baselines, in the order of a run of all."""
    cpu, fields = torch.device("cpu"), diffrf(config.profile, config.seed)
    count = len(data.split("train"))
    return {
        ("ours", "autodecoder"): lambda: Reconstruction(config, data, cpu),
        ("ours", "diffusion"): lambda: Denoising(config, autodecoder_run(config, data, "cpu"), cpu),
        ("diffrf", "fields"): lambda: FieldFitting(fields.fields, data, config.seed, cpu),
        # what the fields show changes nothing about the cost of a step
        ("diffrf", "diffusion"): lambda: FieldDiffusion(
            fields, data, torch.rand(count, *fields.fields.shape) * 2 - 1, cpu
        ),
        ("eg3d", "adversarial"): lambda: EG3D.task(config, EG3D.settings(config.profile), data, cpu),
        ("pi_gan", "adversarial"): lambda: PI_GAN.task(config, PI_GAN.settings(config.profile), data, cpu),
    }


def timed_steps(task: Task, places: int = PLACES) -> float:
    """Mean seconds of a step, over `places` stretches along the training, each as long as the cycle of R1 if any."""
    cycle = getattr(getattr(task, "settings", None), "r1_every", 1)
    seconds, counted, steps = 0.0, 0, task.total // task.per_step
    for group in task.optimizer.param_groups:
        group["lr"] = 0.0  # the weights stay
    for place in range(places):
        first = min(int((place + 0.5) / places * steps), max(0, steps - cycle))
        for step in range(first, min(first + cycle, steps)):
            clock = step * task.per_step
            torch.manual_seed(step)
            begun = time.perf_counter()
            task.optimizer.zero_grad(set_to_none=True)
            task.step(clock)
            task.optimizer.step()
            task.after_step(clock)
            seconds, counted = seconds + time.perf_counter() - begun, counted + 1
    return seconds / counted


def measure(config: Experiment, data: SequenceSet, turns: int = TURNS, places: int = PLACES) -> list[Cost]:
    """The cost of each training on one thread, timed in turns after a warm-up."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tasks = {name: build() for name, build in trainings(config, data).items()}
        for task in tasks.values():
            timed_steps(task, 1)
        seconds = {name: [] for name in tasks}
        for _ in range(turns):
            for name, task in tasks.items():
                seconds[name].append(timed_steps(task, places))
    finally:
        torch.set_num_threads(threads)
    return [Cost(*name, task.total, task.total // task.per_step, tuple(seconds[name])) for name, task in tasks.items()]


def budget_file(data: str, profile: str) -> Path:
    return reports_dir() / f"budget-{data}-{profile}.json"


def read_budget(config: Experiment) -> list[Cost]:
    """Measured costs of an experiment, times the steps that its trainings take now. Empty where none were measured.

    Where the reports folder is another ($VADER_REPORTS) and has no such file, the committed one is read.
    """
    file = budget_file(config.data.name, config.profile)
    file = file if file.is_file() else project_root() / "reports" / file.name
    if not file.is_file():
        return []
    costs = [Cost(**{**c, "seconds_per_step": tuple(c["seconds_per_step"])}) for c in read_json(file)["costs"]]
    now = lengths(config)
    return [replace(c, **now[c.system, c.stage]) if (c.system, c.stage) in now else c for c in costs]


def lengths(config: Experiment) -> dict[tuple[str, str], dict[str, int]]:
    """{(system, stage): clock and steps} of the trainings whose length the settings alone decide."""
    first, second, fields = config.reconstruction, config.diffusion, diffrf(config.profile, config.seed).diffusion
    gans = {(gan.name, "adversarial"): gan.settings(config.profile) for gan in (EG3D, PI_GAN)}
    seen = {
        ("ours", "autodecoder"): (first.images_seen, first.objects_per_step * first.views_per_object),
        ("ours", "diffusion"): (second.latents_seen, second.batch_size),
        ("diffrf", "diffusion"): (fields.fields_seen, fields.batch_size),
        **{name: (settings.images_seen, settings.batch_size) for name, settings in gans.items()},
    }
    return {name: {"seen": total, "steps": total // per_step} for name, (total, per_step) in seen.items()}


def lines(costs: list[Cost]) -> Iterator[str]:
    """The cost of each system in words."""
    for system in dict.fromkeys(cost.system for cost in costs):
        stages = [cost for cost in costs if cost.system == system]
        parts = ", ".join(f"{c.stage} {c.minutes:.0f} ({c.steps:,} steps)" for c in stages)
        yield f"{system}: {sum(c.minutes for c in stages):.0f} minutes of one core: {parts}"


def measure_and_write(config: Experiment, data: SequenceSet) -> list[Cost]:
    """`measure`, kept in `budget_file`."""
    costs = measure(config, data)
    content = {"environment": environment("cpu"), "costs": [asdict(cost) for cost in costs]}
    write_json(budget_file(config.data.name, config.profile), content)
    return costs
