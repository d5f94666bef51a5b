"""Which pictures an object on disk has, and where its reader looks for a mask of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ...settings.checks import ConfigError
from ..formats import colmap, srn, transforms, videos
from ..formats.shared.images import SUFFIXES, natural, open_picture, picture_files
from ..formats.shared.scenes import Scene, inside
from ..prepared import DataError, read_json

MASKS = ("masks", "mask")
UPRIGHT = ("videos", "photographs")  # formats without cameras, whose readers turn pictures upright
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shot:
    """A picture of an object. mask: where one belongs; given: whether one is there, or the data say where it is."""

    picture: Path
    mask: Path
    given: bool


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size`, the last one shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def shots(scene: Scene) -> list[Shot]:
    """The pictures of an object in natural order. Raises ConfigError for a format that brings its own masks or has no
    pictures, and DataError for an object without pictures."""
    if scene.format not in LAYOUTS:
        raise ConfigError(f"{scene.where} is of format {scene.format}, expected one of {', '.join(LAYOUTS)}")
    found = list(LAYOUTS[scene.format](scene))
    if not found:
        raise DataError(f"{scene.where}: no pictures, expected some")
    return found


def open_shot(scene: Scene, picture: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour (h, w, 3) uint8 and alpha of a picture, None where it has none or it is opaque everywhere.

    Turned as its reader turns it: posed pictures as they are stored, frames of videos and photographs upright.
    """
    what = f"{picture}: object {scene.key!r}"
    opened = open_picture(picture, what, None if scene.format in UPRIGHT else _stored_size(picture, what))
    alpha = opened.alpha if opened.alpha is not None and opened.alpha.min() < 255 else None
    return opened.colour, alpha


def _stored_size(picture: Path, what: str) -> tuple[int, int]:
    try:
        with Image.open(picture) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: cannot be decoded, expected a picture ({error})") from error


def first_view(scene: Scene) -> np.ndarray:
    """An object's first picture, (h, w, 3) uint8, on black where it has alpha."""
    if scene.place.is_file() and scene.format in UPRIGHT:
        return next(videos.stream(scene.place))
    colour, alpha = open_shot(scene, shots(scene)[0].picture)
    return colour if alpha is None else (colour * (alpha[..., None] / 255)).round().astype(np.uint8)


def _shot(scene: Scene, picture: Path, name: str) -> Shot:
    """A picture that its reader knows by `name`, a path in the folder of pictures."""
    relative, stem = scene.place.relative_to(scene.root), str(Path(name).with_suffix(""))
    places = [base for word in MASKS for base in (scene.place / word, scene.root / word / relative)]
    names = (f"{name}.png", name, f"{stem}.png", f"{stem}.jpg")
    given = any((place / n).is_file() and place / n != picture for place in places for n in names)
    return Shot(picture, scene.place / "masks" / f"{name}.png", given)


def _colmap(scene: Scene) -> Iterator[Shot]:
    folder = next((scene.place / n for n in colmap.IMAGES if (scene.place / n).is_dir()), scene.place)
    found = [f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file()]
    masks = {scene.place / word for word in MASKS}
    for picture in sorted(found, key=lambda f: natural(str(f))):
        if colmap.STRAY not in picture.name and not masks.intersection(picture.parents):
            yield _shot(scene, picture, picture.relative_to(folder).as_posix())


def _srn(scene: Scene) -> Iterator[Shot]:
    folders = [scene.place / word for word in MASKS if (scene.place / word).is_dir()]
    given = {srn.number_of(mask) for folder in folders for mask in picture_files(folder)}
    for picture in picture_files(scene.place / "rgb"):
        mask = scene.place / "masks" / f"{picture.stem}.png"
        yield Shot(picture, mask, srn.number_of(picture) in given)


def _transforms(scene: Scene) -> Iterator[Shot]:
    file = scene.place / scene.files["file"]
    start = Path(scene.files.get("pictures", scene.place))
    for number, frame in enumerate(read_json(file, scene.key, ("frames",))["frames"]):
        what = f"{file}: object {scene.key!r}: frames[{number}]"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise DataError(f"{what}: file_path is missing, expected a picture's path")
        picture = transforms.picture_at(inside(scene.root, start, frame["file_path"], f"{what}: file_path"))
        if picture is not None:  # the reader leaves the frame out, and says so
            shot = _shot(scene, picture, picture.name)
            yield Shot(shot.picture, shot.mask, shot.given or "mask_path" in frame)


def _videos(scene: Scene) -> Iterator[Shot]:
    if scene.place.is_file():
        stem = scene.place.stem
        given = any(scene.place.with_name(f"{stem}.mask{suffix}").is_file() for suffix in videos.SUFFIXES)
        yield Shot(scene.place, scene.place.with_name(f"{stem}.mask.mkv"), given)
        return
    for picture in picture_files(Path(scene.files["frames" if "frames" in scene.files else "pictures"])):
        yield _shot(scene, picture, picture.name)


LAYOUTS: dict[str, Callable[[Scene], Iterator[Shot]]] = {
    "srn": _srn,
    "transforms": _transforms,
    "colmap": _colmap,
    "videos": _videos,
    "photographs": _videos,
}
