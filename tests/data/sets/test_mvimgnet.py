"""MVImgNet: class folders, COLMAP models and soft masks laid out here, with the defects that they are known for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tests.data.formats.rendered import check_in_its_place, orbit, pictured
from tests.data.formats.test_colmap import WORLD, poses, write_model
from vader.commands import main as vader
from vader.data import prepare
from vader.data.prepared import DataError
from vader.data.sets.mvimgnet import read_categories
from vader.data.sets.own import experiment_named
from vader.settings.profiles import experiment

VIEWS = 14
NAMES = [f"{i + 1:03d}.jpg" for i in range(VIEWS)]
CAMERAS = orbit(VIEWS, 64, 64, 95.0)
CONFIG = experiment("smoke", "mvimgnet").data
GOOD = {"0-aaaa0001": 0, "0-aaaa0002": 1, "2-bbbb0001": 2, "203-cccc0001": 3}  # key -> table
BAD = {"2-bbbb0002": "empty sparse", "203-cccc0002": "no sparse", "7-dddd0001": "few images", "7-dddd0002": "no masks"}
MISSING = (2, 9)  # images of 0-aaaa0002 that are not there
CATEGORIES = "0,bag\n2,wahser\n\n203,Toy butterfly \n"


def soft(mask: np.ndarray, side: int) -> Image.Image:
    """Levels 230 to 255 on the object and 200 next to it, in another size than the picture."""
    inside = mask >= 128
    levels = np.where(inside, 230 + 25 * (mask // 255), np.where(ndimage.binary_dilation(inside), 200, 0))
    return Image.fromarray(levels.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def write_object(root: Path, key: str, truth, tree: bool = True, mask_side: int = 128) -> Path:
    """tree: masks in a tree of their own, as in 1.0, otherwise beside the images, as in 2.0."""
    number, name = key.split("-")
    place = root / number / name
    masks = root / "mask" / number / name if tree else place / "masks"
    for folder in (place / "images", masks):
        folder.mkdir(parents=True)
    for file, picture, mask in zip(NAMES, truth.images.numpy(), truth.masks.numpy(), strict=True):
        room = np.where(mask[..., None] > 0, picture, 90).astype(np.uint8)  # a grey room around it
        Image.fromarray(room).save(place / "images" / file, quality=100, subsampling=0)
        soft(mask, mask_side).save(masks / f"{file}.png")
    write_model(place / "sparse" / "0", poses(truth), NAMES)
    (place / "sparse" / "0" / "project.ini").touch()
    return place


@pytest.fixture(scope="module")
def truth():
    return [pictured(CAMERAS, index=i) for i in range(4)]


@pytest.fixture(scope="module")
def source(tmp_path_factory, truth):
    root = tmp_path_factory.mktemp("mvi") / "mvi"
    places = {key: write_object(root, key, truth[index], tree=index != 2) for key, index in GOOD.items()}
    two = places["0-aaaa0002"]
    (two / "sparse" / "0").rename(two / "sparse" / "1")
    write_model(two / "sparse" / "0", [poses(truth[1])[i] for i in (0, 5)], [NAMES[0], NAMES[5]])
    for i in MISSING:
        (two / "images" / NAMES[i]).unlink()
    for name in NAMES:
        Image.new("RGB", (64, 64)).save(two / "images" / name.replace(".jpg", "_bg_removed.png"))
    for key, fault in BAD.items():
        place = write_object(root, key, truth[0])
        if fault == "no masks":
            (root / "mask" / "7" / "dddd0002").rename(root / "mask" / "7" / "elsewhere")
        elif fault == "few images":
            for name in NAMES[3:]:
                (place / "images" / name).unlink()
        else:
            for file in (place / "sparse" / "0").iterdir():
                file.unlink()
            (place / "sparse" / "0").rmdir()
            if fault == "no sparse":
                (place / "sparse").rmdir()
    (root / "mvimgnet_category.txt").write_text(CATEGORIES)
    (root / "notes").mkdir()
    return root


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))


def test_photographs_are_read_back_with_their_defects(source, truth, capsys):
    command = ["data", "mvimgnet", "--profile", "smoke", "--workers", "1", "--source", str(source)]
    assert vader(command) == 0
    said = capsys.readouterr().out
    assert "found 8 objects x 14 views (the paper: 206,990 x 30), kept 4\ndropped 4: cannot be used\n" in said
    data = prepare(CONFIG)
    assert {s.key for s in data} == set(GOOD) and (data.train_views, data.heldout_views) == (10, 2)
    assert len(data.split("test")) == 1
    for found in data:
        index = GOOD[found.key]
        there = [i for i in range(VIEWS) if i not in MISSING or index != 1]
        chosen = there if index == 1 else [i * VIEWS // 12 for i in range(12)]
        order = [chosen[i] for i in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 5, 11)]
        check_in_its_place(found, truth[index], WORLD, order)
        hard = (truth[index].masks.numpy() >= 128).reshape(VIEWS, 32, 2, 32, 2).mean((2, 4))[order]
        assert np.abs(found.masks.numpy() / 255 - hard).max() < 0.01, "what is below the threshold is background"
        blocks = truth[index].images.numpy().reshape(VIEWS, 32, 2, 32, 2, 3).mean((2, 4))[order]
        assert np.abs(found.images.numpy() - blocks)[hard == 1].mean() < 2
        up = found.cameras.world_to_camera[:, 1, :3].mean(0)
        assert up[1] < 0 and abs(up[0]) < 0.2 and abs(up[2]) < 0.2
    about = {s.key: s.attributes for s in data}
    assert [about[key]["category"] for key in GOOD] == ["bag", "bag", "wahser", "Toy butterfly"]
    assert about["0-aaaa0002"]["models"] == {"sparse/0": 2, "sparse/1": 14}
    assert about["0-aaaa0002"]["left_out"].keys() == {NAMES[i] for i in MISSING}


def test_what_was_dropped_is_counted_and_named(source):
    folder = prepare(CONFIG, source=source, workers=1).folder
    report = json.loads((folder / "filter.json").read_text())
    problems = report["dropped_objects"]["cannot be used"]
    assert problems.keys() == set(BAD)
    for key, message in {
        "2-bbbb0002": "object '2-bbbb0002': no model, expected cameras and images there",
        "203-cccc0002": "no model, expected cameras",
        "7-dddd0001": "3 of 14 views can be used, expected at least 7",
        "7-dddd0002": "no mask: expected one beside it",
    }.items():
        assert message in problems[key]
    assert report["classes"] == 4 and report["classes_without_name"] == ["7"]
    assert report["rules"]["detection"] == "not applied: no detector given"
    assert report["rules"]["mask fit"] == "not applied: no mask_judge given"
    with pytest.raises(DataError, match="object '.*': "):
        prepare(CONFIG, source=source, workers=1, strict=True)


def test_objects_in_which_nothing_is_detected_are_out(source):
    asked = Counter()

    def detector(pictures, name):
        assert len(pictures) == 3 and all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures)
        asked[name] += 1
        return [None, None, None] if name == "wahser" else [None, (1, 2, 3, 4), None]

    data = prepare(CONFIG, source=source, workers=1, detector=detector)
    report = json.loads((data.folder / "filter.json").read_text())
    assert report["dropped_objects"]["nothing is detected"].keys() == {"2-bbbb0001", "2-bbbb0002"}
    assert report["dropped"]["nothing is detected"] == 2 and report["rules"]["detection"].startswith("no box in 3")
    assert {s.key for s in data} == set(GOOD) - {"2-bbbb0001"}
    assert asked == {"bag": 2, "wahser": 2, "Toy butterfly": 2, "object": 2}, "the list does not name class 7"


def test_a_judge_of_masks_drops_objects_by_its_rule(source):
    class Verdict:
        dropped = {"203-cccc0001": "loss 0.9, more than 0.5"}

        def report(self):
            return {"rule": "more than median + 8 MAD", "threshold": 0.5, "objects": seen}

    seen = []

    def judge(objects):
        for found in objects:
            assert found.masks.shape == (12, 32, 32) and len(found.cameras) == 12
            seen.append(found.key)
        return Verdict()

    data = prepare(CONFIG, source=source, workers=1, mask_judge=judge)
    report = json.loads((data.folder / "filter.json").read_text())
    assert {s.key for s in data} == set(GOOD) - {"203-cccc0001"}
    assert report["dropped"] == {"cannot be used": 4, "masks do not fit one shape": 1}
    assert report["dropped_objects"]["masks do not fit one shape"] == Verdict.dropped
    assert report["mask_fit"]["rule"] == "more than median + 8 MAD" and report["mask_fit"]["threshold"] == 0.5
    assert set(report["mask_fit"]["objects"]) == set(GOOD)
    assert experiment_named("smoke", "mvimgnet").data.num_objects + len(data.split("test")) == 3


def all_of_it(picture: np.ndarray) -> np.ndarray:
    return np.where((np.abs(picture.astype(int) - 90) > 12).any(-1), 255, 0).astype(np.uint8)


def test_masks_that_are_not_there_are_made_and_captions_are_read(tmp_path, truth):
    place = write_object(tmp_path / "mvi", "7-dddd0002", truth[0])
    (tmp_path / "mvi" / "mask").rename(tmp_path / "elsewhere")
    write_object(tmp_path / "mvi", "7-dddd0003", truth[1], tree=False, mask_side=32)
    (tmp_path / "mvi" / "captions.csv").write_text('key,caption\n7/dddd0002,"A table, of wood"\n')
    assert place.is_dir()
    data = prepare(CONFIG, source=tmp_path / "mvi", workers=1, masker=all_of_it)
    assert {s.key: s.caption for s in data} == {"7-dddd0002": "A table, of wood", "7-dddd0003": None}
    assert all(torch.isfinite(s.cameras.world_to_camera).all() for s in data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,bag\nwasher\n", "mvimgnet_category.txt: line 2 is 'washer', expected a class number, a comma and a name"),
        ("0,bag\n0,cup\n", "line 2: class 0 is 'bag' already"),
        ("x,bag\n", "line 1 is 'x,bag'"),
    ],
)
def test_a_broken_list_of_categories_is_named(tmp_path, text, message):
    (tmp_path / "mvimgnet_category.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_categories(tmp_path)


def test_a_folder_without_class_folders_is_said(tmp_path):
    (tmp_path / "mask" / "0" / "aaaa0001" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="data set mvimgnet: no objects, expected <class number>"):
        prepare(CONFIG, source=tmp_path)
