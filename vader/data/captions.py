"""Captions of one's own for a prepared set: a JSON file {object key: text}, as a captioner or a person wrote it.

    vader train household_text --captions described.json

The set's pictures and digest stay what they are; the captions decide the digests of text embeddings and runs.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..settings.checks import nearest
from .prepared import DataError, SequenceSet


def with_captions(data: SequenceSet, file: Path | str) -> SequenceSet:
    """The set with the captions of a file, all of them.

    Raises DataError naming the file and the object: for an object of the set that the file lacks, one that the set does
    not have, a caption that is empty or no text, and a file that is no JSON object.
    """
    file = Path(file)
    try:
        captions = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable caption file ({error}), expected JSON {{object: text}}") from error
    if not isinstance(captions, dict):
        raise DataError(f"{file}: holds a {type(captions).__name__}, expected an object {{object: text}}")
    keys = [item.key for item in data]
    for key, caption in captions.items():
        if key not in keys:
            raise DataError(f"{file}: object {key!r} is not in data set {data.name}{nearest(key, keys)}")
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(f"{file}: object {key!r}: caption is {caption!r}, expected a text")
    missing = [key for key in keys if key not in captions]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(keys)} objects of data set {data.name} have no caption there, "
            f"the first is {missing[0]!r}; expected one for each"
        )
    described = tuple(dataclasses.replace(item, caption=" ".join(captions[item.key].split())) for item in data)
    return dataclasses.replace(data, sequences=described)
