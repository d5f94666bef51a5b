"""Objects found on disk: how they are listed, split, read one at a time, and what is noted of those dropped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ...settings.experiment import DataConfig
from ..formats import Options, Scene, files_of, read
from ..formats.shared.captions import with_captions
from ..prepared import DataError, Kind
from ..sequence import SEQUENCES, Sequence
from ..streaming.streamed import Masked
from ..video import Video

FEWEST_VIEWS = 4  # of an object: three to train on, and one to judge by


@dataclass
class Sieve:
    """What was found and dropped, and by which rules: it becomes filter.json.

    rules: in words, with their numbers. dropped: reason -> key -> message. notes: JSON values, what else there is to
    say. stated: the paper's counts. found: None where that is how many objects are listed.
    """

    found: int | None = None
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


def captioned(scenes: list[Scene], source: Path) -> list[Scene]:
    """Scenes with what captions.csv or captions.json in the folder says of them, if there is such a file."""
    file = next((f for name in ("captions.csv", "captions.json") if (f := source / name).is_file()), None)
    return scenes if file is None else with_captions(scenes, file)


@dataclass(frozen=True)
class Found:
    """The objects below a folder, and how they become a set.

    `read` and `files` are top-level functions, since worker processes call them. `check` gives the reason, if any, for
    which an object is left out before it is read, and `judge` looks at the masks of all that were read; both are called
    in one process. A preparation in parts asks the judge when its parts are joined.
    """

    kind: str  # under which the manifest's sources describe them, see `earlier.KINDS`
    root: Path
    scenes: Iterable[Scene]
    options: Options
    identity: dict[str, Any]  # JSON values that decide pixels beside the settings: reader, version, numbers of rules
    sieve: Sieve
    read: Callable[[Scene, Options], tuple[Any, Any]] = read_posed
    files: Callable[[Scene], list[Path]] = files_of
    group: Callable[[Scene], str] = lambda scene: scene.key  # objects of one group are in one split
    holds: Kind = SEQUENCES
    posed: bool = True  # False: 3D models, which the cameras of the settings look at, or videos
    limited: bool = True  # to as many objects as the settings say, any of them; False: all, in the order of the disk
    looked_at: int = 8  # objects whose views are counted, to say how many all have
    check: Callable[[Scene], str | None] | None = None
    judge: Callable[[Iterable[Masked]], Judgement] | None = None
    faults: tuple[str, ...] = ()  # of lists and downloads: the first is an error where one is strict

    def spare(self, count: int, config: DataConfig) -> int:
        """How many of `count` objects are held out where the data do not say which: a fifth at most, but one of two."""
        return min(config.heldout_objects, max(count // 5, int(self.limited)))


def read_ordered(
    read: Callable[[Scene, Options], tuple[Any, Any]], options: Options, heldout: int, scene: Scene
) -> tuple[Any, Any]:
    """An object with `heldout` of its views at the end, and what else belongs to it."""
    item, extra = read(scene, options)
    return (ordered(item, heldout_last(len(item), heldout)) if heldout else item), extra


# ---------------------------------------------------------------------------------------- views


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
