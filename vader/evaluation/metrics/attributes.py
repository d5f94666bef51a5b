"""Attributes of chairs, read off volumes by rule and compared with their captions.

No network judges another one here. A chair's seat is its widest slice, the legs are below it, and the back and the
armrests above it. Each attribute follows from a few measurements. These are of silhouettes and visible colours, because
learned volumes are hollow, blurred, and of any colour inside. The rules are made for the procedural chairs at 32^3
voxels and above. At that size a tapered leg looks like a straight one and a slat like a spindle, so these are one value
each. Colours that differ in lightness only are one family.

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

from ...data.synthetic.factors import colour_name
from . import MetricError

Attributes = dict[str, str | None]  # attribute -> value, None where there is nothing to read

COLOURS = {  # colour families: what the names of `vader.data.synthetic.factors.colour_name` are called here
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
CLOSED = 0.81  # a back is closed where three quarters of it stop more than this share of the light
RUNGS = 0.8  # how much of the variation from column to column that from row to row is at least, where there are rungs
GREY = 0.14  # saturation below which a colour is grey: 0.12 by name, and a little for a cast
ATTRIBUTES = ("colour", "legs", "back", "armrests")


def said(caption: str) -> Attributes:
    """A chair's attributes that a caption of `factors.describe` names. Raises MetricError where it leaves one out."""
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
    above = slice(seat_high + 2, top + 1)
    return {
        "colour": _colour(values[1:4, :, above], stopped[:, above]),
        "legs": _legs(stopped, floor, seat_low, middle),
        "back": _back(_silhouette(stopped[:, above])),
        "armrests": _armrests(stopped[:, above] > 0.3, middle),
    }


def _silhouette(stopped: np.ndarray, axis: int = 0) -> np.ndarray:
    """How much of the light that falls along an axis is stopped, by however little in each voxel."""
    return 1 - (1 - stopped).prod(axis)


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


def _legs(stopped: np.ndarray, floor: int, seat_low: int, middle: np.ndarray) -> str | None:
    """From what stands away from the middle, in front and behind, what lies on the floor, and where the feet are."""
    height = seat_low - floor
    if height < 4:
        return None
    n = stopped.shape[0]
    size = n / 32  # the rules' distances are in voxels of a volume of 32^3
    dz, dx = (np.arange(n) - centre for centre in middle)
    away = np.hypot(dz[:, None], dx) >= 3.2 * size
    standing = stopped[:, floor + round(0.25 * height) : floor + int(0.85 * height)].transpose(1, 0, 2)

    def stands(where: np.ndarray) -> bool:
        """Whether the median row has half a leg's section and more there: a stretcher fills one row only."""
        return float(np.median((standing * where).sum((1, 2)))) > 1.3 * size**2

    # a learned column may be hollow or missing under its seat, so a pedestal is known by its lack of legs
    if not stands(away & (dz > 0)[:, None]):
        return "pedestal"
    if not stands(away & (dz < -1.5 * size)[:, None]):
        return "cantilever"
    runner = _silhouette(stopped[:, floor : floor + max(1, round(size))].max(1), 1)  # of the lowest row, from the side
    if (runner[abs(dz) < 2.5 * size] > 0.3).mean() > 0.6:  # from the front to the back
        return "sled"
    corners = (abs(dz)[:, None] > 2 * size) & (abs(dx) > 2 * size)  # without what joins the legs

    def spread(rows: slice) -> float:
        """Mean distance from the middle, |dx| + |dz|, of what stands in the corners."""
        plan = stopped[:, rows].sum(1) * corners
        return float((plan * (abs(dz)[:, None] + abs(dx))).sum() / max(plan.sum(), 1e-6))

    two = max(2, round(2 * size))
    feet, tops = spread(slice(floor, floor + two)), spread(slice(seat_low - 1 - two, seat_low - 1))
    return "splayed" if feet - tops > 0.65 * size else "upright"


def _back(silhouette: np.ndarray) -> str | None:
    """From the silhouette (rows, x) above the seat: how wide a closed back is at its ends, how an open one varies."""
    count = len(silhouette)
    wide = silhouette > 0.5
    columns = np.flatnonzero(wide.mean(0) > 0.4) if count >= 4 else ()  # more than an armrest's end
    if len(columns) < 3:
        return None
    left, right = columns[0], columns[-1]
    post = 2 if right - left > 4 else 1
    core = silhouette[round(0.25 * count) : round(0.8 * count), left + post : right + 1 - post]
    if np.quantile(core, 0.25) > CLOSED:
        width = wide[:, left : right + 1].sum(1)
        widest = np.quantile(width, 0.8)
        if width[-max(1, round(0.1 * count))] > 0.65 * widest:
            return "solid"
        return "oval" if width[: max(2, count // 4)].mean() < 0.93 * widest else "rounded"
    rows, cols = core.mean(1, keepdims=True), core.mean(0, keepdims=True)
    if (core - rows - cols + core.mean()).var() > 0.4 * core.var():  # not a sum of rows and columns
        return "cross"
    framed = silhouette[round(0.2 * count) : round(0.88 * count), left + 1 : right]
    steps = [np.abs(np.diff(framed.mean(axis))).mean() for axis in (1, 0)]  # from row to row, from column to column
    return "rungs" if steps[0] > RUNGS * steps[1] else "bars"


def _armrests(above: np.ndarray, middle: np.ndarray) -> str:
    """Whether there is something above the front half of the seat, on both sides."""
    front = above[math.ceil(middle[0]) + 1 :].any(1)  # (z, x)
    columns = np.arange(front.shape[1])
    return "yes" if all(front[:, side].any() for side in (columns < middle[1] - 2, columns > middle[1] + 2)) else "no"


def _colour(colours: np.ndarray, stopped: np.ndarray) -> str | None:
    """Family of the median colour of the back seen from the rear, where no cushion is: what light shows of it."""
    reaching = np.cumprod(np.concatenate([np.ones_like(stopped[:1]), 1 - stopped]), 0)  # light left before each voxel
    opaque = reaching[-1] < 0.2
    if not opaque.any():
        return None
    seen = (reaching[:-1] * stopped * colours).sum(1) / np.maximum(1 - reaching[-1], 1e-6)
    albedo = np.median(seen[:, opaque], axis=1)
    brightest = albedo.max()
    if brightest < 0.02:
        return None
    if brightest - albedo.min() < GREY * brightest:
        return "grey"
    return COLOURS[colour_name(tuple(0.8 * albedo / brightest)).removeprefix("pale ")]


# ------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True, eq=False)
class AttributeScores:
    """Attributes read off objects, beside those that their captions name, in order."""

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
