"""Parts of a preparation, which machines that see one file system prepare by themselves.

A set is cut into units (shards), numbered from 0. Part 3/64 has the third of 64 runs of units of nearly one length,
whatever any other part does, and joining reads what the parts wrote about their units, never their pixels.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...settings.checks import ConfigError, require
from ...store.files import read_json, write_json
from ..prepared import DataError

COUNT = "parts.json"  # how many parts a set is prepared in, for messages


@dataclass(frozen=True)
class Part:
    """Part `number` of `of`, from 1. Raises ConfigError for one that cannot be."""

    number: int
    of: int

    def __post_init__(self) -> None:
        require(1 <= self.number <= self.of, f"part is {self}, expected 1/{self.of} to {self.of}/{self.of}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def units(self, count: int) -> range:
        """Which of `count` units it has."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    @staticmethod
    def parse(text: str) -> Part:
        """'3/64'."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise ConfigError(f"part is {text!r}, expected a number and how many there are, such as 3/64")
        return Part(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Join:
    """Instead of a part: only put together what all parts have written."""


@dataclass(frozen=True)
class PartOfSet:
    """What preparing a part has written. The set is complete when all parts are, and joined."""

    folder: Path
    part: Part
    objects: int
    left_out: dict[str, str]  # key -> reason, of the part's objects


def note(file: Path, value: dict[str, Any]) -> None:
    """Write JSON values that any part may write at any time, all of them the same; the folder is made if need be."""
    partial = file.with_name(f".{file.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(partial, value)
        partial.replace(file)
    except OSError as error:
        raise DataError(
            f"{file.parent}: output folder is not writable ({error}), expected one; set VADER_DATA to it"
        ) from error


def note_parts(folder: Path, part: Part) -> None:
    """Write down in how many parts the set in `folder` is prepared."""
    note(folder / COUNT, {"of": part.of})


def require_all(folder: Path, missing: Iterable[int], count: int) -> None:
    """Raise DataError, naming parts and shards, where some of `count` units are missing."""
    missing = list(missing)
    if not missing:
        return
    runs, start = [], 0
    for i in range(1, len(missing) + 1):
        if i == len(missing) or missing[i] != missing[i - 1] + 1:
            first, last = missing[start], missing[i - 1]
            runs.append(f"{first:06d}" if first == last else f"{first:06d} to {last:06d}")
            start = i
    shards = ", ".join(runs[:8]) + (f" and {len(runs) - 8} more runs" if len(runs) > 8 else "")
    lacking = ""
    if (folder / COUNT).is_file():
        of = read_json(folder / COUNT)["of"]
        numbers = sorted({((unit + 1) * of - 1) // count + 1 for unit in missing})
        shown = ", ".join(f"{n}/{of}" for n in numbers[:8]) + (f" and {len(numbers) - 8} more" * (len(numbers) > 8))
        lacking = f"; prepare part {shown} first" if len(numbers) == 1 else f"; prepare parts {shown} first"
    raise DataError(f"{folder}: {len(missing)} of {count} shards are missing ({shards}), expected all{lacking}")
