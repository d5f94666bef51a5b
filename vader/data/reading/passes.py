"""From objects on disk to a prepared set: what own folders and the paper's sets share.

    found = Found("set", root, scenes, Options(background="white"), rules, Sieve())
    data = prepare_found(config, found, workers=8)
    tars = prepare_found(config, found, objects_per_shard=1000, part=Part(3, 64))     then Join()

Objects are listed first (`streaming.listing`), then read in parallel, unit by unit, and joined (`streaming.streamed`):
in memory or as tars, in one go or in parts, it is one set. What stopped goes on where it was. What the first objects
show decides the settings: how many views there are, how far the cameras stand, how wide they see. Of the views of each
object a sixth are held out, spread over all, and at most `heldout_views`.

The counts of `config` are upper limits. An object that cannot be used, or that a rule of the set leaves out, is named
with the reason, and another one takes its place while there are more. A part reads all objects of its share, since only
joining shows which of them a limit needs. There, too, a judge of masks is asked, with the masks that were kept. The set
gets `filter.json`, which counts what was found, dropped and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...settings.checks import require
from ...settings.experiment import DataConfig
from ...store.files import canonical, from_plain, plain, read_json
from ..formats import Options, Scene
from ..meshes.render import RADIUS
from ..prepared import DataError, SequenceSet, data_root, load_prepared
from ..sequence import SEQUENCES, object_cameras
from ..shards import ShardedSet, load_shards
from ..streaming.listing import Listing, chosen_groups, stamp
from ..streaming.parts import Join, Part, PartOfSet, note, note_parts, require_all
from ..streaming.streamed import (
    OUT,
    SOURCES,
    SPARE,
    TEST,
    TRAIN,
    UNUSABLE,
    Masked,
    Work,
    is_made_of,
    join,
    write_units,
)
from ..transient import retried, unusable
from .earlier import REPORT, asked, load_earlier
from .objects import FEWEST_VIEWS, Found, read_ordered, settings_of, views_of

SHOWN = 3  # reasons in a message
MISFIT = "masks do not fit one shape"
SETTINGS = "settings.json"  # what the objects that were looked at say


def prepare_source(
    find: Callable[..., Found],
    config: DataConfig,
    source: str | Path | None = None,
    workers: int | None = None,
    root: Path | None = None,
    objects_per_shard: int | None = None,
    part: Part | Join | None = None,
    strict: bool = False,
    **options: Any,
) -> SequenceSet | ShardedSet | PartOfSet:
    """A named set of files that somebody has downloaded: what `find(source, **options)` finds, prepared.

    Without a source, a set that was prepared earlier for these settings is loaded. Raises as `find` and
    `prepare_found`, and DataError where there is neither.
    """
    if source is None:
        expected = "and no source is given; expected source, the folder of its files, see its data card (--source PATH)"
        return load_earlier(config, "set", expected, root, objects_per_shard)
    return prepare_found(config, find(Path(source), **options), workers, root, objects_per_shard, part, strict)


def prepare_found(
    config: DataConfig,
    found: Found,
    workers: int | None = None,
    root: Path | None = None,
    objects_per_shard: int | None = None,
    part: Part | Join | None = None,
    strict: bool = False,
) -> SequenceSet | ShardedSet | PartOfSet:
    """The set of the objects found, of at most so many objects and views as `config` has, or what was prepared from
    the same files before. objects_per_shard, part: as in `pipeline.prepare_set`. strict: an object that cannot be used
    is an error, not left out.

    Raises ConfigError for settings that cannot work, and DataError where no training object is left, parts are
    missing, or files cannot be written.
    """
    name, models = config.name, not found.posed and found.holds is SEQUENCES
    require(part is None or objects_per_shard is not None, "part is of a set of shards, expected objects_per_shard")
    require(objects_per_shard is None or objects_per_shard >= 1, "objects_per_shard is 0 or less, expected at least 1")
    require(
        objects_per_shard is None or found.holds is SEQUENCES,
        f"data set {name}: tars hold posed images, and these are videos; expected no objects_per_shard and no part",
    )
    require(
        not models or config.camera_distance > RADIUS,
        f"data set {name}: camera_distance is {config.camera_distance}, expected more than {RADIUS}, the objects' "
        "radius",
    )
    if strict and found.faults:
        raise DataError(found.faults[0])
    root = root or data_root()
    spare = (lambda count: 0) if found.limited else partial(found.spare, config=config)
    with Listing(found.scenes, found.root, root, config.seed, found.group, found.limited, spare) as listing:
        reading = _Reading(config, found, listing, root, objects_per_shard, strict)
        if (earlier := reading.done_before()) is not None:
            return earlier
        return reading.prepared(torch.get_num_threads() if workers is None else workers, part)


class _Reading:
    """One pass over the objects of a listing."""

    def __init__(
        self,
        config: DataConfig,
        found: Found,
        listing: Listing,
        root: Path,
        objects_per_shard: int | None,
        strict: bool,
    ) -> None:
        self.config, self.found, self.listing, self.root = config, found, listing, root
        self.objects_per_shard, self.strict, self.sieve = objects_per_shard, strict, found.sieve
        rules = {"rules": self.sieve.rules, "judge": found.judge is not None, "limited": found.limited}
        self.head = {"config": plain(config), "sources": {found.kind: found.identity}, "listing": listing.digest,
                     "objects_per_shard": objects_per_shard, **rules}  # fmt: skip
        digest = hashlib.sha256(canonical(self.head).encode()).hexdigest()
        self.folder = root / f"{config.name}-{digest[:12]}.partial"
        limits = [(~listing.tests, config.num_objects), (listing.tests, config.heldout_objects)]
        if not listing.told:
            limits = [(~listing.tests, config.num_objects + config.heldout_objects)]
        self.wanted = [(np.flatnonzero(of), limit if found.limited else len(listing)) for of, limit in limits]
        self.state = np.full(len(listing), SPARE, np.int8)  # SPARE: not read; OUT: dropped; TRAIN: can be used
        self.checked: dict[str, str | None] = {}  # reasons of objects that were looked at
        self.problems: dict[int, tuple[str, str, str]] = {}  # of those dropped: reason, key and message

    # ------------------------------------------------------------------------------------ from the disk

    def done_before(self) -> SequenceSet | ShardedSet | None:
        """The set that was made of the same files, of several of a name the last one from now on."""
        for file in sorted(self.root.glob(f"{self.config.name}-*/{SOURCES}")):
            folder = file.parent
            if folder.suffix == ".partial" or not is_made_of(file, self.head, self.listing, self.found.files):
                continue
            dropped = read_json(folder / REPORT)["dropped_objects"]
            if self.strict and (faults := dropped.get(UNUSABLE)):
                raise DataError(next(iter(faults.values())))
            return self._opened(folder)
        return None

    def prepared(self, workers: int, part: Part | Join | None) -> SequenceSet | ShardedSet | PartOfSet:
        if isinstance(part, Part):
            note_parts(self.folder, part)
        settings, options, seen = self.settle()
        found, heldout = self.found, settings.heldout_views if self.found.posed else 0
        read = partial(read_ordered, found.read, options, heldout)
        work = Work(
            settings, self.folder, found.root, found.holds, read, found.files, self.objects_per_shard, self.strict,
            found.judge is not None,
        )  # fmt: skip
        units, check = -(-len(self.listing) // work.per_unit), found.check and self._check
        if isinstance(part, Part):
            own = part.units(units)
            write_units(work, self.listing, own, workers, f"{self.config.name} {part}", check)
            self._note(work, own)
            dropped = {key: problem for _, key, problem in self.problems.values()}
            return PartOfSet(self.folder, part, int((self.state != SPARE).sum()), dropped)
        known: set[int] = set()
        while units_needed := self._needed(work) - known:
            if part is None:
                write_units(work, self.listing, sorted(units_needed), workers, self.config.name, check)
            require_all(self.folder, sorted(u for u in units_needed if not work.is_written(u)), units)
            self._note(work, units_needed)
            known |= units_needed
        fates = self._fates(work)
        self.sieve.notes["views_found"] = seen
        return self._opened(join(work, self.head["sources"], self.head, self.listing, fates, self._report))

    def settle(self) -> tuple[DataConfig, Options, int]:
        """The settings, but for the numbers of objects; how objects are read; and how many views there are. What was
        looked at for it is not opened again, by other parts or when they are joined, while its files are the same."""
        config, options = self.config, dataclasses.replace(self.found.options, resolution=self.config.resolution)
        if not self.found.posed:
            if self.found.holds is SEQUENCES:
                cameras = partial(object_cameras, config)
                options = dataclasses.replace(options, cameras=cameras, supersampling=config.supersampling)
            return config, options, config.train_views + config.heldout_views
        file = self.folder / SETTINGS
        if file.is_file() and self._are_current((known := read_json(file))["stamps"]):
            settings = from_plain(DataConfig, known["settings"])
            return settings, dataclasses.replace(options, views=known["views"]), known["seen"]
        stamps, looked_at = self._looked_at(options)
        views = views_of(config, looked_at, len(stamps) == len(self.listing))
        first = next(sequence for sequence in looked_at if len(sequence) >= views)
        settings = settings_of(config, first, views, config.heldout_views)
        seen = sorted(map(len, looked_at))[len(looked_at) // 2]
        note(file, {"settings": dataclasses.asdict(settings), "views": views, "seen": seen, "stamps": stamps})
        return settings, dataclasses.replace(options, views=views), seen

    def _are_current(self, stamps: dict[str, str]) -> bool:
        return all(stamp(self.listing[int(n)], self.found.files) == known for n, known in stamps.items())

    def _looked_at(self, options: Options) -> tuple[dict[str, str], list]:
        """The first objects that can be used, and the stamps of these and of those that cannot, by their numbers."""
        stamps, looked_at, faults, few = {}, [], [], []
        most = min(self.found.looked_at, sum(limit for _, limit in self.wanted))
        for n, scene in enumerate(self.listing):
            stamps[str(n)] = retried(lambda scene=scene: stamp(scene, self.found.files))
            if self.found.check is not None and (reason := self._check(scene)):
                faults.append(f"{scene.where}: {reason}")
                continue
            try:
                sequence, _ = retried(lambda scene=scene: self.found.read(scene, options))
            except DataError as error:
                faults.append(unusable(error))
                if self.strict:
                    raise
                continue
            if len(sequence) < FEWEST_VIEWS:
                few.append(f"{scene.where} has {len(sequence)} views, expected at least {FEWEST_VIEWS}")
                continue
            looked_at.append(sequence)
            if len(looked_at) == most:
                break
        if not looked_at:
            raise DataError(_none_left(self.config.name, [*few, *faults]))
        return stamps, looked_at

    def _check(self, scene: Scene) -> str | None:
        """`Found.check`, once an object: those that were looked at are not checked again."""
        known = self.checked.pop(scene.key, False)
        if known is False:
            known = self.found.check(scene)
            if not self.state.any():
                self.checked[scene.key] = known
        return known

    # ------------------------------------------------------------------------------------ which objects

    def _chosen(self) -> list[np.ndarray]:
        """Of each split the numbers of the objects in it, if all that were not read yet can be used."""
        return [numbers[self.state[numbers] != OUT][:limit] for numbers, limit in self.wanted]

    def _needed(self, work: Work) -> set[int]:
        return {int(unit) for numbers in self._chosen() for unit in np.unique(numbers // work.per_unit)}

    def _note(self, work: Work, units: Iterable[int]) -> None:
        """What the ledgers of units say of their objects."""
        for unit in units:
            for n, entry in work.entries(unit):
                self.state[n] = OUT if entry["reason"] else TRAIN
                if entry["reason"]:
                    self.problems[n] = (entry["reason"], entry["key"], entry["problem"])

    def _fates(self, work: Work) -> np.ndarray:
        """What becomes of each object. Of those dropped only such as stand before the last one of their split count:
        further ones were read because they lie in a shard with it, or not at all."""
        fates, last_of = np.full(len(self.listing), SPARE, np.int8), []
        for (numbers, limit), chosen in zip(self.wanted, self._chosen(), strict=True):
            last = (chosen[-1] if len(chosen) else -1) if len(chosen) == limit else len(self.listing)
            counted = numbers[numbers <= last]
            fates[counted] = np.where(self.state[counted] == OUT, OUT, TRAIN)
            last_of.append(len(numbers) - len(counted))
        for n in sorted(self.problems):
            if fates[n] == OUT:
                reason, key, problem = self.problems[n]
                if self.strict and reason == UNUSABLE:
                    raise DataError(problem)
                self.sieve.drop(reason, key, problem)
        self.sieve.notes["not_needed"] = sum(last_of)
        if self.found.judge is not None:
            self._judge(work, fates)
        if self.listing.told:
            fates[(fates == TRAIN) & self.listing.tests] = TEST
        else:
            kept = np.flatnonzero(fates == TRAIN)
            heldout = chosen_groups(self.listing.groups[kept], self.found.spare(len(kept), self.config))
            fates[kept[heldout]] = TEST
            spare = kept[~heldout][self.config.num_objects if self.found.limited else len(kept) :]
            fates[spare] = SPARE
            self.sieve.notes["not_needed"] += len(spare)
        self.kept = int((fates >= TRAIN).sum())
        if not (fates == TRAIN).any():
            said = [text for found in self.sieve.dropped.values() for text in found.values()]
            raise DataError(_none_left(self.config.name, said))
        return fates

    def _judge(self, work: Work, fates: np.ndarray) -> None:
        """Drop what the judge drops. Its rule and thresholds are written down."""
        numbers: dict[str, int] = {}

        def kept() -> Iterator[Masked]:
            for unit in np.unique(np.flatnonzero(fates == TRAIN) // work.per_unit).tolist():
                masks = work.masks(unit)
                for n, entry in work.entries(unit):
                    if fates[n] == TRAIN:
                        numbers[entry["key"]] = n
                        yield masks[entry["key"]]

        verdict = self.found.judge(kept())
        for key in numbers.keys() & verdict.dropped.keys():
            fates[numbers[key]] = OUT
            self.sieve.drop(MISFIT, key, verdict.dropped[key])
        self.sieve.notes["mask_fit"] = verdict.report()

    def _report(self, final: Path) -> tuple[str, dict[str, Any]]:
        sieve, before = self.sieve, read_json(final / REPORT) if (final / REPORT).is_file() else {}
        return REPORT, {
            "set": self.config.name,
            "rules": sieve.rules,
            "found": len(self.listing) if sieve.found is None else sieve.found,
            "dropped": {reason: len(keys) for reason, keys in sieve.dropped.items()},
            "kept": self.kept,
            **sieve.notes,
            "stated_in_the_paper": sieve.stated,
            "dropped_objects": sieve.dropped,
            "asked_for": asked(self.config, before),
        }

    def _opened(self, folder: Path) -> SequenceSet | ShardedSet:
        manifest = folder / ("manifest.json" if self.objects_per_shard is None else "manifest.jsonl")
        manifest.touch()
        return load_prepared(folder, self.found.holds) if self.objects_per_shard is None else load_shards(folder)


def _none_left(name: str, faults: list[str]) -> str:
    shown = "".join(f"\n  {fault}" for fault in faults[:SHOWN])
    more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"data set {name}: none of the objects can be used for training{shown}{more}"
