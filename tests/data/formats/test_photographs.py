"""Photographs without cameras: a walk round a chair in a drawn room, whose cameras are known, is found again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.data.formats.test_colmap import TILTED, World, poses, write_model
from vader.data.formats import Options, detect, photographs, read, scan
from vader.data.formats.shared import structure_from_motion
from vader.data.formats.shared.normalise import hull_iou
from vader.data.formats.wavefront import Part
from vader.data.meshes.walk import DISTANCE, walk, write_photographs
from vader.data.meshes.walk import photographs as taken
from vader.data.packed import read_mesh
from vader.data.prepared import EMBEDDED, DataError
from vader.data.sequence import Sequence, load_packed

pytest.importorskip("pycolmap")
VIEWS, SIDE = 16, 208
OPTIONS = Options(resolution=64)


@pytest.fixture(scope="session")
def walked() -> Sequence:
    """Pictures with true cameras."""
    folder = sorted((next(EMBEDDED.glob("furniture_chairs-*")) / "objects").iterdir())[0]
    chair = load_packed(folder)
    vertices, faces, colours = read_mesh(chair.mesh, chair.key)
    cameras = walk(VIEWS, SIDE)
    part = Part("chair", vertices.astype(float), faces, np.ones(3), colours=colours[:, :3] / 255)
    return Sequence("chair", *taken([part], cameras), cameras)


@pytest.fixture(scope="module")
def folder(walked, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("walk")
    write_photographs(root / "chair", walked.images, walked.masks)
    return root


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def found(folder) -> Sequence:
    (scene,) = scan(folder, "photographs")
    return read(scene, OPTIONS)


def aligned(found, true) -> tuple[np.ndarray, np.ndarray]:
    """Errors of rotations (degrees) and centres (world units) after the best similarity between them."""
    a, b = (c.world_to_camera.double().numpy() for c in (found, true))
    x, y = (-np.einsum("vji,vj->vi", m[:, :, :3], m[:, :, 3]) for m in (a, b))
    x0, y0 = x - x.mean(0), y - y.mean(0)
    u, s, v = np.linalg.svd(y0.T @ x0)
    sign = np.diag([1, 1, np.linalg.det(u @ v)])
    turn, scale = u @ sign @ v, (s * np.diag(sign)).sum() / (x0**2).sum()
    rotations = Rotation.from_matrix(a[:, :, :3] @ turn.T @ b[:, :, :3].transpose(0, 2, 1)).magnitude()
    return np.rad2deg(rotations), np.linalg.norm(scale * x0 @ turn.T - y0, axis=1)


def test_structure_from_motion_finds_the_cameras_of_a_walk(found, walked):
    assert len(found) >= 0.9 * VIEWS
    rotation, centre = aligned(found.cameras, walked.cameras)
    assert rotation.max() <= 0.2 and centre.max() <= 0.005 * DISTANCE
    assert hull_iou(found.cameras, found.masks, [0, 5, 10]) >= 0.95


def test_what_was_found_is_reported(found):
    report = found.attributes["structure_from_motion"]
    assert (report["placed"], report["of"], report["features"]) == (VIEWS, VIEWS, "everywhere")
    assert report["models"] == {"0": VIEWS} and 0 < report["error"] < 0.5 and report["hull_iou"] >= 0.95
    assert found.attributes["format"] == "photographs" and "left_out" not in found.attributes


def test_cameras_are_found_once_and_nothing_is_written_beside_the_photographs(folder, found, monkeypatch):
    monkeypatch.setattr(structure_from_motion, "reconstruct", lambda *_: pytest.fail("again"))
    (scene,) = scan(folder, "photographs")
    again = read(scene, OPTIONS)
    assert torch.equal(again.cameras.world_to_camera, found.cameras.world_to_camera)
    assert sorted(f.name for f in scene.place.iterdir()) == ["images", "masks"]
    with pytest.raises(pytest.fail.Exception, match="again"):
        read(scene, Options(resolution=64, mask_threshold=128))


def test_the_same_pictures_give_the_same_cameras(folder, tmp_path):
    names = [f"{i:03d}.png" for i in range(6)]
    models = []
    for attempt in ("a", "b"):
        structure_from_motion.reconstruct(folder / "chair" / "images", names, None, tmp_path / attempt, "here")
        models.append([(tmp_path / attempt / "sparse/0" / f).read_bytes() for f in ("cameras.bin", "images.bin")])
    assert models[0] == models[1]


def test_three_good_pictures_of_thirty_are_an_error_that_says_so(walked, tmp_path):
    write_photographs(tmp_path / "chair", walked.images[:3], walked.masks[:3])
    for number in range(3, 30):  # empty walls
        for kind in ("images", "masks"):
            Image.new("L", (SIDE, SIDE), 200).save(tmp_path / "chair" / kind / f"{number:03d}.png")
    (scene,) = scan(tmp_path, "photographs")
    with pytest.raises(DataError, match=r"chair': structure from motion placed [0-3] of 30 pictures.*at least 15"):
        read(scene, OPTIONS)
    assert not list((photographs.data_root() / "photographs").glob(f"{scene.key}-*/../.*")), "nothing half done is left"


def fake(monkeypatch, everywhere: Sequence, inside: Sequence) -> None:
    """Structure from motion that answers with given cameras."""

    def reconstruct(pictures, names, masks, output, where, focal=None):
        sequence = everywhere if masks is None else inside
        lens = sequence.cameras.intrinsics[0][[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        camera = ("PINHOLE", SIDE, SIDE, lens)
        write_model(output / "sparse" / "0", poses(sequence, World(TILTED)), names[: len(sequence)], camera)
        return {"models": {"0": len(sequence)}, "placed": len(sequence), "points": 9, "error": 0.4, "focal": [1.0]}

    monkeypatch.setattr(structure_from_motion, "reconstruct", reconstruct)


def test_cameras_that_followed_the_background_are_not_taken(walked, folder, tmp_path, monkeypatch):
    part = Sequence("chair", walked.images[:9], walked.masks[:9], walked.cameras[:9])
    wrong = Sequence("chair", walked.images, walked.masks, walked.cameras[list(range(1, VIEWS)) + [0]])
    (scene,) = scan(folder, "photographs")
    for features, pair in (("inside the masks", (wrong, part)), ("everywhere", (part, wrong))):
        fake(monkeypatch, *pair)
        found = read(scene, Options(resolution=64, cache=tmp_path / features))
        assert found.attributes["structure_from_motion"]["features"] == features and len(found) == 9
        assert "did not place it" in found.attributes["left_out"]["012.png"]


# ---------------------------------------------------------------------------------------- pictures


def test_a_photograph_is_told_from_a_frame_by_its_camera(walked, tmp_path):
    exif = Image.Exif()
    exif[photographs.MAKE] = "Maker"
    for number, pixels in enumerate(walked.images[:3].numpy()):
        for name, about in (("phone", exif), ("film", Image.Exif())):
            (tmp_path / name / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / "a" / f"{number}.jpg", exif=about)
    assert detect(tmp_path / "phone")[0] == "photographs" and detect(tmp_path / "film")[0] == "videos"


def test_pictures_are_upright_masked_and_of_a_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "MAX_SIDE", 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture = np.full((48, 80, 4), 255, np.uint8)
    picture[:24] = (9, 9, 9, 0)
    for number in range(4):
        Image.fromarray(picture).save(tmp_path / f"{number}.png", **({"exif": exif} if number == 3 else {}))
    (scene,) = scan(tmp_path, "photographs")
    names, faults = photographs._develop(scene, OPTIONS, tmp_path / "work")
    assert list(names) == ["40x24/00000.png", "40x24/00001.png", "40x24/00002.png", "24x40/00003.png"] and not faults
    mask = np.asarray(Image.open(tmp_path / "work/masks/24x40/00003.png.png"))
    assert mask.shape == (40, 24) and mask[:, :12].min() == 255 and mask[:, 12:].max() == 0
    assert np.asarray(Image.open(tmp_path / "work/images/40x24/00000.png")).shape == (24, 40, 3)


def test_pictures_without_masks_are_refused_before_any_work(walked, tmp_path, monkeypatch):
    monkeypatch.setattr(structure_from_motion, "reconstruct", lambda *_: pytest.fail("began"))
    (write_photographs(tmp_path / "chair", walked.images[:4], walked.masks[:4]) / "masks").rename(tmp_path / "mine")
    scenes = scan(tmp_path / "chair", "photographs")
    with pytest.raises(DataError, match=r"0 of 4 views can be used, expected at least 2\n.*000.png.*no mask: expected"):
        read(scenes[0], OPTIONS)


def test_without_pycolmap_it_is_asked_for(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    (scene,) = scan(folder, "photographs")
    with pytest.raises(ImportError, match=r"pip install 'vader\[photographs\]'"):
        read(scene, OPTIONS)


def test_pairs_close_the_round_and_are_each_there_once():
    for count in (3, 4, 20, 61, 200):
        names = [str(i) for i in range(count)]
        pairs = [frozenset(pair) for pair in structure_from_motion.pairs(names)]
        assert len(set(pairs)) == len(pairs) and all(len(pair) == 2 for pair in pairs)
        if count <= structure_from_motion.EVERY_PAIR:
            assert len(pairs) == count * (count - 1) // 2
        else:
            assert len(pairs) < 20 * count and {"0", str(count - 1)} in pairs and {"0", "10"} in pairs
