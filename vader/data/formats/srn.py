"""Posed images as the SRN data sets have them, in which ShapeNet renderings and ABO Tables are handed round.

    <split>/<object>/intrinsics.txt       "f cx cy 0", two lines that mean nothing here, "height width"
                     rgb/000000.png       on white, no alpha
                     pose/000000.txt      camera to world, 16 numbers on 1 or 4 lines

Camera axes are OpenCV's. Masks: what is not white, or a `mask` folder, or alpha. Source: the loader of SRN (Sitzmann et
al., 2019) as SSDNeRF (Chen et al., 2023) uses it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..prepared import DataError
from ..sequence import Sequence
from ..transient import unusable
from .shared.images import open_picture, picture_files
from .shared.scenes import Options, Places, Scene, View, assemble, folders, rigid, sampled

SIGNS = "folders with rgb/*.png, pose/*.txt and intrinsics.txt"
UP = "y"
POSES = ("camera-to-world", "OpenCV")


def find(folder: Path) -> str | None:
    return next((f"{f} has rgb/ and pose/" for f in sampled(folder) if _is_object(f)), None)


def places(folder: Path) -> Places:
    return ((str(f.relative_to(folder)), f, {}) for f in folders(folder) if _is_object(f))


def extra_files(scene: Scene) -> list[Path]:
    """Files outside of an object's folder that decide what it is."""
    above = [f for f in scene.place.parents if f.is_relative_to(scene.root)]
    own = (scene.place / "intrinsics.txt").is_file()
    return [] if own else [f / "intrinsics.txt" for f in above if (f / "intrinsics.txt").is_file()][:1]


def _is_object(folder: Path) -> bool:
    return (folder / "rgb").is_dir() and (folder / "pose").is_dir()


def read(scene: Scene, options: Options) -> Sequence:
    """Raises DataError for an object without intrinsics (give `options.focal`), without pictures or poses."""
    intrinsics, size = _intrinsics(scene, options)
    poses = {number_of(f): f for f in (scene.place / "pose").glob("*.txt")}
    masks = {number_of(f): f for name in ("mask", "masks") for f in _pictures(scene.place / name)}
    views, faults = [], {}
    for picture in _pictures(scene.place / "rgb"):
        pose = poses.get(number_of(picture))
        try:
            if pose is None:
                raise DataError(f"{picture}: object {scene.key!r}: no pose of that number in pose/, expected one")
            to_world = read_pose(pose, scene.key)
        except DataError as error:
            faults[picture.name] = unusable(error)
            continue
        mask = masks.get(number_of(picture))
        views.append(View(picture.name, picture, np.linalg.inv(to_world), intrinsics, size, mask))
    if options.background is None:
        options = replace(options, background="white")
    return assemble(scene, views, faults, options)


def _pictures(folder: Path) -> list[Path]:
    return picture_files(folder) if folder.is_dir() else []


def number_of(file: Path) -> int | str:
    """The last integer in a file's name, by which pictures and poses belong together; the stem where it has none."""
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else file.stem


def read_pose(file: Path, key: str) -> np.ndarray:
    """16 numbers in a text file, camera to world, (4, 4)."""
    what = f"{file}: object {key!r}: pose"
    try:
        values = np.array(file.read_text(encoding="utf-8").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise DataError(f"{what} cannot be read, expected 16 numbers ({error})") from error
    if values.size != 16:
        raise DataError(f"{what} has {values.size} numbers, expected 16")
    return rigid(values.reshape(4, 4), what)


def _intrinsics(scene: Scene, options: Options) -> tuple[np.ndarray, tuple[int, int]]:
    """(3, 3) and (height, width), from intrinsics.txt of the object or of a folder above it, or `options.focal`."""
    above = [f for f in (scene.place, *scene.place.parents) if f.is_relative_to(scene.root)]
    file = next((f / "intrinsics.txt" for f in above if (f / "intrinsics.txt").is_file()), None)
    if file is None:
        return _given(scene, options)
    what = f"{file}: object {scene.key!r}"
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        focal, cx, cy = (float(x) for x in lines[0][:3])
        height, width = (int(float(x)) for x in lines[-1])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{what}: expected 'f cx cy 0' in its first line and 'height width' in its last") from error
    if not (np.isfinite([focal, cx, cy]).all() and focal > 0 and height > 0 and width > 0):
        raise DataError(f"{what}: f, cx, cy, height, width are {focal, cx, cy, height, width}, expected positive ones")
    if options.centred:
        cx, cy = width / 2, height / 2
    return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]]), (height, width)


def _given(scene: Scene, options: Options) -> tuple[np.ndarray, tuple[int, int]]:
    if options.focal is None:
        raise DataError(
            f"{scene.place / 'intrinsics.txt'}: object {scene.key!r}: file is missing, expected 'f cx cy 0' and "
            "'height width', or the focal length given"
        )
    pictures = _pictures(scene.place / "rgb")
    if not pictures:
        raise DataError(f"{scene.place / 'rgb'}: object {scene.key!r}: no pictures, expected some")
    h, w = open_picture(pictures[0], f"{pictures[0]}: object {scene.key!r}").size
    return np.array([[options.focal, 0, w / 2], [0, options.focal, h / 2], [0, 0, 1]]), (h, w)
