"""Sweeps of settings: components of the autodecoder (Tab. 2), resolution and steps of diffusion (Fig. 3, 10).

A sweep is a dictionary of experiments, all derived from one base by `Experiment.replace`, times seeds of training. Each
is trained (a run of its own, found again or resumed) and measured. The measurements of all of them are one table, which
is a run as well. Trainings of different experiments go on in parallel processes of one thread each:

    vader study table2 --profile laptop --max-seconds 540 --workers 2

Exit status 75 means "run it again". The notebooks `table2`, `figure3` and `figure10` read the tables.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..autodecoder.reconstruction import load_autodecoder
from ..data import DataError, SequenceSet, load_set
from ..evaluation import costs
from ..evaluation import pictures as evaluation
from ..evaluation.metrics.features import Features
from ..evaluation.metrics.surfaces import solid_parts
from ..generation import volumes as generation
from ..generation.volumes import Models
from ..report import decide, figures, seed_interval
from ..settings.checks import require
from ..settings.experiment import EvaluationConfig, Experiment
from ..settings.studies import study
from ..stages import autodecoder_run, diffusion_run, require_weights
from ..store import runs
from ..store.files import read_weights, save_weights
from ..store.runs import Paused, Run
from ..training import select_device
from ..training.process import in_processes

Measurements = dict[str, Tensor]  # of one training, by quantity


@dataclass(frozen=True)
class Sweep:
    """Named experiments with all that is shared by them. `budget` says in words what is equal among the trainings."""

    name: str
    base: Experiment
    experiments: dict[str, Experiment]
    seeds: tuple[int, ...]
    budget: str
    measure: Callable[[Sweep, Experiment, SequenceSet, str, float | None], Measurements]  # trains what is missing


SEEDS = {"smoke": 2, "laptop": 3}  # of training, from the first one on


# ------------------------------------------------------------------------------------------------------ Table 2


def table2(profile: str, seed: int = 0) -> Sweep:
    """Table 2: the autodecoder, and what it is without its components, removed one after the other. seed: the first."""
    base = study("table2", profile).replace(seed=seed)
    stage1, g = base.reconstruction, base.autodecoder
    require(g.depth > 1 and bool(g.attention_resolutions), "the base has no depth or attention that could be removed")
    one_view = dict(
        views_per_object=1,
        images_seen=stage1.images_seen // stage1.views_per_object,
        density_noise_images=stage1.density_noise_images // stage1.views_per_object,
    )
    removals = {
        "multi_frame": dict(reconstruction=one_view),
        "self_attention": dict(autodecoder=dict(attention_resolutions=())),
        "depth": dict(autodecoder=dict(depth=1)),
        "embedding_length": dict(autodecoder=dict(embedding_dim=g.embedding_dim // 16)),  # 1024 -> 64
    }
    experiments = {"ours": base}
    for name, change in removals.items():
        experiments[name] = list(experiments.values())[-1].replace(**change)
    steps = stage1.images_seen // (stage1.objects_per_step * stage1.views_per_object)
    budget = f"{steps:,} steps of {stage1.objects_per_step} decoded objects each, whatever the views rendered of them"
    seeds = tuple(range(seed, seed + SEEDS[profile]))
    return Sweep("table2", base, experiments, seeds, budget, measure_reconstruction)


def measure_reconstruction(
    sweep: Sweep, experiment: Experiment, data: SequenceSet, device: str, max_seconds: float | None
) -> Measurements:
    """Stage 1, scored on the views of every training object that training never drew: psnr, psnr_foreground and lpips
    of each object, seconds of training, parameters of the decoder."""
    run, place = autodecoder_run(experiment, data, device, max_seconds), select_device(device)
    models = Models(experiment, data, (run,), load_autodecoder(run, experiment, place), place)
    size, cost = costs.parameters(experiment), costs.flops(experiment)
    return evaluation.heldout_scores(models) | {
        "seconds": torch.tensor(run.record["seconds"], dtype=torch.float64),
        "parameters": torch.tensor(size["G1"] + size["G2"] + size["embedding"]),
        "flops": torch.tensor(cost["G1"] + cost["G2"]),
    }


# ------------------------------------------------------------------------------------------------------ Figure 3


RESOLUTIONS = (4, 8, 16)  # of the latent volume
STEPS = {"smoke": (4, 8, 16), "laptop": (16, 32, 64)}
# Latents of 4^3 and 16^3 that a core trains on in the time of one of 8^3, as measured on the laptop profile's U-Net
# (0.083, 0.208 and 1.011 seconds for a batch of 8).
EQUAL_TIME = {4: 2.5, 8: 1.0, 16: 0.2}
SHOWN = 4  # samples of each resolution that the table keeps pictures of


def latents(r: int, steps: int) -> str:
    """Name of an experiment of Figure 3."""
    return f"latent_{r}_steps_{steps}"


def figure3(profile: str, seed: int = 0) -> Sweep:
    """Figures 3 and 10: diffusion at three resolutions of one autodecoder, sampled with three numbers of steps.

    The U-Net's attention keeps its levels, so its resolutions shift with the latent's. Sampling is deterministic, as
    in the paper's ablation.
    """
    base = study("figure3", profile).replace(seed=seed)
    require(base.sampler.s_churn == 0, f"s_churn is {base.sampler.s_churn}, expected 0: the ablation switches it off")
    tap, stage2 = base.autodecoder.latent_resolution, base.diffusion
    experiments = {}
    for steps in STEPS[profile]:
        for r in RESOLUTIONS:
            amounts = {
                name: max(1, round(getattr(stage2, name) * EQUAL_TIME[r]))
                for name in ("latents_seen", "warmup_latents", "ema_half_life")
            }
            experiments[latents(r, steps)] = base.replace(
                autodecoder=dict(latent_resolution=r),
                unet=dict(attention_resolutions=tuple(a * r // tap for a in base.unet.attention_resolutions)),
                diffusion=amounts,
                sampler=dict(num_steps=steps),
            )
    seen = ", ".join(f"{experiments[latents(r, steps)].diffusion.latents_seen:,} of {r}^3" for r in RESOLUTIONS)
    budget = f"about the same time on one core, and U-Nets of the same width and depth: {seen}"
    seeds = tuple(range(seed, seed + SEEDS[profile]))
    return Sweep("figure3", base, experiments, seeds, budget, measure_generation)


def measure_generation(
    sweep: Sweep, experiment: Experiment, data: SequenceSet, device: str, max_seconds: float | None
) -> Measurements:
    """Stage 2 on the latents that the base's autodecoder has at a resolution, and its samples.

    Gives kd and fd, partial and spurious (of each sample), seconds per sample, flops of one, seconds of training, and
    pictures of the first samples where the steps are the most and the seed is the first.
    """
    started = time.monotonic()
    stage1 = autodecoder_run(sweep.base, data, device, max_seconds)
    run = diffusion_run(experiment, data, device, time_left(max_seconds, started), stage1=stage1)
    if (left := time_left(max_seconds, started)) is not None and left <= 0:
        raise Paused(f"{run.folder}: trained, its samples are still to be measured")
    place, score = select_device(device), experiment.evaluation
    models = Models(experiment, data, (stage1, run), load_autodecoder(stage1, experiment, place), place)
    draw, started = models.ours(), time.monotonic()
    volumes = torch.cat([draw(chunk, score.sampling_seeds[0]) for chunk in batches(score.num_samples)])
    seconds = (time.monotonic() - started) / len(volumes)
    [features] = evaluation.sample_features(models, lambda indices, _: volumes[list(indices)], data.name)
    rows = evaluation.distance_rows([features], real_features(data, score), score)
    solids = [solid_parts(volume[0]) for volume in volumes]
    objects = torch.cat([models.reconstruct(chunk) for chunk in batches(len(data.split("train")))])
    usual = np.median([solid_parts(volume[0])[0] for volume in objects])
    found = {row["metric"]: torch.tensor(row["value"] / row["scale"], dtype=torch.float64) for row in rows}
    found |= {
        "partial": torch.tensor([float(solid < usual / 2) for solid, _ in solids]),
        "spurious": torch.tensor([spurious for _, spurious in solids]),
        "seconds_per_sample": torch.tensor(seconds, dtype=torch.float64),
        "flops": torch.tensor(costs.sampling_flops(experiment)),
        "seconds": torch.tensor(run.record["seconds"], dtype=torch.float64),
        "parameters": torch.tensor(costs.parameters(experiment)["denoiser"]),
    }
    most = max(e.sampler.num_steps for e in sweep.experiments.values())
    if (experiment.sampler.num_steps, experiment.seed) == (most, sweep.seeds[0]):
        shown, rays = volumes[:SHOWN].nan_to_num(0, 0, 0).cpu(), experiment.reconstruction.num_samples
        strips = [figures.picture_row(volume, experiment.data, rays, resolution=64) for volume in shown]
        found["pictures"] = (255 * torch.stack(strips)).round().to(torch.uint8)
    return found


@functools.lru_cache(maxsize=1)
def real_features(data: SequenceSet, score: EvaluationConfig) -> Features:
    """Features of the training objects, extracted once in a process."""
    return evaluation.real_features(data, score)


def batches(count: int) -> Iterable[range]:
    return (range(k, min(k + generation.BATCH, count)) for k in range(0, count, generation.BATCH))


def time_left(max_seconds: float | None, started: float) -> float | None:
    return None if max_seconds is None else max_seconds - (time.monotonic() - started)


SWEEPS = {"table2": table2, "figure3": figure3}


# ------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Table:
    """The measurements of a sweep."""

    sweep: Sweep
    run: Run
    values: dict[tuple[str, int, str], Tensor]  # experiment, seed, quantity

    def over_seeds(self, name: str, quantity: str) -> list[float]:
        """The mean of a quantity in each training of an experiment."""
        return [float(self.values[name, seed, quantity].double().mean()) for seed in self.sweep.seeds]

    def row(self, name: str, quantity: str, scale: float = 1) -> dict:
        """Value, spread and interval over seeds, as the fields of a report's row."""
        mean, low, high = (scale * x for x in seed_interval(self.over_seeds(name, quantity)))
        std = scale * float(np.std(self.over_seeds(name, quantity), ddof=1))
        return {"value": mean, "std": std, "low": low, "high": high, "scale": scale, "n": len(self.sweep.seeds)}

    def difference(self, name: str, other: str, quantity: str) -> tuple[float, float, float]:
        """By how much a quantity of `name` exceeds that of `other`, paired by seed: mean and 95 % interval."""
        pairs = zip(self.over_seeds(name, quantity), self.over_seeds(other, quantity), strict=True)
        return seed_interval([a - b for a, b in pairs])


def _settings(sweep: Sweep, data: str | None) -> dict:
    """What decides a table; data: their digest, None where it is not known yet."""
    chosen = {"experiments": sweep.experiments, "seeds": sweep.seeds}
    return {"stage": "sweep", "sweep": sweep.name, "data": data, **chosen}


def verdict(difference: tuple[float, float, float], scale: float = 1, unit: str = "") -> tuple[str, str]:
    """Whether a difference is positive, and the sentence that this rests on."""
    mean, low, high = (scale * x for x in difference)
    return decide(mean, low, high), f"{mean:.3g}{unit} (95 % interval over seeds {low:.3g} to {high:.3g})"


def table(
    sweep: Sweep, data: SequenceSet, device: str = "auto", workers: int = 1, max_seconds: float | None = None
) -> Table:
    """The table of a sweep: found in the run store, or measured now, after the trainings that it lacks.

    workers: processes; more than one needs a prepared set on disk, else DataError. Raises Paused when `max_seconds`
    are over or a training is told to terminate (SIGTERM); the next call goes on from there.
    """
    settings = _settings(sweep, data.digest)
    if workers > 1 and data.folder is None:
        raise DataError(f"data set {data.name}: lies in memory only, expected a prepared set for {workers} processes")

    def measure(work: Path) -> None:
        record = runs.Record(work, sweep.seeds[0], select_device(device), budget=sweep.budget)
        (work / "checkpoint").mkdir(exist_ok=True)  # goes when the table is published
        jobs = [(name, seed) for name in sweep.experiments for seed in sweep.seeds]
        files = {job: work / "checkpoint" / f"{job[0]}-{job[1]}.safetensors" for job in jobs}
        deadline = None if max_seconds is None else time.time() + max_seconds
        waiting = [(sweep, *job, file, device, deadline) for job, file in files.items() if not file.exists()]
        if workers > 1:
            in_processes(_work, waiting, workers, _open, (data.folder,))
        else:
            _in_turn(waiting, data)
        record.save()
        done = sum(file.exists() for file in files.values())
        if done < len(files):
            raise Paused(f"{work}: {done} of {len(files)} experiments measured; run it again to resume")
        tensors = {
            f"{name}/{seed}/{quantity}": value
            for (name, seed), file in files.items()
            for quantity, value in read_weights(file)[0].items()
        }
        save_weights(work / "table.safetensors", tensors, {"sweep": sweep.name, "budget": sweep.budget})

    run = runs.get(f"{data.name}-sweep-{sweep.name}", settings, measure)
    tensors, _ = read_weights(run.weights("table"))
    values = {}
    for key, value in tensors.items():
        name, seed, quantity = key.split("/")
        values[name, int(seed), quantity] = value
    return Table(sweep, run, values)


def _measure(
    data: SequenceSet, sweep: Sweep, name: str, seed: int, file: Path, device: str, deadline: float | None
) -> str | None:
    """Train and measure one experiment into `file`; what is still to be done, if time is over first."""
    left = None if deadline is None else deadline - time.time()
    if left is not None and left <= 0:
        return f"{name}, seed {seed}: not begun"
    try:
        found = sweep.measure(sweep, sweep.experiments[name].replace(seed=seed), data, device, left)
    except Paused as pause:
        return str(pause)
    save_weights(file, found, {"experiment": name, "seed": seed})
    return None


_DATA: list[SequenceSet] = []  # of a worker process


def _open(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a training notes it and stops; a measurement is finished
    torch.set_num_threads(1)
    _DATA.append(load_set(folder))


def _work(job: tuple) -> str | None:
    return _measure(_DATA[0], *job)


def _in_turn(jobs: list[tuple], data: SequenceSet) -> None:
    """Do one job after the other, until one is paused: what paused it holds for the others as well."""
    for job in jobs:
        if _measure(data, *job) is not None:
            return


def require_trainable(sweep: Sweep) -> None:
    """Raise WeightsError, before any data are made, where trainings are missing that need a perceptual network."""
    if not runs.finished(f"{sweep.base.data.name}-sweep-{sweep.name}", _settings(sweep, None)):
        require_weights(sweep.base)
