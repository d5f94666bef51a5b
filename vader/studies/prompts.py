"""Prompts for conditional generation: held-out captions, and combinations that training never saw."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from ..data.describe import COLOURS

# Of household: what is in its captions one by one, but in none of them together.
HOUSEHOLD = (
    "a red lamp on three legs, lights",
    "a blue dog, characters",
    "a green sofa on four legs, living room",
    "a yellow wardrobe, bedroom",
    "a tall pink wine bottle, kitchen",
    "a purple armchair, living room",
)


def never_together(captions: Sequence[str], count: int) -> list[str]:
    """Up to `count` captions with another colour, which no caption has with these words: deterministic.

    captions: those of training. The first word of `describe.COLOURS` is replaced; others stay. Captions that name no
    colour are passed over.
    """
    known = {_taken_apart(caption) for caption in captions}
    order = sorted(dict.fromkeys(captions), key=lambda caption: hashlib.sha256(caption.encode()).digest())
    found: list[str] = []
    for caption in order:
        _, rest = _taken_apart(caption)
        free = [colour for colour in COLOURS if (colour, rest) not in known]
        if "{}" in rest and free and len(found) < count:
            prompt = rest.replace("{}", free[len(found) % len(free)])
            found.append(re.sub(r"^an? (?=[aeiou])", "an ", re.sub(r"^an? ", "a ", prompt)))
    return found


def named_colour(caption: str) -> list[str]:
    """The first colour that a caption names, alone in a list; none where it names none."""
    colour, _ = _taken_apart(caption)
    return [] if colour is None else [colour]


def _taken_apart(caption: str) -> tuple[str | None, str]:
    """The first colour of a caption, and the caption with {} in its place."""
    match = re.search(rf"\b(?:(?:pale|light|dark) )?({'|'.join(COLOURS)})\b", caption)
    if match is None:
        return None, caption
    return match[1], caption[: match.start()] + "{}" + caption[match.end() :]
