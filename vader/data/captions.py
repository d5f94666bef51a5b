"""Captions of one's own for a prepared set: a file of captions by object, as a captioner or a person wrote it.

    vader train household_text --captions described.json

The set's pictures and digest stay what they are; the captions decide the digests of text embeddings and runs. The
file is of the form of `vader.data.formats.shared.captions`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..settings.checks import nearest
from .formats.shared.captions import read_captions
from .prepared import DataError, SequenceSet


def with_captions(data: SequenceSet, file: Path | str) -> SequenceSet:
    """The set with the captions of a file, all of them.

    Raises DataError naming the file and the object: for an object that the file lacks, one that the set does not have,
    and a caption that is empty or no text.
    """
    entries, keys = read_captions(Path(file)), [item.key for item in data]
    if unknown := [key for key in entries if key not in keys]:
        raise DataError(f"{file}: object {unknown[0]!r} is not in data set {data.name}{nearest(unknown[0], keys)}")
    missing = [key for key in keys if "caption" not in entries.get(key, {})]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(keys)} objects of data set {data.name} have no caption there, "
            f"the first is {missing[0]!r}; expected one for each"
        )
    described = tuple(dataclasses.replace(item, caption=entries[item.key]["caption"]) for item in data)
    return dataclasses.replace(data, sequences=described)
