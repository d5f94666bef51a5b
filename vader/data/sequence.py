"""One type for every data set, `Sequence`: an object seen by cameras; and how sets of them lie on disk.

A prepared set is a folder `<data root>/<name>-<digest>`:

    manifest.json                    written last: what the set is, its objects, their pixel checksums
    objects/<key>/object.json        split, caption, attributes
                  cameras.json       world_to_camera and intrinsics of each view, image height and width
                  images/000.png ... RGB, the object composited on black
                  masks/000.png ...  coverage of the object, 0 to 255
                  mesh.ply           reference mesh in canonical coordinates, where there is one

`vader.data.preparation` writes such folders. All errors are `DataError`s that name file, object,
field and expectation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..rendering.cameras import CameraError, Cameras, sample_orbit

SCHEMA_VERSION = 1
SPLITS = ("train", "test")


class DataError(ValueError):
    """Data that cannot be used; the message names file, object, field and what was expected."""


@dataclass(frozen=True, eq=False)
class Sequence:
    """One object as `v` views see it. Images are uint8 and as composited on black, masks are antialiased coverage."""

    key: str
    images: Tensor  # (v, h, w, 3) uint8
    masks: Tensor  # (v, h, w) uint8, 255 = foreground
    cameras: Cameras
    split: str = "train"  # "train" | "test" (held-out object)
    caption: str | None = None
    mesh: Path | None = None  # in canonical coordinates, opened with trimesh.load
    attributes: dict[str, Any] = field(default_factory=dict)  # JSON values: creator, licence, factors, ...

    def __len__(self) -> int:
        return self.images.shape[0]

    def colours(self, views=None) -> Tensor:
        """Images as float in [0, 1], (n, h, w, 3), of all views or of an index, slice, list or tensor of views."""
        return self._chosen(self.images, views)

    def alphas(self, views=None) -> Tensor:
        """Masks as float in [0, 1], (n, h, w)."""
        return self._chosen(self.masks, views)

    @staticmethod
    def _chosen(values: Tensor, views) -> Tensor:
        views = slice(None) if views is None else [views] if isinstance(views, int) else views
        return values[views].float() / 255

    def validate(self, source: Path | str | None = None) -> Sequence:
        """Return self, or raise `DataError` naming `source` (the folder it came from), the object and the field."""
        name = f"object {self.key!r}" if source is None else f"{source}: object {self.key!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.key):
            raise DataError(f"{name}: key is no file name, expected letters, digits, '.', '_' and '-'")
        if self.split not in SPLITS:
            raise DataError(f"{name}: split is {self.split!r}, expected one of {SPLITS}")
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise DataError(f"{name}: images are {got}, expected (v, h, w, 3) torch.uint8")
        if len(self) == 0:
            raise DataError(f"{name}: images hold no views, expected at least one")
        if self.masks.dtype != torch.uint8 or self.masks.shape != self.images.shape[:3]:
            got = f"{tuple(self.masks.shape)} {self.masks.dtype}"
            raise DataError(
                f"{name}: masks are {got}, expected {tuple(self.images.shape[:3])} torch.uint8 as the images"
            )
        if len(self.cameras) != len(self):
            raise DataError(f"{name}: cameras are {len(self.cameras)}, expected one for each of {len(self)} images")
        if (self.cameras.height, self.cameras.width) != tuple(self.images.shape[1:3]):
            h, w = self.images.shape[1:3]
            raise DataError(
                f"{name}: images are {w}x{h} pixels, expected the cameras' {self.cameras.width}x{self.cameras.height}"
            )
        try:
            self.cameras.validate(f"{name}: cameras")
        except CameraError as error:
            raise DataError(str(error)) from error
        return self

    def pixel_checksum(self) -> str:
        """SHA-256 of images and masks."""
        return hashlib.sha256(self.images.numpy().tobytes() + self.masks.numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """A prepared data set in memory. Views [0, train_views) are for training; the held-out ones follow them."""

    name: str
    digest: str  # of sources and settings, see `data_digest`
    sequences: tuple[Sequence, ...]
    train_views: int
    heldout_views: int
    folder: Path | None
    pixel_checksum: str  # of the whole prepared set

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self.sequences[index]

    def split(self, which: str) -> SequenceSet:
        """The objects of "train" or of "test" (held-out objects)."""
        if which not in SPLITS:
            raise DataError(f"data set {self.name}: split {which!r} is unknown, expected one of {SPLITS}")
        return dataclasses.replace(self, sequences=tuple(s for s in self.sequences if s.split == which))

    def pixel_record(self) -> dict[str, Any]:
        """What a run keeps of the pixels it saw: the checksum, and mean (r, g, b, mask) levels of each object."""
        means = {s.key: [*s.images.float().mean((0, 1, 2)).tolist(), s.masks.float().mean().item()] for s in self}
        return {"checksum": self.pixel_checksum, "means": means}

    def compare_pixels(self, record: dict[str, Any]) -> str | None:
        """None where a run's `pixel_record` is of these pixels, else a sentence on how large the difference is."""
        if record["checksum"] == self.pixel_checksum:
            return None
        means = self.pixel_record()["means"]
        if means.keys() != record["means"].keys():
            return f"data set {self.name}: the run saw {len(record['means'])} objects, of which other ones are here"
        change = {key: max(abs(a - b) for a, b in zip(means[key], record["means"][key], strict=True)) for key in means}
        worst = max(change, key=change.get)
        return (
            f"data set {self.name}: pixels differ from those the run saw (last bits vary with the rasteriser): "
            f"an object's mean levels by {np.mean(list(change.values())):.3g} of 255 on average and by at most "
            f"{change[worst]:.3g} (object {worst!r})"
        )


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


def object_cameras(config: DataConfig, key: str) -> Cameras:
    """The cameras of an object, train_views and then heldout_views of them: a function of (config.seed, key)."""
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{key}".encode()).digest()[:7], "big")
    views = config.train_views + config.heldout_views
    return sample_orbit(views, config, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- one object on disk


def save_sequence(sequence: Sequence, folder: Path, mesh=None) -> None:
    """Write one object to a new `folder`, which appears complete or not at all.

    mesh: a trimesh.Trimesh to store as mesh.ply; otherwise the file `sequence.mesh` is copied, if any.
    Raises DataError where the sequence is invalid or the folder cannot be written.
    """
    sequence.validate()
    try:
        partial = folder.parent / f".{folder.name}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{folder}: object {sequence.key!r} cannot be written there ({error})") from error
    try:
        for name, values in (("images", sequence.images), ("masks", sequence.masks)):
            (partial / name).mkdir()
            for view, pixels in enumerate(values.numpy()):
                Image.fromarray(pixels).save(partial / name / f"{view:03d}.png")
        cameras = sequence.cameras
        _write_json(
            partial / "cameras.json",
            {
                "height": cameras.height,
                "width": cameras.width,
                "world_to_camera": cameras.world_to_camera.tolist(),
                "intrinsics": cameras.intrinsics.tolist(),
            },
            indent=None,
        )
        if mesh is not None:
            mesh.export(partial / "mesh.ply")
        elif sequence.mesh is not None:
            shutil.copyfile(sequence.mesh, partial / "mesh.ply")
        _write_json(partial / "object.json", _facts(sequence))
        partial.rename(folder)
    except OSError as error:
        if not (folder / "object.json").is_file():  # otherwise another process wrote the same object first
            raise DataError(f"{folder}: object {sequence.key!r} cannot be written there ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_sequence(folder: Path) -> Sequence:
    """Read one object back, validated. Raises DataError naming the file, object and field at fault."""
    key = folder.name
    facts = _read_json(folder / "object.json", key, ("key", "split", "caption", "attributes"))
    cameras = _read_json(folder / "cameras.json", key, ("height", "width", "world_to_camera", "intrinsics"))
    try:
        matrices = {k: torch.tensor(cameras[k], dtype=torch.float32) for k in ("world_to_camera", "intrinsics")}
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder / 'cameras.json'}: object {key!r}: expected lists of matrices ({error})") from error
    for name, values in matrices.items():
        if values.numel() == 0:
            raise DataError(f"{folder / 'cameras.json'}: object {key!r}: {name} has no views, expected at least one")
        if values.ndim != 3:
            shape = tuple(values.shape)
            raise DataError(f"{folder / 'cameras.json'}: object {key!r}: {name} has shape {shape}, expected matrices")
    views = Cameras(matrices["world_to_camera"], matrices["intrinsics"], cameras["height"], cameras["width"])
    for name in ("images", "masks"):
        count = len(list((folder / name).glob("*.png")))
        if count == 0:
            raise DataError(f"{folder / name}: object {key!r} has no views there, expected {len(views)} PNG files")
        if count > len(views):
            raise DataError(f"{folder / name}: object {key!r}: {count} files, expected one per camera ({len(views)})")
    size = (views.height, views.width)
    images = [_read_image(folder / "images" / f"{v:03d}.png", key, v, "image", "RGB", size) for v in range(len(views))]
    masks = [_read_image(folder / "masks" / f"{v:03d}.png", key, v, "mask", "L", size) for v in range(len(views))]
    return Sequence(
        key=facts["key"],
        images=torch.from_numpy(np.stack(images)),
        masks=torch.from_numpy(np.stack(masks)),
        cameras=views,
        split=facts["split"],
        caption=facts["caption"],
        mesh=folder / "mesh.ply" if (folder / "mesh.ply").is_file() else None,
        attributes=facts["attributes"],
    ).validate(folder)


def _facts(sequence: Sequence) -> dict[str, Any]:
    return {k: getattr(sequence, k) for k in ("key", "split", "caption", "attributes")}


def _read_image(file: Path, key: str, view: int, what: str, mode: str, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(file) as image:
            found, pixels = image.mode, np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(f"{file}: object {key!r}, view {view}: {what} is missing, expected one per camera") from error
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises on broken files
        raise DataError(f"{file}: object {key!r}, view {view}: {what} cannot be decoded ({error})") from error
    if found != mode:
        raise DataError(f"{file}: object {key!r}, view {view}: {what} has mode {found}, expected 8-bit {mode}")
    if pixels.shape[:2] != size:
        got, expected = (f"{w}x{h}" for h, w in (pixels.shape[:2], size))
        raise DataError(
            f"{file}: object {key!r}, view {view}: {what} is {got} pixels, expected the cameras' {expected}"
        )
    return pixels


def _read_json(file: Path, name: str, fields: tuple[str, ...]) -> dict[str, Any]:
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


def _write_json(file: Path, value: Any, indent: int | None = 1) -> None:
    file.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------- a set on disk


def write_manifest(folder: Path, config: DataConfig, sources: dict[str, Any], keys: list[str]) -> None:
    """Declare the set in `folder` complete, with the objects `keys` in that order. Raises DataError if one is not."""
    sequences = [load_sequence(folder / "objects" / key) for key in keys]
    objects = [_facts(s) | {"pixels": s.pixel_checksum()} for s in sequences]
    manifest = {
        "schema": SCHEMA_VERSION,
        "name": config.name,
        "digest": data_digest(config, sources),
        "config": dataclasses.asdict(config),
        "sources": sources,
        "pixel_checksum": _checksum_of(objects),
        "objects": objects,
    }
    _check(folder, manifest, sequences)
    partial = folder / f".manifest-{os.getpid()}.json"
    _write_json(partial, manifest)
    partial.replace(folder / "manifest.json")


def load_set(folder: Path) -> SequenceSet:
    """Load a complete prepared set into memory. Raises DataError naming what is missing, broken or altered."""
    folder, file = Path(folder), Path(folder) / "manifest.json"
    if not file.exists():
        raise DataError(f"{file}: manifest is missing, expected one in a prepared set; prepare it to the end first")
    schema = _read_json(file, folder.name, ("schema",))["schema"]
    if schema != SCHEMA_VERSION:
        raise DataError(f"{file}: field 'schema' is {schema!r}, expected {SCHEMA_VERSION}; prepare the set again")
    manifest = _read_json(file, folder.name, ("name", "digest", "config", "sources", "pixel_checksum", "objects"))
    for listed in manifest["objects"]:
        if not isinstance(listed, dict) or listed.keys() != {"key", "split", "caption", "attributes", "pixels"}:
            raise DataError(
                f"{file}: field 'objects' lists {listed!r}, expected key, split, caption, attributes, pixels"
            )
    sequences = tuple(load_sequence(folder / "objects" / listed["key"]) for listed in manifest["objects"])
    config = _check(folder, manifest, sequences)
    return SequenceSet(
        name=manifest["name"],
        digest=manifest["digest"],
        sequences=sequences,
        train_views=config.train_views,
        heldout_views=config.heldout_views,
        folder=folder,
        pixel_checksum=manifest["pixel_checksum"],
    )


def _check(folder: Path, manifest: dict[str, Any], sequences: Iterable[Sequence]) -> DataConfig:
    """The settings of a manifest that agrees with itself and with the objects it lists."""
    file = folder / "manifest.json"
    try:
        config = DataConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in manifest["config"].items()})
    except (TypeError, AttributeError) as error:
        raise DataError(f"{file}: field 'config' is not that of a data set ({error})") from error
    for name, expected in (
        ("digest", data_digest(config, manifest["sources"])),
        ("pixel_checksum", _checksum_of(manifest["objects"])),
    ):
        if manifest[name] != expected:
            raise DataError(
                f"{file}: field {name!r} is {manifest[name]!r}, expected {expected!r} for what it describes"
            )
    views, resolution = config.train_views + config.heldout_views, config.resolution
    for sequence, listed in zip(sequences, manifest["objects"], strict=True):
        name = f"{folder / 'objects' / listed['key']}: object {listed['key']!r}"
        if len(sequence) != views:
            raise DataError(f"{name}: has {len(sequence)} views, expected the {views} of {file.name}")
        if sequence.images.shape[1:3] != (resolution, resolution):
            raise DataError(f"{name}: images are not {resolution}x{resolution} pixels as {file.name} says")
        if _facts(sequence) | {"pixels": sequence.pixel_checksum()} != listed:
            raise DataError(
                f"{name}: differs from what {file.name} lists; delete the data set's folder to prepare it anew"
            )
    return config


def _checksum_of(objects: list[dict[str, Any]]) -> str:
    return hashlib.sha256("".join(f"{o['key']} {o['pixels']}\n" for o in objects).encode()).hexdigest()
