"""The arms of the study of tails: what is planted where, which way each arm closes, and what the page says."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.diffusion.normalization import NORMALIZED_IQR, RobustStatistics
from vader.stages import autodecoder_run
from vader.studies.normalization import tails as module
from vader.studies.normalization import widths
from vader.studies.normalization.study import BULK, NormalizationStudy, plant_tail
from vader.studies.normalization.tails import ARMS, FOUR, Arm, ArmDenoising, arm_errors, page, planted

STUDY = NormalizationStudy(latents_seen=8, tails=(20.0, 50.0), seeds=(0, 1), points=2)


def normal_features(n: int = 6) -> torch.Tensor:
    return 3 + 2 * torch.randn(n, 16, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_default_arm_is_figure_9s_tail():
    features = normal_features()
    assert torch.equal(planted(features, Arm(), 50, 1e-3, 7), plant_tail(features, 50, 1e-3, 7))
    assert planted(features, Arm(tail=False), 50, 1e-3, 7) is features


@pytest.mark.parametrize("shape", ["entries", "channels", "cells"])
@pytest.mark.parametrize("same", [False, True])
def test_every_shape_has_the_ratio_asked_for_where_it_should_be(shape, same):
    features = normal_features(n=64)
    found = planted(features, Arm(shape=shape, same=same), 50, 1e-3, seed=0)
    statistics = RobustStatistics.fit(found)
    assert (statistics.std / (NORMALIZED_IQR * statistics.iqr)).item() == pytest.approx(50, rel=0.8 if same else 0.2)
    changed = (found != features).any(0)
    assert changed.sum() == 8
    if shape != "entries":
        assert (changed.flatten(1).any(1).sum() if shape == "channels" else changed.any(0).sum()) == 1
    assert bool((found[:, changed].std(0) < 1e-3).all()) is same


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        config = tiny_experiment(reconstruction=dict(images_seen=8))
        data = balls(config)
        yield config, data, autodecoder_run(config, data, "cpu")


def task(trained, arm: Arm) -> ArmDenoising:
    config, _, stage1 = trained
    return ArmDenoising(config, stage1, torch.device("cpu"), STUDY, 50.0, arm)


def loss_of(task: ArmDenoising, latents: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return task.loss(latents, torch.tensor([0.7]), torch.randn(latents.shape, generator=generator), None)


def test_without_loss_on_the_tail_only_the_bulk_asks_for_anything(trained):
    """The gradient to the answer is the plain loss's in the bulk, up to a factor, and 0 in the tail."""
    gradients = {}
    for arm in (Arm(), Arm(loss="bulk")):
        own = task(trained, arm)
        latents = own.latents[:1].clone()
        answer = torch.zeros_like(latents, requires_grad=True)
        own.parallel = lambda x, sigma, condition, answer=answer: answer
        loss_of(own, latents).sum().backward()
        gradients[arm.loss] = answer.grad
    tail = latents.abs() > BULK * 0.5
    assert tail.any() and gradients["bulk"][tail].abs().max() == 0
    factor = latents.numel() / int((~tail).sum())
    torch.testing.assert_close(gradients["bulk"][~tail], factor * gradients["all"][~tail])


def test_a_network_that_sees_cut_values_does_not_know_how_large_the_tail_is(trained):
    seen = []
    for arm in (Arm(), Arm(sees="cut")):
        own = task(trained, arm)
        for denoiser in (own.denoiser, own.ema.module):
            denoiser.network.register_forward_hook(lambda network, given, out: seen.append(given[0].abs().max()))
            with torch.no_grad():
                denoiser(own.latents[:1] * 1, torch.tensor([0.7]))
    assert len(seen) == 4 and min(seen[:2]) > 2 * BULK and max(seen[2:]) <= BULK


def test_cut_features_have_no_tail_and_the_same_bulk(trained):
    plain, cut = task(trained, Arm()), task(trained, Arm(cut=True))
    assert plain.latents.abs().max() > 50 and cut.latents.abs().max() <= BULK * 0.5 * 1.01
    inside = plain.latents.abs() < 1
    torch.testing.assert_close(plain.latents[inside], cut.latents[inside], rtol=1e-3, atol=1e-3)


def test_arms_are_trained_once_and_told(trained, monkeypatch):
    config, data, _ = trained
    monkeypatch.setattr(module, "ARMS", {name: ARMS[name] for name in (*FOUR[:2], "no tail")})
    monkeypatch.setattr(module, "FOUR", FOUR[:1])
    errors = arm_errors(config, data, STUDY, "cpu")
    assert {key: len(found) for key, found in errors.items()} == {
        (FOUR[0], 20.0): 2, (FOUR[1], 20.0): 2, ("no tail", 20.0): 2, (FOUR[0], 50.0): 2,
    }  # fmt: skip
    assert all(math.isfinite(e) and e > 0 for found in errors.values() for e in found)
    monkeypatch.setattr(module, "fit", lambda *_: pytest.fail("trained again"))
    assert arm_errors(config, data, STUDY, "cpu") == errors
    text = page("smoke", "balls", STUDY, {(FOUR[0], 20.0): [1.0, 4.0]}, [])
    assert "| as planted | 2 (" in text and text.count("| – |") == 3 and "8 latents, 2 seeds" in text


def test_arms_differ_in_one_thing_each():
    plain = dataclasses.asdict(Arm())
    for name, arm in ARMS.items():
        changed = [key for key, value in dataclasses.asdict(arm).items() if value != plain[key]]
        assert len(changed) == {"as planted": 0, "both": 2}.get(name, 1)


def test_two_widths_are_trained_with_the_papers_activations_and_measured_as_they_come(monkeypatch):
    """Features of two decoders with known tails, and trainings that answer with what they were asked for."""
    asked, config = [], tiny_experiment(autodecoder=dict(density_scale=8.0, colour_activation="sigmoid"))

    def features(own, data, device):
        wide = own.autodecoder.max_channels > config.autodecoder.max_channels
        return plant_tail(normal_features(16), 50.0 if wide else 0.0, 1e-3, 0)

    def run(own, stage1, study, mode, tail, seed, device):
        asked.append((own.autodecoder.max_channels, mode, tail, seed))
        return SimpleNamespace(weights=lambda name: (mode, seed))

    monkeypatch.setattr(widths, "autodecoder_run", lambda own, data, device: asked.append(own.autodecoder))
    monkeypatch.setattr(widths, "trained_features", features)
    monkeypatch.setattr(widths, "tailed_run", run)
    errors = {("robust", 0): 0.5, ("robust", 1): 2.0, ("classic", 0): 0.6, ("classic", 1): 0.7}
    monkeypatch.setattr(widths, "read_weights", lambda file: ({"bulk_error": torch.tensor(errors[file])}, {}))
    narrow, wide = widths.widths(config, None, STUDY)
    first, *trainings = asked
    assert (first.density_activation, first.density_scale, first.density_bias) == ("relu", 1.0, 0.0)
    assert first.colour_activation == "none" and wide.channels == 4 * narrow.channels == 4 * first.max_channels
    assert trainings[:4] == [(narrow.channels, mode, 0.0, seed) for mode in widths.MODES for seed in (0, 1)]
    assert narrow.ratio == pytest.approx(1, rel=0.02) and narrow.reach < 6
    assert wide.ratio == pytest.approx(50, rel=0.25) and wide.reach > 500
    assert wide.errors == {"robust": [0.5, 2.0], "classic": [pytest.approx(0.6), pytest.approx(0.7)]}
    text = "\n".join(widths.lines([narrow, wide]))
    assert f"| {wide.channels} | {wide.ratio:.3g} | {wide.reach:.3g} | 1 (" in text and text.count("\n| ") == 3
