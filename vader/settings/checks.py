"""What settings are declared and checked with, where they are made."""

from __future__ import annotations

import difflib
from dataclasses import field
from typing import Any


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


def later(default: Any) -> Any:
    """A field that settings got after runs of theirs were published.

    While it has its default it is left out of digests, so that those runs are found as before.
    """
    return field(default=default, metadata={"later": True})
