"""PhotoShape Chairs: laid out here as NeRF-synthetic scenes of a shape and its materials, and read back as a set."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.formats.rendered import World, check_in_its_place, orbit, pictured
from tests.data.formats.test_posed_layouts import write_srn
from vader.commands import main as vader
from vader.data import prepare
from vader.data.formats.shared.normalise import hull_iou
from vader.data.prepared import DataError
from vader.data.sets.own import experiment_named
from vader.data.sets.photoshape_chairs import files_of_chair, find, shape_of
from vader.data.streaming.listing import chosen_groups, hashed
from vader.settings.profiles import experiment

VIEWS = 12
ORDER = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 5, 11]  # every sixth view is held out
CAMERAS = orbit(VIEWS, 64, 64, 95.0)
BLENDER = World([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], scale=2.0, centre=(0.2, 0.0, 0.4))  # z up
GL = np.diag([1.0, -1.0, -1.0, 1.0])
CONFIG = experiment("smoke", "photoshape_chairs").data
NAMES = [f"shape{shape:05d}_rank{rank:02d}_pair{7 * shape + rank}" for shape in (3, 20, 2326) for rank in (0, 1)]
TRUTH = {name: pictured(CAMERAS, index=i // 2) for i, name in enumerate(NAMES)}  # materials are the same here


def write_chair(place: Path, pictures: Path, truth, suffix=".png", rgba=False, fields=None) -> None:
    """transforms_train.json in `place`, with cx and cy off by a pixel, as they are in the data."""
    k = truth.cameras.intrinsics[0]
    angle = 2 * math.atan(32 / float(k[0, 0]))
    frames = []
    for i, pose in enumerate(BLENDER.camera_to_world(truth.cameras)):
        mask = truth.masks.numpy()[i][..., None]
        colour = np.where(mask > 0, truth.images.numpy()[i], 255).astype(np.uint8)
        file = pictures / "train" / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([colour, mask], -1) if rgba else colour).save(file)
        frames.append({"file_path": f"train/{i:03d}{suffix}", "transform_matrix": (pose @ GL).tolist()})
    place.mkdir(parents=True, exist_ok=True)
    camera = {"camera_angle_x": angle, "cx": 33.0, "cy": 31.2} if fields is None else fields
    (place / "transforms_train.json").write_text(json.dumps(camera | {"frames": frames}))


@pytest.fixture
def source(tmp_path):
    """Six chairs of three shapes, RGB and RGBA, names with and without suffix; one object of a shape is listed."""
    for n, (name, truth) in enumerate(TRUTH.items()):
        place = tmp_path / "chairs" / name
        write_chair(place, place, truth, suffix=".png" if n % 2 else "", rgba=n % 3 == 0)
    listed = [NAMES[4], "shape99999_rank00_pair1"]
    (tmp_path / "chairs" / "photoshape_val.txt").write_text(" \n".join(listed) + "\n\n")
    return tmp_path / "chairs"


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))


def check_object(found) -> None:
    """Cameras agree after undoing where the object was put, pixels are equal, and the hull fills the masks."""
    truth = TRUTH[found.key]
    check_in_its_place(found, truth, BLENDER, ORDER)
    blocks = truth.images.numpy().reshape(VIEWS, 32, 2, 32, 2, 3).mean((2, 4))[ORDER]
    assert np.abs(found.images.numpy() - blocks).max() <= 1
    ups = [-c.world_to_camera[:, 1, :3].mean(0) for c in (found.cameras, truth.cameras)]
    assert torch.nn.functional.cosine_similarity(*ups, dim=0) > 0.99, "up stays up"


def test_chairs_are_read_back_and_split_by_shape(source):
    data = prepare(CONFIG, source=source, workers=1)
    assert {s.key for s in data.split("train")} == set(NAMES[:4])
    assert {s.key for s in data.split("test")} == set(NAMES[4:]), "the listed one, and the other of its shape"
    by_key = {found.key: found for found in data}
    for name in (NAMES[0], NAMES[3], NAMES[4]):
        check_object(by_key[name])
    about = by_key[NAMES[0]].attributes
    assert (about["shape"], about["rank"], about["exemplar"], about["category"]) == ("shape00003", 0, 21, "chair")
    report = json.loads((data.folder / "filter.json").read_text())
    assert report["listed_but_missing"] == ["shape99999_rank00_pair1"] and report["test_by_shape_only"] == [NAMES[5]]
    assert (report["found"], report["kept"], report["stated_in_the_paper"]) == (6, 6, {"objects": 15576, "views": 200})
    config = experiment_named("smoke", "photoshape_chairs").data
    assert (config.num_objects, config.heldout_objects, config.train_views) == (4, 2, 10)
    assert prepare(config).digest == data.digest


def test_a_missing_list_is_made_up_for_by_a_hash_of_the_shape(source):
    (source / "photoshape_val.txt").unlink()
    chosen = set()
    for seed in range(5):
        found = find(source)
        groups = np.array([hashed(seed, found.group(scene)) for scene in found.scenes], np.uint64)
        held_out = chosen_groups(groups, CONFIG.heldout_objects)
        heldout = {scene.key for scene, out in zip(found.scenes, held_out, strict=True) if out}
        shapes = {shape_of(key) for key in heldout}
        assert len(heldout) == 2 and len(shapes) == 1, "both materials of a shape"
        chosen |= shapes
    assert len(chosen) > 1


def test_pictures_that_lie_elsewhere_are_found(tmp_path):
    for name in NAMES[:2]:
        write_chair(tmp_path / "a" / "cameras" / name, tmp_path / "a" / "images" / name, TRUTH[name], suffix="")
        write_chair(tmp_path / "b" / name, tmp_path / "far" / name, TRUTH[name])
    for source, options in ((tmp_path / "a", {}), (tmp_path / "b", {"pictures": tmp_path / "far"})):
        data = prepare(CONFIG, source=source, workers=1, **options)
        assert {s.key for s in data} == set(NAMES[:2])
        check_object(data[0])
        files = files_of_chair(find(source, **options).scenes[0])
        assert sum("images" in str(f) or "far" in str(f) for f in files) == VIEWS
    with pytest.raises(DataError, match="file_path 'train/000.png' does not exist"):
        prepare(CONFIG, source=tmp_path / "b", workers=1)


def test_broken_chairs_are_named_with_file_and_field(source, capsys):
    def edit(name, change):
        content = json.loads((source / name / "transforms_train.json").read_text())
        change(content)
        (source / name / "transforms_train.json").write_text(json.dumps(content))

    edit(NAMES[0], lambda content: content.pop("camera_angle_x"))
    edit(NAMES[1], lambda content: content["frames"][3].pop("transform_matrix"))
    edit(NAMES[2], lambda content: content["frames"][0].update(file_path="../../../../passwd"))
    edit(NAMES[5], lambda content: content.update(frames=[]))
    command = ["data", "photoshape_chairs", "--profile", "smoke", "--workers", "1", "--source", str(source)]
    assert vader(command) == 0
    said = capsys.readouterr().out
    assert "found 6 objects x 12 views (the paper: 15,576 x 200), kept 3\ndropped 3: cannot be used" in said
    assert "camera_angle_x is None, expected a finite number" in said and "leads out of" in said
    data = prepare(CONFIG)
    assert {s.key for s in data} == {NAMES[1], NAMES[3], NAMES[4]}
    assert (data.train_views, len(data[0])) == (10, 11), "one view of NAMES[1] cannot be used, and all have as many"
    assert vader([*command, "--strict"]) == 1
    assert (
        "1 objects of photoshape_val.txt are not there, the first is 'shape99999_rank00_pair1'"
        in capsys.readouterr().err
    )
    (source / "photoshape_val.txt").write_text("\n")
    with pytest.raises(DataError, match="photoshape_val.txt: no names in it"):
        prepare(CONFIG, source=source)


def test_stored_fields_of_intrinsics_and_the_srn_layout(tmp_path):
    place = tmp_path / "a" / NAMES[0]
    write_chair(place, place, TRUTH[NAMES[0]], fields={"fl_x": 95.0, "fl_y": 95.0, "cx": 30.0, "w": 64, "h": 64})
    check_object(prepare(CONFIG, source=tmp_path / "a", workers=1)[0])
    write_srn(tmp_path / "b" / "chairs_train" / NAMES[2], TRUTH[NAMES[2]])
    (found,) = prepare(CONFIG, source=tmp_path / "b", workers=1)
    assert found.key == NAMES[2] and hull_iou(found.cameras, found.masks, [0, 5]) >= 0.95
    shutil.copytree(tmp_path / "b", tmp_path / "b" / "again")
    with pytest.raises(DataError, match=f"object '{NAMES[2]}' is .* as well, expected it once"):
        prepare(CONFIG, source=tmp_path / "b")
    with pytest.raises(
        DataError, match="data set photoshape_chairs: no objects, expected folders with transforms.json"
    ):
        (tmp_path / "empty").mkdir()
        prepare(CONFIG, source=tmp_path / "empty")
