"""COV, MMD and 1-NNA against loops, hand-made sets and PyTorch3D's chamfer distance."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.evaluation.metrics import MetricError, geometry
from vader.report.schema import check_row

pytest.importorskip("numba")


def brute(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean squared distance to the nearest point, from x to y and from y to x, in float64."""
    squared = ((x.astype(np.float64)[:, None] - y.astype(np.float64)[None]) ** 2).sum(-1)
    return squared.min(1).mean(), squared.min(0).mean()


def matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[sum(brute(x, y)) for y in b] for x in a])


def boxes(n: int, points: int, seed: int, grow: float = 1.0) -> np.ndarray:
    """Clouds on the surfaces of n random boxes in the unit cube."""
    rng = np.random.default_rng(seed)
    cloud = rng.uniform(-1, 1, (n, points, 3))
    axis = rng.integers(0, 3, (n, points, 1))
    np.put_along_axis(cloud, axis, np.sign(rng.uniform(-1, 1, axis.shape)), 2)
    return (cloud * rng.uniform(0.2, 0.9, (n, 1, 3)) * grow).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(p=st.integers(1, 70), q=st.integers(1, 70), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_chamfer_against_brute_force(p, q, seed, scale):
    rng = np.random.default_rng(seed)
    x, y = (scale * rng.normal(size=(1, k, 3)).astype(np.float32) for k in (p, q))
    there, back = brute(x[0], y[0])
    assert geometry.chamfer_distance(x, y)[0] == pytest.approx(there + back, rel=1e-6)
    assert geometry.chamfer_distance(x, y, form="sum")[0] == pytest.approx(p * there + q * back, rel=1e-6)
    assert geometry.chamfer_distance(y, x)[0] == pytest.approx(there + back, rel=1e-6)
    assert geometry.chamfer_distance(x, x)[0] == 0


def test_chamfer_of_a_shift():
    """A sparse lattice moved by (0.03, 0, 0.04): each direction's mean is 0.05^2, each sum 27 times that."""
    lattice = np.stack(np.meshgrid(*[[-0.5, 0, 0.5]] * 3), -1).reshape(1, 27, 3)
    moved = lattice + [0.03, 0, 0.04]
    assert geometry.chamfer_distance(lattice, moved)[0] == pytest.approx(2 * 0.0025, rel=1e-5)
    assert geometry.chamfer_distance(lattice, moved, form="sum")[0] == pytest.approx(2 * 27 * 0.0025, rel=1e-5)


def test_chamfer_is_pytorch3ds():
    loss = pytest.importorskip("pytorch3d.loss")
    x, y = boxes(4, 300, 0), boxes(4, 257, 1)
    expected, _ = loss.chamfer_distance(torch.from_numpy(x), torch.from_numpy(y), batch_reduction=None)
    np.testing.assert_allclose(geometry.chamfer_distance(torch.from_numpy(x), y), expected.numpy(), rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), m=st.integers(1, 12), grow=st.sampled_from([1.0, 1.5]))
def test_set_metrics_against_loops(seed, n, m, grow):
    a, b = boxes(n, 50, seed), boxes(m, 50, seed + 1, grow)
    across = matrix(a, b)
    union = np.concatenate([a, b])
    whole = matrix(union, union)
    np.fill_diagonal(whole, np.inf)
    near = geometry.nearest_clouds(a, b)
    np.testing.assert_array_equal(near.to_reference, across.argmin(1))
    np.testing.assert_array_equal(near.to_generated, across.argmin(0))
    np.testing.assert_array_equal(near.in_union, whole.argmin(1))
    got = geometry.shape_metrics(a, b)
    assert got.cov == len({int(row.argmin()) for row in across}) / m
    assert got.mmd == pytest.approx(np.mean([column.min() for column in across.T]), rel=1e-6)
    assert got.mmd_smp == pytest.approx(np.mean([row.min() for row in across]), rel=1e-6)
    if n == m:
        correct = [(int(whole[i].argmin()) < n) == (i < n) for i in range(2 * n)]
        assert got.one_nna == np.mean(correct)
    else:
        assert got.one_nna is None and "one_nna" not in {row["metric"] for row in got.rows()}
    summed = geometry.shape_metrics(a, b, form="sum")
    assert summed.mmd == pytest.approx(50 * got.mmd) and summed.cov == got.cov
    for row in summed.rows():
        check_row("row", row | {"system": "ours", "dataset": "boxes", "source": "measured"})
        assert row["note"] == "50 points a cloud, chamfer distance as sum"
    minima = across.min(0)
    error = np.sqrt(((minima - minima.mean()) ** 2).sum()) / m
    assert got.standard_errors["mmd"] == pytest.approx(error, rel=1e-5, abs=1e-9) and got.counts["mmd"] == m
    assert got.standard_errors["cov"] == pytest.approx(np.sqrt(got.cov * (1 - got.cov) / m))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-4, 1.0, 1e4]), shift=st.sampled_from([0.0, 100.0]))
def test_lower_bounds_bound(seed, scale, shift):
    """Also for tiny and huge clouds, and far from the origin where coordinates are coarse."""
    clouds = (boxes(6, 40, seed) * scale + shift * scale).astype(np.float32)
    clouds[1] = clouds[0]
    bounds = geometry._lower_bounds(np.ascontiguousarray(clouds.transpose(0, 2, 1)))
    exact = np.array([[geometry.chamfer_distance(x[None], y[None])[0] for y in clouds] for x in clouds])
    assert (bounds <= exact).all()
    assert (bounds == bounds.T).all()


def test_bounds_save_most_of_the_work():
    """Only a fraction of the pairs is measured, and still the answer is exact."""
    a, b = boxes(40, 200, 0), boxes(40, 200, 1)
    got = geometry.shape_metrics(a, b)
    assert got.pairs == 80 * 79 // 2 and got.pairs_measured < 0.3 * got.pairs
    exact = np.array([geometry.chamfer_distance(np.repeat(x[None], 40, 0), b) for x in a])
    assert got.mmd == pytest.approx(exact.min(0).mean(), rel=1e-12)
    assert got.cov == len(set(exact.argmin(1))) / 40


def test_results_do_not_depend_on_threads():
    a, b = boxes(20, 100, 0), boxes(20, 100, 1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(geometry.shape_metrics(a, b))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_a_set_against_itself():
    a = boxes(10, 60, 0)
    got = geometry.shape_metrics(a, a)
    assert got.cov == 1 and got.mmd == 0 and got.mmd_smp == 0
    assert got.one_nna == 0  # the nearest other cloud is always the copy


def test_one_generated_shape():
    """A model that always makes the same shape: covers one reference, and 1-NNA tells it apart at once."""
    reference = boxes(10, 60, 0)
    generated = np.repeat(boxes(1, 60, 5), 10, 0)
    got = geometry.shape_metrics(generated, reference)
    assert got.cov == 0.1
    assert got.mmd == pytest.approx(matrix(generated[:1], reference).mean(), rel=1e-6)
    assert got.mmd_smp == pytest.approx(matrix(generated[:1], reference).min(), rel=1e-6)
    assert got.one_nna >= 0.5


def test_halves_of_one_set_cannot_be_told_apart():
    clouds = boxes(160, 100, 0)
    got = geometry.shape_metrics(clouds[::2], clouds[1::2])
    assert 0.38 < got.one_nna < 0.62  # 160 fair coins: 0.5 +- three deviations of 0.04
    apart = geometry.shape_metrics(clouds[::2], clouds[1::2] + 3)
    assert apart.one_nna == 1


def test_degenerate_clouds():
    """All points in one place: no extent to lay a grid over."""
    a = np.zeros((3, 5, 3), np.float32)
    assert geometry.shape_metrics(a, a).mmd == 0
    b = a.copy()
    b[0, 0] = 1e-30
    assert geometry.shape_metrics(a, b).mmd >= 0


A = boxes(3, 20, 0)


def spoilt(value: float) -> np.ndarray:
    clouds = A.copy()
    clouds[2, 4, 1] = value
    return clouds


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (np.empty((0, 20, 3)), "reference: 0 clouds of 20 points"),
        (np.empty((3, 0, 3)), "reference: 3 clouds of 0 points"),
        (np.zeros((3, 20, 2)), r"reference: shape \(3, 20, 2\), expected \(n, p, 3\)"),
        (spoilt(np.nan), "reference: cloud 2 has a NaN or infinite point"),
        (spoilt(np.inf), "reference: cloud 2 has a NaN or infinite point"),
        (A[:, :10], "generated clouds have 20 points and reference clouds 10"),
        ([A[0], A[1][:7]], "reference: cloud 1 has 7 points and cloud 0 has 20"),
        ([], "reference: 0 clouds"),
        (np.zeros((3, 20, 3), int), "points are int64"),
    ],
)
def test_bad_clouds(reference, message):
    with pytest.raises(MetricError, match=message):
        geometry.shape_metrics(A, reference)


def test_bad_calls(monkeypatch):
    with pytest.raises(MetricError, match="'mean' or 'sum'"):
        geometry.chamfer_distance(A, A, form="max")
    with pytest.raises(MetricError, match="'mean' or 'sum'"):
        geometry.shape_metrics(A, A, form="max")
    with pytest.raises(MetricError, match="3 clouds x and 2 clouds y"):
        geometry.chamfer_distance(A, A[:2])
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"needs numba: pip install 'vader\[eval\]'"):
        geometry.shape_metrics(A, A)


def test_shapes_are_matched_across_resolutions_and_empty_ones_left_out():
    pytest.importorskip("skimage")

    def balls(radii, size):
        axis = torch.linspace(-1, 1, size)
        distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        return torch.stack([(200 * (radius - distance)).clamp(0, 60) for radius in radii])

    pairs = geometry.matched_shapes(balls((0.7, 0.0, 0.3), 16), balls((0.31, 0.5, 0.0, 0.8), 24))
    assert {(i, j) for i, j, _ in pairs} == {(0, 3), (2, 0)}
    distances = [distance for *_, distance in pairs]
    assert distances == sorted(distances) and distances[0] < 0.01
    assert geometry.matched_shapes(balls((0.0,), 16), balls((0.5,), 16)) == []
