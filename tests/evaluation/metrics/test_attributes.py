"""Attributes: what the rules read off true chairs is what their captions say, and accuracy is compared with chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from vader.data.meshes.raycast import Material, Primitive
from vader.data.synthetic.factors import DISCRETE, describe, draw
from vader.data.synthetic.shapes import build
from vader.data.synthetic.voxels import SOLID, voxelise
from vader.evaluation.metrics import MetricError
from vader.evaluation.metrics.attributes import ATTRIBUTES, LEGS, AttributeScores, attribute_scores, read, said

RESOLUTION = 32  # of the laptop profile


@pytest.fixture(scope="module")
def truth():
    """Scores of 40 chairs that no rule was made on: the generator's own solids as volumes."""
    factors = [draw("chairs", 7, index) for index in range(40)]
    volumes = [voxelise(build("chairs", f), RESOLUTION) for f in factors]
    return attribute_scores(volumes, [describe("chairs", f) for f in factors])


@pytest.fixture(scope="module")
def degraded():
    """Scores of the same chairs as a network would hold them."""
    factors = [draw("chairs", 7, index) for index in range(40)]
    generator = torch.Generator().manual_seed(0)
    volumes = [learned(f, generator) for f in factors]
    return attribute_scores(volumes, [describe("chairs", f) for f in factors])


@pytest.mark.parametrize(
    ("attribute", "least"), [("colour", 0.9), ("legs", 0.85), ("back", 0.75), ("armrests", 0.95), (None, 0.9)]
)
def test_true_chairs_are_read_correctly(truth, attribute, least):
    assert truth.accuracy(attribute) >= least
    assert truth.accuracy(attribute) > 1.8 * truth.chance(attribute)


def learned(factors, generator):
    """A chair as a network holds it: translucent in blotches, thin and of any colour inside, soft outside, with a
    colour cast, and without the column under its seat, which reconstructions often lose."""
    volume = voxelise([p for p in build("chairs", factors) if p.part != "column"], RESOLUTION)
    density, colour = volume[:1], volume[1:]
    inside = -functional.max_pool3d(-density, 3, 1, 1) > 0.3 * density.max()
    blotches = functional.interpolate(torch.rand(1, 1, 8, 8, 8, generator=generator), scale_factor=4, mode="trilinear")
    thin = density * (0.6 + 0.4 * blotches[0]) * torch.where(inside, 0.7, 1.0)
    soft = 0.8 * thin + 0.2 * functional.avg_pool3d(thin, 3, 1, 1)
    outside = torch.where(density > 0, colour, functional.max_pool3d(colour, 3, 1, 1))
    noise = torch.rand(colour.shape, generator=generator)
    cast = torch.tensor([1.0, 0.98, 0.96])[:, None, None, None]
    return torch.cat([soft, torch.where(inside, noise, outside) * cast])


@pytest.mark.parametrize(
    ("attribute", "least"), [("colour", 0.9), ("legs", 0.95), ("back", 0.75), ("armrests", 0.98), (None, 0.92)]
)
def test_hollow_soft_chairs_of_another_colour_inside_are_read_by_what_light_sees(degraded, attribute, least):
    assert degraded.accuracy(attribute) >= least


def test_captions_say_what_the_factors_are():
    for index in range(200):
        f = draw("chairs", 3, index)
        words = said(describe("chairs", f))
        assert words["armrests"] == ("yes" if f["armrests"] else "no")
        assert words["legs"] == {"straight": "upright", "tapered": "upright"}.get(f["legs"], f["legs"])
        bars = {"slats": "bars", "spindle": "bars", "ladder": "rungs"}
        assert words["back"] == bars.get(f["back"], f["back"])
    assert set(LEGS) == set(DISCRETE["chairs"]["legs"])


@pytest.mark.parametrize(
    ("caption", "missing"),
    [
        ("a chair with four straight legs and a solid back", "colour"),
        ("a red painted chair with a solid back", "legs"),
        ("a red painted chair with four straight legs", "back"),
        ("a brown wooden table with four straight legs", "colour"),
    ],
)
def test_a_caption_that_leaves_something_out_is_refused(caption, missing):
    with pytest.raises(MetricError, match=f"says nothing of a chair's {missing}"):
        said(caption)


def test_chance_is_the_accuracy_against_captions_dealt_at_random():
    generator = np.random.default_rng(0)
    values = [{name: str(generator.integers(3)) for name in ATTRIBUTES} for _ in range(30)]
    wanted = [{name: str(generator.integers(2)) for name in ATTRIBUTES} for _ in range(30)]
    scores = AttributeScores(values, wanted)
    for name in ATTRIBUTES:
        deals = [
            np.mean([values[i][name] == wanted[j][name] for i, j in enumerate(generator.permutation(30))])
            for _ in range(2000)
        ]
        assert scores.chance(name) == pytest.approx(np.mean(deals), abs=0.01)
    same = AttributeScores([values[0]] * 5, [values[0]] * 5)
    assert same.accuracy() == same.chance() == 1  # where all objects are alike, being right shows nothing


def test_an_empty_volume_has_no_attributes_and_unusable_ones_are_refused():
    volume = torch.zeros(4, 32, 32, 32)
    assert read(volume) == dict.fromkeys(ATTRIBUTES)
    with pytest.raises(MetricError, match="holds NaN"):
        read(volume.index_fill(0, torch.tensor([0]), float("nan")))
    for wrong in (volume[:3], volume[0], torch.zeros(4, 32, 32, 16), torch.zeros(4, 8, 8, 8)):
        with pytest.raises(MetricError, match="expected .4, S, S, S. with S at least 16"):
            read(wrong)
    with pytest.raises(MetricError, match="1 volumes and 2 captions"):
        attribute_scores([volume], ["a", "b"])


def test_voxels_hold_the_volume_and_colour_of_solids():
    half = np.array([0.5, 0.3, 0.4])
    red = Material((0.8, 0.1, 0.1))
    frame = np.column_stack([np.diag(half), [0.1, -0.2, 0.05]])
    step = 2 / 31
    for kind, share in (("box", 1.0), ("ball", np.pi / 6), ("round", np.pi / 4)):
        volume = voxelise([Primitive(kind, frame, red, "part")], 32)
        assert volume.shape == (4, 32, 32, 32)
        covered = (volume[0] / (SOLID * np.log(2) / step)).double()
        assert covered.max() == pytest.approx(1, abs=1e-6)
        assert covered.sum().item() * step**3 == pytest.approx(share * 8 * half.prod(), rel=0.04)
        centre = torch.stack(
            [(covered.sum(axes) * torch.linspace(-1, 1, 32)).sum() for axes in ((0, 1), (0, 2), (1, 2))]
        )
        assert centre / covered.sum() == pytest.approx([0.1, -0.2, 0.05], abs=0.02)
        inside = volume[1:, covered > 0.5]
        assert (inside[0] / inside[1]).median() == pytest.approx(8, rel=0.01)
