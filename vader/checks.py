"""What settings are checked with, where they are made."""

from __future__ import annotations

import difflib


class ConfigError(ValueError):
    """A setting that cannot work, found before any work starts."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def nearest(name: str, known: list[str]) -> str:
    """' (did you mean X?)' for the closest of `known`, or the empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
