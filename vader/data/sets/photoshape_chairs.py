"""PhotoShape Chairs: a `transforms` file an object, as for DiffRF and its kin, or the SRN layout.

Data card: `data_cards/photoshape_chairs.md`. An object is a shape with one of the materials that PhotoShape gave it,
`shape02326_rank00_pair4545`. Test objects are those of the published list `photoshape_val.txt`, and every other one of
their shapes, so that no shape is in both splits; without that list a hash of the shape decides. Pictures are on white;
stored principal points are slightly off, so that they are taken to be in the middle (`vader.data.formats.transforms`
knows the poses: camera to world, OpenGL's axes, z up).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ..formats import Options, Scene, files_of, scan, srn, transforms
from ..formats.shared.captions import read_ids
from ..formats.shared.scenes import key_of, require_folder
from ..prepared import DataError, read_json
from ..reading.objects import Found, Sieve, captioned

NAME = "photoshape_chairs"
READER_VERSION = 1  # raised whenever the code between the files and their pictures changes them
STATED = {"objects": 15_576, "views": 200}  # Sec. 4.1
TEST_LIST = "photoshape_val.txt"
NAMED = re.compile(r"(?P<shape>shape\d+)_rank(?P<rank>\d+)_pair(?P<exemplar>\d+)")
LOOKED_AT = 8  # objects, for where pictures are
LICENCE = "ShapeNet terms of use (research)"


def find(source: Path, pictures: Path | str | None = None) -> Found:
    """The chairs of a folder, with their splits. Raises DataError where there are none.

    pictures: the folder with `<object>/<file_path>`, where that is none of those that are looked at: the object's own,
    `source`, and the folders in it. A listed test object that is not there is a fault.
    """
    require_folder(source)
    layout = "transforms" if transforms.find(source) else "srn" if srn.find(source) else None
    if layout is None:
        raise DataError(f"{source}: data set {NAME}: no objects, expected {transforms.SIGNS}; or {srn.SIGNS}")
    scenes = captioned(_named(scan(source, layout)), source)
    if layout == "transforms":
        scenes = _with_pictures(scenes, source, None if pictures is None else Path(pictures))
    listed = read_test_list(source)
    rules = {"split": "the folders' names" if any(s.split == "test" for s in scenes) else "by a hash of the shape"}
    notes: dict[str, Any] = {"listed_but_missing": []}
    if listed is not None:
        keys = {scene.key for scene in scenes}
        shapes = {shape_of(key) for key in listed}
        scenes = [dataclasses.replace(s, split="test" if shape_of(s.key) in shapes else "train") for s in scenes]
        rules["split"] = f"{TEST_LIST}, and all objects of its shapes"
        notes["listed_but_missing"] = sorted(listed - keys)
        notes["test_by_shape_only"] = sorted(s.key for s in scenes if s.split == "test" and s.key not in listed)
    sieve = Sieve(len(scenes), rules, notes=notes, stated=STATED)
    identity = {"reader": NAME, "version": READER_VERSION, "layout": layout}
    options = Options(background="white", centred=True)
    gone = notes["listed_but_missing"]
    faults = (f"{source}: {len(gone)} objects of {TEST_LIST} are not there, the first is {gone[0]!r}",) if gone else ()
    groups = dict(group=lambda scene: shape_of(scene.key))
    return Found("set", source, scenes, options, identity, sieve, files=files_of_chair, faults=faults, **groups)


def shape_of(key: str) -> str:
    """'shape02326' of 'shape02326_rank00_pair4545'; a name of another form is a shape by itself."""
    match = NAMED.fullmatch(key)
    return match["shape"] if match else key


def read_test_list(source: Path) -> set[str] | None:
    """Names of test objects, one a line, from photoshape_val.txt in the folder or beside it; None without one.

    Raises DataError for a list that cannot be read or has no names.
    """
    file = next((f for place in (source, source.parent) if (f := place / TEST_LIST).is_file()), None)
    if file is None:
        return None
    names = {key_of(name) for name in read_ids(file)}
    if not names:
        raise DataError(f"{file}: no names in it, expected those of the test objects, one a line")
    return names


def files_of_chair(scene: Scene) -> list[Path]:
    """Those of its folder, and its pictures where they are elsewhere."""
    elsewhere = Path(scene.files.get("pictures", scene.place))
    more = [f for f in elsewhere.rglob("*") if f.is_file()] if elsewhere != scene.place and elsewhere.is_dir() else []
    return [*files_of(scene), *sorted(more)]


def _named(scenes: list[Scene]) -> list[Scene]:
    """Scenes by their folders' names, whatever lies above, with what these say."""
    named: dict[str, Scene] = {}
    for scene in scenes:
        key = key_of(scene.place.name)
        if key in named:
            raise DataError(f"{scene.place}: object {key!r} is {named[key].place} as well, expected it once")
        about = {"category": "chair", "licence": LICENCE}
        if match := NAMED.fullmatch(key):
            about |= {"shape": match["shape"], "rank": int(match["rank"]), "exemplar": int(match["exemplar"])}
        named[key] = dataclasses.replace(scene, key=key, attributes=scene.attributes | about)
    return list(named.values())


def _with_pictures(scenes: list[Scene], source: Path, pictures: Path | None) -> list[Scene]:
    """Scenes that know where their pictures are: in their own folder, or in one of their name below a common one."""
    if pictures is None:
        own = any(_first_picture(scene, scene.place) for scene in scenes[:LOOKED_AT])
        places = [source, *sorted(f for f in source.glob("*/") if not f.name.startswith("."))]
        found = (p for p in places for s in scenes[:LOOKED_AT] if _first_picture(s, p / s.place.name))
        pictures = None if own else next(found, None)
    if pictures is None:
        return scenes
    root = source if pictures.is_relative_to(source) else pictures
    return [
        dataclasses.replace(s, root=root, files=s.files | {"pictures": str(pictures / s.place.name)}) for s in scenes
    ]


def _first_picture(scene: Scene, folder: Path) -> bool:
    """Whether the first picture that an object names is in a folder. What is broken is said when it is read."""
    try:
        frames = read_json(scene.place / scene.files["file"], scene.key, ("frames",))["frames"]
        return transforms.picture_at(folder / frames[0]["file_path"]) is not None
    except (DataError, LookupError, TypeError):
        return False
