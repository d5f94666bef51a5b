"""Which models of the Sweet Home 3D catalogues belong to `household`, and which of them are of one family.

The filters are Objaverse's (C.1): a model needs a texture or painted materials, and enough polygons. One that is
thinner than a pixel from the side is left out as well, since views from there show nothing of it. Models whose names
have the same stem, or whose geometry is nearly the same, are a group.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.sweethome3d import Catalogue, Model, open_catalogue
from ..formats.wavefront import DEFAULT_COLOUR, Part, read_obj
from ..prepared import DataError
from .render import to_canonical

MIN_TRIANGLES = 100
MIN_THICKNESS = 0.02  # smallest extent of the largest; at 48^2 pixels, two thirds of one
# Greys that programs give to what nobody has painted: ours for undefined materials, and Blender's old and new ones.
UNPAINTED = (DEFAULT_COLOUR, (0.64, 0.64, 0.64), (0.8, 0.8, 0.8))
REASONS = {
    "broken": "its files cannot be read",
    "unpainted": "no texture, and materials in a program's default grey only",
    "few polygons": f"fewer than {MIN_TRIANGLES} triangles",
    "thin": f"thinner than {MIN_THICKNESS:.0%} of its size, which is less than a pixel from the side",
}
# Near copies: mean distance between surfaces of which each axis is scaled to [-1, 1], from COMPARED points each.
NEAR_COPY, COMPARED = 0.07, 1024
# Words that tell members of a family apart, but not what they are.
QUALIFIERS = set(
    "small large little big double triple quadruple single high low lower upper corner round rounded square wall left "
    "right straight ahead turn and sport extension".split()
)


@dataclass(frozen=True)
class Survey:
    """Which models belong to the set, in what groups, and which were left out."""

    models: tuple[Model, ...]  # sorted by id
    groups: dict[str, str]  # id -> the name of its group
    dropped: dict[str, tuple[str, str]]  # id -> reason and detail

    def page(self, split: dict[str, list[Model]]) -> dict[str, Any]:
        """What filter.json says."""
        sides = {model.id: side for side, models in split.items() for model in models}
        return {
            "kept": len(self.models),
            "dropped": {reason: sum(r == reason for r, _ in self.dropped.values()) for reason in REASONS},
            "rules": REASONS,
            "categories": dict(sorted(Counter(model.category for model in self.models).items())),
            "models": {
                model.id: {"name": model.name, "group": self.groups[model.id], "split": sides[model.id]}
                for model in self.models
            },
            "left_out": {id: {"reason": reason, "detail": detail} for id, (reason, detail) in self.dropped.items()},
        }


# ------------------------------------------------------------------------------------------------ what belongs


def survey(catalogues: list[Catalogue]) -> Survey:
    """Read all models, and decide. Raises DataError if the file of one is gone, and where none is left."""
    models: list[Model] = []
    surfaces: dict[str, np.ndarray] = {}
    dropped: dict[str, tuple[str, str]] = {}
    for catalogue in catalogues:
        found = [catalogue.model(entry) for entry in catalogue.entries if entry.get("model", "").endswith(".obj")]
        catalogue.check_members(found)
        for model in found:
            try:
                parts = canonical_parts(model)
            except DataError as error:
                dropped[model.id] = ("broken", str(error).replace(str(catalogue.file), catalogue.file.name))
                continue
            reason = filtered(parts)
            if reason:
                dropped[model.id] = reason
                continue
            models.append(model)
            surfaces[model.id] = _per_axis(surface_points(parts, COMPARED, model.id))
    if not models:
        files = ", ".join(str(catalogue.file) for catalogue in catalogues)
        raise DataError(f"data set household: none of the models of {files} passes the filters: {_counted(dropped)}")
    models.sort(key=lambda model: model.id)
    return Survey(tuple(models), group_models(models, surfaces), dict(sorted(dropped.items())))


def _counted(dropped: dict[str, tuple[str, str]]) -> str:
    counts = Counter(reason for reason, _ in dropped.values())
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "there are none"


def canonical_parts(model: Model) -> list[Part]:
    """The model in the canonical cube. Raises DataError naming catalogue, entry and file of a broken one."""
    with open_catalogue(model.catalogue) as archive:
        parts, _ = read_obj(archive, model.member, model.where)
    return to_canonical(parts, np.reshape(model.rotation, (3, 3)), model.size, np.ones(3), model.where)


def filtered(parts: list[Part]) -> tuple[str, str] | None:
    """Why a model does not pass: a reason of REASONS and the number behind it; None if it does."""
    triangles = sum(len(part.faces) for part in parts)
    colours = {tuple(np.round(part.colour, 2).tolist()) for part in parts}
    bare = all(part.texture is None and part.colours is None for part in parts)
    if bare and colours <= set(UNPAINTED):
        return "unpainted", f"{len(parts)} material(s), colours {sorted(colours)}"
    if triangles < MIN_TRIANGLES:
        return "few polygons", f"{triangles} triangles"
    points = np.concatenate([part.vertices for part in parts])
    extents = np.ptp(points, axis=0)
    if extents.min() < MIN_THICKNESS * extents.max():
        return "thin", f"extents {np.round(extents, 4).tolist()}"
    return None


def stem(name: str) -> str:
    """What an object is called without numbers, units and words of size: "Bill 10€" -> "bill"."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"\S*\d\S*", " ", name.lower()))
    return " ".join(word for word in words if word not in QUALIFIERS) or name.lower()


def group_models(models: list[Model], surfaces: dict[str, np.ndarray]) -> dict[str, str]:
    """Id -> name of its group: models of one stem, and near copies, are together."""
    parent = {model.id: model.id for model in models}

    def root(id: str) -> str:
        while parent[id] != id:
            id = parent[id]
        return id

    first: dict[str, str] = {}
    for model in models:
        parent[root(model.id)] = root(first.setdefault(stem(model.name), model.id))
    for one, other in near_copies([model.id for model in models], surfaces):
        parent[root(one)] = root(other)
    names = {}
    for model in models:
        names.setdefault(root(model.id), stem(model.name))
    return {model.id: names[root(model.id)] for model in models}


def near_copies(ids: list[str], surfaces: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """Pairs whose surfaces, points (n, 3) scaled to [-1, 1] on each axis, are within NEAR_COPY of each other.

    Distances are the larger of both mean nearest distances. Pairs whose points are spread otherwise over 4^3 cells are
    not compared. A model and its copy turned about y by quarter turns or mirrored are not told to be alike.
    """
    from scipy.spatial import cKDTree

    spread = np.stack([_spread(surfaces[id]) for id in ids])
    trees = {id: cKDTree(surfaces[id]) for id in ids}
    pairs = []
    for i, one in enumerate(ids):
        for j in np.flatnonzero(np.abs(spread[i + 1 :] - spread[i]).sum(1) < 0.5) + i + 1:
            other = ids[j]
            there, back = (trees[a].query(surfaces[b])[0].mean() for a, b in ((one, other), (other, one)))
            if max(there, back) < NEAR_COPY:
                pairs.append((one, other))
    return pairs


def _spread(points: np.ndarray) -> np.ndarray:
    """Share of points in each of 4^3 cells, (64,)."""
    cell = np.minimum(((points + 1) * 2).astype(int), 3)
    return np.bincount(cell @ (16, 4, 1), minlength=64) / len(points)


def _per_axis(points: np.ndarray) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    return 2 * (points - low) / np.maximum(high - low, 1e-9) - 1


def surface_points(parts: list[Part], count: int, seed: str) -> np.ndarray:
    """Points (count, 3) drawn evenly from the surface, the same ones whenever it is asked with this seed."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
    corners = np.concatenate([part.vertices[part.faces] for part in parts])  # (f, 3, 3)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = corners[np.searchsorted(np.cumsum(area) / area.sum(), rng.random(count)).clip(max=len(area) - 1)]
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return chosen[:, 0] + u * (chosen[:, 1] - chosen[:, 0]) + v * (chosen[:, 2] - chosen[:, 0])
