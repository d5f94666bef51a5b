"""Which sets can be shown: those whose runs are in the run store, their own ones or the committed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...articulation.learning.one_part import rigid
from ...data.sets.own import experiment_named
from ...settings.checks import ConfigError, nearest
from ...settings.experiment import Experiment
from ...settings.profiles import DATA_NAMES, PROFILES, TEXT
from ...settings.videos import VIDEO_DATA
from ...stages import autodecoder_settings, trained_runs
from ...store import runs
from ...store.runs import Run
from .contents import GalleryError


@dataclass(frozen=True, eq=False)
class Found:
    """An experiment with its runs: of both stages, or of videos stage 1."""

    name: str
    config: Experiment
    runs: tuple[Run, ...]


def names(profile: str) -> list[str]:
    """All built-in experiments of a profile, in the order in which they are shown. Raises ConfigError."""
    if profile not in PROFILES:
        known = list(PROFILES)
        raise ConfigError(f"profile {profile!r} is unknown{nearest(profile, known)}; known: {', '.join(known)}")
    furniture_first = sorted(DATA_NAMES, key=lambda name: not name.startswith("furniture"))
    return [*furniture_first, *TEXT, *(name for known, name in VIDEO_DATA if known == profile)]


def find(profile: str, asked: Sequence[str] = ()) -> tuple[list[Found], list[str]]:
    """What can be shown of a profile, and the experiments that cannot, as they have no runs.

    asked: experiments by name; by default all built-in ones. Raises GalleryError for one that was asked for and has no
    run, ConfigError for one that is unknown, and RunError where a file of a run is gone or was changed.
    """
    found, missing = [], []
    for name in asked or names(profile):
        there = of(name, experiment_named(profile, name))
        if there is not None:
            found.append(there)
        elif asked:
            raise GalleryError(f"{name} has no trained run in profile {profile}; {command(name, profile)} trains it")
        else:
            missing.append(name)
    if not found:
        raise GalleryError(
            f"no experiment of profile {profile} has a trained run, expected one of {', '.join(missing)}"
        )
    return found, missing


def command(name: str, profile: str) -> str:
    """What trains an experiment."""
    return f"`vader train {name} --profile {profile}`"


def of(name: str, config: Experiment) -> Found | None:
    """The runs of an experiment: of objects, both stages; of videos stage 1, also with one part. None without them."""
    if not config.articulated:
        both = trained_runs(config)
        return both and Found(name, config, both)
    variants = [config]
    if config.articulation.rigid_images:
        variants.append(rigid(config, config.articulation.rigid_images))
    for variant in variants:
        settings = autodecoder_settings(variant) | {"articulation": variant.articulation}
        if first := _first(variant, settings, ("data", "start")):
            return Found(name, variant, (first,))
    return None


def _first(config: Experiment, settings: dict[str, Any], unknown: tuple[str, ...]) -> Run | None:
    folders: dict[str, Path] = runs.matching(f"{config.data.name}-autodecoder", settings, unknown)
    return runs.open_run(next(iter(folders.values()))) if folders else None


def check_data(found: Found, digest: str) -> None:
    """Raise GalleryError where stage 1 was trained on data of another digest than those here."""
    trained = found.runs[0].settings["data"]
    if trained != digest:
        raise GalleryError(
            f"{found.name}: {found.runs[0].folder.name} was trained on data {trained[:12]}, but those prepared here "
            f"are {digest[:12]}: real views cannot stand beside its objects"
        )
