"""What a prepared set shows of its cameras: how much of the masks the visual hull of all views fills.

1 means that some object in the cube explains every mask. Wrong cameras, an object that moved, and masks of another
thing leave less. Where the value is low, other conventions of poses are tried, and one that is far better is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .formats import format_named
from .formats.shared.conventions import advice, reduced, unplaced
from .formats.shared.normalise import hull_silhouette
from .prepared import SequenceSet
from .sequence import Sequence

FRAMES = 3  # of an object, on which the hull is drawn
SIDE, VIEWS = 96, 60  # pixels of a frame, and views that the hull is made of, at most
MOST = 48  # objects of a set that are looked at, spread evenly
LOW = 0.8  # hull IoU below which other conventions are tried


@dataclass(frozen=True, eq=False)
class HullCheck:
    """Of one object. frames: numbers of views; masks and hulls (f, h, w) bool, at least half covered."""

    key: str
    frames: list[int]
    masks: Tensor
    hulls: Tensor
    advice: str | None  # another convention of poses that explains the masks far better

    @property
    def iou(self) -> float:
        """Of hull and masks over the frames. The hull lies inside of the masks."""
        return self.hulls.sum().item() / max(self.masks.sum().item(), 1)


def check_object(sequence: Sequence) -> HullCheck:
    """Draw the hull over `FRAMES` frames, and look for another convention if it fills little of the masks."""
    cameras, masks = reduced(sequence.cameras, sequence.masks, SIDE, VIEWS)
    frames = sorted({i * len(masks) // FRAMES for i in range(FRAMES)})
    hulls = torch.stack([hull_silhouette(cameras, masks, frame) for frame in frames])
    numbers = [i * len(sequence) // len(masks) for i in range(len(masks))]  # as `reduced` chooses them
    found = HullCheck(sequence.key, [numbers[f] for f in frames], masks[frames] >= 128, hulls, None)
    poses = (
        getattr(format_named(sequence.attributes["format"]), "POSES", None) if "format" in sequence.attributes else None
    )
    if poses is None or found.iou >= LOW:
        return found
    return HullCheck(found.key, found.frames, found.masks, hulls, advice(unplaced(sequence), sequence.masks, poses))


def check_set(data: SequenceSet[Sequence]) -> dict[str, HullCheck]:
    """Of the objects of a set by key, or of `MOST` of them."""
    chosen = sorted({i * len(data) // min(MOST, len(data)) for i in range(min(MOST, len(data)))})
    return {data[i].key: check_object(data[i]) for i in chosen}


def overall(checks: Iterable[HullCheck]) -> float:
    """Hull IoU over all frames of all objects."""
    checks = list(checks)
    return sum(c.hulls.sum().item() for c in checks) / max(sum(c.masks.sum().item() for c in checks), 1)


def lines(checks: dict[str, HullCheck], shown: int = 12) -> list[str]:
    """What to print: the hull IoU of all, of the worst objects, and the conventions that poses look like."""
    worst = sorted(checks.values(), key=lambda c: c.iou)
    said = [f"check: hull and masks agree to {overall(worst):.3f} (IoU) over {len(worst)} objects, 1 is expected"]
    said += [f"  {c.key}: {c.iou:.3f}" for c in worst[:shown]]
    if len(worst) > shown:
        said.append(f"  and {len(worst) - shown} more, better ones")
    said += [f"  {c.key}: {c.advice}" for c in worst if c.advice]
    if worst[0].iou < LOW and not any(c.advice for c in worst):
        said.append(
            "  no other convention of poses explains the masks: are they of the object, and did it stand still?"
        )
    return said


def placed_lines(data: SequenceSet[Sequence], shown: int = 12) -> list[str]:
    """What to print of structure from motion: how many pictures of each object it placed, and how exactly."""
    found = {s.key: s.attributes["structure_from_motion"] for s in data if "structure_from_motion" in s.attributes}
    worst = sorted(found, key=lambda key: found[key]["placed"] / found[key]["of"])
    said = []
    for key in worst[:shown]:
        about = found[key]
        models = len(about["models"])
        said.append(
            f"  {key}: {about['placed']} of {about['of']} pictures placed, reprojection error {about['error']:.2f} "
            f"pixels, features {about['features']}" + (f", the largest of {models} models" if models > 1 else "")
        )
    if len(worst) > shown:
        said.append(f"  and {len(worst) - shown} more")
    return ["structure from motion:", *said] if said else []
