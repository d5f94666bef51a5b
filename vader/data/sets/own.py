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
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ...settings.checks import ConfigError, require
from ...settings.experiment import DataConfig, Experiment
from ...settings.profiles import DOWNLOADED, experiment
from ..formats import Options, Scene, detect, read, walk
from ..formats.models import read_with_mesh
from ..formats.shared.archives import is_archive, unpacked
from ..formats.shared.captions import captioned
from ..meshes.render import LIGHT_RIG
from ..prepared import SequenceSet, data_root
from ..reading.earlier import fitted, load_earlier, sets_called
from ..reading.objects import Found, Sieve
from ..reading.passes import prepare_found
from ..shards import ShardedSet
from ..streaming.parts import PartOfSet
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
    `formats.shared.captions` has it. sharing: `objects_per_shard`, `part` and `strict`, as `prepare_found` has them.
    Raises ConfigError for a name that cannot be one or is a built-in set's, and DataError for a folder or an object
    that cannot be used, naming file, object and field.
    """
    _check_name(name)
    folder, place = Path(folder), root or data_root()
    if is_archive(folder):
        place.mkdir(parents=True, exist_ok=True)
        with unpacked(folder, place) as content:
            return prepare_folder(content, name, profile, format, workers, root, captions, **sharing)
    format = format or detect(folder)[0]
    base = dataclasses.replace(_pattern(profile, format == "videos").data, name=name, heldout_objects=HELDOUT)
    if format not in ("models", "videos"):
        views = base.train_views + base.heldout_views
        sixths = len(range(5, views, 6)) or 1
        base = dataclasses.replace(base, train_views=views - sixths, heldout_views=sixths)
    scenes = walk(folder, format) if captions is None else captioned(walk(folder, format), captions)
    return prepare_found(base, _found(folder, scenes, format, base, root), workers, root, **sharing)


def _found(folder: Path, scenes: Iterable[Scene], format: str, base: DataConfig, root: Path | None) -> Found:
    """The objects of a folder, all of which are wanted: what the first that can be used says decides the settings."""
    found = Found(KIND, folder, scenes, Options(cache=root), {"format": format}, Sieve(), limited=False, looked_at=1)
    if format == "models":
        identity = found.identity | {"lights": LIGHT_RIG, "supersampling": base.supersampling}
        return dataclasses.replace(found, identity=identity, read=read_with_mesh, posed=False)
    if format == "videos":
        options, reader = Options(most_frames=base.train_views + base.heldout_views), partial(read_clip, base)
        return dataclasses.replace(found, options=options, read=reader, holds=VIDEOS, posed=False)
    return found


def read_clip(config: DataConfig, scene: Scene, options: Options) -> tuple[Video, None]:
    """A clip, of whose frames the last ones are held out."""
    video = read(scene, options)
    return dataclasses.replace(video, train_frames=train_share(config, len(video))), None


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
