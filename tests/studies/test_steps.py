"""Table 3's comparisons on planted features, its systems on tiny models, and prompts that training never saw."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.evaluation.metrics.test_neighbours import objects_of
from tests.tiny import balls, tiny_experiment
from vader.data.describe import COLOURS
from vader.generation.volumes import load_models
from vader.report import figures, paper
from vader.report.schema import check_row
from vader.settings.profiles import experiment
from vader.studies import prompts, steps

CENTRES = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))


def moved(by: float, seed: int):
    return [objects_of(CENTRES[:60] + by, 3, seed + i) for i in range(2)]


def test_ratios_are_against_the_better_prior_and_below_one_where_ours_is_nearer():
    real = objects_of(CENTRES[60:], 3)
    features = {
        ("ours", "16 steps"): moved(1.0, 1), ("ours", "32 steps"): moved(0.7, 3), ("ours", "64 steps"): moved(0.5, 5),
        ("dls", "standard"): moved(3.0, 7), ("dls", "fitted"): moved(2.0, 9),
    }  # fmt: skip
    found = steps.ratios(real, features)
    against, ratio = found["ours_beats_dls"]
    assert "fitted" in against and ratio.low <= ratio.value <= ratio.high < 1
    assert found["more_steps_help"][0] == "16 steps" and found["more_steps_help"][1].high < 1
    features["ours", "16 steps"], features["ours", "64 steps"] = features["ours", "64 steps"], moved(1.0, 1)
    assert steps.ratios(real, features)["more_steps_help"][1].low > 1


def test_samples_of_one_kind_are_told_from_samples_of_all():
    kinds = [f"kind {i % 6}" for i in range(60)]
    real = objects_of(CENTRES[:60], 3)
    everything = objects_of(CENTRES[:60], 3, seed=1)
    value, low, high, most = steps.spread(everything, real, kinds)
    assert value == pytest.approx(6) and most == pytest.approx(6) and low > 3
    only = torch.tensor([0, 6, 12] * 10)
    value, low, high, _ = steps.spread(objects_of(CENTRES[only], 3, seed=1), real, kinds)
    assert value == pytest.approx(1) and high < 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        config = tiny_experiment(data=dict(resolution=32))
        yield load_models(config, balls(config), "cpu")


def test_systems_differ_in_steps_and_share_their_noise(models):
    drawn = steps.systems(models)
    assert list(drawn) == [("ours", f"{n} steps") for n in steps.STEPS] + [("dls", "standard"), ("dls", "fitted")]
    volumes = [draw([0], 0) for draw in drawn.values()]
    assert all(v.shape == (1, 4, 16, 16, 16) for v in volumes)
    assert not torch.equal(volumes[0], volumes[2])
    assert models.config.sampler.num_steps == experiment("smoke", "procedural_chairs").sampler.num_steps


def test_the_protocol_is_five_views_on_either_side():
    config = steps.protocol(experiment("laptop", "household"))
    assert config.evaluation.views == config.evaluation.real_views == 5


def test_a_set_that_knows_no_categories_has_one(models):
    assert steps.categories_of(models.data) == ["balls"] * 4
    kinds = [dataclasses.replace(s, attributes={"category": f"kind {i % 2}"}) for i, s in enumerate(models.data)]
    data = dataclasses.replace(models.data, sequences=tuple(kinds))
    assert steps.categories_of(data) == ["kind 0", "kind 1"] * 2


def test_the_papers_cells_are_rows_and_its_fid_rises_with_steps_on_celebv_text():
    rows = paper.table3_rows()
    assert len(rows) == 4 * 3 * 2
    for row in rows:
        check_row("row", row)
    fid = {r["variant"]: r["value"] for r in rows if r["dataset"] == "celebv_text" and r["metric"] == "fid"}
    assert fid["16 steps"] < fid["32 steps"] < fid["64 steps"] < fid["N(0, I)"]


def test_captioned_objects_are_drawn(models):
    texts = ["a ball", "a very long caption " * 20]
    figure = figures.captioned_objects(models.ours()([0, 1], 0), texts, models.config.data, 12, "title", columns=2)
    assert [axis.get_xlabel()[:6] for axis in figure.axes] == ["a ball", "a very"]
    assert len(figure.axes[1].get_xlabel()) <= 120
    assert figure.axes[0].images[0].get_array().shape == (192, 384, 3)


# ------------------------------------------------------------------------------------------------ prompts


def test_new_prompts_combine_what_no_caption_does():
    captions = [f"a {colour} {name}, kitchen" for name in ("cup", "egg") for colour in ("red", "blue")] + [
        "a box, office"
    ]
    found = prompts.never_together(captions, 10)
    assert len(found) == 4 and not set(found) & set(captions)
    for prompt in found:
        assert any(colour in prompt for colour in COLOURS) and prompt.endswith((" cup, kitchen", " egg, kitchen"))
        assert prompt.startswith("an " if prompt.split()[1][0] in "aeiou" else "a ")
    assert prompts.never_together(captions[::-1], 10) == found and prompts.never_together(captions, 2) == found[:2]
    assert prompts.never_together(["a box"], 3) == []
