"""Shapes of one system against real ones (A.1, Tab. 4), each step a call that a notebook can show.

A sample becomes 2,048 points on the surface that marching cubes finds in its density, at the threshold
sigma* = ln 2 / voxel of `metrics.surfaces`, and for the sweep at half and at twice that. A real object becomes as many
points on its reference mesh, in the same canonical coordinates [-1, 1]^3, which are not normalised any further.

    reference = ShapeReference(real_shapes(data, "train"))
    shapes = sample_shapes(generator, count, seed, resolution)[1.0]
    scores = score([reference.distances(shapes)])

A sample has no shape where its density is NaN or infinite, or nowhere exceeds the threshold. Such samples are counted,
named in the note of each row, and left out of the generated set without being replaced. A smaller set covers less and
matches worse, so that nothing is gained by failing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data import DataError, SequenceSet
from ..generation import volumes as generation
from ..generation.volumes import Generator
from .metrics import MetricError
from .metrics.distribution import Estimate
from .metrics.geometry import distance_matrix
from .metrics.neighbours import MemorisationCheck
from .metrics.surfaces import POINTS, density_threshold, sample_surface, surface_cloud

METRICS = ("cov", "mmd", "mmd_smp", "one_nna")
SCALES = {"cov": 100, "mmd": 1000, "mmd_smp": 1000}  # as Tab. 4 has them
DISTANCES = ("mmd", "mmd_smp")
NORMAL = 1.96  # quantile of a 95 % interval


@dataclass(frozen=True)
class Shapes:
    """Point clouds of those of `total` objects that have a surface."""

    clouds: np.ndarray  # (n, p, 3) float32, canonical (x, y, z)
    objects: np.ndarray  # (n,) int64, the number of each
    total: int
    broken: int = 0  # left out, since their density is not finite
    empty: int = 0  # left out, since it nowhere exceeds the threshold

    @property
    def note(self) -> str:
        """The note of a row about the set."""
        faults = {"are not finite": self.broken, "have no surface": self.empty}
        said = [f"{count} of {self.total} {what} and are left out" for what, count in faults.items() if count]
        return "; ".join([f"{len(self.clouds)} clouds of {self.clouds.shape[1]} points", *said])


def sample_shapes(
    generator: Generator,
    count: int,
    seed: int,
    resolution: int,
    factors: Sequence[float] = (1.0,),
    points: int = POINTS,
) -> dict[float, Shapes]:
    """Clouds of samples 0 ... count - 1 of a system, {factor of the threshold: Shapes}; each sample is drawn once.

    resolution: of the density that marching cubes sees. Raises MetricError, at the first batch, where the generator
    answers with another shape.
    """
    found: dict[float, dict[int, np.ndarray]] = {factor: {} for factor in factors}
    broken = 0
    for start in range(0, count, generation.BATCH):
        indices = range(start, min(start + generation.BATCH, count))
        densities = generator.density(indices, seed, resolution)
        expected = (len(indices), *(resolution,) * 3)
        if tuple(densities.shape) != expected:
            raise MetricError(f"{generator.name}: density has shape {tuple(densities.shape)}, expected {expected}")
        for index, density in zip(indices, densities, strict=True):
            if not torch.isfinite(density).all():
                broken += 1
                continue
            for factor, clouds in found.items():
                cloud = surface_cloud(density, index, factor * density_threshold(resolution), points, seed)
                if cloud is not None:
                    clouds[index] = cloud
    return {
        factor: Shapes(
            _stack(list(clouds.values()), points), _indices(clouds), count, broken, count - broken - len(clouds)
        )
        for factor, clouds in found.items()
    }


def real_shapes(
    data: SequenceSet, split: str, points: int = POINTS, seed: int = 0, chosen: Sequence[int] | None = None
) -> Shapes:
    """Clouds on the reference meshes of the objects of a split, uniform over the area of all faces.

    chosen: positions in the split (default: all); an object's points do not depend on them.
    Raises DataError naming an object without a mesh, and ImportError where `Sequence.surface` does.
    """
    clouds, objects = [], data.split(split)
    chosen = range(len(objects)) if chosen is None else chosen
    for index in chosen:
        sequence = objects[index]
        if sequence.mesh is None:
            raise DataError(
                f"data set {data.name}: object {sequence.key!r} has no mesh, expected one to sample points on"
            )
        clouds.append(sample_surface(*sequence.surface(), np.random.default_rng((seed, index)), points))
    return Shapes(_stack(clouds, points), np.array(chosen, np.int64), len(clouds))


def _stack(clouds: list[np.ndarray], points: int) -> np.ndarray:
    return np.stack(clouds) if clouds else np.empty((0, points, 3), np.float32)


def _indices(clouds: dict[int, np.ndarray]) -> np.ndarray:
    return np.array(list(clouds), np.int64)


# ---------------------------------------------------------------------------------------------------- distances


@dataclass(frozen=True)
class ShapeDistances:
    """Chamfer distances (mean form) between n generated and m reference clouds, and within both sets.

    Kept whole, so that subsets and resamples of both sets cost no further distances.
    """

    across: np.ndarray  # (n, m)
    within: np.ndarray  # (n, n), diagonal infinite
    within_reference: np.ndarray  # (m, m), diagonal infinite
    points: int
    note: str

    def metrics(self, times: np.ndarray | None = None, times_reference: np.ndarray | None = None) -> dict[str, float]:
        """COV (Eq. 4), MMD (Eq. 5), MMD-smp (the text's direction) and 1-NNA of the sets, or of a resample that holds
        each cloud `times` (n,) and `times_reference` (m,).

        Copies of a cloud are no neighbours of each other. 1-NNA is the mean of the accuracies on both sets, so that
        chance is 0.5 whatever their sizes. Without generated clouds there is only COV, and it is 0.
        """
        n, m = self.across.shape
        weight = np.ones(n) if times is None else times
        weight_reference = np.ones(m) if times_reference is None else times_reference
        g, r = np.flatnonzero(weight), np.flatnonzero(weight_reference)
        if len(g) == 0:
            return {"cov": 0.0}
        across = self.across[np.ix_(g, r)]
        covered = np.zeros(len(r))
        covered[across.argmin(1)] = 1
        to_reference, to_generated = across.min(1), across.min(0)
        own = self.within[np.ix_(g, g)].min(1) <= to_reference  # equal distances are decided as argmin would,
        own_reference = self.within_reference[np.ix_(r, r)].min(1) < to_generated  # generated clouds first

        def mean(values: np.ndarray, weights: np.ndarray) -> float:
            return float(weights @ values / weights.sum())

        return {
            "cov": mean(covered, weight_reference[r]),
            "mmd": mean(to_generated, weight_reference[r]),
            "mmd_smp": mean(to_reference, weight[g]),
            "one_nna": (mean(own, weight[g]) + mean(own_reference, weight_reference[r])) / 2,
        }


class ShapeReference:
    """The reference set S_r. Its own distances are computed once."""

    def __init__(self, shapes: Shapes) -> None:
        if len(shapes.clouds) == 0:
            raise MetricError("the reference set has no clouds, expected at least one")
        self.shapes = shapes
        self.within = distance_matrix(shapes.clouds)

    def distances(self, generated: Shapes) -> ShapeDistances:
        """The distances of a generated set, at half a millisecond of one core for each pair of clouds.

        Raises MetricError for clouds of another number of points.
        """
        n, m = len(generated.clouds), len(self.shapes.clouds)
        if n:
            across, within = distance_matrix(generated.clouds, self.shapes.clouds), distance_matrix(generated.clouds)
        else:
            across, within = np.empty((0, m)), np.empty((0, 0))
        note = f"{generated.note}; against {m} references"
        return ShapeDistances(across, within, self.within, self.shapes.clouds.shape[1], note)


def memorisation(samples: ShapeDistances, held_out: ShapeDistances) -> MemorisationCheck:
    """Nearest reference of each sample, beside the nearest ones of real objects that never trained. References are
    the training objects, distances are Chamfer distances. Raises MetricError for an empty set."""
    parts = []
    for name, distances in (("samples", samples), ("held-out objects", held_out)):
        if len(distances.across) == 0:
            raise MetricError(f"{name}: none has a shape, expected some to find the nearest training objects of")
        parts += [torch.from_numpy(distances.across.min(1)), torch.from_numpy(distances.across.argmin(1))]
    return MemorisationCheck(*parts, reference="held-out objects")


# ------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class ShapeScores:
    """Metrics of one system, each a mean over its sets of samples, with what they are in resamples or subsets."""

    values: dict[str, float]
    draws: dict[str, np.ndarray]  # (draws,) each
    intervals: dict[str, tuple[float, float]]  # 95 %; none where draws are subsets
    points: int
    note: str

    def rows(self, form: str = "mean") -> list[dict]:
        """Rows of a report, without system, variant, data set, resolution and source.

        form: 'mean' has all metrics, 'sum' MMD and MMD-smp with the sums of Eq. 3. Raises MetricError for others.
        """
        if form not in ("mean", "sum"):
            raise MetricError(f"chamfer form {form!r}, expected 'mean' or 'sum' (Eq. 3)")
        rows = []
        for metric, value in self.values.items():
            if form == "sum" and metric not in DISTANCES:
                continue
            scale = 1 if form == "sum" else SCALES.get(metric, 1)
            factor = self.points if form == "sum" else scale
            draws = self.draws[metric]
            row = {"metric": metric, "scale": scale, "value": factor * value, "std": factor * float(draws.std(ddof=1))}
            if metric in self.intervals:
                row |= {end: factor * x for end, x in zip(("low", "high"), self.intervals[metric], strict=True)}
            note = f"{self.note}, Chamfer distance as {form}" if metric in DISTANCES else self.note
            rows.append({**row, "n": len(draws), "note": note})
        return rows


def score(sets: Sequence[ShapeDistances], resamples: int = 200, seed: int = 0) -> ShapeScores:
    """The metrics of a system's sets of samples, one for each sampling seed, with bootstrap intervals.

    Samples are resampled within their set, references once for all sets, and by the same draws for every system of
    equal `seed`, which pairs them in `advantage`. A resample holds fewer different clouds, which lowers COV and raises
    MMD; the interval is therefore the value plus and minus 1.96 standard errors, COV and 1-NNA cut to [0, 1].
    """
    rng = np.random.default_rng(seed)
    m = len(sets[0].within_reference)
    references = rng.multinomial(m, np.full(m, 1 / m), size=resamples)
    samples = [rng.multinomial(n, np.full(n, 1 / n), size=resamples) if (n := len(s.across)) else None for s in sets]
    values = _mean([s.metrics() for s in sets])
    drawn = [
        _mean([s.metrics(None if t is None else t[k], times) for s, t in zip(sets, samples, strict=True)])
        for k, times in enumerate(references)
    ]
    draws = {metric: np.array([d[metric] for d in drawn]) for metric in values}
    intervals = {}
    for metric, value in values.items():
        half = NORMAL * float(draws[metric].std(ddof=1))
        low, high = value - half, value + half
        intervals[metric] = (low, high) if metric in DISTANCES else (max(low, 0.0), min(high, 1.0))
    note = f"{len(sets)} set(s) of samples, of which the first: {sets[0].note}" if len(sets) > 1 else sets[0].note
    return ShapeScores(values, draws, intervals, sets[0].points, note)


def score_subsets(sets: Sequence[ShapeDistances], size: int, subsets: int = 200, seed: int = 0) -> ShapeScores:
    """The metrics of random subsets, `size` samples against `size` references: their mean, and as spread their
    standard deviation over the subsets, as KID has it.

    COV and MMD depend on the sizes of both sets, so that a small set of real objects, such as the held-out ones, can
    bound them only at its own size. Raises MetricError where a set is smaller than that.
    """
    rng = np.random.default_rng(seed)
    counts = [len(sets[0].within_reference), *(len(s.across) for s in sets)]
    if not 1 <= size <= min(counts):
        raise MetricError(
            f"subsets of {size}, expected 1 to {min(counts)}: the smallest of the sets has that many clouds"
        )
    drawn = []
    for _ in range(subsets):
        reference = _subset(rng, counts[0], size)
        drawn.append(_mean([s.metrics(_subset(rng, len(s.across), size), reference) for s in sets]))
    draws = {metric: np.array([d[metric] for d in drawn]) for metric in METRICS}
    values = {metric: float(x.mean()) for metric, x in draws.items()}
    return ShapeScores(values, draws, {}, sets[0].points, f"random subsets, {size} samples against {size} references")


def _subset(rng: np.random.Generator, total: int, size: int) -> np.ndarray:
    times = np.zeros(total)
    times[rng.permutation(total)[:size]] = 1
    return times


def _mean(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Means over sets, each over those that have the metric."""
    having = {metric: [m[metric] for m in metrics if metric in m] for metric in METRICS}
    return {metric: float(np.mean(values)) for metric, values in having.items() if values}


def advantage(ours: ShapeScores, other: ShapeScores, metric: str, tolerance: float = 0.0) -> Estimate:
    """By how much `ours` is better than `other` after it is granted `tolerance` of the other's value, with a 95 %
    interval over paired resamples: positive says 'better, or within the tolerance'.

    metric: 'cov', of which more is better, or 'mmd' or 'mmd_smp', of which less is. Raises MetricError for other ones,
    and where a system has no such value or the two were resampled differently.
    """
    if metric not in ("cov", "mmd", "mmd_smp"):
        raise MetricError(f"metric {metric!r}, expected cov, mmd or mmd_smp")
    for name, scores in (("ours", ours), ("other", other)):
        if metric not in scores.values:
            raise MetricError(f"{name} has no {metric}, since none of its samples has a shape")
    if len(ours.draws[metric]) != len(other.draws[metric]):
        raise MetricError("the systems have different numbers of resamples, expected the same to pair them")
    sign = 1 if metric == "cov" else -1
    share = 1 - sign * tolerance
    value = sign * (ours.values[metric] - share * other.values[metric])
    draws = sign * (ours.draws[metric] - share * other.draws[metric])
    std = float(draws.std(ddof=1))
    return Estimate(value, std, value - NORMAL * std, value + NORMAL * std, len(draws))
