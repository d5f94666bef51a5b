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


def planted(ours: float, seed: int) -> dict:
    """Sets of one training, whose 64 steps are `ours` away from the real objects."""
    return {
        ("ours", "16 steps"): moved(1.0, seed + 1), ("ours", "32 steps"): moved(0.7, seed + 3),
        ("ours", "64 steps"): moved(ours, seed + 5),
        ("dls", "standard"): moved(3.0, seed + 7), ("dls", "fitted"): moved(2.0, seed + 9),
    }  # fmt: skip


def together(*trained: dict) -> dict:
    return {name: [found[name] for found in trained] for name in trained[0]}


def test_ratios_are_against_the_better_prior_and_below_one_where_ours_is_nearer():
    real = objects_of(CENTRES[60:], 3)
    features = together(planted(0.5, 0))
    found = steps.ratios(real, features)
    dls = found["ours_beats_dls"]
    assert "fitted" in dls.against and dls.ratio.low <= dls.ratio.value <= dls.ratio.high < 1
    assert found["more_steps_help"].against == "16 steps" and found["more_steps_help"].ratio.high < 1
    assert dls.each == (dls.ratio.value,) and "training" not in dls.told([0])
    features["ours", "16 steps"], features["ours", "64 steps"] = features["ours", "64 steps"], [moved(1.0, 1)]
    assert steps.ratios(real, features)["more_steps_help"].ratio.low > 1


def test_a_claim_that_one_training_contradicts_does_not_hold_over_both():
    """64 steps are nearer than 16 in one training and farther in the other. Either alone would decide."""
    real = objects_of(CENTRES[60:], 3)
    trained = planted(0.5, 0), planted(1.4, 20)
    alone = [steps.ratios(real, together(one))["more_steps_help"].ratio for one in trained]
    assert alone[0].high < 1 < alone[1].low
    both = steps.ratios(real, together(*trained))["more_steps_help"]
    assert both.ratio.low < 1 < both.ratio.high and both.each == tuple(one.value for one in alone)
    assert "over 2 trainings; " in both.told([3, 4]) and f"{both.each[1]:.3f} with training seed 4" in both.told([3, 4])


def test_rows_of_all_trainings_have_their_mean_and_an_interval_that_holds_each():
    real = objects_of(CENTRES[60:], 3)
    config = dataclasses.replace(experiment("smoke", "household").evaluation, kid_subset_size=16, kid_subsets=4)
    trained = [planted(by, seed)["ours", "64 steps"] for by, seed in ((0.5, 0), (1.0, 20))]
    rows, each = steps.rows(trained, real, config)
    assert [row["metric"] for row in rows] == ["fd", "kd"] and len(each) == 2
    for row, *alone in zip(rows, *each, strict=True):
        values = [one["value"] for one in alone]
        check_row("row", row | dict(system="ours", dataset="balls", source="measured"))
        assert row["value"] == pytest.approx(sum(values) / 2) and row["n"] == 2
        assert row["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert row["low"] < alone[0]["high"] < alone[1]["low"] < row["high"]  # both are within
        assert row["note"].startswith("mean and deviation of 2 training seeds, 2 sampling seeds each; ")
    half, halves = (rows[0]["high"] - rows[0]["low"]) / 2, [(row[0]["high"] - row[0]["low"]) / 2 for row in each]
    between = 1.96**2 * rows[0]["std"] ** 2 / 2
    assert half**2 == pytest.approx((halves[0] ** 2 + halves[1] ** 2) / 2 + between)
    single, [own] = steps.rows(trained[:1], real, config)
    assert single == own == each[0]


def test_samples_of_one_kind_are_told_from_samples_of_all():
    kinds = [f"kind {i % 6}" for i in range(60)]
    real = objects_of(CENTRES[:60], 3)
    everything = objects_of(CENTRES[:60], 3, seed=1)
    value, low, high, most = steps.spread(everything, real, kinds)
    assert value == pytest.approx(6) and most == pytest.approx(6) and low > 3
    only = torch.tensor([0, 6, 12] * 10)
    value, low, high, _ = steps.spread(objects_of(CENTRES[only], 3, seed=1), real, kinds)
    assert value == pytest.approx(1) and high < 3


def test_one_category_decides_nothing_and_of_several_trainings_the_least_varied_decides():
    kinds = [f"kind {i % 6}" for i in range(60)]
    real, everything = objects_of(CENTRES[:60], 3), objects_of(CENTRES[:60], 3, seed=1)
    only = objects_of(CENTRES[torch.tensor([0, 6, 12] * 10)], 3, seed=1)
    verdict, evidence = steps.varied(real, [[everything]], kinds, "balls")
    assert verdict == "holds" and "samples have 6.0 categories in effect" in evidence and "trainings" not in evidence
    verdict, evidence = steps.varied(real, [[everything], [only]], kinds, "balls")
    assert verdict == "fails" and "1.0 categories in effect" in evidence and "the least of 2 trainings" in evidence
    verdict, evidence = steps.varied(real, [[everything]], ["chair"] * 60, "balls")
    assert verdict == "not_tested" and evidence.startswith("balls has one category, which cannot tell")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        config = tiny_experiment(data=dict(resolution=32), evaluation=dict(num_samples=2, kid_subset_size=2))
        data = balls(config)
        yield [load_models(one, data, "cpu") for one in steps.trainings(config, 2)]


@pytest.fixture(scope="module")
def models(trained):
    return trained[0]


def test_each_training_is_compared_with_direct_sampling_from_its_own_autodecoder(trained):
    assert [one.config.seed for one in trained] == [0, 1] and trained[0].data is trained[1].data
    assert len({run.digest for one in trained for run in one.runs}) == 4
    assert steps.named(trained) == [", training seed 0", ", training seed 1"] and steps.named(trained[:1]) == [""]
    chosen = [("ours", "16 steps"), ("dls", "fitted")]
    real, found = steps.compared(trained, chosen)
    assert list(found) == [*chosen, steps.REPEATED] and real.num_objects == 4
    assert [[len(sets) for sets in found[name]] for name in found] == [[2, 2], [2, 2], [1, 1]]
    alone = steps.compared(trained[1:], chosen)[1]
    for name, (first, second) in found.items():
        assert torch.equal(second[0].values, alone[name][0][0].values)
        assert not torch.equal(first[0].values, second[0].values)


def test_reconstructions_of_all_trainings_come_first_and_are_the_mean_of_each(trained):
    found = {(measure, suffix): mean for measure, suffix, mean in steps.reconstructed(trained)}
    measures = ("psnr", "psnr_foreground", "lpips")
    suffixes = ("", *steps.named(trained))
    assert list(found) == [(measure, suffix) for suffix in suffixes for measure in measures]
    for measure in measures:
        mean, *each = (found[measure, suffix] for suffix in suffixes)
        assert mean.value == pytest.approx(sum(one.value for one in each) / 2, rel=1e-5) and mean.n == 4
    assert [suffix for _, suffix, _ in steps.reconstructed(trained[1:])] == [""] * 3


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
