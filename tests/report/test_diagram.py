"""The drawings of the method show what the modules are, and the volumes of an object are those of a forward pass."""

from __future__ import annotations

import pytest
import torch

from vader.autodecoder.reconstruction import Autodecoder
from vader.diffusion.denoising import build_denoiser
from vader.diffusion.normalization import RobustStatistics
from vader.evaluation import costs
from vader.report import diagram
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER

CONFIG = experiment("smoke", "procedural_chairs")


@pytest.fixture(scope="module")
def autodecoder() -> Autodecoder:
    torch.manual_seed(0)
    return Autodecoder(CONFIG, 3).eval()


def texts(figure) -> str:
    return "\n".join(t.get_text() for axis in figure.axes for t in axis.texts)


def test_an_object_is_followed_through_every_resolution(autodecoder):
    embedding = autodecoder.embedding.all()[1]
    features, volume = diagram.follow(autodecoder.decoder, embedding)
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "4³": (32, 4, 4, 4), "8³": (16, 8, 8, 8), "16³": (8, 16, 16, 16),
    }  # fmt: skip
    with torch.no_grad():
        assert torch.equal(features["8³"], autodecoder.decoder.g1(embedding[None])[0])
        assert torch.equal(volume, autodecoder.decoder(embedding[None])[0])
    assert not any(stage._forward_hooks for stage in autodecoder.decoder.stages)
    figure = diagram.journey(embedding, features, volume, torch.rand(8, 8, 3), torch.rand(8, 8, 3), "title")
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 2 * 6 and "F at 8³, 16 channels\nmaximum along z" in titles and "density 16³\n" in titles[4]


def test_projection_and_slice_look_from_the_front_with_y_upwards():
    volume = torch.zeros(2, 3, 3, 3)
    volume[:, 0, 2, 1] = 3.0  # behind, at the top
    volume[1, 1, 0, 2] = 2.0  # in the middle, at the bottom right
    front, cut = diagram.projection(volume), diagram.middle_slice(volume)
    assert front[0, 1] == 3 and front[2, 2] == pytest.approx(2**0.5) and front.count_nonzero() == 2
    assert cut[2, 2] == pytest.approx(2**0.5) and cut.count_nonzero() == 1


def test_noise_is_added_to_normalised_latents_and_answers_come_back_in_their_units():
    torch.manual_seed(0)
    denoiser = build_denoiser(CONFIG).eval()
    features = 5 + 3 * torch.randn(16, 8, 8, 8)
    statistics = RobustStatistics.fit(features[None])
    noisy, clean = diagram.noise_and_denoise(denoiser, statistics, features, (1e-4, 1.0))
    torch.testing.assert_close(noisy[0], features, rtol=0, atol=1e-2)
    added = statistics.normalize(noisy[1:]) - statistics.normalize(features[None])
    assert added.std().item() == pytest.approx(1.0, rel=0.05)
    # an untrained network answers 0, and the preconditioning alone scales what came in
    skip = 0.5**2 / (1 + 0.5**2)
    torch.testing.assert_close(statistics.normalize(clean[1:]), skip * statistics.normalize(noisy[1:]))


def test_the_framework_shows_every_stage_with_its_shape(autodecoder):
    denoiser = build_denoiser(CONFIG)
    figure = diagram.framework(autodecoder, denoiser, "title", picture=torch.rand(8, 8, 3))
    shown = texts(figure)
    for stage in costs.stages(CONFIG):
        assert stage.volume in shown and stage.name in shown
    assert "3 × 16" in shown and "G₁: " in shown and "G₂: " in shown
    assert len(figure.axes[0].patches) == 3 * len(costs.stages(CONFIG)) + 5
    assert len(figure.axes[0].images) == 1


def test_the_framework_of_a_model_of_the_paper_needs_no_memory():
    config = PAPER["abo_tables"].replace(unet=dict(channels=64, depth=1))
    with torch.device("meta"):
        autodecoder, denoiser = Autodecoder(config, 1_676), build_denoiser(config)
    shown = texts(diagram.framework(autodecoder, denoiser, "title"))
    assert "1676 × 1024" in shown and "128³ × 4" in shown and "8³ × 256\nSA" in shown


def test_cost_bars_are_the_measured_costs():
    figure = diagram.cost_bars(CONFIG, "title")
    stages = costs.stages(CONFIG)
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [s.parameters / 1e6 for s in stages]
    assert [bar.get_width() for bar in right.patches] == [s.flops / 1e9 for s in stages]


@pytest.mark.parametrize(("number", "text"), [(12_345_678, "12.3 M"), (999, "999"), (1.5e12, "1.5 T"), (2e3, "2 k")])
def test_counts_are_short(number, text):
    assert diagram._count(number) == text
