"""Held-out objects of a training object's shape are found by their meshes, and left out of what bounds a metric."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.data import SequenceSet
from vader.data.prepared import EMBEDDED
from vader.data.sequence import load_set
from vader.evaluation.heldout import COPY, HeldOut, held_out
from vader.evaluation.metrics import MetricError
from vader.evaluation.pictures import real_features
from vader.evaluation.shapes import real_shapes

pytest.importorskip("numba")
trimesh = pytest.importorskip("trimesh")

CARDS = EMBEDDED.parents[2] / "data_cards"


def boxes(tmp_path, train: list[tuple], test: list[tuple], **families: str) -> SequenceSet:
    """Objects with the meshes of boxes of these extents; families: base models by key, e.g. test_1="a"."""
    data = balls(tiny_experiment(), objects=len(train), test_objects=len(test))
    sequences = []
    for i, (sequence, extents) in enumerate(zip(data.sequences, [*train, *test], strict=True)):
        key = f"train_{i}" if i < len(train) else f"test_{i - len(train)}"
        mesh = trimesh.creation.box(extents)
        mesh = mesh.subdivide() if i < len(train) else mesh  # another mesh of the same surface
        file = tmp_path / f"{key}.ply"
        mesh.export(file)
        attributes = {"base_model": families.get(key, key)}
        sequences.append(dataclasses.replace(sequence, key=key, mesh=file, attributes=attributes))
    return dataclasses.replace(data, sequences=tuple(sequences))


CUBE, PLATE, POLE = (1.0, 1.0, 1.0), (1.6, 0.1, 1.6), (0.1, 1.7, 0.1)


def test_a_copy_of_a_training_shape_is_left_out_and_said(tmp_path):
    found = held_out(boxes(tmp_path, [CUBE, PLATE], [POLE, PLATE, (1.0, 1.0, 1.3)]), points=512)
    assert found.total == 3 and found.chosen == (0, 2)
    [copy] = found.copies
    assert (copy.key, copy.of) == ("test_1", "train_1") and copy.distance < COPY * copy.floor
    assert found.said.startswith("2 of 3 held-out objects have a shape of their own; left out: test_1, which has the ")
    assert "test_0" not in found.said


@pytest.mark.parametrize(("stretch", "copied"), [(1.0, True), (1.01, True), (1.4, False), (2.0, False)])
def test_what_counts_as_the_same_is_the_spacing_of_the_points(tmp_path, stretch, copied):
    found = held_out(boxes(tmp_path, [CUBE], [POLE, (stretch, 1.0, 1.0)]), points=512)
    assert (len(found.copies) == 1) is copied


def test_a_copy_takes_its_variants_with_it(tmp_path):
    data = boxes(tmp_path, [CUBE], [CUBE, (1.0, 1.0, 1.4), POLE], test_0="chair", test_1="chair")
    found = held_out(data, points=512)
    assert [copy.key for copy in found.copies] == ["test_0"] and found.chosen == (2,)


def test_a_set_without_meshes_says_so_and_keeps_all():
    found = held_out(balls(tiny_experiment()))
    assert found == HeldOut(2, (0, 1), (), looked_for=False) and "without meshes" in found.said


def test_a_set_of_nothing_but_copies_is_refused(tmp_path):
    with pytest.raises(MetricError, match="all 2 held-out objects have the shape of a training object"):
        held_out(boxes(tmp_path, [CUBE, POLE], [CUBE, POLE]), points=512)


def test_those_that_stay_are_measured_as_before(tmp_path):
    """Leaving one out changes neither the points nor the pictures of the others."""
    data, config = boxes(tmp_path, [CUBE], [POLE, CUBE, PLATE]), tiny_experiment().evaluation
    every, some = real_shapes(data, "test", 64), real_shapes(data, "test", 64, chosen=(0, 2))
    assert np.array_equal(every.clouds[[0, 2]], some.clouds) and some.objects.tolist() == [0, 2] and some.total == 2
    full, few = real_features(data, config, "test"), real_features(data, config, "test", chosen=(0, 2))
    assert few.num_objects == 2
    for old, new in ((0, 0), (2, 1)):
        assert torch.allclose(full.values[full.objects == old], few.values[few.objects == new], atol=1e-4)


@pytest.mark.parametrize("name", ["furniture_chairs", "furniture_tables"])
def test_a_card_names_what_is_found_in_the_embedded_set(name):
    [folder] = EMBEDDED.glob(f"{name}-*")
    found = held_out(load_set(folder))
    card = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert f"{len(found.copies)} of the {found.total} held-out objects" in card
    for copy in found.copies:
        assert f"`{copy.key}`" in card and f"`{copy.of}`" in card
