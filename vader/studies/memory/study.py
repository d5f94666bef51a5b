"""The trainings, what is measured of each, and the files of the study.

    vader study memory --profile laptop --max-seconds 540 --workers 2

Exit status 75 means "run it again". All trainings share one prepared set: each sees the first objects of it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...autodecoder.reconstruction import load_autodecoder
from ...data import SequenceSet
from ...evaluation import pictures
from ...evaluation.metrics.features import Features
from ...evaluation.shapes import ShapeReference, Shapes, sample_shapes, score
from ...generation.volumes import Models
from ...report import seed_interval
from ...report.png import figure_png
from ...settings.checks import require
from ...settings.experiment import EvaluationConfig, Experiment
from ...settings.studies import study
from ...stages import autodecoder_run, diffusion_run
from ...store.files import plain, write_file, write_json
from ...store.paths import reports_dir
from ...store.provenance import environment
from ...store.runs import Paused
from ...training import select_device
from ..sweep import Measurements, Sweep, Table, batches, time_left
from .page import figure, page
from .yardsticks import NONE, Yardsticks, first_objects, median_distance, novelty, spread_objects, yardsticks

SIZES = {"smoke": (4, 8, 16), "laptop": (64, 128, 256, 512)}  # training objects; the first number is of base models
TRAININGS = 1  # of each size, with a seed each


def arm(count: int) -> str:
    """Name of the experiment with so many training objects."""
    return f"objects_{count}"


def memory(profile: str, seed: int = 0, trainings: int = TRAININGS) -> Sweep:
    """The same model on different numbers of training objects. seed: the first; trainings: seeds of each number.

    Each sees as many images and latents as the others, and is compared with as many real pictures. Raises ConfigError
    for a profile without sizes.
    """
    base = study("memory", profile).replace(seed=seed)
    require(trainings >= 1, f"seeds is {trainings}, expected at least 1 training of each number of objects")
    sizes = SIZES[profile]
    experiments = {
        arm(count): base.replace(
            data=dict(num_objects=count),
            evaluation=dict(real_views=max(1, base.evaluation.real_views * sizes[0] // count)),
        )
        for count in sizes
    }
    first, second = base.reconstruction, base.diffusion
    budget = f"{first.images_seen:,} images (stage 1) and {second.latents_seen:,} latents (stage 2) of each training"
    return Sweep("memory", base, experiments, tuple(range(seed, seed + trainings)), budget, measure)


def sizes_of(sweep: Sweep) -> tuple[int, ...]:
    """The numbers of training objects, ascending."""
    return tuple(experiment.data.num_objects for experiment in sweep.experiments.values())


def measure(
    sweep: Sweep, experiment: Experiment, data: SequenceSet, device: str, max_seconds: float | None
) -> Measurements:
    """Both stages on the first objects of the set, and the scores of their samples."""
    started = time.monotonic()
    seen = first_objects(data, experiment.data.num_objects)
    stage1 = autodecoder_run(experiment, seen, device, max_seconds)
    stage2 = diffusion_run(experiment, seen, device, time_left(max_seconds, started))
    if (left := time_left(max_seconds, started)) is not None and left <= 0:
        raise Paused(f"{stage2.folder}: trained, its samples are still to be measured")
    place = select_device(device)
    models = Models(experiment, seen, (stage1, stage2), load_autodecoder(stage1, experiment, place), place)
    seconds = {"seconds_stage1": (stage1.record["seconds"],), "seconds_stage2": (stage2.record["seconds"],)}
    real = yardsticks(data, sizes_of(sweep))
    found = scores(models, real, originals_features(data, real.originals, sweep.base.evaluation))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in (found | seconds).items()}


def scores(models: Models, real: Yardsticks, originals: Features) -> dict[str, tuple[float, ...]]:
    """Scores of one training, by name: a value, or a value and the ends of its 95 % interval over objects.

    models: of both stages. originals: features of views of the originals.
    """
    config, count = models.config.evaluation, models.config.data.num_objects
    draw = models.ours()
    volumes = {
        seed: torch.cat([draw(chunk, seed) for chunk in batches(config.num_samples)]) for seed in config.sampling_seeds
    }
    ours = models.generator(lambda indices, seed: volumes[seed][list(indices)], "ours")
    resolution = models.config.autodecoder.resolution
    shapes = [sample_shapes(ours, config.num_samples, seed, resolution)[1.0] for seed in config.sampling_seeds]
    again = models.generator(lambda indices, _: models.reconstruct(list(indices)), "reconstruction")
    rebuilt = sample_shapes(again, real.originals, 0, resolution)[1.0]
    features = pictures.sample_features(models, ours, f"samples of {count} objects")
    return {
        **distance_scores(shapes, rebuilt, real, count),
        **coverage(shapes, real),
        "kd": kernel_distance(features, pictures.real_features(models.data, config), config),
        "kd_originals": kernel_distance(features, originals, config),
        **reconstruction_scores(models, real.originals, count),
    }


def distance_scores(
    shapes: list[Shapes], rebuilt: Shapes, real: Yardsticks, count: int
) -> dict[str, tuple[float, ...]]:
    """How far samples are from their nearest of `count` training objects, as ratios to real objects that never
    trained, and in itself. `rebuilt` are training objects as the decoder gives them: what a copy would have."""
    samples, copies = (real.to_nearest(np.concatenate([s.clouds for s in sets]), count) for sets in (shapes, [rebuilt]))
    held_out, others, variants = real.of_held_out(count), real.of_other_models(count), real.of_variants(count)
    medians = {"samples": samples, "copies": copies, "held_out": held_out, "others": others, "variants": variants}
    used = len(np.unique(samples.argmin(1))) if len(samples) else 0
    return {
        "novelty": novelty(samples, held_out),
        "novelty_others": novelty(samples, others),
        "novelty_copies": novelty(copies, held_out),
        **{f"distance_{name}": (median_distance(distances),) for name, distances in medians.items()},
        "neighbours": (used,),
        "without_shape": (sum(s.total - len(s.clouds) for s in shapes),),
    }


def coverage(shapes: list[Shapes], real: Yardsticks) -> dict[str, tuple[float, ...]]:
    """COV against the originals, in %, as Table 4 has it: a mean over sets of samples."""
    reference = ShapeReference(Shapes(real.train[: real.originals], np.arange(real.originals), real.originals))
    found = score([reference.distances(s) for s in shapes])
    return {"cov": tuple(100 * x for x in (found.values["cov"], *found.intervals["cov"]))}


def kernel_distance(sets: list[Features], real: Features, config: EvaluationConfig) -> tuple[float, ...]:
    """KD x 1000 and its interval over objects."""
    [row] = [row for row in pictures.distance_rows(sets, real, config) if row["metric"] in ("kd", "kid")]
    return row["value"], row["low"], row["high"]


@functools.lru_cache(maxsize=1)
def originals_features(data: SequenceSet, originals: int, config: EvaluationConfig) -> Features:
    """Features of views of the originals, kept for the next call."""
    return pictures.real_features(first_objects(data, originals), config)


def reconstruction_scores(models: Models, originals: int, count: int) -> dict[str, tuple[float, ...]]:
    """PSNR of held-out views: of the originals, and of one variant of each model."""
    chosen = spread_objects(count, originals)
    objects = sorted({*range(originals), *chosen})
    psnr = dict(zip(objects, pictures.heldout_scores(models, objects)["psnr"], strict=True))
    found = {}
    for name, members in (("psnr", chosen), ("psnr_originals", range(originals))):
        mean = pictures.mean_over_objects(torch.stack([psnr[k] for k in members]))
        found[name] = (mean.value, mean.low, mean.high)
    return found


# --------------------------------------------------------------------------------------------------- what is written


def over_trainings(found: list[Tensor]) -> dict[str, Any]:
    """Scores of the trainings of one number of objects as JSON values: mean, interval, and the value of each.

    The interval covers the objects, as each training has it, and from two trainings on also these: where Student's
    interval over them reaches further, it counts.
    """
    values = [float(x[0]) for x in found]
    result: dict[str, Any] = {"value": _known(np.mean(values)), "trainings": [_known(x) for x in values]}
    ends = [float(np.mean([float(x[k]) for x in found])) for k in (1, 2)] if len(found[0]) == len(NONE) else []
    if len(values) > 1 and np.isfinite(values).all():
        _, *spread = seed_interval(values)
        ends = [min(ends[0], spread[0]), max(ends[1], spread[1])] if ends else spread
    return result | {end: _known(x) for end, x in zip(("low", "high"), ends, strict=False)}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def content(table: Table, data: SequenceSet) -> dict[str, Any]:
    """The study as JSON values."""
    sweep, real = table.sweep, yardsticks(data, sizes_of(table.sweep))
    arms = {}
    for name, experiment in sweep.experiments.items():
        quantities = [q for n, seed, q in table.values if (n, seed) == (name, sweep.seeds[0])]
        arms[str(experiment.data.num_objects)] = {
            q: over_trainings([table.values[name, seed, q] for seed in sweep.seeds]) for q in quantities
        }
    return {
        "profile": sweep.base.profile,
        "environment": environment("cpu"),
        "run": table.run.digest,
        "data": {"name": data.name, "digest": data.digest},
        "settings": plain(dataclasses.replace(sweep.base, seed=sweep.seeds[0])),
        "seeds": list(sweep.seeds),
        "budget": sweep.budget,
        "real": {
            "held_out": len(real.held_out),
            "held_out_said": real.said,
            "others": len(real.others),
            "variants": len(real.variants),
            "originals": real.originals,
        },
        "arms": arms,
    }


def files(data: str, profile: str) -> tuple[Path, Path, Path]:
    """The numbers, their picture and their page."""
    stem = f"memory-{data}-{profile}"
    return reports_dir() / f"{stem}.json", reports_dir() / f"{stem}.png", reports_dir() / "memory.md"


def write(table: Table, data: SequenceSet) -> list[Path]:
    """Write numbers, picture and page of a measured study beside the reports."""
    found = content(table, data)
    numbers, picture, text = written = files(data.name, found["profile"])
    write_json(numbers, found)
    write_file(picture, figure_png(figure(found), dpi=100))
    write_file(text, page(found))
    return list(written)
