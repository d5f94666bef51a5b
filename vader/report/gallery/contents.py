"""What hangs in the gallery: a hall for each set, in it rows of works, each row of one system."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from ..viewer import Exhibit


class GalleryError(ValueError):
    """A gallery that cannot be made; the message names the set or folder and says what was expected."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture beside a work: of its nearest training object, its real views, the video that drives it.

    frames: (n, h, w, 3) uint8; more than one are played in a loop while they are looked at. label: under it.
    """

    label: str
    frames: Tensor
    alt: str


@dataclass(frozen=True, eq=False)
class Work:
    """One object: what turns, what stands beside it, and the volume that the viewer opens.

    film: (n, h, w, 3) uint8, played in a loop while it is looked at. exhibit: None where there is no radiance volume.
    mesh: the bytes of a GLB. group: the page that it is on, where a set has a page for each category.
    """

    name: str
    film: Tensor
    alt: str
    text: str = ""
    beside: tuple[Picture, ...] = ()
    exhibit: Exhibit | None = None
    mesh: bytes | None = None
    group: str | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """The works of one system.

    key: letters and digits, different from those of the set's other rows. note: what one should know of it, such as
    that it has no volumes. facts: (what, value) pairs: run digests, seed, guidance. slider: the works are steps on a
    way.
    """

    key: str
    title: str
    works: tuple[Work, ...]
    facts: tuple[tuple[str, str], ...] = ()
    note: str = ""
    slider: bool = False


@dataclass(frozen=True, eq=False)
class Hall:
    """A set of data and what was made with the models trained on it.

    key: the name of its page. size: (pixels, voxels) along a side. names: what pictures of it are called by in reports:
    the set, its training objects. runs: digests of all runs shown. groups: categories, where each has a page. credits:
    who made the training objects that are shown.
    """

    key: str
    title: str
    profile: str
    size: tuple[int, int]
    objects: int
    rows: tuple[Row, ...]
    names: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    credits: tuple[str, ...] = ()

    @property
    def caution(self) -> str:
        """What its pictures may and may not be compared with."""
        pixels, voxels = self.size
        return (
            f"Profile {self.profile}: {self.objects} training objects, pictures of {pixels} × {pixels} pixels, volumes "
            f"of {voxels}³. Compare the systems on this page with each other only, not with another set or profile, "
            "and not with the paper's figures, which come from thousands of objects and larger models."
        )


def slug(text: str, fallback: str = "object") -> str:
    """Letters, digits and hyphens of a text, in lower case, for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or fallback
