"""Factors of procedural chairs and tables: drawn, coloured, and put into words.

`draw` gives an object's factors (lengths in metres, angles in degrees, colours as hue, saturation
and value in [0, 1] within the range of their finish) and `describe` its caption, a function of the
factors alone. `vader.data.synthetic.shapes` builds the solids.
"""

from __future__ import annotations

import colorsys
import hashlib
from typing import Any

from ..meshes.raycast import Material

Factors = dict[str, Any]

_COLOURS = {f"{what}_{c}": (0.0, 1.0) for what in ("frame", "second", "fabric") for c in ("hue", "saturation", "value")}
_SURFACE = {"grain_frequency": (2.0, 4.5), "grain_contrast": (0.1, 0.3), "gloss": (0.0, 0.12)}
CONTINUOUS: dict[str, dict[str, tuple[float, float]]] = {  # uniform in (low, high)
    "chairs": {
        "seat_width": (0.42, 0.60),
        "seat_depth": (0.40, 0.54),
        "seat_height": (0.36, 0.54),
        "seat_thickness": (0.04, 0.08),
        "seat_taper": (0.75, 1.0),  # back edge relative to front edge
        "back_height": (0.36, 0.62),
        "back_width": (0.8, 1.0),  # relative to the seat's back edge
        "back_tilt": (2.0, 16.0),
        "back_thickness": (0.035, 0.06),
        "rail_height": (0.06, 0.12),
        "slat_width": (0.35, 0.6),  # relative to the slats' spacing
        "leg_thickness": (0.045, 0.065),
        "leg_taper": (0.55, 0.85),
        "leg_splay": (5.0, 13.0),
        "leg_inset": (0.0, 0.04),
        "stretcher_height": (0.2, 0.45),  # relative to the seat's
        "stretcher_thickness": (0.026, 0.04),
        "arm_height": (0.16, 0.24),
        "arm_length": (0.7, 1.0),  # relative to the seat's depth
        "arm_width": (0.04, 0.065),
        "cushion_thickness": (0.04, 0.08),
        "cushion_size": (0.82, 0.96),  # relative to the seat
        "column_radius": (0.03, 0.05),
        "base_radius": (0.22, 0.30),
        "pattern_frequency": (2.0, 4.0),
        **_SURFACE,
        **_COLOURS,
    },
    "tables": {
        "length": (1.05, 1.5),
        "width": (0.6, 0.88),
        "height": (0.45, 0.85),
        "top_thickness": (0.035, 0.075),
        "overhang": (0.02, 0.10),
        "leg_thickness": (0.045, 0.085),
        "leg_taper": (0.45, 0.8),
        "leg_splay": (6.0, 15.0),
        "apron_height": (0.07, 0.13),
        "apron_thickness": (0.025, 0.04),
        "shelf_height": (0.18, 0.40),  # relative to the table's
        "shelf_thickness": (0.03, 0.05),
        "stretcher_height": (0.12, 0.35),  # relative to the table's
        "stretcher_thickness": (0.035, 0.055),
        "column_radius": (0.05, 0.09),
        "column_taper": (0.5, 0.9),
        "base_radius": (0.26, 0.36),
        "base_thickness": (0.03, 0.06),
        "panel_thickness": (0.04, 0.07),
        "drawer_height": (0.10, 0.16),
        "knob_radius": (0.02, 0.03),
        "band_width": (0.03, 0.06),  # of the inlay, relative to the top's width
        **_SURFACE,
        **{k: v for k, v in _COLOURS.items() if not k.startswith("fabric")},
    },
}
DISCRETE: dict[str, dict[str, tuple]] = {  # equally likely; what is listed twice is twice as likely
    "chairs": {
        "back": ("solid", "rounded", "oval", "slats", "ladder", "spindle", "cross"),
        "legs": ("straight", "tapered", "splayed", "pedestal", "sled", "cantilever"),
        "leg_section": ("square", "round"),
        "base": ("star", "disc"),
        "seat": ("square", "round"),
        "armrests": (False, True),
        "stretchers": ("none", "H", "box"),
        "cushions": ("none", "seat", "seat and back"),
        "bars": (2, 3, 4),  # slats or rungs of the back; spindles are one more
        "finish": ("wood", "wood", "paint", "paint", "metal"),
        "leg_finish": ("same", "same", "wood", "metal"),
        "pattern": ("plain", "stripes", "checker"),
    },
    "tables": {
        "top": ("rectangular", "square", "round", "oval"),
        "legs": ("straight", "tapered", "splayed", "pedestal", "trestle", "panel"),
        "leg_section": ("square", "round"),
        "base": ("cross", "disc"),
        "apron": (False, True),
        "shelf": (False, True),
        "stretchers": ("none", "H", "box"),
        "drawers": (0, 1, 2, 3),
        "finish": ("wood", "wood", "paint", "paint", "metal"),
        "top_finish": ("same", "same", "wood", "paint"),
        "inlay": (False, True),
    },
}
FINISHES = {  # ranges of hue, saturation and value
    "wood": ((0.055, 0.100), (0.45, 0.70), (0.50, 0.88)),
    "paint": ((0.0, 1.0), (0.0, 0.85), (0.62, 0.95)),
    "metal": ((0.55, 0.65), (0.0, 0.08), (0.50, 0.80)),
    "fabric": ((0.0, 1.0), (0.25, 0.85), (0.58, 0.95)),
}
_ADJECTIVES = {"wood": "wooden", "paint": "painted", "metal": "metal"}
_PATTERNS = {"plain": "", "stripes": "striped ", "checker": "checked "}
_STRETCHERS = {"H": "an H stretcher", "box": "four stretchers"}
_NUMBERS = ("no", "one", "two", "three", "four", "five")
FOUR_LEGS = ("straight", "tapered", "splayed")


def hashed_uniform(name: str) -> float:
    """A number in [0, 1) that is a function of `name`, uniform over names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def draw(category: str, seed: int, index: int) -> Factors:
    """Factors of an object. Each is drawn from a hash of (category, seed, index, factor): no generator's state or
    version matters, and an object stays the same however many there are. Parts that do not go together are left
    out, so that the discrete factors say what is there."""

    def uniform(name: str) -> float:
        return hashed_uniform(f"{category}/{seed}/{index}/{name}")

    f: Factors = {name: low + (high - low) * uniform(name) for name, (low, high) in CONTINUOUS[category].items()}
    f |= {name: options[int(uniform(name) * len(options))] for name, options in DISCRETE[category].items()}
    if f["legs"] == "panel" and f["top"] in ("round", "oval"):
        f["legs"] = "straight"
    if f["legs"] not in FOUR_LEGS:
        f["stretchers"], f["leg_section"] = "none", "none"
    if f["legs"] != "pedestal":
        f["base"] = "none"
    if category == "chairs":
        if f["back"] not in ("slats", "ladder", "spindle"):
            f["bars"] = 0
        if f["cushions"] == "seat and back" and f["back"] not in ("solid", "rounded", "oval"):
            f["cushions"] = "seat"
        if f["cushions"] == "none":
            f["pattern"] = "plain"
    else:
        if f["legs"] in ("pedestal", "trestle"):
            f["apron"], f["shelf"], f["drawers"] = False, False, 0
        if f["legs"] == "splayed" or f["top"] in ("round", "oval"):
            f["drawers"] = 0
        if f["legs"] == "panel" or f["drawers"]:
            f["apron"] = False  # the drawers take its place
        if f["shelf"]:
            f["stretchers"] = "none"
    return f


# ---------------------------------------------------------------------------------------- materials and captions


def finish_colour(factors: Factors, what: str, finish: str) -> tuple[float, float, float]:
    """Albedo (r, g, b) of what in {"frame", "second", "fabric"}: its factors within the finish's ranges."""
    shares = (factors[f"{what}_{c}"] for c in ("hue", "saturation", "value"))
    return colorsys.hsv_to_rgb(
        *(low + (high - low) * u for u, (low, high) in zip(shares, FINISHES[finish], strict=True))
    )


def colour_name(albedo: tuple[float, float, float]) -> str:
    """English name of an albedo, by fixed thresholds on hue (degrees), saturation and value."""
    h, s, v = colorsys.rgb_to_hsv(*albedo)
    h *= 360
    if s < 0.12:
        return "white" if v >= 0.85 else "light grey" if v >= 0.68 else "grey"
    if 12 <= h < 45 and s < 0.42 and v >= 0.6:
        return "beige"
    if 12 <= h < 45:
        return "brown" if v < 0.75 else "orange" if s >= 0.7 else "light brown"
    if s < 0.42 and (h < 12 or h >= 300):
        return "pink"
    limits = ((12, "red"), (70, "yellow"), (160, "green"), (195, "turquoise"), (255, "blue"), (290, "purple"))
    name = next((name for limit, name in limits if h < limit), "pink" if h < 340 else "red")
    return f"pale {name}" if s < 0.3 else name


def _colours(category: str, f: Factors) -> tuple[tuple[str, str], tuple[str, str]]:
    """(colour factors, finish) of the frame, and of the second material: a chair's legs, a table's top."""
    frame, second = ("frame", f["finish"]), f["leg_finish" if category == "chairs" else "top_finish"]
    return frame, frame if second == "same" else ("second", second)


def materials(category: str, factors: Factors) -> tuple[Material, Material]:
    """Materials of the frame, and of a chair's legs or a table's top."""
    f = factors

    def of(what: str, finish: str) -> Material:
        wood = finish == "wood"
        contrast, gloss = (f["grain_contrast"], f["gloss"] / 2) if wood else (0.0, f["gloss"])
        return Material(
            finish_colour(f, what, finish), "wood" if wood else "plain", f["grain_frequency"], contrast, gloss
        )

    frame, second = _colours(category, f)
    return of(*frame), of(*second)


def describe(category: str, factors: Factors) -> str:
    """Caption of type, colours and parts: "a red painted chair with four splayed legs, an oval back and armrests"."""
    f = factors
    frame, second = (
        f"{colour_name(finish_colour(f, what, finish))} {_ADJECTIVES[finish]} "
        for what, finish in _colours(category, f)
    )
    own = "" if f["leg_finish" if category == "chairs" else "top_finish"] == "same" else second
    legs = _legs(f, own if category == "chairs" else "")
    if category == "chairs":
        head, parts = f"{frame}chair", [legs, _back(f), *_listed(f, {"armrests": "armrests"})]
        parts += ["a round seat"] if f["seat"] == "round" else []
        parts += [_STRETCHERS[f["stretchers"]]] if f["stretchers"] != "none" else []
        if f["cushions"] != "none":
            fabric = f"{_PATTERNS[f['pattern']]}{colour_name(finish_colour(f, 'fabric', 'fabric'))}"
            parts.append(
                _a(f"{fabric} seat cushion") if f["cushions"] == "seat" else f"{fabric} cushions on seat and back"
            )
    else:
        head, parts = f"{f['top']} {frame}table", [legs]
        parts += [_a(f"{own}top")] if own else []
        parts += _listed(f, {"inlay": "an inlay", "apron": "an apron", "shelf": "a shelf"})
        parts += [_STRETCHERS[f["stretchers"]]] if f["stretchers"] != "none" else []
        parts += [f"{_NUMBERS[f['drawers']]} drawer{'s' * (f['drawers'] > 1)}"] if f["drawers"] else []
    together = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{_a(head)} with {together}"


def _legs(f: Factors, material: str) -> str:
    if f["legs"] in FOUR_LEGS:
        return f"four {material}{f['legs']} {'round ' if f['leg_section'] == 'round' else ''}legs"
    if f["legs"] == "pedestal":
        return f"{_a(f'{material}pedestal')} on a {f['base']}{'' if f['base'] == 'disc' else ' base'}"
    return f"two {material}panel legs" if f["legs"] == "panel" else _a(f"{material}{f['legs']} base")


def _back(f: Factors) -> str:
    return {
        "slats": f"a back of {_NUMBERS[f['bars']]} vertical slats",
        "ladder": f"a ladder back of {_NUMBERS[f['bars']]} rungs",
        "spindle": f"a back of {_NUMBERS[f['bars'] + 1]} spindles",
    }.get(f["back"]) or _a(f"{f['back']} back")


def _listed(f: Factors, words: dict[str, str]) -> list[str]:
    return [word for factor, word in words.items() if f[factor]]


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
