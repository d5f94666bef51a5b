"""From objects on disk to a prepared set: what own folders and the paper's sets share.

    found = Found("set", scenes, Options(background="white"), rules, Sieve(len(scenes)))
    data = prepare_found(config, found, workers=8)

The counts of `config` are upper limits. Each object is read once, in parallel, into a folder beside the prepared sets;
one that cannot be used, or that a rule of the set leaves out, is named with the reason, and another one takes its
place while there are more. An interrupted reading goes on where it was. What the pictures show decides the rest: how
many views there are, how far the cameras stand, how wide they see. Of the views of each object a sixth are held out,
spread over all, and at most `heldout_views`. The set gets `filter.json`, which counts what was found, dropped and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...settings.experiment import DataConfig
from ...store.files import plain
from ..formats import Options, Scene
from ..formats.shared.images import natural
from ..pipeline import SetWriter, prepare_set, run_each
from ..prepared import DataError, SequenceSet, data_root, read_json, write_json
from ..sequence import Sequence, load_sequence, object_cameras
from ..shards import ShardedSet
from .earlier import REPORT, Earlier, asked, sets_called
from .objects import FEWEST_VIEWS, Found, Job, hashed, heldout_keys, read_object, settings_of, stamp, views_of

LOOKED_AT = 8  # objects whose views are counted, to say how many views all have
SHOWN = 3  # reasons in a message
MISFIT = "masks do not fit one shape"


def prepare_found(
    config: DataConfig,
    found: Found,
    workers: int | None = None,
    root: Path | None = None,
    objects_per_shard: int | None = None,
    strict: bool = False,
) -> SequenceSet | ShardedSet:
    """The set of the objects found, of at most so many objects and views as `config` has, or what was prepared from
    the same files before. strict: an object that cannot be used is an error, not left out.

    Raises DataError where no training object is left, and for an output folder that cannot be written.
    """
    root = root or data_root()
    reading = _Reading(config, found, root, strict)
    if earlier := reading.done_before(objects_per_shard is not None):
        return earlier.opened(objects_per_shard)
    workers = torch.get_num_threads() if workers is None else workers
    settings, options = reading.settle()
    kept = reading.read(settings, options, workers)
    if found.judge is not None:
        kept = reading.judged(kept)
    return reading.finish(settings, kept, objects_per_shard)


def _as_written(folder: Path) -> tuple[Sequence, None]:
    return load_sequence(folder), None


def _write_split(folder: Path, split: str) -> None:
    """What an object's file says of its split, which is known in the end."""
    file = folder / "object.json"
    about = read_json(file, folder.name, ("split",))
    if about["split"] != split:
        write_json(folder / ".object.json", about | {"split": split})
        (folder / ".object.json").replace(file)


class _Reading:
    """One pass over the objects of a folder."""

    def __init__(self, config: DataConfig, found: Found, root: Path, strict: bool) -> None:
        self.config, self.found, self.root, self.strict = config, found, root, strict
        listing = [
            [s.key, s.split, s.caption, s.attributes, os.path.relpath(s.place, s.root), str(s.placing)]
            for s in found.scenes
        ]
        identity = [plain(config), found.identity, found.sieve.rules, listing, found.judge is not None, strict]
        text = json.dumps(identity, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.folder = root / f".{config.name}-reading-{self.digest[:12]}"
        self.told = any(scene.split == "test" for scene in found.scenes)  # by the data, which objects are held out
        self.ready: dict[str, Sequence] = {}  # objects that were looked at, with as many views as all will have

    def done_before(self, sharded: bool) -> Earlier | None:
        """The set that this reading has made, if its files are still the same."""
        scenes = {scene.key: scene for scene in self.found.scenes}
        for earlier in sets_called(self.config.name, self.found.kind, self.root):
            kept = earlier.report.get("kept_objects", {})
            if earlier.report.get("reading") != self.digest or earlier.sharded != sharded:
                continue
            if all(key in scenes and stamp(self.found.files(scenes[key])) == kept[key] for key in kept):
                return earlier
        return None

    def settle(self) -> tuple[DataConfig, Options]:
        """The settings, but for the numbers of objects, and how objects are read."""
        config, options = self.config, dataclasses.replace(self.found.options, resolution=self.config.resolution)
        if not self.found.posed:
            cameras = partial(object_cameras, config)
            self.found.sieve.notes["views_found"] = config.train_views + config.heldout_views
            return config, dataclasses.replace(options, cameras=cameras, supersampling=config.supersampling)
        looked_at: list[Sequence] = []
        faults, few = [], []
        for scene in self._order():
            try:
                sequence, _ = self.found.read(scene, options)
            except DataError as error:
                faults.append(str(error))
                continue
            if len(sequence) < FEWEST_VIEWS:
                few.append(f"{scene.where} has {len(sequence)} views, expected at least {FEWEST_VIEWS}")
                continue
            looked_at.append(sequence)
            if len(looked_at) == LOOKED_AT:
                break
        if not looked_at:
            raise DataError(_none_left(self.config.name, [*few, *faults]))
        self.found.sieve.notes["views_found"] = sorted(map(len, looked_at))[len(looked_at) // 2]
        views = views_of(config, looked_at, len(looked_at) + len(faults) + len(few) == len(self.found.scenes))
        first = next(sequence for sequence in looked_at if len(sequence) >= views)
        settings = settings_of(config, first, views, config.heldout_views)
        self.ready = {sequence.key: sequence for sequence in looked_at if len(sequence) == views}
        return settings, dataclasses.replace(options, views=views)

    def read(self, settings: DataConfig, options: Options, workers: int) -> dict[str, dict[str, Any]]:
        """Findings of the objects kept, by key: objects are read until there are enough of each split."""
        try:
            for name in ("objects", "findings"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: output folder is not writable ({error}); set VADER_DATA to one") from error
        wanted = {"train": self.config.num_objects, "test": self.config.heldout_objects}
        if not self.told:
            wanted = {"train": self.config.num_objects + self.config.heldout_objects}
        waiting = {split: [s for s in self._order() if s.split == split] for split in wanted}
        kept: dict[str, dict[str, Any]] = {}
        heldout = settings.heldout_views if self.found.posed else 0
        while batch := [s for split, scenes in waiting.items() for s in scenes[: wanted[split]]]:
            for split, scenes in waiting.items():
                waiting[split] = scenes[wanted[split] :]
            passed = [scene for scene in batch if not self._left_out(scene)]
            functions = (self.found.read, self.found.files)
            jobs = [
                Job(s, options, self.folder, functions, heldout, self.strict, self.ready.pop(s.key, None))
                for s in passed
                if not self._done(s)
            ]
            run_each(read_object, jobs, workers, f"{self.config.name}: read", len(passed))
            for scene in passed:
                finding = self._finding(scene.key)
                if finding["reason"] is None:
                    kept[scene.key] = finding
                    wanted[scene.split] -= 1
                else:
                    self.found.sieve.drop(finding["reason"], scene.key, finding["problem"])
        self.found.sieve.notes["not_needed"] = sum(map(len, waiting.values()))
        return kept

    def judged(self, kept: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those that the judge leaves. Its rule and thresholds are written down."""
        sequences: Iterator[Sequence] = (load_sequence(self.folder / "objects" / key) for key in kept)
        verdict = self.found.judge(sequences)
        for key in kept.keys() & verdict.dropped.keys():
            self.found.sieve.drop(MISFIT, key, verdict.dropped[key])
        self.found.sieve.notes["mask_fit"] = verdict.report()
        return {key: finding for key, finding in kept.items() if key not in verdict.dropped}

    def finish(
        self, settings: DataConfig, kept: dict[str, dict[str, Any]], objects_per_shard: int | None
    ) -> SequenceSet | ShardedSet:
        """The set, training objects first, each split in natural order of its keys, and its report."""
        splits = self._split(kept)
        keys = sorted(splits, key=lambda key: (splits[key] == "test", natural(key)))
        counts = [list(splits.values()).count(split) for split in ("train", "test")]
        if counts[0] == 0:
            dropped = self.found.sieve.dropped.values()
            raise DataError(_none_left(self.config.name, [text for found in dropped for text in found.values()]))
        config = dataclasses.replace(settings, num_objects=counts[0], heldout_objects=counts[1])
        objects = {key: [splits[key], kept[key]["sha256"]] for key in keys}
        jobs = {key: self.folder / "objects" / key for key in keys}
        sources = {self.found.kind: self.found.identity | {"objects": objects}}
        for key in keys:
            _write_split(jobs[key], splits[key])
        writer = SetWriter(config, sources, self.root)
        if objects_per_shard is None and not writer.finished:
            for key in writer.pending(keys):
                jobs[key].rename(writer.object_folder(key))
        data = prepare_set(config, sources, jobs, _as_written, 1, self.root, objects_per_shard=objects_per_shard)
        self._report(data.folder, {key: kept[key]["stamp"] for key in keys})
        shutil.rmtree(self.folder)
        return data

    def _report(self, folder: Path, stamps: dict[str, str]) -> None:
        sieve, file = self.found.sieve, folder / REPORT
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        report = {
            "set": self.config.name,
            "rules": sieve.rules,
            "found": sieve.found,
            "dropped": {reason: len(keys) for reason, keys in sieve.dropped.items()},
            "kept": len(stamps),
            **sieve.notes,
            "stated_in_the_paper": sieve.stated,
            "dropped_objects": sieve.dropped,
            "asked_for": asked(self.config, before),
            "reading": self.digest,
            "kept_objects": stamps,
        }
        write_json(folder / f".{REPORT}", report)
        (folder / f".{REPORT}").replace(file)

    def _order(self) -> list[Scene]:
        """Training objects, then held-out ones, each in the order of a hash: any first few are like all others."""
        if self.told:
            return sorted(self.found.scenes, key=lambda s: (s.split == "test", hashed(self.config.seed, s.key)))
        return sorted(
            self.found.scenes, key=lambda s: [hashed(self.config.seed, n) for n in (self.found.group(s), s.key)]
        )

    def _split(self, kept: dict[str, Any]) -> dict[str, str]:
        """Splits of the objects kept: as the data say, else some groups of those that can be used are held out."""
        scenes = [scene for scene in self._order() if scene.key in kept]
        if self.told:
            return {scene.key: scene.split for scene in scenes}
        heldout = heldout_keys(scenes, self.config, self.found.group)
        training = [scene.key for scene in scenes if scene.key not in heldout]
        self.found.sieve.notes["not_needed"] += len(training[self.config.num_objects :])
        return dict.fromkeys(training[: self.config.num_objects], "train") | dict.fromkeys(heldout, "test")

    def _left_out(self, scene: Scene) -> bool:
        reason = self.found.check(scene) if self.found.check is not None else None
        if reason is not None:
            self.found.sieve.drop(reason, scene.key, f"{scene.where}: {reason}")
        return reason is not None

    def _finding(self, key: str) -> dict[str, Any]:
        return read_json(self.folder / "findings" / f"{key}.json", key, ("reason",))

    def _done(self, scene: Scene) -> bool:
        """Whether an earlier attempt has read these very files."""
        if not (self.folder / "findings" / f"{scene.key}.json").is_file():
            return False
        finding = self._finding(scene.key)
        there = finding["reason"] is not None or (self.folder / "objects" / scene.key).is_dir()
        try:
            return there and finding.get("stamp") == stamp(self.found.files(scene))
        except DataError:
            return False


def _none_left(name: str, faults: list[str]) -> str:
    shown = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"data set {name}: none of the objects can be used for training{shown}{more}"


def said_of(folder: Path) -> list[str]:
    """What filter.json says, a line each: counts beside the paper's, and the objects that were dropped."""
    if not (folder / REPORT).is_file():
        return []
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if "kept_objects" not in report:
        return []
    stated = report["stated_in_the_paper"]
    beside = f" (the paper: {stated['objects']:,} x {stated['views']})" if stated else ""
    rest = report["not_needed"]
    lines = [f"found {report['found']:,} objects x {report['views_found']} views{beside}, kept {report['kept']:,}"]
    lines[0] += f", {rest:,} more than these settings ask for were not read" if rest else ""
    for reason, objects in report["dropped_objects"].items():
        lines.append(f"dropped {len(objects)}: {reason}")
        lines += [f"  {key}: {message}" for key, message in list(objects.items())[:SHOWN]]
        lines += [f"  and {len(objects) - SHOWN} more, see {folder / REPORT}"] if len(objects) > SHOWN else []
    return lines
