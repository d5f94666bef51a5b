"""What is said of an object: its colours from its pictures, its shape from its mesh, by rules that are written down.

The paper asks MiniGPT-4 to "describe this <hint> in one sentence, its shape and color" (C.2). Here the hint is the
model's name and category, and the description is measured, so that nothing is made up:

    a tall brown and white cuckoo clock on legs, miscellaneous

Colours are those of pixels as rendered, which light makes darker or paler than the paint. Words of shape are about
proportions in the canonical cube (y up), so that "tall" means taller than wide. The same rules read samples.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

COLOURS = (
    "black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige",
)  # fmt: skip
COVERED = 0.9  # pixels of edges are mixed with the background, and not counted
GREY_SATURATION = 0.16  # below, a pixel is black, grey or white
SECOND_SHARE = 0.25  # of the pixels, from which a second colour is named
# Light and shade take paint from one to the other, so that of such a pair the larger is named.
NEIGHBOURS = (
    {"black", "grey"}, {"grey", "white"}, {"brown", "beige"}, {"brown", "orange"}, {"brown", "red"},
    {"white", "beige"}, {"brown", "black"},
)  # fmt: skip

TALL, WIDE, LONG, FLAT = 1.8, 1.8, 2.2, 0.14  # ratios of extents
ROUND = 0.955  # isoperimetric quotient of a silhouette's hull: circle 1, octagon 0.948, square 0.785
LEG_CELLS, LEG_HEIGHT, LEG_SHARE, MOST_LEGS = 32, 0.06, 0.3, 8
NUMBERS = {3: "three", 4: "four"}


# ---------------------------------------------------------------------------------------------- colours


def colour_shares(images: Tensor, masks: Tensor) -> Tensor:
    """Share of the foreground's pixels that have each of COLOURS, (12,); zeros where there is no foreground.

    images: (v, h, w, 3) in [0, 1], on black; masks: (v, h, w) in [0, 1].
    """
    pixels = images[masks >= COVERED].double().clamp(0, 1).cpu().numpy()
    names = _names(pixels)
    counts = torch.from_numpy(np.bincount(names, minlength=len(COLOURS)).astype(np.float32))
    return counts / max(len(pixels), 1)


def colours_of(shares: Tensor) -> list[str]:
    """The one or two colours that are named, from shares (12,); none where all shares are zero."""
    first, second = (int(i) for i in shares.argsort(descending=True, stable=True)[:2])
    if shares[first] <= 0:
        return []
    pair = {COLOURS[first], COLOURS[second]}
    return [COLOURS[first]] + [COLOURS[second]] * bool(shares[second] >= SECOND_SHARE and pair not in NEIGHBOURS)


def _names(pixels: np.ndarray) -> np.ndarray:
    """Indices into COLOURS (n,) of colours (n, 3), by thresholds on hue (degrees), saturation and value."""
    value, least = pixels.max(-1), pixels.min(-1)
    chroma = value - least
    saturation = chroma / np.maximum(value, 1e-9)
    red, green, blue = (pixels[:, i] for i in range(3))
    safe = np.maximum(chroma, 1e-9)
    sixth = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = 60 * sixth % 360
    pale, dull = (value >= 0.55), (value < 0.62) | (saturation < 0.55)
    reddish, brownish, yellowish = (hue < 14) | (hue >= 340), (hue >= 14) & (hue < 48), (hue >= 48) & (hue < 70)
    rules = [  # the first that holds
        ((saturation < GREY_SATURATION) & (value < 0.24), "black"),
        ((saturation < GREY_SATURATION) & (value < 0.55), "grey"),
        (saturation < GREY_SATURATION, "white"),
        (value < 0.14, "black"),
        (reddish & (saturation < 0.45) & pale, "pink"),
        (reddish & (saturation < 0.65) & (value < 0.45), "brown"),
        (reddish, "red"),
        (brownish & (saturation < 0.42) & pale, "beige"),
        (brownish & dull, "brown"),
        (brownish & (hue < 40), "orange"),
        (brownish, "yellow"),
        (yellowish & (saturation < 0.3) & pale, "beige"),
        (yellowish & (value >= 0.45), "yellow"),
        (hue < 175, "green"),
        (hue < 260, "blue"),
        ((hue < 300) | (value < 0.5), "purple"),
    ]
    chosen = np.select([rule for rule, _ in rules], [COLOURS.index(name) for _, name in rules], COLOURS.index("pink"))
    return chosen.astype(np.int64)


# ------------------------------------------------------------------------------------------------ shape


def shape_words(points: np.ndarray) -> tuple[list[str], str | None]:
    """Adjectives of a shape, and what it stands on: (["tall", "round"], "on three legs").

    points: (n, 3), drawn evenly from the surface in canonical coordinates, some thousands of them.
    """
    width, height, depth = extents = np.ptp(points, axis=0)
    thin, middle, _ = np.sort(extents)
    words = []
    if thin < FLAT * middle:
        words.append("flat")
    elif height > TALL * max(width, depth):
        words.append("tall")
    elif max(width, depth) > LONG * max(min(width, depth), height):
        words.append("long")
    elif width > WIDE * height:
        words.append("wide")
    if any(_roundness(np.delete(points, axis, 1)) >= ROUND for axis in (1, 2)):
        words.append("round")
    legs = count_legs(points)
    return words, f"on {NUMBERS.get(legs, '')} legs".replace("  ", " ") if legs else None


def _roundness(silhouette: np.ndarray) -> float:
    """Isoperimetric quotient 4 pi A / P^2 of the hull of points (n, 2): 1 for a circle; 0 where all are in line."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(silhouette)
    except QhullError:
        return 0.0
    return 4 * np.pi * hull.volume / hull.area**2  # in two dimensions: area, perimeter


def count_legs(points: np.ndarray) -> int:
    """Separate places where a shape touches the ground; 0 if they are fewer than three, many, or cover much of it.

    Points (n, 3) within LEG_HEIGHT of the ground are put on a grid over the footprint, whose connected cells are a
    leg. The places must reach across half of the footprint.
    """
    from scipy.ndimage import label

    low, extent = points.min(0), np.ptp(points, axis=0)
    span = max(extent[0], extent[2])
    if span <= 0 or extent[1] < 0.15 * span:
        return 0
    ground = points[points[:, 1] < low[1] + LEG_HEIGHT * extent[1]][:, [0, 2]]
    cells = np.zeros((LEG_CELLS, LEG_CELLS), bool)
    footprint = np.zeros_like(cells)
    for grid, chosen in ((cells, ground), (footprint, points[:, [0, 2]])):
        index = np.minimum(((chosen - low[[0, 2]]) / span * LEG_CELLS).astype(int), LEG_CELLS - 1)
        grid[index[:, 0], index[:, 1]] = True
    legs, count = label(cells, np.ones((3, 3)))
    if not 3 <= count <= MOST_LEGS or cells.sum() > LEG_SHARE * footprint.sum():
        return 0
    reach = [np.ptp(np.nonzero(grid.any(axis))[0]) for axis in (0, 1) for grid in (cells, footprint)]
    return count if reach[0] >= reach[1] / 2 and reach[2] >= reach[3] / 2 else 0


# ------------------------------------------------------------------------------------------------- text


def caption(name: str, category: str, colours: list[str], shape: list[str], stand: str | None) -> str:
    """One sentence: "a tall brown and white cuckoo clock on legs, miscellaneous"; the name's words are not repeated."""
    name = " ".join(name.lower().split())
    said = set(re.findall(r"\w+", name))
    words = [word for word in shape if word not in said]
    if not said & set(COLOURS):
        words.append(" and ".join(colours))
    sentence = " ".join([*filter(None, words), name, *([stand] if stand else [])])
    return f"{'an' if sentence[0] in 'aeiou' else 'a'} {sentence}, {category.lower()}"
