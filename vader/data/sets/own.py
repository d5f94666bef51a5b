"""A folder of one's own under a name of one's own: read by its format, prepared once, and from then on a data set.

    vader data photos/ --name mugs              posed images, transforms.json, COLMAP, ...: `vader.data.formats`
    vader train mugs

What the pictures show decides the settings of the set: how many views there are, how far the cameras stand and how
wide they see. 3D models are rendered as the built-in furniture is, and videos are taken for subjects that move before
UVA's camera (`vader.data.video`), whose poses are learned. Objects that cannot be used are left out and named. Of the
objects a fifth, and at most `HELDOUT` of them, are held out, unless folders say which are test objects. Of the views of
each object a sixth are held out, spread over all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...settings.checks import ConfigError, require
from ...settings.experiment import DataConfig, Experiment
from ...settings.profiles import experiment
from ...settings.videos import VIDEO_DATA
from ..formats import Options, Scene, detect, read, walk
from ..formats.models import read_with_mesh
from ..formats.shared.archives import is_archive, unpacked
from ..meshes.render import LIGHT_RIG
from ..prepared import DataError, SequenceSet, data_root, load_prepared, read_json
from ..sequence import PACKED, SEQUENCES, Sequence, object_cameras
from ..shards import HEAD, ShardedSet, fields_of, load_shards
from ..streaming.listing import Listing
from ..streaming.parts import PartOfSet
from ..streaming.streamed import prepare_listed
from ..video import VIDEOS, Video, train_share

HELDOUT = 8  # objects, at most
FEWEST_VIEWS = 4  # of an object: three to train on, and one to judge by
PATTERN = "furniture_chairs"  # the built-in set whose settings own sets have, but for their data
VIDEO_PATTERN = "people_heads"  # the same for subjects that move, where a profile has it
KINDS = (SEQUENCES, PACKED, VIDEOS)


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
    **sharing: Any,
) -> SequenceSet | ShardedSet | PartOfSet:
    """Read a folder of objects, or an archive of them, or load what was prepared from the same files before.

    format: one of `formats.FORMATS`, by default found out by looking. sharing: `objects_per_shard`, `part` and
    `strict`, as `streaming.streamed.prepare_listed` has them. Raises ConfigError for a name that cannot be one or is a
    built-in set's, and DataError for a folder or an object that cannot be used, naming file, object and field.
    """
    _check_name(name)
    folder, place = Path(folder), root or data_root()
    if is_archive(folder):
        place.mkdir(parents=True, exist_ok=True)
        with unpacked(folder, place) as content:
            return prepare_folder(content, name, profile, format, workers, root, **sharing)
    format = format or detect(folder)[0]
    base = dataclasses.replace(_pattern(profile, format == "videos").data, name=name)
    workers = torch.get_num_threads() if workers is None else workers
    with Listing(walk(folder, format), folder, place, lambda n: min(HELDOUT, n // 5)) as listing:
        config, options = _settings(base, listing, format, sharing.get("strict", False))
        sources, kind = {"format": format}, VIDEOS if format == "videos" else SEQUENCES
        if format == "models":
            sources |= {"lights": LIGHT_RIG, "supersampling": options.supersampling}
        read_scene = partial(_read_scene, options, config)
        return prepare_listed(config, {"own": sources}, listing, read_scene, kind, workers, root, **sharing)


def _read_scene(options: Options, config: DataConfig, scene: Scene) -> tuple[Sequence | Video, Any]:
    """An object, and the mesh of one that has a mesh."""
    if scene.format == "models":
        return read_with_mesh(scene, options)
    if scene.format == "videos":
        video = read(scene, options)
        return dataclasses.replace(video, train_frames=train_share(config, len(video))), None
    return read_object(Job(scene, options, scene.split))


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


def prepare(
    config: DataConfig, root: Path | None = None, objects_per_shard: int | None = None
) -> SequenceSet | ShardedSet:
    """The own set of these settings, which `prepare_folder` has made. Raises DataError where it is gone."""
    for manifest in reversed(list(_manifests(config.name, root))):
        shards = manifest.parent.name.partition("-by")[2]
        if _config(manifest) == config and (objects_per_shard is None or shards == str(objects_per_shard)):
            return load_shards(manifest.parent) if shards else load_prepared(manifest.parent, *KINDS)
    shards = "" if objects_per_shard is None else f" --objects-per-shard {objects_per_shard}"
    raise DataError(
        f"data set {config.name}: is not prepared, expected it from 'vader data FOLDER --name {config.name}{shards}'"
    )


def is_prepared(name: str) -> bool:
    """Whether there is an own set of that name."""
    return any(True for _ in _manifests(name, None))


def experiment_named(profile: str, name: str) -> Experiment:
    """The experiment of a profile on a built-in set or on an own one, which was prepared before.

    Raises ConfigError for an unknown name, and for an own set that was prepared for pictures of another size.
    """
    manifests = list(_manifests(name, None))
    if not manifests:
        return experiment(profile, name)
    pattern = _pattern(profile, _head(manifests[-1]).get("kind") == VIDEOS.name)
    configs = [_config(manifest) for manifest in manifests]
    fitting = [config for config in configs if config.resolution == pattern.data.resolution]
    sizes = sorted({config.resolution for config in configs})
    require(
        bool(fitting),
        f"data set {name!r} was prepared at {sizes} pixels, profile {profile!r} has {pattern.data.resolution}; "
        f"prepare it with --profile {profile}",
    )
    return dataclasses.replace(pattern, data=fitting[-1])


def _pattern(profile: str, videos: bool) -> Experiment:
    """The experiment of the built-in set whose settings own sets have, but for their data."""
    names = [name for known, name in VIDEO_DATA if known == profile]
    moving = VIDEO_PATTERN if VIDEO_PATTERN in names else names[0] if names else PATTERN
    return experiment(profile, moving if videos else PATTERN)


def _manifests(name: str, root: Path | None) -> Iterator[Path]:
    """Of the own sets of that name, in memory or of shards, the one prepared last at the end."""
    place = root or data_root()
    files = [*place.glob(f"{name}-*/manifest.json"), *place.glob(f"{name}-*/manifest.jsonl")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        if re.fullmatch(re.escape(name) + r"-[0-9a-f]{12}(-by\d+)?", file.parent.name):
            manifest = _head(file)
            if manifest["name"] == name and "own" in manifest["sources"]:
                yield file


def _head(manifest: Path) -> dict[str, Any]:
    """What a manifest says of its set."""
    if manifest.suffix == ".json":
        return read_json(manifest, manifest.parent.name, ("name", "config", "sources"))
    with open(manifest, "rb") as stream:
        return fields_of(stream.readline(), HEAD, f"{manifest}, line 1")


def _config(manifest: Path) -> DataConfig:
    fields = _head(manifest)["config"]
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


def _heldout_last(views: int) -> list[int]:
    """Numbers of the views: those to train on, then every sixth."""
    heldout = list(range(5, views, 6)) or [views - 1]
    return [v for v in range(views) if v not in heldout] + heldout


def _settings(base: DataConfig, listing: Listing, format: str, strict: bool) -> tuple[DataConfig, Options]:
    """Settings of the set, and how its objects are read: what the first that can be used says."""
    if format == "videos":
        return base, Options(resolution=base.resolution, most_frames=base.train_views + base.heldout_views)
    options = Options(resolution=base.resolution, supersampling=base.supersampling)
    if format == "models":
        return base, dataclasses.replace(options, cameras=partial(object_cameras, base))
    fault = None
    for scene in listing:
        try:
            first = read(scene, options)
            if len(first) < FEWEST_VIEWS:
                raise DataError(f"{scene.where} has {len(first)} views, expected at least {FEWEST_VIEWS}")
        except DataError as error:
            if strict:
                raise
            fault = fault or error
            continue
        views = min(len(first), base.train_views + base.heldout_views)
        return _seen(base, first, views), dataclasses.replace(options, views=views)
    raise fault


def _seen(base: DataConfig, first: Sequence, views: int) -> DataConfig:
    """What the cameras of an object say about the set: their distance, field of view and elevations (medians)."""
    centres = first.cameras.centres().double()
    distance = centres.norm(dim=-1)
    focal = first.cameras.intrinsics[:, 0, 0].double().median().item()
    elevation = torch.rad2deg(torch.asin((centres[:, 1] / distance).clamp(-1, 1)))
    heldout = len(list(range(5, views, 6))) or 1
    return dataclasses.replace(
        base,
        train_views=views - heldout,
        heldout_views=heldout,
        field_of_view=round(math.degrees(2 * math.atan(base.resolution / (2 * focal))), 3),
        camera_distance=round(distance.median().item(), 3),
        elevation=(round(elevation.min().item(), 1), round(elevation.max().item(), 1)),
    )
