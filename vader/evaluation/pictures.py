"""Scores of one experiment by the paper's protocol (Sec. 4.2), each step a call that a notebook can show.

FID/KID compare `views` random views of `num_samples` generated objects with `real_views` random images of every
training object. PSNR and LPIPS compare reconstructions with views that training never drew. Shapes are compared in
`vader.evaluation.shapes`.

A sample whose pictures are not finite is left out of FID and KID, and counted in the note of their rows. An empty
volume has a picture like any other: a black one.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import SequenceSet
from ..diffusion.sampling import object_generators
from ..generation import parallel
from ..generation.parallel import side_by_side
from ..generation.volumes import BATCH, Generator, Models, System
from ..rendering.cameras import Cameras, sample_orbit
from ..rendering.render import render_views
from ..settings.experiment import EvaluationConfig, Experiment
from .metrics import MetricError
from .metrics.distribution import KernelDistance, distances, frechet_estimate
from .metrics.features import Features, check_independent, extract
from .metrics.images import LPIPS, foreground_psnr, has_foreground, psnr

INTERVAL = 1.96  # standard errors on either side of a mean


@dataclass(frozen=True)
class Mean:
    """A mean over `n` objects with the standard deviation over them and the 95 % interval of the mean."""

    value: float
    std: float
    low: float
    high: float
    n: int


def mean_over_objects(values: Tensor) -> Mean:
    """values: (n,), one for each object; those that are NaN had nothing to be measured, and are left out.

    Raises MetricError where nothing is left.
    """
    values = values[~values.isnan()]
    if len(values) == 0:
        raise MetricError("no object has a held-out view with a foreground pixel, expected some to measure")
    value, std = values.mean().item(), values.std(correction=1).item() if len(values) > 1 else 0.0
    half = INTERVAL * std / len(values) ** 0.5
    return Mean(value, std, value - half, value + half, len(values))


def random_views(config: Experiment, index: int, views: int, seed: int) -> Cameras:
    """Cameras of generated sample `index`, from the distribution that the data's cameras were drawn from."""
    [generator] = object_generators(seed + 1_000_003, [index])  # another stream than the sample's own noise
    return sample_orbit(views, config.data, generator)


def render_samples(
    models: Models, system: System | Generator, count: int, views: int, seed: int, name: str = "samples"
) -> Tensor:
    """Pictures of samples 0 ... count - 1 from `views` random views each, (count, views, h, w, 3) in [0, 1].

    Those of a broken sample are NaN. Raises MetricError where a generator's pictures are not of the cameras' size.
    """
    generator = models.generator(system, name)
    size = min(parallel.BATCH, BATCH) if models.device.type == "cpu" else BATCH

    def render(indices: range) -> Tensor:
        cameras = [random_views(models.config, index, views, seed) for index in indices]
        batch = generator.pictures(indices, cameras, seed)
        expected = (len(indices), views, cameras[0].height, cameras[0].width, 3)
        if tuple(batch.shape) != expected:
            raise MetricError(f"{name}: pictures have shape {tuple(batch.shape)}, expected {expected} as the cameras")
        return batch

    jobs = [range(start, min(start + size, count)) for start in range(0, count, size)]
    done = side_by_side(render, jobs, models.device)
    return torch.cat(list(tqdm(done, desc=name, total=len(jobs), disable=None)))


def heldout_reconstruction(models: Models, objects: Sequence[int] | None = None) -> dict[str, Mean]:
    """Means of `heldout_scores`."""
    return {name: mean_over_objects(values) for name, values in heldout_scores(models, objects).items()}


def heldout_scores(models: Models, objects: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Reconstruction of training objects (default: all) on their held-out views: 'psnr', 'psnr_foreground' (dB) and
    'lpips', (n,) each.

    A view without a foreground pixel says nothing of the foreground: it is left out of 'psnr_foreground', which is NaN
    where an object has no other, and a warning counts such views.
    """
    data, samples = models.data.split("train"), models.config.reconstruction.num_samples
    views = slice(data.train_views, data.train_views + data.heldout_views)
    perceptual = LPIPS("alex")

    def score(index: int) -> dict[str, Tensor]:
        sequence = data[index]
        volume = models.reconstruct([index])
        rendered = render_views(volume, sequence.cameras[views], samples, normals=False)["colour"][0].cpu()
        target, mask = sequence.colours(views), sequence.alphas(views)
        return {
            "bare": (~has_foreground(mask)).sum(),
            "psnr": psnr(rendered, target).mean(),
            "psnr_foreground": foreground_psnr(rendered, target, mask),
            "lpips": perceptual(rendered, target).mean(),
        }

    chosen = range(len(data)) if objects is None else objects
    done = side_by_side(score, chosen, models.device)
    scores = list(tqdm(done, desc="held-out views", total=len(chosen), disable=None))
    bare = {data[index].key: int(found.pop("bare")) for index, found in zip(chosen, scores, strict=True)}
    if named := [key for key, count in bare.items() if count]:
        warnings.warn(
            f"{sum(bare.values())} held-out views of {len(named)} objects ({', '.join(named[:3])}) have no foreground "
            "pixel and are left out of psnr_foreground",
            stacklevel=2,
        )
    return {name: torch.stack([values[name] for values in scores]) for name in scores[0]}


def real_features(
    data: SequenceSet,
    config: EvaluationConfig,
    split: str = "train",
    seed: int = 0,
    chosen: Sequence[int] | None = None,
) -> Features:
    """Features of `real_views` random images of each object of a split, the reference of FID and KID.

    chosen: positions in the split (default: all); which images of an object are drawn does not depend on them.
    """
    pictures, objects = [], data.split(split)
    for index in range(len(objects)) if chosen is None else chosen:
        sequence = objects[index]
        [generator] = object_generators(seed, [index])
        views = torch.randperm(len(sequence), generator=generator)[: config.real_views]
        pictures.append(sequence.images[views])
    return extract(torch.stack(pictures), config.features)


def sample_features(
    models: Models, system: System | Generator, name: str, seeds: Sequence[int] | None = None
) -> list[Features]:
    """Features of a system's samples, one set for each sampling seed (default: those of the experiment).

    Raises MetricError, before any work, for fewer pictures than KID's subsets hold, and where no sample is finite.
    """
    config = models.config.evaluation
    check_independent(config.features, models.config.reconstruction.perceptual_network)
    if config.num_samples * config.views < config.kid_subset_size:
        raise MetricError(
            f"{name}: {config.num_samples} samples of {config.views} views, but KID draws subsets of "
            f"{config.kid_subset_size} pictures: expected at least that many (or a smaller kid_subset_size)"
        )
    sets = []
    for seed in config.sampling_seeds if seeds is None else seeds:
        pictures = render_samples(models, system, config.num_samples, config.views, seed, f"{name}, seed {seed}")
        sets.append(finite_features(pictures, config.features, f"{name}, seed {seed}"))
    return sets


def finite_features(pictures: Tensor, network: str, name: str) -> Features:
    """Features of the samples (n, v, h, w, 3) whose pictures are all finite; MetricError where none is."""
    finite = torch.isfinite(pictures).flatten(1).all(1)
    if not finite.any():
        raise MetricError(f"{name}: none of {len(finite)} samples has finite pictures, expected some")
    return dataclasses.replace(extract(pictures[finite], network), left_out=int((~finite).sum()))


def reconstruction_features(models: Models, seed: int = 0) -> Features:
    """Features of reconstructed training objects in random views: what a perfect second stage would score."""
    config = models.config.evaluation
    count = min(config.num_samples, len(models.data.split("train")))
    pictures = render_samples(models, lambda indices, _: models.reconstruct(list(indices)), count, config.views, seed)
    return extract(pictures, config.features)


def distance_rows(sets: list[Features], real: Features, config: EvaluationConfig) -> list[dict]:
    """Fréchet and kernel distance by torch-fidelity as rows for a report: means over sampling seeds.

    Their 95 % intervals come from resampling objects, real and generated; their std, which a single seed has not, is
    that over seeds.
    """
    per_seed = [distances(f, real, config.kid_subset_size, config.kid_subsets) for f in sets]
    estimates = frechet_estimate(sets, real), KernelDistance(real).estimate(sets)
    rows = []
    for measured, estimate in zip(zip(*per_seed, strict=True), estimates, strict=True):
        values = torch.tensor([row["value"] for row in measured], dtype=torch.float64)
        scale = 1000 if measured[0]["metric"] in ("kid", "kd") else 1
        row = {
            "metric": measured[0]["metric"],
            "scale": scale,
            "value": scale * values.mean().item(),
            "low": scale * estimate.low,
            "high": scale * estimate.high,
            "n": len(values),
            "features": measured[0]["features"],
            "resolution": measured[0]["resolution"],
            "note": measured[0]["note"] + _left_out(sets),
        }
        rows.append(row | ({"std": scale * values.std(correction=1).item()} if len(values) > 1 else {}))
    return rows


def real_against_real_rows(
    heldout: Features,
    real: Features,
    systems: Mapping[tuple[str, str | None], list[Features]],
    config: EvaluationConfig,
) -> list[dict]:
    """Held-out objects as if a system had made them, whole rows of a report: what a perfect generator would get.

    They are few, and a Fréchet distance depends on the number of images, so that every system is measured again on as
    many of its samples, the first ones of each sampling seed. systems: {(system, variant): features by seed}.
    """
    count = heldout.num_objects
    smaller = dataclasses.replace(config, kid_subset_size=min(config.kid_subset_size, len(heldout)))
    rows = []
    for (system, variant), sets in {("real", None): [heldout], **systems}.items():
        few = [features.first(count) for features in sets]
        few = [features for features in few if len(features) >= smaller.kid_subset_size]  # but for broken samples
        name = f"{count} objects against all" if variant is None else f"{variant}, {count} objects against all"
        rows += [dict(system=system, variant=name, **row) for row in (distance_rows(few, real, smaller) if few else [])]
    return rows


def _left_out(sets: list[Features]) -> str:
    """What a note says of samples without finite pictures; nothing where there are none."""
    left_out = sum(features.left_out for features in sets)
    total = left_out + sum(features.num_objects for features in sets)
    return f"; {left_out} of {total} samples are not finite and left out" if left_out else ""
