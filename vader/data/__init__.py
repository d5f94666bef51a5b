"""Data sets: multi-view objects (`Sequence`) and videos (`Video`), and one reader per kind of data that prepares a set
once and then loads it."""

from __future__ import annotations

from importlib import import_module

from ..config import ConfigError, DataConfig, nearest
from .sequence import DataError, Sequence, SequenceSet, load_set
from .video import Truth, Video, load_videos, truth_of

__all__ = ["DataError", "Sequence", "SequenceSet", "Truth", "Video", "load_set", "load_videos", "prepare", "truth_of"]

READERS = {  # data set -> module with `prepare(config, **options) -> SequenceSet`
    "procedural_chairs": "procedural",
    "procedural_tables": "procedural",
    "furniture_chairs": "furniture",
    "furniture_tables": "furniture",
    "puppets": "puppets",
    "celebv_text": "celebv_text",
}


def prepare(config: DataConfig, **options) -> SequenceSet:
    """The data set that `config` describes: loaded if it is prepared, rendered first if not.

    options go to the reader: `workers` (processes), and `source` (furniture: where the models are; celebv_text: where
    the video files are).
    Raises ConfigError for an unknown name and DataError for data that cannot be used.
    """
    if config.name not in READERS:
        known = sorted(READERS)
        raise ConfigError(
            f"data set {config.name!r} is unknown{nearest(config.name, known)}; known: {', '.join(known)}"
        )
    return import_module(f".{READERS[config.name]}", __name__).prepare(config, **options)
