"""Amazon Berkeley Objects as published: `abo-benchmark-material`, and the listings and models beside it.

    abo-benchmark-material/train_test_split.csv      MODEL,SPLIT,lightings, as 3,0_1_2
                           <id>/metadata.json        {"views": [{"K": [9], "pose": [16]}, ...]}, by picture number
                                render/<lighting>/render_<n>.jpg
                                segmentation/segmentation_<n>.jpg
    listings/metadata/listings_*.json.gz             one JSON a line: item_id, product_type, item_name
    3dmodels/metadata/3dmodels.csv.gz                id first; the box's extents in metres in the last three columns

`pose` is camera to world with OpenGL's axes; an object is one model under one lighting. Masks are JPEG files: levels up
to 1 are 0, from 254 on 255. Where extents are known the box's diagonal becomes 2, as in SSDNeRF, around the origin.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..prepared import DataError, read_json
from ..sequence import Sequence
from ..transient import unusable
from .shared.images import natural, picture_files
from .shared.scenes import Options, Placing, Scene, View, assemble, folders, key_of, rigid, sampled
from .srn import number_of

SIGNS = "abo-benchmark-material: <id>/metadata.json with <id>/render/<lighting>/ and segmentation/"
UP = "y"
POSES = ("camera-to-world", "OpenGL")
SIDE = 512  # pixels that K belongs to
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def find(folder: Path) -> str | None:
    return next((f"{f} has metadata.json and render/" for f in sampled(folder) if _is_model(f)), None)


def scan(folder: Path) -> list[Scene]:
    """Models under each of their lightings, keyed <id>_<lighting>, with split, size and placing where they are told.

    Raises DataError for a split file that names other splits than TRAIN and TEST.
    """
    models = sorted((f for f in folders(folder) if _is_model(f)), key=lambda f: natural(f.name))
    splits = {base: read_splits(base) for base in {f.parent for f in models}}
    size = extents(folder)
    scenes = []
    for model in models:
        lightings = sorted((f for f in (model / "render").iterdir() if f.is_dir()), key=lambda f: natural(f.name))
        for lighting in lightings:
            placing, attributes = Placing(), {"item_id": model.name, "lighting": lighting.name}
            if model.name in size:
                attributes["extents"] = size[model.name]
                placing = Placing(centre=(0.0, 0.0, 0.0), scale=2 / float(np.linalg.norm(size[model.name])))
            split = splits[model.parent].get(model.name, "train")
            key = key_of(f"{model.name}_{lighting.name}")
            files = {"render": str(lighting)}
            scenes.append(Scene(key, "abo", model, folder, split, None, attributes, files, placing))
    return scenes


def _is_model(folder: Path) -> bool:
    return (folder / "metadata.json").is_file() and (folder / "render").is_dir()


def read(scene: Scene, options: Options) -> Sequence:
    """Raises DataError for metadata without views, or pictures of which too few have a pose and a mask."""
    file = scene.place / "metadata.json"
    listed = read_json(file, scene.key, ("views",))["views"]
    masks = {number_of(f): f for f in _pictures(scene.place / "segmentation")}
    views, faults = [], {}
    for picture in _pictures(Path(scene.files["render"])):
        number = number_of(picture)
        what = f"{file}: object {scene.key!r}: views[{number}]"
        try:
            if not isinstance(number, int) or number >= len(listed):
                raise DataError(f"{what} is missing, expected one for {picture.name}")
            if number not in masks:
                raise DataError(f"{scene.place / 'segmentation'}: object {scene.key!r}: no mask of {picture.name}")
            k, pose = _camera(listed[number], what)
        except DataError as error:
            faults[picture.name] = unusable(error)
            continue
        if options.centred:
            k[:2, 2] = SIDE / 2
        views.append(
            View(picture.name, picture, np.linalg.inv(pose @ OPENGL), k, (SIDE, SIDE), masks[number], (1, 254))
        )
    return assemble(scene, views, faults, options)


def _pictures(folder: Path) -> list[Path]:
    return picture_files(folder) if folder.is_dir() else []


def _camera(view: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        k = np.array(view["K"], dtype=np.float64).reshape(3, 3)
        pose = np.array(view["pose"], dtype=np.float64).reshape(4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{what}: expected K of 9 numbers and pose of 16") from error
    if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
        raise DataError(f"{what}: K is {k.tolist()}, expected finite numbers and positive focal lengths")
    return k, rigid(pose, f"{what}: pose")


# ---------------------------------------------------------------------------------------- what lies beside


def read_splits(base: Path) -> dict[str, str]:
    """Item id -> "train" | "test", from train_test_split.csv; empty where there is none."""
    file = base / "train_test_split.csv"
    if not file.is_file():
        return {}
    splits = {}
    with open(file, encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.reader(stream), 1):
            if number == 1 or not row:
                continue
            word = row[1].strip().lower() if len(row) > 1 else ""
            if word not in ("train", "test"):
                raise DataError(f"{file}: line {number}: split is {word!r}, expected TRAIN or TEST")
            splits[row[0]] = word
    return splits


def has_splits(folder: Path) -> bool:
    """Whether there is such a file in or below the folder."""
    return any((base / "train_test_split.csv").is_file() for base in (folder, *folder.glob("*/")))


def extents(folder: Path) -> dict[str, list[float]]:
    """Item id -> extents (x, y, z) of its box in metres, from 3dmodels.csv.gz in or beside `folder`."""
    file = _beside(folder, "3dmodels/metadata/3dmodels.csv.gz")
    if file is None:
        return {}
    sizes = {}
    for number, row in enumerate(csv.reader(_lines(file)), 1):
        if number == 1 or not row:
            continue
        try:
            sizes[row[0]] = [float(x) for x in row[-3:]]
        except ValueError as error:
            raise DataError(f"{file}: line {number}: extents are {row[-3:]}, expected numbers") from error
    return {k: v for k, v in sizes.items() if len(v) == 3 and np.isfinite(v).all() and max(v) > 0}


def listings(folder: Path) -> dict[str, dict[str, str | None]]:
    """Item id -> {"product_type": lower case, "caption": first English name}, from the listings in or beside `folder`;
    empty where there are none. An item that is sold in several countries has several listings: what the first of them
    says counts, and later ones add what it does not say."""
    place = _beside(folder, "listings/metadata")
    found: dict[str, dict[str, str | None]] = {}
    for file in sorted(place.glob("listings_*.json.gz")) if place else []:
        for number, line in enumerate(_lines(file), 1):
            try:
                item = json.loads(line)
                kind = next((t["value"].lower() for t in item.get("product_type", [])), None)
                names = [n["value"] for n in item.get("item_name", []) if n["language_tag"] in ("en_US", "en_GB")]
                known = found.setdefault(item["item_id"], {"product_type": None, "caption": None})
                known["product_type"] = known["product_type"] or kind
                known["caption"] = known["caption"] or (" ".join(names[0].split()) if names else None)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}: line {number}: expected a listing with item_id ({error!r})") from error
    return found


def _beside(folder: Path, name: str) -> Path | None:
    return next((f / name for f in (folder, folder.parent) if (f / name).exists()), None)


def _lines(file: Path) -> Iterator[str]:
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
            yield from stream
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be unpacked, expected a gzip file ({error})") from error
