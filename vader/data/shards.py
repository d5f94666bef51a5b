"""Prepared sets as webdataset tars, for more objects than memory holds. One is a folder `<name>-<digest>-by<n>`:

    manifest.jsonl     written last: a line about the set, then a line per object in the order of the shards
    000000.tar ...     n objects each, which any webdataset reader can stream; of object number 12:
        000000012.000.png ...  RGBA of each view: the object composited on black, and its coverage
        000000012.json         key, caption, attributes, and the cameras of the views

The manifest says which split an object is in, where its bytes lie and what their SHA-256 is, so an object is read by
itself, checked, without the rest of its shard. In memory the manifest is one array, about 80 bytes per object. Held-out
objects lie among the others; reference meshes are left out. A tar may hold objects that the manifest does not list.
Reading needs the standard library only, writing `webdataset`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..rendering.cameras import Cameras
from ..settings.experiment import DataConfig
from ..store.files import read_json, write_json
from .prepared import SPLITS, DataError, SequenceSet, data_digest
from .sequence import Sequence

SCHEMA_VERSION = 1
WINDOW = 8  # shards whose objects are shuffled together
HEAD = ("schema", "name", "digest", "config", "sources", "objects_per_shard", "objects", "longest_key", "checksum")
FIELDS = ("key", "shard", "offset", "bytes", "split", "views", "sha256")


class Keys(ListOf):
    """Strings kept as an array of bytes."""

    def __init__(self, encoded: np.ndarray) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index):
        return Keys(self.encoded[index]) if isinstance(index, slice) else self.encoded[index].decode()


@dataclass(frozen=True, eq=False)
class ShardedSet:
    """The manifest of a sharded set. An object is named by its row in `table`; `train` are those of training objects.

    `digest` is of the sources and settings of the set and of everything that decides the order of its epochs: a
    training from shards sees other draws than one from memory.
    """

    name: str
    digest: str
    folder: Path
    table: np.ndarray  # (objects,) of `_row_type`, in the order of the shards
    train: np.ndarray  # (training objects,) ascending rows
    train_views: int
    heldout_views: int
    resolution: int
    window: int
    checksum: str  # of the manifest's lines, and so of all objects' bytes

    def __len__(self) -> int:
        return len(self.table)

    @property
    def keys(self) -> Keys:
        """Keys of the training objects."""
        return Keys(self.table["key"][self.train])

    def shard(self, row: int) -> Path:
        return self.folder / shard_name(self.table["shard"][row])

    def split(self, which: str) -> SequenceSet:
        """The objects of "train" or of "test" in memory, without meshes."""
        if which not in SPLITS:
            raise DataError(f"data set {self.name}: split {which!r} is unknown, expected one of {SPLITS}")
        rows = self.train if which == "train" else np.setdiff1d(np.arange(len(self)), self.train)
        sequences = tuple(self.sequence(int(row)) for row in rows)
        return SequenceSet(self.name, self.digest, sequences, self.train_views, self.heldout_views, None, self.checksum)

    def sequence(self, row: int) -> Sequence:
        """One object with all of its views. Raises as `read`."""
        members = self.read(row)
        pixels, facts = (
            self.pixels(row, members, range(self.train_views + self.heldout_views)),
            self.facts(row, members),
        )
        return Sequence(
            key=facts["key"],
            images=pixels[..., :3].contiguous(),
            masks=pixels[..., 3].contiguous(),
            cameras=facts["cameras"],
            split=facts["split"],
            caption=facts["caption"],
            attributes=facts["attributes"],
        ).validate(self.shard(row))

    def captions(self) -> list[str | None]:
        """Captions of all objects, in their order: read from the shards once, then from `captions.json` beside them."""
        file = self.folder / "captions.json"
        if file.is_file() and (kept := read_json(file))["checksum"] == self.checksum:
            return kept["captions"]
        captions = [self.facts(row, self.read(row))["caption"] for row in range(len(self))]
        write_json(file, {"checksum": self.checksum, "captions": captions})
        return captions

    def read(self, row: int) -> dict[str, bytes]:
        """The files of an object by their ending, 'json' and '000.png' to that of the last view.

        Raises DataError naming shard and object where the shard is gone or cut short, where its bytes are not those
        that the manifest lists, and where a file is missing.
        """
        file, key, start, size = self.shard(row), self._key(row), *self._place(row)
        try:
            with open(file, "rb") as stream:
                stream.seek(start)
                content = stream.read(size)
        except FileNotFoundError as error:
            raise DataError(f"{file}: shard is missing, expected object {key!r} in it") from error
        except OSError as error:
            raise DataError(f"{file}: object {key!r} cannot be read ({error})") from error
        if len(content) < size:
            end = start + len(content)
            raise DataError(
                f"{file}: truncated: ends at byte {end}, expected object {key!r} at {start} to {start + size}"
            )
        found, expected = hashlib.sha256(content).hexdigest(), self.table["sha256"][row].tobytes().hex()
        if found != expected:
            raise DataError(
                f"{file}: object {key!r}: SHA-256 of its bytes is {found[:12]}…, expected {expected[:12]}… as the "
                "manifest has it"
            )
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
                members = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar if m.isfile()}
        except tarfile.TarError as error:
            raise DataError(f"{file}: object {key!r}: no tar at bytes {start} to {start + size} ({error})") from error
        views = self.train_views + self.heldout_views
        missing = [name for name in ("json", *(f"{v:03d}.png" for v in range(views))) if name not in members]
        if missing:
            raise DataError(
                f"{file}: object {key!r}: member .{missing[0]} is missing, expected .json and {views} views"
            )
        return members

    def facts(self, row: int, members: dict[str, bytes]) -> dict[str, Any]:
        """Key, split, caption, attributes and `cameras` of an object that was read."""
        name = f"{self.shard(row)}: object {self._key(row)!r}"
        try:
            facts = json.loads(members["json"])
            matrices = (torch.tensor(facts[k], dtype=torch.float32) for k in ("world_to_camera", "intrinsics"))
            cameras = Cameras(*matrices, facts["height"], facts["width"])
            facts = {k: facts[k] for k in ("key", "caption", "attributes")} | {"cameras": cameras}
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{name}: member .json does not describe an object ({error!r})") from error
        if facts["key"].encode() != self.table["key"][row]:
            raise DataError(f"{name}: member .json is of object {facts['key']!r}")
        place = np.searchsorted(self.train, row)
        return facts | {"split": SPLITS[int(place == len(self.train) or self.train[place] != row)]}

    def pixels(self, row: int, members: dict[str, bytes], views: Iterable[int]) -> Tensor:
        """Views of an object that was read, (v, h, w, 4) uint8: colours and coverage."""
        name, shape = f"{self.shard(row)}: object {self._key(row)!r}", (self.resolution, self.resolution, 4)
        decoded = []
        for view in views:
            try:
                with Image.open(io.BytesIO(members[f"{view:03d}.png"])) as image:
                    decoded.append(np.asarray(image))
            except (OSError, SyntaxError, ValueError) as error:  # what pillow raises on broken files
                raise DataError(f"{name}, view {view}: cannot be decoded ({error})") from error
            if decoded[-1].shape != shape:
                raise DataError(f"{name}, view {view}: pixels are {decoded[-1].shape}, expected {shape}")
        return torch.from_numpy(np.stack(decoded))

    def require_shards(self, rows: np.ndarray) -> None:
        """Raise DataError, reading nothing, where a shard of these objects is missing or shorter than they need."""
        last = rows[np.flatnonzero(np.diff(self.table["shard"][rows], append=-1))]
        for row in map(int, last):
            file, key, end = self.shard(row), self._key(row), sum(self._place(row))
            if not file.is_file():
                raise DataError(f"{file}: shard is missing, expected object {key!r} in it")
            if (size := file.stat().st_size) < end:
                raise DataError(f"{file}: truncated: has {size} bytes, expected object {key!r} up to byte {end}")

    @property
    def workplace(self) -> Path:
        """Folder for files that are made from the set."""
        return self.folder

    def pixel_record(self) -> dict[str, Any]:
        """What a run keeps of the pixels it saw."""
        return {"checksum": self.checksum}

    def compare_pixels(self, record: dict[str, Any]) -> str | None:
        """None where a run's `pixel_record` is of these shards, else a sentence."""
        if record["checksum"] == self.checksum:
            return None
        return f"data set {self.name}: the run saw other shards than those of {self.folder}"

    def _key(self, row: int) -> str:
        return self.table["key"][row].decode()

    def _place(self, row: int) -> tuple[int, int]:
        return int(self.table["offset"][row]), int(self.table["bytes"][row])


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def load_shards(folder: Path, window: int = WINDOW) -> ShardedSet:
    """Read the manifest of a sharded set, and nothing else.

    window: shards whose objects an epoch shuffles together. Raises DataError naming the line at fault.
    """
    file = Path(folder) / "manifest.jsonl"
    if window < 1:
        raise DataError(f"{file}: window is {window}, expected at least 1 shard")
    if not file.is_file():
        raise DataError(
            f"{file}: manifest is missing, expected one in a sharded set; write the shards to the end first"
        )
    return read_manifest(file, Path(folder), window)


def read_manifest(file: Path, folder: Path, window: int = WINDOW) -> ShardedSet:
    """The set in `folder` that the manifest `file` describes. Raises DataError naming the line at fault."""
    with open(file, "rb") as stream:
        head = fields_of(stream.readline(), HEAD, f"{file}, line 1")
        if head["schema"] != SCHEMA_VERSION:
            raise DataError(f"{file}: field 'schema' is {head['schema']!r}, expected {SCHEMA_VERSION}; write it again")
        try:
            config = DataConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in head["config"].items()})
            table = np.empty(head["objects"], _row_type(head["longest_key"]))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}, line 1: does not describe a set ({error})") from error
        train = np.zeros(len(table), bool)
        checksum, views, count = hashlib.sha256(), config.train_views + config.heldout_views, 0
        for count, line in enumerate(stream, 1):
            if count > len(table):
                raise DataError(f"{file}, line {count + 1}: expected {len(table)} objects as line 1 says")
            where = f"{file}, line {count + 1}"
            entry = fields_of(line, FIELDS, where)
            if entry["split"] not in SPLITS or entry["views"] != views:
                got = f"split {entry['split']!r} and {entry['views']} views"
                raise DataError(f"{where}: object {entry['key']!r} has {got}, expected one of {SPLITS} and {views}")
            try:
                digest = np.frombuffer(bytes.fromhex(entry["sha256"]), np.uint8)
                table[count - 1] = (entry["key"].encode(), entry["shard"], entry["offset"], entry["bytes"], digest)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise DataError(f"{where}: does not say where an object lies ({error})") from error
            train[count - 1] = entry["split"] == "train"
            checksum.update(line)
    if count < len(table):
        raise DataError(f"{file}: ends after {count} objects, expected {len(table)} as line 1 says")
    _check(file, head, config, table, checksum.hexdigest())
    order = {"set": head["sources"], "objects_per_shard": head["objects_per_shard"], "window": window}
    return ShardedSet(
        name=head["name"],
        digest=data_digest(config, order),
        folder=folder,
        table=table,
        train=np.flatnonzero(train),
        train_views=config.train_views,
        heldout_views=config.heldout_views,
        resolution=config.resolution,
        window=window,
        checksum=head["checksum"],
    )


def _row_type(longest_key: int) -> np.dtype:
    fields = [("key", f"S{longest_key}"), ("shard", "i4"), ("offset", "i8"), ("bytes", "i8"), ("sha256", "u1", 32)]
    return np.dtype(fields)


def fields_of(line: bytes, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """A line of a manifest, with exactly these fields. Raises DataError, beginning with `where`."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not readable as JSON ({error})") from error
    if not isinstance(value, dict) or value.keys() != set(names):
        wrong = sorted(set(names) ^ value.keys()) if isinstance(value, dict) else [value]
        raise DataError(f"{where}: field {wrong[0]!r} is missing or unknown, expected {', '.join(names)}")
    return value


def _check(file: Path, head: dict[str, Any], config: DataConfig, table: np.ndarray, checksum: str) -> None:
    """That a manifest agrees with itself."""
    order = np.argsort(table["key"], kind="stable")
    equal = np.flatnonzero(table["key"][order[1:]] == table["key"][order[:-1]])
    if len(equal):
        first, second = order[equal[0]], order[equal[0] + 1]
        key = table["key"][first].decode()
        raise DataError(f"{file}: object {key!r} is in lines {first + 2} and {second + 2}, expected different keys")
    if len(table) and (table["shard"][0] < 0 or (np.diff(table["shard"]) < 0).any()):
        raise DataError(f"{file}: shards do not ascend from line to line, expected objects in their order")
    for name, expected in (("digest", data_digest(config, head["sources"])), ("checksum", checksum)):
        if head[name] != expected:
            raise DataError(f"{file}: field {name!r} is {head[name]!r}, expected {expected!r} for what it describes")
