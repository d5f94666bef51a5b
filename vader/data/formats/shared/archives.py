"""Archives of objects (zip, tar, compressed tar), unpacked for as long as they are read, and nothing outside them.

    with unpacked(file) as folder:
        for scene in scan(folder): ...

A set of many objects is handed round as many archives: one after the other is unpacked, read and removed, so that disk
and memory stay small. Members that would land outside of the folder, links and devices are refused before anything is
written, and so is content larger than it may be.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ...prepared import DataError

SUFFIXES = (".tar", ".tar.bz2", ".tar.gz", ".tar.xz", ".tgz", ".zip")
MAX_BYTES = 64 * 2**30  # of an archive's content
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


def is_archive(file: Path) -> bool:
    return file.is_file() and file.name.lower().endswith(SUFFIXES)


@contextmanager
def unpacked(file: Path, below: Path | None = None, max_bytes: int = MAX_BYTES) -> Iterator[Path]:
    """A temporary folder with an archive's content, removed in the end. below: where it is made, by default where
    temporary files are.

    Raises DataError for a file that is no archive, is damaged, or holds what is refused; and where it does not fit.
    """
    file = Path(file)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{file.name}-", dir=below))
    except OSError as error:
        raise DataError(f"{file}: cannot be unpacked in {below or tempfile.gettempdir()} ({error})") from error
    try:
        with _opened(file) as (archive, members):
            _check(file, members, max_bytes)
            for name, size, _, member in members:
                if size is not None:
                    _write(archive, member, folder / name, file)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, list[tuple[str, int | None, str, Any]]]]:
    """The archive, and its members as (name, size or None of a folder, kind, member). What breaks is a DataError."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield archive, [(_name(m.filename), None if m.is_dir() else m.file_size, _zip_kind(m), m)
                                for m in archive.infolist()]  # fmt: skip
        else:
            with tarfile.open(file) as archive:
                yield archive, [(_name(m.name), m.size if m.isfile() else None, _tar_kind(m), m) for m in archive]
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file, expected an archive") from error
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be unpacked, expected a whole archive ({error})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be unpacked ({error})") from error


def _name(name: str) -> str:
    return name.replace("\\", "/")


def _zip_kind(member: zipfile.ZipInfo) -> str:
    """Links are files whose Unix mode (the upper half of the attributes) says so."""
    return "link" if (member.external_attr >> 16) & 0o170000 == 0o120000 else "file"


def _tar_kind(member: tarfile.TarInfo) -> str:
    return "link" if member.issym() or member.islnk() else "file" if member.isfile() or member.isdir() else "device"


def _check(file: Path, members: list[tuple[str, int | None, str, Any]], max_bytes: int) -> None:
    total = 0
    for name, size, kind, _ in members:
        if kind != "file":
            raise DataError(f"{file}: member {name!r} is a {kind}, expected files and folders only")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name[1:2] == ":" or "\0" in name:
            raise DataError(f"{file}: member {name!r} leads out of the archive, expected paths inside of it")
        total += size or 0
    if total > max_bytes:
        raise DataError(f"{file}: {total:,} bytes unpacked, expected at most {max_bytes:,}")


def _write(archive: Any, member: Any, target: Path, file: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise DataError(f"{file}: member {target.name!r} is there twice, expected once")
    opened = archive.open(member) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member)
    with opened as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 2**20)
