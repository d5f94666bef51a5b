"""Captions, categories and splits of objects, from a CSV or JSON file beside the data, and lists of test objects.

    captions.csv    key,caption,category,split       a head of these names, in any order; all but key may be missing
    captions.json   {"<key>": "a caption"}, {"<key>": {"caption": ..., "category": ...}}, or [{"key": ...}, ...]

A key is that of an object, or its path in the folder (which becomes the key in the same way). Columns of other names,
keys that no object has and keys that are there twice are errors. Of a CSV file one row is in memory at a time, of a
JSON file all of it.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from ....settings.checks import nearest
from ...prepared import SPLITS, DataError
from .scenes import Scene, key_of

FIELDS = ("caption", "category", "split")
KEYS = ("key", "id", "uid")
SOME = 1000  # keys of objects that are shown where one of a file is unknown


def read_captions(file: Path) -> dict[str, dict[str, str]]:
    """Key -> its fields of FIELDS, without empty ones. Raises DataError naming the file, the entry and the field."""
    captions: dict[str, dict[str, str]] = {}
    for what, key, fields in _read(Path(file)):
        if key in captions:
            raise _twice(what, key)
        captions[key] = fields
    return captions


def _read(file: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Where it stands, key and fields of every entry, one after the other; keys are not compared."""
    readers = {".csv": _rows, ".json": _entries}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file}: captions are in a file of suffix {file.suffix!r}, expected .csv or .json")
    found = False
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            for what, key, fields in readers[file.suffix.lower()](stream, file):
                if not isinstance(key, str) or not key.strip():
                    raise DataError(f"{what}: key is {key!r}, expected the key of an object")
                found = True
                yield what, key_of(key.strip().replace("/", "-")), _checked(fields, what)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read, expected a CSV or JSON file ({error})") from error
    if not found:
        raise DataError(f"{file}: no entries, expected some with {', '.join(('key', *FIELDS))}")


def _twice(what: str, key: str) -> DataError:
    return DataError(f"{what}: key {key!r} is there twice, expected once")


def with_captions(scenes: Iterable[Scene], file: Path) -> list[Scene]:
    """Scenes with what the file says of them; those that it does not name stay as they are. A category becomes an
    attribute. Raises DataError for keys that no object has."""
    return list(captioned(scenes, file))


def captioned(scenes: Iterable[Scene], file: Path) -> Iterator[Scene]:
    """`with_captions`, one after the other, with the captions on the disk meanwhile, not in memory. Keys that no object
    has are an error after the last."""
    some: list[str] = []
    with contextlib.closing(sqlite3.connect("")) as table:  # a file that goes with the connection
        table.execute("CREATE TABLE captions (key TEXT UNIQUE, fields TEXT, used INTEGER DEFAULT 0)")
        for what, key, fields in _read(Path(file)):
            try:
                table.execute("INSERT INTO captions (key, fields) VALUES (?, ?)", (key, json.dumps(fields)))
            except sqlite3.IntegrityError:
                raise _twice(what, key) from None
        for scene in scenes:
            found = table.execute(
                "UPDATE captions SET used = 1 WHERE key = ? RETURNING fields", (scene.key,)
            ).fetchone()
            some += [scene.key] if len(some) < SOME else []
            yield _captioned(scene, json.loads(found[0]) if found else {})
        total, used = table.execute("SELECT COUNT(*), SUM(used) FROM captions").fetchone()
        unknown = table.execute("SELECT key FROM captions WHERE used = 0 ORDER BY rowid LIMIT 1").fetchone()
    if unknown:
        raise DataError(
            f"{file}: {total - used} of {total} keys are of no object, the first is {unknown[0]!r}"
            f"{nearest(unknown[0], sorted(some))}; expected keys as {sorted(some)[0]!r}"
        )


def _captioned(scene: Scene, fields: dict[str, str]) -> Scene:
    category = {"category": fields["category"]} if "category" in fields else {}
    return replace(
        scene,
        caption=fields.get("caption", scene.caption),
        split=fields.get("split", scene.split),
        attributes=scene.attributes | category,
    )


def _checked(fields: dict[str, Any], what: str) -> dict[str, str]:
    for name, value in fields.items():
        if name not in FIELDS:
            raise DataError(
                f"{what}: field {name!r} is unknown{nearest(str(name), list(FIELDS))}, expected {', '.join(FIELDS)}"
            )
        if value is not None and not isinstance(value, str):
            raise DataError(f"{what}: {name} is {value!r}, expected text")
    kept = {name: " ".join(value.split()) for name, value in fields.items() if value and value.strip()}
    if kept.get("split", "train") not in SPLITS:
        raise DataError(f"{what}: split is {kept['split']!r}, expected one of {SPLITS}")
    return kept


def _rows(stream: TextIO, file: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    rows = csv.reader(stream, strict=True)
    try:
        head = [name.strip().lower() for name in next(rows, [])]
        column = next((name for name in KEYS if name in head), None)
        if column is None or len(set(head)) < len(head):
            raise DataError(f"{file}: line 1: the head is {','.join(head)}, expected key,{','.join(FIELDS)}")
        if other := [name for name in head if name not in (column, *FIELDS)]:
            raise DataError(
                f"{file}: line 1: column {other[0]!r} is unknown{nearest(other[0], list(FIELDS))}, "
                f"expected key,{','.join(FIELDS)}"
            )
        for row in rows:
            what = f"{file}: line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(head):
                raise DataError(f"{what}: {len(row)} fields, expected {len(head)} as in the head (quote commas)")
            fields = dict(zip(head, row, strict=True))
            yield what, fields.pop(column), fields
    except csv.Error as error:
        raise DataError(f"{file}: line {rows.line_num}: not CSV ({error})") from error


def _entries(stream: TextIO, file: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{file}: key {twice!r} is there twice, expected once")
        return dict(pairs)

    try:
        content = json.load(stream, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError | UnicodeDecodeError):
            raise
        raise DataError(f"{file}: not JSON ({error})") from error
    if isinstance(content, dict):
        for key, value in content.items():
            what = f"{file}: entry {key!r}"
            if not isinstance(value, dict | str):
                raise DataError(f"{what} is {value!r}, expected a caption or an object with {', '.join(FIELDS)}")
            yield what, key, value if isinstance(value, dict) else {"caption": value}
    elif isinstance(content, list):
        for number, value in enumerate(content):
            what = f"{file}: entry {number}"
            column = next((name for name in KEYS if isinstance(value, dict) and name in value), None)
            if column is None:
                raise DataError(f"{what} has no key, expected an object with key, {', '.join(FIELDS)}")
            yield what, value[column], {k: v for k, v in value.items() if k != column}
    else:
        raise DataError(f"{file}: holds {type(content).__name__}, expected an object by key or a list of objects")


# ---------------------------------------------------------------------------------------- lists of ids


def read_ids(file: Path) -> list[str]:
    """Ids of a list, one a line; empty lines are passed over. Raises DataError for an id that is there twice."""
    try:
        ids = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read, expected one id a line ({error})") from error
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"{file}: id {twice!r} is there more than once, expected each once")
    return ids


def with_test_ids(scenes: list[Scene], file: Path) -> list[Scene]:
    """Scenes of which those listed in `file` are for testing and all others for training. Raises DataError where a
    listed one is not there."""
    ids = {key_of(i): i for i in read_ids(file)}
    missing = [i for key, i in ids.items() if key not in {s.key for s in scenes}]
    if missing:
        raise DataError(f"{file}: {len(missing)} of {len(ids)} ids are no objects here ({missing[0]!r}), expected all")
    return [replace(s, split="test" if s.key in ids else "train") for s in scenes]
