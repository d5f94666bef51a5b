"""`vader sample`: what it writes, what it says, and that nothing is left half-written."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trained import trained_experiments, use_letters
from vader.commands import main, sample
from vader.generation import objects
from vader.generation.export import VOLUME_UNITS
from vader.generation.model import load_experiment
from vader.generation.objects import ObjectError, VolumeObject
from vader.rendering import surface
from vader.store import files

pytest.importorskip("trimesh")
MODEL, TEXT_MODEL = "procedural_chairs", "procedural_chairs_text"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(folder of runs, experiments by name), trained once."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(folder))
        use_letters(patch)
        yield folder, trained_experiments()


@pytest.fixture(autouse=True)
def _of_the_store(store, monkeypatch, tmp_path):
    """The tiny experiments under their names, in their store; small pictures and coarse meshes; a working directory of
    one's own."""
    monkeypatch.setenv("VADER_RUNS", str(store[0]))
    monkeypatch.chdir(tmp_path)
    use_letters(monkeypatch)
    monkeypatch.setattr(VolumeObject.turntable, "__defaults__", (3, 24))
    monkeypatch.setattr(VolumeObject.still, "__defaults__", (24,))
    monkeypatch.setattr(surface, "VIEWS", 12)
    monkeypatch.setattr(surface, "GRID", 16)
    known = store[1]

    def experiment(profile, name, original=sample.experiment_named):
        return known[name] if name in known and profile == "laptop" else original(profile, name)

    monkeypatch.setattr(sample, "experiment_named", experiment)
    monkeypatch.setattr("vader.generation.model.experiment_named", experiment)


def opaque(monkeypatch) -> None:
    """Let samples have a surface, which so little training does not give them: a ball in each."""
    features = load_experiment.__globals__["Model"]._decoded

    def decoded(self, codes):
        volumes = features(self, codes)
        axis = torch.linspace(-1, 1, volumes.shape[-1])
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        volumes[:, 0] += 200 * (x**2 + y**2 + z**2 < 0.3)
        return volumes

    monkeypatch.setattr("vader.generation.model.Model._decoded", decoded)


@pytest.fixture
def balls(monkeypatch):
    opaque(monkeypatch)


def listed(folder: Path) -> dict:
    return json.loads((folder / "samples.json").read_text())


def run(*arguments: str) -> int:
    return main(["sample", *arguments, "--device", "cpu"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------------------------------------- writing


def test_each_object_gets_its_files_and_the_index_says_how_it_was_made(balls, store, tmp_path, capsys):
    assert run(MODEL, "--count", "3", "--seed", "5", "--out", "new/chairs") == 0
    folder = tmp_path / "new" / "chairs"
    stems = [f"{MODEL}-seed5-{i:03d}" for i in range(3)]
    assert names(folder) == sorted(
        [f"{s}{e}" for s in stems for e in (".glb", ".npz", ".png", ".webp")] + ["samples.json"]
    )
    assert "new/chairs: 3 objects, and samples.json" in capsys.readouterr().out
    index = listed(folder)
    assert index["schema"] == 1 and index["units"] == VOLUME_UNITS and [o["name"] for o in index["objects"]] == stems
    model = load_experiment(MODEL, store[1][MODEL], "cpu")
    for number, (entry, expected) in enumerate(zip(index["objects"], model.sample(3, 5), strict=True)):
        assert (entry["seed"], entry["index"], entry["kind"]) == (5, number, "sample")
        assert entry["runs"]["diffusion"] == model.runs[1].digest and "torch" in entry["environment"]["versions"]
        assert sorted(entry["files"]) == [name for name in names(folder) if name.startswith(entry["name"])]
        with np.load(folder / f"{entry['name']}.npz") as read:
            assert np.allclose(read["volume"], expected.volume, rtol=1e-3, atol=1e-3)
        with Image.open(folder / f"{entry['name']}.webp") as read:
            assert read.n_frames == 3 and read.info["loop"] == 0


def test_training_objects_instead_of_samples_or_beside_them(balls, tmp_path, capsys):
    assert run(MODEL, "--reconstruct", "ball-2", "--reconstruct", "ball-0", "--out", "a") == 0
    assert [o["name"] for o in listed(tmp_path / "a")["objects"]] == [f"{MODEL}-ball-2", f"{MODEL}-ball-0"]
    assert run(MODEL, "--reconstruct", "ball-1", "--count", "1", "--out", "a") == 0
    kinds = [o["kind"] for o in listed(tmp_path / "a")["objects"]]
    assert kinds == ["reconstruction", "reconstruction", "reconstruction", "sample"]
    capsys.readouterr()
    assert run(MODEL, "--objects") == 0
    assert capsys.readouterr().out.split() == [f"ball-{i}" for i in range(4)]


def test_other_meshes_where_they_are_asked_for_and_a_folder_by_default(balls, tmp_path):
    assert run(MODEL, "--count", "1", "--ply", "--obj") == 0
    written = names(tmp_path / "samples" / MODEL)
    assert {Path(name).suffix for name in written} == {".glb", ".ply", ".obj", ".npz", ".png", ".webp", ".json"}


def test_more_objects_than_are_made_at_once(balls, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "AT_ONCE", 2)
    assert run(MODEL, "--count", "5", "--out", "a") == 0
    assert [o["index"] for o in listed(tmp_path / "a")["objects"]] == list(range(5))


def test_the_same_again_replaces_its_files_and_others_stay(balls, tmp_path):
    for seed in ("1", "2", "1"):
        assert run(MODEL, "--count", "1", "--seed", seed, "--out", "a") == 0
    assert [o["seed"] for o in listed(tmp_path / "a")["objects"]] == [2, 1]


def test_a_prompt_for_a_model_that_takes_text(balls, tmp_path):
    assert run(TEXT_MODEL, "--prompt", "a red ball", "--guidance", "3", "--count", "1", "--out", "a") == 0
    [entry] = listed(tmp_path / "a")["objects"]
    assert (entry["prompt"], entry["guidance"]) == ("a red ball", 3)
    assert entry["name"] == f"{TEXT_MODEL}-a-red-ball-guidance3-seed0-000"


@pytest.mark.parametrize("prompt", [" ".join(["ball"] * 200), "красный шар", "赤いボール", "a ball, spaceships"])
def test_odd_prompts_are_sampled_and_kept_whole(balls, tmp_path, prompt):
    """Two hundred words, other scripts, and a category that no caption has."""
    assert run(TEXT_MODEL, "--prompt", prompt, "--count", "1", "--out", "a") == 0
    [entry] = listed(tmp_path / "a")["objects"]
    assert entry["prompt"] == prompt and len(entry["name"]) < 100 and entry["name"].isascii()


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["procedural_chair"], "did you mean 'procedural_chairs'?"),
        ([MODEL, "--prompt", "a red chair"], "procedural_chairs takes no text, but there is prompt 'a red chair'"),
        ([MODEL, "--guidance", "3"], "procedural_chairs takes no text, but there is guidance 3.0"),
        ([TEXT_MODEL], "procedural_chairs_text takes text, but prompt is None, expected a text"),
        ([TEXT_MODEL, "--guidance", "2"], "procedural_chairs_text takes text"),
        ([TEXT_MODEL, "--prompt", ""], "procedural_chairs_text takes text, but prompt is '', expected a text"),
        ([TEXT_MODEL, "--prompt", "a", "--guidance", "nan"], "guidance is nan, expected a finite number"),
        ([TEXT_MODEL, "--prompt", "a", "--reconstruct", "ball-1"], "there is a prompt, but no objects to sample"),
        ([MODEL, "--count", "0"], "count is 0, expected at least 1"),
        ([MODEL, "--count", "-3"], "count is -3, expected at least 1"),
        ([MODEL, "--count", "0", "--reconstruct", "ball-1"], "count is 0, expected at least 1"),
        ([MODEL, "--seed", "-1"], "seed is -1, expected an integer from 0 to 2147483647"),
        ([MODEL, "--reconstruct", "bal-1"], "no training object 'bal-1' (did you mean 'ball-1'?)"),
        ([MODEL, "--training-seed", "9"], "`vader train procedural_chairs --profile smoke --seed 9` trains it"),
        ([MODEL, "--profile", "laptob"], "did you mean 'laptop'?"),
        (["puppets"], "load_animator"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line_and_leaves_nothing(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vader.generation.model.Model.sample", lambda *_, **__: pytest.fail("sampled"))
    assert run(*arguments, "--out", "a/b") == 1
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_count_that_is_no_number_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run(MODEL, "--count", "many")
    assert stop.value.code == 2 and "argument --count: invalid int value: 'many'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample, "load", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "samples.json").write_text("[1]")

    def unwritable(dir, original=sample.tempfile.TemporaryFile):
        if Path(dir).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
        return original(dir=dir)

    monkeypatch.setattr(sample.tempfile, "TemporaryFile", unwritable)
    (tmp_path / "closed").mkdir()
    for folder, message in (
        ("file", "file is a file, expected a folder"),
        ("file/deeper", "file is a file, expected a folder"),
        ("closed", "closed: cannot be written (Permission denied)"),
        ("closed/deeper/still", "still: cannot be written (Permission denied)"),
        ("other", "samples.json is no list of `vader sample`"),
    ):
        assert run(MODEL, "--out", folder) == 1
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert names(tmp_path) == ["closed", "file", "other"] and (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path / "closed") == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc, which nobody can write to")
def test_a_folder_that_the_system_keeps_closed_is_refused(capsys):
    assert run(MODEL, "--out", "/proc/objects") == 1
    assert "/proc/objects: cannot be written" in capsys.readouterr().err


def test_what_meshes_need_is_asked_for_before_anything_is_loaded(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    monkeypatch.setattr(sample, "load", lambda *_: pytest.fail("loaded"))
    assert run(MODEL, "--out", "a") == 1
    assert capsys.readouterr().err == "error: meshes need scikit-image: pip install 'vader[data,eval]'\n"


def test_changed_weights_are_refused(store, tmp_path, monkeypatch, capsys):
    shutil.copytree(store[0], tmp_path / "runs", ignore=shutil.ignore_patterns("*.lock"))
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    for file in (tmp_path / "runs").glob("*/autodecoder.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run(MODEL, "--out", "a") == 1
    said = capsys.readouterr().err
    assert "autodecoder.safetensors: SHA-256 is" in said and said.count("\n") == 1 and not (tmp_path / "a").exists()


# --------------------------------------------------------------------------------------------- what happens half-way


def test_a_full_disk_leaves_finished_objects_whole(balls, tmp_path, capsys, monkeypatch):
    """The disk is full at every file in turn: each time, what is listed is there and readable, and nothing else is
    half-written."""
    sync, left = files.sync, 0

    def full(path):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    for filled in range(0, 10, 3):  # an object is four files and the index
        folder = tmp_path / f"after-{filled}"
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync", full)
            left = filled
            assert run(MODEL, "--count", "2", "--out", str(folder)) == 1
        said = capsys.readouterr().err
        assert f"No space left on device); {filled // 5} of 2 objects are finished" in said, said
        assert [line.startswith("error: ") for line in said.splitlines()] == [True]
        entries = listed(folder)["objects"] if (folder / "samples.json").exists() else []
        assert len(entries) == filled // 5 and not list(folder.glob("*.tmp"))
        for entry in entries:
            assert len(entry["files"]) == 4
        for path in folder.glob("*.npz"):
            assert np.load(path)["volume"].shape[0] == 4
        for path in [*folder.glob("*.webp"), *folder.glob("*.png")]:
            Image.open(path).load()
    assert run(MODEL, "--count", "2", "--out", str(folder)) == 0
    assert len(listed(folder)["objects"]) == 2, "with room again, the same command finishes"


def test_files_larger_than_the_system_allows_are_not_left_cut(balls, tmp_path, capsys):
    """A real short write, not a made-up one: the system stops files at 3 kB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        status = run(MODEL, "--count", "1", "--out", "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1 and "File too large); 0 of 1 objects are finished" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() or names(tmp_path / "a") == []


def test_a_sample_without_a_surface_is_said_and_has_no_mesh(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(objects, "carved_surface", lambda *_: None)
    stale = tmp_path / "a" / f"{MODEL}-seed0-000.glb"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier model")
    assert run(MODEL, "--count", "1", "--out", "a") == 0
    assert f"{MODEL}-seed0-000: has no surface, nothing is opaque" in capsys.readouterr().err
    [entry] = listed(tmp_path / "a")["objects"]
    assert sorted(Path(name).suffix for name in entry["files"]) == [".npz", ".png", ".webp"] and not stale.exists()


def test_a_sample_that_is_not_finite_is_said_and_the_others_are_written(balls, tmp_path, capsys, monkeypatch):
    finite = VolumeObject.require_finite

    def require_finite(self):
        if self.origin["index"] == 1:
            raise ObjectError(f"{self.name}: the volume holds NaN")
        return finite(self)

    monkeypatch.setattr(VolumeObject, "require_finite", require_finite)
    assert run(MODEL, "--count", "3", "--out", "a") == 1
    said = capsys.readouterr()
    assert "seed0-001: the volume holds NaN; nothing is written of it" in said.err and "2 objects" in said.out
    assert [o["index"] for o in listed(tmp_path / "a")["objects"]] == [0, 2]


def test_help_says_what_is_written_and_how_to_begin(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for word in (
        "NAME.webp",
        "NAME.glb",
        "y up",
        "samples.json",
        "vader sample furniture_chairs --count 8",
        "--prompt",
    ):
        assert word in said
