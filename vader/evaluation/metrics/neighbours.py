"""Nearest training objects in feature space, which tell copies from new samples.

The distance of an object to a training object is the mean over the object's views of the Euclidean
distance to the nearest view of that training object. Real objects that the model never saw are the
reference for *near*. Samples of a model that memorises are much nearer to their nearest training object
than held-out objects are to theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import MetricError
from .features import Features


@dataclass(frozen=True)
class MemorisationCheck:
    """Distances to the nearest training object of s samples and of r reference objects."""

    sample_distances: Tensor  # (s,)
    sample_neighbours: Tensor  # (s,) int64, the nearest training object of each
    reference_distances: Tensor  # (r,)
    reference_neighbours: Tensor  # (r,) int64
    reference: str  # "held-out objects", or "training objects, each against the others"

    @property
    def ratio(self) -> float:
        """Median distance of samples over that of the reference: about 1 for new objects, towards 0 for copies."""
        return float(self.sample_distances.median() / self.reference_distances.median())

    def ratio_interval(self, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval of `ratio` over samples and reference objects."""
        generator = torch.Generator().manual_seed(seed)

        def medians(values: Tensor) -> Tensor:
            drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
            return values[drawn].median(1).values

        ratios = medians(self.sample_distances) / medians(self.reference_distances)
        low, high = ratios.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=ratios.dtype)).tolist()
        return low, high

    @property
    def copies(self) -> float:
        """Fraction of samples nearer to a training object than 95 % of the reference: about 0.05 for new objects."""
        return float((self.sample_distances < self.reference_distances.quantile(0.05)).double().mean())

    @property
    def neighbours_used(self) -> float:
        """Fraction of samples with a neighbour of their own: low where many samples repeat few objects."""
        return len(self.sample_neighbours.unique()) / len(self.sample_neighbours)


def memorisation(samples: Features, training: Features, held_out: Features | None = None) -> MemorisationCheck:
    """Compare samples with `held_out` real objects, or without them with each training object against the others.

    All sets should show their objects in as many views from the same distribution of cameras: more
    views of a training object make it nearer to everything. Raises `MetricError` for sets that are not
    comparable or, without `held_out`, fewer than two training objects.
    """
    samples.check_comparable(training)
    near = object_distances(samples, training).min(1)
    if held_out is not None:
        held_out.check_comparable(training)
        reference, name = object_distances(held_out, training), "held-out objects"
    else:
        if training.num_objects < 2:
            raise MetricError(f"{training.num_objects} training object, expected at least 2 or some held-out objects")
        reference, name = object_distances(training, training), "training objects, each against the others"
        reference.fill_diagonal_(torch.inf)
    reference = reference.min(1)
    return MemorisationCheck(near.values, near.indices, reference.values, reference.indices, name)


def object_distances(a: Features, b: Features, rows: int = 1024) -> Tensor:
    """Mean over the views of each object of a of the distance to the nearest view of each object of b, (a, b)."""
    sums = torch.zeros(a.num_objects, b.num_objects, dtype=torch.float64)
    for start in range(0, len(a), rows):
        # by matrix product distances of equal images would come out as 1e-3, not 0
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(a.values[start : start + rows], b.values, compute_mode=mode)
        nearest = torch.full((len(distance), b.num_objects), torch.inf)
        nearest.scatter_reduce_(1, b.objects.expand(len(distance), -1), distance, "amin")
        sums.index_add_(0, a.objects[start : start + rows], nearest.double())
    return sums / torch.bincount(a.objects, minlength=a.num_objects)[:, None]
