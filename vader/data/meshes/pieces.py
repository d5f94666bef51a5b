"""Pieces of furniture as GLB files in a folder, as somebody's own models would be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..formats.gltf import write_glb
from ..formats.sweethome3d import Catalogue, CatalogueNotFound, open_catalogue, read_catalogues
from ..formats.wavefront import Part, read_obj
from ..packed import read_mesh
from ..prepared import EMBEDDED
from ..sequence import load_packed
from .render import to_canonical

WANTED = ("sofa", "lamp")
FIXED = re.compile(r"(ceiling|wall|light source)", re.IGNORECASE)  # hung on a building


def write_pieces(folder: Path, count: int = 12, source: str | Path | None = None) -> str:
    """Write `count` models as <name>.glb and return in words what they are.

    Sofas and lamps of Sweet Home 3D's catalogues where these are installed or named by `source`
    (`sweethome3d.find_catalogues`), else chairs that come with the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        catalogues = read_catalogues(source)
    except CatalogueNotFound:
        if source is not None:
            raise
        return _chairs(folder, count)
    share = count // len(WANTED)
    for word in WANTED:
        for name, parts in _named(catalogues, word, share):
            write_glb(folder / f"{name}.glb", parts)
    return f"{share} sofas and {share} lamps of Sweet Home 3D's catalogues"


def _named(catalogues: list[Catalogue], word: str, count: int) -> list[tuple[str, list[Part]]]:
    """The first models, by their ids, that have the word in their names."""
    pattern = re.compile(rf"\b{word}\b", re.IGNORECASE)
    models = [
        catalogue.model(entry)
        for catalogue in catalogues
        for entry in catalogue.entries
        if pattern.search(entry.get("name", "")) and not FIXED.search(entry.get("name", ""))
    ]
    found = []
    for number, model in enumerate(sorted(models, key=lambda model: model.id)[:count]):
        with open_catalogue(model.catalogue) as archive:
            parts, _ = read_obj(archive, model.member, model.where)
        rotation = np.reshape(model.rotation, (3, 3))
        found.append((f"{word}-{number}", to_canonical(parts, rotation, model.size, np.ones(3), model.where)))
    return found


def embedded_chairs(count: int) -> list[tuple[str, list[Part]]]:
    """Names and parts of the first chairs that come with the package: the original of each base model."""
    (place,) = EMBEDDED.glob("furniture_chairs-*")
    originals = sorted(f for f in (place / "objects").iterdir() if f.name.endswith(".v0"))
    found = []
    for file in originals[:count]:
        chair = load_packed(file)
        vertices, faces, colours = read_mesh(chair.mesh, chair.key)
        part = Part(chair.key, vertices.astype(float), faces, np.full(3, 0.7), colours=colours[:, :3] / 255)
        found.append((chair.key, [part]))
    return found


def _chairs(folder: Path, count: int) -> str:
    chairs = embedded_chairs(count)
    for number, (_, parts) in enumerate(chairs):
        write_glb(folder / f"chair-{number}.glb", parts)
    return f"{len(chairs)} chairs that come with the package (no catalogue of Sweet Home 3D was found)"
