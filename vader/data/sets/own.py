"""A folder of one's own under a name of one's own: read by its format, prepared once, and from then on a data set.

    vader data photos/ --name mugs              posed images, transforms.json, COLMAP, ...: `vader.data.formats`
    vader train mugs

What the pictures show decides the settings of the set: how many views there are, how far the cameras stand and how
wide they see. Of the objects a fifth, and at most `HELDOUT` of them, are held out, unless folders say which are test
objects. Of the views of each object a sixth are held out, spread over all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...settings.checks import ConfigError, require
from ...settings.experiment import DataConfig, Experiment
from ...settings.profiles import experiment
from ...store.files import tree_sha256
from ..formats import Options, Scene, detect, read, scan
from ..pipeline import prepare_set
from ..prepared import DataError, SequenceSet, data_root, read_json
from ..sequence import Sequence, load_set
from ..video import Video

HELDOUT = 8  # objects, at most
FEWEST_VIEWS = 4  # of an object: three to train on, and one to judge by
PATTERN = "furniture_chairs"  # the built-in set whose settings own sets have, but for their data


@dataclass(frozen=True)
class Job:
    """One object to read."""

    scene: Scene
    options: Options
    split: str


def prepare_folder(
    folder: Path,
    name: str,
    profile: str,
    format: str | None = None,
    workers: int | None = None,
    root: Path | None = None,
) -> SequenceSet:
    """Read a folder of posed objects, or load what was prepared from the same files before.

    format: one of `formats.FORMATS`, by default found out by looking. Raises ConfigError for a name that cannot be one
    or is a built-in set's, and DataError for a folder or an object that cannot be used, naming file, object and field.
    """
    _check_name(name)
    base = experiment(profile, PATTERN).data
    format = format or detect(folder)[0]
    scenes = scan(folder, format)
    first = read(scenes[0], Options(resolution=base.resolution))
    if isinstance(first, Video):
        raise DataError(f"{scenes[0].where} is a video, expected posed images: videos of people are celebv_text's")
    if len(first) < FEWEST_VIEWS:
        raise DataError(f"{scenes[0].where} has {len(first)} views, expected at least {FEWEST_VIEWS}")
    views = min(len(first), base.train_views + base.heldout_views)
    options, splits = Options(resolution=base.resolution, views=views), _splits(scenes)
    config = _settings(name, base, first, views, list(splits.values()))
    jobs = {s.key: Job(s, options, splits[s.key]) for s in sorted(scenes, key=lambda s: splits[s.key] == "test")}
    sources = {
        "format": format,
        "objects": {key: [job.split, tree_sha256(job.scene.place)] for key, job in jobs.items()},
    }
    workers = torch.get_num_threads() if workers is None else workers
    return prepare_set(config, {"own": sources}, jobs, read_object, workers, root)


def read_object(job: Job) -> tuple[Sequence, None]:
    """One object, its held-out views last."""
    sequence = read(job.scene, job.options)
    order = _heldout_last(len(sequence))
    cameras = sequence.cameras
    placed = dataclasses.replace(
        sequence,
        images=sequence.images[order].contiguous(),
        masks=sequence.masks[order].contiguous(),
        cameras=dataclasses.replace(
            cameras,
            world_to_camera=cameras.world_to_camera[order].float(),
            intrinsics=cameras.intrinsics[order].float(),
        ),
        split=job.split,
    )
    return placed, None


def prepare(config: DataConfig, root: Path | None = None) -> SequenceSet:
    """The own set of these settings, which `prepare_folder` has made. Raises DataError where it is gone."""
    for manifest in _manifests(config.name, root):
        if _config(manifest) == config:
            return load_set(manifest.parent)
    raise DataError(
        f"data set {config.name}: is not prepared, expected it from 'vader data FOLDER --name {config.name}'"
    )


def is_prepared(name: str) -> bool:
    """Whether there is an own set of that name."""
    return any(True for _ in _manifests(name, None))


def experiment_named(profile: str, name: str) -> Experiment:
    """The experiment of a profile on a built-in set or on an own one, which was prepared before.

    Raises ConfigError for an unknown name, and for an own set that was prepared for pictures of another size.
    """
    configs = [_config(manifest) for manifest in _manifests(name, None)]
    if not configs:
        return experiment(profile, name)
    pattern = experiment(profile, PATTERN)
    fitting = [config for config in configs if config.resolution == pattern.data.resolution]
    sizes = sorted({config.resolution for config in configs})
    require(
        bool(fitting),
        f"data set {name!r} was prepared at {sizes} pixels, profile {profile!r} has {pattern.data.resolution}; "
        f"prepare it with --profile {profile}",
    )
    return dataclasses.replace(pattern, data=fitting[-1])


def _manifests(name: str, root: Path | None) -> Iterator[Path]:
    """Of the own sets of that name, the one prepared last at the end."""
    files = (root or data_root()).glob(f"{name}-*/manifest.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        if re.fullmatch(re.escape(name) + "-[0-9a-f]{12}", file.parent.name):
            manifest = read_json(file, name, ("name", "config", "sources"))
            if manifest["name"] == name and "own" in manifest["sources"]:
                yield file


def _config(manifest: Path) -> DataConfig:
    fields = json.loads(manifest.read_text(encoding="utf-8"))["config"]
    return DataConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _check_name(name: str) -> None:
    require(
        re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None,
        f"data set {name!r}: expected a name of letters, digits and '_' that begins with a letter",
    )
    try:
        experiment("laptop", name)
    except ConfigError:
        return
    raise ConfigError(f"data set {name!r} is a built-in one, expected another name")


def _splits(scenes: list[Scene]) -> dict[str, str]:
    """{key: split}: that of the folders if they name test objects, else by a hash of the key."""
    if any(scene.split == "test" for scene in scenes):
        return {scene.key: scene.split for scene in scenes}
    order = sorted(scenes, key=lambda scene: hashlib.sha256(scene.key.encode()).digest())
    heldout = {scene.key for scene in order[: min(HELDOUT, len(scenes) // 5)]}
    return {scene.key: "test" if scene.key in heldout else "train" for scene in scenes}


def _heldout_last(views: int) -> list[int]:
    """Numbers of the views: those to train on, then every sixth."""
    heldout = list(range(5, views, 6)) or [views - 1]
    return [v for v in range(views) if v not in heldout] + heldout


def _settings(name: str, base: DataConfig, first: Sequence, views: int, splits: list[str]) -> DataConfig:
    """What the cameras of an object say about the set: their distance, field of view and elevations (medians)."""
    centres = first.cameras.centres().double()
    distance = centres.norm(dim=-1)
    focal = first.cameras.intrinsics[:, 0, 0].double().median().item()
    elevation = torch.rad2deg(torch.asin((centres[:, 1] / distance).clamp(-1, 1)))
    heldout = len(list(range(5, views, 6))) or 1
    return dataclasses.replace(
        base,
        name=name,
        num_objects=splits.count("train"),
        heldout_objects=splits.count("test"),
        train_views=views - heldout,
        heldout_views=heldout,
        field_of_view=round(math.degrees(2 * math.atan(base.resolution / (2 * focal))), 3),
        camera_distance=round(distance.median().item(), 3),
        elevation=(round(elevation.min().item(), 1), round(elevation.max().item(), 1)),
    )
