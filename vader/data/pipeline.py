"""Preparing a data set: objects are rendered once, in parallel, and an interrupted preparation resumes.

A reader describes its objects as jobs and calls `prepare_set`, which loads the set if it is complete
and otherwise renders what is missing:

    def render(job) -> tuple[Sequence, trimesh.Trimesh | None]: ...   # top-level function, picklable jobs
    return prepare_set(config, sources, {key: job, ...}, render, workers)

With `kind=VIDEOS` objects are videos, and `render` returns (Video, Truth | None).

It is built on `SetWriter` (`pending`, `write`, `finish`), or on `ShardWriter` where tars are asked for. Objects, or
tars, are written under a temporary name and renamed, and the manifest comes last, so whatever is there under its
final name is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..settings.experiment import DataConfig
from ..store.files import from_plain, sync
from .prepared import (
    EMBEDDED,
    DataError,
    Kind,
    SequenceSet,
    data_digest,
    data_root,
    load_prepared,
    read_json,
    write_manifest,
)
from .sequence import CAMERA_FIELDS, PACKED, SEQUENCES, Sequence, load_packed, load_set
from .shards import SCHEMA_VERSION as SHARDS_SCHEMA
from .shards import ShardedSet, load_shards, read_manifest, shard_name


class SetWriter:
    """Writes a prepared set object by object; whatever is already there from an earlier attempt is kept.

    config, sources: what the set is (`data_digest`); root: parent folder, default `data_root()`; kind: of its objects.
    """

    def __init__(
        self, config: DataConfig, sources: dict[str, Any], root: Path | None = None, kind: Kind = SEQUENCES
    ) -> None:
        self.config, self.sources, self.kind = config, sources, kind
        self.digest = data_digest(config, sources)
        self.folder = (root or data_root()) / f"{config.name}-{self.digest[:12]}"

    @property
    def finished(self) -> bool:
        return (self.folder / "manifest.json").exists()

    def pending(self, keys: list[str]) -> list[str]:
        """The keys still to be written. Raises DataError if the folder is not writable."""
        try:
            (self.folder / "objects").mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise DataError(
                f"{self.folder}: data set {self.config.name}: output folder is not writable ({error}); "
                "expected a folder to write to, set VADER_DATA to one"
            ) from error
        return [key for key in keys if not self.object_folder(key).exists()]

    def object_folder(self, key: str) -> Path:
        return self.folder / "objects" / key

    def write(self, item: Any, extra: Any = None) -> None:
        """Write one object, as `save_sequence` does with its mesh; safe from several processes at a time."""
        self.kind.save(item, self.object_folder(item.key), extra)

    def finish(self, keys: list[str]) -> SequenceSet:
        """Check all objects, write the manifest (their order is that of `keys`) and return the set."""
        write_manifest(self.folder, self.config, self.sources, keys, self.kind)
        for leftover in (self.folder / "objects").glob(".*"):  # of killed processes
            shutil.rmtree(leftover, ignore_errors=True)
        return load_prepared(self.folder, self.kind)


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

    def pending(self, objects: int) -> list[range]:
        """The numbers of the objects of each shard that is still to be written."""
        n = self.objects_per_shard
        parts = [range(i, min(i + n, objects)) for i in range(0, objects, n)]
        return [part for part in parts if not all(file.exists() for file in self._files(part.start // n))]

    def write(self, first: int, sequences: Iterable[Sequence]) -> None:
        """Write the shard that begins with object number `first`, which appears whole or not at all.

        Raises DataError where an object is invalid or the folder cannot be written, and ImportError without webdataset.
        """
        self.pack(first, map(self.packed, sequences))

    def pack(self, first: int, objects: Iterable[tuple[str, str, dict[str, bytes]]]) -> None:
        """`write` of objects as files: key, split, and what `vader.data.shards` says lies in the tar, by ending."""
        try:
            from webdataset import TarWriter
        except ImportError as error:
            raise ImportError("writing shards needs webdataset: pip install 'vader[scale]'") from error
        number = first // self.objects_per_shard
        shard, index = self._files(number)
        partial, partial_index = (self.folder / f".{file.name}-{os.getpid()}" for file in (shard, index))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            entries = []
            with open(partial, "wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
                for n, (key, split, members) in enumerate(objects, first):
                    start = tar.tarstream.offset
                    tar.write({"__key__": f"{n:09d}", **members})
                    place = {"shard": number, "offset": start, "bytes": tar.tarstream.offset - start}
                    entries.append({"key": key, **place, "split": split, "views": len(members) - 1})
            with open(partial, "rb") as stream:
                for entry in entries:
                    entry["sha256"] = hashlib.sha256(stream.read(entry["bytes"])).hexdigest()
            partial_index.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
            for file, final in ((partial_index, index), (partial, shard)):
                sync(file)
                file.replace(final)
        except OSError as error:
            raise DataError(f"{shard}: shard cannot be written ({error})") from error
        finally:
            partial.unlink(missing_ok=True)
            partial_index.unlink(missing_ok=True)

    def finish(self, objects: int) -> ShardedSet:
        """Write the manifest, which declares all shards complete, and open the set."""
        indexes = [self._files(number)[1] for number in range(-(-objects // self.objects_per_shard))]
        checksum, longest = hashlib.sha256(), 1
        for line in _lines(indexes):
            checksum.update(line.encode())
            longest = max(longest, len(json.loads(line)["key"]))
        head = {
            "schema": SHARDS_SCHEMA,
            "name": self.config.name,
            "digest": self.digest,
            "config": dataclasses.asdict(self.config),
            "sources": self.sources,
            "objects_per_shard": self.objects_per_shard,
            "objects": objects,
            "longest_key": longest,
            "checksum": checksum.hexdigest(),
        }
        partial = self.folder / ".manifest.jsonl"
        with open(partial, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(head) + "\n")
            stream.writelines(_lines(indexes))
        read_manifest(partial, self.folder)
        sync(partial)
        partial.replace(self.folder / "manifest.jsonl")
        for leftover in (*indexes, *self.folder.glob(".*-*")):  # the latter of killed processes
            leftover.unlink(missing_ok=True)
        return load_shards(self.folder)

    def packed(self, sequence: Sequence) -> tuple[str, str, dict[str, bytes]]:
        """Key, split and files of an object, for `pack`."""
        config, cameras, (views, h, w, _) = self.config, sequence.cameras, sequence.validate().images.shape
        expected = (config.train_views + config.heldout_views, config.resolution, config.resolution)
        if (views, h, w) != expected:
            raise DataError(
                f"object {sequence.key!r}: images are {(views, h, w)}, expected {expected} of {config.name}"
            )
        facts = {
            **{k: getattr(sequence, k) for k in ("key", "split", "caption", "attributes")},
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

    def _files(self, number: int) -> tuple[Path, Path]:
        """The tar of a shard and its part of the manifest, which is there first."""
        shard = self.folder / shard_name(number)
        return shard, shard.with_suffix(".jsonl")


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        with open(file, encoding="utf-8") as stream:
            yield from stream


def prepare_set(
    config: DataConfig,
    sources: dict[str, Any],
    jobs: dict[str, Any],
    render: Callable[[Any], tuple[Any, Any]],
    workers: int = 1,
    root: Path | None = None,
    kind: Kind = SEQUENCES,
    objects_per_shard: int | None = None,
) -> SequenceSet | ShardedSet:
    """Load the prepared set, or first render what is missing of it.

    jobs: object key -> picklable argument of `render`, in the order of the set. render: top-level function that
    returns a Sequence of that key and its mesh (trimesh.Trimesh or None), or what `kind` holds instead. workers:
    processes, of one torch thread each. objects_per_shard: make a sharded set of tars of so many objects (Sequences
    only), from the prepared set if it is complete.
    """
    writer = SetWriter(config, sources, root, kind)
    if objects_per_shard is not None:
        shards = ShardWriter(config, sources, writer.folder.parent, objects_per_shard)
        return shard_set(writer.folder, shards) if writer.finished else _prepare_shards(shards, jobs, render, workers)
    if writer.finished:
        return load_prepared(writer.folder, kind)
    pending = [jobs[key] for key in writer.pending(list(jobs))]
    run_each(partial(_render_and_write, writer, render), pending, workers, config.name, len(jobs))
    return writer.finish(list(jobs))


def shard_set(folder: Path, writer: ShardWriter) -> ShardedSet:
    """The complete prepared set in `folder` as tars, which are written where they are not there yet."""
    if writer.finished:
        return load_shards(writer.folder)
    return _prepare_shards(writer, {s.key: s for s in load_set(folder)}, _as_it_is, 1)


def _prepare_shards(
    writer: ShardWriter, jobs: dict[str, Any], render: Callable[[Any], tuple[Sequence, Any]], workers: int
) -> ShardedSet:
    if writer.finished:
        return load_shards(writer.folder)
    work, parts = list(jobs.values()), writer.pending(len(jobs))
    shards = [(part.start, work[part.start : part.stop]) for part in parts]
    sizes = [len(part) for part in parts]
    run_each(partial(_render_shard, writer, render), shards, workers, writer.config.name, len(jobs), sizes)
    return writer.finish(len(jobs))


def pack_set(data: SequenceSet[Sequence], root: Path = EMBEDDED) -> SequenceSet[Sequence]:
    """A prepared set of Sequences, packed, with its attributions, to `root/<name>-<digest>`.

    Raises DataError where an object that was written is not what it was when it is read back.
    """
    manifest = read_json(data.folder / "manifest.json", data.name, ("config", "sources"))
    writer = SetWriter(from_plain(DataConfig, manifest["config"]), manifest["sources"], root, PACKED)
    waiting = writer.pending([s.key for s in data])
    for sequence in data:
        if sequence.key in waiting:
            writer.write(sequence)
        packed = load_packed(writer.object_folder(sequence.key))
        pairs = zip(_content(sequence), _content(packed), strict=True)
        if not all(np.array_equal(*pair) for pair in pairs):
            raise DataError(f"{writer.object_folder(sequence.key)}: object {sequence.key!r} was not packed as it is")
    if (data.folder / "ATTRIBUTION.md").is_file():
        shutil.copyfile(data.folder / "ATTRIBUTION.md", writer.folder / "ATTRIBUTION.md")
    return writer.finish([s.key for s in data])


def _content(sequence: Sequence) -> list[np.ndarray]:
    """What has to come back."""
    surface = sequence.surface() if sequence.mesh is not None else None
    cameras = [getattr(sequence.cameras, name) for name in CAMERA_FIELDS]
    corners = [surface[0][surface[1]]] if surface else []
    return [np.asarray(x) for x in (sequence.images, sequence.masks, *cameras, *corners)]


def run_each(
    work: Callable[[Any], None],
    jobs: list[Any],
    workers: int,
    title: str,
    total: int,
    sizes: list[int] | None = None,
) -> None:
    """work(job) for each of `jobs`, in `workers` processes of one torch thread each, or here if that is one.

    sizes: objects of each job, one by default. total: objects in all, with those that an earlier attempt has done, for
    the progress bar. What is being worked on when one fails is still finished.
    """
    sizes = sizes or [1] * len(jobs)
    with tqdm(total=total, initial=total - sum(sizes), desc=title, unit="object", disable=None) as progress:
        if min(workers, len(jobs)) <= 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in the worker processes, so that pixels do not depend on their number
            try:
                for job, size in zip(jobs, sizes, strict=True):
                    work(job)
                    progress.update(size)
            finally:
                torch.set_num_threads(threads)
            return
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            futures = {pool.submit(work, job): size for job, size in zip(jobs, sizes, strict=True)}
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.update(futures[future])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _render_and_write(writer: SetWriter, render: Callable[[Any], tuple[Any, Any]], job: Any) -> None:
    writer.write(*render(job))


def _render_shard(
    writer: ShardWriter, render: Callable[[Any], tuple[Sequence, Any]], shard: tuple[int, list[Any]]
) -> None:
    first, jobs = shard
    writer.write(first, (render(job)[0] for job in jobs))


def _as_it_is(sequence: Sequence) -> tuple[Sequence, None]:
    return sequence, None
