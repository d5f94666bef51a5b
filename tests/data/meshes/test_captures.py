"""Walks round objects as a folder of photographs: what lies where, what is said, what is held out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vader.data.describe import COLOURS
from vader.data.formats import scan
from vader.data.formats.shared.captions import with_captions
from vader.data.formats.sweethome3d import CatalogueNotFound
from vader.data.meshes import captures
from vader.data.prepared import DataError
from vader.settings.checks import ConfigError


@pytest.fixture
def drawing(monkeypatch):
    """Photographs without a renderer: a red square on noise. Counts the walks that are drawn."""
    drawn = []

    def photographs(parts, cameras, seed=0):
        drawn.append(seed)
        pictures = torch.randint(0, 256, (len(cameras), 16, 16, 3), dtype=torch.uint8)
        masks = torch.zeros(len(cameras), 16, 16, dtype=torch.uint8)
        pictures[:, 4:12, 4:12], masks[:, 4:12, 4:12] = torch.tensor([220, 20, 20], dtype=torch.uint8), 255
        return pictures, masks

    monkeypatch.setattr(captures, "photographs", photographs)
    return drawn


@pytest.fixture
def models(monkeypatch):
    parts = captures.embedded_chairs(1)[0][1]
    found = [("Red Chair", "Office", parts), ("Lampe d\u2019\u00e9tude 3", "Lights", parts), ("Cup", "Kitchen", parts)]
    monkeypatch.setattr(captures, "_household", lambda source: iter(found))


def test_a_folder_of_walks_is_what_the_reader_of_photographs_expects(tmp_path, drawing, models):
    taken = captures.write_captures(tmp_path / "walks", 3, 1, 4, 16)
    assert drawing == [0, 1, 2] and list(taken.cameras) == list(taken.names)
    assert list(taken.names.values()) == ["red chair", "lampe d\u2019\u00e9tude 3", "cup"]
    scenes = with_captions(scan(taken.folder, "photographs"), taken.captions)
    assert [scene.key for scene in scenes] == list(taken.cameras) == ["000-red-chair", "001-lampe-dtude-3", "002-cup"]
    assert [scene.split for scene in scenes] == ["train", "train", "test"]
    assert [scene.attributes["category"] for scene in scenes] == ["Office", "Lights", "Kitchen"]
    assert "red" in scenes[2].caption and "cup" in scenes[2].caption and scenes[2].caption.endswith(", kitchen")
    assert not any(colour in scenes[0].caption.replace("red chair", "") for colour in COLOURS)  # the name says it
    for scene in scenes:
        names = [sorted(f.name for f in (scene.place / kind).iterdir()) for kind in ("images", "masks")]
        assert names == [[f"{n:03d}.png" for n in range(4)]] * 2
        assert np.array(Image.open(scene.place / "masks" / "000.png")).sum() == 255 * 64
    assert len({str(cameras.world_to_camera) for cameras in taken.cameras.values()}) == 3  # a walk of its own each


def test_what_is_drawn_is_not_drawn_again_and_what_was_begun_is(tmp_path, drawing, models, monkeypatch):
    captures.write_captures(tmp_path, 2, 1, 3, 16)
    half = tmp_path / ".002-cup" / "images"
    half.mkdir(parents=True)
    before = json.loads((tmp_path / captures.CAPTIONS).read_text())
    taken = captures.write_captures(tmp_path, 3, 1, 3, 16)
    assert drawing == [0, 1, 2] and not half.parent.exists()
    after = json.loads(taken.captions.read_text())
    assert list(after) == [*before, "002-cup"] and after["001-lampe-dtude-3"]["split"] == "train"


def test_masks_may_be_left_to_the_preparation(tmp_path, drawing, models):
    taken = captures.write_captures(tmp_path, 2, 1, 3, 16, masks=False)
    for key in taken.cameras:
        assert (tmp_path / key / "images").is_dir() and not (tmp_path / key / "masks").exists()


def test_counts_that_cannot_be_are_refused(tmp_path, drawing, models):
    for count, heldout in ((3, 0), (3, 3), (1, 2)):
        with pytest.raises(ConfigError, match="are held out, expected some and not all"):
            captures.write_captures(tmp_path / "walks", count, heldout, 3, 16)
    assert not (tmp_path / "walks").exists()
    with pytest.raises(DataError, match="there are models of 3 names, expected 4"):
        captures.write_captures(tmp_path / "walks", 4, 1, 3, 16)


def test_without_a_catalogue_chairs_of_the_package_are_photographed_and_said(tmp_path, drawing, monkeypatch):
    def none(source=None):
        raise CatalogueNotFound("no catalogue")

    monkeypatch.setattr(captures, "read_catalogues", none)
    taken = captures.write_captures(tmp_path / "walks", 2, 1, 3, 16)
    assert taken.what.startswith("2 chairs that come with the package") and len(taken.cameras) == 2
    with pytest.raises(DataError, match="no catalogue"):
        captures.write_captures(tmp_path / "named", 2, 1, 3, 16, source="elsewhere.sh3f")


def test_one_model_of_a_name_is_taken_and_categories_take_turns(write_catalogue):
    box = {"width": "50", "depth": "40", "height": "80"}
    entries = [
        {"id": f"Made#{kind}{n}", "name": f"{name} {n}", "category": kind, **box}
        for kind, name in (("Kitchen", "Cup"), ("Office", "Desk"), ("Office", "Chair"))
        for n in range(3)
    ]
    source = write_catalogue(entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captures, "filtered", lambda parts: None)
        found = [(name.rpartition(" ")[0], category) for name, category, _ in captures._household(source)]
    assert sorted(found) == [("Chair", "Office"), ("Cup", "Kitchen"), ("Desk", "Office")]
    assert {category for _, category in found[:2]} == {"Kitchen", "Office"}
    assert list(captures._household(source)) == []  # a box has too few polygons for household
