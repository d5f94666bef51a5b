"""Fitted radiance fields: rays against the cameras' own, losses against loops, and a chair at 25 dB from new sides."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import balls, tiny_experiment
from vader.baselines.radiance_fields import (
    FieldFitting,
    TrainingRays,
    fields_run,
    load_fields,
    photometric_loss,
    to_volume,
    total_variation,
)
from vader.data import SequenceSet
from vader.data.sets.procedural import render_object
from vader.evaluation.metrics.images import psnr
from vader.rendering.reference import render_rays_reference
from vader.rendering.render import render_views
from vader.settings.checks import ConfigError
from vader.settings.diffrf import FieldsConfig
from vader.settings.experiment import DataConfig
from vader.store.files import read_weights, save_weights
from vader.store.runs import Paused, RunError

TINY = FieldsConfig(
    resolution=6, rays_per_object=128, objects_per_step=3, rays_per_step=16, num_samples=8, learning_rate=0.1
)
TRAINING_RAYS = TrainingRays(balls(tiny_experiment()), torch.device("cpu"))


def test_a_chair_reaches_25_db_on_views_it_was_not_fitted_to():
    config = DataConfig("procedural_chairs", 1, 0, train_views=16, heldout_views=4, resolution=32, supersampling=2)
    sequence, _ = render_object((config, 0))
    chair = SequenceSet("chair", "0" * 64, (sequence,), 16, 4, None, "1" * 64)
    sizes = FieldsConfig(resolution=16, rays_per_object=100 * 512, rays_per_step=512, num_samples=24, learning_rate=0.1)
    fields = load_fields(fields_run(sizes, chair, device="cpu"), sizes, chair)
    views, volume = slice(16, 20), to_volume(fields, sizes)
    rendered = render_views(volume, sequence.cameras[views], 64, normals=False)["colour"][0]
    empty = psnr(torch.zeros_like(rendered), sequence.colours(views)).mean()
    assert psnr(rendered, sequence.colours(views)).mean() >= 25 > empty + 8, "an empty picture is far from it"
    assert (fields[:, 0] < -0.8).float().mean() > 0.5, "most of the cube is empty, and is left so"


def test_rays_are_those_of_the_cameras(data):
    rays = TrainingRays(data, torch.device("cpu"))
    sequence = data.split("train")[2]
    h, w = sequence.images.shape[1:3]
    origins, directions = (x.view(len(sequence), h, w, 3) for x in sequence.cameras.rays())
    view, row, column = torch.tensor([[1, 5, 0]]), torch.tensor([[3, 0, 15]]), torch.tensor([[7, 15, 2]])
    drawn = rays.at(torch.full((1, 3), 2), view, row, column)
    assert torch.allclose(drawn.origins, origins[view, row, column], atol=1e-6)
    assert torch.allclose(drawn.directions, directions[view, row, column], atol=1e-6)
    assert torch.equal(drawn.colour, sequence.colours()[view, row, column])
    assert torch.equal(drawn.mask, sequence.alphas()[view, row, column])


def test_draws_cover_all_training_pixels_and_no_held_out_view(data):
    rays = TrainingRays(data, torch.device("cpu"))
    assert rays.images.shape[1] == data.train_views < len(data[0])
    torch.manual_seed(0)
    drawn = rays.draw(torch.tensor([1, 3]), 40_000)
    for number, index in enumerate((1, 3)):
        share = data.split("train")[index].alphas(slice(data.train_views)).mean()
        assert drawn.mask[number].mean().item() == pytest.approx(share.item(), abs=0.01)


def test_density_and_colour_of_a_field():
    config = FieldsConfig(resolution=5, optical_depth=3.0)
    fields = torch.linspace(-1, 1, 4 * 125).view(1, 4, 5, 5, 5)
    fields[0, 0, 0, 0, 0], fields[0, 0, 4, 4, 4] = -1, 1
    volume = to_volume(fields, config)
    density = volume[0, 0]
    assert density[4, 4, 4].item() * 0.5 == pytest.approx(3.0, rel=1e-6), "tau over a voxel of 2 / (S - 1)"
    assert 0 < density[0, 0, 0].item() * 2 < 2e-3, "a cube full of -1 is transparent"
    x = fields[0, 0, 2, 1, 3].item()
    expected = 6 * math.log1p(math.exp(8 * x)) / math.log1p(math.exp(8))
    assert density[2, 1, 3].item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(volume[:, 1:], fields[:, 1:] / 2 + 0.5)


def test_total_variation_against_a_loop():
    x = torch.randn(2, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for c in range(2):
        for i in range(2):
            for j in range(3):
                for k in range(3):
                    for a, b in (((i, j, k), (i + 1, j, k)), ((j, i, k), (j, i + 1, k)), ((j, k, i), (j, k, i + 1))):
                        expected += (x[:, c, *a] - x[:, c, *b]) ** 2 / (2 * 2 * 3 * 3)
    assert torch.allclose(total_variation(x), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), mask_weight=st.sampled_from([0.0, 0.3, 2.0]))
def test_photometric_loss_against_a_loop_over_rays(seed, mask_weight):
    torch.manual_seed(seed)
    volume = to_volume(torch.rand(2, 4, 5, 5, 5) * 2 - 1, dataclasses.replace(TINY, resolution=5))
    rays = TRAINING_RAYS.draw(torch.tensor([0, 3]), 5)
    found = photometric_loss(volume, rays, 7, mask_weight, stratified_seed=seed)
    whole = render_rays_reference(volume, rays.origins, rays.directions, 7, seed)
    for b in range(2):
        expected = 0.0
        for k in range(5):
            colour = sum((whole.colour[b, k, c] - rays.colour[b, k, c]).item() ** 2 for c in range(3)) / 3
            expected += (colour + mask_weight * (whole.occupancy[b, k] - rays.mask[b, k]).item() ** 2) / 5
        assert found[b].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_objects_take_turns_and_get_the_same_number_of_rays(data):
    task = FieldFitting(TINY, data, 0, torch.device("cpu"))  # 4 objects, 3 of them a step
    turns = torch.cat([task.turn(clock) for clock in range(0, task.total, task.per_step)])
    counts = turns.bincount()
    assert counts.min() >= TINY.updates == 8 and counts.max() <= counts.min() + 1
    before = task.fields.weight.detach().clone()
    torch.manual_seed(0)
    task.step(0)
    task.optimizer.step()
    task.after_step(0)
    moved = (task.fields.weight != before).any(1)
    assert moved.tolist() == [True, True, True, False]


def test_an_object_is_fitted_as_if_it_were_alone(data):
    """The same rays with and without neighbours in the step give the same gradient."""
    task = FieldFitting(TINY, data, 0, torch.device("cpu"))

    def gradient(objects):
        task.turn = lambda clock: objects
        task.rays.draw = lambda objects, count: rays_of(objects)
        task.fields.weight.grad = None
        torch.manual_seed(5)
        task.step(0)
        return task.fields.weight.grad.to_dense()[1]

    torch.manual_seed(1)
    fixed = TrainingRays(data, torch.device("cpu")).draw(torch.arange(4), 16)

    def rays_of(objects):
        return type(fixed)(*(getattr(fixed, f.name)[objects] for f in dataclasses.fields(fixed)))

    alone, together = gradient(torch.tensor([1])), gradient(torch.tensor([1, 0, 2]))
    assert alone.abs().max() > 0 and torch.allclose(alone, together, rtol=1e-4, atol=1e-9)


def test_a_paused_and_resumed_fit_equals_an_uninterrupted_one(data, tmp_path, monkeypatch):
    whole = fields_run(TINY, data, device="cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "pieces"))
    pauses = 0
    for _ in range(100):
        try:
            pieces = fields_run(TINY, data, device="cpu", max_seconds=0.0)
            break
        except Paused:
            pauses += 1
    assert pauses >= 3
    a, b = (load_fields(run, TINY, data) for run in (whole, pieces))
    assert torch.equal(a, b) and a.abs().max() <= 1 and a.std() > 0.01


def test_the_run_of_another_data_set_or_size_is_refused(data):
    run = fields_run(TINY, data, device="cpu")
    other = dataclasses.replace(data, name="cubes", digest="f" * 64)
    with pytest.raises(RunError, match="4 objects of data set 000000000000…, expected .* of cubes, ffffffffffff…"):
        load_fields(run, TINY, other)
    fewer = dataclasses.replace(data, sequences=data.sequences[1:])
    with pytest.raises(RunError, match="expected those of the 3 training objects of balls"):
        load_fields(run, TINY, fewer)
    with pytest.raises(RunError, match=r"fields are \(4, 4, 6, 6, 6\), expected \(4, 4, 7, 7, 7\)"):
        load_fields(run, dataclasses.replace(TINY, resolution=7), data)


def test_a_field_that_is_no_number_is_named(data):
    run = fields_run(TINY, data, device="cpu")
    tensors, metadata = read_weights(run.weights("fields"))
    tensors["fields"][2, 0, 3, 3, 3] = float("nan")
    save_weights(run.weights("fields"), tensors, metadata)
    with pytest.raises(RunError, match=r"fields\.safetensors: the field of object 'ball-2' has NaN"):
        load_fields(run, TINY, data)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(resolution=1), "resolution is 1, expected at least 2"),
        (dict(rays_per_step=0), "rays_per_step is 0"),
        (dict(sharpness=0.0), "sharpness is 0, expected a positive"),
        (dict(sparsity=-1.0), "sparsity is -1, expected 0 or more"),
    ],
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        FieldsConfig(**change)
