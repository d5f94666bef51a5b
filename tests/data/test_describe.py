"""Colours, shapes and captions, on pictures and surfaces whose description is known."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from vader.data.describe import COLOURS, caption, colour_shares, colours_of, count_legs, shape_words


def patches(*parts: tuple[float, float, float], shares=None) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture of 100 columns in these colours, on 20 columns of background."""
    shares = shares or [1 / len(parts)] * len(parts)
    columns = [colour for colour, share in zip(parts, shares, strict=True) for _ in range(round(100 * share))]
    image = torch.tensor(columns + [(0.0, 0.0, 0.0)] * 20).expand(10, -1, 3)
    mask = torch.tensor([1.0] * len(columns) + [0.0] * 20).expand(10, -1)
    return image[None], mask[None]


PAINTS = {
    "black": (0.10, 0.10, 0.11), "grey": (0.4, 0.4, 0.41), "white": (0.9, 0.9, 0.88), "red": (0.8, 0.1, 0.12),
    "orange": (0.95, 0.5, 0.1), "yellow": (0.95, 0.85, 0.1), "green": (0.2, 0.6, 0.2), "blue": (0.15, 0.3, 0.8),
    "purple": (0.45, 0.15, 0.6), "pink": (0.95, 0.6, 0.7), "brown": (0.42, 0.27, 0.16), "beige": (0.85, 0.76, 0.6),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOURS)
def test_plain_paint_has_its_name_and_nothing_else(name):
    shares = colour_shares(*patches(PAINTS[name]))
    assert shares[COLOURS.index(name)] == 1 and colours_of(shares) == [name]


@pytest.mark.parametrize("name", ["red", "green", "blue", "yellow", "purple"])
def test_shade_down_to_half_leaves_a_strong_colour_its_name(name):
    for light in (1.0, 0.75, 0.5):
        dark = tuple(light * value for value in PAINTS[name])
        assert colours_of(colour_shares(*patches(dark))) == [name]


def test_hues_of_full_colours_pass_through_the_names_in_order():
    seen = []
    for hue in range(0, 360, 2):
        image, mask = patches(colorsys.hsv_to_rgb(hue / 360, 0.9, 0.9))
        [name] = colours_of(colour_shares(image, mask))
        seen += [name] if seen[-1:] != [name] else []
    assert seen == ["red", "orange", "yellow", "green", "blue", "purple", "pink", "red"]


def test_a_second_colour_is_named_from_a_quarter_on_and_background_never_counts():
    red, blue = PAINTS["red"], PAINTS["blue"]
    assert colours_of(colour_shares(*patches(red, blue, shares=(0.7, 0.3)))) == ["red", "blue"]
    assert colours_of(colour_shares(*patches(red, blue, shares=(0.2, 0.8)))) == ["blue"]
    assert colours_of(colour_shares(*patches(PAINTS["white"], PAINTS["grey"]))) in (["white"], ["grey"])  # its shade
    image, mask = patches(red)
    assert colours_of(colour_shares(image, 0 * mask)) == []
    half = mask * 0.5  # an edge
    assert colour_shares(image, half).sum() == 0


# ------------------------------------------------------------------------------------------------ shape


def box(low, high, count=1500, seed=0) -> np.ndarray:
    """Points on a box's surface, evenly."""
    rng, (low, high) = np.random.default_rng(seed), np.array([low, high], float)
    size = high - low
    areas = np.repeat([size[1] * size[2], size[0] * size[2], size[0] * size[1]], 2)
    face = rng.choice(6, count, p=areas / areas.sum())
    points = low + rng.random((count, 3)) * size
    points[np.arange(count), face // 2] = np.where(face % 2, high[face // 2], low[face // 2])
    return points


def cylinder(radius, low, high, count=3000) -> np.ndarray:
    rng = np.random.default_rng(0)
    angle = rng.random(count) * 2 * np.pi
    return np.stack([radius * np.cos(angle), rng.uniform(low, high, count), radius * np.sin(angle)], 1)


def table(legs: int) -> np.ndarray:
    angles = 2 * np.pi * (np.arange(legs) + 0.5) / legs
    top = box((-0.9, 0.3, -0.9), (0.9, 0.4, 0.9), 3000)
    feet = [box((x - 0.06, -0.4, z - 0.06), (x + 0.06, 0.3, z + 0.06), 500)
            for x, z in 0.75 * np.stack([np.cos(angles), np.sin(angles)], 1)]  # fmt: skip
    return np.concatenate([top, *feet])


def test_proportions_decide_the_adjectives():
    assert shape_words(box((-0.3, -0.9, -0.3), (0.3, 0.9, 0.3)))[0] == ["tall"]
    assert shape_words(box((-0.9, -0.2, -0.5), (0.9, 0.2, 0.5)))[0] == ["wide"]
    assert shape_words(box((-0.9, -0.2, -0.2), (0.9, 0.2, 0.2)))[0] == ["long"]
    assert shape_words(box((-0.9, -0.9, -0.04), (0.9, 0.9, 0.04)))[0] == ["flat"]
    assert shape_words(box((-0.9, -0.04, -0.9), (0.9, 0.04, 0.9)))[0] == ["flat"]
    assert shape_words(box((-0.6, -0.6, -0.6), (0.6, 0.6, 0.6))) == ([], None)


def test_round_is_what_is_round_from_above_or_from_the_front():
    assert shape_words(cylinder(0.7, -0.5, 0.5))[0] == ["round"]
    assert shape_words(cylinder(0.3, -0.9, 0.9))[0] == ["tall", "round"]
    clock = cylinder(0.9, -0.1, 0.1)[:, [0, 2, 1]]
    assert "round" in shape_words(clock)[0]
    assert "round" not in shape_words(cylinder(0.7, -0.5, 0.5) * (1, 1, 0.5))[0]


@pytest.mark.parametrize("legs", [3, 4, 5])
def test_legs_are_counted_where_the_shape_touches_the_ground(legs):
    points = table(legs)
    assert count_legs(points) == legs
    assert shape_words(points)[1] == {3: "on three legs", 4: "on four legs", 5: "on legs"}[legs]


def test_what_stands_on_all_of_itself_on_two_feet_or_on_its_middle_has_no_legs():
    assert count_legs(box((-0.6, -0.6, -0.6), (0.6, 0.6, 0.6))) == 0
    assert count_legs(table(2)) == 0
    assert count_legs(cylinder(0.7, -0.5, 0.5)) == 0
    panels = [box((x - 0.03, -0.4, -0.8), (x + 0.03, 0.3, 0.8)) for x in (-0.8, 0.8)]  # of a bench, one on either side
    assert count_legs(np.concatenate([table(4)[:3000], *panels])) == 0
    close = np.concatenate([table(4)[:3000], table(4)[3000:] * (0.2, 1, 0.2)])
    assert count_legs(close) == 0


# ------------------------------------------------------------------------------------------------- text


def test_captions_say_name_colours_shape_and_category_once():
    assert caption("Cuckoo clock", "Miscellaneous", ["brown", "white"], ["tall"], None) == (
        "a tall brown and white cuckoo clock, miscellaneous"
    )
    assert caption("Round table", "Kitchen", ["white"], ["round"], "on four legs") == (
        "a white round table on four legs, kitchen"
    )
    assert caption("Black  stool", "Kitchen", ["grey"], [], None) == "a black stool, kitchen"
    assert caption("Armchair", "Living room", [], [], None) == "an armchair, living room"
    assert caption("Lamp", "Lights", ["orange"], [], None) == "an orange lamp, lights"
