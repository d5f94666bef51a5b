"""Trained weights, stored under the digest of everything that decides them.

A run is a folder `runs/<name>-<first 12 digits of the digest>`:

    settings.json     schema version, name, digest and the settings it is the digest of
    record.json       the course of the training: commit, versions, device, seconds, peak memory, seed, loss curves
    *.safetensors     weights, with their configuration as JSON metadata
    DONE              written last: the SHA-256 of each weights file

While it trains it is called `….partial` and also holds `checkpoint*` files, which go when it is
published. DONE is on the disk before the folder takes its final name, so that every folder of that name is whole.
A committed run has its weights packed (`*.safetensors.xz`). Equal settings have equal digests, and any other setting
makes another run, so a changed default cannot meet a stale result. Device, worker count and log paths are no settings.
`get` finds a run here or among the committed reference runs, or trains it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from .files import (
    PACKED,
    RunError,
    canonical,
    differences,
    load_weights,
    pack_weights,
    plain,
    read_json,
    read_weights,
    save_weights,
    sha256,
    sync,
    write_json,
)
from .paths import reference_runs_dir, runs_dir
from .provenance import environment, peak_memory

__all__ = [
    "Paused", "Record", "Run", "RunError", "begin", "commit_run", "digest", "find", "finished", "get",
    "load_weights", "matching", "open_run", "publish", "read_weights", "run_folder", "runs_dir", "save_weights",
    "utc_now",
]  # fmt: skip

DONE = "DONE"
SCHEMA_VERSION = 1  # raise it when the same settings come to mean another result


class Paused(Exception):
    """Raised by a training that stopped on purpose before its end. The partial run stays and can be resumed."""


class Pixels(Protocol):
    """The interface of a data set to the store: how its pictures differ from those of a run's record."""

    def compare_pixels(self, record: dict[str, Any]) -> str | None:
        """None, or a sentence on how large the difference is. Raises ValueError with it where it is no small one."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run."""

    folder: Path
    name: str
    digest: str
    settings: dict[str, Any]
    record: dict[str, Any]
    files: dict[str, str]  # weights file -> SHA-256

    def weights(self, part: str) -> Path:
        """The file `<part>.safetensors`, or its packed one. Raises RunError naming the ones there are."""
        for name in (f"{part}.safetensors", f"{part}.safetensors{PACKED}"):
            if name in self.files:
                return self.folder / name
        raise RunError(f"{self.folder}: has no {part}.safetensors, expected one of {sorted(self.files)}")

    @property
    def origin(self) -> str:
        """'reference run' if it came with the repository, else 'own run'."""
        return "reference run" if self.folder.parent == reference_runs_dir() else "own run"


def digest(settings: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of the settings (dataclasses, JSON values) and the schema version."""
    return hashlib.sha256(canonical({"schema": SCHEMA_VERSION, "settings": plain(settings)}).encode()).hexdigest()


def run_folder(name: str, settings: Any) -> Path:
    """Where an own run of these settings is kept once it is finished."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RunError(f"run name {name!r} is no file name, expected letters, digits, '.', '_' and '-'")
    return runs_dir() / f"{name}-{digest(settings)[:12]}"


# ----------------------------------------------------------------------------------------------- life of a run


def get(name: str, settings: Any, train: Callable[[Path], None], data: Pixels | None = None) -> Run:
    """The finished run of these settings: an own one, a committed reference run, or one trained now.

    train(work) trains or resumes in the folder `work`: it keeps a `Record`, writes `checkpoint*` files as it
    goes and weights with `save_weights` at its end; it may raise `Paused`. A second process that wants the same
    run waits for the first. data: the set trained on; where its pixels are not those that the run recorded as
    `pixels`, a warning says by how much. Raises RunError where they differ by more than rasterisers do.
    """
    run = find(name, settings)
    if run is None:
        final = run_folder(name, settings)
        _make_folder(final.parent)
        lock = FileLock(f"{final}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another process that trains {final.name}", file=sys.stderr)
            lock.acquire()
        try:
            run = find(name, settings)  # the other process may have finished it
            if run is None:
                work = begin(name, settings)
                if not (work / DONE).is_file():  # else a crash came between the end of the training and its new name
                    train(work)
                run = publish(work)
        finally:
            lock.release()
    if data is not None and "pixels" in run.record:
        try:
            difference = data.compare_pixels(run.record["pixels"])
        except ValueError as error:
            raise RunError(f"{run.folder.name}: {error}") from error
        if difference:
            warnings.warn(f"{run.folder.name}: {difference}", stacklevel=2)
    return run


def find(name: str, settings: Any) -> Run | None:
    """The finished run of these settings, own before committed; None if there is none. Raises as `open_run`."""
    folder = run_folder(name, settings)
    for place in (folder, reference_runs_dir() / folder.name):
        if place.exists():
            run = open_run(place)
            _require_digest(place, run.digest, settings)
            return run
    return None


def finished(name: str, settings: dict[str, Any], unknown: tuple[str, ...] = ("data",)) -> bool:
    """Whether some finished run, own or committed, has these settings, whatever it has for those that are `unknown`."""
    return bool(matching(name, settings, unknown))


def matching(name: str, settings: dict[str, Any], unknown: tuple[str, ...] = ("data",)) -> dict[str, Path]:
    """Finished runs with these settings, whatever they have for those that are `unknown`: {digest: folder}.

    Own ones come first, and of a run that is both own and committed the own folder is named. For what is to be decided
    before the digest of the data is known; what is unreadable is left for `find` to refuse.
    """
    wanted, found = {key: value for key, value in plain(settings).items() if key not in unknown}, {}
    for place in (runs_dir(), reference_runs_dir()):
        for done in sorted(place.glob(f"{name}-*/{DONE}")):
            if done.parent.name.endswith(".partial"):
                continue
            with contextlib.suppress(RunError, KeyError):
                head = read_json(done.with_name("settings.json"))
                if {key: value for key, value in head["settings"].items() if key not in unknown} == wanted:
                    found.setdefault(head["digest"], done.parent)
    return found


def open_run(folder: Path) -> Run:
    """Read a finished run. Raises RunError if it has no DONE, was changed since, or a file is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run")
    if not (folder / DONE).is_file():
        raise RunError(
            f"{folder}: has no DONE, so it was not finished or not copied whole; "
            f"remove the folder, or rename it to {folder.name.removesuffix('.partial')}.partial to resume its training"
        )
    head, record, files = _read_settings(folder), read_json(folder / "record.json"), read_json(folder / DONE)["files"]
    for file, expected in files.items():
        if not (folder / file).is_file():
            raise RunError(f"{folder / file}: no such file, expected the weights that DONE lists")
        if (found := sha256(folder / file)) != expected:
            raise RunError(f"{folder / file}: SHA-256 is {found[:12]}…, expected {expected[:12]}… as DONE has it")
    return Run(folder, head["name"], head["digest"], head["settings"], record, files)


def begin(name: str, settings: Any) -> Path:
    """The work folder `….partial` of a run, new or left by an earlier attempt. Raises RunError if not writable."""
    final = run_folder(name, settings)
    work = final.with_name(final.name + ".partial")
    _make_folder(work)
    if (work / "settings.json").is_file():
        _require_settings(work, _read_settings(work)["settings"], settings)
    else:
        head = {"schema": SCHEMA_VERSION, "name": name, "digest": digest(settings), "settings": plain(settings)}
        write_json(work / "settings.json", head)
    return work


def publish(work: Path) -> Run:
    """Turn a work folder whose training is complete into a finished run, and drop its checkpoints.

    Everything is on the disk before DONE is, and DONE before the folder takes its final name. So whatever moment a
    crash chooses, a folder with DONE is whole, and one of the final name has DONE. Raises RunError if weights or
    record are missing.
    """
    work = Path(work)
    if not work.name.endswith(".partial"):
        raise RunError(f"{work}: is no work folder, expected a name that ends in .partial")
    final = work.with_name(work.name.removesuffix(".partial"))
    if final.exists():
        raise RunError(f"{final}: exists already, expected to publish {work.name} there")
    _read_settings(work)
    read_json(work / "record.json")
    files = {file.name: sha256(file) for file in sorted(work.glob("*.safetensors"))}
    if not files:
        raise RunError(f"{work}: has no *.safetensors, expected the weights of the finished training")
    for path in work.iterdir():
        sync(path)
    write_json(work / DONE, {"files": files})
    sync(work)
    work.rename(final)
    sync(final.parent)
    for checkpoint in final.glob("checkpoint*"):
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    return open_run(final)


class Record:
    """The course of a training: `record.json` in the run's work folder, to be saved at each checkpoint.

    One session per process that worked on the run, with its commit, versions, device, seconds and peak memory,
    and curves on the training's own clock (images or latents seen).

    execution: where it is set, says how this session's steps are computed, e.g. {'step': 'CUDA graph'}. It is asked at
    each save, since what compiles and what does not is known when it has run.
    """

    execution: Callable[[], dict[str, str]] | None = None

    def __init__(self, work: Path, seed: int, device: torch.device | str = "cpu", **facts: Any) -> None:
        """facts: anything else worth keeping, e.g. `pixels=data.pixel_record()`."""
        self.file, self.device, self._start = Path(work) / "record.json", device, time.monotonic()
        self.content: dict[str, Any] = {"seed": seed, **plain(facts, "record"), "sessions": [], "curves": {}}
        if self.file.is_file():
            earlier = read_json(self.file)
            self.content |= {"sessions": earlier["sessions"], "curves": earlier["curves"]}
        self.session: dict[str, Any] = {"started": utc_now(), **environment(device)}
        self.content["sessions"].append(self.session)

    def log(self, curve: str, clock: int, **values: float) -> None:
        """Append a point to a curve, e.g. log('diffusion', latents_seen, loss=0.4)."""
        point = {"clock": int(clock), **{name: float(value) for name, value in values.items()}}
        self.content["curves"].setdefault(curve, []).append(point)

    def rewind(self, curve: str, clock: int) -> None:
        """Drop the points from `clock` on: a training that resumes from there will pass them again."""
        curves = self.content["curves"]
        if curve in curves:
            curves[curve] = [point for point in curves[curve] if point["clock"] < clock]

    def save(self) -> None:
        if self.execution is not None:
            self.session["execution"] = self.execution()
        self.session |= {"seconds": time.monotonic() - self._start, "peak_memory_bytes": peak_memory(self.device)}
        sessions = self.content["sessions"]
        self.content |= {
            "device": ", ".join(dict.fromkeys(session["device"] for session in sessions)),
            "seconds": sum(session["seconds"] for session in sessions),
            "peak_memory_bytes": max(session["peak_memory_bytes"] for session in sessions),
        }
        write_json(self.file, self.content)


def utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_settings(folder: Path) -> dict[str, Any]:
    head = read_json(folder / "settings.json")
    if head["schema"] == SCHEMA_VERSION:
        _require_digest(folder, head["digest"], head["settings"])
    return head


def _require_digest(folder: Path, found: str, settings: Any) -> None:
    if found != digest(settings):
        raise RunError(f"{folder / 'settings.json'}: digest is {found}, but its settings give {digest(settings)}")


def _require_settings(folder: Path, found: Any, settings: Any) -> None:
    changed = differences(found, settings)
    if changed:
        raise RunError(
            f"{folder}: is a run of other settings and cannot be resumed with these: {'; '.join(changed)}; "
            "move it away to start one of these"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); set VADER_RUNS to a folder that can") from error


# ---------------------------------------------------------------------------------------------------- commands


def commit_run(folder: Path) -> Path:
    """Copy a finished run, without its log and with its weights packed, among the reference runs, where git sees it.

    Raises RunError if it is there already.
    """
    run = open_run(folder)
    target = reference_runs_dir() / run.folder.resolve().name
    if target.exists():
        raise RunError(f"{target}: exists already; remove it to commit this run in its place")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.folder, partial, ignore=shutil.ignore_patterns("checkpoint*", "*.tmp", "log.jsonl"))
    packed = [pack_weights(partial / name) for name in run.files]
    write_json(partial / DONE, {"files": {file.name: sha256(file) for file in packed}})
    partial.rename(target)
    return target
