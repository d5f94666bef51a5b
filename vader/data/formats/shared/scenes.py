"""The base of all formats: an object on disk (`Scene`), its posed pictures (`View`) and how to read it (`Options`).

A reader of posed pictures lists an object's views, and `assemble` makes a Sequence of them: one picture at a time is
decoded, masked, composited on black, freed of distortion, made square and scaled, and only the small result is kept.
Its cameras are in the world of the files, float64; `vader.data.formats.shared.normalise` moves it into the cube.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....rendering.cameras import Cameras
from ....settings.checks import require
from ...prepared import DataError
from ...sequence import Sequence
from ...transient import unusable
from . import images
from .folders import folders as folders
from .folders import inside as inside
from .folders import require_folder as require_folder
from .folders import sampled as sampled
from .lenses import Lens, Unwarper

BACKGROUNDS = ("black", "white")
UPS = ("cameras", "x", "-x", "y", "-y", "z", "-z")
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "val": "test", "valid": "test"}
SHOWN = 3  # reasons in an error message


@dataclass(frozen=True)
class Placing:
    """Where the object is in the world of its files: x_cube = scale * turn (x - centre). What is None is found out.

    centre (3,) and scale: by the visual hull of the masks. up: the world's axis that points up ("y", "-z", ...), or
    "cameras", the mean of the cameras' own; None is the format's habit.
    """

    centre: tuple[float, float, float] | None = None
    scale: float | None = None
    up: str | None = None


@dataclass(frozen=True)
class Options:
    """How objects are read. Every field has a default that fits data which says all about itself."""

    resolution: int = 128
    fit: str = "pad"  # "pad": black beside the shorter side; "crop": the central square (see `images.Square`)
    views: int | None = None  # exactly so many, spread evenly over those there are; None: all
    least_share: float = 0.5  # an object of which fewer views can be used is an error
    background: str | None = None  # "white" or "black": where no mask is given, the object has other colours
    mask_threshold: int | None = None  # masks at least so high are 255, others 0; None keeps soft masks
    premultiplied: bool | None = None  # RGBA colours are multiplied by alpha; None looks
    focal: float | None = None  # in stored pixels, where the files have none
    centred: bool = False  # the principal point is the picture's centre, whatever the files say
    placing: Placing = Placing()
    masker: Callable[[np.ndarray], np.ndarray] | None = None  # (h, w, 3) -> (h, w) uint8, where no mask is given
    cameras: Callable[[str], Cameras] | None = None  # of an object's key; for 3D models, which come without
    supersampling: int = 2  # of 3D models
    frames: int | None = None  # of videos: so many, evenly spaced in time; None: all
    most_frames: int | None = None  # of videos: of longer ones so many, evenly spaced in time
    cache: Path | None = None  # where cameras that were found are kept, for photographs; None: `data_root()`

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        require(self.resolution >= 1, f"resolution is {self.resolution}, expected at least 1")
        require(self.fit in images.FITS, f"fit is {self.fit!r}, expected one of {images.FITS}")
        require(self.background in (None, *BACKGROUNDS), f"background is {self.background!r}, expected {BACKGROUNDS}")
        require(0 < self.least_share <= 1, f"least_share is {self.least_share}, expected in (0, 1]")
        require(self.placing.up in (None, *UPS), f"up is {self.placing.up!r}, expected one of {UPS}")
        scale = self.placing.scale
        require(scale is None or scale > 0, f"scale is {scale}, expected a positive number")
        require(self.focal is None or self.focal > 0, f"focal is {self.focal}, expected a positive number of pixels")
        for name in ("views", "frames", "most_frames"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, expected at least 1")


@dataclass(frozen=True)
class Scene:
    """One object on disk, cheap to list: nothing of it has been opened."""

    key: str
    format: str
    place: Path  # its folder, or its file
    root: Path  # no file outside of this folder is opened for it
    split: str = "train"
    caption: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)  # what the format's reader wants to know again
    placing: Placing = Placing()  # where the data say so

    @property
    def where(self) -> str:
        """What messages begin with."""
        return f"{self.place}: object {self.key!r}"


@dataclass(frozen=True, eq=False)
class View:
    """One posed picture, not opened yet."""

    name: str
    picture: Path
    world_to_camera: np.ndarray  # (3, 4) or (4, 4) float64
    intrinsics: np.ndarray  # (3, 3) float64, pixels of a picture of `size`
    size: tuple[int, int]  # (h, w); a picture of the same shape and another size has its intrinsics scaled
    mask: Path | None = None
    mask_levels: tuple[int, int] = (0, 255)  # levels up to the first are 0, from the second on 255
    lens: Lens = Lens()


# ---------------------------------------------------------------------------------------- listing

Places = Iterator[tuple[str, Path, dict[str, Any]]]  # path relative to the root, place, and Scene.files


def make_scenes(format: str, root: Path, places: dict[str, tuple[Path, dict[str, Any]]]) -> list[Scene]:
    """Scenes of places by their path relative to `root`, in natural order (`make_scene`).

    Raises DataError where two objects would have one key.
    """
    scenes: dict[str, Scene] = {}
    for relative in sorted(places, key=images.natural):
        scene = make_scene(format, root, relative, *places[relative])
        if scene.key in scenes:
            raise same_key(scene, scenes[scene.key])
        scenes[scene.key] = scene
    return list(scenes.values())


def make_scene(format: str, root: Path, relative: str, place: Path, files: dict[str, Any]) -> Scene:
    """A place with a key made of its path relative to `root`. A part of the path that names a split ("train",
    "chairs_test") is taken for the split and leaves the key."""
    split, key = split_and_key(relative, root.name)
    return Scene(key, format, place, root, split, files=files)


def same_key(scene: Scene, other: Scene) -> DataError:
    """The error of two objects that would have one key."""
    return DataError(f"{scene.place}: its key {scene.key!r} is that of {other.place} as well, expected other names")


def split_and_key(relative: str, root_name: str) -> tuple[str, str]:
    """'chairs_train/1a2b' -> ("train", "1a2b"); an object at the root has the root's name as its key."""
    parts = [p for p in Path(relative).parts if p not in (".", "")]
    split, kept = "train", []
    for part in parts:
        word = re.split(r"[_-]", part.lower())[-1]
        if word in SPLIT_NAMES and part != parts[-1]:
            split = SPLIT_NAMES[word]
        else:
            kept.append(part)
    return split, key_of("-".join(kept or [root_name]))


def key_of(name: str) -> str:
    """A file name as the key of an object: other characters than letters, digits, '.', '_' and '-' become '_'."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("._-") or "_0"


# ---------------------------------------------------------------------------------------- from views to a Sequence


def rigid(matrix: Any, what: str) -> np.ndarray:
    """A pose (3, 4) or (4, 4) as (4, 4) float64, its rotation exactly orthonormal. Raises DataError where it is not
    finite, mirrored (determinant -1), scaled or sheared."""
    try:
        values = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is not a table of numbers, expected (4, 4)") from error
    if values.shape not in ((3, 4), (4, 4)):
        raise DataError(f"{what} has shape {values.shape}, expected (4, 4)")
    if not np.isfinite(values).all():
        raise DataError(f"{what} has a NaN or infinite entry, expected finite numbers")
    if values.shape == (4, 4) and np.abs(values[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise DataError(f"{what} has {values[3].tolist()} as its last row, expected 0 0 0 1")
    rotation = values[:3, :3]
    u, s, v = np.linalg.svd(rotation)
    if np.abs(s - 1).max() > 2e-3:
        raise DataError(f"{what} is no rotation: its axes are {s.round(4).tolist()} long, expected 1")
    if np.linalg.det(rotation) < 0:
        raise DataError(f"{what} is left-handed (determinant -1), expected a rotation; is an axis mirrored?")
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = u @ v, values[:3, 3]
    return result


def assemble(scene: Scene, views: list[View], faults: dict[str, str], options: Options) -> Sequence:
    """Sequence of the views that can be used, cameras in the world of the files (float64), in the order of `views`.

    faults: views of the object that its reader found unusable, and why. They and those whose picture or mask cannot be
    used are named in attributes["left_out"]. Raises DataError where less than `options.least_share` of all views, or
    fewer than `options.views`, are left.
    """
    total, faults = len(views) + len(faults), dict(faults)
    require_share(scene, len(views), total, faults, options)
    wanted = options.views or len(views)
    done: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    develop = _Developer(scene, options)
    for number in spread(len(views), wanted):
        try:
            done[number] = develop(views[number])
        except DataError as error:
            faults[views[number].name] = unusable(error)
            require_share(scene, total - len(faults), total, faults, options)
        if len(done) == wanted:
            break
    if len(done) < (options.views or 1):
        raise DataError(f"{scene.where}: {len(done)} usable views, expected {options.views or 'some'}{_why(faults)}")
    order = sorted(done)
    pictures, masks, intrinsics = zip(*(done[i] for i in order), strict=True)
    cameras = Cameras(
        torch.from_numpy(np.stack([views[i].world_to_camera[:3] for i in order])),
        torch.from_numpy(np.stack(intrinsics)),
        options.resolution,
        options.resolution,
    )
    return Sequence(
        key=scene.key,
        images=torch.from_numpy(np.stack(pictures)),
        masks=torch.from_numpy(np.stack(masks)),
        cameras=cameras,
        split=scene.split,
        caption=scene.caption,
        attributes=scene.attributes | {"format": scene.format} | ({"left_out": faults} if faults else {}),
    ).validate(scene.place)


def spread(count: int, wanted: int) -> list[int]:
    """0 ... count - 1: first `wanted` evenly spaced ones, then the others, which stand in for those that fail."""
    first = [i * count // wanted for i in range(min(wanted, count))] if wanted < count else list(range(count))
    return first + sorted(set(range(count)) - set(first))


def require_share(scene: Scene, usable: int, total: int, faults: dict[str, str], options: Options) -> None:
    """Raises DataError where fewer than `options.least_share` of an object's views can be used; `faults` says why."""
    if total == 0:
        raise DataError(f"{scene.where}: no views, expected pictures with cameras")
    if usable < options.least_share * total:
        raise DataError(
            f"{scene.where}: {usable} of {total} views can be used, expected at least "
            f"{math.ceil(options.least_share * total)}{_why(faults)}"
        )


def _why(faults: dict[str, str]) -> str:
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "".join(f"\n  {line}" for line in list(faults.values())[:SHOWN] + more)


def coverage(view: View, picture: images.Picture, scene: Scene, options: Options) -> np.ndarray:
    """Mask (h, w) uint8: a file wins, then alpha that varies, then the background's colour, then the mask step."""
    what = f"{view.picture}: object {scene.key!r}"
    if view.mask is not None:
        where, hard = f"{view.mask}: object {scene.key!r}: mask", options.mask_threshold is not None
        mask = images.open_mask(view.mask, where, picture.size, nearest=hard)
    elif picture.alpha is not None and picture.alpha.min() < 255:
        mask = picture.alpha
    elif options.background is not None:
        level = {"black": 0, "white": 255}[options.background]
        mask = np.where((picture.colour != level).any(-1), 255, 0).astype(np.uint8)
    elif options.masker is not None:
        mask = options.masker(picture.colour)
        if mask.shape != picture.size or mask.dtype != np.uint8:
            raise DataError(f"{what}: mask is {mask.shape} {mask.dtype}, expected {picture.size} uint8")
    else:
        raise DataError(f"{what}: no mask: expected one beside it, a picture with alpha, or background given")
    low, high = view.mask_levels
    mask = np.where(mask <= low, 0, np.where(mask >= high, 255, mask)).astype(np.uint8)
    if options.mask_threshold is not None:
        mask = np.where(mask >= options.mask_threshold, 255, 0).astype(np.uint8)
    return mask


class _Developer:
    """From a View to its image, mask and intrinsics at the asked-for resolution."""

    def __init__(self, scene: Scene, options: Options) -> None:
        self.scene, self.options = scene, options
        self.unwarper: tuple[Any, Unwarper] | None = None  # of the last camera: most objects have one

    def __call__(self, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        what = f"{view.picture}: object {self.scene.key!r}"
        picture = images.open_picture(view.picture, what, view.size, self.options.premultiplied)
        h, w = picture.size
        if not images.same_shape((h, w), view.size):
            raise DataError(f"{what}: picture is {w}x{h} pixels, expected its camera's {view.size[1]}x{view.size[0]}")
        mask = coverage(view, picture, self.scene, self.options)
        if mask.max() == 0:
            raise DataError(f"{what}: mask is empty, expected some of the object")
        k = np.diag([w / view.size[1], h / view.size[0], 1.0]) @ view.intrinsics
        colour = images.on_black(picture.colour, mask)
        if not view.lens.ideal:
            unwarper = self._unwarper(view.lens, k, h, w)
            colour, mask = unwarper.apply(colour), unwarper.apply(mask)
        square, resolution = images.Square.of(h, w, self.options.fit), self.options.resolution
        mask = square.apply(mask, resolution)
        if mask.max() == 0:
            raise DataError(f"{what}: nothing of the mask is left in the {self.options.fit} square, expected some")
        return square.apply(colour, resolution), mask, square.intrinsics(k, resolution)

    def _unwarper(self, lens: Lens, k: np.ndarray, h: int, w: int) -> Unwarper:
        name = (lens, k.tobytes(), h, w)
        if self.unwarper is None or self.unwarper[0] != name:
            self.unwarper = (name, Unwarper.of(lens, k, h, w))
        return self.unwarper[1]
