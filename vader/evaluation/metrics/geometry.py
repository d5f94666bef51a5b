"""COV, MMD and 1-NNA between sets of point clouds (A.1, Eq. 3-5), exact at 1,000 x 1,000 clouds.

All of them ask only for nearest clouds, so most pairs never need their distance: a lower bound that
costs microseconds (`_lower_bounds`) already exceeds another pair's distance. The remaining pairs go
through a vectorised brute-force kernel (`chamfer_cpu`).

Chamfer distances are means over points, CD(X, Y) = mean_x min_y |x - y|^2 + mean_y min_x |x - y|^2, as in
the field's evaluation code. The paper's Table 4 must have used means, too, since its values are far below the
sums of Eq. 3. `form="sum"` gives Eq. 3 to the letter. For clouds of p points one is p times the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from . import MetricError, optional_import
from .surfaces import surface_clouds

Clouds = np.ndarray | torch.Tensor
GRID = 32  # cells along the longest edge in which lower bounds are tabulated
CHUNK = 1024  # pairs between two looks at what can still be skipped


@dataclass(frozen=True)
class ShapeMetrics:
    """Scores of how a generated set covers and matches a reference set, each a mean over clouds of one set.

    cov: fraction of reference clouds that are the nearest one of some generated cloud (Eq. 4). Higher is better.
    mmd: mean over reference clouds of the distance to the nearest generated cloud (Eq. 5). Lower is better.
    mmd_smp: mean over generated clouds of the distance to the nearest reference cloud, as the paper's text
        words MMD. Lower is better.
    one_nna: leave-one-out accuracy of telling the sets apart by the nearest cloud, best at 0.5. None for
        sets of unequal size, where 0.5 is no longer chance.
    """

    cov: float
    mmd: float
    mmd_smp: float
    one_nna: float | None
    standard_errors: dict[str, float]  # of each of these means over its clouds, the other set being fixed
    counts: dict[str, int]  # and how many clouds that were
    points: int  # of each cloud
    form: str
    pairs_measured: int  # the others were excluded by their lower bounds
    pairs: int

    def rows(self) -> list[dict]:
        """Rows of a report, without system, dataset and source."""
        note = f"{self.points} points a cloud, chamfer distance as {self.form}"
        return [
            {"metric": name, "value": getattr(self, name), "std": error, "n": self.counts[name], "note": note}
            for name, error in self.standard_errors.items()
        ]


def shape_metrics(generated: Clouds, reference: Clouds, form: Literal["mean", "sum"] = "mean") -> ShapeMetrics:
    """COV, MMD and 1-NNA of generated (n, p, 3) against reference (m, p, 3) clouds, all of p points.

    Equal distances are decided by the lower index, generated clouds first, as argmin over the whole
    matrix would. Raises `MetricError` for empty sets or clouds, clouds of unequal size, NaN or infinity.
    """
    near = nearest_clouds(generated, reference)
    n, m = len(near.to_reference), len(near.to_generated)
    scale = _form_scale(form, near.points)
    is_generated = np.arange(n + m) < n
    over_clouds = {
        "cov": np.isin(np.arange(m), near.to_reference).astype(float),
        "mmd": scale * near.to_generated_distance,
        "mmd_smp": scale * near.to_reference_distance,
        "one_nna": (is_generated[near.in_union] == is_generated).astype(float),
    }
    if n != m:
        del over_clouds["one_nna"]
    means = {name: float(values.mean()) for name, values in over_clouds.items()}
    return ShapeMetrics(
        **{"one_nna": None} | means,
        standard_errors={name: float(values.std() / len(values) ** 0.5) for name, values in over_clouds.items()},
        counts={name: len(values) for name, values in over_clouds.items()},
        points=near.points,
        form=form,
        pairs_measured=near.pairs_measured,
        pairs=near.pairs,
    )


def chamfer_distance(x: Clouds, y: Clouds, form: Literal["mean", "sum"] = "mean") -> np.ndarray:
    """Chamfer distance (Eq. 3) of each pair of clouds x[k] (b, p, 3) and y[k] (b, q, 3), (b,) float64.

    p and q may differ: each direction is a mean (or sum) over its own points. Raises `MetricError`.
    """
    kernels = _kernels()
    x, y = _clouds(x, "x"), _clouds(y, "y")
    if len(x) != len(y):
        raise MetricError(f"{len(x)} clouds x and {len(y)} clouds y, expected as many of both")
    scales = [_form_scale(form, cloud.shape[2]) for cloud in (x, y)]
    return np.array([kernels.chamfer(a, b) for a, b in zip(x, y, strict=True)]) @ scales


def distance_matrix(x: Clouds, y: Clouds | None = None) -> np.ndarray:
    """Chamfer distances in mean form of every cloud of x (n, p, 3) to every one of y (m, p, 3), (n, m) float64.

    Without y those within x, (n, n), its diagonal infinite: no cloud is its own neighbour. For resampling, where
    `nearest_clouds` saves nothing; a pair of 2,048 points takes about half a millisecond of one core. Raises
    `MetricError`.
    """
    _kernels()
    x = _clouds(x, "x")
    if y is None:
        clouds, pairs = x, np.stack(np.triu_indices(len(x), 1), 1)
    else:
        y = _clouds(y, "y")
        if x.shape[2] != y.shape[2]:
            raise MetricError(f"clouds x have {x.shape[2]} points and clouds y {y.shape[2]}, expected as many")
        clouds = np.concatenate([x, y])
        pairs = np.stack(np.indices((len(x), len(y))), -1).reshape(-1, 2) + [0, len(x)]
    distances = np.full((len(clouds), len(clouds)), np.inf)
    _measure(clouds, pairs, distances)
    return distances if y is None else distances[: len(x), len(x) :]


@dataclass(frozen=True)
class NearestClouds:
    """The nearest clouds of n generated and m reference clouds, by mean-form chamfer distance."""

    to_reference: np.ndarray  # (n,) which reference cloud is nearest to each generated one
    to_reference_distance: np.ndarray  # (n,) float64
    to_generated: np.ndarray  # (m,) which generated cloud is nearest to each reference one
    to_generated_distance: np.ndarray  # (m,)
    in_union: np.ndarray  # (n + m,) nearest other cloud of [generated, reference]
    points: int
    pairs_measured: int
    pairs: int


def nearest_clouds(generated: Clouds, reference: Clouds) -> NearestClouds:
    """Nearest neighbours across and within the sets, (n, p, 3) and (m, p, 3). Raises `MetricError`."""
    _kernels()
    generated, reference = _clouds(generated, "generated"), _clouds(reference, "reference")
    n, m, p = len(generated), len(reference), generated.shape[2]
    if p != reference.shape[2]:
        raise MetricError(
            f"generated clouds have {p} points and reference clouds {reference.shape[2]}, expected as many: "
            "sparser clouds are farther from everything"
        )
    clouds = np.concatenate([generated, reference])
    bounds = _lower_bounds(clouds)
    is_generated = np.arange(n + m) < n
    across = is_generated[:, None] != is_generated[None]
    upper = np.triu(np.ones_like(across), 1)  # each pair once

    distances = np.full((n + m, n + m), np.inf)
    partners = np.where(across, bounds, np.inf).argmin(1)  # the most promising pairs give first limits
    _measure(clouds, np.unique(np.sort(np.stack([np.arange(n + m), partners], 1)), axis=0), distances)
    # the minima across, for COV and MMD; then what a cloud's own set may hold nearer still, for 1-NNA
    _measure_below_limit(clouds, bounds, across & upper, distances)
    _measure_below_limit(clouds, bounds, ~across & upper, distances)

    measured = int(np.isfinite(distances[upper]).sum())
    other = np.where(across, distances, np.inf)
    to_other = other.argmin(1)
    return NearestClouds(
        to_reference=to_other[:n] - n,
        to_reference_distance=other[:n].min(1),
        to_generated=to_other[n:],
        to_generated_distance=other[n:].min(1),
        in_union=distances.argmin(1),
        points=p,
        pairs_measured=measured,
        pairs=(n + m) * (n + m - 1) // 2,
    )


def matched_shapes(
    densities: torch.Tensor, others: torch.Tensor, threshold: float | None = None, points: int = 1024
) -> list[tuple[int, int, float]]:
    """For each of the densities (n, d, h, w) the nearest of `others` (m, d', h', w'), (own number, its number, chamfer
    distance in mean form), closest pairs first.

    Shapes are what marching cubes finds (`surfaces`, as is `threshold`), so volumes of different resolution can be
    matched; those without a surface are left out. Raises `MetricError`.
    """
    ours, theirs = (surface_clouds(volumes, threshold, points) for volumes in (densities, others))
    if not (len(ours.clouds) and len(theirs.clouds)):
        return []
    near = nearest_clouds(ours.clouds, theirs.clouds)
    order = near.to_reference_distance.argsort(kind="stable")
    own, other = ours.objects[order].tolist(), theirs.objects[near.to_reference[order]].tolist()
    return list(zip(own, other, near.to_reference_distance[order].tolist(), strict=True))


def _measure_below_limit(clouds: np.ndarray, bounds: np.ndarray, wanted: np.ndarray, distances: np.ndarray) -> None:
    """Fill `distances` for every wanted pair that may be the minimum of its row or column.

    The limit of a cloud is the smallest distance known so far. Pairs come in order of their bounds, so
    that limits fall fast; within a chunk they are fixed, which keeps the pairs measured, and with them
    all results, independent of the number of threads.
    """
    limit = distances.min(1)
    pairs = np.argwhere(wanted & np.isinf(distances) & ((bounds <= limit[:, None]) | (bounds <= limit)))
    bound = bounds[tuple(pairs.T)]
    order = bound.argsort(kind="stable")
    pairs, bound = pairs[order], bound[order]
    for start in range(0, len(pairs), CHUNK):
        part, part_bound = pairs[start : start + CHUNK], bound[start : start + CHUNK]
        part = part[part_bound <= limit[part].max(1)]
        found = _measure(clouds, part, distances)
        np.minimum.at(limit, part, found[:, None])


def _measure(clouds: np.ndarray, pairs: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The distances of pairs (k, 2), also written to both halves of the matrix."""
    first, second = np.ascontiguousarray(pairs.T)
    out = np.empty(len(pairs))
    kernels = _kernels()
    _in_threads(lambda s: kernels.chamfer_pairs(clouds, first[s], second[s], out[s]), len(pairs))
    distances[first, second] = distances[second, first] = out
    return out


def _lower_bounds(clouds: np.ndarray) -> np.ndarray:
    """bounds[i, j] <= CD of clouds i and j, (n, n) float32, from distances tabulated on a grid.

    For each cloud, the distance d(c) to it is computed at the centre c of every grid cell that holds a
    point of any cloud. A point x of that cell is then no nearer than d(c) - |x - c|.
    """
    points = clouds.transpose(0, 2, 1)  # (n, p, 3)
    low = points.min((0, 1))
    edge = max(float((points.max((0, 1)) - low).max()) / GRID, float(np.finfo(np.float32).tiny))
    index = np.minimum(((points - low) / edge).astype(np.int64), GRID - 1)
    used, cells = np.unique(np.ravel_multi_index(np.moveaxis(index, -1, 0), (GRID,) * 3), return_inverse=True)
    centres = (low + (np.stack(np.unravel_index(used, (GRID,) * 3), -1) + 0.5) * edge).astype(np.float32)
    cells = cells.reshape(index.shape[:2])
    # both distances are rounded to float32: a ten-thousandth of a cell covers that by far
    offsets = np.linalg.norm(points.astype(np.float64) - centres[cells], axis=-1) + 1e-4 * edge
    n = len(clouds)
    out = np.empty((n, n), np.float32)
    centres, cells, offsets = np.ascontiguousarray(centres.T), cells.astype(np.int32), offsets.astype(np.float32)
    kernels = _kernels()
    _in_threads(lambda s: kernels.one_way_bounds(clouds[s], centres, cells, offsets, out[s]), n)
    return (out + out.T) * np.float32(1 - 1e-4)  # and so for the sums


def _in_threads(work: Callable[[slice], None], n: int) -> None:
    """Run `work` on slices of range(n), one thread per core. The kernels leave the interpreter's lock."""
    threads = torch.get_num_threads()
    step = max(1, -(-n // (4 * threads)))
    slices: Iterable[slice] = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, slices))


def _clouds(clouds: Clouds, name: str) -> np.ndarray:
    """Checked clouds as float32 (n, 3, p)."""
    if isinstance(clouds, list | tuple):
        sizes = [len(cloud) for cloud in clouds]
        if len(set(sizes)) > 1:
            odd = next(i for i, size in enumerate(sizes) if size != sizes[0])
            raise MetricError(
                f"{name}: cloud {odd} has {sizes[odd]} points and cloud 0 has {sizes[0]}, expected as many"
            )
        clouds = np.stack([np.asarray(cloud) for cloud in clouds]) if sizes else np.empty((0, 0, 3))
    array = np.asarray(clouds.detach().cpu() if isinstance(clouds, torch.Tensor) else clouds)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise MetricError(f"{name}: shape {array.shape}, expected (n, p, 3)")
    if array.size == 0:
        raise MetricError(f"{name}: {array.shape[0]} clouds of {array.shape[1]} points, expected at least one of each")
    if array.dtype.kind != "f":
        raise MetricError(f"{name}: points are {array.dtype}, expected floating point")
    finite = np.isfinite(array).all((1, 2))
    if not finite.all():
        raise MetricError(f"{name}: cloud {int(finite.argmin())} has a NaN or infinite point, expected finite ones")
    return np.ascontiguousarray(array.transpose(0, 2, 1), dtype=np.float32)


def _form_scale(form: str, points: int) -> float:
    if form not in ("mean", "sum"):
        raise MetricError(f"chamfer form {form!r}, expected 'mean' or 'sum' (Eq. 3)")
    return 1.0 if form == "mean" else float(points)


def _kernels():
    optional_import("numba")
    from . import chamfer_cpu

    return chamfer_cpu
