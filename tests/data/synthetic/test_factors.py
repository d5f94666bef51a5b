"""Factors and captions: enough of them, reproducible, distinct, and captions that say what is there."""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch

from vader.data.meshes.raycast import cast, shade
from vader.data.synthetic.factors import CONTINUOUS, DISCRETE, FINISHES, colour_name, describe, draw, finish_colour
from vader.data.synthetic.shapes import build
from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at

CATEGORIES = ("chairs", "tables")
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
HUES = {  # degrees, generous at the borders, of rendered pixels
    "red": (330, 25),
    "pink": (280, 25),
    "orange": (8, 50),
    "brown": (8, 50),
    "beige": (8, 55),
    "yellow": (40, 75),
    "green": (65, 165),
    "turquoise": (155, 200),
    "blue": (190, 260),
    "purple": (250, 295),
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_there_are_enough_factors(category):
    assert len(CONTINUOUS[category]) >= 20 and len(DISCRETE[category]) >= 5
    assert all(low < high for low, high in CONTINUOUS[category].values())
    assert all(len(set(options)) >= 2 for options in DISCRETE[category].values())
    assert not CONTINUOUS[category].keys() & DISCRETE[category].keys()


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_thousand_objects_have_distinct_factors(category):
    objects = [draw(category, 0, i) for i in range(1000)]
    ranges = CONTINUOUS[category]
    points = np.array([[(f[k] - low) / (high - low) for k, (low, high) in ranges.items()] for f in objects])
    assert points.min() >= 0 and points.max() <= 1
    squares = (points**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0) + 10 * np.eye(1000)).min()
    assert apart > 0.5  # of a cube with unit sides
    assert np.abs(points.mean(0) - 0.5).max() < 0.05 and np.abs(points.std(0) - 12**-0.5).max() < 0.02
    assert np.abs(np.corrcoef(points.T) - np.eye(len(ranges))).max() < 0.15
    for name, options in DISCRETE[category].items():
        assert set(options) <= {f[name] for f in objects}
    assert len({describe(category, f) for f in objects}) > 850


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_depend_on_seed_and_index_alone(category):
    assert draw(category, 0, 7) == draw(category, 0, 7)
    for other in (draw(category, 0, 8), draw(category, 1, 7)):
        assert all(draw(category, 0, 7)[k] != other[k] for k in CONTINUOUS[category])


def test_a_factor_is_the_documented_hash():
    share = int(hashlib.sha256(b"chairs/5/11/seat_width").hexdigest()[:16], 16) / 16**16
    low, high = CONTINUOUS["chairs"]["seat_width"]
    assert draw("chairs", 5, 11)["seat_width"] == pytest.approx(low + share * (high - low), rel=1e-15)


@pytest.mark.parametrize("finish", FINISHES)
def test_colours_are_within_their_finish_and_never_black(finish):
    for u in itertools.product((0.0, 0.3, 1.0), repeat=3):
        rgb = finish_colour(
            {f"frame_{c}": x for c, x in zip(("hue", "saturation", "value"), u, strict=True)}, "frame", finish
        )
        assert colorsys.rgb_to_hsv(*rgb)[2] == pytest.approx(np.interp(u[2], (0, 1), FINISHES[finish][2]))
        assert max(rgb) >= 0.5
    assert finish != "metal" or "grey" in colour_name(rgb)


def test_colour_names_of_well_known_colours():
    known = {
        "#ff0000": "red", "#00a000": "green", "#0000ff": "blue", "#ffe100": "yellow", "#ffffff": "white",
        "#808080": "grey", "#c0c0c0": "light grey", "#8b4513": "brown", "#f5deb3": "beige", "#ff8c00": "orange",
        "#40e0d0": "turquoise", "#6a0dad": "purple", "#ffc0cb": "pink", "#ff1493": "pink", "#a0522d": "brown",
    }  # fmt: skip
    for code, name in known.items():
        assert colour_name(tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))) == name, code


# ------------------------------------------------------------------------------------------------ captions


def claimed_count(caption: str, pattern: str) -> int:
    found = re.search(rf"(a|an|{'|'.join(NUMBERS)}) (?:\w+ )*?{pattern}", caption)
    return 0 if found is None else NUMBERS.get(found[1], 1)


@pytest.mark.parametrize("index", range(0, 120, 3))
def test_chair_captions_count_the_solids_that_are_there(index):
    f = draw("chairs", 0, index)
    caption, solids = describe("chairs", f), build("chairs", f)
    parts = Counter(p.part for p in solids)
    for word, part in (("vertical slats", "slat"), ("rungs", "rung"), ("spindles", "spindle")):
        number = re.search(rf"(\w+) {word}", caption)
        assert parts[part] == (NUMBERS[number[1]] if number else 0), caption
    assert ("cross back" in caption) == (parts["cross"] == 2)
    assert ("armrests" in caption) == (parts["armrest"] > 0)
    assert ("seat cushion" in caption) == (parts["cushion"] == 1)
    assert ("cushions on seat and back" in caption) == (parts["cushion"] == 2)
    assert ("an H stretcher" in caption) == (parts["stretcher"] == 3)
    assert ("four stretchers" in caption) == (parts["stretcher"] == 4)
    assert ("pedestal" in caption) == (parts["column"] > 0)
    assert ("disc" in caption) == (parts["base"] == 1) and ("star base" in caption) == (parts["base"] == 10)
    legs = [p for p in solids if p.part == "leg"]
    assert ("four" in caption and "legs" in caption) == (len(legs) == 4)
    (seat,) = (p for p in solids if p.part == "seat")
    assert ("round seat" in caption) == (seat.kind == "round")
    if len(legs) == 4:
        assert ("round legs" in caption) == (legs[0].kind == "round")
        assert ("straight" in caption) == (legs[0].taper == (1, 1))
        leans = np.abs(legs[0].frame[[0, 2], 1]).max() > 1e-9
        assert ("splayed" in caption) == bool(leans)


@pytest.mark.parametrize("index", range(0, 120, 3))
def test_table_captions_count_the_solids_that_are_there(index):
    f = draw("tables", 0, index)
    caption, solids = describe("tables", f), build("tables", f)
    parts = Counter(p.part for p in solids)
    number = re.search(r"(\w+) drawers?", caption)
    assert parts["drawer"] == parts["knob"] == (NUMBERS[number[1]] if number else 0)
    for word in ("apron", "shelf", "inlay"):
        assert (word in caption) == (parts[word] > 0)
    assert ("an H stretcher" in caption) == (parts["stretcher"] == 3)
    assert ("four stretchers" in caption) == (parts["stretcher"] == 4)
    assert ("pedestal" in caption) == (parts["column"] > 0)
    assert ("two panel legs" in caption) == (parts["leg"] == 2)
    (top,) = (p for p in solids if p.part == "top")
    length, _, width = np.linalg.norm(top.frame[:, :3], axis=0)
    shape = caption.split()[1]
    assert (shape in ("round", "oval")) == (top.kind == "round")
    assert (shape in ("round", "square")) == bool(np.isclose(length, width))
    assert shape in ("round", "square") or length > 1.15 * width
    assert top.frame[1, 3] == max(p.frame[1, 3] for p in solids if p.part != "inlay")


def looks_like(name: str, rgb: np.ndarray) -> bool:
    hue, saturation, _ = colorsys.rgb_to_hsv(*rgb)
    word = name.split()[-1]
    if word in ("grey", "white"):
        return saturation < 0.16
    low, high = HUES[word]
    return (low <= hue * 360 <= high) if low < high else (hue * 360 >= low or hue * 360 <= high)


@pytest.mark.parametrize("category", CATEGORIES)
def test_named_colours_are_those_of_the_rendered_parts(category):
    """The mean colour of the pixels where a part is seen is of the hue that the caption names for it."""
    eyes = torch.tensor([[2.0, 1.8, 3.0], [-2.0, 1.0, -3.3]])
    cameras = Cameras(look_at(eyes), intrinsics_from_fov(36.0, 40, 40).expand(2, 3, 3).contiguous(), 40, 40)
    origins, directions = (x.reshape(-1, 3).T.contiguous() for x in cameras.rays())
    named = 0
    for index in range(20):
        f = draw(category, 2, index)
        caption, solids = describe(category, f), build(category, f)
        hits = cast(solids, origins, directions)
        seen = hits.primitive >= 0
        found = type(hits)(hits.distance[seen], hits.primitive[seen], hits.normal[:, seen], hits.local[:, seen])
        colours = shade(solids, found, directions[:, seen]).numpy()
        parts = np.array([p.part for p in solids])[found.primitive]
        colour = rf"((?:light |pale )?(?:{'|'.join(HUES)}|grey|white))"
        claims = [(rf"{colour} (?:wooden|painted|metal) {category[:-1]}", "seat" if category == "chairs" else "leg")]
        claims += [(rf"{colour} seat cushion", "cushion"), (rf"{colour} cushions", "cushion")]
        claims += [(rf"{colour} (?:wooden|painted|metal) top", "top")]
        claims += [(rf"four {colour} (?:wooden|metal) \w+ (?:round )?legs", "leg")]
        for pattern, part in claims:
            claim = re.search(pattern, caption)
            if claim and (parts == part).sum() > 8:
                mean = colours[:, parts == part].mean(1)
                assert looks_like(claim[1], mean), f"{caption}: {part} is {mean}"
                named += 1
    assert named > 20
