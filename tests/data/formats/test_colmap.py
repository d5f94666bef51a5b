"""COLMAP models: written here from the layout of its files, with MVImgNet's defects, and read back."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.data.formats.rendered import World, check, pictured, rigid_inverse
from vader.data.formats import Options, Placing, colmap, detect, read, scan
from vader.data.formats.shared.lenses import Lens
from vader.data.formats.shared.normalise import hull_iou
from vader.data.prepared import DataError
from vader.rendering.cameras import Cameras

TILTED = Rotation.from_euler("xyz", [170, 20, 5], degrees=True).as_matrix()
WORLD = World(TILTED, scale=0.7, centre=(5.0, 2.0, -3.0))
MODELS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5,
          "FULL_OPENCV": 6, "FOV": 7}  # fmt: skip


def poses(sequence, world=WORLD) -> list[tuple[np.ndarray, np.ndarray]]:
    """Quaternion (w, x, y, z) and translation of each view."""
    result = []
    for pose in world.camera_to_world(sequence.cameras):
        matrix = rigid_inverse(pose)
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        result.append((np.array([w, x, y, z]), matrix[:3, 3]))
    return result


def write_model(folder: Path, views, names, camera=("SIMPLE_RADIAL", 64, 64, [95.0, 32.0, 32.0, 0.0]), text=False):
    """views: (quaternion, translation) each; camera: model, width, height, parameters."""
    folder.mkdir(parents=True)
    model, width, height, parameters = camera
    if text:
        line = f"1 {model} {width} {height} {' '.join(map(repr, parameters))}\n"
        (folder / "cameras.txt").write_text("# Camera list\n" + line)
        lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[]"]
        for i, ((q, t), name) in enumerate(zip(views, names, strict=True)):
            lines += [f"{i + 1} {' '.join(repr(float(v)) for v in (*q, *t))} 1 {name}", "" if i % 2 else "1.5 2.5 -1"]
        (folder / "images.txt").write_text("\n".join(lines) + "\n")
        return
    content = struct.pack("<QiiQQ", 1, 1, MODELS[model], width, height)
    (folder / "cameras.bin").write_bytes(content + struct.pack(f"<{len(parameters)}d", *parameters))
    content = struct.pack("<Q", len(views))
    for i, ((q, t), name) in enumerate(zip(views, names, strict=True)):
        content += struct.pack("<i4d3di", i + 1, *q, *t, 1) + name.encode() + b"\0"
        content += struct.pack("<Q", i) + struct.pack("<ddq", 1.5, 2.5, -1) * i
    (folder / "images.bin").write_bytes(content)


def write_pictures(folder: Path, sequence, masks: Path | None, side: int = 64, mask_side: int = 64) -> list[str]:
    (folder / "images").mkdir(parents=True)
    names = [f"{i + 1:03d}.png" for i in range(len(sequence))]
    for name, picture, mask in zip(names, sequence.images.numpy(), sequence.masks.numpy(), strict=True):
        room = np.where(mask[..., None] > 0, picture, 90).astype(np.uint8)  # a grey room around it
        Image.fromarray(room).resize((side, side), Image.Resampling.NEAREST).save(folder / "images" / name)
        if masks is not None:
            masks.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(mask).resize((mask_side, mask_side), Image.Resampling.NEAREST)
            small.save(masks / f"{name}.png")
    return names


def placed(sequence) -> Options:
    """Where the world's centre, scale and axes are given; up is the cameras' mean, as the format has it."""
    return Options(resolution=64, placing=Placing(centre=(5.0, 2.0, -3.0), scale=0.7))


def up_fixed(sequence, found):
    """`found` up to the turn about y, which nothing fixes: by Procrustes of the rotations."""
    a = found.cameras.world_to_camera[:, :, :3].double().reshape(-1, 3).numpy()
    b = sequence.cameras.world_to_camera[:, :, :3].double().reshape(-1, 3).numpy()
    u, _, v = np.linalg.svd(a.T @ b)
    turn = torch.from_numpy(u @ v).float()
    matrices = torch.cat([found.cameras.world_to_camera[:, :, :3] @ turn, found.cameras.world_to_camera[:, :, 3:]], -1)
    return turn, Cameras(matrices, found.cameras.intrinsics, found.cameras.height, found.cameras.width)


def assert_same(found, expected, order=None) -> None:
    part = expected
    if order is not None:
        part = type(expected)("part", expected.images[order], expected.masks[order], expected.cameras[order])
    turn, cameras = up_fixed(part, found)
    check(type(found)(found.key, found.images, found.masks, cameras), part)
    up = found.cameras.world_to_camera[:, 1, :3].mean(0)
    assert abs(up[0]) < 1e-5 and abs(up[2]) < 1e-5 and up[1] < 0  # up on the whole
    return turn


@pytest.mark.parametrize("text", [False, True])
def test_models_are_read_back(table, tmp_path, text):
    names = write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    write_model(tmp_path / "a" / "sparse" / "0", poses(table), names, text=text)
    assert detect(tmp_path)[0] == "colmap"
    (scene,) = scan(tmp_path)
    found = read(scene, placed(table))
    assert_same(found, table)
    assert "models" not in found.attributes and "left_out" not in found.attributes
    by_hull = read(scene, Options(resolution=64))
    assert hull_iou(by_hull.cameras, by_hull.masks, [0, 7]) >= 0.95
    assert abs(np.array(by_hull.attributes["placing"]["centre"]) - (5, 2, -3)).max() < 0.1


def test_pycolmap_reads_the_same(table, tmp_path):
    """Our writer and reader against the library that defines the format."""
    pycolmap = pytest.importorskip("pycolmap")
    camera = ("OPENCV", 64, 64, [95.0, 96.0, 31.0, 33.0, 0.01, -0.02, 0.001, 0.002])
    write_model(tmp_path / "t", poses(table), [f"{i}.png" for i in range(14)], camera, text=True)
    (tmp_path / "t" / "points3D.txt").write_text("# none\n")
    for i in ("images.txt",):  # it wants no points that are not there
        lines = (tmp_path / "t" / i).read_text().replace("1.5 2.5 -1", "")
        (tmp_path / "t" / i).write_text(lines)
    (tmp_path / "b").mkdir()
    pycolmap.Reconstruction(str(tmp_path / "t")).write_binary(str(tmp_path / "b"))
    ours = {
        i.name: i.world_to_camera("x")
        for i in colmap._read(tmp_path / "b", "images", "a", colmap._images_binary, colmap._images_text)
    }
    theirs = pycolmap.Reconstruction(str(tmp_path / "b"))
    for image in theirs.images.values():
        np.testing.assert_allclose(ours[image.name], image.cam_from_world().matrix(), atol=1e-12)
    (found,) = colmap._read(tmp_path / "b", "cameras", "a", colmap._cameras_binary, colmap._cameras_text).values()
    assert found.lens == Lens((0.01, -0.02), (0.001, 0.002)) and found.intrinsics[1].tolist() == [0, 96, 33]


def test_mvimgnet_with_its_defects(table, tmp_path):
    """Category folders, masks in a tree of their own and of another size, missing and stray pictures, two models."""
    place = tmp_path / "203" / "1a2b3c4d"
    names = write_pictures(place, table, tmp_path / "mask" / "203" / "1a2b3c4d", mask_side=128)
    few = [poses(table)[i] for i in (0, 5)]
    write_model(place / "sparse" / "0", few, [names[0], names[5]])
    write_model(place / "sparse" / "1", poses(table), names)
    for i in (2, 9):
        (place / "images" / names[i]).unlink()
    for i in range(14):
        Image.new("RGB", (64, 64)).save(place / "images" / f"{i + 1:03d}_bg_removed.png")
    (place / "sparse" / "0" / "project.ini").touch()
    (scene,) = scan(tmp_path)
    assert scene.key == "203-1a2b3c4d"
    options = Options(resolution=64, mask_threshold=226, placing=placed(table).placing)
    found = read(scene, options)
    assert_same(found, table, [i for i in range(14) if i not in (2, 9)])
    assert found.attributes["models"] == {"sparse/0": 2, "sparse/1": 14} and found.attributes["model"] == "sparse/1"
    assert found.attributes["left_out"].keys() == {"003.png", "010.png"}


def test_empty_sparse_is_named_and_stays_one_object(table, tmp_path):
    write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    (tmp_path / "a" / "sparse" / "0").mkdir(parents=True)
    with pytest.raises(DataError, match="a/sparse: object 'a': no model, expected cameras and images there"):
        read(scan(tmp_path)[0], Options())


def test_three_placed_frames_of_many_are_an_error(table, tmp_path):
    names = write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    write_model(tmp_path / "a" / "sparse" / "0", poses(table)[:3], names[:3])
    with pytest.raises(DataError, match=r"3 of 14 views can be used, .* 7\n.*the model has no pose of it"):
        read(scan(tmp_path)[0], Options(resolution=64))


def test_pictures_at_another_scale_than_the_camera(table, tmp_path):
    names = write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    twice = ("PINHOLE", 128, 128, [190.0, 190.0, 64.0, 64.0])
    write_model(tmp_path / "a" / "sparse", poses(table), names, twice)
    assert_same(read(scan(tmp_path)[0], placed(table)), table)


@pytest.mark.parametrize(
    ("camera", "lens"),
    [
        (("SIMPLE_RADIAL", 64, 64, [95.0, 32.0, 32.0, -0.5]), Lens((-0.5,))),
        (("OPENCV", 64, 64, [95.0, 95.0, 32.0, 32.0, -0.5, 0.3, 0.01, -0.01]), Lens((-0.5, 0.3), (0.01, -0.01))),
        (("OPENCV_FISHEYE", 64, 64, [95.0, 95.0, 32.0, 32.0, 0.1, 0, 0, 0]), Lens((0.1, 0, 0, 0), fisheye=True)),
    ],
)
def test_distortion_is_taken_out_of_pictures_and_masks(table, tmp_path, camera, lens):
    names = write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    write_model(tmp_path / "a" / "sparse" / "0", poses(table), names, camera)
    found = read(scan(tmp_path)[0], placed(table))
    # a pixel of the result shows what the lens led to, here looked up one by one
    for y, x in ((32, 32), (20, 44), (45, 12), (8, 8)):
        u, v = lens.distort(np.array([(x + 0.5 - 32) / 95, (y + 0.5 - 32) / 95])) * 95 + 32 - 0.5
        x0, y0 = int(np.floor(u)), int(np.floor(v))
        corners = table.masks[3].double().numpy()[y0 : y0 + 2, x0 : x0 + 2]
        weights = np.outer([1 - (v - y0), v - y0], [1 - (u - x0), u - x0])
        assert abs(float(found.masks[3, y, x]) - (corners * weights).sum()) <= 1
    assert (found.cameras.intrinsics[:, 0, 0] == 95).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "images.bin").write_bytes((f / "images.bin").read_bytes()[:-30]), "images.bin.*ends too early"),
        (lambda f: (f / "images.bin").write_bytes(b"\xff" * 60), "images.bin.*ends too early"),
        (lambda f: (f / "cameras.bin").write_bytes(b"\x01"), "cameras.bin.*ends too early"),
        (lambda f: (f / "cameras.bin").write_bytes(struct.pack("<QiiQQ5d", 1, 1, 7, 64, 64, 95, 95, 32, 32, 1)),
         "camera model number 7 is not supported, expected one of SIMPLE_PINHOLE"),
        (lambda f: (f / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, 64, 64, 95, -95, 32, 32)),
         "expected 4 finite numbers with positive focal lengths"),
        (lambda f: (f / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 8, 1, 64, 64, 95, 95, 32, 32)),
         "camera 1 of '001.png' is not in the list of cameras"),
    ],
)  # fmt: skip
def test_broken_models_are_named(table, tmp_path, spoil, message):
    names = write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    write_model(tmp_path / "a" / "sparse" / "0", poses(table), names)
    spoil(tmp_path / "a" / "sparse" / "0")
    with pytest.raises(DataError, match=rf"object 'a'(.|\n)*{message}|{message}"):
        read(scan(tmp_path)[0], Options(resolution=64))


def test_bad_poses_and_names(table, tmp_path):
    names = write_pictures(tmp_path / "a", table, tmp_path / "a" / "masks")
    views = poses(table)
    views[1] = (np.zeros(4), views[1][1])
    views[4] = (views[4][0], np.array([np.nan, 0, 0]))
    write_model(tmp_path / "a" / "sparse" / "0", views, names)
    found = read(scan(tmp_path)[0], placed(table))
    assert found.attributes["left_out"].keys() == {"002.png", "005.png"}
    assert "expected a finite quaternion that is not zero" in found.attributes["left_out"]["002.png"]
    write_model(tmp_path / "b" / "sparse" / "0", poses(table), ["../../etc/passwd.png", *names[1:]])
    with pytest.raises(DataError, match="images.bin: object 'b': image: '../../etc/passwd.png' leads out of"):
        read(scan(tmp_path)[1], Options())


def test_broken_text_is_named(table, tmp_path):
    names = write_pictures(tmp_path / "a", table, None)
    write_model(tmp_path / "a" / "sparse" / "0", poses(table), names, text=True)
    (tmp_path / "a" / "sparse" / "0" / "images.txt").write_text("1 0.5 x 0 0 0 0 0 1 001.png\n\n")
    with pytest.raises(DataError, match="images.txt: object 'a': a line is not as COLMAP writes images .*'x'"):
        read(scan(tmp_path)[0], Options())
    (tmp_path / "a" / "sparse" / "0" / "images.txt").write_text("")
    with pytest.raises(DataError, match="0 of 14 views"):
        read(scan(tmp_path)[0], Options())


def test_without_masks_the_message_says_what_would_do(table, tmp_path):
    names = write_pictures(tmp_path / "a", table, None)
    write_model(tmp_path / "a" / "sparse" / "0", poses(table), names)
    with pytest.raises(DataError, match="no mask: expected one beside it, a picture with alpha, or background given"):
        read(scan(tmp_path)[0], Options(resolution=64))
    options = Options(resolution=64, masker=not_grey, placing=placed(table).placing)
    assert_same(read(scan(tmp_path)[0], options), table)
    with pytest.raises(DataError, match=r"mask is \(3, 3\) uint8, expected \(64, 64\) uint8"):
        read(scan(tmp_path)[0], Options(resolution=64, masker=lambda picture: np.zeros((3, 3), np.uint8)))


def not_grey(picture: np.ndarray) -> np.ndarray:
    return np.where((picture != 90).any(-1), 255, 0).astype(np.uint8)


def test_the_hull_tells_conventions_apart(table):
    """For the check of prepared data: right cameras explain the masks, others do not."""
    assert hull_iou(table.cameras, table.masks, [0, 7]) > 0.99
    pose = table.cameras.world_to_camera.clone()
    pose[:, 1:] *= -1  # OpenGL's axes taken for OpenCV's
    assert hull_iou(Cameras(pose, table.cameras.intrinsics, 64, 64), table.masks, [0, 7]) < 0.3
    other = pictured(table.cameras, index=1)
    assert hull_iou(table.cameras, torch.cat([table.masks[:7], other.masks[7:]]), [0, 7]) < 0.99
