"""Numbers of training objects: what is equal among trainings, who is compared with whom, and what the rule says."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.commands import study as study_command
from vader.data import SequenceSet
from vader.data.sets.furniture import list_jobs
from vader.evaluation.shapes import Shapes
from vader.settings.checks import ConfigError
from vader.settings.profiles import differences
from vader.store import runs
from vader.store.files import read_json
from vader.store.runs import Paused
from vader.studies import sweep
from vader.studies.memory import page as pages
from vader.studies.memory import study as module
from vader.studies.memory import yardsticks as real_objects
from vader.studies.memory.study import arm, memory, over_trainings, sizes_of
from vader.studies.memory.yardsticks import Yardsticks, first_objects, novelty, spread_objects, yardsticks

REPORTS = Path(__file__).parents[2] / "reports"
PROFILES = ("smoke", "laptop")


# ------------------------------------------------------------------------------------------------- equal trainings


@pytest.mark.parametrize("profile", PROFILES)
def test_trainings_differ_in_the_number_of_their_objects_alone(profile):
    study = memory(profile)
    for experiment in study.experiments.values():
        assert set(differences(experiment, study.base)) <= {"data.num_objects", "evaluation.real_views"}
    assert len({(e.reconstruction, e.diffusion, e.seed) for e in study.experiments.values()}) == 1
    counts = sizes_of(study)
    assert list(counts) == sorted(set(counts)) and counts[-1] <= study.base.data.num_objects


@pytest.mark.parametrize("profile", PROFILES)
def test_all_are_compared_with_as_many_real_pictures(profile):
    study = memory(profile)
    shown = {e.data.num_objects * e.evaluation.real_views for e in study.experiments.values()}
    assert len(shown) == 1
    data, [shown] = study.base.data, shown
    assert study.base.evaluation.real_views <= data.train_views + data.heldout_views
    assert study.base.evaluation.kid_subset_size <= shown


def test_seeds_are_the_first_and_the_next_ones():
    assert memory("laptop").seeds == (0,) and memory("laptop", 3, 2).seeds == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpu",), "study 'memory' has no profile 'gpu'"),
        (("laptob",), "did you mean 'laptop'"),
        (("laptop", 0, 0), "seeds is 0, expected at least 1"),
        (("laptop", -1), "seed"),
    ],
)
def test_studies_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        memory(*arguments)


# ---------------------------------------------------------------------------------------------------- who is where


def furniture_models(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(id=f"model-{k}", where="") for k in range(count)]


def test_small_training_sets_begin_large_ones_and_held_out_models_are_in_none():
    study = memory("laptop")
    whole = list_jobs(study.base.data, furniture_models(72))
    order = [key for key, job in whole.items() if job.split == "train"]
    held_out = {job.model.id for job in whole.values() if job.split == "test"}
    assert len(held_out) == 8
    for experiment in study.experiments.values():
        jobs = list_jobs(experiment.data, furniture_models(72))
        trained = [key for key, job in jobs.items() if job.split == "train"]
        assert trained == order[: experiment.data.num_objects]
        assert {job.model.id for job in jobs.values() if job.split == "test"} == held_out
        assert held_out.isdisjoint(job.model.id for job in jobs.values() if job.split == "train")
    largest = sizes_of(study)[-1]
    unseen, seen = ([whole[key] for key in keys] for keys in (order[largest:], order[:largest]))
    assert {job.model.id for job in unseen} == {job.model.id for job in seen}
    assert {job.variant for job in unseen}.isdisjoint(job.variant for job in seen)
    assert {job.variant for job in seen[: sizes_of(study)[0]]} == {0}


def with_models(data: SequenceSet, models: int) -> SequenceSet:
    """The set as variants of so many models, variant by variant; held-out objects are models of their own."""
    train = [
        dataclasses.replace(s, attributes={"base_model": f"m{k % models}"}) for k, s in enumerate(data.split("train"))
    ]
    test = [dataclasses.replace(s, attributes={"base_model": f"h{k}"}) for k, s in enumerate(data.split("test"))]
    return dataclasses.replace(data, sequences=(*train, *test))


def test_a_part_of_a_set_keeps_order_views_and_held_out_objects():
    data = balls(tiny_experiment(), objects=6, test_objects=2)
    parts = {count: first_objects(data, count) for count in (2, 4, 6)}
    for count, part in parts.items():
        assert [s.key for s in part.split("train")] == [s.key for s in data.split("train")][:count]
        assert [s.key for s in part.split("test")] == [s.key for s in data.split("test")]
        assert part[0] is data[0] and part.train_views == data.train_views
    digests = {part.digest for part in parts.values()} | {data.digest}
    assert len(digests) == 4 and first_objects(data, 4).digest == parts[4].digest
    for count in (0, 7):
        with pytest.raises(ConfigError, match=f"{count} training objects of balls, expected 1 to 6"):
            first_objects(data, count)


@pytest.mark.parametrize("count", [64, 128, 256, 512])
def test_objects_that_stand_for_all_are_one_of_each_model_and_of_all_variants(count):
    chosen = spread_objects(count, 64)
    assert sorted(k % 64 for k in chosen) == list(range(64)) and max(chosen) < count
    variants = np.bincount([k // 64 for k in chosen])
    assert len(variants) == count // 64 and set(variants) == {64 * 64 // count}


# ------------------------------------------------------------------------------------------------- toys of shapes


def box_clouds(count: int, seed: int, again: int = 0, points: int = 1024) -> np.ndarray:
    """Points on boxes of random sides. seed: of the sides; again: of the points."""
    clouds = []
    for k in range(count):
        sides = np.random.default_rng((seed, k)).uniform(0.1, 1, 3)
        rng = np.random.default_rng((seed, k, again))
        face = rng.integers(0, 3, points)
        cloud = rng.uniform(-1, 1, (points, 3))
        cloud[np.arange(points), face] = np.sign(cloud[np.arange(points), face])
        clouds.append(cloud * sides)
    return np.stack(clouds).astype(np.float32)


def toy(train: np.ndarray, held_out: np.ndarray, originals: int) -> Yardsticks:
    families = np.array([f"m{k % originals}" for k in range(len(train))])
    return Yardsticks(train, families, held_out, originals, np.arange(originals), np.arange(0), "")


def as_shapes(clouds: np.ndarray) -> Shapes:
    return Shapes(clouds, np.arange(len(clouds)), len(clouds))


def test_a_model_that_memorises_has_a_novelty_near_zero_and_one_of_new_objects_near_one():
    train, held_out = np.concatenate([box_clouds(24, 0), box_clouds(24, 5)]), box_clouds(24, 1)
    real = toy(train, held_out, 24)  # in the smallest training set, which has half of the objects
    copies, new = box_clouds(24, 0, again=1), box_clouds(48, 2)
    found = {
        name: module.distance_scores([as_shapes(samples)], as_shapes(copies), real, 24)
        for name, samples in (("copies", copies), ("new", new))
    }
    assert found["copies"]["novelty"][2] < 0.3 and found["copies"]["neighbours"] == (24,)
    value, low, high = found["new"]["novelty"]
    assert 0.7 < value < 1.4 and low < 1 < high
    assert 0.7 < found["new"]["novelty_others"][0] < 1.4
    assert found["new"]["novelty_copies"] == found["copies"]["novelty"]
    cov = {name: module.coverage([as_shapes(x)], real)["cov"] for name, x in (("one", copies[:1]), ("all", copies))}
    assert cov["all"][0] == 100 and cov["one"][0] == pytest.approx(100 / 24)


def test_samples_without_a_shape_have_no_novelty():
    real = toy(box_clouds(4, 0), box_clouds(2, 1), 4)
    nothing = Shapes(np.empty((0, 1024, 3), np.float32), np.arange(0), 3, empty=3)
    found = module.distance_scores([nothing], as_shapes(box_clouds(2, 0, 1)), real, 4)
    assert np.isnan(found["novelty"]).all() and found["without_shape"] == (3,)
    assert over_trainings([torch.tensor(found["novelty"])]) == {
        "value": None, "trainings": [None], "low": None, "high": None,
    }  # fmt: skip


def test_a_model_is_compared_with_the_objects_of_other_models_only():
    train = np.concatenate([box_clouds(4, 0), box_clouds(4, 0, again=1)])  # two variants that are one shape
    real = toy(train, box_clouds(2, 1), 4)
    distances = real.of_other_models(8)
    assert distances.shape == (6, 8) and np.isfinite(distances[:2]).all()
    assert np.array_equal(np.isinf(distances[2:]), np.tile(np.eye(4, dtype=bool), 2))
    assert np.array_equal(real.of_other_models(4), distances[:, :4])


def write_meshes(data: SequenceSet, folder: Path, sides: list[tuple[float, float, float]]) -> SequenceSet:
    import trimesh

    sequences = []
    for sequence, extents in zip(data, sides, strict=True):
        mesh = trimesh.creation.box(extents)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=[200, 100, 50, 255])
        mesh.export(folder / f"{sequence.key}.ply")
        sequences.append(dataclasses.replace(sequence, mesh=folder / f"{sequence.key}.ply"))
    return dataclasses.replace(data, sequences=tuple(sequences))


def boxes(folder: Path, config=None) -> SequenceSet:
    """Three models in three variants, of which two models are one shape; of two held-out objects one is a copy of the
    last variant of a model, which only the largest training set could see."""
    data = with_models(balls(config or tiny_experiment(), objects=9, test_objects=2), 3)
    models = [(0.4, 1.0, 0.4), (1.2, 0.3, 0.9), (1.2, 0.3, 0.9)]
    sides = [tuple(x * (1 + 0.2 * v) for x in model) for v, model in itertools.product(range(3), models)]
    return write_meshes(data, folder, [*sides, (1.5, 1.5, 0.2), sides[6]])


def test_real_objects_are_the_same_for_all_numbers_and_copies_do_not_count(tmp_path):
    real = yardsticks(boxes(tmp_path), (3, 6))
    assert len(real.train) == 9 and len(real.held_out) == 1, "the copy of an object that never trains does not count"
    assert real.others.tolist() == [0], "two models of one shape are no unseen models"
    assert real.variants.tolist() == [6, 7, 8]
    assert real.families.tolist() == ["m0", "m1", "m2"] * 3
    for count in (3, 6):
        assert real.of_held_out(count).shape == (1, count) and real.of_variants(count).shape == (3, count)
    assert np.array_equal(real.of_held_out(3), real.of_held_out(6)[:, :3])
    assert novelty(real.of_variants(6), real.of_held_out(6))[0] < 0.5, "a new stretch is no new model"


# ---------------------------------------------------------------------------------------------------------- rule


BELOW, OPEN, HOLDS, ABOVE, NONE = (0.5, 0.4, 0.7), (0.8, 0.6, 1.0), (1.0, 0.9, 1.2), (2.0, 1.5, 3.0), (None,) * 3


def planted(*intervals) -> dict:
    counts = [str(64 * 2**k) for k in range(len(intervals))]
    ends = ("value", "low", "high")
    return {n: {"novelty": dict(zip(ends, found, strict=True))} for n, found in zip(counts, intervals, strict=True)}


@pytest.mark.parametrize(
    ("intervals", "kind", "said"),
    [
        ((BELOW, OPEN, HOLDS, HOLDS), pages.NEW, "From 256 training objects on, samples are as new as unseen objects"),
        ((HOLDS, HOLDS), pages.NEW, "From 64 training objects on"),
        ((BELOW, BELOW, BELOW), pages.NEVER, "Samples are never as new as unseen objects, up to 256 training objects"),
        ((ABOVE, ABOVE), pages.FAR, "far from all"),
        ((BELOW, HOLDS, BELOW), pages.OPEN, "undecided"),
        ((BELOW, OPEN), pages.OPEN, "128: undecided"),
        ((BELOW, ABOVE), pages.OPEN, "128: farther than unseen objects"),
        ((HOLDS, OPEN), pages.OPEN, "64: as new, 128: undecided"),
        ((NONE, HOLDS), pages.NEW, "From 128 training objects on"),
        ((BELOW, NONE), pages.OPEN, "no sample has a shape"),
    ],
)
def test_the_sentence_follows_from_the_numbers(intervals, kind, said):
    found, sentence = pages.answer(planted(*intervals), "novelty", "8 held-out models")
    assert found == kind and said in sentence and "8 held-out models" in sentence
    assert all(f"{low:.2f} to {high:.2f}" in sentence for _, low, high in (intervals[0], intervals[-1]) if low)


def test_an_interval_covers_objects_and_from_two_trainings_on_also_these():
    first, second = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 0.8, 1.2], [1.1, 0.9, 1.3]))
    assert over_trainings([first]) == {"value": 1.0, "trainings": [1.0], "low": 0.8, "high": 1.2}
    both = over_trainings([first, second])
    assert both["value"] == pytest.approx(1.05) and both["low"] < 0.5 and both["high"] > 1.6, "Student's, of two values"
    alike = over_trainings([first, first])
    assert (alike["low"], alike["high"]) == pytest.approx((0.8, 1.2))
    assert set(over_trainings([torch.tensor([3.0])])) == {"value", "trainings"}
    assert {"low", "high"} <= set(over_trainings([torch.tensor([3.0]), torch.tensor([4.0])]))


# ------------------------------------------------------------------------------------------------- from end to end


def test_a_study_of_boxes_from_trainings_to_its_page(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path / "reports"))
    (tmp_path / "reports").mkdir()
    base = tiny_experiment(
        data=dict(num_objects=9, resolution=32),
        reconstruction=dict(images_seen=16, num_samples=8),
        unet=dict(channels=8, channels_per_head=8),
        diffusion=dict(latents_seen=8),
        evaluation=dict(num_samples=4, views=4, real_views=8, kid_subset_size=8, sampling_seeds=(0,)),
    )
    data = boxes(tmp_path, base)
    monkeypatch.setattr(module, "study", lambda *_: base)
    monkeypatch.setitem(module.SIZES, "smoke", (3, 6))
    asked = memory("smoke")
    done = sweep.table(asked, data, "cpu")
    trained = [f for f in (tmp_path / "runs").glob("balls-*") if f.is_dir()]
    assert len(trained) == 5, "two stages of two sizes, and the table"
    stage1 = [read_json(f / "record.json")["objects"] for f in trained if "-autodecoder-" in f.name]
    assert sorted(map(len, stage1)) == [3, 6] and {*stage1[0], *stage1[1]} <= {f"ball-{k}" for k in range(6)}

    with pytest.raises(Paused, match="trained, its samples are still to be measured"):
        asked.measure(asked, asked.experiments[arm(3)], data, "cpu", 0.0)

    numbers, picture, text = module.write(done, data)
    found = read_json(numbers)
    assert found["arms"].keys() == {"3", "6"} and found["environment"]["python"] and found["run"] == done.run.digest
    for scores in found["arms"].values():
        assert set(pages.ROWS) | set(pages.DISTANCES) == set(scores)
        assert scores["psnr"]["low"] <= scores["psnr"]["value"] and scores["kd"]["value"] is not None
    assert found["arms"]["3"]["kd"]["value"] == pytest.approx(found["arms"]["3"]["kd_originals"]["value"])
    assert found["arms"]["6"]["kd"]["value"] != pytest.approx(found["arms"]["6"]["kd_originals"]["value"])
    assert text.read_text(encoding="utf-8") == pages.page(found) and picture.name in pages.page(found)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 40_000
    assert runs.find("balls-sweep-memory", sweep._settings(asked, data.digest)).digest == done.run.digest


def test_the_committed_page_is_that_of_the_committed_numbers():
    for file in REPORTS.glob("memory-*-laptop.json"):
        assert (REPORTS / "memory.md").read_text(encoding="utf-8") == pages.page(read_json(file))
        assert file.with_suffix(".png").stat().st_size < 40_000


def test_real_features_of_the_originals_are_kept(monkeypatch):
    calls = []
    monkeypatch.setattr(module.pictures, "real_features", lambda data, config: calls.append(len(data.split("train"))))
    data, config = balls(tiny_experiment(), objects=6), tiny_experiment().evaluation
    for _ in range(2):
        module.originals_features(data, 4, config)
    assert calls == [4]
    assert real_objects.yardsticks.cache_info().maxsize == 1


def test_a_number_of_trainings_is_refused_where_the_study_has_its_own():
    with pytest.raises(ConfigError, match="table2 takes no --seeds, memory alone does"):
        study_command.main(["table2", "--profile", "smoke", "--seeds", "3"])
