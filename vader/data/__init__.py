"""Data sets: multi-view objects (`Sequence`) and videos (`Video`). A reader per kind of data prepares a set once."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path

from ..settings.checks import nearest, require
from ..settings.experiment import DataConfig
from .prepared import DataError, SequenceSet, load_prepared
from .sequence import PACKED, SEQUENCES, Sequence, load_set
from .shards import ShardedSet, load_shards
from .streaming.parts import PartOfSet
from .video import VIDEOS, Truth, Video, load_videos, truth_of

__all__ = [
    "DataError", "Sequence", "SequenceSet", "ShardedSet", "Truth", "Video", "load_set", "load_shards", "load_videos",
    "open_set", "prepare", "truth_of",
]  # fmt: skip

# Data set -> module with `prepare(config, **options) -> SequenceSet`, or, for sets that somebody has downloaded, with
# `find(source, **options) -> Found`, which `prepare_source` prepares.
READERS = {
    "procedural_chairs": "procedural",
    "procedural_tables": "procedural",
    "furniture_chairs": "furniture",
    "furniture_tables": "furniture",
    "household": "household",
    "puppets": "puppets",
    "puppets_waving": "puppets",
    "people_heads": "people",
    "people_bodies": "people",
    "celebv_text": "celebv_text",
    "abo_tables": "abo_tables",
    "photoshape_chairs": "photoshape_chairs",
    "mvimgnet": "mvimgnet",
    "objaverse": "objaverse",
}


def prepare(config: DataConfig, **options) -> SequenceSet | ShardedSet | PartOfSet:
    """The data set that `config` describes: loaded if it is prepared or comes with the package, rendered first if not.

    options go to the reader: `workers` (processes), `source` (furniture: where the models are; celebv_text: where the
    video files are; people_bodies: where the motion clips are; the paper's other sets: where their files are, see their
    data cards), `strict` (of the latter: an object that cannot be used is an error), and `objects_per_shard`, which
    makes it a sharded set of tars, of which `part` prepares a part.
    Raises ConfigError for an unknown name or an option that its reader does not take, and DataError for data that
    cannot be used.
    """
    if config.name not in READERS:
        from .sets import own

        known = sorted(READERS)
        require(
            own.is_prepared(config.name) and options.keys() <= {"objects_per_shard"},
            f"data set {config.name!r} is unknown{nearest(config.name, known)}; known: {', '.join(known)}",
        )
        return own.prepare(config, **options)
    module = import_module(f".sets.{READERS[config.name]}", __name__)
    if hasattr(module, "find"):
        from .reading.passes import prepare_source

        reader, taken = partial(prepare_source, module.find), [*signature(prepare_source).parameters][2:-1]
        taken += [*signature(module.find).parameters][1:]
    else:
        reader, taken = module.prepare, [*signature(module.prepare).parameters][1:]
    for option in options:
        require(option in taken, f"data set {config.name!r} takes no option {option!r}, it takes {', '.join(taken)}")
    return reader(config, **options)


def open_set(folder: Path) -> SequenceSet | ShardedSet:
    """The complete set in a folder: in memory if it is a prepared one, packed or not, its manifest if it is sharded."""
    if (Path(folder) / "manifest.jsonl").is_file():
        return load_shards(folder)
    return load_prepared(folder, SEQUENCES, PACKED, VIDEOS)
