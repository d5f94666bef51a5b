"""Held-out objects that have the shape of a training object, found by their meshes.

Splits are by model. Two models of one catalogue can still be one shape in two materials, and a held-out copy of a
training shape is no unseen object: it bounds every metric too well, and samples look new beside it. Such objects stay
in the data, whose digest trained runs name, and out of whatever is measured on held-out objects.

The rule needs no tuning. The Chamfer distance of two clouds drawn from one surface is the sampling floor of that
surface. A held-out object within `COPY` times its own floor of a training object is a copy of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data import SequenceSet
from . import shapes
from .metrics import MetricError
from .metrics.geometry import distance_matrix
from .metrics.surfaces import POINTS

COPY = 2.0  # two clouds of one surface are at 1; an offset as large as the points' own spacing adds another 2


@dataclass(frozen=True)
class ShapeCopy:
    """A held-out object that has the shape of a training object."""

    key: str
    of: str  # key of the training object
    distance: float  # Chamfer distance of the two, mean form
    floor: float  # of two clouds of the held-out object


@dataclass(frozen=True)
class HeldOut:
    """Which objects of the held-out split count: those whose shape never trained."""

    total: int
    chosen: tuple[int, ...]  # positions in the split
    copies: tuple[ShapeCopy, ...]
    looked_for: bool = True  # False where objects have no meshes to compare

    @property
    def said(self) -> str:
        """A sentence about it."""
        if not self.looked_for:
            return f"{self.total} held-out objects; copies of training shapes cannot be looked for without meshes"
        named = "; ".join(
            f"left out: {copy.key}, which has the shape of {copy.of} (Chamfer distance {1000 * copy.distance:.2f}e-3, "
            f"of two clouds of one surface {1000 * copy.floor:.2f}e-3)"
            for copy in self.copies
        )
        return f"{len(self.chosen)} of {self.total} held-out objects have a shape of their own" + (
            f"; {named}" if named else ""
        )


def held_out(data: SequenceSet, points: int = POINTS) -> HeldOut:
    """The held-out objects of a set that are no copies of training shapes.

    All variants of a base model are left out with it. Raises MetricError where no held-out object is left, and what
    `shapes.real_shapes` raises for broken meshes.
    """
    train, test = data.split("train"), data.split("test")
    if not len(test) or any(sequence.mesh is None for side in (train, test) for sequence in side):
        return HeldOut(len(test), tuple(range(len(test))), (), looked_for=False)
    clouds = shapes.real_shapes(data, "test", points).clouds
    again = shapes.real_shapes(data, "test", points, seed=1).clouds
    distances = distance_matrix(clouds, shapes.real_shapes(data, "train", points).clouds)
    floors = np.array([distance_matrix(one[None], other[None])[0, 0] for one, other in zip(clouds, again, strict=True)])
    copies = tuple(
        ShapeCopy(test[i].key, train[int(row.argmin())].key, float(row.min()), float(floors[i]))
        for i, row in enumerate(distances)
        if row.min() < COPY * floors[i]
    )
    copied = {copy.key for copy in copies}
    families = {family(sequence) for sequence in test if sequence.key in copied}
    chosen = tuple(i for i, sequence in enumerate(test) if family(sequence) not in families)
    if not chosen:
        raise MetricError(
            f"data set {data.name}: all {len(test)} held-out objects have the shape of a training object, expected "
            "some that have not"
        )
    return HeldOut(len(test), chosen, copies)


def family(sequence) -> str:
    """The base model of a variant; an object without one is its own."""
    return str((sequence.attributes or {}).get("base_model", sequence.key))
