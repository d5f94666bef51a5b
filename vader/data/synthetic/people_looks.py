"""Looks of the people of `vader.data.sets.people`: hashed draws of bodies, colours of regions, clothes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .factors import colour_name
from .motion import Draw
from .people_mesh import SHAPES, vertex_normals

SKIN = ((0.40, 0.26, 0.19), (0.60, 0.41, 0.31), (0.82, 0.62, 0.50), (0.98, 0.82, 0.73))
HAIR = {
    "black": (0.16, 0.15, 0.16), "dark brown": (0.27, 0.18, 0.12), "brown": (0.40, 0.25, 0.14),
    "blond": (0.80, 0.64, 0.36), "red": (0.58, 0.24, 0.10), "grey": (0.62, 0.61, 0.60),
}  # fmt: skip
HAIR_CUTS = {"cropped": 0.004, "short": 0.013, "medium": 0.022, "long": 0.020}  # thickness of the cap in metres
IRISES = ((0.22, 0.13, 0.07), (0.35, 0.24, 0.12), (0.25, 0.42, 0.62), (0.30, 0.45, 0.28))


@dataclass(frozen=True)
class Person:
    """Who is in a video."""

    phenotype: dict[str, float]  # anny's, in [0, 1]
    shapes: dict[str, float]  # anny's local changes, in [-1, 1]
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    cut: str  # of HAIR_CUTS
    length: float  # of long hair, metres
    beard: bool
    iris: tuple[float, float, float]
    shirt: tuple[float, float, float]
    stripes: float  # periods per metre, 0: plain
    sleeves: float  # end of the sleeves: 1 at the elbow, 2 at the wrist
    trousers: tuple[float, float, float]
    shorts: bool
    shoes: tuple[float, float, float]
    caption: str


def person_draw(seed: int, index: int) -> Draw:
    return Draw(f"people/{seed}/{index}")


def person(seed: int, index: int, name: str = "people_heads") -> Person:
    """The person of video `index`, an adult; heads and bodies of one index are the same person, described as seen."""
    draw = person_draw(seed, index)
    woman, old = draw.unit("gender") < 0.5, draw.unit("old") < 0.25
    share = np.array([draw.unit(f"origin {k}") ** 2 + 1e-3 for k in range(3)])
    phenotype = {
        "gender": draw.within("gender share", (0.8, 1.0) if woman else (0.0, 0.2)),
        "age": draw.within("age", (0.82, 0.97) if old else (0.62, 0.78)),
        **{k: draw.within(k, limits) for k, limits in (("muscle", (0.3, 0.8)), ("weight", (0.25, 0.85)))},
        **{k: draw.within(k, (0.25, 0.75)) for k in ("height", "proportions")},
        **dict(zip(("african", "asian", "caucasian"), (share / share.sum()).tolist(), strict=True)),
    }
    # the same left and right: people are symmetric, and each side's shape is drawn by the name without the side
    shapes = {k: draw.within(k.removeprefix("l-").removeprefix("r-"), (-0.6, 0.6)) for k in SHAPES}
    tone = 3 * draw.unit("skin")
    low = min(int(tone), 2)
    skin_tone = tuple((1 - (tone - low)) * a + (tone - low) * b for a, b in zip(SKIN[low], SKIN[low + 1], strict=True))
    hair_name = "grey" if old and draw.unit("grey") < 0.7 else draw.choice("hair", list(HAIR)[:-1])
    cut = draw.choice("cut", ("short", "medium", "long", "long") if woman else ("cropped", "short", "short", "medium"))
    beard = not woman and draw.unit("beard") < 0.4
    shirt, trousers = draw.colour("shirt", (0.2, 0.85), (0.5, 0.95)), draw.colour("trousers", (0.15, 0.6), (0.4, 0.8))
    striped, shorts = draw.unit("stripes") < 0.35, draw.unit("shorts") < 0.3
    words = f"{'striped ' if striped else ''}{colour_name(shirt)} shirt"
    article = "an" if words[0] in "aeiou" else "a"
    who = f"{'an old' if old else 'a'} {'woman' if woman else 'man'} with {cut} {hair_name} hair"
    extra = ", a beard" if beard else ""
    caption = f"{who}{extra} and {article} {words}"
    if name == "people_bodies":
        below = f"{colour_name(trousers)} {'shorts' if shorts else 'trousers'}"
        caption = f"{who}{extra}, {article} {words} and {below}"
    return Person(
        phenotype=phenotype,
        shapes=shapes,
        skin=skin_tone,
        hair=HAIR[hair_name],
        cut=cut,
        length=draw.within("length", (0.1, 0.22)),
        beard=beard,
        iris=draw.choice("iris", IRISES),
        shirt=shirt,
        stripes=draw.within("stripe frequency", (8, 14)) if striped else 0.0,
        sleeves=draw.choice("sleeves", (0.7, 2.0)),
        trousers=trousers,
        shorts=shorts,
        shoes=draw.colour("shoes", (0.1, 0.6), (0.3, 0.7)),
        caption=caption,
    )


def albedo(who: Person, regions: dict[str, np.ndarray], height: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of a person's vertices. height (n,): of the rest mesh in metres, for stripes."""
    tone = np.array(who.skin)
    colours = np.tile(tone, (len(height), 1))

    def paint(colour, strength: np.ndarray) -> None:
        colours[:] += np.clip(strength, 0, 1)[:, None] * (np.array(colour) - colours)

    paint(0.75 * tone * (1.0, 0.72, 0.72) + (0.1, 0, 0.02), 0.8 * regions["lips"])
    paint((0.34, 0.12, 0.11), regions["mouth"])
    paint(who.hair, 0.75 * regions["beard"] * who.beard)
    paint(0.8 * np.array(who.hair), 0.7 * regions["brow"])
    paint(who.hair, regions["scalp"])
    for name, colour in (("eyeball", (0.93, 0.92, 0.9)), ("iris", who.iris), ("pupil", (0.08, 0.08, 0.08))):
        paint(colour, regions[name])
    paint(who.trousers, regions["trousers"] * (1 - (who.shorts & (regions["calf"] > 0.4))))
    shade = 1 - 0.5 * (np.sin(2 * np.pi * who.stripes * height) > 0) if who.stripes else np.ones(len(height))
    paint(np.array(who.shirt) * shade[:, None], cloth(who, regions))
    paint(who.shoes, regions["shoe"])
    return colours


def cloth(who: Person, regions: dict[str, np.ndarray]) -> np.ndarray:
    """Strength (n,) of the shirt with this person's sleeves."""
    return regions["shirt"] * np.clip((who.sleeves - regions["sleeve"]) / 0.06, 0, 1)


def dress(who: Person, rest: np.ndarray, faces: np.ndarray, regions: dict[str, np.ndarray]) -> np.ndarray:
    """The rest mesh (n, 3) with hair, cloth and shoes pushed out along the normals."""
    trousers = regions["trousers"] * (1 - (who.shorts & (regions["calf"] > 0.4)))
    depth = HAIR_CUTS[who.cut] * regions["scalp"] + 0.008 * cloth(who, regions) + 0.008 * trousers
    depth = depth + 0.008 * regions["shoe"] + 0.004 * who.beard * regions["beard"]
    return rest + depth[:, None] * vertex_normals(rest, faces)
