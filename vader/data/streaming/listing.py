"""Objects to be prepared, listed on the disk: however many there are, a few dozen bytes of each are in memory.

A `Listing` is made from scenes one after the other (`vader.data.formats.walk`) and gives them back by number, training
objects first. Its digest, of their keys, splits and places, names the folder that a preparation works in before any
file has been opened. Files of an object are told apart by their stamp (names, sizes, times), which is cheap, and by
their content, which is read when the object is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import Placing, Scene, files_of
from ..formats.shared.scenes import same_key
from ..prepared import DataError


class Listing(ListOf[Scene]):
    """Scenes below `root`, in a file that goes when this does.

    place: folder for that file. heldout: how many of so many objects are for testing, those whose keys have the
    smallest hashes; not asked where the folders say which are. Raises DataError where two objects have one key, or
    `place` is not writable.
    """

    def __init__(
        self, scenes: Iterable[Scene], root: Path, place: Path, heldout: Callable[[int], int] = lambda count: 0
    ) -> None:
        self.root = Path(root)
        try:
            place.mkdir(parents=True, exist_ok=True)
            self._file, found = (tempfile.TemporaryFile(dir=place) for _ in range(2))
        except OSError as error:
            raise DataError(
                f"{place}: output folder is not writable ({error}), expected one; set VADER_DATA to it"
            ) from error
        with found:
            hashes, starts, test = array("Q"), array("Q"), bytearray()
            for scene in scenes:
                hashes.append(_key_hash(scene.key))
                starts.append(found.tell())
                test.append(scene.split == "test")
                found.write(_line(self._encoded(scene)))
            test = self._tests(np.frombuffer(test, bool), np.frombuffer(hashes, np.uint64), heldout)
            self._check_keys(found, starts, np.frombuffer(hashes, np.uint64))
            self.train, self.test, digest = int((~test).sum()), int(test.sum()), hashlib.sha256()
            self._starts = array("Q")
            for i in [*np.flatnonzero(~test), *np.flatnonzero(test)] if len(test) else []:
                found.seek(starts[i])
                line = _line(json.loads(found.readline()) | {"split": "test" if test[i] else "train"})
                self._starts.append(self._file.tell())
                self._file.write(line)
                digest.update(line)
        self.digest = digest.hexdigest()

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Scene:
        return self._decoded(self.entry(index))

    def entry(self, index: int) -> dict[str, Any]:
        """What is listed of a scene, as JSON values without the root."""
        self._file.seek(self._starts[index])
        return json.loads(self._file.readline())

    def _encoded(self, scene: Scene) -> dict[str, Any]:
        def inside(value: Any) -> Any:
            path = isinstance(value, str) and os.path.isabs(value) and Path(value).is_relative_to(self.root)
            return {"below": Path(value).relative_to(self.root).as_posix()} if path else value

        fields = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene) if f.name not in ("place", "root")}
        return fields | {
            "place": scene.place.relative_to(self.root).as_posix(),
            "files": {name: inside(value) for name, value in scene.files.items()},
            "placing": dataclasses.asdict(scene.placing),
        }

    def _decoded(self, entry: dict[str, Any]) -> Scene:
        def back(value: Any) -> Any:
            return str(self.root / value["below"]) if isinstance(value, dict) and value.keys() == {"below"} else value

        placing = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["placing"].items()}
        place = self.root / entry["place"] if entry["place"] != "." else self.root
        files = {name: back(value) for name, value in entry["files"].items()}
        changed = {"place": place, "root": self.root, "files": files, "placing": Placing(**placing)}
        return Scene(**entry | changed)

    @staticmethod
    def _tests(given: np.ndarray, hashes: np.ndarray, heldout: Callable[[int], int]) -> np.ndarray:
        if given.any():
            return given
        chosen = np.argsort(hashes, kind="stable")[: heldout(len(given))]
        tests = np.zeros(len(given), bool)
        tests[chosen] = True
        return tests

    def _check_keys(self, file: Any, starts: array, hashes: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        for i in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
            scenes = []
            for number in sorted((order[i], order[i + 1])):
                file.seek(starts[number])
                scenes.append(self._decoded(json.loads(file.readline())))
            if scenes[0].key == scenes[1].key:
                raise same_key(scenes[1], scenes[0])


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def identity(entry: dict[str, Any], content: str, usable: bool) -> bytes:
    """What an object adds to the identity of its set: what is listed of it, its content, whether it is in."""
    return _line({"listed": entry, "content": content, "usable": usable})


def stamp(scene: Scene) -> str:
    """Of the names, sizes and times of an object's files (hex)."""
    digest = hashlib.sha256()
    for file in files_of(scene):
        try:
            found = file.stat()
        except OSError:
            continue  # gone since it was listed, which the reader will say
        digest.update(f"{_name(file, scene)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def content(scene: Scene) -> str:
    """SHA-256 (hex) of an object's files, by name and content."""
    digest = hashlib.sha256()
    for file in files_of(scene):
        try:
            with open(file, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            found = "unreadable"
        digest.update(f"{_name(file, scene)} {found}\n".encode())
    return digest.hexdigest()


def _name(file: Path, scene: Scene) -> str:
    """Of a file, wherever the data are; the folder of a single object may be renamed."""
    return file.relative_to(scene.place).as_posix() if scene.place in file.parents else file.name
