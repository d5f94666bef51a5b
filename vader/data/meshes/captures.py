"""Walk-round captures: photographs of household objects in textured rooms, as MVImgNet's volunteers took them.

    <folder>/<key>/images/000.png ...    the photographs, of a walk round the object (`meshes.walk`)
             <key>/masks/000.png ...     its masks
             captions.json               caption, category and split by key, as `formats.shared.captions` reads them

Each object has a room and a walk of its own. One object of a name is taken, category by category in turn, and the last
ones are held out. Captions follow household's recipe (`data.describe`): name and category are the model's, colours are
measured inside of the masks, on photographs in the light of the room.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from tqdm import tqdm

from ...rendering.cameras import Cameras
from ...settings.checks import require
from ..describe import caption, colour_shares, colours_of, shape_words
from ..formats.sweethome3d import CatalogueNotFound, Model, read_catalogues
from ..formats.wavefront import Part
from ..prepared import DataError, read_json, write_json
from .pieces import embedded_chairs
from .selection import canonical_parts, filtered, stem, surface_points
from .walk import photographs, walk, write_photographs

CAPTIONS = "captions.json"
POINTS = 4096  # of a surface, for words of shape
Named = tuple[str, str, list[Part]]  # name, category, parts in the cube


@dataclass(frozen=True)
class Captures:
    """What was written: in what folder, of what, and by the object's key what it is called and its true cameras."""

    folder: Path
    what: str
    names: dict[str, str]
    cameras: dict[str, Cameras]

    @property
    def captions(self) -> Path:
        return self.folder / CAPTIONS


def write_captures(
    folder: Path,
    count: int,
    heldout: int,
    views: int,
    side: int,
    source: str | Path | None = None,
    masks: bool = True,
) -> Captures:
    """Walks of `views` photographs of side x side pixels round `count` objects, of which the last are held out.

    Models of Sweet Home 3D's catalogues where these are installed or named by `source`, else chairs that come with the
    package. Objects that are there already are not drawn again. masks: whether these are written, too. Raises
    ConfigError for counts that leave nothing to train on or to hold out, and DataError where there are too few models.
    """
    require(0 < heldout < count, f"{heldout} of {count} objects are held out, expected some and not all")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        models = list(islice(_household(source), count))
        what = f"{count} objects of Sweet Home 3D's catalogues"
    except CatalogueNotFound:
        if source is not None:
            raise
        models = [(f"{name} chair", "Living room", parts) for name, parts in embedded_chairs(count)]
        what = f"{count} chairs that come with the package (no catalogue of Sweet Home 3D was found)"
    if len(models) < count:
        raise DataError(f"{folder}: there are models of {len(models)} names, expected {count}")
    names, cameras, said = {}, {}, {}
    for number, model in enumerate(tqdm(models, desc="walks", disable=None)):
        key = f"{number:03d}-{'-'.join(model[0].lower().split())}"
        key = "".join(c for c in key if c.isascii() and (c.isalnum() or c == "-")).rstrip("-")
        cameras[key] = walk(views, side, seed=number)
        place = folder / key
        if not (place / "object.json").is_file():
            _write(place, model, cameras[key], number, masks)
        names[key] = model[0].lower()
        said[key] = read_json(place / "object.json", key, ("caption", "category"))
        said[key]["split"] = "train" if number < count - heldout else "test"
    write_json(folder / CAPTIONS, said)
    return Captures(folder, what, names, cameras)


def _write(place: Path, model: Named, cameras: Cameras, seed: int, masks: bool) -> None:
    """One object's pictures, masks and caption; the folder appears whole."""
    name, category, parts = model
    pictures, covered = photographs(parts, cameras, seed=seed)
    colours = colours_of(colour_shares(pictures.float() / 255, covered.float() / 255))
    shape, stand = shape_words(surface_points(parts, POINTS, place.name))
    partial = place.with_name(f".{place.name}")
    shutil.rmtree(partial, ignore_errors=True)
    write_photographs(partial, pictures, covered)
    if not masks:
        shutil.rmtree(partial / "masks")
    text = caption(name, category, colours, shape, stand)
    write_json(partial / "object.json", {"caption": text, "category": category})
    partial.rename(place)


def _household(source: str | Path | None) -> Iterator[Named]:
    """Models that pass household's filters, one of each name, from each category in turn, in hashed order."""
    waiting: dict[str, list[Model]] = defaultdict(list)
    for catalogue in read_catalogues(source):
        for entry in catalogue.entries:
            if entry.get("model", "").endswith(".obj"):
                model = catalogue.model(entry)
                waiting[model.category].append(model)
    for models in waiting.values():
        models.sort(key=lambda model: hashlib.sha256(model.id.encode()).digest())
    seen: set[str] = set()
    for model in (m for turn in zip_longest(*(waiting[c] for c in sorted(waiting))) for m in turn if m is not None):
        if (name := stem(model.name)) in seen:
            continue
        try:
            parts = canonical_parts(model)
        except DataError:
            continue  # broken, as household's card says
        if filtered(parts) is None:
            seen.add(name)
            yield model.name, model.category, parts
