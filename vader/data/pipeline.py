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

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..settings.checks import require
from ..settings.experiment import DataConfig
from ..store.files import from_plain
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
from .shards import ShardedSet, load_shards
from .streaming.parts import Join, Part, PartOfSet
from .streaming.tars import ShardWriter


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


def prepare_set(
    config: DataConfig,
    sources: dict[str, Any],
    jobs: dict[str, Any],
    render: Callable[[Any], tuple[Any, Any]],
    workers: int = 1,
    root: Path | None = None,
    kind: Kind = SEQUENCES,
    objects_per_shard: int | None = None,
    part: Part | Join | None = None,
) -> SequenceSet | ShardedSet | PartOfSet:
    """Load the prepared set, or first render what is missing of it.

    jobs: object key -> picklable argument of `render`, in the order of the set. render: top-level function that
    returns a Sequence of that key and its mesh (trimesh.Trimesh or None), or what `kind` holds instead. workers:
    processes, of one torch thread each. objects_per_shard: make a sharded set of tars of so many objects (Sequences
    only), from the prepared set if it is complete. part: of a sharded set only that part is written, or, with Join,
    the set is put together from the shards there are. Raises DataError where some are missing then.
    """
    require(part is None or objects_per_shard is not None, "part is of a set of shards, expected objects_per_shard")
    writer = SetWriter(config, sources, root, kind)
    if objects_per_shard is not None:
        shards = ShardWriter(config, sources, writer.folder.parent, objects_per_shard)
        if writer.finished and part is None:
            return shard_set(writer.folder, shards)
        return _prepare_shards(shards, jobs, render, workers, part)
    if writer.finished:
        return load_set(writer.folder) if kind is SEQUENCES else load_prepared(writer.folder, kind)
    pending = [jobs[key] for key in writer.pending(list(jobs))]
    run_each(partial(_render_and_write, writer, render), pending, workers, config.name, len(jobs))
    return writer.finish(list(jobs))


def shard_set(folder: Path, writer: ShardWriter) -> ShardedSet:
    """The complete prepared set in `folder` as tars, which are written where they are not there yet."""
    if writer.finished:
        return load_shards(writer.folder)
    return _prepare_shards(writer, {s.key: s for s in load_set(folder)}, _as_it_is, 1)


def _prepare_shards(
    writer: ShardWriter,
    jobs: dict[str, Any],
    render: Callable[[Any], tuple[Sequence, Any]],
    workers: int,
    part: Part | Join | None = None,
) -> ShardedSet | PartOfSet:
    if writer.finished:
        return load_shards(writer.folder)
    if not isinstance(part, Join):
        work, pending = list(jobs.values()), writer.pending(len(jobs), part)
        shards = ((numbers.start, work[numbers.start : numbers.stop]) for numbers in pending)
        units = writer.shards(len(jobs))
        own = range(units) if part is None else part.units(units)
        total = min(own.stop * writer.objects_per_shard, len(jobs)) - own.start * writer.objects_per_shard
        title = writer.config.name if part is None else f"{writer.config.name} {part}"
        run_each(partial(_render_shard, writer, render), shards, workers, title, total, [len(n) for n in pending])
        if part is not None:
            return PartOfSet(writer.folder, part, max(total, 0), {})
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
    jobs: Iterable[Any],
    workers: int,
    title: str,
    total: int,
    sizes: list[int] | None = None,
) -> None:
    """work(job) for each of `jobs`, in `workers` processes of one torch thread each, or here if that is one.

    Jobs are taken as they are needed, so that they may be made one after the other. Processes end when this one does,
    however it ends. sizes: objects of each job, one each of a list by default. total: objects in all, with those that
    an earlier attempt has done, for the progress bar. What is being worked on when one fails is still finished.
    """
    sizes = [1] * len(jobs) if sizes is None else sizes
    with tqdm(total=total, initial=total - sum(sizes), desc=title, unit="object", disable=None) as progress:
        if min(workers, len(sizes)) <= 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in the worker processes, so that pixels do not depend on their number
            try:
                for job, size in zip(jobs, sizes, strict=True):
                    work(job)
                    progress.update(size)
            finally:
                torch.set_num_threads(threads)
            return
        with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker) as pool:
            left, running = zip(jobs, sizes, strict=True), {}
            try:
                while True:
                    running |= {pool.submit(work, job): size for job, size in islice(left, 2 * workers - len(running))}
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        future.result()
                        progress.update(running.pop(future))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _begin_worker() -> None:
    torch.set_num_threads(1)
    parent = parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _render_and_write(writer: SetWriter, render: Callable[[Any], tuple[Any, Any]], job: Any) -> None:
    writer.write(*render(job))


def _render_shard(
    writer: ShardWriter, render: Callable[[Any], tuple[Sequence, Any]], shard: tuple[int, list[Any]]
) -> None:
    first, jobs = shard
    writer.write(first, (render(job)[0] for job in jobs))


def _as_it_is(sequence: Sequence) -> tuple[Sequence, None]:
    return sequence, None
