"""A folder of one's own becomes a data set that trains like any other, and says what it lacks."""

from __future__ import annotations

import re
import shutil

import pytest
from PIL import Image

from tests.data.formats.rendered import orbit, pictured
from tests.data.formats.test_posed_layouts import write_srn
from vader.commands import main as vader
from vader.data import prepare
from vader.data.prepared import DataError
from vader.data.sequence import load_set
from vader.data.sets.own import experiment_named, prepare_folder
from vader.settings.checks import ConfigError

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
