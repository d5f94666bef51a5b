"""Data sets: one `Sequence` type, and one reader per kind of data that prepares a set once and then loads it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..config import ConfigError, DataConfig, nearest
from .sequence import DataError, Sequence, SequenceSet, load_set
from .shards import ShardedSet, load_shards

__all__ = ["DataError", "Sequence", "SequenceSet", "ShardedSet", "load_set", "load_shards", "open_set", "prepare"]

READERS = {  # data set -> module with `prepare(config, **options) -> SequenceSet`
    "procedural_chairs": "procedural",
    "procedural_tables": "procedural",
    "furniture_chairs": "furniture",
    "furniture_tables": "furniture",
}


def prepare(config: DataConfig, **options) -> SequenceSet | ShardedSet:
    """The data set that `config` describes: loaded if it is prepared, rendered first if not.

    options go to the reader: `workers` (processes), `source` (furniture: where the models are), and
    `objects_per_shard`, which makes it a sharded set of tars.
    Raises ConfigError for an unknown name and DataError for data that cannot be used.
    """
    if config.name not in READERS:
        known = sorted(READERS)
        raise ConfigError(
            f"data set {config.name!r} is unknown{nearest(config.name, known)}; known: {', '.join(known)}"
        )
    return import_module(f".{READERS[config.name]}", __name__).prepare(config, **options)


def open_set(folder: Path) -> SequenceSet | ShardedSet:
    """The complete set in a folder: in memory if it is a prepared one, its manifest if it is sharded."""
    return load_shards(folder) if (Path(folder) / "manifest.jsonl").is_file() else load_set(folder)
