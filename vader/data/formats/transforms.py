"""`transforms.json` as Blender scripts, NeRF-synthetic, instant-ngp and Nerfstudio write it.

    <object>/transforms.json     or transforms_train.json, ... of which the first of FILES is read
             <file_path>         with or without a suffix, RGB or RGBA
             <mask_path>         or masks/<name of the picture>

`transform_matrix` is camera to world with OpenGL's camera axes (x right, y up, z backward), in a world with z up.
Fields of a frame win over those of the file: `fl_x, fl_y, cx, cy, w, h`, or `camera_angle_x`, which is a full angle in
radians; `camera_model` and `k1 ... k4, p1, p2` for lenses. The centre of the top-left pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from ...rendering.cameras import Cameras
from ..prepared import DataError, read_json
from ..sequence import Sequence
from ..transient import unusable
from .shared.images import SUFFIXES, same_shape
from .shared.lenses import Lens
from .shared.scenes import Options, Places, Scene, View, assemble, folders, inside, rigid, sampled

SIGNS = "folders with transforms.json, or transforms_train.json and its kin"
UP = "z"
POSES = ("camera-to-world", "OpenGL")
FILES = ("transforms_train.json", "transforms_val.json", "transforms_test.json", "transforms.json")
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
Z_UP_TO_Y_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE")
RADIAL = (*PINHOLES, "SIMPLE_RADIAL", "RADIAL", "OPENCV")
FISHEYES = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
OF_A_CAMERA = {"fl_x", "camera_angle_x", "w", "h"}  # fields of a frame with a camera of its own
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def find(folder: Path) -> str | None:
    return next((f"{file} is there" for f in sampled(folder) if (file := _file(f))), None)


def places(folder: Path) -> Places:
    """Folders with such a file. `files["pictures"]` is where file_path starts: a set whose pictures are elsewhere
    replaces it, and `root` with it."""
    listed = ((f, _file(f)) for f in folders(folder))
    return ((str(f.relative_to(folder)), f, {"file": file.name}) for f, file in listed if file)


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read(scene: Scene, options: Options) -> Sequence:
    """Raises DataError for a file without frames, and where a path leads out of the folder that was scanned."""
    file = scene.place / scene.files["file"]
    content = read_json(file, scene.key, ("frames",))
    frames = content["frames"]
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{file}: object {scene.key!r}: frames is empty, expected a list with one entry per view")
    pictures = Path(scene.files.get("pictures", scene.place))
    views, faults, named, first = [], {}, {}, None
    for i, frame in enumerate(frames):
        what = f"{file}: object {scene.key!r}: frames[{i}]"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise DataError(f"{what}: file_path is missing, expected a picture's path")
        picture = picture_at(inside(scene.root, pictures, frame["file_path"], f"{what}: file_path"))
        mask = _mask(scene, frame, pictures, picture, what)
        try:
            if picture is None:
                raise DataError(f"{what}: file_path {frame['file_path']!r} does not exist, expected a picture")
            if (other := named.setdefault(picture, i)) != i:  # or a held-out view might be one of those to train on
                raise DataError(f"{what}: file_path {frame['file_path']!r} is that of frames[{other}] as well")
            to_world = rigid(frame.get("transform_matrix"), f"{what}: transform_matrix")
            k, size, lens = camera({**content, **frame}, what, lambda p=picture, w=what: _size(p, w), options)
            if not frame.keys() & OF_A_CAMERA:
                first = first or size
                _require_alike(size, first, "fl_x" in content, what)
        except DataError as error:
            faults[f"{i}: {frame['file_path']}"] = unusable(error)
            continue
        views.append(
            View(f"{i}: {frame['file_path']}", picture, np.linalg.inv(to_world @ OPENGL), k, size, mask, lens=lens)
        )
    return assemble(scene, views, faults, options)


def _require_alike(size: tuple[int, int], first: tuple[int, int], in_pixels: bool, what: str) -> None:
    """Raises DataError where a picture is of another shape than the first one, or, if their focal length is given in
    pixels, of another size: one camera cannot have taken both."""
    if size != first and (in_pixels or not same_shape(size, first)):
        (h, w), (height, width) = size, first
        raise DataError(
            f"{what}: picture is {w}x{h} pixels and the first one {width}x{height}, expected one "
            f"{'size' if in_pixels else 'shape'}: all frames have one camera, and no w and h say for which"
        )


def picture_at(path: Path) -> Path | None:
    """The file that a file_path means, with or without its suffix."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return path
    candidates = [
        path.with_name(path.name + s) for suffix in (".png", ".jpg", *SUFFIXES) for s in (suffix, suffix.upper())
    ]
    return next((c for c in candidates if c.is_file()), None)


def _mask(scene: Scene, frame: dict[str, Any], pictures: Path, picture: Path | None, what: str) -> Path | None:
    if "mask_path" in frame:
        return inside(scene.root, pictures, str(frame["mask_path"]), f"{what}: mask_path")
    if picture is None:
        return None
    places = [scene.place / "masks" / picture.name, scene.place / "masks" / f"{picture.name}.png"]
    places += [scene.place / "masks" / f"{picture.stem}{suffix}" for suffix in (".png", ".jpg")]
    return next((place for place in places if place.is_file()), None)


def _size(picture: Path, what: str) -> tuple[int, int]:
    """(height, width) from a picture's head."""
    try:
        with Image.open(picture) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: {picture} cannot be decoded, expected a picture ({error})") from error


# ---------------------------------------------------------------------------------------- one camera


def camera(
    fields: Mapping[str, Any], what: str, size_of=None, options: Options | None = None
) -> tuple[np.ndarray, tuple[int, int], Lens]:
    """Intrinsics (3, 3), (height, width) and lens of a frame's fields, those of the file filled in.

    size_of: called for (height, width) where the fields have none. Raises DataError for a field that is missing, no
    finite number, or of a lens that is not known.
    """
    options = Options() if options is None else options

    def number(key: str, default: float | None = None) -> float:
        value = fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{what}: {key} is {value!r}, expected a finite number")
        return float(value)

    if ("w" in fields and "h" in fields) or size_of is None:
        height, width = int(number("h")), int(number("w"))
    else:
        height, width = size_of()
    if "fl_x" in fields:
        fx = number("fl_x")
        fy = number("fl_y", fx)
    elif "camera_angle_x" not in fields and options.focal is not None:
        fx = fy = options.focal
    else:
        fx = fy = 0.5 * width / math.tan(0.5 * number("camera_angle_x"))
        if "camera_angle_y" in fields:
            fy = 0.5 * height / math.tan(0.5 * number("camera_angle_y"))
    if fx <= 0 or fy <= 0 or height <= 0 or width <= 0:
        raise DataError(f"{what}: focal lengths {fx:g}, {fy:g} and size {width}x{height}, expected positive numbers")
    centre = (width / 2, height / 2)
    cx, cy = centre if options.centred else (number("cx", centre[0]), number("cy", centre[1]))
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), (height, width), _lens(fields, number, what)


def _lens(fields: Mapping[str, Any], number, what: str) -> Lens:
    model = fields.get("camera_model", "OPENCV")
    k = tuple(number(name, 0.0) for name in ("k1", "k2", "k3", "k4"))
    if model in FISHEYES or fields.get("is_fisheye"):
        return Lens(k, fisheye=True)
    if model not in RADIAL:
        known = ", ".join((*RADIAL, *FISHEYES))
        raise DataError(f"{what}: camera_model is {model!r}, expected one of {known}")
    if k[3] != 0:
        raise DataError(
            f"{what}: k4 is {k[3]}, expected 0: programs do not agree on its meaning, but for fisheye lenses"
        )
    return Lens(k[:3], (number("p1", 0.0), number("p2", 0.0)))


# ---------------------------------------------------------------------------------------- cameras alone


def to_transforms(cameras: Cameras, up: Literal["y", "z"] = "z") -> dict[str, Any]:
    """Content of a transforms.json in a world with that axis up: one frame per view, with its own intrinsics."""
    matrix = cameras.world_to_camera.double()
    world = Z_UP_TO_Y_UP if up == "z" else torch.eye(3, dtype=torch.float64)
    rotation = world.mT @ (matrix[:, :, :3].mT * torch.from_numpy(np.diag(OPENGL)[:3].copy()))
    centre = (world.mT @ cameras.centres().double()[..., None])[..., 0]
    frames = []
    for view in range(len(cameras)):
        k = cameras.intrinsics[view].tolist()
        rows = torch.cat([rotation[view], centre[view, :, None]], dim=1).tolist()
        fields = {"fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2]}
        frames.append({**fields, "transform_matrix": [*rows, [0.0, 0.0, 0.0, 1.0]]})
    return {"w": cameras.width, "h": cameras.height, "frames": frames}


def from_transforms(
    content: Mapping[str, Any], source: str, up: Literal["y", "z"] = "z", size: tuple[int, int] | None = None
) -> Cameras:
    """Cameras of a transforms.json whose pictures are not read, and so cannot be freed of distortion.

    Args:
        content: the parsed file: `frames` with a camera-to-world `transform_matrix` (4, 4) each, and intrinsics.
        source: the file's name, for error messages.
        up: the vertical axis of its world; 'z' (Blender) is turned into y.
        size: (height, width) where the file has no w and h, as in NeRF-synthetic.

    Raises:
        DataError: a missing or malformed field, lens distortion, views of different sizes, matrices that are no poses.
    """
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{source}: frames is missing or empty, expected a list with one entry per view")
    poses, intrinsics, sizes = [], [], []
    for i, frame in enumerate(frames):
        what = f"{source}: frames[{i}]"
        fields = {**content, **frame}
        k, found, lens = camera(fields, what, None if size is None else lambda: size)
        if not lens.ideal:
            bent = next((name for name in DISTORTION if fields.get(name)), "camera_model")
            raise DataError(f"{what}: {bent} is {fields.get(bent)}, expected undistorted images (0)")
        poses.append(np.linalg.inv(rigid(frame.get("transform_matrix"), f"{what}: transform_matrix") @ OPENGL))
        intrinsics.append(k)
        sizes.append(found)
    if len(set(sizes)) > 1:
        raise DataError(f"{source}: views have sizes {sorted(set(sizes))}, expected one (height, width)")
    world = Z_UP_TO_Y_UP if up == "z" else torch.eye(3, dtype=torch.float64)
    pose = torch.from_numpy(np.stack(poses))[:, :3]
    world_to_camera = torch.cat([pose[:, :, :3] @ world.mT, pose[:, :, 3:]], dim=-1)
    return Cameras(world_to_camera.float(), torch.from_numpy(np.stack(intrinsics)).float(), *sizes[0]).validate(source)
