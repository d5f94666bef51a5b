"""Table 4's protocol on balls, whose surfaces, distances and faults are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.data import DataError
from vader.evaluation.metrics import MetricError, geometry
from vader.evaluation.metrics.surfaces import density_threshold
from vader.evaluation.shapes import (
    ShapeReference,
    Shapes,
    advantage,
    memorisation,
    real_shapes,
    sample_shapes,
    score,
    score_subsets,
)
from vader.generation import volumes as generation
from vader.report.figures import cloud_grid
from vader.report.paper import table4_rows
from vader.report.schema import check_row

pytest.importorskip("numba")


class Balls:
    """A `Generator` of balls: density falls through the threshold at a radius that number and seed decide."""

    name = "balls"

    def __init__(self, spread: float = 0.3, broken: tuple[int, ...] = (), empty: tuple[int, ...] = ()) -> None:
        self.spread, self.broken, self.empty = spread, broken, empty
        self.calls: list[list[int]] = []

    def radius(self, index: int, seed: int) -> float:
        return 0.4 + self.spread * np.random.default_rng((index, seed)).random()

    def pictures(self, indices, cameras, seed):
        return torch.stack([torch.zeros(len(c), c.height, c.width, 3) for c in cameras])

    def density(self, indices, seed, resolution):
        self.calls.append(list(indices))
        axis = torch.linspace(-1, 1, resolution)
        distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        level = density_threshold(resolution)
        out = torch.stack([(level * (2 - distance / self.radius(i, seed))).clamp_min(0) for i in indices])
        for k, index in enumerate(indices):
            if index in self.broken:
                out[k, 0, 0, 0] = torch.nan
            if index in self.empty:
                out[k] = 0
        return out


def clouds(n: int, seed: int, points: int = 40, grow: float = 1.0) -> Shapes:
    """Points on random ellipsoids."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n, points, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    axes = rng.uniform(0.3, 0.9, (n, 1, 3)) * grow
    return Shapes((directions * axes).astype(np.float32), np.arange(n), n)


def test_a_sample_becomes_points_on_its_surface_at_each_threshold(monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr(generation, "BATCH", 2)
    generator = Balls()
    found = sample_shapes(generator, 3, 7, 24, factors=(0.5, 1.0), points=50)
    assert generator.calls == [[0, 1], [2]], "each sample is drawn once for all thresholds"
    for factor, stretch in ((0.5, 1.5), (1.0, 1.0)):  # density = level * (2 - r / radius)
        shapes = found[factor]
        assert shapes.clouds.shape == (3, 50, 3) and shapes.objects.tolist() == [0, 1, 2]
        for index, cloud in enumerate(shapes.clouds):
            radius = stretch * generator.radius(index, 7)
            np.testing.assert_allclose(np.linalg.norm(cloud, axis=1), radius, atol=0.02)
    monkeypatch.setattr(generation, "BATCH", 3)
    again = sample_shapes(Balls(), 3, 7, 24, points=50)[1.0]
    np.testing.assert_array_equal(again.clouds, found[1.0].clouds)


def test_samples_without_a_shape_are_counted_left_out_and_named_in_the_rows():
    pytest.importorskip("skimage")
    sound = sample_shapes(Balls(), 6, 0, 12, points=30)[1.0]
    shapes = sample_shapes(Balls(broken=(1,), empty=(2, 4)), 6, 0, 12, points=30)[1.0]
    assert (shapes.total, shapes.broken, shapes.empty, shapes.objects.tolist()) == (6, 1, 2, [0, 3, 5])
    np.testing.assert_array_equal(shapes.clouds, sound.clouds[[0, 3, 5]])
    reference = ShapeReference(sound)
    rows = score([reference.distances(shapes)], resamples=20).rows()
    assert "1 of 6 are not finite and are left out; 2 of 6 have no surface and are left out" in rows[0]["note"]
    complete = score([reference.distances(sound)], resamples=20)
    values = {row["metric"]: row["value"] for row in rows}
    assert values["cov"] < 100 * complete.values["cov"] and values["mmd"] > 1000 * complete.values["mmd"]


def test_a_system_without_any_shape_covers_nothing_and_crashes_nothing():
    pytest.importorskip("skimage")
    shapes = sample_shapes(Balls(broken=(0, 1), empty=(2,)), 3, 0, 12, points=30)[1.0]
    reference = ShapeReference(clouds(4, 0, 30))
    distances = reference.distances(shapes)
    scores = score([distances], resamples=10)
    assert scores.values == {"cov": 0.0}
    for row in scores.rows():
        check_row("row", row | {"system": "ours", "dataset": "balls", "source": "measured"})
    assert scores.rows("sum") == []
    with pytest.raises(MetricError, match="ours has no mmd, since none of its samples has a shape"):
        advantage(scores, score([reference.distances(clouds(4, 1, 30))], resamples=10), "mmd")
    with pytest.raises(MetricError, match="samples: none has a shape"):
        memorisation(distances, distances)
    both = score([distances, reference.distances(clouds(4, 1, 30))], resamples=10)
    assert both.values["mmd"] > 0, "the other sampling seed still counts"


def test_metrics_against_a_loop_written_out():
    generated, reference = clouds(7, 0), clouds(5, 1)

    def chamfer(x, y):
        squared = ((x[:, None].astype(float) - y[None].astype(float)) ** 2).sum(-1)
        return squared.min(1).mean() + squared.min(0).mean()

    across = [[chamfer(x, y) for y in reference.clouds] for x in generated.clouds]
    union = [*generated.clouds, *reference.clouds]
    correct = []
    for i, x in enumerate(union):
        others = [(chamfer(x, y), j) for j, y in enumerate(union) if j != i]
        correct.append((min(others)[1] < 7) == (i < 7))
    distances = ShapeReference(reference).distances(generated)
    found = distances.metrics()
    assert found["cov"] == len({int(np.argmin(row)) for row in across}) / 5
    assert found["mmd"] == pytest.approx(np.mean(np.min(across, 0)), rel=1e-6)
    assert found["mmd_smp"] == pytest.approx(np.mean(np.min(across, 1)), rel=1e-6)
    assert found["one_nna"] == pytest.approx((np.mean(correct[:7]) + np.mean(correct[7:])) / 2)


def test_equal_sets_give_what_shape_metrics_gives_and_resamples_what_smaller_sets_give():
    generated, reference = clouds(8, 2), clouds(8, 3)
    distances = ShapeReference(reference).distances(generated)
    whole = geometry.shape_metrics(generated.clouds, reference.clouds)
    assert distances.metrics() == pytest.approx(
        {"cov": whole.cov, "mmd": whole.mmd, "mmd_smp": whole.mmd_smp, "one_nna": whole.one_nna}
    )
    times, times_reference = np.array([1, 0, 1, 1, 0, 0, 1, 0]), np.array([0, 1, 1, 0, 1, 0, 0, 1])
    part = geometry.shape_metrics(generated.clouds[times > 0], reference.clouds[times_reference > 0])
    found = distances.metrics(times, times_reference)
    assert found == pytest.approx({"cov": part.cov, "mmd": part.mmd, "mmd_smp": part.mmd_smp, "one_nna": part.one_nna})
    doubled = distances.metrics(2 * times, 3 * times_reference)
    assert doubled == pytest.approx(found), "copies of a cloud are no neighbours of each other"


def test_matrix_is_pytorch3ds():
    loss = pytest.importorskip("pytorch3d.loss")
    x, y = clouds(3, 0).clouds, clouds(4, 1).clouds
    rows, columns = (torch.from_numpy(c) for c in (np.repeat(x, 4, 0), np.tile(y, (3, 1, 1))))
    expected, _ = loss.chamfer_distance(rows, columns, batch_reduction=None)
    np.testing.assert_allclose(geometry.distance_matrix(x, y), expected.view(3, 4).numpy(), rtol=1e-5)
    within = geometry.distance_matrix(x)
    assert np.isinf(np.diag(within)).all() and (within == within.T).all()
    np.testing.assert_allclose(within[0, 1:], geometry.distance_matrix(x[:1], x[1:])[0], rtol=1e-6)
    with pytest.raises(MetricError, match="clouds x have 40 points and clouds y 20"):
        geometry.distance_matrix(x, y[:, :20])


def test_halves_of_one_set_cannot_be_told_apart_and_the_interval_says_so():
    one = clouds(80, 5)
    halves = [dataclasses.replace(one, clouds=one.clouds[k::2]) for k in (0, 1)]
    scores = score([ShapeReference(halves[0]).distances(halves[1])])
    low, high = scores.intervals["one_nna"]
    assert low < 0.5 < high and 0.35 < scores.values["one_nna"] < 0.65
    grown = score([ShapeReference(halves[0]).distances(clouds(40, 6, grow=1.3))])
    assert grown.intervals["one_nna"][0] > 0.5, "other shapes are told apart"


def test_intervals_cover_what_other_samples_give():
    """Samples and references of one law, again and again: the mean over many is inside of about 95 % of intervals."""
    pairs = [(clouds(16, 2 * k, 20), clouds(16, 2 * k + 1, 20)) for k in range(40)]
    scores = [score([ShapeReference(r).distances(g)], resamples=60) for g, r in pairs]
    for metric in ("mmd", "mmd_smp"):
        centre = np.mean([s.values[metric] for s in scores])
        held = sum(s.intervals[metric][0] <= centre <= s.intervals[metric][1] for s in scores)
        assert held >= 33, metric


def test_rows_keep_the_contract_and_know_both_forms():
    reference = ShapeReference(clouds(6, 0))
    sets = [reference.distances(clouds(6, k)) for k in (1, 2)]
    scores = score(sets, resamples=30)
    values = {row["metric"]: row for row in scores.rows()}
    assert list(values) == ["cov", "mmd", "mmd_smp", "one_nna"]
    assert values["mmd"]["value"] == pytest.approx(500 * sum(s.metrics()["mmd"] for s in sets))
    assert values["mmd"]["low"] < values["mmd"]["value"] < values["mmd"]["high"] and values["mmd"]["n"] == 30
    assert 0 <= values["cov"]["low"] <= values["cov"]["value"] <= values["cov"]["high"] <= 100
    assert values["cov"]["value"] == pytest.approx(50 * sum(s.metrics()["cov"] for s in sets)), "in percent"
    summed = {row["metric"]: row for row in scores.rows("sum")}
    assert list(summed) == ["mmd", "mmd_smp"]
    assert summed["mmd"]["value"] == pytest.approx(40 / 1000 * values["mmd"]["value"])
    for row in (*values.values(), *summed.values()):
        check_row("row", row | {"system": "ours", "dataset": "balls", "source": "measured"})
    with pytest.raises(MetricError, match="chamfer form 'max'"):
        scores.rows("max")


def test_subsets_make_sets_of_different_sizes_comparable():
    """Real objects against real objects: at equal subset size many and few of them score alike, as whole sets not."""
    reference = ShapeReference(clouds(30, 0, points=200))
    many, few = (reference.distances(clouds(n, 10 + n, points=200)) for n in (60, 6))
    assert few.metrics()["mmd"] > 1.3 * many.metrics()["mmd"]
    a, b = (score_subsets([d], 6, subsets=100) for d in (many, few))
    assert a.values["mmd"] == pytest.approx(b.values["mmd"], rel=0.25)
    assert abs(a.values["cov"] - b.values["cov"]) < 0.1
    assert "random subsets, 6 samples against 6 references" in a.rows()[0]["note"] and "low" not in a.rows()[0]
    with pytest.raises(MetricError, match="subsets of 7, expected 1 to 6"):
        score_subsets([few], 7)


def test_each_subset_has_its_own_samples_and_its_own_references():
    """Of copies of one cloud on one side, what is left of the spread is that of the subsets of the other side."""
    many, one = clouds(12, 0), clouds(1, 1)
    copies = Shapes(np.repeat(one.clouds, 12, 0), np.arange(12), 12)
    for generated, reference in ((copies, many), (many, copies)):
        scores = score_subsets([ShapeReference(reference).distances(generated)], 4, subsets=30)
        assert len(set(scores.draws["mmd" if generated is copies else "mmd_smp"].round(9))) > 20


def test_advantage_is_signed_paired_and_grants_a_tolerance():
    reference = ShapeReference(clouds(12, 0))
    near, far = (score([reference.distances(clouds(12, s, grow=g))], resamples=40) for s, g in ((1, 1.0), (2, 2.0)))
    assert advantage(near, far, "mmd").low > 0 and advantage(far, near, "mmd").high < 0
    same = advantage(near, near, "mmd")
    assert (same.value, same.std) == (0, 0)
    for metric in ("cov", "mmd", "mmd_smp"):
        granted = advantage(near, near, metric, tolerance=0.05)
        assert granted.value == pytest.approx(0.05 * near.values[metric]) and granted.value > 0
    with pytest.raises(MetricError, match="metric 'one_nna'"):
        advantage(near, far, "one_nna")
    with pytest.raises(MetricError, match="different numbers of resamples"):
        advantage(near, score([reference.distances(clouds(12, 2))], resamples=41), "mmd")


def test_systems_with_other_numbers_of_samples_meet_the_same_resampled_references():
    """Of copies of one cloud any resample is the same, so that what is left of the spread is that of the references."""
    reference, one = ShapeReference(clouds(12, 0)), clouds(1, 1).clouds

    def scored(counts: tuple[int, ...]) -> np.ndarray:
        sets = [Shapes(np.repeat(one, n, 0), np.arange(n), n) for n in counts]
        return score([reference.distances(s) for s in sets], resamples=40).draws["mmd"]

    few, many, several = scored((3,)), scored((17,)), scored((5, 9))
    assert few.std() > 0 and few == pytest.approx(many) and few == pytest.approx(several)


def test_copies_of_training_objects_are_found():
    training = clouds(20, 0)
    reference = ShapeReference(training)
    copies = dataclasses.replace(training, clouds=training.clouds[3:9] + np.float32(1e-3))
    check = memorisation(reference.distances(copies), reference.distances(clouds(8, 1)))
    assert check.sample_neighbours.tolist() == [3, 4, 5, 6, 7, 8] and check.ratio < 0.01
    new = memorisation(reference.distances(clouds(20, 2)), reference.distances(clouds(20, 3)))
    low, high = new.ratio_interval()
    assert low < 1 < high


def test_real_objects_are_sampled_on_their_meshes(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    data = balls(tiny_experiment(), objects=2, test_objects=1)
    with pytest.raises(DataError, match="object 'ball-0' has no mesh"):
        real_shapes(data, "train")
    sequences = []
    for k, sequence in enumerate(data):
        trimesh.creation.icosphere(3, 0.3 + 0.1 * k).export(tmp_path / f"{k}.ply")
        sequences.append(dataclasses.replace(sequence, mesh=tmp_path / f"{k}.ply"))
    data = dataclasses.replace(data, sequences=tuple(sequences))
    shapes = real_shapes(data, "train", points=60)
    assert shapes.clouds.shape == (2, 60, 3) and (shapes.total, shapes.note) == (2, "2 clouds of 60 points")
    for k, cloud in enumerate(shapes.clouds):
        np.testing.assert_allclose(np.linalg.norm(cloud, axis=1), 0.3 + 0.1 * k, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(real_shapes(data, "test").clouds[0], axis=1), 0.5, atol=0.01)
    np.testing.assert_array_equal(real_shapes(data, "train", points=60).clouds, shapes.clouds)


def test_the_papers_numbers_are_rows_of_a_report():
    rows = table4_rows()
    for row in rows:
        check_row("row", row)
    assert {(r["system"], r["dataset"], r["metric"]): r["value"] for r in rows}["ours", "abo_tables", "cov"] == 60.25
    assert len(rows) == 16


def test_a_picture_of_clouds_has_a_row_for_each_name(tmp_path):
    pytest.importorskip("matplotlib")
    figure = cloud_grid({"ours": clouds(3, 0).clouds, "real": clouds(2, 1).clouds}, "ellipsoids")
    axes = figure.get_axes()
    assert len(axes) == 6 and [axis.get_ylabel() for axis in axes[::3]] == ["ours", "real"]
    assert [len(axis.collections) for axis in axes] == [1, 1, 1, 1, 1, 0]
    top = np.array([[[0.0, 0.9, 0.0]]], np.float32)  # above the middle of the picture
    [axis] = cloud_grid({"top": top}, "one point").get_axes()
    x, y = axis.collections[0].get_offsets()[0]
    assert x == pytest.approx(0, abs=1e-6) and 0.8 < y < 0.9


def test_what_cannot_be_compared_is_refused():
    class Flat(Balls):
        def density(self, indices, seed, resolution):
            return torch.zeros(len(indices), 8, 8, 8)

    with pytest.raises(MetricError, match=r"balls: density has shape \(2, 8, 8, 8\), expected \(2, 16, 16, 16\)"):
        sample_shapes(Flat(), 2, 0, 16)
    with pytest.raises(MetricError, match="reference set has no clouds"):
        ShapeReference(Shapes(np.empty((0, 5, 3), np.float32), np.arange(0), 3))
    with pytest.raises(MetricError, match="clouds x have 30 points and clouds y 40"):
        ShapeReference(clouds(3, 0)).distances(clouds(3, 0, points=30))
