"""Parametric chairs and tables: factors -> solids in the canonical cube (y up, front towards +z).

Everything is made in metres, standing on the floor y = 0, from slabs, beams and rods; `build` then
normalises the whole. The factors are those of `vader.data.synthetic.factors`.
"""

from __future__ import annotations

import math

import numpy as np

from ..meshes.raycast import Material, Primitive, fit_to_cube
from .factors import FOUR_LEGS, Factors, finish_colour, materials


def build(category: str, factors: Factors) -> list[Primitive]:
    """The object's solids, normalised to the canonical cube."""
    return fit_to_cube({"chairs": _chair, "tables": _table}[category](factors).primitives)


class _Solids:
    """Collects primitives, in metres."""

    def __init__(self) -> None:
        self.primitives: list[Primitive] = []

    def add(self, kind, columns, centre, material, part, taper=(1.0, 1.0)) -> None:
        frame = np.column_stack([*columns, centre]).astype(np.float64)
        self.primitives.append(Primitive(kind, frame, material, part, taper))

    def beam(self, a, b, half, material, part, taper=1.0, round=False) -> None:
        """From a to b, with ends square to the world's axes: half are the half-widths along the two axes across."""
        a, b = np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)
        first, second = (k for k in range(3) if k != np.abs(b - a).argmax())
        half = (half, half) if np.isscalar(half) else half
        x, z = half[0] * np.eye(3)[first], half[1] * np.eye(3)[second]
        self.add("round" if round else "box", (x, (b - a) / 2, z), (a + b) / 2, material, part, (taper, taper))

    def rod(self, a, b, half, material, part, taper=1.0) -> None:
        """From a to b, with a rectangular section square to its own direction; half = (across, upwards)."""
        a, b = np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)
        across = np.cross(b - a, [0.0, 1.0, 0.0])
        across /= np.linalg.norm(across)
        upwards = np.cross(across, b - a) / np.linalg.norm(b - a)
        columns = (half[0] * across, (b - a) / 2, half[1] * upwards)
        self.add("box", columns, (a + b) / 2, material, part, (taper, taper))

    def slab(self, centre, size, material, part, round=False, taper=1.0) -> None:
        """Upright box, or elliptic disc, of the size (x, y, z); taper narrows its top."""
        half = np.diag(size) / 2
        self.add("round" if round else "box", half, centre, material, part, (taper, taper))

    def ball(self, centre, radii, material, part) -> None:
        self.add("ball", np.diag(radii), centre, material, part)


def _stand(s: _Solids, f: Factors, feet, tops, material, height: float) -> None:
    """Four legs in the order (-x, -z), (x, -z), (x, z), (-x, z), with their stretchers."""
    half = f["leg_thickness"] / 2
    round = f["leg_section"] == "round"
    taper = 1.0 if f["legs"] == "straight" else f["leg_taper"]
    for foot, top in zip(feet, tops, strict=True):
        s.beam(top, foot, half, material, "leg", taper, round)

    def at(i: int, share: float) -> np.ndarray:
        return np.array(feet[i]) + share * (np.array(tops[i]) - np.array(feet[i]))

    thin, share = f["stretcher_thickness"] / 2, f["stretcher_height"]
    if f["stretchers"] == "H":
        left, right = (at(0, share), at(3, share)), (at(1, share), at(2, share))
        for a, b in (left, right, ((left[0] + left[1]) / 2, (right[0] + right[1]) / 2)):
            s.beam(a, b, thin, material, "stretcher", round=round)
    elif f["stretchers"] == "box":
        for i in range(4):
            s.beam(at(i, share), at((i + 1) % 4, share), thin, material, "stretcher", round=round)


def _corners(
    x_back: float, x_front: float, z_back: float, z_front: float, y: float
) -> list[tuple[float, float, float]]:
    return [(-x_back, y, z_back), (x_back, y, z_back), (x_front, y, z_front), (-x_front, y, z_front)]


def _chair(f: Factors) -> _Solids:
    s = _Solids()
    frame, legs = materials("chairs", f)
    fabric = Material(finish_colour(f, "fabric", "fabric"), f["pattern"], f["pattern_frequency"], 0.4)
    width, depth, height, thick = f["seat_width"], f["seat_depth"], f["seat_height"], f["seat_thickness"]
    round_seat = f["seat"] == "round"
    if round_seat:
        width = depth = (width + depth) / 2
        s.slab((0, height - thick / 2, 0), (width, thick, depth), frame, "seat", round=True)
    else:
        columns = ((width / 2, 0, 0), (0, 0, -depth / 2), (0, thick / 2, 0))
        s.add("box", columns, (0, height - thick / 2, 0), frame, "seat", (f["seat_taper"], 1.0))
    x_front, x_back = (0.36 * width, 0.36 * width) if round_seat else (width / 2, width * f["seat_taper"] / 2)
    z_front, z_back = (0.36 * depth, -0.36 * depth) if round_seat else (depth / 2, -depth / 2)
    _chair_legs(s, f, legs, x_front, x_back, z_front, z_back)
    back_half = max(f["back_width"] * x_back, 0.15)
    z_base = -0.45 * depth if round_seat else z_back + f["back_thickness"] / 2
    _chair_back(s, f, frame, fabric, back_half, z_base)
    if f["armrests"]:
        y, half = height + f["arm_height"], f["arm_width"] / 2
        z_end = z_base - f["arm_height"] * math.tan(math.radians(f["back_tilt"]))
        z_tip = -depth / 2 + f["arm_length"] * depth
        for side in (-1, 1):
            x = side * (0.44 * width if round_seat else width / 2 - half)
            s.beam((side * back_half, y, z_end), (x, y, z_tip), (half, 0.018), frame, "armrest")
            z_post = min(z_tip - half, 0.3 * depth) if round_seat else z_tip - half
            x_post = side * min(abs(x), 0.38 * width) if round_seat else x
            s.beam((x_post, height - thick / 2, z_post), (x, y, z_tip - half), 0.8 * half, frame, "armrest")
    if f["cushions"] != "none":
        size, puff = f["cushion_size"], f["cushion_thickness"]
        y = height + puff / 2
        if round_seat:
            s.slab((0, y, 0.02), (size * width * 0.92, puff, size * depth * 0.92), fabric, "cushion", True, 0.88)
        else:
            across = size * min(width, 2 * x_back)
            s.slab((0, y, 0.03 * depth), (across, puff, size * depth * 0.92), fabric, "cushion", taper=0.9)
    return s


def _chair_legs(s: _Solids, f: Factors, m: Material, x_front, x_back, z_front, z_back) -> None:
    half, top = f["leg_thickness"] / 2, f["seat_height"] - f["seat_thickness"]
    inset = half + f["leg_inset"]
    xf, xb, zf, zb = x_front - inset, x_back - inset, z_front - inset, z_back + inset
    if f["legs"] in FOUR_LEGS:
        out = top * math.tan(math.radians(f["leg_splay"])) if f["legs"] == "splayed" else 0.0
        feet, tops = _corners(xb + out, xf + out, zb - out, zf + out, 0.0), _corners(xb, xf, zb, zf, top)
        _stand(s, f, feet, tops, m, top)
    elif f["legs"] == "pedestal":
        r, reach = f["column_radius"], f["base_radius"]
        s.beam((0, 0.02 if f["base"] == "disc" else 0.05, 0), (0, top, 0), r, m, "column", round=True)
        s.slab((0, top - 0.02, 0), (6 * r, 0.04, 6 * r), m, "column", round=True)
        if f["base"] == "disc":
            s.slab((0, 0.02, 0), (2 * reach, 0.04, 2 * reach), m, "base", round=True, taper=0.85)
        else:
            for k in range(5):
                x, z = math.sin(2 * math.pi * k / 5), math.cos(2 * math.pi * k / 5)
                s.rod((0, 0.085, 0), (reach * x, 0.065, reach * z), (0.032, 0.028), m, "base", taper=0.7)
                s.ball((reach * x, 0.03, reach * z), (0.032, 0.03, 0.032), m, "base")
    else:
        back_posts = f["legs"] == "sled"
        for side in (-1, 1):
            s.beam((side * xf, 0, zf), (side * xf, top, zf), half, m, "leg")
            if back_posts:
                s.beam((side * xb, 0, zb), (side * xb, top, zb), half, m, "leg")
            s.beam((side * xb, half, zb - half), (side * xf, half, zf + half), half, m, "leg")
            s.beam((side * xb, top - half, zb), (side * xf, top - half, zf), half, m, "leg")
        if back_posts:
            s.beam((-xf, top - half, zf), (xf, top - half, zf), half, m, "leg")
        else:
            s.beam((-xb, half, zb), (xb, half, zb), half, m, "leg")


def _chair_back(s: _Solids, f: Factors, m: Material, fabric: Material, half_width: float, z_base: float) -> None:
    base, rise, thin = f["seat_height"] - f["seat_thickness"] / 2, f["back_height"], f["back_thickness"] / 2
    lean = math.tan(math.radians(f["back_tilt"]))
    style, rail, n = f["back"], f["rail_height"], f["bars"]
    bottom, top = f["seat_height"], f["seat_height"] + rise

    def at(x: float, y: float, forward: float = 0.0) -> np.ndarray:
        return np.array([x, y, z_base - (y - f["seat_height"]) * lean + forward])

    def panel(y0: float, y1: float, half_x: float, material=m, part="back", forward=0.0, depth=thin) -> None:
        s.beam(at(0, y0, forward), at(0, y1, forward), (half_x, depth), material, part)

    def oval(y: float, half_x: float, half_y: float, material=m, part="back", forward=0.0, depth=thin) -> None:
        columns = ((half_x, 0, 0), (0, 0, depth), (0, half_y, -half_y * lean))
        s.add("round", columns, at(0, y, forward), material, part)

    if style == "solid":
        panel(base, top, half_width)
    elif style == "rounded":
        arch = min(half_width, 0.6 * rise)
        panel(base, top - arch, half_width)
        oval(top - arch, half_width, arch)
    elif style == "oval":
        oval(bottom + 0.58 * rise, half_width, 0.42 * rise)
        for side in (-1, 1):
            s.beam(at(0.5 * side * half_width, base), at(0.5 * side * half_width, bottom + 0.4 * rise), thin, m, "back")
    else:
        round = style == "spindle"
        inner = half_width - 2 * thin
        for side in (-1, 1):
            x = side * (half_width - thin)
            s.beam(at(x, base), at(x, top - 0.5 * rail), thin, m, "back", round=round)
        panel(top - rail, top, half_width)
        if style == "ladder":
            pitch = (rise - rail) / (n + 0.5)
            for k in range(n):
                y = bottom + (k + 0.75) * pitch
                half = f["slat_width"] * pitch / 2
                panel(y - half, y + half, inner, part="rung", depth=0.8 * thin)
        else:
            low = bottom + 0.12 * rise
            panel(low - rail / 4, low + rail / 4, inner, depth=0.8 * thin)
            if style == "cross":
                for side in (-1, 1):
                    s.beam(at(-side * inner, low), at(side * inner, top - rail), (0.9 * thin, 0.7 * thin), m, "cross")
            else:
                count, part = (n + 1, "spindle") if round else (n, "slat")
                pitch = 2 * inner / count
                for k in range(count):
                    x = (k + 0.5) * pitch - inner
                    half = (0.016, 0.016) if round else (f["slat_width"] * pitch / 2, 0.6 * thin)
                    s.beam(at(x, low), at(x, top - rail / 2), half, m, part, round=round)
    if f["cushions"] == "seat and back":
        puff = f["cushion_thickness"] / 2
        size = f["cushion_size"] * half_width * 0.9
        if style == "oval":
            oval(bottom + 0.58 * rise, size, 0.42 * rise * f["cushion_size"] * 0.9, fabric, "cushion", thin, puff)
        else:
            share = 0.9 if style == "solid" else 0.65
            panel(bottom + f["cushion_thickness"], bottom + share * rise, size, fabric, "cushion", thin, puff)


def _table(f: Factors) -> _Solids:
    s = _Solids()
    frame, top_material = materials("tables", f)
    length, width, height, thick = f["length"], f["width"], f["height"], f["top_thickness"]
    if f["top"] in ("square", "round"):
        length = width = 1.15 * width
    round_top = f["top"] in ("round", "oval")
    s.slab((0, height - thick / 2, 0), (length, thick, width), top_material, "top", round_top)
    if f["inlay"]:
        _inlay(s, f, length, width, round_top)
    under = height - thick
    x, z = (0.36 * length, 0.36 * width) if round_top else (length / 2 - f["overhang"], width / 2 - f["overhang"])
    half = f["leg_thickness"] / 2
    if f["legs"] in FOUR_LEGS:
        out = under * math.tan(math.radians(f["leg_splay"])) if f["legs"] == "splayed" else 0.0
        tops = _corners(x - half, x - half, -z + half, z - half, under)
        feet = _corners(x - half + out, x - half + out, -z + half - out, z - half + out, 0.0)
        _stand(s, f, feet, tops, frame, under)
        if f["apron"]:
            drop, thin = f["apron_height"], f["apron_thickness"] / 2
            for side in (-1, 1):
                s.slab((0, under - drop / 2, side * (z - half)), (2 * (x - half), drop, 2 * thin), frame, "apron")
                s.slab((side * (x - half), under - drop / 2, 0), (2 * thin, drop, 2 * (z - half)), frame, "apron")
        if f["shelf"]:
            y, spread = f["shelf_height"] * height, out * (1 - f["shelf_height"])
            size = (2 * (x - half + spread), f["shelf_thickness"], 2 * (z - half + spread))
            s.slab((0, y, 0), size, frame, "shelf")
    elif f["legs"] == "pedestal":
        r, reach, base = f["column_radius"], f["base_radius"] * width / 0.75, f["base_thickness"]
        s.beam((0, base / 2, 0), (0, under, 0), r, frame, "column", f["column_taper"], round=True)
        s.slab((0, under - 0.015, 0), (0.4 * width, 0.03, 0.4 * width), frame, "column", round=True)
        if f["base"] == "disc":
            s.slab((0, base / 2, 0), (2 * reach, base, 2 * reach), frame, "base", round=True, taper=0.8)
        else:
            for dx, dz in ((1, 1), (1, -1), (-1, -1), (-1, 1)):
                tip = (0.75 * reach * dx, base / 2, 0.75 * reach * dz)
                s.rod((0, 1.2 * base, 0), tip, (0.045, base / 2), frame, "base", taper=0.7)
    elif f["legs"] == "trestle":
        x, base = 0.36 * length, f["base_thickness"]
        for side in (-1, 1):
            s.beam((side * x, 0, 0), (side * x, under, 0), (1.1 * half, 1.6 * half), frame, "leg")
            s.beam(
                (side * x, base / 2, -0.42 * width), (side * x, base / 2, 0.42 * width), (half, base / 2), frame, "base"
            )
            s.beam((side * x, under - half, -0.36 * width), (side * x, under - half, 0.36 * width), half, frame, "leg")
        y = height * f["stretcher_height"]
        s.beam((-x, y, 0), (x, y, 0), (1.3 * half, 0.6 * half), frame, "base")
    else:
        thin = f["panel_thickness"] / 2
        for side in (-1, 1):
            s.slab((side * (x - thin), under / 2, 0), (2 * thin, under, 2 * z), frame, "leg")
        if f["shelf"]:
            s.slab((0, f["shelf_height"] * height, 0), (2 * x, f["shelf_thickness"], 2 * z - 0.02), frame, "shelf")
    if f["drawers"]:
        _drawers(s, f, frame, top_material, x - half, z, under)
    return s


def _inlay(s: _Solids, f: Factors, length: float, width: float, round_top: bool) -> None:
    """A lighter (or, in light tops, darker) field let into the top, a millimetre proud of it."""
    material = materials("tables", f)[1]
    light = max(material.albedo)
    factor = 0.6 if light > 0.75 else 1.25
    tone = Material(tuple(factor * c for c in material.albedo), gloss=material.gloss)
    margin = 4 * f["band_width"] * width
    size = (length - margin, 0.004, width - margin)
    s.slab((0, f["height"], 0), size, tone, "inlay", round_top)


def _drawers(s: _Solids, f: Factors, frame: Material, front: Material, x: float, z: float, under: float) -> None:
    tall, n = f["drawer_height"], f["drawers"]
    s.slab((0, under - tall / 2, 0), (2 * x, tall, 2 * z - 0.05), frame, "chest")
    pitch = 2 * x / n
    for k in range(n):
        centre = (k + 0.5) * pitch - x
        s.slab((centre, under - tall / 2, z - 0.02), (0.88 * pitch, 0.76 * tall, 0.03), front, "drawer")
        knob = Material((0.75, 0.75, 0.78) if max(front.albedo) < 0.7 else (0.35, 0.33, 0.33), gloss=0.1)
        s.ball((centre, under - tall / 2, z + 0.01), [f["knob_radius"]] * 3, knob, "knob")
