"""Objects found on disk: how they are listed, split, read one at a time, and what is noted of those dropped."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ...settings.experiment import DataConfig
from ..formats import Options, Scene, read
from ..prepared import DataError, write_json
from ..sequence import Sequence, save_sequence
from ..video import Video

FEWEST_VIEWS = 4  # of an object: three to train on, and one to judge by
UNUSABLE = "cannot be used"  # the reason where no rule gives another one


class LeftOut(DataError):
    """An object that a rule of its set drops: `reason` is what it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Sieve:
    """What was found and dropped, and by which rules: it becomes filter.json.

    rules: in words, with their numbers. dropped: reason -> key -> message. notes: JSON values, what else there is to
    say. stated: the paper's counts.
    """

    found: int
    rules: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, key: str, message: str) -> None:
        self.dropped.setdefault(reason, {})[key] = message


class Judgement(Protocol):
    """What a judge of all objects says: why some are out, by key; its rule, thresholds and losses for filter.json."""

    dropped: dict[str, str]

    def report(self) -> dict[str, Any]: ...


def read_posed(scene: Scene, options: Options) -> tuple[Sequence, None]:
    """An object with cameras of its own. Raises DataError as `formats.read`, and for a video."""
    item = read(scene, options)
    if isinstance(item, Video):
        raise DataError(f"{scene.where} is a video, expected posed images: videos of people are celebv_text's")
    return item, None


def files_of(scene: Scene) -> list[Path]:
    """All files of an object's folder, or its one file."""
    return sorted(f for f in scene.place.rglob("*") if f.is_file()) if scene.place.is_dir() else [scene.place]


@dataclass(frozen=True)
class Found:
    """The objects of a folder, and how they become a set.

    Functions of an object are top-level ones, since worker processes call them. `check` gives the reason, if any, for
    which an object is left out before it is read, and `judge` looks at all that were read; both are called here.
    """

    kind: str  # under which the manifest's sources describe them, see `earlier.KINDS`
    scenes: list[Scene]
    options: Options
    identity: dict[str, Any]  # JSON values that decide pixels beside the settings: reader, version, numbers of rules
    sieve: Sieve
    read: Callable[[Scene, Options], tuple[Sequence, Any]] = read_posed
    files: Callable[[Scene], list[Path]] = files_of
    group: Callable[[Scene], str] = lambda scene: scene.key  # objects of one group are in one split
    posed: bool = True  # False: 3D models, which the cameras of the settings look at
    check: Callable[[Scene], str | None] | None = None
    judge: Callable[[Iterable[Sequence]], Judgement] | None = None


# ---------------------------------------------------------------------------------------- splits and views


def heldout_keys(scenes: list[Scene], config: DataConfig, group: Callable[[Scene], str]) -> set[str]:
    """Keys of test objects where the data name none: whole groups, by a hash of seed and name, until `heldout_objects`
    are held out, of a fifth of all objects at most, but of one group where there are two."""
    groups: dict[str, list[str]] = {}
    for scene in scenes:
        groups.setdefault(group(scene), []).append(scene.key)
    limit = min(config.heldout_objects, max(len(scenes) // 5, 1)) if len(groups) > 1 else 0
    heldout: set[str] = set()
    for name in sorted(groups, key=partial(hashed, config.seed)):
        if len(heldout) < limit and len(heldout) + len(groups[name]) < len(scenes):
            heldout.update(groups[name])
    return heldout


def hashed(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def heldout_last(views: int, heldout: int) -> list[int]:
    """Numbers of the views: those to train on, then those held out: every sixth, or `heldout` of these."""
    sixths = list(range(5, views, 6)) or [views - 1]
    count = min(heldout, len(sixths))
    chosen = [sixths[(2 * i + 1) * len(sixths) // (2 * count)] for i in range(count)]
    return [v for v in range(views) if v not in chosen] + chosen


def ordered(sequence: Sequence, order: list[int]) -> Sequence:
    cameras = sequence.cameras
    return dataclasses.replace(
        sequence,
        images=sequence.images[order].contiguous(),
        masks=sequence.masks[order].contiguous(),
        cameras=dataclasses.replace(
            cameras,
            world_to_camera=cameras.world_to_camera[order].float(),
            intrinsics=cameras.intrinsics[order].float(),
        ),
    )


def settings_of(config: DataConfig, sequence: Sequence, views: int, heldout: int) -> DataConfig:
    """The settings with what the cameras of an object say: their distance, field of view and elevations (medians); and
    with `views` of each object, of which every sixth is held out, `heldout` at most."""
    centres = sequence.cameras.centres().double()
    distance = centres.norm(dim=-1)
    focal = sequence.cameras.intrinsics[:, 0, 0].double().median().item()
    elevation = torch.rad2deg(torch.asin((centres[:, 1] / distance).clamp(-1, 1)))
    heldout = min(heldout, len(range(5, views, 6)) or 1)
    return dataclasses.replace(
        config,
        train_views=views - heldout,
        heldout_views=heldout,
        field_of_view=round(math.degrees(2 * math.atan(config.resolution / (2 * focal))), 3),
        camera_distance=round(distance.median().item(), 3),
        elevation=(round(elevation.min().item(), 1), round(elevation.max().item(), 1)),
    )


def views_of(config: DataConfig, looked_at: list[Sequence], all_of_them: bool) -> int:
    """Views that objects of a set have: as many as the poorest has if these are all objects, else as three of four
    have, and as are asked for."""
    counts = sorted(len(sequence) for sequence in looked_at)
    return min(counts[0 if all_of_them else len(counts) // 4], config.train_views + config.heldout_views)


# ---------------------------------------------------------------------------------------- one object


@dataclass(frozen=True)
class Job:
    """An object to read into `folder`; strict: one that cannot be used is an error. ready: what was read already."""

    scene: Scene
    options: Options
    folder: Path
    found: tuple[Callable, Callable]  # `Found.read` and `Found.files`
    heldout: int  # views
    strict: bool
    ready: Sequence | None = None


def read_object(job: Job) -> None:
    """The object, and then the finding, what became of it. Both appear whole or not at all."""
    scene, (reader, files_of_scene) = job.scene, job.found
    finding: dict[str, Any] = {"reason": None}
    try:
        files = files_of_scene(scene)
        finding |= {"stamp": stamp(files), "sha256": _content(files)}
        sequence, mesh = reader(scene, job.options) if job.ready is None else (job.ready, None)
    except DataError as error:
        if job.strict and not isinstance(error, LeftOut):
            raise
        finding |= {"reason": getattr(error, "reason", UNUSABLE), "problem": str(error)}
    else:
        place = job.folder / "objects" / scene.key
        shutil.rmtree(place, ignore_errors=True)  # of an earlier version of its files
        order = heldout_last(len(sequence), job.heldout) if mesh is None and job.heldout else range(len(sequence))
        save_sequence(ordered(dataclasses.replace(sequence, split=scene.split), list(order)), place, mesh)
    partial_file = job.folder / "findings" / f".{scene.key}.json"
    write_json(partial_file, finding, indent=None)
    partial_file.replace(job.folder / "findings" / f"{scene.key}.json")


def stamp(files: list[Path]) -> str:
    """Of names, sizes and times of files, by which a changed object is noticed. Raises DataError where one is gone."""
    digest = hashlib.sha256()
    for file in files:
        try:
            about = file.stat()
        except OSError as error:
            raise DataError(f"{file}: file is missing or cannot be read ({error})") from error
        digest.update(f"{file.parent.name}/{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _content(files: list[Path]) -> str:
    """SHA-256 of the files, by name and content."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error})") from error
        digest.update(f"{file.parent.name}/{file.name} {content}\n".encode())
    return digest.hexdigest()
