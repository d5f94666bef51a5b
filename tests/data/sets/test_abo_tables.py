"""ABO Tables: laid out here as published, and in the SRN layout, with known defects, and read back as a data set."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.formats.rendered import World, orbit, pictured
from tests.data.formats.test_posed_layouts import write_abo, write_srn
from vader.commands import main as vader
from vader.commands import train
from vader.data import load_shards, prepare
from vader.data.formats.shared.normalise import hull_iou
from vader.data.prepared import DataError
from vader.data.sets.own import experiment_named
from vader.data.streaming import streamed
from vader.rendering.cameras import Cameras
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment

VIEWS = 12  # so that render_10 comes after render_9
ORDER = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 5, 11]  # every sixth view is held out
CAMERAS = orbit(VIEWS, 64, 64, 95.0)
SIZE = (0.3, 0.4, 1.2)  # its diagonal is 1.3
STANDING = World(scale=2 / 1.3)  # metres
CONFIG = experiment("smoke", "abo_tables").data
ITEMS = {f"B0{i}": ["0", "1", "2"][: 1 + i % 3] for i in range(5)}  # 1 + 2 + 3 + 1 + 2 lightings
TRUTH = {item: pictured(CAMERAS, index=i) for i, item in enumerate([*ITEMS, "SOFA"])}


def write_listings(root: Path, kinds: dict[str, str]) -> None:
    """kinds: item -> product type. Each item is sold in two countries."""
    place = root / "listings" / "metadata"
    place.mkdir(parents=True)
    for n, country in enumerate(("en_GB", "de_DE")):
        lines = []
        for item, kind in kinds.items():
            names = [{"language_tag": country, "value": f" {country} name of  {item}"}]
            lines.append({"item_id": item, "product_type": [{"value": kind}], "item_name": names})
        with gzip.open(place / f"listings_{n}.json.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(map(json.dumps, lines)))


def write_published(root: Path) -> Path:
    """Five tables, of which B01 and B03 are test objects, and a sofa."""
    write_abo(root, ITEMS | {"SOFA": ["0"]}, TRUTH, SIZE, world=STANDING)
    write_listings(root, dict.fromkeys(ITEMS, "TABLE") | {"SOFA": "SOFA", "NOT_RENDERED": "TABLE"})
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("abo") / "abo")


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))


def of_item(key: str):
    return TRUTH[key.partition("_")[0]]


def halved(truth) -> Cameras:
    k = truth.cameras.intrinsics.clone()
    k[:, :2] /= 2
    return Cameras(truth.cameras.world_to_camera, k, 32, 32)


def check_object(found, order: list[int]) -> None:
    """At half the resolution: cameras, colours within JPEG's loss, and the hull."""
    truth = of_item(found.key)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    assert (found.cameras.project(points) - halved(truth).project(points)[order]).norm(dim=-1).max() <= 0.05
    blocks = truth.images.numpy().reshape(VIEWS, 32, 2, 32, 2, 3).mean((2, 4))[order]
    solid = truth.masks.numpy().reshape(VIEWS, 32, 2, 32, 2).min((2, 4))[order] == 255
    assert np.abs(found.images.numpy() - blocks)[solid].mean() < 2
    assert found.masks.numpy()[solid].mean() > 250  # masks are lossy, too
    assert hull_iou(found.cameras, found.masks, [0, 5]) >= 0.95


def test_tables_are_read_back_and_the_sofa_is_not_one(source):
    data = prepare(CONFIG, source=source, workers=1)
    assert {s.key for s in data.split("test")} == {"B01_0", "B01_1"}  # B03 is one more than asked for
    assert len(data.split("train")) == 6 and (data.train_views, data.heldout_views) == (10, 2)
    for found in data:
        check_object(found, ORDER)
        item = found.key.partition("_")[0]
        assert found.caption == f"en_GB name of {item}", "its first English name"
        about = found.attributes
        assert (about["category"], about["item_id"], about["licence"]) == ("table", item, "CC BY 4.0")
    report = json.loads((data.folder / "filter.json").read_text())
    counts = [report[name] for name in ("found", "kept", "not_needed", "other_products", "views_found")]
    assert counts == [9, 8, 1, 1, VIEWS] and report["dropped"] == {}


def test_settings_are_those_that_were_found_and_lead_back_to_the_set(source, tmp_path):
    data = prepare(CONFIG, source=source, workers=1)
    found = experiment_named("smoke", "abo_tables").data
    assert (found.num_objects, found.heldout_objects, found.train_views, found.heldout_views) == (6, 2, 10, 2)
    assert found.field_of_view == pytest.approx(np.degrees(2 * np.arctan(32 / 95)), abs=0.01)
    assert found.camera_distance == pytest.approx(3.2, abs=0.01)
    assert found.elevation == pytest.approx((10, 50), abs=0.2)
    for config in (CONFIG, found):
        assert prepare(config).digest == prepare(config, source=source, workers=1).digest == data.digest
    with pytest.raises(DataError, match="data set abo_tables: is not prepared with these settings.*--source PATH"):
        prepare(dataclasses.replace(CONFIG, seed=1))
    assert not list((tmp_path / "data").glob(".*")), "nothing is left of the reading"


def test_lightings_stay_in_one_split_where_no_file_says_which(source, tmp_path):
    shutil.copytree(source, tmp_path / "abo")
    (tmp_path / "abo" / "abo-benchmark-material" / "train_test_split.csv").unlink()
    data = prepare(CONFIG, source=tmp_path / "abo", workers=1)
    items = [{s.attributes["item_id"] for s in data.split(split)} for split in ("train", "test")]
    assert items[1] and not items[0] & items[1]
    assert json.loads((data.folder / "filter.json").read_text())["rules"]["split"] == "by a hash of the item"


def test_a_broken_table_is_named_and_another_one_takes_its_place(source, tmp_path, capsys):
    shutil.copytree(source, tmp_path / "abo")
    base = tmp_path / "abo" / "abo-benchmark-material"
    (base / "B02" / "metadata.json").write_text('{"views": []}')
    for file in (base / "B01" / "render" / "1").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    command = ["data", "abo_tables", "--profile", "smoke", "--workers", "1", "--source", str(tmp_path / "abo")]
    assert vader(command) == 0
    said = capsys.readouterr().out
    assert "found 9 objects x 12 views (the paper: 1,676 x 91), kept 5\n" in said
    assert "dropped 4: cannot be used" in said and "object 'B02_1': 0 of 12 views can be used" in said
    data = prepare(CONFIG)
    assert {s.key for s in data.split("test")} == {"B01_0", "B03_0"}, "the one that was not needed"
    report = json.loads((data.folder / "filter.json").read_text())
    assert report["dropped_objects"]["cannot be used"].keys() == {"B01_1", "B02_0", "B02_1", "B02_2"}
    assert vader([*command, "--strict"]) == 1
    assert "views can be used" in capsys.readouterr().err


def test_a_changed_file_makes_another_set(source, tmp_path):
    shutil.copytree(source, tmp_path / "abo")
    first = prepare(CONFIG, source=source, workers=1)
    assert prepare(CONFIG, source=tmp_path / "abo", workers=1).digest == first.digest, "another place, equal files"
    pictures = tmp_path / "abo" / "abo-benchmark-material" / "B00" / "render" / "0"
    shutil.copyfile(pictures / "render_3.jpg", pictures / "render_4.jpg")
    assert prepare(CONFIG, source=tmp_path / "abo", workers=1).digest != first.digest


def test_training_prepares_a_set_whose_source_it_is_given_and_the_last_one_counts(source, tmp_path):
    write_abo(tmp_path / "few", {"B00": ["0"], "B02": ["0", "1"]}, TRUTH, SIZE, world=STANDING)
    write_listings(tmp_path / "few", dict.fromkeys(ITEMS, "TABLE"))
    for folder, counts in ((source, (6, 2)), (tmp_path / "few", (1, 2)), (source, (6, 2))):
        options = train.options_of(["abo_tables", "--profile", "smoke", "--source", str(folder)])
        config = train._named(options)
        assert (config.data.num_objects, config.data.heldout_objects) == counts and options.source is None
        assert experiment_named("smoke", "abo_tables") == config
        assert config.reconstruction.objects_per_step == min(4, counts[0])


def test_an_interrupted_reading_goes_on_where_it_was(source, tmp_path, monkeypatch):
    whole = prepare(CONFIG, source=source, workers=1, root=tmp_path / "whole")
    done, original = [], streamed.write_unit

    def dies(work, job):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(job[1][0][0].key)
        original(work, job)

    monkeypatch.setattr(streamed, "write_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(CONFIG, source=source, workers=1)
    with pytest.raises(DataError, match="is not prepared"):
        prepare(CONFIG)
    again = []
    monkeypatch.setattr(streamed, "write_unit", lambda work, job: again.append(job[1][0][0].key) or original(work, job))
    data = prepare(CONFIG, source=source, workers=1)
    assert len(done) == 4 and not set(done) & set(again) and data.pixel_checksum == whole.pixel_checksum


def test_tars_hold_the_same_objects(source):
    pytest.importorskip("webdataset")
    whole = prepare(CONFIG, source=source, workers=1)
    tars = prepare(CONFIG, source=source, workers=1, objects_per_shard=3)
    assert list(load_shards(tars.folder).keys) == [s.key for s in whole.split("train")] and len(tars) == len(whole)
    assert prepare(CONFIG, objects_per_shard=3).checksum == tars.checksum


def test_tables_in_parts_are_joined_to_the_same_set(source, tmp_path, capsys):
    pytest.importorskip("webdataset")
    tars = prepare(CONFIG, source=source, workers=1, objects_per_shard=2, root=tmp_path / "whole")
    command = ["data", "abo_tables", "--profile", "smoke", "--workers", "1", "--source", str(source)]
    command += ["--objects-per-shard", "2"]
    assert vader([*command, "--part", "2/2"]) == 0 and vader([*command, "--join"]) == 1
    assert "prepare part 1/2 first" in capsys.readouterr().err
    assert vader([*command, "--part", "1/2"]) == 0 and vader([*command, "--join"]) == 0
    assert f"checksum {tars.checksum}" in capsys.readouterr().out
    (joined,) = (tmp_path / "data").glob("abo_tables-*")
    assert joined.name == tars.folder.name
    assert (joined / "filter.json").read_bytes() == (tars.folder / "filter.json").read_bytes()


def test_the_srn_layout_in_which_tables_are_handed_round(tmp_path):
    for split, name in (("train", "B00_0"), ("train", "B02_1"), ("test", "B01_0")):
        write_srn(tmp_path / "abo" / f"abo_{split}" / name, of_item(name), STANDING)
    data = prepare(CONFIG, source=tmp_path / "abo", workers=1)
    assert [(s.key, s.split) for s in data] == [("B00_0", "train"), ("B02_1", "train"), ("B01_0", "test")]
    for found in data:
        assert hull_iou(found.cameras, found.masks, [0, 5]) >= 0.95
        blocks = of_item(found.key).images.numpy().reshape(VIEWS, 32, 2, 32, 2, 3).mean((2, 4))[ORDER]
        assert np.abs(found.images.numpy() - blocks).max() <= 1


def test_what_is_no_abo_is_said(tmp_path, source):
    for folder, message in (
        (tmp_path / "gone", "gone: no such folder"),
        (tmp_path, "data set abo_tables: no objects, expected abo-benchmark-material"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(CONFIG, source=folder)
    shutil.copytree(source, tmp_path / "abo")
    shutil.rmtree(tmp_path / "abo" / "listings")
    with pytest.raises(DataError, match=r"listings/metadata/listings_\*.json.gz are missing in it and beside it"):
        prepare(CONFIG, source=tmp_path / "abo")
    write_listings(tmp_path / "abo", dict.fromkeys(ITEMS, "CHAIR"))
    with pytest.raises(DataError, match="none of the 10 rendered objects is of product_type 'table'"):
        prepare(CONFIG, source=tmp_path / "abo")
    with pytest.raises(ConfigError, match="takes no option 'format', it takes source, workers"):
        prepare(CONFIG, format="abo")
