"""The planted tail has the size asked for, the bulk error means what it says, and verdicts follow the intervals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.diffusion.denoising import build_denoiser
from vader.diffusion.normalization import NORMALIZED_IQR, RobustStatistics
from vader.settings.checks import ConfigError
from vader.stages import autodecoder_run
from vader.store.runs import Run
from vader.studies.normalization import study as module
from vader.studies.normalization.study import BulkTest, Curve, NormalizationStudy, plant_tail

STUDY = NormalizationStudy(latents_seen=8, tails=(50.0,), seeds=(0, 1), points=2)


def normal_features(n=6, std=2.0, mean=3.0):
    return mean + std * torch.randn(n, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ planted tail


@pytest.mark.parametrize("ratio", [10.0, 200.0])
def test_planted_features_have_the_ratio_asked_for_and_an_untouched_bulk(ratio):
    features = normal_features(n=64)
    planted = plant_tail(features, ratio, 1e-3, seed=0)
    statistics = RobustStatistics.fit(planted)
    assert (statistics.std / (NORMALIZED_IQR * statistics.iqr)).item() == pytest.approx(ratio, rel=0.15)
    changed = (planted != features).flatten(1)
    assert torch.equal(changed.any(0), changed.all(0)) and changed.any(0).sum() == 4  # of 4,096 cells, all objects'
    assert RobustStatistics.fit(features).iqr.item() == pytest.approx(statistics.iqr.item(), rel=0.01)


def test_a_tail_is_decided_by_its_seed_and_none_is_planted_for_ratio_0():
    features = normal_features()
    first, again, other = (plant_tail(features, 50, 1e-3, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert plant_tail(features, 0, 1e-3, 0) is features


# ------------------------------------------------------------------------------------------------- bulk error


class Oracle(torch.nn.Module):
    """A denoiser that answers with given features in its own units."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, sigma):
        return self.answer


@pytest.mark.parametrize("mode", ["robust", "classic"])
def test_the_bulk_error_does_not_depend_on_units(mode):
    """An answer that is wrong by a known amount everywhere has the same known error under both statistics."""
    features = plant_tail(normal_features(), 50, 1e-3, 0)
    test = BulkTest(features, (1.0,), objects=6)
    spread = test.spread
    linear = (test.median + (features + spread * test.noise - test.median) / 2 - features)[test.bulk]
    statistics = RobustStatistics.fit(features, mode)
    wrong = Oracle(statistics.normalize(features + 0.1 * spread))
    expected = (0.1 * spread) ** 2 / linear.double().square().mean()
    assert test(wrong, statistics) == pytest.approx(expected.item(), rel=1e-2)
    in_tail = features + 1e6 * spread * ~test.bulk
    assert test(Oracle(statistics.normalize(in_tail + 0.1 * spread)), statistics) == pytest.approx(
        expected.item(), rel=1e-2
    )


def test_an_untrained_denoiser_is_linear_prediction_under_robust_statistics():
    config = tiny_experiment()
    features = plant_tail(torch.randn(3, 16, 8, 8, 8, generator=torch.Generator().manual_seed(1)), 200, 1e-3, 0)
    test, denoiser = BulkTest(features, (0.5, 2.0)), build_denoiser(config).eval()
    assert test(denoiser, RobustStatistics.fit(features)) == pytest.approx(1, abs=1e-3)
    # with a scale 200 times too large nothing is denoised: sigma^2 against s^2 sigma^2 / (s^2 + sigma^2)
    nothing = math.sqrt((1 + 0.5**2) * (1 + 2.0**2))
    assert test(denoiser, RobustStatistics.fit(features, "classic")) == pytest.approx(nothing, rel=0.05)


# ------------------------------------------------------------------------------------------------ the trainings


def test_the_study_trains_each_pair_once_and_finds_it_again(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path))
    config = tiny_experiment(reconstruction=dict(images_seen=8))
    data = balls(config)
    curves = module.normalization_curves(config, data, STUDY, "cpu")
    assert [(c.mode, c.seed) for c in curves] == [(mode, seed) for mode in ("robust", "classic") for seed in (0, 1)]
    for curve in curves:
        assert [clock for clock, _ in curve.errors] == [0, 4, 8] and len(curve.losses) == 2
        assert all(math.isfinite(error) and error > 0 for _, error in curve.errors)
        assert curve.ratio > 20
    robust, classic = curves[0], curves[2]
    assert robust.errors[0][1] == pytest.approx(1, abs=0.3) and classic.errors[0][1] > 1.3

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "fit", refuse)
    again = module.normalization_curves(config, data, STUDY, "cpu")
    assert [c.errors for c in again] == [c.errors for c in curves]
    stage1 = autodecoder_run(config, data, "cpu")
    with pytest.raises(AssertionError, match="trained again"):
        module.tailed_run(config, stage1, dataclasses.replace(STUDY, planted_share=2e-3), "robust", 50.0, 0, "cpu")


def test_pictures_are_drawn(tmp_path):
    figure = module.histogram_figure(plant_tail(normal_features(), 50, 1e-3, 0), "features")
    assert [axis.get_title() for axis in figure.axes] == ["all features", "classic band", "robust band"]
    widths = [axis.get_xlim()[1] - axis.get_xlim()[0] for axis in figure.axes]
    assert widths[0] > widths[1] > 20 * widths[2]
    figure = module.curves_figure(study_of((0.5, 0.6), (2.0, 3.0)), "curves")
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 4
    figure.savefig(tmp_path / "curves.png")


# --------------------------------------------------------------------------------------------------- verdicts


def study_of(robust, classic, tail=50.0):
    run = Run(None, "", "", {}, {}, {})
    curves = []
    for mode, finals in (("robust", robust), ("classic", classic)):
        for seed, final in enumerate(finals):
            points = ((0, 1.0), (16, final))
            curves.append(Curve(tail, mode, seed, points, points, 48.0, run))
    return curves


@pytest.mark.parametrize(
    ("robust", "classic", "diverges", "wins"),
    [
        ((0.5, 0.52, 0.51), (1.6, 1.7, 1.65), "holds", "holds"),
        ((0.5, 0.52, 0.51), (0.6, 0.62, 0.63), "fails", "holds"),
        ((0.5, 0.52, 0.51), (0.4, 0.41, 0.405), "fails", "fails"),
        ((0.5, 0.52, 0.51), (0.8, 1.3, 1.0), "inconclusive", "holds"),
        ((1.2, 1.3, 1.25), (1.6, 1.7, 1.65), "inconclusive", "holds"),
        ((0.9, 1.2, 1.0), (1.6, 1.7, 1.65), "inconclusive", "holds"),
    ],
)
def test_verdicts_follow_the_intervals(robust, classic, diverges, wins):
    curves = study_of(robust, classic)
    finding = module.classic_diverges(curves, 50.0)
    assert finding.verdict == diverges and "3 seeds" in finding.evidence and "48 times" in finding.evidence
    assert module.robust_wins(curves, 50.0).verdict == wins


def test_both_statistics_are_compared_seed_by_seed():
    """Robust is better in each seed by one factor, which the spread between seeds would hide."""
    assert module.robust_wins(study_of((0.5, 5.0, 0.05), (0.6, 6.0, 0.06)), 50.0).verdict == "holds"
    assert module.robust_wins(study_of((0.5, 5.0, 0.05), (6.0, 0.06, 0.6)), 50.0).verdict == "inconclusive"


def test_names_of_tails():
    assert [module.tail_name(tail) for tail in (0.0, 10.0, 2.5)] == ["trained", "planted_10", "planted_2_5"]


@pytest.mark.parametrize("change", [{"seeds": (0,)}, {"planted_share": 0.0}, {"tails": (0.0, 1.5)}])
def test_studies_that_cannot_work_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(STUDY, **change)
