"""The memorisation check on sets made to be copies, or not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vader.evaluation.metrics import MetricError
from vader.evaluation.metrics.features import Features
from vader.evaluation.metrics.neighbours import MemorisationCheck, memorisation, object_distances


def objects_of(centres: torch.Tensor, views: int, seed: int = 0) -> Features:
    g = torch.Generator().manual_seed(seed)
    values = centres[:, None] + 0.1 * torch.randn(len(centres), views, centres.shape[1], generator=g)
    ids = torch.arange(len(centres)).repeat_interleave(views)
    return Features(values.flatten(0, 1), ids, "efficientnet-lite0", (48, 48), (0.0, 0.0, 0.0))


CENTRES = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))


def test_distances_against_a_loop():
    a, b = objects_of(CENTRES[:3], 2), objects_of(CENTRES[3:7], 3)
    got = object_distances(a, b, rows=4)
    for i in range(3):
        for j in range(4):
            views = [min((x - y).norm().item() for y in b.values[b.objects == j]) for x in a.values[a.objects == i]]
            assert got[i, j].item() == pytest.approx(sum(views) / len(views), rel=1e-5)


def test_copies_are_found():
    training, held_out = objects_of(CENTRES[:40], 4), objects_of(CENTRES[40:60], 4, seed=1)
    copied = torch.tensor([3, 3, 7, 3, 20, 7])
    check = memorisation(objects_of(CENTRES[copied], 4, seed=2), training, held_out)
    assert check.sample_neighbours.tolist() == copied.tolist()
    assert check.ratio < 0.3 and check.copies == 1 and check.neighbours_used == 0.5
    assert check.reference == "held-out objects" and check.reference_distances.shape == (20,)
    itself = memorisation(training, training, held_out)
    assert itself.sample_distances.abs().max() == 0 and itself.ratio == 0


def test_new_objects_are_not():
    training, held_out = objects_of(CENTRES[:40], 4), objects_of(CENTRES[40:60], 4, seed=1)
    check = memorisation(objects_of(CENTRES[60:], 4, seed=2), training, held_out)
    assert 0.7 < check.ratio < 1.4 and check.copies < 0.3


def test_training_objects_are_the_reference_where_none_are_held_out():
    training = objects_of(CENTRES[:40], 4)
    check = memorisation(objects_of(CENTRES[60:], 4, seed=2), training)
    assert check.reference_distances.shape == (40,) and torch.isfinite(check.reference_distances).all()
    assert (check.reference_neighbours != torch.arange(40)).all()
    assert "each against the others" in check.reference
    with pytest.raises(MetricError, match="1 training object"):
        memorisation(training, objects_of(CENTRES[:1], 4))
    with pytest.raises(MetricError, match="resolution"):
        memorisation(dataclasses.replace(training, resolution=(32, 32)), training)


def test_the_interval_of_the_ratio_holds_it_and_narrows_with_more_samples():
    generator = torch.Generator().manual_seed(0)

    def check(n: int) -> MemorisationCheck:
        near, far = (
            scale * (1 + 0.2 * torch.rand(n, generator=generator, dtype=torch.float64)) for scale in (1.0, 2.0)
        )
        return MemorisationCheck(near, torch.zeros(n).long(), far, torch.zeros(n).long(), "held-out objects")

    few, many = check(10), check(1000)
    for c in (few, many):
        low, high = c.ratio_interval()
        assert low <= c.ratio <= high
        assert high < 0.7, "samples at half the distance are told from new ones"
    widths = [high - low for low, high in (few.ratio_interval(), many.ratio_interval())]
    assert widths[1] < 0.3 * widths[0]


def test_held_out_objects_are_measured_against_the_training_objects():
    """They lie close together and far from all that trained. Among themselves they would look like copies."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(30, 8, generator=generator)
    training, samples = objects_of(centres, 3), objects_of(centres + 4, 3, seed=1)
    held_out = objects_of(centres[:1].repeat(10, 1) + 4 + 0.01 * torch.randn(10, 8, generator=generator), 3, seed=2)
    check = memorisation(samples, training, held_out)
    expected = object_distances(held_out, training).min(1)
    assert torch.equal(check.reference_distances, expected.values)
    assert torch.equal(check.reference_neighbours, expected.indices) and check.reference_distances.min() > 3
