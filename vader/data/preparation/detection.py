"""Where a thing is in a picture: Grounding DINO [41], its prompt the name of the thing's class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...settings.checks import require
from .models import Loaded, open_transformers

BOX_THRESHOLD, TEXT_THRESHOLD = 0.3, 0.25  # those of Grounded Segment Anything [35]


@dataclass(frozen=True)
class Detection:
    """box: left, top, right, bottom in pixels, inside of the picture; score in [0, 1]."""

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, eq=False)
class Detector:
    """Finds the one thing of a class that a picture shows: of all boxes that of the highest score."""

    loaded: Loaded
    threshold: float = BOX_THRESHOLD

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray], thing: str) -> list[Detection | None]:
        """Pictures (h, w, 3) uint8 -> what was found in each, None where no box has the threshold's score.

        Pictures of one size are one batch, so the result of a picture does not depend on its neighbours.
        """
        found: list[Detection | None] = [None] * len(pictures)
        for chosen in same_size(pictures):
            inputs = self.loaded.processor(
                images=[pictures[i] for i in chosen],
                text=[prompt(thing)] * len(chosen),
                return_tensors="pt",
            ).to(self.loaded.device)
            outputs = self.loaded.model(**inputs)
            h, w = pictures[chosen[0]].shape[:2]
            results = self.loaded.processor.post_process_grounded_object_detection(
                outputs, inputs["input_ids"], self.threshold, TEXT_THRESHOLD, [(h, w)] * len(chosen)
            )
            for index, result in zip(chosen, results, strict=True):
                found[index] = _best(result["boxes"].cpu(), result["scores"].cpu(), h, w)
        return found


def detector(
    given: str | Path | None = None, device: str | torch.device = "cpu", threshold: float = BOX_THRESHOLD
) -> Detector:
    """given: a folder, or the name of a model on the hub (see `models`). Raises WeightsError."""
    require(0 <= threshold < 1, f"threshold is {threshold:g}, expected a score in [0, 1)")
    return Detector(open_transformers("detector", given, "AutoModelForZeroShotObjectDetection", device), threshold)


def prompt(thing: str) -> str:
    """A class's name as the detector was trained on it: lower case, ended by a full stop."""
    name = " ".join(thing.replace("_", " ").lower().split()).rstrip(" .")
    require(bool(name), f"the class of the object is {thing!r}, expected its name")
    return f"{name}."


def same_size(pictures: Sequence[np.ndarray]) -> list[list[int]]:
    """Indices of pictures, those of one size together."""
    sizes = defaultdict(list)
    for index, picture in enumerate(pictures):
        sizes[picture.shape].append(index)
    return list(sizes.values())


def _best(boxes: torch.Tensor, scores: torch.Tensor, h: int, w: int) -> Detection | None:
    """The best of boxes (n, 4) that have an area inside of the picture."""
    boxes = boxes.float().clamp(min=0).minimum(torch.tensor([w, h, w, h]))
    whole = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    if not whole.any():
        return None
    best = int(scores.where(whole, -torch.ones(())).argmax())
    return Detection(tuple(boxes[best].tolist()), float(scores[best]))
