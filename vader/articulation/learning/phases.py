"""Phases of the second training before a predictor reads poses from pictures (see `regions` and `tracks`).

First the skinning weights learn the initial regions of the parts (`region_images`). Then poses are found as curves over
each video (`track_images`). Then the predictor learns those poses (`taught_images`). Each phase is optional, and takes
its images of the stage's clock.
"""

from __future__ import annotations

from ...settings.articulation import ArticulationConfig
from ...settings.checks import require

DIVIDING, TRACKING, TEACHING = "dividing", "tracking", "teaching"
NEEDS = {  # setting -> the one without which it says nothing
    "taught_images": "track_images",
    "taught_channels": "taught_images",
    "taught_extent": "taught_images",
    "taught_frames": "taught_images",
    "taught_rendered": "taught_frames",
    "taught_sigma": "taught_frames",
}


class Phases:
    """The phases of a stage of `total` images. Raises ConfigError where they do not fit into it or together."""

    def __init__(self, settings: ArticulationConfig, total: int):
        divided, tracked, taught = settings.region_images, settings.track_images, settings.taught_images
        self._images = {DIVIDING: divided, TRACKING: tracked, TEACHING: taught}
        self.images, self._total = sum(self._images.values()), total
        require(divided < total, f"region_images is {divided}, expected fewer than the {total} images of the stage")
        require(
            self.images <= total,
            f"region_images, track_images and taught_images are {self.images} together, expected at most the {total} "
            "images of the stage",
        )
        unset = ArticulationConfig()
        for name, needed in NEEDS.items():
            value = getattr(settings, name)
            require(
                value == getattr(unset, name) or getattr(settings, needed) > 0,
                f"{name} is {value:g} and {needed} 0, expected {needed} above 0",
            )

    def at(self, clock: int) -> tuple[str | None, float]:
        """The phase after `clock` images, None once poses are predicted, and the share of it that is over."""
        for name, images in self._images.items():
            if clock < images:
                return name, clock / images
            clock -= images
        return None, clock / (self._total - self.images)
