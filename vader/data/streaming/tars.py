"""Writing sharded sets (`vader.data.shards`): one tar after the other, each whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...settings.experiment import DataConfig
from ...store.files import sync
from ..prepared import DataError, data_digest
from ..sequence import Sequence
from ..shards import SCHEMA_VERSION, ShardedSet, load_shards, read_manifest, shard_name
from .parts import COUNT, Part, note_parts, require_all

Members = tuple[str, str, dict[str, bytes]]  # key, split, and the files of an object by their ending


class ShardWriter:
    """Writes a sharded set shard by shard; whole shards that an earlier attempt left are kept.

    config, sources: what the set is (`data_digest`); root: parent folder; objects_per_shard: 100 MB or so make a
    shard that file systems and networks like.
    """

    def __init__(self, config: DataConfig, sources: dict[str, Any], root: Path, objects_per_shard: int) -> None:
        if objects_per_shard < 1:
            raise DataError(f"data set {config.name}: objects_per_shard is {objects_per_shard}, expected at least 1")
        self.config, self.sources, self.objects_per_shard = config, sources, objects_per_shard
        self.digest = data_digest(config, sources)
        self.folder = Path(root) / f"{config.name}-{self.digest[:12]}-by{objects_per_shard}"

    @property
    def finished(self) -> bool:
        return (self.folder / "manifest.jsonl").exists()

    def shards(self, objects: int) -> int:
        """Of how many shards a set of so many objects consists."""
        return -(-objects // self.objects_per_shard)

    def pending(self, objects: int, part: Part | None = None) -> list[range]:
        """The numbers of the objects of each shard, all or those of a part, that is still to be written."""
        n, count = self.objects_per_shard, self.shards(objects)
        numbers = range(count) if part is None else part.units(count)
        if part is not None:
            self._make_folder()
            note_parts(self.folder, part)
        return [range(i * n, min((i + 1) * n, objects)) for i in numbers if not self._written(i)]

    def write(self, first: int, sequences: Iterable[Sequence]) -> None:
        """Write the shard that begins with object number `first`, which appears whole or not at all.

        Raises DataError where an object is invalid or the folder cannot be written, and ImportError without webdataset.
        """
        self.pack(first, map(self.packed, sequences))

    def pack(self, first: int, objects: Iterable[tuple[str, str, dict[str, bytes]]]) -> None:
        """`write` of objects as files: key, split, and what `vader.data.shards` says lies in the tar, by ending."""
        number = first // self.objects_per_shard
        shard, index = self._files(number)
        partial = self.folder / f".{index.name}-{os.getpid()}"
        self._make_folder()
        try:
            rows = write_tar(shard, number, ((n, *item) for n, item in enumerate(objects, first)), keep=True)
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            for file, final in ((partial, index), (hidden(shard), shard)):
                sync(file)
                file.replace(final)
        except OSError as error:
            raise DataError(f"{shard}: shard cannot be written ({error})") from error
        finally:
            partial.unlink(missing_ok=True)
            hidden(shard).unlink(missing_ok=True)

    def finish(self, objects: int) -> ShardedSet:
        """Write the manifest, which declares all shards complete, and open the set.

        Raises DataError that names parts and shards where some are missing.
        """
        count = self.shards(objects)
        require_all(self.folder, (number for number in range(count) if not self._written(number)), count)
        indexes = [self._files(number)[1] for number in range(count)]
        write_shard_manifest(self.folder, self.config, self.sources, self.objects_per_shard, lambda: _lines(indexes))
        for leftover in (*indexes, self.folder / COUNT, *self.folder.glob(".*-*")):  # the latter of killed processes
            leftover.unlink(missing_ok=True)
        return load_shards(self.folder)

    def packed(self, sequence: Sequence) -> Members:
        """Key, split and files of an object, for `pack`."""
        return packed(sequence, self.config)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: shards cannot be written there ({error})") from error

    def _written(self, number: int) -> bool:
        return all(file.exists() for file in self._files(number))

    def _files(self, number: int) -> tuple[Path, Path]:
        """The tar of a shard and its part of the manifest, which is there first."""
        shard = self.folder / shard_name(number)
        return shard, shard.with_suffix(".jsonl")


def hidden(file: Path) -> Path:
    """Where this process writes a file before it gets its name."""
    return file.with_name(f".{file.name}-{os.getpid()}")


def write_tar(
    file: Path, number: int, objects: Iterable[tuple[int, str, str, dict[str, bytes]]], keep: bool = False
) -> list[dict[str, Any]]:
    """Write objects (their number, and Members) to shard `number`, and return their rows of the manifest.

    The file appears whole or not at all; keep: it stays under its `hidden` name. Raises OSError where it cannot be
    written, and ImportError without webdataset.
    """
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ImportError("writing shards needs webdataset: pip install 'vader[scale]'") from error
    partial, rows = hidden(file), []
    try:
        with open(partial, "wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
            for n, key, split, members in objects:
                start = tar.tarstream.offset
                tar.write({"__key__": f"{n:09d}", **members})
                place = {"shard": number, "offset": start, "bytes": tar.tarstream.offset - start}
                rows.append({"key": key, **place, "split": split, "views": len(members) - 1})
        with open(partial, "rb") as stream:
            for row in rows:
                row["sha256"] = hashlib.sha256(stream.read(row["bytes"])).hexdigest()
        if not keep:
            sync(partial)
            partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return rows


def write_shard_manifest(
    folder: Path,
    config: DataConfig,
    sources: dict[str, Any],
    objects_per_shard: int,
    lines: Callable[[], Iterator[str]],
) -> None:
    """Write the manifest of a sharded set. lines: called twice for its rows, one a line, which are never all in
    memory."""
    checksum, longest, objects = hashlib.sha256(), 1, 0
    for line in lines():
        checksum.update(line.encode())
        longest, objects = max(longest, len(json.loads(line)["key"])), objects + 1
    head = {
        "schema": SCHEMA_VERSION,
        "name": config.name,
        "digest": data_digest(config, sources),
        "config": dataclasses.asdict(config),
        "sources": sources,
        "objects_per_shard": objects_per_shard,
        "objects": objects,
        "longest_key": longest,
        "checksum": checksum.hexdigest(),
    }
    partial = folder / ".manifest.jsonl"
    with open(partial, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(head) + "\n")
        stream.writelines(lines())
    read_manifest(partial, folder)
    sync(partial)
    partial.replace(folder / "manifest.jsonl")


def packed(sequence: Sequence, config: DataConfig) -> Members:
    """Key, split and files of an object of a set; of the split the manifest says more, which comes last.

    Raises DataError where it is not as the settings say.
    """
    cameras, (views, h, w, _) = sequence.cameras, sequence.validate().images.shape
    expected = (config.train_views + config.heldout_views, config.resolution, config.resolution)
    if (views, h, w) != expected:
        raise DataError(f"object {sequence.key!r}: images are {(views, h, w)}, expected {expected} of {config.name}")
    facts = {
        **{k: getattr(sequence, k) for k in ("key", "caption", "attributes")},
        "height": cameras.height,
        "width": cameras.width,
        "world_to_camera": cameras.world_to_camera.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
    }
    members = {"json": json.dumps(facts, allow_nan=False).encode()}
    for view, pixels in enumerate(torch.cat([sequence.images, sequence.masks[..., None]], dim=-1).numpy()):
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "png")
            members[f"{view:03d}.png"] = file.getvalue()
    return sequence.key, sequence.split, members


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        with open(file, encoding="utf-8") as stream:
            yield from stream
