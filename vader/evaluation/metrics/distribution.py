"""FID and KID between sets of features, with bootstrap intervals over whole objects.

The distances themselves are torch-fidelity's (`distances`). It reports KID's deviation over random subsets, which says
nothing about other objects. Images of one object are no independent samples, so the intervals here come from resampling
whole objects. For the kernel distance this costs little, since its sums are kept per pair of objects (`KernelSums`).
For the Fréchet distance it costs little, since that is taken of the smaller of two matrices (`_frechet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...generation.parallel import one_thread_each, side_by_side
from . import MetricError, optional_import
from .features import Features, metric_names

Trainings = Sequence[Sequence[Features]]  # one set for each sampling seed of each training


@dataclass(frozen=True)
class Estimate:
    """A value with its bootstrap standard error and interval (`low`, `high`), over `n` resamples."""

    value: float
    std: float
    low: float
    high: float
    n: int


def distances(
    generated: Features, real: Features, subset_size: int = 1000, subsets: int = 100, seed: int = 2020
) -> list[dict]:
    """FID and KID as torch-fidelity computes them, as two rows of a report.

    They lack system, dataset and source, and FID a spread, which sampling seeds or `frechet_estimate` give.
    In the features of another network than InceptionV3 they are called fd and kd. KID is the mean over
    `subsets` random subsets of `subset_size` images a side, `std` its deviation over them. Raises
    `MetricError` where the sets are not comparable or smaller than a subset.
    """
    generated.check_comparable(real)
    for name, features in (("generated", generated), ("real", real)):
        if len(features) < subset_size:
            raise MetricError(
                f"{name}: {len(features)} images, but KID draws subsets of {subset_size}: "
                "expected at least that many (or a smaller kid_subset_size)"
            )
    fid, kid = (optional_import(f"torch_fidelity.metric_{name}") for name in ("fid", "kid"))
    # OpenBLAS gains nothing from threads in its eigenvalues, and loses a factor of ten where others use the cores
    with one_thread_each():
        statistics = [fid.fid_features_to_statistics(x.values) for x in (generated, real)]
        frechet = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
        kernel = kid.kid_features_to_metric(
            generated.values, real.values,
            kid_subset_size=subset_size, kid_subsets=subsets, rng_seed=seed, verbose=False,
        )  # fmt: skip
    names = metric_names(generated.network)
    shared = {"features": generated.network, "resolution": generated.resolution[0]}
    images = f"{len(generated)} generated and {len(real)} real images"
    dimension, few = real.values.shape[1], min(len(generated), len(real))
    bias = f"; {few} images in {dimension} dimensions: a singular covariance, strongly biased upwards"
    note = images + (bias if few <= dimension else "")
    return [
        {"metric": names[0], "value": frechet, "n": len(generated), "note": note, **shared},
        {
            "metric": names[1],
            "value": kernel[kid.KEY_METRIC_KID_MEAN],
            "std": kernel[kid.KEY_METRIC_KID_STD],
            "n": subsets,
            "note": f"{images}, subsets of {subset_size}",
            **shared,
        },
    ]


# --- kernel distance -------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelSums:
    """Sums of k(x, y) = (x.y / f + 1)^3 over the images of each pair of objects.

    within_a (a, a), within_b (b, b): both images from the same set, the diagonal without the pairs of an
    image with itself. across (a, b): one image from each set. images_a (a,), images_b (b,): images of each
    object. All are float64.
    """

    within_a: Tensor
    within_b: Tensor
    across: Tensor
    images_a: Tensor
    images_b: Tensor

    def mmd2(self, times_a: Tensor | None = None, times_b: Tensor | None = None) -> Tensor:
        """The unbiased squared MMD, (r,), of r resamples that hold each object `times` (r, a) and (r, b) times.

        Without them, that of the sets themselves, (1,). Two copies of the same object are not compared
        with each other: their equal images would add a distance that no new object has.
        """
        times_a = torch.ones(1, len(self.images_a)) if times_a is None else times_a
        times_b = torch.ones(1, len(self.images_b)) if times_b is None else times_b
        times_a, times_b = times_a.double(), times_b.double()
        total = _mean_within(self.within_a, self.images_a, times_a) + _mean_within(
            self.within_b, self.images_b, times_b
        )
        pairs = (times_a @ self.images_a) * (times_b @ self.images_b)
        return total - 2 * ((times_a @ self.across) * times_b).sum(1) / pairs


def _mean_within(sums: Tensor, images: Tensor, times: Tensor) -> Tensor:
    """Mean of k over the pairs of different images in each of r resamples, (r,)."""

    def over_pairs(blocks: Tensor) -> Tensor:  # the diagonal counts each copy once, not its square
        diagonal = blocks.diagonal()
        return ((times @ blocks) * times).sum(1) - times.square() @ diagonal + times @ diagonal

    pairs = torch.outer(images, images)
    pairs.diagonal().sub_(images)
    return over_pairs(sums) / over_pairs(pairs)


class KernelDistance:
    """Distance of sets of features to one real set, whose own sums are computed once.

    `KernelDistance(real).sums(generated).mmd2()` is the unbiased estimate over all images: what KID's
    mean over random subsets tends to. As in KID, different images of one object are a pair like any other.
    """

    def __init__(self, real: Features) -> None:
        self.real = real
        self.within, self.images = _block_sums(real, real), _images(real)

    def sums(self, generated: Features) -> KernelSums:
        """The sums between `generated` (set a) and the real set (set b). Raises `MetricError`."""
        generated.check_comparable(self.real)
        within, across = _block_sums(generated, generated), _block_sums(generated, self.real)
        return KernelSums(within, self.within, across, _images(generated), self.images)

    def estimate(self, generated: Sequence[Features], resamples: int = 2000, seed: int = 0, level: float = 0.95):
        """The mean distance of one system's samples, one set per sampling seed, as an `Estimate`."""
        return self.estimate_over_trainings([generated], resamples, seed, level)

    def estimate_over_trainings(
        self, generated: Trainings, resamples: int = 2000, seed: int = 0, level: float = 0.95
    ) -> Estimate:
        """The mean distance of a system that was trained several times; resampled as in `ratio_over_trainings`."""
        generator = torch.Generator().manual_seed(seed)
        times_real = _resample(len(self.images), resamples, generator)
        chosen = _resample_trainings(len(generated), resamples, generator)
        found = [_mean_distance([self.sums(f) for f in sets], times_real, generator) for sets in generated]
        return _estimate(*_over_trainings(found, chosen), level)

    def ratio(
        self,
        ours: Sequence[Features],
        other: Sequence[Features],
        resamples: int = 2000,
        seed: int = 0,
        level: float = 0.95,
    ) -> Estimate:
        """Mean distance of `ours` over that of `other`, one set of features per sampling seed.

        Both systems meet the same resampled real objects (a paired bootstrap); generated objects are
        resampled within each seed, and the seeds themselves are resampled, with the same draw for both
        where they have as many.
        """
        return self.ratio_over_trainings([ours], [other], resamples, seed, level)

    def ratio_over_trainings(
        self, ours: Trainings, other: Trainings, resamples: int = 2000, seed: int = 0, level: float = 0.95
    ) -> Estimate:
        """`ratio` of mean distances over trainings: set t of both systems rests on training t.

        A resample draws one training fewer than there are, with replacement, the same ones for both systems. That
        makes the variance between trainings unbiased, where as many draws as trainings would give (t - 1) / t of it,
        half of it for two (Rao and Wu 1988, "Resampling inference with complex survey data"). Of two trainings
        each resample holds one, so the interval spans what both of them scored. How far a third one lies it cannot say.
        Within each training, sampling seeds and objects are resampled as in `ratio`. Raises MetricError where the
        systems have different numbers of trainings.
        """
        if len(ours) != len(other):
            raise MetricError(f"{len(ours)} trainings of one system and {len(other)} of the other, expected as many")
        generator = torch.Generator().manual_seed(seed)
        times_real = _resample(len(self.images), resamples, generator)
        chosen = _resample_trainings(len(ours), resamples, generator)
        pairs = [self._paired(*sets, times_real, generator) for sets in zip(ours, other, strict=True)]
        (a, a_draws), (b, b_draws) = (_over_trainings(list(found), chosen) for found in zip(*pairs, strict=True))
        return _estimate(a / b, a_draws / b_draws, level)

    def _paired(
        self, ours: Sequence[Features], other: Sequence[Features], times_real: Tensor, generator: torch.Generator
    ) -> list[tuple[float, Tensor]]:
        """`_mean_distance` of both systems of one training, with the same draw of sampling seeds where they can."""
        seeds = [_resample(len(system), len(times_real), generator) for system in (ours, other)]
        if len(ours) == len(other):
            seeds[1] = seeds[0]
        return [
            _mean_distance([self.sums(features) for features in system], times_real, generator, drawn)
            for system, drawn in zip((ours, other), seeds, strict=True)
        ]


def _mean_distance(
    sums: list[KernelSums], times_real: Tensor, generator: torch.Generator, seeds: Tensor | None = None
) -> tuple[float, Tensor]:
    """Mean over sampling seeds of the distance, and of r resamples of it, (r,)."""
    value = float(torch.cat([s.mmd2() for s in sums]).mean())
    draws = torch.stack([s.mmd2(_resample(len(s.images_a), len(times_real), generator), times_real) for s in sums], 1)
    if seeds is None:
        seeds = _resample(len(sums), len(times_real), generator)
    return value, (draws * seeds).sum(1) / seeds.sum(1)


def _over_trainings(found: Sequence[tuple[float, Tensor]], chosen: Tensor) -> tuple[float, Tensor]:
    """Mean over trainings of the distance, and of r resamples that hold each training `chosen` (r, t) times, (r,)."""
    values, draws = zip(*found, strict=True)
    return sum(values) / len(values), (torch.stack(draws, 1) * chosen).sum(1) / chosen.sum(1)


def _resample_trainings(n: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of n trainings is drawn in n - 1 draws with replacement, (resamples, n); a single one always."""
    return _resample(n, resamples, generator, n - 1) if n > 1 else torch.ones(resamples, 1, dtype=torch.float64)


def _estimate(value: float, draws: Tensor, level: float) -> Estimate:
    low, high = torch.quantile(draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype)).tolist()
    return Estimate(value, float(draws.std()), low, high, len(draws))


def _resample(n: int, resamples: int, generator: torch.Generator, draws: int | None = None) -> Tensor:
    """How often each of n objects is drawn in `draws` (default: n) draws with replacement, (resamples, n)."""
    drawn = torch.randint(n, (resamples, n if draws is None else draws), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())


def _images(features: Features) -> Tensor:
    return torch.bincount(features.objects, minlength=features.num_objects).double()


def _block_sums(a: Features, b: Features, rows: int = 2048) -> Tensor:
    """Sums of the kernel over the images of each pair of objects, (objects of a, objects of b), float64."""
    x, y = a.values / a.values.shape[1], b.values
    order = b.objects.argsort(stable=True)
    y, columns, position = y[order], b.objects[order], order.argsort()
    starts = torch.searchsorted(columns, torch.arange(b.num_objects))
    out = torch.zeros(a.num_objects, b.num_objects, dtype=torch.float64)
    for start in range(0, len(x), rows):
        k = (x[start : start + rows] @ y.T).add_(1)
        k = k.square().mul_(k)
        if a is b:  # an image with itself
            image = torch.arange(start, min(start + rows, len(x)))
            k[image - start, position[image]] = 0
        # reduceat adds within an object in float32, at most a few dozen terms; the rest is float64
        by_object = torch.from_numpy(np.add.reduceat(k.numpy(), starts.numpy(), axis=1)).double()
        out.index_add_(0, a.objects[start : start + rows], by_object)
    return out


# --- Fréchet distance ------------------------------------------------------------------------------


def frechet_estimate(
    generated: Sequence[Features], real: Features, resamples: int = 20, seed: int = 0, level: float = 0.95
) -> Estimate:
    """The mean Fréchet distance of one system's samples, one set per sampling seed, with a bootstrap interval.

    Real objects are resampled, the same for all sets, and generated ones within each set. Resampled sets hold fewer
    different images, which biases the distance upwards; the interval is therefore the estimate plus and minus normal
    quantiles of the bootstrap's standard error.
    """
    for features in generated:
        features.check_comparable(real)
    generator = torch.Generator().manual_seed(seed)

    def mean(times: list[Tensor]) -> float:
        fixed, *sets = (_moments(*pair) for pair in zip((real, *generated), times, strict=True))
        return float(np.mean([_frechet(*moments, *fixed) for moments in sets]))

    counts = [x.num_objects for x in (real, *generated)]
    times = [[_resample(n, 1, generator)[0] for n in counts] for _ in range(resamples)]
    value, *draws = side_by_side(mean, [[torch.ones(n) for n in counts], *times])
    std = float(np.std(draws, ddof=1))
    half = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))) * std
    return Estimate(value, std, value - half, value + half, resamples)


def _moments(features: Features, times: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (f,) and a root X of the covariance X^T X, (at most f, f), where each object is held `times`."""
    weight = times[features.objects].double()
    x, weight = features.values[weight > 0].double(), weight[weight > 0]
    n = weight.sum()
    mean = weight @ x / n
    root = (x - mean) * (weight / (n - 1)).sqrt()[:, None]
    return mean, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def _frechet(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, root_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) with A = X^T X and B = Y^T Y.

    The last trace is the sum of the singular values of X Y^T: A B has the eigenvalues of (X Y^T)(X Y^T)^T. With fewer
    images than features that is the smaller matrix, and no root has to be taken.
    """
    common = torch.linalg.svdvals(root_a @ root_b.T).sum()
    return float((mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * common)
