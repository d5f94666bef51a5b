"""MVImgNet: photographs of real objects with COLMAP's cameras and masks, filtered as in C.1.

Data card: `data_cards/mvimgnet.md`. As published, 1.0 and 2.0:

    <class number>/<8 hexadecimal digits>/images/<nnn>.jpg    sparse/0/{cameras,images}.bin
                                          masks/<nnn>.jpg.png     (2.0)
    mask/<class number>/<8 hexadecimal digits>/<nnn>.jpg.png      (1.0)
    mvimgnet_category.txt                                         lines as 2,wahser

Masks are soft: scaled to the picture's size by the nearest pixel, and of the object from MASK_THRESHOLD on. Of several
models in `sparse` the one with most images counts. The world has no axes: up is the mean of the cameras', centre and
scale come from the visual hull; the paper does not say how it places objects.

C.1: objects in which Grounding DINO finds nothing are out. Then an autodecoder is fitted to the masks alone, and
objects of unusually high loss are out. Both are given, as `detector` and `mask_judge`; without, `filter.json` says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import Options, Scene, colmap
from ..formats.shared.images import natural, open_picture, picture_files
from ..formats.shared.scenes import key_of, require_folder
from ..prepared import DataError
from ..reading.objects import Found, Judgement, Sieve, captioned
from ..streaming.streamed import Masked

NAME = "mvimgnet"
READER_VERSION = 1  # raised whenever the code between the files and their pictures changes them
STATED = {"objects": 206_990, "views": 30}  # Sec. 4.1, after the filter, of 219,188 videos
CLASS = re.compile(r"\d{1,4}")  # names of class folders
MASK_THRESHOLD = 226  # of 255; a public loader takes more than 225
CATEGORIES = "mvimgnet_category.txt"
DETECTED = 3  # pictures of an object, spread over all, that the detector looks at: it is out if none shows any box
NOT_DETECTED = "nothing is detected"
LICENCE = "terms of use of MVImgNet, by form"
Detector = Callable[[list[np.ndarray], str], list[Any]]  # (h, w, 3) uint8 each, and a name -> of each a box or None
MaskJudge = Callable[[Iterable[Masked]], Judgement]


def find(
    source: Path,
    detector: Detector | None = None,
    mask_judge: MaskJudge | None = None,
    masker: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Found:
    """The objects of all class folders. Raises DataError where there are none, or for a broken list of categories.

    detector, mask_judge: of C.1; the judge gets masks and cameras of the objects that are left, as they are in the set.
    masker: a top-level function that makes masks (h, w) uint8 of pictures that come without one; a mask that comes with
    the data wins. Captions are those of captions.csv or captions.json in the folder, if there is one.
    """
    require_folder(source)
    places = list_objects(source)
    if not places:
        raise DataError(
            f"{source}: data set {NAME}: no objects, expected <class number>/<8 hexadecimal digits>/ with images/ or "
            "sparse/ in it"
        )
    categories = read_categories(source)
    scenes = [_scene(place, source, categories) for place in places]
    keys = [scene.key for scene in scenes]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{source}: object {twice!r} is there twice, expected it in one class folder")
    scenes = captioned(scenes, source)
    rules = {
        "detection": f"no box in {DETECTED} pictures of the object" if detector else "not applied: no detector given",
        "mask fit": "applied" if mask_judge else "not applied: no mask_judge given",
        "masks": f"of the object from level {MASK_THRESHOLD} on",
    }
    notes: dict[str, Any] = {"classes": len({scene.place.parent.name for scene in scenes})}
    notes["classes_without_name"] = sorted({s.place.parent.name for s in scenes} - {str(n) for n in categories})
    sieve = Sieve(len(scenes), rules, notes=notes, stated=STATED)
    named = {"masker": f"{masker.__module__}.{masker.__qualname__}"} if masker else {}
    identity = {"reader": NAME, "version": READER_VERSION, "mask_threshold": MASK_THRESHOLD} | named
    options = Options(mask_threshold=MASK_THRESHOLD, masker=masker)
    check = None if detector is None else _Detection(detector)
    return Found("set", source, scenes, options, identity, sieve, check=check, judge=mask_judge)


def list_objects(source: Path) -> list[Path]:
    """Folders of objects, in natural order: those in class folders, which are named by a number, in the folder or one
    level below it. Whatever else is in a class folder, a mask tree, say, is none."""
    above = [f for f in source.glob("*/") if not CLASS.fullmatch(f.name) and f.name not in ("mask", "masks")]
    classes = [f for base in (source, *above) for f in base.glob("*/") if CLASS.fullmatch(f.name)]
    places = [f for c in classes for f in c.glob("*/") if (f / "images").is_dir() or (f / "sparse").is_dir()]
    return sorted(places, key=lambda f: natural(f.relative_to(source).as_posix()))


def read_categories(source: Path) -> dict[int, str]:
    """Class number -> name as the list has it, typing errors and all, but without blanks around it; {} without a list.

    Raises DataError naming the line that is not "number,name".
    """
    file = next((f for place in (source, source.parent) if (f := place / CATEGORIES).is_file()), None)
    categories: dict[int, str] = {}
    for number, line in enumerate(_lines(file), 1) if file else ():
        first, comma, name = line.partition(",")
        name = " ".join(name.split())
        if not line.strip():
            continue
        if not comma or not first.strip().isdecimal() or not name:
            raise DataError(f"{file}: line {number} is {line!r}, expected a class number, a comma and a name")
        if categories.setdefault(int(first), name) != name:
            raise DataError(f"{file}: line {number}: class {int(first)} is {categories[int(first)]!r} already")
    return categories


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read, expected lines as 0,bag ({error})") from error


def _scene(place: Path, source: Path, categories: dict[int, str]) -> Scene:
    base = place.parents[1]  # of the class folders, where the masks' tree is
    number = int(place.parent.name)
    about: dict[str, Any] = {"class": number, "licence": LICENCE}
    if number in categories:
        about["category"] = categories[number]
    root = base if base.is_relative_to(source) else source
    return Scene(key_of(f"{place.parent.name}-{place.name}"), "colmap", place, root, attributes=about)


@dataclasses.dataclass(frozen=True)
class _Detection:
    """Why an object is out before it is read: the detector finds nothing in it."""

    detector: Detector

    def __call__(self, scene: Scene) -> str | None:
        folder = scene.place / "images"
        pictures = [f for f in picture_files(folder) if colmap.STRAY not in f.name] if folder.is_dir() else []
        chosen = [pictures[i * len(pictures) // DETECTED] for i in range(min(DETECTED, len(pictures)))]
        shown = []
        for file in chosen:
            try:
                shown.append(open_picture(file, f"{file}: object {scene.key!r}").colour)
            except DataError:
                continue  # said when the object is read
        boxes = self.detector(shown, scene.attributes.get("category", "object")) if shown else []
        return NOT_DETECTED if shown and all(box is None for box in boxes) else None
