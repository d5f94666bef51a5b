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
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...settings.checks import ConfigError, require
from ...settings.experiment import DataConfig, Experiment
from ...settings.profiles import DOWNLOADED, experiment
from ..formats import Options, Scene, detect, read, walk
from ..formats.models import read_with_mesh
from ..formats.shared.archives import is_archive, unpacked
from ..formats.shared.captions import captioned
from ..meshes.render import LIGHT_RIG
from ..prepared import DataError, SequenceSet, data_root
from ..reading.earlier import fitted, load_earlier, sets_called
from ..reading.objects import FEWEST_VIEWS, heldout_last, ordered, read_posed, settings_of
from ..sequence import SEQUENCES, Sequence, object_cameras
from ..shards import ShardedSet
from ..streaming.listing import Listing
from ..streaming.parts import PartOfSet
from ..streaming.streamed import prepare_listed
from ..video import VIDEOS, Video, train_share

KIND = "own"  # in the sources of its manifest
HELDOUT = 8  # objects, at most
PATTERN = "furniture_chairs"  # the built-in set whose settings own sets have, but for their data
VIDEO_PATTERN = "people_heads"  # the same for subjects that move


def prepare_folder(
    folder: Path,
    name: str,
    profile: str,
    format: str | None = None,
    workers: int | None = None,
    root: Path | None = None,
    captions: Path | None = None,
    **sharing: Any,
) -> SequenceSet | ShardedSet | PartOfSet:
    """Read a folder of objects, or an archive of them, or load what was prepared from the same files before.

    format: one of `formats.FORMATS`, by default found out by looking. captions: a file as
    `formats.shared.captions` has it. sharing: `objects_per_shard`, `part` and
    `strict`, as `streaming.streamed.prepare_listed` has them. Raises ConfigError for a name that cannot be one or is a
    built-in set's, and DataError for a folder or an object that cannot be used, naming file, object and field.
    """
    _check_name(name)
    folder, place = Path(folder), root or data_root()
    if is_archive(folder):
        place.mkdir(parents=True, exist_ok=True)
        with unpacked(folder, place) as content:
            return prepare_folder(content, name, profile, format, workers, root, captions, **sharing)
    format = format or detect(folder)[0]
    base = dataclasses.replace(_pattern(profile, format == "videos").data, name=name)
    workers = torch.get_num_threads() if workers is None else workers
    scenes = walk(folder, format) if captions is None else captioned(walk(folder, format), captions)
    with Listing(scenes, folder, place, lambda n: min(HELDOUT, n // 5)) as listing:
        config, options = _settings(base, listing, format, sharing.get("strict", False), root)
        sources, kind = {"format": format}, VIDEOS if format == "videos" else SEQUENCES
        if format == "models":
            sources |= {"lights": LIGHT_RIG, "supersampling": options.supersampling}
        read_scene = partial(_read_scene, options, config)
        return prepare_listed(config, {KIND: sources}, listing, read_scene, kind, workers, root, **sharing)


def _read_scene(options: Options, config: DataConfig, scene: Scene) -> tuple[Sequence | Video, Any]:
    """An object, and the mesh of one that has a mesh."""
    if scene.format == "models":
        return read_with_mesh(scene, options)
    if scene.format == "videos":
        video = read(scene, options)
        return dataclasses.replace(video, train_frames=train_share(config, len(video))), None
    sequence, _ = read_posed(scene, options)
    order = heldout_last(len(sequence), len(sequence))
    return ordered(dataclasses.replace(sequence, split=scene.split), order), None


def prepare(
    config: DataConfig, root: Path | None = None, objects_per_shard: int | None = None
) -> SequenceSet | ShardedSet:
    """The own set of these settings, which `prepare_folder` has made. Raises DataError where it is gone."""
    expected = f"expected it from: vader data FOLDER --name {config.name}"
    return load_earlier(config, KIND, expected, root, objects_per_shard)


def is_prepared(name: str) -> bool:
    """Whether there is an own set of that name."""
    return any(True for _ in sets_called(name, KIND))


def experiment_named(profile: str, name: str) -> Experiment:
    """The experiment of a profile on a built-in set or on one that was made of files: an own one, or one of the
    paper's, whose counts and cameras are those that were found.

    Raises ConfigError for an unknown name, and for an own set that was prepared for pictures of another size.
    """
    if name in DOWNLOADED:
        asked = experiment(profile, name)
        made = [earlier.config for earlier in sets_called(name, "set") if earlier.was_asked_for(asked.data)]
        return fitted(asked, made[-1]) if made else asked
    found = list(sets_called(name, KIND))
    if not found:
        return experiment(profile, name)
    pattern = _pattern(profile, found[-1].sources[KIND]["format"] == "videos")
    configs = [earlier.config for earlier in found]
    fitting = [config for config in configs if config.resolution == pattern.data.resolution]
    sizes = sorted({config.resolution for config in configs})
    require(
        bool(fitting),
        f"data set {name!r} was prepared at {sizes} pixels, profile {profile!r} has {pattern.data.resolution}; "
        f"prepare it with --profile {profile}",
    )
    return fitted(pattern, fitting[-1])


def _pattern(profile: str, videos: bool) -> Experiment:
    """The experiment of the built-in set whose settings own sets have, but for their data."""
    return experiment(profile, VIDEO_PATTERN if videos else PATTERN)


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


def _settings(
    base: DataConfig, listing: Listing, format: str, strict: bool, root: Path | None
) -> tuple[DataConfig, Options]:
    """Settings of the set, and how its objects are read: what the first that can be used says."""
    if format == "videos":
        return base, Options(resolution=base.resolution, most_frames=base.train_views + base.heldout_views)
    options = Options(resolution=base.resolution, supersampling=base.supersampling, cache=root)
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
        return settings_of(base, first, views, views), dataclasses.replace(options, views=views)
    raise fault
