"""A folder of one's own becomes a data set that trains like any other, and says what it lacks."""

from __future__ import annotations

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.formats.rendered import orbit, pictured
from tests.data.formats.test_posed_layouts import write_srn
from vader.commands import main as vader
from vader.data import ShardedSet, prepare
from vader.data.meshes.raycast import mesh as solid_mesh
from vader.data.prepared import DataError
from vader.data.sequence import load_set
from vader.data.sets.own import experiment_named, prepare_folder
from vader.data.synthetic.factors import draw
from vader.data.synthetic.shapes import build
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment
from vader.stages import autodecoder_run

VIEWS, OBJECTS = 8, 5
CAMERAS = orbit(VIEWS, 64, 64, 90.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Objects as SRN lays them out."""
    root = tmp_path_factory.mktemp("own") / "mugs"
    for index in range(OBJECTS):
        write_srn(root / f"mug{index}", pictured(CAMERAS, index=index))
    return root


@pytest.fixture(scope="module", autouse=True)
def mugs(folder, tmp_path_factory):
    """They, prepared once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_DATA", str(tmp_path_factory.mktemp("data")))
        yield prepare_folder(folder, "mugs", "smoke", workers=1)


def test_a_folder_becomes_a_set_whose_settings_are_those_of_its_cameras(mugs):
    assert len(mugs.split("train")) == 4 and len(mugs.split("test")) == 1
    assert (mugs.train_views, mugs.heldout_views) == (7, 1) and mugs[0].images.shape == (VIEWS, 32, 32, 3)
    config = experiment_named("smoke", "mugs").data
    assert experiment_named("smoke", "mugs").reconstruction.objects_per_step == 4
    assert config.field_of_view == pytest.approx(39.15, abs=0.1)  # 2 atan(32 / 90)
    distances = [s.cameras.centres().norm(dim=-1).median().item() for s in mugs]
    assert min(distances) - 0.01 <= config.camera_distance <= max(distances) + 0.01
    assert prepare(config).digest == mugs.digest, "by its name it is loaded, not read again"


def test_equal_files_are_the_same_set_and_a_changed_one_is_another(folder, mugs, tmp_path):
    assert prepare_folder(folder, "mugs", "smoke", workers=1).folder == mugs.folder
    changed = tmp_path / "mugs"
    shutil.copytree(folder, changed)
    write_srn(changed / "mug9", pictured(CAMERAS, index=9))
    assert prepare_folder(changed, "others", "smoke", workers=1).digest != mugs.digest


def test_held_out_views_are_spread_over_all(mugs):
    found, original = mugs[0].cameras.centres(), CAMERAS.centres()
    directions = (found / found.norm(dim=-1, keepdim=True)) @ (original / original.norm(dim=-1, keepdim=True)).T
    assert directions.argmax(1).tolist() == [0, 1, 2, 3, 4, 6, 7, 5]


@pytest.mark.parametrize("name", ["furniture_chairs", "two words", "", "../up"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_read(name, tmp_path):
    with pytest.raises(ConfigError, match="data set .*expected"):
        prepare_folder(tmp_path / "gone", name, "smoke")


def test_another_size_and_an_unknown_name_are_said():
    with pytest.raises(ConfigError, match=r"prepared at \[32\] pixels, profile 'laptop' has 48"):
        experiment_named("laptop", "mugs")
    with pytest.raises(ConfigError, match="unknown"):
        experiment_named("smoke", "mugz")


def test_too_few_views_are_an_error(tmp_path):
    write_srn(tmp_path / "few" / "a", pictured(orbit(3, 64, 64, 90.0)))
    with pytest.raises(DataError, match="has 3 views, expected at least 4"):
        prepare_folder(tmp_path / "few", "few", "smoke")


def test_the_command_asks_for_a_name(folder, capsys):
    assert vader(["data", str(folder)]) == 1
    assert "expected --name" in capsys.readouterr().err
    assert vader(["data", str(folder), "--name", "mugs", "--profile", "smoke", "--workers", "1"]) == 0
    assert "4 training and 1 held-out objects, 7 training and 1 held-out views each" in capsys.readouterr().out


def test_the_command_takes_captions_and_a_place_and_draws_a_check(folder, tmp_path, capsys):
    for name in ("mug0", "mug1"):
        shutil.copytree(folder / name, tmp_path / "two" / name)
    captions = tmp_path / "captions.csv"
    captions.write_text("key,caption,split\nmug0,a table,train\nmug1,another,test\n")
    command = ["data", str(tmp_path / "two"), "--name", "two", "--profile", "smoke", "--workers", "1"]
    places = ["--captions", str(captions), "--out", str(tmp_path / "out"), "--check", str(tmp_path / "check.png")]
    assert vader([*command, *places]) == 0
    said = capsys.readouterr().out
    assert "1 training and 1 held-out objects" in said
    assert float(re.search(r"check: hull and masks agree to (\d\.\d+) \(IoU\) over 2 objects", said)[1]) >= 0.95
    (made,) = (tmp_path / "out").glob("two-*")
    assert {s.key: s.caption for s in load_set(made)} == {"mug0": "a table", "mug1": "another"}
    assert Image.open(tmp_path / "check.png").width > 500
    captions.write_text("key,caption\nmug7,a table\n")
    assert vader([*command, *places]) == 1
    assert "keys are of no object, the first is 'mug7'" in capsys.readouterr().err
    assert vader(["data", "procedural_chairs", "--check", "a.png"]) == 1
    assert "--check is for a folder of your own data" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- videos, models, broken ones


def walking(folder, frames: int = 6, shade: int = 200):
    """A clip of a square that walks to the right, as RGBA pictures."""
    folder.mkdir(parents=True)
    for i in range(frames):
        picture = np.zeros((40, 56, 4), np.uint8)
        picture[8:32, 6 + 4 * (i % 6) : 26 + 4 * (i % 6)] = (shade, 255 - 8 * i, 60, 255)
        Image.fromarray(picture).save(folder / f"{i:03d}.png")


def test_clips_of_subjects_become_a_set_that_trains_articulated(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    for number in range(5):
        walking(tmp_path / "clips" / f"walker{number}", shade=120 + 20 * number)
    walking(tmp_path / "clips" / "long", 20)
    assert vader(["data", str(tmp_path / "clips"), "--name", "walkers", "--profile", "smoke", "--workers", "1"]) == 0
    assert "5 training and 1 held-out objects" in capsys.readouterr().out
    config = experiment_named("smoke", "walkers")
    assert config.articulated and config.articulation == experiment("smoke", "puppets").articulation
    data = prepare(config.data)
    most = config.data.train_views + config.data.heldout_views
    lengths = {video.key: (len(video), video.train_frames) for video in data}
    assert lengths.pop("long") == (most, config.data.train_views) and set(lengths.values()) == {(6, 5)}
    assert data[0].frames[0].float().mean() > 10 and data[0].attributes["format"] == "videos"
    phases = dict(rigid_images=16, neutral_images=8, widening_images=8, free_depth_images=8, region_images=8)
    short = config.replace(reconstruction=dict(images_seen=16), articulation=phases)
    run = autodecoder_run(short, data, "cpu")
    assert run.record["seconds"] > 0


def test_models_are_rendered_as_the_built_in_furniture_is_and_a_broken_one_is_named(tmp_path, capsys):
    pytest.importorskip("pyvista", reason="extra 'data'")
    folder = tmp_path / "models"
    folder.mkdir()
    for index in range(3):
        solid_mesh(build("tables", draw("tables", 0, index))).export(folder / f"table{index}.ply")
    (folder / "broken.glb").write_bytes(b"broken")
    command = ["data", str(folder), "--name", "tables3", "--profile", "smoke", "--workers", "1"]
    assert vader([*command, "--strict"]) == 1
    error = capsys.readouterr().err
    assert "broken.glb: object 'broken': not a" in error and error.count("\n") == 1
    assert vader(command) == 0
    said = capsys.readouterr().out
    assert "dropped 1: cannot be used" in said and "  broken.glb: object 'broken': not a" in said
    data = prepare(experiment_named("smoke", "tables3").data)
    assert [s.key for s in data] == ["table0", "table1", "table2"] and len(data[0]) == 16
    vertices, _ = data[0].surface()
    assert np.abs(vertices).max() <= 0.9 + 1e-6
    report = json.loads((data.folder / "filter.json").read_text())
    assert report["dropped_objects"]["cannot be used"].keys() == {"broken"} and report["kept"] == 3


def test_a_texture_that_changed_makes_another_set(tmp_path):
    pytest.importorskip("pyvista", reason="extra 'data'")
    (tmp_path / "m" / "maps").mkdir(parents=True)
    box = "v -1 -1 -1\nv 1 -1 -1\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 1 1\n"
    faces = "".join(f"f {f}\n" for f in ("1/1 2/2 3/3", "1/1 2/2 4/3", "1/1 3/2 4/3", "2/1 3/2 4/3"))
    (tmp_path / "m" / "a.obj").write_text(f"mtllib a.mtl\n{box}usemtl m\n{faces}")
    (tmp_path / "m" / "a.mtl").write_text("newmtl m\nmap_Kd maps\\Wood.PNG\n")
    digests = []
    for shade in (90, 200):
        Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(tmp_path / "m" / "maps" / "wood.png")
        digests.append(prepare_folder(tmp_path / "m", "textured", "smoke", workers=1, root=tmp_path / "data").digest)
    assert digests[0] != digests[1]


def test_a_texture_that_is_not_there_is_said(tmp_path, capsys):
    pytest.importorskip("pyvista", reason="extra 'data'")
    (tmp_path / "m").mkdir()
    corners = "v -1 -1 -1\nv 1 -1 -1\nv 0 1 0\nv 0 0 1\nvt 0 0\n"
    (tmp_path / "m" / "a.obj").write_text(
        f"mtllib a.mtl\n{corners}usemtl m\nf 1/1 2/1 3/1\nf 1/1 2/1 4/1\nf 1/1 3/1 4/1\n"
    )
    (tmp_path / "m" / "a.mtl").write_text("newmtl m\nmap_Kd gone.png\n")
    assert vader(["data", str(tmp_path / "m"), "--name", "bare", "--profile", "smoke", "--workers", "1"]) == 0
    assert "object 'a' is drawn without 'gone.png': no such texture is there" in capsys.readouterr().out


def test_tars_of_a_folder_in_parts_train_by_their_name(folder, mugs, capsys):
    pytest.importorskip("webdataset")
    command = ["data", str(folder), "--name", "cups", "--profile", "smoke", "--workers", "1"]
    command += ["--objects-per-shard", "2"]
    for part in ("3/3", "1/3"):
        assert vader([*command, "--part", part]) == 0
    assert "part 3/3, 1 objects; with all parts there, the same with --join" in capsys.readouterr().out
    assert vader([*command, "--join"]) == 1
    assert "prepare part 2/3 first" in capsys.readouterr().err
    assert vader([*command, "--part", "2/3"]) == 0 and vader([*command, "--join"]) == 0
    assert "5 objects, 4 of them for training" in capsys.readouterr().out
    config = experiment_named("smoke", "cups").data
    shards = prepare(config)
    assert isinstance(shards, ShardedSet) and prepare(config, objects_per_shard=2).checksum == shards.checksum
    for a, b in zip(shards.split("train"), mugs.split("train"), strict=True):
        assert a.key == b.key and torch.equal(a.images, b.images)
    with pytest.raises(DataError, match="cups --objects-per-shard 3"):
        prepare(config, objects_per_shard=3)
    assert vader([*command, "--part", "4/3"]) == 1 and "expected 1/3 to 3/3" in capsys.readouterr().err
    assert vader([*command[:-2], "--part", "1/3"]) == 1 and "with --objects-per-shard" in capsys.readouterr().err


def test_one_unusable_object_among_posed_ones_is_left_out(folder, mugs, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "mugs")
    first, second = mugs[0].key, mugs[1].key
    (tmp_path / "mugs" / first / "pose" / "000003.txt").write_text("1 2 3")  # it decides the settings
    for view in range(5):
        (tmp_path / "mugs" / second / "rgb" / f"{view:06d}.png").write_bytes(b"cut")
    command = ["data", str(tmp_path / "mugs"), "--name", "flawed", "--profile", "smoke", "--workers", "1"]
    assert vader(command) == 0
    said = capsys.readouterr().out
    assert f"  {second}: object '{second}': 3 of 8 views can be used" in said and "dropped 1: cannot be used" in said
    data = prepare(experiment_named("smoke", "flawed").data)
    assert len(data) == 4 and (data.train_views, data.heldout_views) == (6, 1)
    assert vader([*command, "--strict"]) == 1


def test_a_set_of_few_objects_trains_on_those_it_has(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    shutil.copytree(folder / "mug0", tmp_path / "one" / "mug0")
    prepare_folder(tmp_path / "one", "one", "smoke", workers=1)
    assert experiment_named("smoke", "one").reconstruction.objects_per_step == 1


def test_an_archive_is_read_as_its_folder_is_and_one_that_leads_out_is_refused(folder, mugs, tmp_path, capsys):
    shutil.make_archive(str(tmp_path / "mugs"), "zip", folder)
    assert prepare_folder(tmp_path / "mugs.zip", "mugs", "smoke", workers=1).folder == mugs.folder
    for name in ("../evil.png", "a/../../evil.png"):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr("a/rgb/0.png", b"x")
            archive.writestr(name, b"x")
        assert vader(["data", str(tmp_path / "evil.zip"), "--name", "evil", "--profile", "smoke"]) == 1
        assert f"evil.zip: member '{name}' leads out of the archive" in capsys.readouterr().err
    assert not list(mugs.folder.parent.glob("*evil*")) and not (tmp_path / "evil.png").exists()
