"""Writing a listing of objects: unit by unit, in any number of processes and parts, with memory for one object each.

A preparation works in a folder `<name>-<digest>.partial`. A unit is a shard, or an object of a set without shards. When
it is written, `ledger/<unit>.jsonl` follows: for each of its objects the stamp and the content of the files it was read
from, and why it was left out if it was. For a judge of all objects' masks `ledger/<unit>.npz` keeps these. `join` reads
the ledgers, never pixels: the identity of a set is that of the contents that went into it, whichever process read them,
so that it is the same in parts and in one go. The folder gets its final name last. `sources.jsonl` keeps the ledgers:
the same files are found again without being read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...rendering.cameras import Cameras
from ...settings.experiment import DataConfig
from ...store.files import write_file, write_json
from ..formats import Scene
from ..pipeline import run_each
from ..prepared import DataError, Kind, data_digest, read_json, write_manifest
from ..shards import shard_name
from ..transient import PAUSES, is_transient, retried
from .listing import Files, Listing, content, identity, stamp
from .tars import packed, write_shard_manifest, write_tar

SOURCES = "sources.jsonl"
UNUSABLE = "cannot be used"  # the reason where no rule gives another one
SPARE, OUT, TRAIN, TEST = range(4)  # what becomes of an object: not asked for, left out, or in a split
SPLIT_OF = {TRAIN: "train", TEST: "test"}

Read = Callable[[Scene], tuple[Any, Any]]  # an object, and what else belongs to it; picklable
Check = Callable[[Scene], str | None]  # why an object is left out before it is read


class LeftOut(DataError):
    """An object that a rule of its set drops: `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Masked:
    """What is kept of an object for a judge of masks: masks (v, h, w) uint8, and the cameras of the views."""

    key: str
    masks: Tensor
    cameras: Cameras


@dataclass(frozen=True)
class Work:
    """A preparation under way; small, since every process has it."""

    config: DataConfig  # its numbers of objects do not count yet
    folder: Path
    root: Path  # of the data, which reasons are told relative to
    kind: Kind
    read: Read
    files: Files
    objects_per_shard: int | None
    strict: bool  # an object that cannot be used is an error
    masked: bool  # masks are kept for a judge

    @property
    def per_unit(self) -> int:
        return self.objects_per_shard or 1

    def ledger(self, unit: int) -> Path:
        return self.folder / "ledger" / f"{unit:06d}.jsonl"

    def entries(self, unit: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The number in the listing of each object of a unit, and what was written of it."""
        lines = self.ledger(unit).read_text(encoding="utf-8").splitlines()
        return enumerate(map(json.loads, lines), unit * self.per_unit)

    def is_written(self, unit: int) -> bool:
        files = [self.ledger(unit)]
        files += [self.folder / shard_name(unit)] if self.objects_per_shard else []
        files += [self.ledger(unit).with_suffix(".npz")] if self.masked else []
        return all(file.is_file() for file in files)

    def masks(self, unit: int) -> dict[str, Masked]:
        with np.load(self.ledger(unit).with_suffix(".npz"), allow_pickle=False) as arrays:
            keys = sorted({name.rpartition("/")[0] for name in arrays.files})
            parts = {key: [torch.from_numpy(arrays[f"{key}/{i}"]) for i in range(3)] for key in keys}
        return {key: Masked(key, m, Cameras(w, k, *m.shape[1:])) for key, (m, w, k) in parts.items()}


# ---------------------------------------------------------------------------------------- units


def write_units(
    work: Work, listing: Listing, units: Iterable[int], workers: int, title: str, check: Check | None = None
) -> None:
    """Write those of the units that are not there, or are of files that have changed since. check: is asked here, in
    this process, before an object is read."""
    n = work.per_unit
    spans = {unit: range(unit * n, min((unit + 1) * n, len(listing))) for unit in units}
    pending = [unit for unit in spans if not _is_current(work, unit, listing)]

    def jobs() -> Iterator[tuple[int, list[tuple[Scene, str | None]]]]:
        for unit in pending:
            scenes = [listing[i] for i in spans[unit]]
            yield unit, [(scene, check(scene) if check else None) for scene in scenes]

    sizes = [len(spans[unit]) for unit in pending]
    run_each(partial(write_unit, work), jobs(), workers, title, sum(map(len, spans.values())), sizes)


def _is_current(work: Work, unit: int, listing: Listing) -> bool:
    if not work.is_written(unit):
        return False
    entries = list(work.entries(unit))
    faults = work.strict and any(entry["reason"] == UNUSABLE for _, entry in entries)
    return not faults and all(entry["stamp"] == stamp(listing[n], work.files) for n, entry in entries)


def write_unit(work: Work, job: tuple[int, list[tuple[Scene, str | None]]]) -> None:
    """Read the scenes of a unit, one after the other, and write what can be used of them; its ledger comes last."""
    unit, scenes = job
    ledger: list[dict[str, Any]] = []
    masks: dict[str, np.ndarray] = {}
    try:
        (work.folder / "ledger").mkdir(parents=True, exist_ok=True)
        usable = _usable(work, unit * work.per_unit, scenes, ledger, masks)
        if work.objects_per_shard is None:
            for _, item, extra in usable:
                target = work.folder / "objects" / item.key
                shutil.rmtree(target, ignore_errors=True)  # of other files, or of a process that was killed
                work.kind.save(item, target, extra)
        else:
            tar = ((n, *packed(item, work.config)) for n, item, _ in usable)
            rows = {row["key"]: row for row in write_tar(work.folder / shard_name(unit), unit, tar)}
            for entry in ledger:
                entry["row"] = rows.get(entry["key"])
        if work.masked:
            with io.BytesIO() as file:
                np.savez_compressed(file, **masks)
                write_file(work.ledger(unit).with_suffix(".npz"), file.getvalue())
        write_file(work.ledger(unit), "".join(json.dumps(entry) + "\n" for entry in ledger))
    except OSError as error:
        raise DataError(f"{work.ledger(unit)}: cannot be written ({error})") from error


def _usable(
    work: Work,
    first: int,
    scenes: list[tuple[Scene, str | None]],
    ledger: list[dict[str, Any]],
    masks: dict[str, np.ndarray],
) -> Iterator[tuple[int, Any, Any]]:
    """Objects with their numbers; of every scene, usable or not, an entry is added to the ledger."""
    for n, (scene, reason) in enumerate(scenes, first):
        entry: dict[str, Any] = {"key": scene.key, "content": None, "reason": reason, "problem": None}
        try:
            entry["stamp"] = retried(lambda scene=scene: stamp(scene, work.files))
            if reason is not None:
                ledger.append(entry | {"problem": f"{scene.where}: {reason}".replace(f"{work.root}/", "")})
                continue
            found, (item, extra) = retried(lambda scene=scene: (content(scene, work.files), work.read(scene)))
            if fault := work.kind.check(item, work.config):
                raise DataError(f"{scene.where}: {fault}")
            item.validate(scene.place)
        except (DataError, OSError) as error:
            problem = str(error) if isinstance(error, DataError) else f"{scene.where}: cannot be read ({error})"
            reason = getattr(error, "reason", UNUSABLE)
            if is_transient(error):
                raise DataError(f"{problem}; tried {len(PAUSES) + 1} times; started again, it goes on") from error
            if work.strict and reason == UNUSABLE:
                raise DataError(problem) from error
            problem = problem.replace(f"{work.root}/", "")
            ledger.append({"stamp": None} | entry | {"reason": reason, "problem": problem})
            continue
        ledger.append(entry | {"content": found})
        if work.masked:
            cameras = item.cameras
            arrays = (item.masks, cameras.world_to_camera, cameras.intrinsics)
            masks |= {f"{item.key}/{i}": array.numpy() for i, array in enumerate(arrays)}
        yield n, item, extra


# ---------------------------------------------------------------------------------------- joining


def join(
    work: Work,
    sources: dict[str, Any],
    head: dict[str, Any],
    listing: Listing,
    fates: np.ndarray,
    report: Callable[[Path], tuple[str, dict[str, Any]]],
) -> Path:
    """Give the work folder its manifest and its name, from its ledgers alone, and return it.

    fates (n,): what becomes of each object. report: of the folder that the set will be in, name and JSON values of a
    file beside the manifest.
    """
    digest, counts = hashlib.sha256(), {kind: int((fates == kind).sum()) for kind in (TRAIN, TEST)}
    for n, entry in _entries(work, fates, TRAIN):
        digest.update(identity(listing.entry(n), SPLIT_OF[fates[n]], entry["content"]))
    config = dataclasses.replace(work.config, num_objects=counts[TRAIN], heldout_objects=counts[TEST])
    made_of = {name: {**values, "objects": digest.hexdigest()} for name, values in sources.items()}
    tars = f"-by{work.objects_per_shard}" if work.objects_per_shard else ""
    final = work.folder.with_name(f"{config.name}-{data_digest(config, made_of)[:12]}{tars}")
    try:
        name, values = report(final)
        write_json(work.folder / name, values)
        with open(work.folder / SOURCES, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(head) + "\n")
            for n, entry in _entries(work, fates, OUT):
                kept = {name: entry[name] for name in ("key", "stamp", "content", "reason")}
                stream.write(json.dumps({"n": n} | kept) + "\n")
        if work.objects_per_shard is None:
            _keep_folders(work, fates)
            keys = [entry["key"] for _, entry in _entries(work, fates, TRAIN)]
            write_manifest(work.folder, config, made_of, keys, work.kind)
        else:
            _keep_tars(work, fates)
            rows = partial(_rows, work, fates)
            write_shard_manifest(work.folder, config, made_of, work.objects_per_shard, rows)
        _named(work.folder, final, name)
    except OSError as error:
        raise DataError(f"{final}: cannot be written ({error})") from error
    return final


def _entries(work: Work, fates: np.ndarray, least: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those of the ledgers whose fate is at least so good."""
    wanted = fates >= least
    for unit in np.unique(np.flatnonzero(wanted) // work.per_unit).tolist():
        yield from ((n, entry) for n, entry in work.entries(unit) if wanted[n])


def _rows(work: Work, fates: np.ndarray) -> Iterator[str]:
    for n, entry in _entries(work, fates, TRAIN):
        yield json.dumps(entry["row"] | {"split": SPLIT_OF[fates[n]]}) + "\n"


def _keep_folders(work: Work, fates: np.ndarray) -> None:
    """Remove objects that are not in the set, and write down the splits of the others, which are known only now."""
    splits = {entry["key"]: SPLIT_OF[fates[n]] for n, entry in _entries(work, fates, TRAIN)}
    for folder in (work.folder / "objects").iterdir():
        if folder.name not in splits:
            shutil.rmtree(folder)
            continue
        about = read_json(folder / "object.json", folder.name, ("split",))
        if about["split"] != splits[folder.name]:
            write_json(folder / "object.json", about | {"split": splits[folder.name]})


def _keep_tars(work: Work, fates: np.ndarray) -> None:
    """Remove the shards that nothing of the set lies in."""
    used = {shard_name(unit) for unit in np.unique(np.flatnonzero(fates >= TRAIN) // work.per_unit).tolist()}
    for file in work.folder.glob("*.tar"):
        if file.name not in used:
            file.unlink()


def _named(folder: Path, final: Path, report: str) -> None:
    """Rename the complete folder, and remove what only its preparation needed."""
    if final.exists():  # the same was made before, from files of other times or another choice of objects
        for name in (report, SOURCES):
            (folder / name).replace(final / name)
        shutil.rmtree(folder)
        return
    folder.rename(final)
    shutil.rmtree(final / "ledger")
    leftovers = [*final.glob(".*"), *(final / "objects").glob(".*"), final / "parts.json", final / "settings.json"]
    for leftover in leftovers:  # of killed processes
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def is_made_of(file: Path, head: dict[str, Any], listing: Listing, files: Files) -> bool:
    """Whether a set, whose `sources.jsonl` this is, was made of the objects of a listing as they are now: by their
    stamps, or else by their content."""
    with open(file, encoding="utf-8") as stream:
        if json.loads(stream.readline()) != json.loads(json.dumps(head)):
            return False
        for line in stream:
            entry = json.loads(line)
            scene = listing[entry["n"]]
            if entry["stamp"] != stamp(scene, files) and entry["content"] != content(scene, files):
                return False
    return True
