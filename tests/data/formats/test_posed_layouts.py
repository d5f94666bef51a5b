"""SRN's and ABO's layouts: written here by their descriptions, with the defects they are known for, and read back."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.formats.rendered import World, check
from vader.data.formats import Options, Placing, abo, detect, read, read_all, scan
from vader.data.formats.shared.normalise import hull_iou
from vader.data.prepared import DataError
from vader.rendering.cameras import Cameras
from vader.settings.checks import ConfigError

WORLD = World(scale=2.5, centre=(0.3, -1.0, 0.7))
PLACED = Placing(centre=(0.3, -1.0, 0.7), scale=2.5, up="y")
OPTIONS = Options(resolution=64, placing=PLACED)
GL = np.diag([1.0, -1.0, -1.0, 1.0])


def on_white(sequence) -> np.ndarray:
    return np.where(sequence.masks.numpy()[..., None] > 0, sequence.images.numpy(), 255).astype(np.uint8)


def write_srn(folder: Path, sequence, world=WORLD, lines: int = 4, name="{:06d}", intrinsics: bool = True) -> Path:
    """One object: lines is how many lines a pose has."""
    (folder / "rgb").mkdir(parents=True)
    (folder / "pose").mkdir()
    k = sequence.cameras.intrinsics[0]
    if intrinsics:
        text = f"{float(k[0, 0])} {float(k[0, 2])} {float(k[1, 2])} 0.\n0. 0. 0.\n1.\n64 64\n"
        (folder / "intrinsics.txt").write_text(text)
    for i, (picture, pose) in enumerate(
        zip(on_white(sequence), world.camera_to_world(sequence.cameras), strict=True), 0
    ):
        Image.fromarray(picture).save(folder / "rgb" / f"{name.format(i)}.png")
        rows = [" ".join(f"{x:.10f}" for x in row) for row in pose]
        (folder / "pose" / f"{name.format(i)}.txt").write_text((" " if lines == 1 else "\n").join(rows) + "\n")
    return folder


# ------------------------------------------------------------------------------------------------ SRN


@pytest.mark.parametrize(("lines", "name"), [(4, "{:06d}"), (1, "{}")])
def test_srn_is_read_back_exactly(table, tmp_path, lines, name):
    write_srn(tmp_path / "chairs_2.0_train" / "chairs_2.0_train" / "1a2b", table, lines=lines, name=name)
    write_srn(tmp_path / "chairs_test" / "3c4d", table, lines=lines, name=name)
    assert detect(tmp_path)[0] == "srn"
    scenes = scan(tmp_path)
    assert [(s.key, s.split) for s in scenes] == [("1a2b", "train"), ("3c4d", "test")]
    found = read(scenes[0], OPTIONS)
    check(found, table)
    assert found.key == "1a2b" and "left_out" not in found.attributes and read(scenes[1], OPTIONS).split == "test"


def test_a_smaller_resolution_scales_pictures_and_cameras_alike(table, tmp_path):
    write_srn(tmp_path / "a", table)
    found = read(scan(tmp_path)[0], Options(resolution=32, placing=PLACED))
    k = table.cameras.intrinsics.clone()
    k[:, :2] /= 2
    halved = Cameras(table.cameras.world_to_camera, k, 32, 32)
    blocks = table.images.numpy().reshape(-1, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(found.images.numpy() - blocks).max() <= 1 and hull_iou(found.cameras, found.masks) > 0.95
    np.testing.assert_allclose(found.cameras.intrinsics, halved.intrinsics, atol=1e-5)


def test_a_place_that_nobody_gave_is_found_by_the_hull(table, tmp_path):
    write_srn(tmp_path / "a", table)
    found = read(scan(tmp_path)[0], Options(resolution=64))
    assert hull_iou(found.cameras, found.masks) >= 0.95
    truth = read(scan(tmp_path)[0], OPTIONS)
    shift = np.linalg.norm(np.array(found.attributes["placing"]["centre"]) - (0.3, -1.0, 0.7)) * 2.5
    scale = found.attributes["placing"]["scale"] / truth.attributes["placing"]["scale"]
    assert shift < 0.05 and 0.9 < scale < 1.02  # a hull is no smaller than what it holds


def test_left_out_views_are_named_and_their_object_stays(table, tmp_path):
    folder = write_srn(tmp_path / "a", table)
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(folder / "rgb" / "000003.png")  # a white view
    (folder / "pose" / "000005.txt").unlink()
    (folder / "rgb" / "000007.png").write_bytes((folder / "rgb" / "000007.png").read_bytes()[:900])
    found = read(scan(tmp_path)[0], OPTIONS)
    assert found.attributes["left_out"].keys() == {"000003.png", "000005.png", "000007.png"}
    check(found, table, order=[i for i in range(len(table)) if i not in (3, 5, 7)])
    with pytest.raises(DataError, match=r"object 'a': 13 of 14 views .* at least 14\n .*000005.png: .*no pose"):
        read(scan(tmp_path)[0], Options(resolution=64, least_share=1.0))


def test_three_good_frames_of_many_are_no_object(table, tmp_path):
    folder = write_srn(tmp_path / "a", table)
    for i in range(3, 14):
        (folder / "rgb" / f"{i:06d}.png").write_bytes(b"broken")
    with pytest.raises(
        DataError, match=r"object 'a': 6 of 14 views can be used, expected at least 7\n(.*\n){3}  and 5 more"
    ):
        read(scan(tmp_path)[0], OPTIONS)


def test_asked_for_views_are_spread_and_a_broken_one_is_replaced(table, tmp_path):
    folder = write_srn(tmp_path / "a", table)
    found = read(scan(tmp_path)[0], Options(resolution=64, views=7, placing=PLACED))
    check(found, table, order=list(range(0, 14, 2)))
    (folder / "rgb" / "000004.png").write_bytes(b"broken")
    found = read(scan(tmp_path)[0], Options(resolution=64, views=7, placing=PLACED))
    assert len(found) == 7 and list(found.attributes["left_out"]) == ["000004.png"]
    with pytest.raises(DataError, match="13 usable views, expected 14"):
        read(scan(tmp_path)[0], Options(resolution=64, views=14))


def test_missing_intrinsics_are_an_error_or_given(table, tmp_path):
    write_srn(tmp_path / "a", table, intrinsics=False)
    with pytest.raises(DataError, match="a/intrinsics.txt: object 'a': file is missing, .* or the focal length"):
        read(scan(tmp_path)[0], OPTIONS)
    check(read(scan(tmp_path)[0], Options(resolution=64, focal=95.0, placing=PLACED)), table)
    (tmp_path / "intrinsics.txt").write_text("95. 32. 32. 0.\n0. 0. 0.\n1.\n64 64\n")  # one for all of a folder
    check(read(scan(tmp_path)[0], OPTIONS), table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1 0 0 0 0 1 0 0 0 0 1", "pose has 11 numbers, expected 16"),
        ("nan 0 0 0 0 1 0 0 0 0 1 3 0 0 0 1", "pose has a NaN or infinite entry"),
        ("1 0 0 0 0 1 0 0 0 0 -1 3 0 0 0 1", r"pose is left-handed \(determinant -1\)"),
        ("2 0 0 0 0 2 0 0 0 0 2 3 0 0 0 1", r"pose is no rotation: its axes are \[2.0, 2.0, 2.0\] long"),
        ("1 0 0 0 0 1 0 0 0 0 1 3 0 0 1 1", "as its last row, expected 0 0 0 1"),
        ("one 0 0 0 0 1 0 0 0 0 1 3 0 0 0 1", "pose cannot be read, expected 16 numbers"),
    ],
)
def test_poses_that_are_none_are_named(table, tmp_path, rows, message):
    folder = write_srn(tmp_path / "a", table)
    for file in (folder / "pose").iterdir():
        file.write_text(rows)
    with pytest.raises(DataError, match=r"object 'a': 0 of 14 views can be used(.|\n)*000000.txt: .*" + message):
        read(scan(tmp_path)[0], OPTIONS)


def test_a_camera_inside_of_the_object_is_an_error(table, tmp_path):
    write_srn(tmp_path / "a", table)
    inside = Placing(centre=tuple(WORLD.camera_to_world(table.cameras)[2][:3, 3] + 0.1), scale=2.5)
    with pytest.raises(DataError, match="object 'a': view 2: its camera is inside of the object"):
        read(scan(tmp_path)[0], Options(resolution=64, placing=inside))


def test_poses_of_another_convention_find_no_object(table, tmp_path):
    class Inverted(World):
        def camera_to_world(self, cameras):
            return np.linalg.inv(super().camera_to_world(cameras))

    write_srn(tmp_path / "a", table, Inverted(scale=2.5, centre=(0.3, -1.0, 0.7)))
    with pytest.raises(DataError, match="convention|inside of the object"):
        read(scan(tmp_path)[0], Options(resolution=64))


def test_two_objects_of_one_key_are_an_error(table, tmp_path):
    for name in ("a b", "a_b"):
        write_srn(tmp_path / name, table)
    with pytest.raises(DataError, match="a_b: its key 'a_b' is that of .*a b as well"):
        scan(tmp_path)


def test_one_broken_object_does_not_stop_the_others_unless_asked(table, tmp_path):
    for name in "abc":
        write_srn(tmp_path / name, table)
    shutil.rmtree(tmp_path / "b" / "rgb")
    (tmp_path / "b" / "rgb").mkdir()
    faults: dict[str, str] = {}
    assert [s.key for s in read_all(scan(tmp_path), OPTIONS, faults)] == ["a", "c"]
    assert "object 'b': no views" in faults["b"]
    with pytest.raises(DataError, match="object 'b': no views, expected pictures with cameras"):
        list(read_all(scan(tmp_path), OPTIONS))


# ------------------------------------------------------------------------------------------------ ABO


def write_abo(root: Path, items: dict[str, list[str]], sequences, size=None, side: int = 64, world=WORLD) -> None:
    """items: id -> lightings; sequences: one of all of them, or by id; size: extents of all of them. K is that of 512
    pixels whatever the pictures' size."""
    base = root / "abo-benchmark-material"
    base.mkdir(parents=True)
    lines = ["MODEL,SPLIT,LIGHTINGS,IDS"]
    for n, (item, lightings) in enumerate(items.items()):
        sequence = sequences[item] if isinstance(sequences, dict) else sequences
        k = sequence.cameras.intrinsics[0].double().numpy() * 512 / side
        k[2, 2] = 1
        lines.append(f"{item},{'TEST' if n % 2 else 'TRAIN'},{len(lightings)},{'_'.join(lightings)}")
        views = [
            {"K": k.ravel().tolist(), "pose": (pose @ GL).ravel().tolist()}
            for pose in world.camera_to_world(sequence.cameras)
        ]
        (base / item / "segmentation").mkdir(parents=True)
        (base / item / "metadata.json").write_text(json.dumps({"views": views}))
        for i, mask in enumerate(sequence.masks.numpy()):
            Image.fromarray(mask).save(base / item / "segmentation" / f"segmentation_{i}.jpg", quality=80)
        for lighting in lightings:
            (base / item / "render" / lighting).mkdir(parents=True)
            for i, picture in enumerate(on_white(sequence)):
                file = base / item / "render" / lighting / f"render_{i}.jpg"
                Image.fromarray(picture).save(file, quality=100, subsampling=0)
    (base / "train_test_split.csv").write_text("\n".join(lines) + "\n")
    if size is not None:
        (root / "3dmodels" / "metadata").mkdir(parents=True)
        rows = ["3dmodel_id,path,extent_x,extent_y,extent_z"]
        rows += [f"{item},{item[-1]}/{item}.glb,{','.join(str(x) for x in size)}" for item in items]
        with gzip.open(root / "3dmodels" / "metadata" / "3dmodels.csv.gz", "wt") as file:
            file.write("\n".join(rows) + "\n")


def test_abo_is_read_back_with_lossy_pictures_in_integer_order(table, tmp_path):
    write_abo(tmp_path, {"B01": ["0", "2"], "B02": ["0"]}, table)
    assert detect(tmp_path)[0] == detect(tmp_path / "abo-benchmark-material")[0] == "abo"
    scenes = scan(tmp_path)
    assert [(s.key, s.split) for s in scenes] == [("B01_0", "train"), ("B01_2", "train"), ("B02_0", "test")]
    found = read(scenes[1], OPTIONS)
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (200, 3)).astype(np.float32)
    ours, theirs = (c.project(torch.from_numpy(points)) for c in (found.cameras, table.cameras))
    assert (ours - theirs).norm(dim=-1).max() <= 0.05  # 14 views: render_10 after render_9
    masks, expected = found.masks.numpy(), table.masks.numpy()
    assert ((masks >= 128) == (expected >= 128)).mean() > 0.995
    inner = (masks == 255) & (expected == 255)
    difference = np.abs(found.images.numpy().astype(int) - table.images.numpy())[inner]
    assert difference.mean() < 2 and hull_iou(found.cameras, found.masks) >= 0.95


def test_abo_masks_are_cleaned_of_what_jpeg_leaves(table, tmp_path):
    write_abo(tmp_path, {"B01": ["0"]}, table)
    levels = np.zeros((64, 64), np.uint8)
    levels[:, 16:] = 1
    levels[:, 32:] = 254
    for file in (tmp_path / "abo-benchmark-material" / "B01" / "segmentation").iterdir():
        Image.fromarray(levels).save(file, "PNG")  # exact levels under the name
    found = abo.read(scan(tmp_path)[0], OPTIONS).masks
    assert found[:, :, :32].max() == 0 and found[:, :, 32:].min() == 255


def test_extents_make_the_boxs_diagonal_two(table, tmp_path):
    write_abo(tmp_path, {"B01": ["0"]}, table, size=(0.003, 0.004, 0.012))
    (scene,) = scan(tmp_path)
    assert scene.placing == Placing(centre=(0.0, 0.0, 0.0), scale=pytest.approx(2 / 0.013))
    assert scene.attributes["extents"] == [0.003, 0.004, 0.012]
    raw = abo.read(scene, OPTIONS).cameras.centres()
    placed = read(scene, Options(resolution=64)).cameras.centres()
    np.testing.assert_allclose(placed, raw * 2 / 0.013, rtol=1e-5)


def test_listings_give_types_and_captions(tmp_path):
    place = tmp_path / "listings" / "metadata"
    place.mkdir(parents=True)
    items = [
        {
            "item_id": "B01",
            "product_type": [{"value": "TABLE"}],
            "item_name": [{"language_tag": "de_DE", "value": "Tisch"}, {"language_tag": "en_GB", "value": "Oak table"}],
        },
        {"item_id": "B02", "product_type": [{"value": "SOFA"}]},
    ]
    with gzip.open(place / "listings_0.json.gz", "wt") as file:
        file.write("\n".join(json.dumps(i) for i in items))
    assert abo.listings(tmp_path) == {
        "B01": {"product_type": "table", "caption": "Oak table"},
        "B02": {"product_type": "sofa", "caption": None},
    }
    (place / "listings_1.json.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="listings_1.json.gz: cannot be unpacked"):
        abo.listings(tmp_path)


def test_faults_of_abo_are_named(table, tmp_path):
    write_abo(tmp_path, {"B01": ["0"]}, table)
    base = tmp_path / "abo-benchmark-material"
    metadata = json.loads((base / "B01" / "metadata.json").read_text())
    (base / "B01" / "metadata.json").write_text(json.dumps({"views": metadata["views"][:12]}))
    (base / "B01" / "segmentation" / "segmentation_2.jpg").unlink()
    found = read(scan(tmp_path)[0], OPTIONS)
    reasons = found.attributes["left_out"]
    assert reasons.keys() == {"render_2.jpg", "render_12.jpg", "render_13.jpg"}
    assert "views[12] is missing" in reasons["render_12.jpg"] and "no mask of" in reasons["render_2.jpg"]
    (base / "B01" / "metadata.json").write_text(json.dumps({"frames": []}))
    with pytest.raises(DataError, match="metadata.json: 'B01_0': field 'views' is missing"):
        read(scan(tmp_path)[0], OPTIONS)
    (base / "train_test_split.csv").write_text("MODEL,SPLIT\nB01,VALIDATE\n")
    with pytest.raises(DataError, match="train_test_split.csv: line 2: split is 'validate', expected TRAIN or TEST"):
        scan(tmp_path)


# ------------------------------------------------------------------------------------------------ finding out


def test_a_folder_of_nothing_lists_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"format is not to be seen, expected one of\n  abo: (.|\n)*srn: folders with"):
        detect(tmp_path)
    with pytest.raises(DataError, match="gone: no such folder"):
        detect(tmp_path / "gone")
    with pytest.raises(DataError, match="no objects of format srn, expected folders with rgb"):
        scan(tmp_path, "srn")
    with pytest.raises(ConfigError, match=r"format 'colmep' is unknown \(did you mean 'colmap'\?\)"):
        scan(tmp_path, "colmep")
    with pytest.raises(ConfigError, match="fit is 'stretch', expected one of"):
        Options(fit="stretch")


def test_a_format_is_found_among_very_many_folders(table, tmp_path):
    for i in range(3000):
        (tmp_path / "train" / f"{i:04d}" / "rgb").mkdir(parents=True)
        if i % 50:
            (tmp_path / "train" / f"{i:04d}" / "pose").mkdir()
    assert detect(tmp_path)[0] == "srn" and len(scan(tmp_path, "srn")) == 2940
