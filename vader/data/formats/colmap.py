"""COLMAP's models, binary and text, with the pictures they were made from; MVImgNet's layout is one of them.

    <object>/images/<name>            or input/, rgb/
             sparse/0/{cameras,images}.bin or .txt    or sparse/, or the object's folder itself
             masks/<name>.png         or mask/, or <root>/mask/<path of the object>/<name>.png

Poses are world to camera with OpenCV's axes: a quaternion (w, x, y, z) and a translation. The world has no preferred
axes: up is the mean of the cameras' own, centre and scale come from the masks. Where there are several models the one
with most images is read, and attributes["models"] says so. Binary layout: little-endian, as in COLMAP's
`reconstruction_io`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..prepared import DataError
from ..sequence import Sequence
from ..transient import unusable
from .shared.images import natural, picture_files
from .shared.lenses import Lens
from .shared.scenes import Options, Places, Scene, View, assemble, folders, inside, sampled

SIGNS = "folders with sparse/0/cameras.bin and images.bin (or .txt), and images/"
UP = "cameras"
POSES = ("world-to-camera", "OpenCV")
IMAGES = ("images", "input", "rgb")
STRAY = "bg_removed"  # pictures that some releases of MVImgNet have beside the photographs


def _radial(p: list[float]) -> Lens:
    return Lens(tuple(p))


def _tangential(p: list[float]) -> Lens:
    return Lens((*p[:2], *p[4:]), (p[2], p[3]))


def _fisheye(p: list[float]) -> Lens:
    return Lens(tuple(p), fisheye=True)


# id -> name, number of focal lengths, number of other parameters after cx, cy, and the lens that they make
MODELS: dict[int, tuple[str, int, int, Callable[[list[float]], Lens]]] = {
    0: ("SIMPLE_PINHOLE", 1, 0, _radial),
    1: ("PINHOLE", 2, 0, _radial),
    2: ("SIMPLE_RADIAL", 1, 1, _radial),
    3: ("RADIAL", 1, 2, _radial),
    4: ("OPENCV", 2, 4, _tangential),
    5: ("OPENCV_FISHEYE", 2, 4, _fisheye),
    6: ("FULL_OPENCV", 2, 8, _tangential),
    8: ("SIMPLE_RADIAL_FISHEYE", 1, 1, _fisheye),
    9: ("RADIAL_FISHEYE", 1, 2, _fisheye),
}
IDS = {name: number for number, (name, *_) in MODELS.items()}


@dataclass(frozen=True, eq=False)
class Camera:
    intrinsics: np.ndarray  # (3, 3)
    size: tuple[int, int]  # (height, width)
    lens: Lens


@dataclass(frozen=True, eq=False)
class Image:
    name: str
    camera: int
    quaternion: np.ndarray  # (4,), w first
    translation: np.ndarray  # (3,)

    def world_to_camera(self, what: str) -> np.ndarray:
        """(3, 4). Raises DataError for a quaternion or translation that is none."""
        length = np.linalg.norm(self.quaternion)
        if not (np.isfinite(self.quaternion).all() and np.isfinite(self.translation).all() and length > 1e-6):
            raise DataError(
                f"{what}: pose of {self.name!r} is {self.quaternion.tolist()}, {self.translation.tolist()}, "
                "expected a finite quaternion that is not zero, and a finite translation"
            )
        w, x, y, z = self.quaternion / length
        rotation = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return np.column_stack([rotation, self.translation])


# ---------------------------------------------------------------------------------------- objects


def find(folder: Path) -> str | None:
    return next((f"{f} has a COLMAP model" for f in sampled(folder) if _is_object(f)), None)


def places(folder: Path) -> Places:
    accepted: Path | None = None
    for place in folders(folder):
        if (accepted is None or not place.is_relative_to(accepted)) and _is_object(place):
            accepted = place  # what it holds comes next, and is no object
            yield str(place.relative_to(folder)), place, {}


def extra_files(scene: Scene) -> list[Path]:
    """Files outside of an object's folder that decide what it is: masks beside all objects."""
    beside = [scene.root / word / scene.place.relative_to(scene.root) for word in ("masks", "mask")]
    return [f for place in beside if scene.place != scene.root and place.is_dir() for f in place.rglob("*")]


def _is_object(folder: Path) -> bool:
    return (folder / "sparse").is_dir() or (folder / "colmap" / "sparse").is_dir() or _model_file(folder) is not None


def _model_file(folder: Path, what: str = "cameras") -> Path | None:
    return next((f for suffix in (".bin", ".txt") if (f := folder / f"{what}{suffix}").is_file()), None)


def read(scene: Scene, options: Options) -> Sequence:
    """Raises DataError where no model is there or it cannot be read, and where too few of the pictures are placed."""
    counts, best = _models(scene)
    cameras = _read(best, "cameras", scene.key, _cameras_binary, _cameras_text)
    placed = _read(best, "images", scene.key, _images_binary, _images_text)
    folder = next((scene.place / n for n in IMAGES if (scene.place / n).is_dir()), scene.place)
    what = f"{_model_file(best, 'images')}: object {scene.key!r}"
    views, faults = [], {}
    for image in sorted(placed, key=lambda i: natural(i.name)):
        picture = inside(scene.root, folder, image.name, f"{what}: image")
        try:
            if not picture.is_file():
                raise DataError(f"{picture}: object {scene.key!r}: file is missing, expected a picture")
            if image.camera not in cameras:
                raise DataError(f"{what}: camera {image.camera} of {image.name!r} is not in the list of cameras")
            pose, camera = image.world_to_camera(what), cameras[image.camera]
        except DataError as error:
            faults[image.name] = unusable(error)
            continue
        k = camera.intrinsics.copy()
        if options.centred:
            k[:2, 2] = camera.size[1] / 2, camera.size[0] / 2
        mask = _mask(scene, folder, image.name)
        views.append(View(image.name, picture, pose, k, camera.size, mask, lens=camera.lens))
    names = {i.name for i in placed}
    for picture in picture_files(folder):
        if picture.name not in names and STRAY not in picture.name:
            faults[picture.name] = f"{picture}: object {scene.key!r}: the model has no pose of it"
    sequence = assemble(scene, views, faults, options)
    if len(counts) > 1:
        sequence.attributes["models"] = counts
        sequence.attributes["model"] = str(best.relative_to(scene.place))
    return sequence


def placed_names(scene: Scene) -> set[str]:
    """Names of the pictures that the model with most images has poses of."""
    return {image.name for image in _read(_models(scene)[1], "images", scene.key, _images_binary, _images_text)}


def _models(scene: Scene) -> tuple[dict[str, int], Path]:
    """Number of images of each model by its path in the object, and the folder of the largest."""
    places = [scene.place, scene.place / "sparse", scene.place / "colmap" / "sparse"]
    places += [f for p in places[1:] if p.is_dir() for f in sorted(p.iterdir(), key=lambda f: natural(f.name))]
    models = [f for f in places if f.is_dir() and _model_file(f) and _model_file(f, "images")]
    if not models:
        raise DataError(f"{scene.place / 'sparse'}: object {scene.key!r}: no model, expected cameras and images there")
    counts = {
        str(f.relative_to(scene.place)): len(_read(f, "images", scene.key, _images_binary, _images_text))
        for f in models
    }
    largest = max(counts, key=counts.__getitem__)
    return counts, scene.place / largest


def _mask(scene: Scene, folder: Path, name: str) -> Path | None:
    relative = scene.place.relative_to(scene.root)
    places = [base for word in ("masks", "mask") for base in (scene.place / word, scene.root / word / relative)]
    if folder == scene.place:
        places = places[:1]
    stem = Path(name).with_suffix("")
    names = (f"{name}.png", name, f"{stem}.png", f"{stem}.jpg")
    return next((place / n for place in places for n in names if (place / n).is_file()), None)


# ---------------------------------------------------------------------------------------- files of a model


def _read(folder: Path, what: str, key: str, binary: Callable, text: Callable) -> Any:
    file = _model_file(folder, what)
    where = f"{file}: object {key!r}"
    try:
        return binary(_Bytes(file.read_bytes()), where) if file.suffix == ".bin" else text(_lines(file), where)
    except (struct.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: file ends too early, or is no COLMAP {what} ({error})") from error
    except (ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: a line is not as COLMAP writes {what} ({error})") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error})") from error


def _camera(model: int | None, name: str, size: tuple[int, int], p: list[float], where: str) -> Camera:
    if model is None:
        known = ", ".join(IDS)
        raise DataError(f"{where}: camera model {name} is not supported, expected one of {known}")
    _, focals, others, lens = MODELS[model]
    if len(p) != focals + 2 + others or not np.isfinite(p).all() or min(p[:focals]) <= 0 or min(size) <= 0:
        raise DataError(
            f"{where}: camera {name} of {size[1]}x{size[0]} pixels has parameters {p}, "
            f"expected {focals + 2 + others} finite numbers with positive focal lengths"
        )
    cx, cy = p[focals : focals + 2]
    k = np.array([[p[0], 0, cx], [0, p[focals - 1], cy], [0, 0, 1.0]])
    return Camera(k, size, lens(p[focals + 2 :]))


class _Bytes:
    """Reads little-endian values one after the other; struct.error at the end."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.content, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def name(self) -> str:
        end = self.content.find(b"\0", self.at)
        if end < 0:
            raise struct.error("a name has no end")
        name, self.at = self.content[self.at : end].decode("utf-8"), end + 1
        return name

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.content):
            raise struct.error(f"{self.at} bytes expected, {len(self.content)} there")


def _cameras_binary(file: _Bytes, where: str) -> dict[int, Camera]:
    cameras = {}
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("iiQQ")
        if model not in MODELS:
            _camera(None, f"number {model}", (height, width), [], where)
        name, focals, others, _ = MODELS[model]
        parameters = list(file.take(f"{focals + 2 + others}d"))
        cameras[number] = _camera(model, name, (height, width), parameters, where)
    return cameras


def _images_binary(file: _Bytes, where: str) -> list[Image]:
    images = []
    for _ in range(file.take("Q")[0]):
        _, *pose, camera = file.take("i7di")
        name = file.name()
        file.skip(24 * file.take("Q")[0])  # points: x, y and the number of a 3D point
        images.append(Image(name, camera, np.array(pose[:4]), np.array(pose[4:])))
    return images


def _lines(file: Path) -> list[str]:
    """Without comments. Empty lines stay: an image without points has one."""
    return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _cameras_text(lines: list[str], where: str) -> dict[int, Camera]:
    cameras = {}
    for line in lines:
        if line.strip():
            number, name, width, height, *parameters = line.split()
            size = (int(height), int(width))
            cameras[int(number)] = _camera(IDS.get(name), name, size, [float(p) for p in parameters], where)
    return cameras


def _images_text(lines: list[str], where: str) -> list[Image]:
    images = []
    for line in lines[::2]:
        if not line.strip():
            break
        _, *pose, camera, name = line.split(maxsplit=9)
        values = np.array([float(p) for p in pose])
        images.append(Image(name.strip(), int(camera), values[:4], values[4:]))
    return images
