"""Preparing a data set: objects are rendered once, in parallel, and an interrupted preparation resumes.

A reader describes its objects as jobs and calls `prepare_set`, which loads the set if it is complete
and otherwise renders what is missing:

    def render(job) -> tuple[Sequence, trimesh.Trimesh | None]: ...   # top-level function, picklable jobs
    return prepare_set(config, sources, {key: job, ...}, render, workers)

With `kind=VIDEOS` objects are videos, and `render` returns (Video, Truth | None).

It is built on `SetWriter` (`pending`, `write`, `finish`). Objects are written under a temporary name
and renamed, and the manifest comes last, so whatever is there under its final name is complete.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..config import DataConfig
from .prepared import DataError, Kind, SequenceSet, data_digest, data_root, load_prepared, write_manifest
from .sequence import SEQUENCES


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
) -> SequenceSet:
    """Load the prepared set, or first render what is missing of it.

    jobs: object key -> picklable argument of `render`, in the order of the set. render: top-level function that
    returns a Sequence of that key and its mesh (trimesh.Trimesh or None), or what `kind` holds instead. workers:
    processes, of one torch thread each.
    """
    writer = SetWriter(config, sources, root, kind)
    if writer.finished:
        return load_prepared(writer.folder, kind)
    pending = writer.pending(list(jobs))
    run_each(partial(_render_and_write, writer, render), {k: jobs[k] for k in pending}, workers, config.name, len(jobs))
    return writer.finish(list(jobs))


def run_each(work: Callable[[Any], None], jobs: dict[str, Any], workers: int, title: str, total: int) -> None:
    """work(job) for each of `jobs`, in `workers` processes of one torch thread each, or here if that is one.

    total: jobs in all, with those that an earlier attempt has done, for the progress bar. What is being worked on when
    one fails is still finished.
    """
    with tqdm(total=total, initial=total - len(jobs), desc=title, unit="object", disable=None) as progress:
        if min(workers, len(jobs)) <= 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in the worker processes, so that pixels do not depend on their number
            try:
                for job in jobs.values():
                    work(job)
                    progress.update()
            finally:
                torch.set_num_threads(threads)
            return
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            futures = [pool.submit(work, job) for job in jobs.values()]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _render_and_write(writer: SetWriter, render: Callable[[Any], tuple[Any, Any]], job: Any) -> None:
    writer.write(*render(job))
