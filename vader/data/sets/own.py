"""A folder of one's own under a name of one's own: read by its format, prepared once, and from then on a data set.

    vader data photos/ --name mugs              posed images, transforms.json, COLMAP, ...: `vader.data.formats`
    vader train mugs

What the pictures show decides the settings of the set (`vader.data.reading`). Of the objects a fifth, and at most
`HELDOUT` of them, are held out, unless folders say which are test objects. Of the views of each object a sixth are held
out, spread over all.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ...settings.checks import ConfigError, require
from ...settings.experiment import DataConfig, Experiment
from ...settings.profiles import DOWNLOADED, experiment
from ..formats import Options, detect, scan
from ..prepared import SequenceSet
from ..reading.earlier import fitted, load_earlier, sets_called
from ..reading.objects import Found, Sieve
from ..reading.passes import prepare_found
from ..shards import ShardedSet

HELDOUT = 8  # objects, at most
PATTERN = "furniture_chairs"  # the built-in set whose settings own sets have, but for their data
KIND = "own"


def prepare_folder(
    folder: Path,
    name: str,
    profile: str,
    format: str | None = None,
    workers: int | None = None,
    root: Path | None = None,
    strict: bool = False,
) -> SequenceSet | ShardedSet:
    """Read a folder of posed objects, or load what was prepared from the same files before.

    format: one of `formats.FORMATS`, by default found out by looking. strict: an object that cannot be used is an
    error; otherwise it is left out, and the set's `filter.json` names it. Raises ConfigError for a name that cannot be
    one or is a built-in set's, and DataError for a folder that cannot be used, naming file, object and field.
    """
    _check_name(name)
    format = format or detect(folder)[0]
    scenes = scan(folder, format)
    base = experiment(profile, PATTERN).data
    config = dataclasses.replace(base, name=name, num_objects=len(scenes), heldout_objects=HELDOUT)
    if any(scene.split == "test" for scene in scenes):
        config = dataclasses.replace(config, heldout_objects=len(scenes))
    found = Found(KIND, scenes, Options(), {"format": format}, Sieve(len(scenes)))
    return prepare_found(config, found, workers, root, strict=strict)


def prepare(config: DataConfig, root: Path | None = None) -> SequenceSet | ShardedSet:
    """The own set of these settings, which `prepare_folder` has made. Raises DataError where it is gone."""
    return load_earlier(config, KIND, f"expected it from 'vader data FOLDER --name {config.name}'", root)


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
    configs = [earlier.config for earlier in sets_called(name, KIND)]
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
    return fitted(pattern, fitting[-1])


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
