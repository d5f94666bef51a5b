"""The views of stage 1: what a step draws, and how draws divide into partitions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.data import DataError
from vader.data.views import MemoryViews, draw_views
from vader.rendering.cameras import Cameras


@pytest.fixture
def data():
    return balls(tiny_experiment(), objects=5)


def test_a_draw_is_that_of_the_published_runs(data):
    """Objects by a permutation of all, then views by the order of uniform numbers: the stream is consumed as ever."""
    views = MemoryViews(data)
    torch.manual_seed(3)
    batch = views.batch(objects := views.draw(7, 2), draw_views(2, views.num_views, 3))
    after = torch.rand(4)
    torch.manual_seed(3)
    chosen = torch.randperm(5)[:2]
    order = torch.rand(2, 6).argsort(dim=1)[:, :3]
    assert torch.equal(after, torch.rand(4))
    assert torch.equal(objects, chosen) and torch.equal(batch.objects, chosen)
    for i, k in enumerate(chosen):
        assert torch.equal(batch.images[i], data[k].images[order[i]])
        assert torch.equal(batch.masks[i], data[k].masks[order[i]])
        assert torch.equal(batch.world_to_camera[i], data[k].cameras.world_to_camera[order[i]])
        assert torch.equal(batch.intrinsics[i], data[k].cameras.intrinsics[order[i]])
    first = data[chosen[1]].cameras
    flat = batch.cameras
    assert isinstance(flat, Cameras) and len(flat) == 6 and (flat.height, flat.width) == (16, 16)
    assert torch.equal(flat[3].world_to_camera, first[int(order[1, 0])].world_to_camera)


@pytest.mark.parametrize("partitions", [1, 2, 3, 5])
def test_partitions_are_disjoint_and_whole_and_draw_their_own(data, partitions):
    views = MemoryViews(data)
    parts = [views.members(j, partitions) for j in range(partitions)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(5))
    for j, part in enumerate(parts):
        drawn = {int(k) for _ in range(40) for k in views.draw(0, 1, j, partitions)}
        assert drawn == set(part.tolist())
        assert len(set(views.draw(0, len(part), j, partitions).tolist())) == len(part)


def test_held_out_views_and_objects_are_never_drawn(data):
    views = MemoryViews(data)
    assert views.num_views == 6 and len(data[0]) == 8
    assert views.keys == [f"ball-{i}" for i in range(5)]
    assert {int(v) for _ in range(20) for v in draw_views(5, views.num_views, 2).flatten()} == set(range(6))


def test_views_of_another_size_are_refused_by_name(data):
    wrong = data[3]
    small = dataclasses.replace(wrong, images=wrong.images[:, :12], masks=wrong.masks[:, :12])
    with pytest.raises(DataError, match="balls: ball-3 has 8 views of 12 x 16 pixels, expected at least 6 of 16 x 16"):
        MemoryViews(dataclasses.replace(data, sequences=(data[0], small, data[1])))


def test_a_set_without_training_objects_is_refused(data):
    with pytest.raises(DataError, match="balls: has no training objects"):
        MemoryViews(data.split("test"))
