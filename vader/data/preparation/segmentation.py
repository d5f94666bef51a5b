"""Things cut out of pictures: Grounding DINO's box is the prompt of Segment Anything (Grounded SAM [35], C.1)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..prepared import DataError
from .detection import BOX_THRESHOLD, Detection, Detector, detector, same_size
from .models import Loaded, open_transformers


class NoDetection(DataError):
    """A picture in which no thing of its class was found; C.1 drops the object."""


@dataclass(frozen=True, eq=False)
class Segmenter:
    """Cuts out what a box holds."""

    loaded: Loaded

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray], boxes: Sequence[tuple[float, ...]]) -> list[np.ndarray]:
        """Pictures (h, w, 3) uint8 and a box each (left, top, right, bottom) -> masks (h, w) uint8, 0 and 255."""
        masks: list[np.ndarray] = [np.empty(0)] * len(pictures)
        for chosen in same_size(pictures):
            inputs = self.loaded.processor(
                images=[pictures[i] for i in chosen],
                input_boxes=[[list(boxes[i])] for i in chosen],
                return_tensors="pt",
            )
            sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            outputs = self.loaded.model(
                pixel_values=inputs["pixel_values"].to(self.loaded.device),
                input_boxes=inputs["input_boxes"].float().to(self.loaded.device),
                multimask_output=False,
            )
            found = self.loaded.processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)
            for index, mask in zip(chosen, found, strict=True):
                masks[index] = np.where(mask[0, 0].numpy(), 255, 0).astype(np.uint8)
        return masks


def segmenter(given: str | Path | None = None, device: str | torch.device = "cpu") -> Segmenter:
    """given: a folder, or the name of a model on the hub (see `models`). Raises WeightsError."""
    return Segmenter(open_transformers("segmenter", given, "AutoModelForMaskGeneration", device))


# ---------------------------------------------------------------------------------------- both together


@dataclass(frozen=True)
class BackgroundRemover:
    """The mask of a picture's one thing of a class: a `formats.Options.masker`.

    detector, segmenter: folders or names, as `models.find` takes them. The models are opened at the first picture, once
    in a process, so that this can be sent to worker processes.
    """

    thing: str
    detector: str | None = None
    segmenter: str | None = None
    device: str = "cpu"
    threshold: float = BOX_THRESHOLD

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 -> (h, w) uint8. Raises NoDetection where the thing is not found, and WeightsError."""
        (_, mask) = self.cut_out([picture])[0]
        if mask is None:
            raise NoDetection(f"no {self.thing!r} was found in the picture (scores below {self.threshold:g})")
        return mask

    def cut_out(
        self, pictures: Sequence[np.ndarray], thing: str | None = None
    ) -> list[tuple[Detection | None, np.ndarray | None]]:
        """What was found in each picture, and its mask; (None, None) where nothing was. thing: another class."""
        found = self.tools[0](pictures, thing or self.thing)
        hits = [i for i, detection in enumerate(found) if detection is not None]
        masks = dict(zip(hits, self.tools[1]([pictures[i] for i in hits], [found[i].box for i in hits]), strict=True))
        return [(detection, masks.get(i)) for i, detection in enumerate(found)]

    @property
    def tools(self) -> tuple[Detector, Segmenter]:
        return _tools(self.detector, self.segmenter, self.device, self.threshold)

    @property
    def about(self) -> dict[str, dict[str, str]]:
        """The models, for reports."""
        return {"detector": self.tools[0].loaded.about, "segmenter": self.tools[1].loaded.about}


@functools.lru_cache(maxsize=1)
def _tools(detecting: str | None, segmenting: str | None, device: str, threshold: float) -> tuple[Detector, Segmenter]:
    return detector(detecting, device, threshold), segmenter(segmenting, device)
