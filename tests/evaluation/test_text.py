"""The judges of text on planted cases: what is right is found right, what is random is at chance."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.evaluation.metrics.test_neighbours import objects_of
from tests.tiny import balls, tiny_experiment
from vader.evaluation import text
from vader.evaluation.metrics import MetricError
from vader.evaluation.metrics.neighbours import memorisation
from vader.evaluation.pictures import render_samples
from vader.generation.volumes import load_models

KINDS = ("chair", "lamp", "sofa", "van")


def planted(count: int, seed: int, noise: float = 0.5, views: int = 3):
    """Features and labels of objects around one centre a kind."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(len(KINDS), 16, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % len(KINDS)
    return objects_of(centres[labels] + noise * torch.randn(count, 16, generator=generator), views, seed), [
        KINDS[i] for i in labels.tolist()
    ]


def test_a_judge_reads_objects_it_never_saw_and_nothing_out_of_noise():
    judge = text.train_judge(*planted(80, 0))
    unseen, labels = planted(40, 1)
    assert text.match_categories(judge.read(unseen), labels).accuracy >= 0.95
    blind, labels = planted(80, 2, noise=500.0)
    match = text.match_categories(
        text.train_judge(blind, labels).read(planted(200, 3, noise=500.0)[0]), planted(200, 3)[1]
    )
    assert abs(match.accuracy - match.chance) < 0.12
    shuffled = text.train_judge(planted(80, 0)[0], sorted(labels, key=hash))
    assert text.match_categories(shuffled.read(unseen), planted(40, 1)[1]).accuracy < 0.7


def test_a_judges_probabilities_are_means_over_views_and_sum_to_one_for_one_view():
    judge = text.train_judge(*planted(40, 0))
    one, _ = planted(8, 1, views=1)
    torch.testing.assert_close(judge.log_probabilities(one).exp().sum(1), torch.ones(8))
    several, _ = planted(8, 1, views=3)
    values = judge.log_probabilities(several)
    first = judge.log_probabilities(
        objects_of(torch.zeros(1, 16), 3).__class__(
            several.values[:3], torch.arange(3), several.network, several.resolution, several.corner
        )
    )
    torch.testing.assert_close(values[0], first.mean(0))


def test_a_judge_refuses_what_it_cannot_judge():
    features, labels = planted(8, 0)
    with pytest.raises(MetricError, match="7 labels, expected 8, one for each object"):
        text.train_judge(features, labels[:7])
    with pytest.raises(MetricError, match="all objects are of the class 'chair', expected at least two"):
        text.train_judge(features, ["chair"] * 8)
    judge = text.train_judge(features, labels)
    other = features.__class__(features.values, features.objects, "vgg16-relu5", (48, 48), (0.0, 0.0, 0.0))
    with pytest.raises(MetricError, match="features are of vgg16-relu5, expected efficientnet-lite0"):
        judge.read(other)


def alone(features, labels) -> text.Lessons:
    return text.Lessons(features, labels, [str(i) for i in range(len(labels))])


def random_labels(count: int) -> list[str]:
    return [KINDS[i] for i in torch.randint(4, (count,), generator=torch.Generator().manual_seed(6)).tolist()]


def test_a_judge_that_saw_the_object_recognises_it_and_one_that_did_not_reads_its_category_only():
    """Objects that look like nothing of their category: only who saw them can name it."""
    centres, labels = 2 * torch.randn(80, 64, generator=torch.Generator().manual_seed(5)), random_labels(80)
    taught, again = objects_of(centres, 3), objects_of(centres, 2, seed=1)
    saw = text.match_categories(text.train_judge(taught, labels).read(again), labels)
    unseen = text.match_categories(text.UnseenJudges.train(alone(taught, labels)).read(again, range(80)), labels)
    assert saw.accuracy == 1 and abs(unseen.accuracy - unseen.chance) < 0.15
    taught, labels = planted(80, 0)
    read = text.UnseenJudges.train(alone(taught, labels)).read(taught, range(80))
    assert text.match_categories(read, labels).accuracy > 0.9
    chosen = [3, 70, 8]
    some = objects_of(taught.values.view(80, 3, -1).mean(1)[chosen], 2)
    assert text.UnseenJudges.train(alone(taught, labels)).read(some, chosen) == [labels[i] for i in chosen]
    with pytest.raises(MetricError, match="3 objects are shown, but 2 numbers say which they are"):
        text.UnseenJudges.train(alone(taught, labels)).read(some, chosen[:2])


def test_a_namesake_does_not_tell_the_judge_either():
    """Twins that look the same and like nothing of their category: who saw the twin can name it."""
    centres, labels = (
        2 * torch.randn(40, 64, generator=torch.Generator().manual_seed(5)).repeat(2, 1),
        random_labels(40) * 2,
    )
    taught, again = objects_of(centres, 3), objects_of(centres, 2, seed=1)
    groups = [f"{i % 40}" for i in range(80)]
    found = {}
    for name, lessons in {"apart": text.Lessons(taught, labels, groups), "told": alone(taught, labels)}.items():
        match = text.match_categories(text.UnseenJudges.train(lessons).read(again, range(80)), labels)
        found[name] = match.accuracy - match.chance
    assert found["told"] > 0.5 > 0.2 > found["apart"]


def test_lessons_know_namesakes_by_their_stems(monkeypatch):
    monkeypatch.setattr(text, "real_features", lambda data, config: config.real_views)
    config = tiny_experiment()
    data = balls(config)
    names = ["Small lamp 1", "Small lamp 2", "Sofa"]
    told = [
        dataclasses.replace(s, attributes={"name": n, "category": "home"}) for s, n in zip(data, names, strict=False)
    ]
    lessons = text.lessons(dataclasses.replace(data, sequences=(*told, *list(data)[3:])), config.evaluation)
    assert lessons.groups[0] == lessons.groups[1] != lessons.groups[2] and len(lessons.groups) == 4
    assert lessons.labels == ["home"] * 3 + ["balls"] and lessons.features == text.LESSONS


def test_chance_is_what_captions_in_random_order_score():
    said = ["a"] * 6 + ["b"] * 3 + ["c"]
    right = text.match_categories(said, said)
    assert right.accuracy == 1 and right.chance == pytest.approx(0.36 + 0.09 + 0.01)
    constant = text.match_categories(["a"] * 10, said)  # always the most frequent
    assert constant.accuracy == pytest.approx(constant.chance) == pytest.approx(0.6)
    generator = torch.Generator().manual_seed(0)
    orders = [[said[i] for i in torch.randperm(10, generator=generator).tolist()] for _ in range(3000)]
    dealt = sum(text.match_categories(said, order).accuracy for order in orders) / len(orders)
    assert dealt == pytest.approx(right.chance, abs=0.01)


def test_excess_and_gain_have_intervals_that_hold_what_was_planted():
    said = [KINDS[i % 4] for i in range(80)]
    right, blind = text.match_categories(said, said), text.match_categories([KINDS[0]] * 80, said)
    value, low, high = text.excess([right, right], 3.0)
    assert value == pytest.approx(0.25, abs=1e-4) and 0.1 < low <= value <= high <= 1
    value, low, high = text.excess([blind], 2.0)
    assert value == pytest.approx(-0.25, abs=1e-4) and low <= value <= high < 0
    value, low, high = text.gain([right], [blind])
    assert value == pytest.approx(0.75, abs=1e-4) and 0.6 < low < high < 0.9
    assert text.gain([right], [right]) == (0, 0, 0)
    assert text.gain([right], [blind], 4.0)[0] == pytest.approx(0, abs=1e-4)


def test_colours_count_where_the_largest_is_the_first_that_is_said():
    read = [["red"], ["red", "blue"], ["blue", "red"], []]
    match = text.match_colours(read, [["red", "white"]] * 4)
    assert match.hits.tolist() == [1, 1, 0, 0]
    assert text.match_colours([["red"]], [[]]).accuracy == 0
    with pytest.raises(MetricError, match="1 samples and 2 captions"):
        text.match_colours([["red"]], [["red"], ["red"]])


def test_colours_are_read_off_pictures():
    images = torch.zeros(2, 3, 8, 8, 3)
    images[0], images[1, ..., 2] = torch.tensor([0.8, 0.1, 0.1]), 0.9
    masks = torch.ones(2, 3, 8, 8)
    assert text.read_colours(images, masks) == [["red"], ["blue"]]
    assert text.read_colours(images, 0 * masks) == [[], []]


def test_retrieval_is_one_for_the_same_objects_and_half_for_others():
    centres = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    own, low, high = text.retrieval(objects_of(centres, 2, 1), objects_of(centres, 2, 2))
    assert own == low == high == 1
    other, low, high = text.retrieval(objects_of(centres.flip(0), 2, 1), objects_of(centres, 2, 2))
    assert low < 0.5 < high
    same = objects_of(torch.zeros(4, 8), 1)
    equal = same.__class__(torch.zeros(4, 8), same.objects, same.network, same.resolution, same.corner)
    assert text.retrieval(equal, equal)[0] == 0.5
    with pytest.raises(MetricError, match="4 samples and 60 real objects"):
        text.retrieval(same, objects_of(centres, 2, 2))


def test_copies_show_in_the_category_they_are_of():
    centres = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
    training, heldout = objects_of(centres[:40], 4), objects_of(centres[40:60], 4, seed=1)
    samples = objects_of(torch.cat([centres[:5], centres[60:65]]), 4, seed=2)
    check = memorisation(samples, training, heldout)
    chairs, lamps = text.memory_by_category(check, ["chair"] * 5 + ["lamp"] * 5, ["lamp"] * 20)
    assert (chairs.category, chairs.samples, chairs.heldout, chairs.copies) == ("chair", 5, 0, 1.0)
    assert chairs.reference != chairs.reference  # not a number: no held-out chair
    assert lamps.copies < 0.5 and chairs.distance < 0.3 * lamps.reference
    with pytest.raises(MetricError, match="9 categories of 10 samples"):
        text.memory_by_category(check, ["chair"] * 9, ["lamp"] * 20)


def test_the_effective_number_counts_equal_shares_and_little_of_rare_ones():
    assert text.effective_number(["a", "b", "c", "d"] * 3) == pytest.approx(4)
    assert text.effective_number(["a"] * 9) == pytest.approx(1)
    assert 1 < text.effective_number(["a"] * 9 + ["b"]) < 1.5


def test_pictures_of_samples_are_those_of_render_samples_and_broken_ones_are_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path))
    config = tiny_experiment()
    models = load_models(config, balls(config), "cpu")
    system = models.ours()
    colours, occupancies = text.picture_samples(models, system, 5, 2, seed=1)
    expected = render_samples(models, system, 5, 2, seed=1)
    assert (colours - expected).abs().max() < 0.02 and occupancies.shape == expected.shape[:-1]

    def broken(indices, seed):
        return torch.full((len(indices), 4, 16, 16, 16), torch.nan)

    colours, occupancies = text.picture_samples(models, broken, 2, 2, seed=0)
    assert not colours.any() and not occupancies.any() and text.read_colours(colours, occupancies) == [[], []]
