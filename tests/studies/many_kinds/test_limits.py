"""Voxels fitted without a decoder: what they can show of views that they saw, and of others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import balls, tiny_articulated, tiny_experiment
from vader.evaluation.metrics.images import psnr
from vader.generation.volumes import load_models
from vader.rendering.render import render_views
from vader.settings.checks import ConfigError
from vader.studies.many_kinds import limits


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        config = tiny_experiment(data=dict(resolution=32))
        yield load_models(config, balls(config), "cpu")


def test_voxels_come_to_show_the_object(models):
    ball = models.data[0]
    early, late = (limits.fit_voxels(ball, len(ball), models.config, steps) for steps in (1, 60))
    assert late.shape == (1, 4, *[models.config.autodecoder.resolution] * 3) and not late.requires_grad
    quality = [
        psnr(render_views(v, ball.cameras, 24, normals=False)["colour"][0], ball.colours(slice(None))).mean()
        for v in (early, late)
    ]
    assert quality[1] > quality[0] + 5 and quality[1] > 20
    assert torch.equal(
        limits.fit_voxels(ball, len(ball), models.config, 3), limits.fit_voxels(ball, len(ball), models.config, 3)
    )


def test_views_that_are_not_to_be_fitted_are_not_looked_at(models):
    ball, views = models.data[0], models.data.train_views
    images = ball.images.clone()
    images[views:] = 255
    changed = dataclasses.replace(ball, images=images)
    fitted = [limits.fit_voxels(one, views, models.config, 3) for one in (ball, changed)]
    assert torch.equal(*fitted)
    fitted = [limits.fit_voxels(one, len(ball), models.config, 8) for one in (ball, changed)]
    assert not torch.equal(*fitted)


def test_each_part_that_is_replaced_by_the_truth_has_its_scores(models):
    found = limits.measured(models, [0, 1], steps=2)
    assert list(found) == [*limits.PARTS, limits.OWN]
    assert all(part.keys() == {"psnr", "psnr_foreground"} and part["psnr"].n == 2 for part in found.values())


def test_what_was_measured_is_kept_and_read_by_the_table(models, tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))
    config = models.config.replace(data=dict(name="balls"))
    monkeypatch.setattr(limits, "project_root", lambda: tmp_path / "nowhere")
    assert limits.read_limits(config) == {}
    monkeypatch.setattr(limits, "autodecoder_run", lambda *_: models.runs[0])
    found = limits.measure_and_write(config, models.data, wanted=2, steps=1)
    assert limits.read_limits(config) == found
    assert [line.split(":")[0] for line in limits.lines(found)] == list(found)


def test_videos_are_refused():
    with pytest.raises(ConfigError, match="are videos, expected objects that stand still"):
        limits.measure_and_write(tiny_articulated(), None)


def test_chosen_objects_are_spread_and_never_more_than_there_are():
    assert limits.chosen_objects(9, 3) == [0, 4, 8]
    assert limits.chosen_objects(2, 24) == [0, 1]
    assert len(set(limits.chosen_objects(698))) == limits.CHOSEN


@pytest.mark.parametrize(("views", "steps"), [(0, 1), (99, 1), (1, 0)])
def test_what_cannot_be_fitted_is_refused(models, views, steps):
    with pytest.raises(ConfigError, match="(views|steps) is (0|99), expected"):
        limits.fit_voxels(models.data[0], views, models.config, steps)
