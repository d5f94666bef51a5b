"""Objects to be prepared, listed on the disk: however many there are, a few dozen bytes of each are in memory.

A `Listing` is made from scenes one after the other (`vader.data.formats.walk`) and gives them back by number. Its
digest, of their keys, splits and places, names the folder that a preparation works in before any file has been opened.
Files of an object are told apart by their stamp (names, sizes, times), which is cheap, and by their content, which is
read when the object is.
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
from ..transient import is_transient

Files = Callable[[Scene], list[Path]]  # that decide what an object is


class Listing(ListOf[Scene]):
    """Scenes below `root`, in a file that goes when this does.

    place: folder for that file. seed, group: where the folders do not say which objects are for testing (`told`), whole
    groups are, by a hash of both. shuffled: the order is that of the hashes, so that any first few objects are like all
    others, otherwise that in which they come. Either way those for testing come last, and so do the `spare` objects
    that would be. Raises DataError where two objects have one key, or `place` is not writable.
    """

    def __init__(
        self,
        scenes: Iterable[Scene],
        root: Path,
        place: Path,
        seed: int = 0,
        group: Callable[[Scene], str] = lambda scene: scene.key,
        shuffled: bool = False,
        spare: Callable[[int], int] = lambda count: 0,
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
            keys, groups, starts, tests = array("Q"), array("Q"), array("Q"), bytearray()
            for scene in scenes:
                keys.append(hashed(seed, scene.key))
                groups.append(hashed(seed, group(scene)))
                starts.append(found.tell())
                tests.append(scene.split == "test")
                found.write(_line(self._encoded(scene)))
            self.told = any(tests)
            hashes, of_group, test = np.array(keys), np.array(groups), np.array(tests, bool)
            last = test if self.told else chosen_groups(of_group, spare(len(test)))
            by_hash = (hashes, ~of_group * np.uint64(not self.told)) if shuffled else ()
            order = np.lexsort((*by_hash, last)) if len(test) else np.arange(0)
            self._check_keys(found, starts, hashes)
            self.groups, self.tests, digest = of_group[order], test[order], hashlib.sha256()
            self._starts = array("Q")
            for i in order:
                found.seek(starts[i])
                line = found.readline()
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

        fields = {f.name: getattr(scene, f.name) for f in dataclasses.fields(scene)}
        return fields | {
            "place": scene.place.relative_to(self.root).as_posix(),
            "root": inside(str(scene.root)),
            "files": {name: inside(value) for name, value in scene.files.items()},
            "placing": dataclasses.asdict(scene.placing),
        }

    def _decoded(self, entry: dict[str, Any]) -> Scene:
        def back(value: Any) -> Any:
            return str(self.root / value["below"]) if isinstance(value, dict) and value.keys() == {"below"} else value

        placing = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["placing"].items()}
        place = self.root / entry["place"] if entry["place"] != "." else self.root
        files = {name: back(value) for name, value in entry["files"].items()}
        changed = {"place": place, "root": Path(back(entry["root"])), "files": files, "placing": Placing(**placing)}
        return Scene(**entry | changed)

    def _check_keys(self, file: Any, starts: array, hashes: np.ndarray) -> None:
        order = np.argsort(hashes, kind="stable")
        for i in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
            scenes = []
            for number in sorted((order[i], order[i + 1])):
                file.seek(starts[number])
                scenes.append(self._decoded(json.loads(file.readline())))
            if scenes[0].key == scenes[1].key:
                raise same_key(scenes[1], scenes[0])


def hashed(seed: int, name: str) -> int:
    """64 bits of a hash, by which objects are put into an order that nothing about them decides."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def chosen_groups(groups: np.ndarray, wanted: int) -> np.ndarray:
    """Which objects, of these groups (their hashes), are held out: whole groups, those of the smallest hashes, until
    `wanted` objects are; never all objects."""
    names, counts = np.unique(groups, return_counts=True)
    total, chosen = 0, []
    for name, count in zip(names, counts, strict=True):
        if total >= wanted:
            break
        if total + count < len(groups):
            total += int(count)
            chosen.append(name)
    return np.isin(groups, np.array(chosen, groups.dtype))


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def identity(entry: dict[str, Any], split: str, content: str) -> bytes:
    """What an object adds to the identity of its set: what is listed of it, but for where it lies, and its content."""
    listed = {name: entry[name] for name in ("key", "format", "caption", "attributes", "placing")}
    return _line(listed | {"split": split, "content": content})


def stamp(scene: Scene, files: Files = files_of) -> str:
    """Of the names, sizes and times of an object's files (hex)."""
    digest = hashlib.sha256()
    for file in files(scene):
        try:
            found = file.stat()
        except OSError as error:
            _refuse_transient(error, file, scene)
            continue  # gone since it was listed, which the reader will say
        digest.update(f"{_name(file, scene)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def content(scene: Scene, files: Files = files_of) -> str:
    """SHA-256 (hex) of an object's files, by name and content."""
    digest = hashlib.sha256()
    for file in files(scene):
        try:
            with open(file, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            _refuse_transient(error, file, scene)
            found = "unreadable"
        digest.update(f"{_name(file, scene)} {found}\n".encode())
    return digest.hexdigest()


def _refuse_transient(error: OSError, file: Path, scene: Scene) -> None:
    if is_transient(error):
        raise DataError(f"{file}: object {scene.key!r}: cannot be read ({error})") from error


def _name(file: Path, scene: Scene) -> str:
    """Of a file, wherever the data are; the folder of a single object may be renamed."""
    return file.relative_to(scene.place).as_posix() if scene.place in file.parents else file.name
