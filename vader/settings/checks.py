"""Tools to declare and check settings."""

from __future__ import annotations

import difflib
from dataclasses import field
from typing import Any

SEEDS = range(2**31)  # what a seed may be, in commands, notebooks and settings alike


class ConfigError(ValueError):
    """A setting that cannot work, found before any work starts."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise `ConfigError`, which calls it `name`, unless `seed` is one of SEEDS."""
    require(seed in SEEDS, f"{name} is {seed}, expected an integer from 0 to {SEEDS[-1]}")


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' for the closest of `known`, or the empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def later(default: Any) -> Any:
    """A field that settings got after runs of theirs were published.

    While it has its default it is left out of digests, so that those runs are found as before.
    """
    return field(default=default, metadata={"later": True})


def check_step(settings: Any, batch: str) -> None:
    """Raise `ConfigError` unless the field `batch` of a training divides into its microbatches, and its bounds on
    gradients are none below 0."""
    size, parts = getattr(settings, batch), settings.microbatches
    require(parts >= 1, f"microbatches is {parts}, expected at least 1")
    require(size % parts == 0, f"{batch} {size} does not divide into {parts} microbatches")
    for name in ("clip_norm", "clip_value"):
        value = getattr(settings, name)
        require(value >= 0, f"{name} is {value:g}, expected a positive bound, or 0 for none")
