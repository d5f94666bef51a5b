"""transforms.json: written here from its description, as Blender, instant-ngp and Nerfstudio do, and read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.formats.rendered import World, check, orbit, pictured
from vader.data.formats import Options, Placing, detect, read, scan
from vader.data.formats.shared.captions import with_test_ids
from vader.data.formats.shared.images import ORIENTATION
from vader.data.formats.shared.lenses import Lens
from vader.data.formats.shared.normalise import hull_iou
from vader.data.prepared import DataError
from vader.rendering.cameras import Cameras

BLENDER = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # rows: our axes in a world with z up
WORLD = World(BLENDER, scale=0.5, centre=(4.0, 1.0, 2.0))
PLACED = Placing(centre=(4.0, 1.0, 2.0), scale=0.5)
GL = np.diag([1.0, -1.0, -1.0, 1.0])
SOFT = Options(resolution=64, placing=PLACED)


def straight(sequence) -> np.ndarray:
    """(v, h, w, 4): colours divided by coverage."""
    alpha = sequence.masks.numpy()[..., None].astype(float)
    colour = np.where(alpha > 0, sequence.images.numpy() * 255.0 / np.maximum(alpha, 1), 0).clip(0, 255).round()
    return np.concatenate([colour, alpha], -1).astype(np.uint8)


def write(folder: Path, sequence, name="transforms_train.json", suffix="", fields=None, world=WORLD, pictures=None):
    """fields: (view) -> fields of the frame, {} of the file if view is None; default camera_angle_x and RGBA."""
    (folder / "train").mkdir(parents=True)
    cameras = sequence.cameras
    angle = 2 * math.atan(cameras.width / 2 / float(cameras.intrinsics[0, 0, 0]))
    fields = fields or (lambda view: {"camera_angle_x": angle} if view is None else {})
    frames = []
    for i, pose in enumerate(world.camera_to_world(cameras)):
        image = Image.fromarray(straight(sequence)[i]) if pictures is None else pictures[i]
        image.save(folder / "train" / f"r_{i}.png")
        frame = {"file_path": f"./train/r_{i}{suffix}", "rotation": 0.01, "transform_matrix": (pose @ GL).tolist()}
        frames.append(frame | fields(i))
    (folder / name).write_text(json.dumps(fields(None) | {"frames": frames}))
    return folder


def edit(folder: Path, change) -> None:
    """change(content) on the folder's file."""
    (file,) = folder.glob("transforms*.json")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_blender_scenes_are_read_back(table, tmp_path, suffix):
    write(tmp_path / "lego", table, suffix=suffix)
    assert detect(tmp_path)[0] == "transforms"
    (scene,) = scan(tmp_path)
    check(read(scene, SOFT), table)
    by_hull = read(scene, Options(resolution=64))
    assert hull_iou(by_hull.cameras, by_hull.masks, [0, 7]) >= 0.95
    assert abs(np.array(by_hull.attributes["placing"]["centre"]) - (4, 1, 2)).max() < 0.1


def of_each_view(wide):
    def fields(view):
        if view is None:
            return {"w": 1, "h": 1, "fl_x": 1.0}  # wrong, and overridden by every frame
        k = wide.cameras.intrinsics[view]
        return {"w": 72, "h": 48, "fl_x": float(k[0, 0]), "fl_y": float(k[1, 1]), "cx": 37.5, "cy": 23.0}

    return fields


def square_of(wide, fit: str) -> tuple[Cameras, torch.Tensor, torch.Tensor]:
    k = wide.cameras.intrinsics.clone()
    if fit == "crop":
        k[:, 0, 2] -= 12
        return Cameras(wide.cameras.world_to_camera, k, 48, 48), wide.images[:, :, 12:60], wide.masks[:, :, 12:60]
    k[:, 1, 2] += 12
    pad = torch.nn.functional.pad
    cameras = Cameras(wide.cameras.world_to_camera, k, 72, 72)
    return cameras, pad(wide.images, (0, 0, 0, 0, 12, 12)), pad(wide.masks, (0, 0, 12, 12))


@pytest.mark.parametrize(("fit", "side"), [("crop", 48), ("pad", 72)])
def test_wide_soft_pictures_become_square_with_their_cameras(wide_table, tmp_path, fit, side):
    write(tmp_path / "a", wide_table, "transforms.json", fields=of_each_view(wide_table))
    found = read(scan(tmp_path)[0], Options(resolution=side, fit=fit, placing=PLACED))
    cameras, images, masks = square_of(wide_table, fit)
    expected = pictured(cameras, 1)  # only its fields are used
    object.__setattr__(expected, "images", images)
    object.__setattr__(expected, "masks", masks)
    check(found, expected, exact=False)


def test_masks_beside_win_over_alpha(table, tmp_path):
    folder = write(tmp_path / "a", table)
    (folder / "masks").mkdir()
    for i, mask in enumerate(table.masks.numpy()):
        big = Image.fromarray(mask).resize((128, 128), Image.Resampling.NEAREST)
        big.save(folder / ("masks" if i % 2 else "train") / (f"r_{i}.png" if i % 2 else f"mask_{i}.png"))
        opaque = Image.fromarray(np.where(mask[..., None] > 0, straight(table)[i][..., :3], 200).astype(np.uint8))
        opaque.save(folder / "train" / f"r_{i}.png")  # no alpha, a grey background
    edit(folder, lambda c: [f.update(mask_path=f"train/mask_{i}.png") for i, f in enumerate(c["frames"]) if i % 2 == 0])
    found = read(scan(tmp_path)[0], Options(resolution=64, mask_threshold=128, placing=PLACED))
    check(found, table)


def test_photoshape_options_white_background_centred_split_list(table, tmp_path):
    def fields(view):
        return {"fl_x": 95.0, "fl_y": 95.0, "cx": 31.0, "cy": 33.5, "w": 64, "h": 64} if view is None else {}

    rgba = straight(table)
    white = [Image.fromarray(np.where(p[..., 3:] > 0, p[..., :3], 255).astype(np.uint8)) for p in rgba]
    for name in ("shape1_rank00", "shape2_rank01"):
        write(tmp_path / name, table, fields=fields, pictures=white)
    options = Options(resolution=64, background="white", centred=True, placing=PLACED)
    (tmp_path / "photoshape_val.txt").write_text("shape2_rank01\n\n")
    scenes = with_test_ids(scan(tmp_path), tmp_path / "photoshape_val.txt")
    assert [(s.key, s.split) for s in scenes] == [("shape1_rank00", "train"), ("shape2_rank01", "test")]
    check(read(scenes[1], options), table)
    with pytest.raises(DataError, match="no mask: expected one beside it, a picture with alpha, or background"):
        read(scenes[0], SOFT)
    (tmp_path / "photoshape_val.txt").write_text("shape2_rank01\nshape3_rank00\n")
    with pytest.raises(DataError, match=r"val.txt: 1 of 2 ids are no objects here \('shape3_rank00'\)"):
        with_test_ids(scenes, tmp_path / "photoshape_val.txt")
    (tmp_path / "photoshape_val.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="id 'a' is there more than once"):
        with_test_ids(scenes, tmp_path / "photoshape_val.txt")


@pytest.mark.parametrize(
    ("lens", "model"),
    [
        (Lens((-0.5, 0.2, 0.0), (0.004, -0.002)), "OPENCV"),
        (Lens((0.05, 0.0, 0.0, 0.0), fisheye=True), "OPENCV_FISHEYE"),
    ],
)
def test_distorted_pictures_are_undistorted(table, tmp_path, lens, model):
    """A distorted picture shows at each pixel what the pinhole shows where the inverse of the lens leads."""
    big = pictured(orbit(14, 192, 192, 285.0))
    k = big.cameras.intrinsics[0].double().numpy()
    x, y = np.meshgrid(np.arange(192) + 0.5, np.arange(192) + 0.5)
    ideal = lens.undistort((np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k).T)[..., :2])
    at = np.nan_to_num(ideal, nan=-9) @ k[:2, :2].T + k[:2, 2]
    column, row = np.floor(at).astype(int).transpose(2, 0, 1)
    known = (column >= 0) & (column < 192) & (row >= 0) & (row < 192)
    rgba = straight(big)
    bent = [np.where(known[..., None], p[row.clip(0, 191), column.clip(0, 191)], 0).astype(np.uint8) for p in rgba]
    names = ("k1", "k2", "k3", "k4") if lens.fisheye else ("k1", "k2", "k3")
    values = dict(zip(names, lens.radial, strict=True)) | dict(zip(("p1", "p2"), lens.tangential, strict=True))

    def fields(view):
        return {"camera_model": model, "fl_x": 285.0, "w": 192, "h": 192, **values} if view is None else {}

    write(tmp_path / "a", big, "transforms.json", fields=fields, pictures=[Image.fromarray(b) for b in bent])
    found = read(scan(tmp_path)[0], SOFT)
    small = big.masks.float().view(14, 64, 3, 64, 3).mean((2, 4))
    assert (found.masks.float() - small).abs().mean() < 4 and hull_iou(found.cameras, found.masks, [0, 7]) > 0.95
    points = torch.rand(100, 3) - 0.5
    assert (found.cameras.project(points) - big.cameras.project(points) / 3).norm(dim=-1).max() < 0.05
    edit(tmp_path / "a", lambda c: [c.pop(name, None) for name in (*values, "camera_model")])
    ignored = read(scan(tmp_path)[0], SOFT)  # what it would be without
    assert (ignored.masks.float() - small).abs().mean() > 2 * (found.masks.float() - small).abs().mean()


def test_frames_of_different_sizes_get_one(table, tmp_path):
    folder = write(tmp_path / "a", table)
    large = pictured(orbit(14, 128, 128, 190.0))
    for i in (3, 4):
        Image.fromarray(straight(large)[i]).save(folder / "train" / f"r_{i}.png")
    found = read(scan(tmp_path)[0], SOFT)
    points = torch.rand(50, 3) - 0.5
    assert (found.cameras.project(points) - table.cameras.project(points)).norm(dim=-1).max() < 0.05
    assert (found.masks[3].float() - table.masks[3]).abs().mean() < 12 and (found.masks[2] == table.masks[2]).all()


def test_pictures_of_another_shape_than_their_camera_are_left_out(table, tmp_path):
    folder = write(tmp_path / "a", table, fields=lambda view: {"fl_x": 95.0, "w": 64, "h": 64} if view is None else {})
    Image.fromarray(straight(table)[2][:, :40].copy()).save(folder / "train" / "r_2.png")
    left = read(scan(tmp_path)[0], SOFT).attributes["left_out"]
    assert (
        list(left) == ["2: ./train/r_2"]
        and "picture is 40x64 pixels, expected its camera's 64x64" in left["2: ./train/r_2"]
    )


@pytest.mark.parametrize(("fields", "expected"), [({}, "shape"), ({"fl_x": 95.0}, "size")])
def test_pictures_that_one_camera_cannot_have_taken_are_left_out(table, tmp_path, fields, expected):
    """No w and h say which of them the camera is for."""
    folder = write(tmp_path / "a", table, fields=(lambda view: fields if view is None else {}) if fields else None)
    pictures = folder / "train"
    Image.fromarray(straight(table)[2]).resize((90, 64)).save(pictures / "r_2.png")
    Image.fromarray(straight(table)[5]).resize((128, 128)).save(pictures / "r_5.png")
    left = read(scan(tmp_path)[0], SOFT).attributes["left_out"]
    assert list(left) == ["2: ./train/r_2", *(["5: ./train/r_5"] if fields else [])], "an angle fits any size"
    assert f"picture is 90x64 pixels and the first one 64x64, expected one {expected}" in left["2: ./train/r_2"]


def test_a_picture_is_taken_once_however_often_it_is_named(table, tmp_path):
    """Else a held-out view might be one of those to train on."""
    folder = write(tmp_path / "a", table)
    edit(folder, lambda c: c["frames"].extend(c["frames"][3:5]))
    found = read(scan(tmp_path)[0], SOFT)
    check(found, table)
    assert list(found.attributes["left_out"]) == ["14: ./train/r_3", "15: ./train/r_4"]
    assert "file_path './train/r_3' is that of frames[3] as well" in found.attributes["left_out"]["14: ./train/r_3"]


def test_stored_pixels_are_the_cameras_whatever_exif_says(wide_table, tmp_path):
    write(tmp_path / "a", wide_table, "transforms.json", fields=of_each_view(wide_table))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for i in range(14):
        Image.fromarray(straight(wide_table)[i]).save(tmp_path / "a" / "train" / f"r_{i}.png", exif=exif)
    plain = read(scan(tmp_path)[0], Options(resolution=72, placing=PLACED))
    assert (plain.masks == square_of(wide_table, "pad")[2]).all()
    for i in range(14):  # stored lying, and upright by its tag
        lying = np.rot90(straight(wide_table)[i], 1).copy()
        Image.fromarray(lying).save(tmp_path / "a" / "train" / f"r_{i}.png", exif=exif)
    assert (read(scan(tmp_path)[0], Options(resolution=72, placing=PLACED)).masks == plain.masks).all()


def test_backslashes_are_slashes(table, tmp_path):
    folder = write(tmp_path / "a", table)
    edit(folder, lambda c: [f.update(file_path=f["file_path"].replace("/", "\\")) for f in c["frames"]])
    check(read(scan(tmp_path)[0], SOFT), table)


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "C:\\x", "train/../../../x", "..\\..\\x"])
@pytest.mark.parametrize("field", ["file_path", "mask_path"])
def test_paths_that_lead_out_are_refused(table, tmp_path, path, field):
    (tmp_path / "secret.png").write_bytes(b"")
    folder = write(tmp_path / "set" / "a", table)
    edit(folder, lambda c: c["frames"][5].update({field: path}))
    with pytest.raises(DataError, match=rf"json: object 'a': frames\[5\]: {field}: .*(leads out of|is absolute)"):
        read(scan(tmp_path / "set")[0], SOFT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(frames=[]), "frames is empty"),
        (lambda c: c.pop("frames"), "field 'frames' is missing"),
        (lambda c: c.pop("camera_angle_x"), r"frames\[0\]: camera_angle_x is None, expected a finite number"),
        (lambda c: c.update(fl_x=0), r"frames\[0\]: focal lengths 0, 0 and size"),
        (lambda c: c.update(camera_model="EQUIRECTANGULAR"), r"camera_model is 'EQUIRECTANGULAR', expected one of"),
        (lambda c: c.update(k4=0.1), r"k4 is 0.1, expected 0: programs do not agree"),
        (lambda c: [f.update(file_path="gone") for f in c["frames"]], r"'gone' does not exist, expected a picture"),
        (lambda c: c["frames"][3].pop("file_path"), r"frames\[3\]: file_path is missing"),
        (lambda c: [f["transform_matrix"][0].__setitem__(3, math.nan) for f in c["frames"]], "NaN or infinite entry"),
        (lambda c: [f.update(transform_matrix=(np.array(f["transform_matrix"]) * [-1, 1, 1, 1]).tolist())
                    for f in c["frames"]], "transform_matrix is left-handed"),
        (lambda c: [f.pop("transform_matrix") for f in c["frames"]], "transform_matrix (is not a table|has shape)"),
    ],
)  # fmt: skip
def test_bad_files_are_named(table, tmp_path, change, message):
    folder = write(tmp_path / "a", table)
    edit(folder, change)
    with pytest.raises(DataError, match=rf"(object )?'a'(.|\n)*{message}"):
        read(scan(tmp_path)[0], SOFT)


def test_one_mirrored_pose_is_left_out_and_named(table, tmp_path):
    folder = write(tmp_path / "a", table)
    edit(folder, lambda c: [row.__setitem__(0, -row[0]) for row in c["frames"][4]["transform_matrix"]])
    found = read(scan(tmp_path)[0], SOFT)
    assert "left-handed (determinant -1)" in found.attributes["left_out"]["4: ./train/r_4"]
    check(found, table, order=[i for i in range(14) if i != 4])
