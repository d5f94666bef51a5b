"""Objaverse 1.0: GLB files as its own package downloads them, filtered as in C.1, drawn under the light rig.

Data card: `data_cards/objaverse.md`. In the source, or in `hf-objaverse-v1` in it:

    glbs/000-023/<uid>.glb            <uid>.glb.tmp is a download that broke off
    object-paths.json.gz              {"<uid>": "glbs/000-023/<uid>.glb"}, of all there are
    metadata/000-023.json.gz          {"<uid>": {"name", "license", "tags", "categories", ...}}
    lvis-annotations.json.gz          {"<category>": ["<uid>", ...]}
    Cap3D_*.csv                       <uid>,<caption>, without a head

or pictures as objaverse-xl's rendering script leaves them: <uid>/000.png (RGBA), 000.npy (3, 4), metadata.json. Their
poses are world to camera with Blender's axes, z up; the lens is 35 on a sensor of 32.

C.1 drops models without texture, material maps or other colour, and those of few polygons; its thresholds are not
published. Here a model is coloured if it has a texture, colours of vertices that differ, or materials that are not all
the same grey, and MIN_POLYGONS is ours. Both are read from the GLB file, and nothing is rendered for it.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import Options, Scene
from ..formats.models import is_coloured, read_parts, read_with_mesh
from ..formats.shared.images import natural, picture_files
from ..formats.shared.normalise import merged, normalised
from ..formats.shared.scenes import View, assemble, key_of, require_folder, rigid
from ..formats.wavefront import MAX_TEXTURE
from ..meshes.render import CREASE_ANGLE, HALF_EXTENT, LIGHT_RIG, MIN_ALBEDO, RADIUS
from ..prepared import DataError
from ..reading.objects import Found, Sieve, captioned
from ..sequence import Sequence
from ..streaming.streamed import LeftOut
from ..transient import unusable

NAME = "objaverse"
READER_VERSION = 1  # raised whenever the code between the files and their pictures changes them
STATED = {"objects": 300_000, "views": 6}  # Sec. 4.1, about, of 800 thousand
MIN_POLYGONS = 100  # triangles in the GLB file; ours
NO_COLOUR, FEW_POLYGONS = "no texture, material or other colour", f"fewer than {MIN_POLYGONS} polygons"
BROKEN_OFF, NO_UID = "download broke off", "name is no uid"
UID = re.compile(r"[0-9a-f]{32}")
FOCAL = 35 / 32  # of pictures made before, in widths of the picture
BLENDER = np.diag([1.0, -1.0, -1.0])


def find(source: Path) -> Found:
    """The models of a folder, or the pictures of models. Raises DataError where there are neither, and for broken
    lists. A download that broke off is a fault."""
    require_folder(source)
    places = (source, source / "hf-objaverse-v1", source / ".objaverse" / "hf-objaverse-v1")
    base = next((place for place in places if (place / "glbs").is_dir()), None)
    if base is None:
        return _drawn_before(source)
    files = sorted((f for f in (base / "glbs").rglob("*") if f.is_file()), key=lambda f: natural(f.name))
    sieve = Sieve(len(files), stated=STATED)
    sieve.rules |= {"colour": NO_COLOUR, "polygons": f"{FEW_POLYGONS}: triangles of the GLB file, the number is ours"}
    models: dict[str, Path] = {}
    for file in files:
        if file.suffix == ".tmp":
            sieve.drop(BROKEN_OFF, file.name, f"{file}: a download that broke off, expected {file.stem}; load it again")
        elif file.suffix != ".glb" or not UID.fullmatch(file.stem):
            sieve.drop(NO_UID, file.name, f"{file}: expected a GLB file named by 32 hexadecimal digits")
        elif file.stem in models:
            raise DataError(f"{file}: object {file.stem!r} is {models[file.stem]} as well, expected it once")
        else:
            models[file.stem] = file
    if not models:
        raise DataError(f"{base / 'glbs'}: data set {NAME}: no GLB files named by their uid, expected some")
    listed = read_packed(base / "object-paths.json.gz", dict)
    sieve.notes["listed_but_not_there"] = len(listed.keys() - models.keys())
    described = _described(models, base, source)
    scenes = captioned([Scene(uid, "models", file, base, **about) for uid, file, about in described], source)
    sieve.notes["without_licence"] = sum(scene.attributes["licence"] is None for scene in scenes)
    rig = [LIGHT_RIG, MIN_ALBEDO, CREASE_ANGLE, HALF_EXTENT, RADIUS, MAX_TEXTURE]
    identity = {"reader": NAME, "version": READER_VERSION, "min_polygons": MIN_POLYGONS, "rig": rig}
    faults = tuple(sieve.dropped.get(BROKEN_OFF, {}).values())
    return Found("set", source, scenes, Options(), identity, sieve, read=read_model, posed=False, faults=faults)


def read_model(scene: Scene, options: Options) -> tuple[Sequence, Any]:
    """The model as the cameras see it, and its mesh. Raises LeftOut where C.1 drops it, as `check_model`."""
    parts = check_model(scene)
    return read_with_mesh(scene, options, parts)


def check_model(scene: Scene) -> tuple[list, list[str]]:
    """A model's parts, as `read_parts`. Raises LeftOut for one that C.1 drops: of few polygons, or without colour."""
    parts, missing = read_parts(scene)
    count = sum(len(part.faces) for part in parts)
    if count < MIN_POLYGONS:
        raise LeftOut(FEW_POLYGONS, f"{scene.where}: {count} polygons, expected at least {MIN_POLYGONS}")
    if not is_coloured(parts):
        raise LeftOut(NO_COLOUR, f"{scene.where}: {NO_COLOUR}, expected some")
    return parts, missing


# ---------------------------------------------------------------------------------------- what is said of models


def _described(models: dict[str, Path], base: Path, source: Path):
    """(uid, file, caption and attributes) of each model."""
    captions = read_captions(base, source, models.keys())
    lvis = read_packed(base / "lvis-annotations.json.gz", dict)
    categories = {uid: name for name in sorted(lvis) for uid in lvis[name]}
    metadata: dict[str, dict[str, Any]] = {}
    for folder in sorted({file.parent.name for file in models.values()}):
        said = read_packed(base / "metadata" / f"{folder}.json.gz", dict)
        metadata |= {uid: about for uid, about in said.items() if uid in models and isinstance(about, dict)}
    for uid, file in models.items():
        about = metadata.get(uid, {})
        own = [entry.get("name") for entry in about.get("categories") or []]
        attributes = {
            "licence": about.get("license"),
            "name": about.get("name"),
            "category": categories.get(uid, own[0] if own else None),
            "tags": [entry.get("name") for entry in about.get("tags") or []],
            "age_restricted": about.get("isAgeRestricted"),
        }
        yield uid, file, {"caption": captions.get(uid), "attributes": attributes}


def read_packed(file: Path, kind: type) -> Any:
    """The content of a .json.gz file, or an empty one where there is none. Raises DataError for a broken one."""
    if not file.is_file():
        return kind()
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{file}: cannot be read, expected JSON in a gzip file ({error})") from error
    if not isinstance(content, kind):
        raise DataError(f"{file}: holds a {type(content).__name__}, expected a {kind.__name__} by uid or category")
    return content


def read_captions(base: Path, source: Path, wanted) -> dict[str, str]:
    """uid -> caption, of the uids `wanted`, from the Cap3D file in the folder or beside it; {} without one.

    Of two captions of a uid the later one counts. Raises DataError for two files, and for a row of other than two
    fields.
    """
    files = {f.resolve(): f for place in (base, source, source.parent) for f in place.glob("[Cc]ap3[Dd]*.csv")}
    if len(files) > 1:
        raise DataError(f"{source}: {len(files)} files of captions, {sorted(map(str, files))}, expected one")
    captions: dict[str, str] = {}
    for file in files.values():
        try:
            with open(file, encoding="utf-8", newline="") as stream:
                for number, row in enumerate(csv.reader(stream), 1):
                    if row and len(row) != 2:
                        raise DataError(f"{file}: row {number} has {len(row)} fields, expected a uid and a caption")
                    if row and row[0] in wanted:
                        captions[row[0]] = " ".join(row[1].split())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{file}: cannot be read, expected uids and captions ({error})") from error
    return captions


# ---------------------------------------------------------------------------------------- pictures made before


def _drawn_before(source: Path) -> Found:
    folders = sorted((f for f in source.glob("*/") if (f / "000.png").is_file()), key=lambda f: natural(f.name))
    if not folders:
        raise DataError(
            f"{source}: data set {NAME}: no objects, expected glbs/<folder>/<uid>.glb; or <uid>/000.png with 000.npy"
        )
    captions = read_captions(source, source, {folder.name for folder in folders})
    scenes = [
        Scene(key_of(f.name), NAME, f, source, caption=captions.get(f.name), attributes={"licence": None})
        for f in folders
    ]
    sieve = Sieve(len(scenes), {"colour, polygons": "not applied: pictures, no models"}, stated=STATED)
    identity = {"reader": NAME, "version": READER_VERSION, "layout": "pictures"}
    return Found("set", source, scenes, Options(), identity, sieve, read=read_pictures, files=files_of_pictures)


def files_of_pictures(scene: Scene) -> list[Path]:
    """Pictures, poses and what else is in the folder."""
    return sorted(f for f in scene.place.iterdir() if f.is_file())


def read_pictures(scene: Scene, options: Options) -> tuple[Sequence, None]:
    """An object of which pictures and poses are there. Raises DataError where too few of them can be used."""
    views, faults = [], {}
    for picture in picture_files(scene.place):
        try:
            pose = _pose(picture.with_suffix(".npy"), scene.key)
        except DataError as error:
            faults[picture.name] = unusable(error)
            continue
        k = np.array([[512 * FOCAL, 0, 256], [0, 512 * FOCAL, 256], [0, 0, 1]])
        views.append(View(picture.name, picture, BLENDER @ pose, k, (512, 512)))
    sequence = assemble(scene, views, faults, options)
    return normalised(sequence, merged(options.placing, scene.placing, "z"), scene.where).validate(scene.place), None


def _pose(file: Path, key: str) -> np.ndarray:
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: object {key!r}: pose cannot be read, expected (3, 4) numbers ({error})") from error
    return rigid(values, f"{file}: object {key!r}: pose")[:3]
