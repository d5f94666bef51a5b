"""Where a 3D model's files are: in a zip archive, or in a folder, which nothing may lead out of."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...prepared import DataError

UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError)  # by zipfile


class Files(Protocol):
    """Where a model's files are."""

    what: str  # "catalogue", for messages

    def read(self, name: str, where: str) -> bytes | None:
        """Content of a file by its path with slashes, None if there is none of that name."""
        ...


@dataclass(frozen=True)
class ZipFiles:
    archive: zipfile.ZipFile
    what: str = "catalogue"

    def read(self, name: str, where: str) -> bytes | None:
        try:
            return self.archive.read(name)
        except KeyError:
            return None
        except UNREADABLE as error:
            raise DataError(f"{where}: {name!r} cannot be unpacked ({error})") from error


@dataclass(frozen=True)
class FolderFiles:
    """A folder; letters of another case are found. What leads out of it is refused."""

    root: Path
    what: str = "folder"

    def read(self, name: str, where: str) -> bytes | None:
        if posixpath.normpath(name).split("/")[0] == "..":
            raise DataError(f"{where}: {name!r} leads out of {self.root}, expected a file inside of it")
        path = self.find(name)
        try:
            return path and path.read_bytes()
        except OSError as error:
            raise DataError(f"{where}: {name!r} cannot be read ({error})") from error

    def find(self, name: str) -> Path | None:
        """The file of that name; None if there is none, or on somebody else's machine, which is not looked at."""
        parts = posixpath.normpath(name).split("/")
        if name.startswith("/") or name[1:2] == ":" or parts[0] == "..":
            return None
        path = self.root
        for part in parts:
            path = path / part if (path / part).exists() else _of_any_case(path, part)
            if path is None:
                return None
        return path if path.is_file() else None


def _of_any_case(folder: Path, name: str) -> Path | None:
    if not folder.is_dir():
        return None
    return next((f for f in sorted(folder.iterdir()) if f.name.lower() == name.lower()), None)
