"""Preparing a listing of objects: unit by unit, in any number of processes and parts, with memory for one object each.

    with Listing(walk(folder, "srn"), folder, data_root(), heldout) as listing:
        prepare_listed(config, {"own": ...}, listing, read, objects_per_shard=1000)

A preparation works in `<name>-<digest of the listing>.partial`. A unit is a shard, or an object of a set without
shards. When it is written, `ledger/<unit>.jsonl` follows: for each of its objects the stamp and the content of the
files it was read from, and why it was left out if it was. Joining reads the ledgers: the identity of a set is that of
the contents that went into it, whichever process read them, so that it is the same in parts and in one go. The folder
gets its final name last. `sources.jsonl` keeps the ledgers: the same files are found again without being read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...settings.checks import require
from ...settings.experiment import DataConfig
from ...store.files import canonical, write_file
from ..formats import Scene
from ..pipeline import run_each
from ..prepared import DataError, Kind, SequenceSet, data_digest, data_root, load_prepared, write_json, write_manifest
from ..sequence import SEQUENCES
from ..shards import ShardedSet, load_shards, shard_name
from .listing import Listing, content, identity, stamp
from .parts import Join, Part, PartOfSet, note_parts, require_all
from .tars import packed, write_shard_manifest, write_tar

LEFT_OUT = "left_out.json"  # of a set: {key: why the object is not in it}
SOURCES = "sources.jsonl"
SHOWN = 3

Read = Callable[[Scene], tuple[Any, Any]]  # an object, and what else belongs to it; picklable


@dataclass(frozen=True)
class _Work:
    """A preparation under way; small, since every process has it."""

    config: DataConfig
    folder: Path
    root: Path  # of the data, which reasons are told relative to
    kind: Kind
    read: Read
    objects_per_shard: int | None
    strict: bool

    @property
    def per_unit(self) -> int:
        return self.objects_per_shard or 1

    def ledger(self, unit: int) -> Path:
        return self.folder / "ledger" / f"{unit:06d}.jsonl"

    def entries(self, unit: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ledger(unit).read_text(encoding="utf-8").splitlines()]

    def is_written(self, unit: int) -> bool:
        return self.ledger(unit).is_file() and (
            self.objects_per_shard is None or (self.folder / shard_name(unit)).is_file()
        )


def prepare_listed(
    config: DataConfig,
    sources: dict[str, Any],
    listing: Listing,
    read: Read,
    kind: Kind = SEQUENCES,
    workers: int = 1,
    root: Path | None = None,
    objects_per_shard: int | None = None,
    part: Part | Join | None = None,
    strict: bool = False,
) -> SequenceSet | ShardedSet | PartOfSet:
    """Load the set of a listing's objects, or first read what is missing of it.

    config: its numbers of objects are replaced by those that could be read. sources: JSON values that decide the set
    beside its objects. objects_per_shard, part: as in `pipeline.prepare_set`. An object that cannot be used is left
    out, named in `left_out.json` and in the sources of the set; or, if `strict`, is an error.

    Raises DataError where nothing can be used, parts are missing, or files cannot be written.
    """
    require(part is None or objects_per_shard is not None, "part is of a set of shards, expected objects_per_shard")
    require(objects_per_shard is None or objects_per_shard >= 1, "objects_per_shard is 0 or less, expected at least 1")
    root = root or data_root()
    config = dataclasses.replace(config, num_objects=0, heldout_objects=0)
    head = {"config": dataclasses.asdict(config), "sources": sources, "objects_per_shard": objects_per_shard,
            "listing": listing.digest}  # fmt: skip
    digest = hashlib.sha256(canonical(head).encode()).hexdigest()
    work = _Work(
        config, root / f"{config.name}-{digest[:12]}.partial", listing.root, kind, read, objects_per_shard, strict
    )
    if (done := _found(root, work, head, listing)) is not None:
        return done
    count = -(-len(listing) // work.per_unit)
    if not isinstance(part, Join):
        units = range(count) if part is None else part.units(count)
        _write(work, listing, units, workers, part)
        if part is not None:
            entries = (entry for unit in units for entry in work.entries(unit))
            faults = {entry["key"]: entry["fault"] for entry in entries if entry["fault"]}
            objects = sum(min(work.per_unit, len(listing) - unit * work.per_unit) for unit in units)
            return PartOfSet(work.folder, part, objects, faults)
    require_all(work.folder, (unit for unit in range(count) if not work.is_written(unit)), count)
    return _join(work, sources, head, listing, count)


def _write(work: _Work, listing: Listing, units: range, workers: int, part: Part | None) -> None:
    """Write those of the units that are not there, or are of files that have changed since."""
    try:
        (work.folder / "ledger").mkdir(parents=True, exist_ok=True)
        if part is not None:
            note_parts(work.folder, part)
    except OSError as error:
        raise DataError(f"{work.folder}: output folder is not writable ({error})") from error
    n, total = work.per_unit, len(listing)
    spans = {unit: range(unit * n, min((unit + 1) * n, total)) for unit in units}
    pending = [unit for unit in units if not _is_current(work, unit, listing, spans[unit])]
    jobs = ((unit, spans[unit].start, [listing[i] for i in spans[unit]]) for unit in pending)
    sizes = [len(spans[unit]) for unit in pending]
    title = work.config.name if part is None else f"{work.config.name} {part}"
    run_each(partial(write_unit, work), jobs, workers, title, sum(map(len, spans.values())), sizes)


def _is_current(work: _Work, unit: int, listing: Listing, span: range) -> bool:
    if not work.is_written(unit):
        return False
    entries = work.entries(unit)
    faults = work.strict and any(entry["fault"] for entry in entries)
    return not faults and all(entry["stamp"] == stamp(listing[i]) for i, entry in zip(span, entries, strict=True))


def write_unit(work: _Work, job: tuple[int, int, list[Scene]]) -> None:
    """Read the scenes of a unit, one after the other, and write what can be used of them; its ledger comes last."""
    unit, first, scenes = job
    ledger: list[dict[str, Any]] = []
    try:
        if work.objects_per_shard is None:
            for _, item, extra in _usable(work, first, scenes, ledger):
                target = work.folder / "objects" / item.key
                shutil.rmtree(target, ignore_errors=True)  # of other files, or of a process that was killed
                work.kind.save(item, target, extra)
        else:
            tar = ((n, *item) for n, item, _ in _usable(work, first, scenes, ledger))
            rows = {row["key"]: row for row in write_tar(work.folder / shard_name(unit), unit, tar)}
            for entry in ledger:
                entry["row"] = rows.get(entry["key"])
        write_file(work.ledger(unit), "".join(json.dumps(entry) + "\n" for entry in ledger))
    except OSError as error:
        raise DataError(f"{work.ledger(unit)}: cannot be written ({error})") from error


def _usable(
    work: _Work, first: int, scenes: list[Scene], ledger: list[dict[str, Any]]
) -> Iterator[tuple[int, Any, Any]]:
    """Objects with their numbers; of every scene, usable or not, an entry is added to the ledger."""
    for n, scene in enumerate(scenes, first):
        entry = {"key": scene.key, "stamp": stamp(scene), "content": content(scene), "fault": None}
        try:
            item, extra = work.read(scene)
            if fault := work.kind.check(item, work.config):
                raise DataError(f"{scene.where}: {fault}")
            item = item.validate(scene.place) if work.objects_per_shard is None else packed(item, work.config)
        except DataError as error:
            if work.strict:
                raise
            ledger.append(entry | {"fault": str(error).replace(f"{work.root}/", "")})
            continue
        ledger.append(entry)
        yield n, item, extra


# ---------------------------------------------------------------------------------------- joining


def _join(
    work: _Work, sources: dict[str, Any], head: dict[str, Any], listing: Listing, count: int
) -> SequenceSet | ShardedSet:
    """Give the complete work folder its manifest and its name, from its ledgers alone."""
    digest, counts, faults = hashlib.sha256(), {"train": 0, "test": 0}, {}

    def entries() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        numbers = iter(range(len(listing)))
        return ((listing.entry(next(numbers)), entry) for unit in range(count) for entry in work.entries(unit))

    for listed, entry in entries():
        digest.update(identity(listed, entry["content"], not entry["fault"]))
        counts[listed["split"]] += not entry["fault"]
        if entry["fault"]:
            faults[entry["key"]] = entry["fault"]
    if counts["train"] == 0:
        reasons = "".join(f"\n  {reason}" for reason in list(faults.values())[:SHOWN])
        raise DataError(f"{work.root}: none of {len(listing)} objects can be used to train on{reasons}")
    config = dataclasses.replace(work.config, num_objects=counts["train"], heldout_objects=counts["test"])
    made_of = _with_objects(sources, {"objects": digest.hexdigest()} | ({"left_out": sorted(faults)} if faults else {}))
    final = work.folder.with_name(f"{config.name}-{data_digest(config, made_of)[:12]}")
    try:
        if faults:
            write_json(work.folder / LEFT_OUT, faults)
        with open(work.folder / SOURCES, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(head) + "\n")
            stream.writelines(json.dumps({k: v for k, v in e.items() if k != "row"}) + "\n" for _, e in entries())
        if work.objects_per_shard is None:
            keys = [entry["key"] for _, entry in entries() if not entry["fault"]]
            write_manifest(work.folder, config, made_of, keys, work.kind)
        else:
            final = final.with_name(f"{final.name}-by{work.objects_per_shard}")

            def rows() -> Iterator[str]:
                return (json.dumps(entry["row"]) + "\n" for _, entry in entries() if not entry["fault"])

            write_shard_manifest(work.folder, config, made_of, work.objects_per_shard, rows)
        _named(work.folder, final)
    except OSError as error:
        raise DataError(f"{final}: cannot be written ({error})") from error
    return _opened(final, work.kind)


def _with_objects(sources: dict[str, Any], objects: dict[str, Any]) -> dict[str, Any]:
    """Sources {reader: what it does} with what it was given."""
    return {name: {**values, **objects} for name, values in sources.items()}


def _named(folder: Path, final: Path) -> None:
    """Rename the complete folder, and remove what only its preparation needed."""
    if final.exists():
        shutil.rmtree(folder)  # the same was made before, from files of other times
        return
    folder.rename(final)
    shutil.rmtree(final / "ledger")
    leftovers = [*final.glob(".*"), *(final / "objects").glob(".*"), final / "parts.json"]
    for leftover in leftovers:  # of killed processes
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _found(root: Path, work: _Work, head: dict[str, Any], listing: Listing) -> SequenceSet | ShardedSet | None:
    """The set that was made of the same files before."""
    for file in sorted(root.glob(f"{work.config.name}-*/{SOURCES}")):
        if not file.parent.name.endswith(".partial") and _is_of(file, head, listing):
            faults = left_out(file.parent)
            if work.strict and faults:
                raise DataError(f"{next(iter(faults.values()))}")
            return _opened(file.parent, work.kind)
    return None


def _is_of(file: Path, head: dict[str, Any], listing: Listing) -> bool:
    """Whether a set was made of the objects of a listing as they are now: by their stamps, or else by their content."""
    with open(file, encoding="utf-8") as stream:
        if json.loads(stream.readline()) != json.loads(json.dumps(head)):
            return False
        for i, line in enumerate(stream):
            entry, scene = json.loads(line), listing[i]
            if entry["stamp"] != stamp(scene) and entry["content"] != content(scene):
                return False
    return True


def _opened(folder: Path, kind: Kind) -> SequenceSet | ShardedSet:
    return load_shards(folder) if (folder / "manifest.jsonl").is_file() else load_prepared(folder, kind)


def left_out(folder: Path) -> dict[str, str]:
    """Why objects of a set's folder are not in it, by key."""
    file = Path(folder) / LEFT_OUT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
