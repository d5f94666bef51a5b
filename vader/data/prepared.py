"""Prepared sets on disk and in memory: identity, manifest, folders that appear whole.

A prepared set is a folder `<data root>/<name>-<digest>`:

    manifest.json       written last: what the set is, its objects, their pixel checksums
    objects/<key>/      one object; `vader.data.sequence` and `vader.data.video` say what is in it

`vader.data.pipeline` writes such folders. Some come with the package, packed, and lie in `EMBEDDED`. All errors are
`DataError`s that name file, object, field and expectation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from ..settings.checks import ConfigError
from ..settings.experiment import DataConfig
from ..store.files import sha256

SCHEMA_VERSION = 1
SPLITS = ("train", "test")
EMBEDDED = Path(__file__).parent / "embedded"  # sets that come with the package, laid out like a data root
FACTS = ("key", "split", "caption", "attributes")  # what object.json and the manifest say of an object
# Of 255: an object's mean level moves by less from rasteriser to rasteriser. On furniture at 48x48, a shift of all
# samples by 0.03 pixels moves it by 0.007 at most, no multisampling instead of four samples by 0.12 to 0.83.
LEVEL_CHANGE = 0.05
Item = TypeVar("Item")  # Sequence or Video


class DataError(ValueError):
    """Data that cannot be used; the message names file, object, field and what was expected."""


@dataclass(frozen=True)
class Kind(Generic[Item]):
    """A kind of object: how one is written to and read from its folder, and what a set's settings ask of it."""

    name: str  # as the manifest has it; "sequences" is left out there
    save: Callable[..., None]  # (object, folder, what else belongs to it)
    load: Callable[[Path], Item]
    check: Callable[[Item, DataConfig], str | None]  # None, or how the object departs from the settings
    sealed: bool = False  # the manifest has the SHA-256 of every file


@dataclass(frozen=True, eq=False)
class SequenceSet(Generic[Item]):
    """A prepared data set in memory. Views [0, train_views) are for training; the held-out ones follow them."""

    name: str
    digest: str  # of sources and settings, see `data_digest`
    sequences: tuple[Item, ...]
    train_views: int
    heldout_views: int
    folder: Path | None
    pixel_checksum: str  # of the whole prepared set

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.sequences)

    def __getitem__(self, index: int) -> Item:
        return self.sequences[index]

    def split(self, which: str) -> SequenceSet[Item]:
        """The objects of "train" or of "test" (held-out objects)."""
        if which not in SPLITS:
            raise DataError(f"data set {self.name}: split {which!r} is unknown, expected one of {SPLITS}")
        return dataclasses.replace(self, sequences=tuple(s for s in self.sequences if s.split == which))

    def pixel_record(self) -> dict[str, Any]:
        """What a run keeps of the pixels it saw: the checksum, and mean (r, g, b, mask) levels of each object."""
        return {"checksum": self.pixel_checksum, "means": {s.key: s.mean_levels() for s in self}}

    def compare_pixels(self, record: dict[str, Any], whose: str = "the run saw") -> str | None:
        """None where a `pixel_record` is of these pixels, else a sentence on how large the difference is.

        Raises DataError with that sentence where it is larger than LEVEL_CHANGE, or the objects are others: then this
        is not what was recorded. whose: completes "those that ...".
        """
        if record["checksum"] == self.pixel_checksum:
            return None
        name = f"data set {self.name}" + (f" in {self.folder}" if self.folder else "")
        means = self.pixel_record()["means"]
        if means.keys() != record["means"].keys():
            raise DataError(f"{name}: its {len(means)} objects are not the {len(record['means'])} that {whose}")
        change = {key: max(abs(a - b) for a, b in zip(means[key], record["means"][key], strict=True)) for key in means}
        worst = max(change, key=change.get)
        size = (
            f"an object's mean levels by {np.mean(list(change.values())):.3g} of 255 on average and by at most "
            f"{change[worst]:.3g} (object {worst!r})"
        )
        if change[worst] > LEVEL_CHANGE:
            raise DataError(
                f"{name}: pixels differ from those that {whose}: {size}. Rasterisers differ by less than "
                f"{LEVEL_CHANGE}, so these were made in another way; delete the set's folder, or train anew"
            )
        return f"{name}: pixels differ from those that {whose}, as rasterisers do: {size}"

    @property
    def embedded(self) -> bool:
        """Whether it came with the package."""
        return self.folder is not None and self.folder.parent == EMBEDDED

    @property
    def workplace(self) -> Path | None:
        """Folder for files that are made from the set: its own, or, where that came with the package, the one of the
        same name below `data_root()`."""
        return data_root() / self.folder.name if self.embedded else self.folder


def check_identity(name: str, key: str, split: str) -> None:
    """Raise DataError, beginning with `name`, unless the key can name a folder and the split is known."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key):
        raise DataError(f"{name}: key is no file name, expected letters, digits, '.', '_' and '-'")
    if split not in SPLITS:
        raise DataError(f"{name}: split is {split!r}, expected one of {SPLITS}")


def pixel_checksum(images: Tensor, masks: Tensor) -> str:
    """SHA-256 of images and masks."""
    return hashlib.sha256(images.numpy().tobytes() + masks.numpy().tobytes()).hexdigest()


def mean_levels(images: Tensor, masks: Tensor) -> list[float]:
    """Mean r, g, b and mask levels, 0 to 255."""
    return [*images.float().mean((0, 1, 2)).tolist(), masks.float().mean().item()]


# ---------------------------------------------------------------------------------------- identity and place


def data_digest(config: DataConfig, sources: dict[str, Any]) -> str:
    """SHA-256 (hex) of what decides a set: its settings, its sources (JSON values) and the schema, never its pixels."""
    identity = {"schema": SCHEMA_VERSION, "config": dataclasses.asdict(config), "sources": sources}
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def data_root() -> Path:
    """Where prepared sets live: $VADER_DATA, or `data` in the repository (in the working directory if installed)."""
    if os.environ.get("VADER_DATA"):
        return Path(os.environ["VADER_DATA"])
    repository = Path(__file__).resolve().parents[2]
    return (repository if (repository / "pyproject.toml").is_file() else Path.cwd()) / "data"


# ---------------------------------------------------------------------------------------- files of an object


@contextmanager
def new_folder(folder: Path, key: str) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends, so that it appears complete or not at all.

    Raises DataError where it cannot be written. It is complete with object.json, which comes last.
    """
    try:
        partial = folder.parent / f".{folder.name}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder}: object {key!r} cannot be written there ({error})") from error
    try:
        yield partial
        partial.rename(folder)
    except OSError as error:
        if not (folder / "object.json").is_file():  # otherwise another process wrote the same object first
            raise DataError(f"{folder}: object {key!r} cannot be written there ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def facts(item: Any) -> dict[str, Any]:
    """Key, split, caption and attributes of an object."""
    return {k: getattr(item, k) for k in FACTS}


def write_pictures(folder: Path, pictures: Tensor) -> None:
    """uint8 pictures (n, h, w) or (n, h, w, 3) as folder/000.png, 001.png, ..."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(pictures.numpy()):
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def read_image(file: Path, key: str, what: str, mode: str, size: tuple[int, int] | None, of: str) -> np.ndarray:
    """Pixels of a picture of mode "RGB" or "L". what: e.g. "view 3: mask"; size: expected (h, w), which is that `of`
    something, or None for any. Raises DataError naming the file, the object and what is wrong with it."""
    try:
        with Image.open(file) as image:
            found, pixels = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(f"{file}: object {key!r}, {what} is missing, expected one per {of}") from error
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises on broken files
        raise DataError(f"{file}: object {key!r}, {what} cannot be decoded ({error})") from error
    if found != mode:
        raise DataError(f"{file}: object {key!r}, {what} has mode {found}, expected 8-bit {mode}")
    if size is not None and pixels.shape[:2] != size:
        got, expected = (f"{w}x{h}" for h, w in (pixels.shape[:2], size))
        raise DataError(f"{file}: object {key!r}, {what} is {got} pixels, expected the {of}s' {expected}")
    return pixels


def read_json(file: Path, name: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with at least these fields. Raises DataError naming file and field."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file}: {name!r}: file is missing, expected {', '.join(fields)} in it") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {name!r}: file is not readable as JSON ({error})") from error
    missing = [f for f in fields if not isinstance(value, dict) or f not in value]
    if missing:
        raise DataError(f"{file}: {name!r}: field {missing[0]!r} is missing, expected {', '.join(fields)}")
    return value


def write_json(file: Path, value: Any, indent: int | None = 1) -> None:
    file.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------- a set on disk


def write_manifest(folder: Path, config: DataConfig, sources: dict[str, Any], keys: list[str], kind: Kind) -> None:
    """Declare the set in `folder` complete, with the objects `keys` in that order. Raises DataError if one is not."""
    items = [kind.load(folder / "objects" / key) for key in keys]
    objects = [facts(item) | {"pixels": item.pixel_checksum()} for item in items]
    manifest = {
        "schema": SCHEMA_VERSION,
        "name": config.name,
        "digest": data_digest(config, sources),
        "config": dataclasses.asdict(config),
        "sources": sources,
        "pixel_checksum": _checksum_of(objects),
        "objects": objects,
    }
    if kind.name != "sequences":
        manifest["kind"] = kind.name
    if kind.sealed:
        files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / "manifest.json")
        manifest["files"] = {f.relative_to(folder).as_posix(): sha256(f) for f in files}
    _check(folder, manifest, items, kind)
    partial = folder / f".manifest-{os.getpid()}.json"
    write_json(partial, manifest)
    partial.replace(folder / "manifest.json")


def load_prepared(folder: Path, *kinds: Kind[Item]) -> SequenceSet[Item]:
    """Load a complete prepared set, of one of these kinds. Raises DataError naming what is missing or altered."""
    folder, file = Path(folder), Path(folder) / "manifest.json"
    if not file.exists():
        raise DataError(f"{file}: manifest is missing, expected one in a prepared set; prepare it to the end first")
    schema = read_json(file, folder.name, ("schema",))["schema"]
    if schema != SCHEMA_VERSION:
        raise DataError(f"{file}: field 'schema' is {schema!r}, expected {SCHEMA_VERSION}; prepare the set again")
    manifest = read_json(file, folder.name, ("name", "digest", "config", "sources", "pixel_checksum", "objects"))
    found, known = manifest.get("kind", "sequences"), {kind.name: kind for kind in kinds}
    if found not in known:
        raise DataError(f"{file}: holds {found}, expected {' or '.join(known)}")
    kind = known[found]
    for listed in manifest["objects"]:
        if not isinstance(listed, dict) or listed.keys() != {*FACTS, "pixels"}:
            raise DataError(f"{file}: field 'objects' lists {listed!r}, expected {', '.join(FACTS)}, pixels")
    if kind.sealed:
        _check_files(folder, read_json(file, folder.name, ("files",))["files"])
    items = tuple(kind.load(folder / "objects" / listed["key"]) for listed in manifest["objects"])
    config = _check(folder, manifest, items, kind)
    return SequenceSet(
        name=manifest["name"],
        digest=manifest["digest"],
        sequences=items,
        train_views=config.train_views,
        heldout_views=config.heldout_views,
        folder=folder,
        pixel_checksum=manifest["pixel_checksum"],
    )


def _check_files(folder: Path, files: dict[str, str]) -> None:
    """That the files of a set are those that its manifest lists."""
    for name, expected in files.items():
        file = folder / name
        what = f"{file}: object {file.parent.name!r}" if name.startswith("objects/") else str(file)
        try:
            found = sha256(file)
        except OSError as error:
            raise DataError(f"{what}: file cannot be read, expected it as manifest.json lists it ({error})") from error
        if found != expected:
            raise DataError(
                f"{what}: file was cut or changed, its SHA-256 is {found[:12]}…, expected {expected[:12]}… as "
                "manifest.json has it"
            )


def _check(folder: Path, manifest: dict[str, Any], items: Iterable[Any], kind: Kind) -> DataConfig:
    """The settings of a manifest that agrees with itself and with the objects it lists."""
    file = folder / "manifest.json"
    try:
        config = DataConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in manifest["config"].items()})
    except (TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{file}: field 'config' is not that of a data set ({error})") from error
    for name, expected in (
        ("digest", data_digest(config, manifest["sources"])),
        ("pixel_checksum", _checksum_of(manifest["objects"])),
    ):
        if manifest[name] != expected:
            raise DataError(
                f"{file}: field {name!r} is {manifest[name]!r}, expected {expected!r} for what it describes"
            )
    for item, listed in zip(items, manifest["objects"], strict=True):
        name = f"{folder / 'objects' / listed['key']}: object {listed['key']!r}"
        if fault := kind.check(item, config):
            raise DataError(f"{name}: {fault}, as {file.name} says")
        if facts(item) | {"pixels": item.pixel_checksum()} != listed:
            raise DataError(
                f"{name}: differs from what {file.name} lists; delete the data set's folder to prepare it anew"
            )
    return config


def _checksum_of(objects: list[dict[str, Any]]) -> str:
    return hashlib.sha256("".join(f"{o['key']} {o['pixels']}\n" for o in objects).encode()).hexdigest()
