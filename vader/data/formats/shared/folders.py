"""Walking through folders of very many objects, and paths that stay inside of them."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ...prepared import DataError

LOOKED_AT, BRANCHES = 2000, 16  # finding out a format: folders that are looked at, and of one folder


def folders(root: Path) -> Iterator[Path]:
    """`root` and the folders below it, each before what it holds and in natural order of names, without hidden ones.

    Of the folders that are still to come only the names are in memory.
    """
    yield root
    waiting = [(root, _names(root))]
    while waiting:
        folder, names = waiting[-1]
        if not names:
            waiting.pop()
            continue
        below = folder / names.pop()
        yield below
        waiting.append((below, _names(below)))


def _names(folder: Path) -> list[str]:
    """Of its subfolders, the first one last."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=_padded, reverse=True)


def _padded(name: str) -> tuple[str, str]:
    """A sort key that compares numbers in a name by value, small for very many names."""
    return re.sub(r"\d+", lambda number: f"{len(number[0].lstrip('0')):03d}{number[0].lstrip('0')}", name), name


def sampled(root: Path) -> Iterator[Path]:
    """As `folders`, but few of them, for finding out a format: the first of each folder, however many it holds."""
    queue, count = deque([root]), 0
    while queue and count < LOOKED_AT:
        folder, count = queue.popleft(), count + 1
        yield folder
        queue.extend(sorted(islice(_subfolders(folder), 10 * BRANCHES))[:BRANCHES])


def _subfolders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield Path(entry.path)


def require_folder(folder: Path) -> Path:
    """The folder, or DataError where it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, expected one with objects in it")
    return folder


def inside(root: Path, folder: Path, name: str, what: str) -> Path:
    """`name`, as a file writes it, relative to `folder`: backslashes are taken for slashes.

    Raises DataError, beginning with `what`, where it leads out of `root` or is absolute.
    """
    name = name.replace("\\", "/")
    if not name or "\0" in name:
        raise DataError(f"{what}: {name!r} is no path, expected a file's")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{what}: {name!r} is absolute, expected a path inside of {root}")
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(root)):
        raise DataError(f"{what}: {name!r} leads out of {root}, expected a path inside of it")
    return path
