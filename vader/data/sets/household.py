"""Household: many kinds of objects by name, all usable models of the Sweet Home 3D catalogues under one light rig.

Data card: `data_cards/household.md`; creators and licences: `data_cards/ATTRIBUTION_household.md`.

`meshes.selection` says what belongs to it, and what models are a group, which is either training or held out. Large
groups train; the smaller ones are ordered by a hash of seed and name, and of each category the first ones are
held out. Objects are listed category by category in turn, so that a small set has many kinds. Captions: `describe`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...settings.checks import ConfigError
from ...settings.experiment import DataConfig
from ...store.files import differences
from ..describe import caption, colour_shares, colours_of, shape_words
from ..formats.sweethome3d import Catalogue, CatalogueNotFound, Model, open_catalogue, read_catalogues
from ..meshes.render import RADIUS, MeshRenderer, reference_mesh
from ..meshes.selection import (
    MIN_THICKNESS,
    MIN_TRIANGLES,
    NEAR_COPY,
    UNPAINTED,
    Survey,
    canonical_parts,
    surface_points,
    survey,
)
from ..pipeline import prepare_set
from ..prepared import DataError, SequenceSet, data_digest, data_root, read_json, write_json
from ..sequence import Sequence, load_set, object_cameras
from ..shards import ShardedSet
from ..streaming.parts import Join, Part, PartOfSet
from .furniture import object_key, rendering

HELDOUT_SHARE = 0.085  # of each category's models, in whole groups ...
LARGEST_HELDOUT = 3  # ... of so many models at most
POINTS = 4096  # of a surface, for words of shape
VERSION = 1  # raised whenever the rules of this file or of `describe` change the set


@dataclass(frozen=True)
class Job:
    """One object to render."""

    config: DataConfig
    model: Model
    split: str


# -------------------------------------------------------------------------------------------------- the split


def split_models(found: Survey, seed: int) -> dict[str, list[Model]]:
    """Models by split, each listed category by category in turn."""
    members = defaultdict(list)
    for model in found.models:
        members[found.groups[model.id]].append(model)
    sizes = Counter(model.category for model in found.models)
    quota = {category: round(HELDOUT_SHARE * count) for category, count in sizes.items()}
    heldout: list[Model] = []
    for group in sorted(members, key=lambda group: _hash(f"{seed}/{group}")):
        models = members[group]
        wanted = Counter(model.category for model in models)
        if len(models) <= LARGEST_HELDOUT and all(quota[c] >= n for c, n in wanted.items()):
            heldout += models
            quota = {category: count - wanted[category] for category, count in quota.items()}
    chosen = {model.id for model in heldout}
    train = [model for model in found.models if model.id not in chosen]
    return {"train": _in_turn(train, seed), "test": _in_turn(heldout, seed)}


def _in_turn(models: list[Model], seed: int) -> list[Model]:
    """The first model of each category, then the second of each, and so on, in hashed order."""
    counted: Counter[str] = Counter()
    places = {}
    for model in sorted(models, key=lambda model: _hash(f"{seed}/{model.id}")):
        counted[model.category] += 1
        places[model.id] = (counted[model.category], model.category)
    return sorted(models, key=lambda model: places[model.id])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def list_jobs(config: DataConfig, split: dict[str, list[Model]]) -> dict[str, Job]:
    """Object key -> job, training objects first. Raises ConfigError if more objects are asked for than there are."""
    jobs: dict[str, Job] = {}
    for side, field in (("train", "num_objects"), ("test", "heldout_objects")):
        models, count = split[side], getattr(config, field)
        if not 0 <= count <= len(models):
            raise ConfigError(
                f"data set {config.name}: {field} is {count}, expected 0 to {len(models)}: "
                f"so many models pass the filters ({side})"
            )
        for model in models[:count]:
            key = object_key(model, 0).removesuffix(".v0")
            if key in jobs:
                raise DataError(f"{model.where}: its key {key!r} is that of {jobs[key].model.id!r} as well")
            jobs[key] = Job(config, model, side)
    return jobs


# ------------------------------------------------------------------------------------------------ preparation


def sources(catalogues: list[Catalogue]) -> dict[str, Any]:
    """What decides the pixels and captions beside the settings: the models' files by their checksums, and the rules."""
    return {
        "catalogues": {catalogue.id: catalogue.version for catalogue in catalogues},
        "models": {catalogue.id: _content(catalogue) for catalogue in catalogues},
        "version": VERSION,
        "filters": {
            "min_triangles": MIN_TRIANGLES,
            "min_thickness": MIN_THICKNESS,
            "unpainted": UNPAINTED,
            "heldout": [HELDOUT_SHARE, LARGEST_HELDOUT],
            "near_copy": NEAR_COPY,
        },
        "rendering": {k: v for k, v in rendering().items() if k != "variants"},
    }


def _content(catalogue: Catalogue) -> str:
    """SHA-256 of the names and CRCs of a catalogue's files, which its archive lists."""
    with open_catalogue(catalogue.file) as archive:
        lines = sorted(f"{info.filename} {info.CRC:08x} {info.file_size}\n" for info in archive.infolist())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def render_object(job: Job):
    """(Sequence, trimesh.Trimesh) of an object. Raises DataError naming catalogue, entry and file of a broken model."""
    config, model = job.config, job.model
    parts = canonical_parts(model)
    key = object_key(model, 0).removesuffix(".v0")
    cameras = object_cameras(config, key)
    with MeshRenderer(parts) as renderer:
        images, masks = renderer.render(cameras, config.supersampling)
    seen = slice(config.train_views)  # a held-out view is not looked at for the caption either
    shares = colour_shares(images[seen].float() / 255, masks[seen].float() / 255)
    colours = colours_of(shares)
    shape, stand = shape_words(surface_points(parts, POINTS, model.id))
    sequence = Sequence(
        key=key,
        images=images,
        masks=masks,
        cameras=cameras,
        split=job.split,
        caption=caption(model.name, model.category, colours, shape, stand),
        attributes={
            "base_model": model.id,
            "name": model.name,
            "category": model.category,
            "colours": colours,
            "shape": [*shape, *([stand] if stand else [])],
            "creator": model.creator,
            "licence": model.licence,
        },
    )
    return sequence, reference_mesh(parts)


def prepare(
    config: DataConfig,
    source: str | Path | None = None,
    workers: int | None = None,
    root: Path | None = None,
    objects_per_shard: int | None = None,
    part: Part | Join | None = None,
) -> SequenceSet | ShardedSet | PartOfSet:
    """Load or render the set. source: as in `find_catalogues`; workers: processes, by default one per core.

    objects_per_shard, part: as in `prepare_set`. Where no source is named and no catalogue is found, a set that was
    prepared earlier from the same settings is loaded. Raises ConfigError for settings that cannot work, before any
    rendering, and DataError for a missing catalogue or output folder. Models that are broken are left out, and named in
    the set's filter.json, which counts what each filter kept and dropped.
    """
    if config.name != "household":
        raise ConfigError(f"data set {config.name!r} is not known here, expected 'household'")
    if config.variants != 1:
        raise ConfigError(
            f"data set household: variants is {config.variants}, expected 1: there are the originals only"
        )
    if config.camera_distance <= RADIUS:
        raise ConfigError(
            f"data set household: camera_distance is {config.camera_distance}, expected more than "
            f"{RADIUS}, the radius of the objects' bounding sphere"
        )
    root = root or data_root()
    try:
        catalogues = read_catalogues(source)
    except CatalogueNotFound as error:
        folder = _prepared_earlier(config, root) if source is None and objects_per_shard is None else None
        if folder is None:
            raise CatalogueNotFound(f"data set household: {error}") from error
        return load_set(folder)
    made_of = sources(catalogues)
    folder = root / f"household-{data_digest(config, made_of)[:12]}"
    if objects_per_shard is None and (folder / "manifest.json").is_file():
        return load_set(folder)
    found = survey(catalogues)
    split = split_models(found, config.seed)
    jobs = list_jobs(config, split)
    workers = torch.get_num_threads() if workers is None else workers
    sharing = {"objects_per_shard": objects_per_shard, "part": part}
    data = prepare_set(config, made_of, jobs, render_object, workers, root, **sharing)
    if isinstance(data, PartOfSet):
        return data
    write_json(data.folder / "filter.json", found.page(split))
    (data.folder / "ATTRIBUTION.md").write_text(attribution_page(catalogues, found, split), encoding="utf-8")
    return data


def _prepared_earlier(config: DataConfig, root: Path) -> Path | None:
    """Folder of a complete set with these settings, made by these rules from whatever catalogues."""
    rules = sources([])
    for file in sorted(root.glob("household-*/manifest.json")):
        manifest = read_json(file, "household", ("config", "sources", "digest"))
        stored = manifest["sources"]
        same = not differences(config, manifest["config"]) and manifest["digest"] == data_digest(config, stored)
        if same and all(stored.get(k) == json.loads(json.dumps(rules[k])) for k in ("version", "filters", "rendering")):
            return file.parent
    return None


# ------------------------------------------------------------------------------------------------ attribution


def attribution_page(catalogues: list[Catalogue], found: Survey, split: dict[str, list[Model]]) -> str:
    """ATTRIBUTION.md of a set: name, creator and licence of every model."""
    sides = {model.id: side for side, models in split.items() for model in models}
    head = """# Attribution: household

The 3D models of `household` come from the catalogues below, as packaged by Debian in `sweethome3d-furniture`. They are
not part of this repository, but pictures made from them are. What this project does with the models is a change in the
sense of their licences: they are turned upright, scaled, and rendered in colours that are lifted from black. Public
domain is [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/), Creative Commons Attribution 3.0 is
[unported](https://creativecommons.org/licenses/by/3.0/) or
[United States](https://creativecommons.org/licenses/by/3.0/us/). Written by `vader data household`; do not edit.

| catalogue | version | licence |
|---|---|---|
"""
    rows = [f"| {c.id} | {c.version} | {' '.join(c.licence.split())} |" for c in catalogues]
    table = ["| id | name | creator | licence | category | split |", "|---|---|---|---|---|---|"]
    for m in found.models:
        cells = (m.id, m.name, m.creator, m.licence, m.category, sides[m.id])
        table.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return head + "\n".join(rows) + "\n\n" + "\n".join(table) + "\n"
