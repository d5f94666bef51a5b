"""Attributes of chairs, read off volumes by rule and compared with what captions say.

No network judges another one here: a chair's seat is its widest slice, what is below it are the legs, what is above
it the back and the armrests, and each attribute follows from a few measurements in voxels. The rules are made for the
procedural chairs at 32^3 voxels and above; at that size a tapered leg cannot be told from a straight one or a slat
from a spindle, so these are one value each, and colours that differ in lightness only are one family.

Volumes are (4, S, S, S) = density, r, g, b over the cube, axes (z, y, x), y up, front towards +z.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.factors import colour_name
from . import MetricError

Attributes = dict[str, str | None]  # attribute -> value, None where there is nothing to read

COLOURS = {  # colour families: what the names of `vader.data.factors.colour_name` are called here
    "white": "grey", "light grey": "grey", "grey": "grey",
    "beige": "brown", "brown": "brown", "light brown": "brown", "orange": "brown",
    "red": "red", "pink": "pink", "yellow": "yellow", "green": "green",
    "turquoise": "turquoise", "blue": "blue", "purple": "purple",
}  # fmt: skip
LEGS = {
    "straight": "upright", "tapered": "upright", "splayed": "splayed",
    "pedestal": "pedestal", "sled": "sled", "cantilever": "cantilever",
}  # fmt: skip
BACKS = {
    "solid back": "solid", "rounded back": "rounded", "oval back": "oval", "cross back": "cross",
    "ladder back": "rungs", "slats": "bars", "spindles": "bars",
}  # fmt: skip
OPEN = 0.9  # a back is open where it stops less light than this share of what its bars stop
ATTRIBUTES = ("colour", "legs", "back", "armrests")


def said(caption: str) -> Attributes:
    """What a caption of `vader.data.factors.describe` says of a chair. Raises MetricError where it leaves one out."""
    colour = re.match(r"an? (?:pale )?(.+?) (?:wooden|painted|metal) chair", caption)
    legs = [value for word, value in LEGS.items() if re.search(rf"\b{word}\b", caption)]
    back = [value for word, value in BACKS.items() if re.search(rf"\b{word}\b", caption)]
    for name, found in (("colour", colour and colour[1] in COLOURS), ("legs", legs), ("back", back)):
        if not found:
            raise MetricError(f"caption {caption!r} says nothing of a chair's {name}")
    return {
        "colour": COLOURS[colour[1]],
        "legs": legs[0],
        "back": back[0],
        "armrests": "yes" if re.search(r"\barmrests\b", caption) else "no",
    }


def read(volume: Tensor) -> Attributes:
    """The attributes of the chair in a volume (4, S, S, S); None for what has nothing to be read from.

    Raises MetricError for another shape, NaN and infinity.
    """
    if volume.ndim != 4 or volume.shape[0] < 4 or len(set(volume.shape[1:])) != 1 or volume.shape[1] < 16:
        raise MetricError(f"volume has shape {tuple(volume.shape)}, expected (4, S, S, S) with S at least 16")
    if not torch.isfinite(volume).all():
        raise MetricError("volume holds NaN or infinity, expected finite values")
    values = volume.detach().cpu().double().numpy()
    # how much of the light a voxel stops
    stopped = 1 - np.exp(-np.maximum(values[0], 0) * 2 / (values.shape[1] - 1))
    solid = stopped > 0.5
    rows = np.flatnonzero(solid.any((0, 2)))
    if len(rows) < values.shape[1] // 4:
        return dict.fromkeys(ATTRIBUTES)
    floor, top = rows[0], rows[-1]
    seat_low, seat_high = _seat(solid, floor, top)
    seat = np.argwhere(solid[:, seat_low : seat_high + 1].any(1))  # (z, x)
    middle = (seat.min(0) + seat.max(0)) / 2
    above = solid.copy()
    above[:, : seat_high + 2] = False
    return {
        "colour": _colour(values[1:4], solid, above, seat_low),
        "legs": _legs(solid, floor, seat_low, middle),
        "back": _back(stopped, above, seat_high, top),
        "armrests": _armrests(above, middle),
    }


def _seat(solid: np.ndarray, floor: int, top: int) -> tuple[int, int]:
    """Lowest and highest row of the seat with its cushion: around the widest slice of the chair's middle."""
    area = solid.sum((0, 2))
    low, high = floor + round(0.25 * (top - floor)), floor + round(0.7 * (top - floor))
    widest = low + int(area[low : high + 1].argmax())
    wide = area >= 0.5 * area[widest]
    first = last = widest
    while first > low and wide[first - 1]:
        first -= 1
    while last < high and wide[last + 1]:
        last += 1
    return first, last


def _legs(solid: np.ndarray, floor: int, seat_low: int, middle: np.ndarray) -> str | None:
    if seat_low - floor < 4:
        return None
    n = solid.shape[0]
    size = n / 32  # the rules' distances are in voxels of a volume of 32^3
    below = solid[:, floor:seat_low]  # (z, rows, x)
    z, row, x = np.nonzero(below)
    height = below.shape[1]
    dz, dx = z - middle[0], x - middle[1]
    standing = (row >= 0.25 * height) & (row < 0.85 * height)

    def over_rows(of: np.ndarray) -> float:
        """Median over the rows in the legs' middle of the share of a row's voxels that `of` holds for."""
        shares = [of[row == r].mean() for r in np.unique(row[standing])]
        return float(np.median(shares)) if shares else 0.0

    if over_rows(np.hypot(dz, dx) < 3.2 * size) > 0.5:
        return "pedestal"
    if over_rows(dz < -1.5 * size) < 0.15:
        return "cantilever"
    lowest = below[:, : max(2, round(2 * size))].any(1)  # (z, x)
    inner = abs(np.arange(n) - middle[0]) < 2.5 * size
    if lowest[inner].any(1).mean() > 0.6:  # a runner from the front to the back
        return "sled"

    def spread(rows: slice) -> float:
        points = np.argwhere(below[:, rows].any(1))
        return float((points.max(0) - points.min(0)).sum()) if len(points) else 0.0

    feet, tops = spread(slice(0, 2)), spread(slice(height - 2, height))
    return "splayed" if feet - tops > 1.5 * size else "upright"


def _back(stopped: np.ndarray, above: np.ndarray, seat_high: int, top: int) -> str | None:
    """From the back's silhouette: how wide it is at its ends, and whether its openings lie in rows or columns."""
    size = stopped.shape[0] / 32
    rows = [y for y in range(seat_high + 2, top + 1) if above[:, y].any()]
    if len(rows) < 4:
        return None
    picture = []
    for y in rows:
        rear = max(1, np.flatnonzero(above[:, y].any(1))[0])
        picture.append(1 - (1 - stopped[rear - 1 : rear + max(2, round(2 * size)), y]).prod(0))
    silhouette = np.stack(picture)  # (rows, x), from the seat upwards
    wide = silhouette > 0.5
    width = wide.sum(1)
    columns = np.flatnonzero(wide.mean(0) > 0.3)  # more than an armrest's end
    if not len(columns):
        return None
    left, right = columns[0], columns[-1]
    core = silhouette[round(0.3 * len(rows)) : max(round(0.72 * len(rows)), round(0.3 * len(rows)) + 2)]
    edge = max(1, round(2 * size))
    core = core[:, left + edge : right + 1 - edge]
    if core.shape[1] < 2:
        return None
    if (core < OPEN * np.quantile(core, 0.9)).mean() < 0.1:
        widest = np.quantile(width, 0.8)
        if width[-max(1, round(0.1 * len(rows)))] > 0.85 * widest:
            return "solid"
        return "oval" if width[: max(2, len(rows) // 4)].mean() < 0.8 * widest else "rounded"
    across, along = core.mean(1), core.mean(0)  # of each row, of each column
    total = core.var()
    by_rows, by_columns = across.var() / total, along.var() / total
    if max(by_rows, by_columns) < 0.35:
        return "cross"
    return "rungs" if by_rows > by_columns else "bars"


def _armrests(above: np.ndarray, middle: np.ndarray) -> str:
    """Whether there is something above the front half of the seat, on both sides."""
    front = above[math.ceil(middle[0]) + 1 :].any(1)  # (z, x)
    columns = np.arange(front.shape[1])
    return "yes" if all(front[:, side].any() for side in (columns < middle[1] - 2, columns > middle[1] + 2)) else "no"


def _colour(colours: np.ndarray, solid: np.ndarray, above: np.ndarray, seat_low: int) -> str | None:
    """Family of the median colour of the frame: the rear of the back, which has no cushion, and the seat from below."""
    z, y, x = np.nonzero(above)
    order = np.lexsort((z, x, y))
    first = np.unique(np.stack([y, x])[:, order], axis=1, return_index=True)[1] if len(z) else order
    rear = [values[order][first] for values in (z, y, x)]
    under = np.nonzero(solid[:, seat_low])
    samples = np.concatenate([colours[:, *rear], colours[:, under[0], seat_low, under[1]]], axis=1)
    if not samples.size:
        return None
    albedo = np.median(samples, axis=1)
    brightest = albedo.max()
    if brightest < 0.02:
        return None
    return COLOURS[colour_name(tuple(0.8 * albedo / brightest)).removeprefix("pale ")]


# ------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class AttributeScores:
    """Of objects and the captions they should follow: what was read and said, in order."""

    readings: list[Attributes]
    captions: list[Attributes]

    def correct(self, attribute: str) -> Tensor:
        """(n,) bool: whether the object shows what its caption says."""
        pairs = zip(self.readings, self.captions, strict=True)
        return torch.tensor([found[attribute] == wanted[attribute] for found, wanted in pairs])

    def accuracy(self, attribute: str | None = None) -> float:
        """Share of correct readings of an attribute, or the mean over all of them."""
        if attribute is None:
            return sum(map(self.accuracy, ATTRIBUTES)) / len(ATTRIBUTES)
        return self.correct(attribute).double().mean().item()

    def chance(self, attribute: str | None = None) -> float:
        """The expected accuracy of the same objects against captions that were dealt to them at random: what objects
        score that look as these do and do not listen."""
        if attribute is None:
            return sum(map(self.chance, ATTRIBUTES)) / len(ATTRIBUTES)
        found = Counter(reading[attribute] for reading in self.readings)
        wanted = Counter(caption[attribute] for caption in self.captions)
        return sum(count * wanted[value] for value, count in found.items()) / len(self.readings) ** 2


def attribute_scores(volumes: Sequence[Tensor] | Tensor, captions: Sequence[str]) -> AttributeScores:
    """Scores of volumes (n, 4, S, S, S) against the n captions they were generated from. Raises MetricError."""
    if len(volumes) != len(captions) or len(captions) == 0:
        raise MetricError(f"{len(volumes)} volumes and {len(captions)} captions, expected as many, and at least one")
    return AttributeScores([read(volume) for volume in volumes], [said(caption) for caption in captions])
