"""Furniture chairs and tables: real 3D models from Sweet Home 3D catalogues, rendered under one light rig.

Data cards: `data_cards/furniture_chairs.md`, `data_cards/furniture_tables.md`; creators and licences:
`data_cards/ATTRIBUTION_furniture.md`, which `vader data furniture_chairs --attribution FILE` writes.

A base model is either training or held out, whatever the counts and variants: base models are
ordered by a hash of seed and id, and the first HELDOUT_MODELS are held out. Variant 0 of a model is
the original; variants 1, 2, ... have other materials and are stretched by up to 12 % along each axis.
Objects are listed variant by variant, so that a small set sees as many base models as it can.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...settings.checks import ConfigError, nearest
from ...settings.experiment import DataConfig
from ...store.files import differences
from ..formats.sweethome3d import Catalogue, CatalogueNotFound, Model, open_catalogue, read_catalogues
from ..formats.wavefront import DEFAULT_COLOUR, MAX_TEXTURE, read_obj
from ..meshes.render import (
    CREASE_ANGLE,
    HALF_EXTENT,
    LIGHT_RIG,
    MIN_ALBEDO,
    PALETTE,
    RADIUS,
    STRETCH,
    MeshRenderer,
    recoloured,
    reference_mesh,
    stretch_factors,
    to_canonical,
)
from ..pipeline import ShardWriter, prepare_set, shard_set
from ..prepared import EMBEDDED, DataError, SequenceSet, data_digest, data_root
from ..sequence import Sequence, load_set, object_cameras
from ..shards import ShardedSet
from ..streaming.parts import Join, Part, PartOfSet

# Rooms that count. What the catalogues file under Miscellaneous (wheelchair, workbench, gym bench, games on tables),
# Lights (desk lamp), Vehicles (Seat Leon) or Characters only sounds like furniture.
ROOMS = ("Bedroom", "Exterior", "Kitchen", "Living room", "Office")
# A model belongs where its name matches; chairs also where the tag "Chair" says so (bean bag, pool lounge, class seat).
NAMES = {
    "furniture_chairs": re.compile(r"(chair|stool|bench)\b", re.IGNORECASE),
    "furniture_tables": re.compile(r"\b(table|desk)\b", re.IGNORECASE),
}
TAGS = {"furniture_chairs": "Chair"}
EXCLUDED = {"Scopia#changing-table": "a chest of drawers with a mat for babies on top"}
HELDOUT_MODELS = 8  # base models held out; of fewer than 40, a fifth
RENDERING_VERSION = 1  # raised whenever the code between a model and its pictures changes them; 1: MULTISAMPLES is 4


@dataclass(frozen=True)
class Job:
    """One object to render."""

    config: DataConfig
    model: Model
    variant: int
    split: str


def select(catalogues: list[Catalogue], name: str) -> list[Model]:
    """The base models of a data set, sorted by id. Raises DataError if there are none or the file of one is gone."""
    pattern, tag, models = NAMES[name], TAGS.get(name), []
    for catalogue in catalogues:
        chosen = [
            catalogue.model(entry)
            for entry in catalogue.entries
            if entry.get("category") in ROOMS
            and entry["id"] not in EXCLUDED
            and (pattern.search(entry.get("name", "")) or tag in re.split(r"\s*,\s*", entry.get("tags", "")))
        ]
        catalogue.check_members(chosen)
        models += chosen
    if not models:
        files = ", ".join(str(catalogue.file) for catalogue in catalogues)
        raise DataError(f"data set {name}: none of the models of {files} is named like {pattern.pattern!r}")
    return sorted(models, key=lambda model: model.id)


def split_models(models: list[Model], seed: int) -> dict[str, list[Model]]:
    """Base models by split: hashed order, the first HELDOUT_MODELS (at most a fifth) held out."""
    order = sorted(models, key=lambda model: hashlib.sha256(f"{seed}/{model.id}".encode()).digest())
    heldout = min(HELDOUT_MODELS, len(order) // 5)
    return {"train": order[heldout:], "test": order[:heldout]}


def object_key(model: Model, variant: int) -> str:
    """Key of an object, e.g. "Scopia-ext_chair.v0"."""
    return f"{re.sub('[^A-Za-z0-9_]+', '-', model.id).strip('-_')}.v{variant}"


def list_jobs(config: DataConfig, models: list[Model]) -> dict[str, Job]:
    """Object key -> job, training objects first. Raises ConfigError if more objects are asked for than there are."""
    jobs: dict[str, Job] = {}
    wanted = {"train": ("num_objects", config.num_objects), "test": ("heldout_objects", config.heldout_objects)}
    for split, members in split_models(models, config.seed).items():
        field, count = wanted[split]
        available = len(members) * config.variants
        if not 0 <= count <= available:
            raise ConfigError(
                f"data set {config.name}: {field} is {count}, expected 0 to {available}: {len(members)} base models "
                f"({split}) in {config.variants} variant(s) each; raise variants for more"
            )
        for i in range(count):
            variant, model = i // len(members), members[i % len(members)]
            key = object_key(model, variant)
            if key in jobs:
                other = jobs[key].model.id
                raise DataError(f"{model.where}: its key {key!r} is that of {other!r} as well, expected unique ids")
            jobs[key] = Job(config, model, variant, split)
    return jobs


def sources(catalogues: list[Catalogue], jobs: dict[str, Job]) -> dict[str, Any]:
    """What decides the pixels beside the settings, as it enters the digest: no paths, no pixels."""
    used = {job.model.catalogue for job in jobs.values()}
    return {
        "catalogues": {catalogue.id: catalogue.version for catalogue in catalogues if catalogue.file in used},
        "objects": {key: [job.model.id, job.variant, job.split] for key, job in jobs.items()},
        "rendering": rendering(),
    }


def rendering() -> dict[str, Any]:
    """How a model becomes pictures."""
    return {
        "version": RENDERING_VERSION,
        "lights": LIGHT_RIG,
        "min_albedo": MIN_ALBEDO,
        "crease_angle": CREASE_ANGLE,
        "size": [HALF_EXTENT, RADIUS],
        "default_colour": DEFAULT_COLOUR,
        "max_texture": MAX_TEXTURE,
        "variants": {"stretch": STRETCH, "palette": PALETTE},
    }


def render_object(job: Job):
    """(Sequence, trimesh.Trimesh) of an object. Raises DataError naming catalogue, entry and file of a broken model."""
    config, model = job.config, job.model
    key = object_key(model, job.variant)
    with open_catalogue(model.catalogue) as archive:
        parts, missing = read_obj(archive, model.member, model.where)
    stretch = np.ones(3)
    if job.variant:
        seed = hashlib.sha256(f"{config.seed}/{model.id}/{job.variant}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        parts, stretch = recoloured(parts, rng), stretch_factors(rng)
    rotation = np.reshape(model.rotation, (3, 3))
    parts = to_canonical(parts, rotation, model.size, stretch, model.where)
    cameras = object_cameras(config, key)
    with MeshRenderer(parts) as renderer:
        images, masks = renderer.render(cameras, config.supersampling)
    sequence = Sequence(
        key=key,
        images=images,
        masks=masks,
        cameras=cameras,
        split=job.split,
        caption=None if job.variant else model.name.lower(),  # a recoloured "oak chair" is no oak chair
        attributes={
            "base_model": model.id,
            "variant": job.variant,
            "creator": model.creator,
            "licence": model.licence,
            "category": model.category,
            "stretch": stretch.tolist(),
            "missing_textures": missing,
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
    """Load or render a furniture set. source: as in `find_catalogues`; workers: processes, by default one per core.

    objects_per_shard, part: as in `prepare_set`. Where no source is named, nothing is rendered for the settings of an
    embedded set: that is loaded, or an own one of the same digest; and where no catalogue is found, a set that was
    prepared earlier from the same settings is. Raises ConfigError for settings that cannot work (too many objects: the
    message counts what there is), DataError for a missing or broken catalogue, model or output folder.
    """
    if config.name not in NAMES:
        known = sorted(NAMES)
        raise ConfigError(f"data set {config.name!r} is not furniture{nearest(config.name, known)}; known: {known}")
    if config.variants < 1:
        raise ConfigError(f"data set {config.name}: variants is {config.variants}, expected at least 1 (the originals)")
    if config.camera_distance <= RADIUS:
        raise ConfigError(
            f"data set {config.name}: camera_distance is {config.camera_distance}, expected more than "
            f"{RADIUS}, the radius of the objects' bounding sphere"
        )
    root = root or data_root()
    if source is None and (embedded := _prepared_earlier(config, EMBEDDED)):
        own = root / embedded.name
        return _opened(own if (own / "manifest.json").is_file() else embedded, config, root, objects_per_shard)
    try:
        catalogues = read_catalogues(source)
    except CatalogueNotFound as error:
        if source is not None:
            raise
        if folder := _prepared_earlier(config, root):
            return _opened(folder, config, root, objects_per_shard)
        raise CatalogueNotFound(f"data set {config.name}: {_why_not_embedded(config)}. {error}") from error
    jobs = list_jobs(config, select(catalogues, config.name))
    workers = torch.get_num_threads() if workers is None else workers
    made_of = sources(catalogues, jobs)
    sharing = {"objects_per_shard": objects_per_shard, "part": part}
    data = prepare_set(config, made_of, jobs, render_object, workers, root, **sharing)
    table = data.folder / "ATTRIBUTION.md"
    if not (isinstance(data, PartOfSet) or table.exists()):
        table.write_text(attribution_page(catalogues, config), encoding="utf-8")
    return data


def _opened(folder: Path, config: DataConfig, root: Path, objects_per_shard: int | None) -> SequenceSet | ShardedSet:
    """A complete set in memory, or as tars below `root`."""
    if objects_per_shard is None:
        return load_set(folder)
    made_of = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sources"]
    return shard_set(folder, ShardWriter(config, made_of, root, objects_per_shard))


def _why_not_embedded(config: DataConfig) -> str:
    """How settings depart from those of the embedded set."""
    reasons = []
    for file in EMBEDDED.glob(f"{config.name}-*/manifest.json"):
        reasons = differences(config, json.loads(file.read_text(encoding="utf-8"))["config"])
    why = "; ".join(reasons) or "pictures are made in another way"
    return f"the set that comes with the package is another one ({why}), so that the models are needed to render this"


def _prepared_earlier(config: DataConfig, root: Path) -> Path | None:
    """Folder of a complete set with these settings, rendered as this version renders."""
    for file in sorted(root.glob(f"{config.name}-*/manifest.json")):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            same = manifest["digest"] == data_digest(config, manifest["sources"])
            if same and manifest["sources"]["rendering"] == json.loads(json.dumps(rendering())):
                return file.parent
        except (ValueError, KeyError, TypeError):
            continue  # not a manifest of this schema
    return None


# ---------------------------------------------------------------------------------------- attribution


def attribution(catalogues: list[Catalogue], config: DataConfig) -> str:
    """Markdown table of all base models of a set: id, name, creator, licence, category, split."""
    title = config.name.removeprefix("furniture_")
    lines = [f"## {title.capitalize()}", ""]
    lines += ["| id | name | creator | licence | category | split | licence file | original |"] + ["|---" * 8 + "|"]
    owner = {catalogue.file: catalogue for catalogue in catalogues}
    by_split = split_models(select(catalogues, config.name), config.seed)
    rows = [(model, split) for split, models in by_split.items() for model in models]
    for model, split in sorted(rows, key=lambda row: row[0].id):
        file, page = owner[model.catalogue].licence_file(model)
        row = (model.id, model.name, model.creator, model.licence, model.category, split, file or "", page or "")
        lines.append("| " + " | ".join(" ".join(value.split()).replace("|", "\\|") for value in row) + " |")
    return "\n".join(lines) + "\n"


def attribution_page(catalogues: list[Catalogue], *configs: DataConfig) -> str:
    """What ATTRIBUTION.md of a set says, and, with all sets, ATTRIBUTION_furniture.md."""
    names, seeds = " and ".join(f"`{c.name}`" for c in configs), " and ".join(sorted({str(c.seed) for c in configs}))
    head = f"""# Attribution: furniture

The 3D models of {names} come from the catalogues below, as packaged by
Debian in `sweethome3d-furniture`. Their creators and licences are listed model by model:

- public domain: [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/)
- Creative Commons Attribution 3.0: [unported](https://creativecommons.org/licenses/by/3.0/) or
  [United States](https://creativecommons.org/licenses/by/3.0/us/)

The models are not part of this repository, but pictures and meshes made from them are, in `vader/data/embedded`. What
this project does with the models is a change in the sense of their licences: they are turned upright, scaled, and
rendered in colours that are lifted from black; the meshes have a colour at each vertex in place of textures; variants
are recoloured and stretched. Splits are those of seed {seeds}. Written by `vader data`; do not edit.

| catalogue | version | licence |
|---|---|---|
"""
    rows = [f"| {c.id} | {c.version} | {' '.join(c.licence.split())} |" for c in catalogues]
    return head + "\n".join(rows) + "\n\n" + "\n".join(attribution(catalogues, config) for config in configs)
