"""Sets that were made of files on disk before: found by name, with the settings that their files decided.

Such a set has `own` or `set` in its manifest's sources (`passes`), and beside the manifest `filter.json`,
which says for which settings it was made: a profile asks for up to so many objects and views, and gets what
there is.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...settings.experiment import DataConfig, Experiment
from ...store.files import from_plain, plain
from ..pipeline import ShardWriter, shard_set
from ..prepared import DataError, SequenceSet, data_root, load_prepared, read_json
from ..sequence import PACKED, SEQUENCES
from ..shards import ShardedSet, load_shards
from ..video import VIDEOS

REPORT = "filter.json"
KINDS = ("own", "set")  # of sources
NAMED = 20  # objects that were dropped, by name


@dataclass(frozen=True)
class Earlier:
    """A complete set: its folder, whether it is one of tars, its settings and sources, and what `filter.json` says."""

    folder: Path
    sharded: bool
    config: DataConfig
    sources: dict[str, Any]
    report: dict[str, Any]

    @property
    def kind(self) -> str:
        return next((kind for kind in KINDS if kind in self.sources), "")

    @property
    def manifest(self) -> Path:
        return self.folder / ("manifest.jsonl" if self.sharded else "manifest.json")

    def was_asked_for(self, config: DataConfig) -> bool:
        """Whether these are its settings, or those of which it holds as much as there was."""
        return self.config == config or plain(config) in self.report.get("asked_for", [])

    def opened(self, objects_per_shard: int | None = None) -> SequenceSet | ShardedSet:
        """In memory, or as tars, made of the set in memory if need be."""
        if self.sharded:
            return load_shards(self.folder)
        if objects_per_shard is None:
            return load_prepared(self.folder, SEQUENCES, PACKED, VIDEOS)
        return shard_set(self.folder, ShardWriter(self.config, self.sources, self.folder.parent, objects_per_shard))


def sets_called(name: str, kind: str, root: Path | None = None) -> Iterator[Earlier]:
    """The complete sets of a name and a kind of KINDS, the one prepared last at the end. Raises DataError for a
    manifest or report that cannot be read."""
    root = root or data_root()
    files = [*root.glob(f"{name}-*/manifest.json"), *root.glob(f"{name}-*/manifest.jsonl")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        if not re.fullmatch(re.escape(name) + r"-[0-9a-f]{12}(-by\d+)?", file.parent.name):
            continue
        head = _head(file, name)
        if head["name"] == name and kind in head["sources"]:
            report = file.parent / REPORT
            said = read_json(report, name, ("asked_for",)) if report.is_file() else {}
            config = from_plain(DataConfig, head["config"])
            yield Earlier(file.parent, file.suffix == ".jsonl", config, head["sources"], said)


def load_earlier(
    config: DataConfig, kind: str, expected: str, root: Path | None = None, objects_per_shard: int | None = None
) -> SequenceSet | ShardedSet:
    """The set that was prepared for these settings before, of several the last one; tars where they are asked for or
    all there is. Raises DataError, ending with the command that is `expected`, where there is none."""
    fitting = [e for e in sets_called(config.name, kind, root) if e.was_asked_for(config)]
    if objects_per_shard is not None:  # tars of that many objects, or what such tars can be made of
        tars = f"-by{objects_per_shard}"
        wanted = [e for e in fitting if not e.sharded or e.folder.name.endswith(tars)]
        fitting = [e for e in wanted if e.sharded] or wanted
    else:
        fitting = [e for e in fitting if not e.sharded] or fitting
    if not fitting:
        shards = "" if objects_per_shard is None else f" --objects-per-shard {objects_per_shard}"
        raise DataError(f"data set {config.name}: is not prepared with these settings, {expected}{shards}")
    return fitting[-1].opened(objects_per_shard)


def fitted(pattern: Experiment, data: DataConfig) -> Experiment:
    """The pattern's experiment on the data found. Where these are few objects, a step takes no more of them than there
    are, and a subset of the kernel distance no more pictures."""
    per_step = min(pattern.reconstruction.objects_per_step, data.num_objects)
    per_subset = min(pattern.evaluation.kid_subset_size, pattern.evaluation.real_views * data.num_objects)
    changes = dict(reconstruction=dict(objects_per_step=per_step), evaluation=dict(kid_subset_size=per_subset))
    return dataclasses.replace(pattern.replace(**changes), data=data)


def _head(file: Path, name: str) -> dict[str, Any]:
    fields = ("name", "config", "sources")
    if file.suffix == ".json":
        return read_json(file, name, fields)
    try:
        with open(file, encoding="utf-8") as stream:
            head = json.loads(stream.readline())
        return {field: head[field] for field in fields}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: {name!r}: its first line is not that of a set of tars ({error!r})") from error


def asked(config: DataConfig, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The `asked_for` of a report, with these settings."""
    known = report.get("asked_for", [])
    return known if plain(config) in known else [*known, plain(config)]


def said_of(folder: Path) -> list[str]:
    """What filter.json says, a line each: counts beside the paper's, and the objects that were dropped."""
    if not (folder / REPORT).is_file():
        return []
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if "stated_in_the_paper" not in report:
        return []
    stated = report["stated_in_the_paper"]
    beside = f" (the paper: {stated['objects']:,} x {stated['views']})" if stated else ""
    rest = report["not_needed"]
    lines = [f"found {report['found']:,} objects x {report['views_found']} views{beside}, kept {report['kept']:,}"]
    lines[0] += f", {rest:,} more than these settings ask for were not read" if rest else ""
    for reason, objects in report["dropped_objects"].items():
        lines += dropped_lines(reason, objects, folder / REPORT)
    return lines


def dropped_lines(reason: str, objects: dict[str, str], file: Path) -> list[str]:
    """How many objects were dropped for a reason, and which, the first ones by name; all are in `file`."""
    lines = [f"dropped {len(objects)}: {reason}"]
    for key, message in list(objects.items())[:NAMED]:
        lines.append(f"  {message}" if repr(key) in message else f"  {key}: {message}")
    return lines + ([f"  and {len(objects) - NAMED} more, see {file}"] if len(objects) > NAMED else [])
