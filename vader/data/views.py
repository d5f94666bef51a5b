"""Where the images of stage 1 come from: which objects a step sees, and the pixels and cameras of chosen views.

The two are separate, so that a draw can be split over processes: `members` divides the objects into partitions,
`draw` chooses among those of one, and `batch` gathers what was chosen, in whichever process it is called.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..rendering.cameras import Cameras
from .sequence import DataError, SequenceSet


@dataclass(frozen=True, eq=False)
class Batch:
    """v views of each of b objects."""

    objects: Tensor  # (b,) int64: rows of the table of embeddings
    images: Tensor  # (b, v, h, w, 3) uint8, composited on black
    masks: Tensor  # (b, v, h, w) uint8, 255 = foreground
    world_to_camera: Tensor  # (b, v, 3, 4)
    intrinsics: Tensor  # (b, v, 3, 3), in pixels

    @property
    def cameras(self) -> Cameras:
        """Those of all b * v images, object by object."""
        h, w = self.masks.shape[-2:]
        return Cameras(self.world_to_camera.flatten(0, 1), self.intrinsics.flatten(0, 1), h, w)


class Views(Protocol):
    """The training views of a set of objects. An object's index is its row in the table of embeddings."""

    name: str  # of the data set
    keys: ListOf[str]  # of the objects, by index
    num_views: int  # of each object, that training may draw

    def members(self, partition: int, partitions: int) -> Tensor:
        """The objects of one of `partitions` disjoint parts, ascending indices (n,) int64."""

    def draw(self, step: int, count: int, partition: int = 0, partitions: int = 1) -> Tensor:
        """`count` different objects of a partition for the training step number `step`, (count,) int64."""

    def batch(self, objects: Tensor, views: Tensor) -> Batch:
        """Views (b, v) of objects (b,), on the device that the views are meant for."""


def draw_views(objects: int, num_views: int, count: int) -> Tensor:
    """`count` different views of each of `objects` objects, (objects, count), from the current random stream."""
    return torch.rand(objects, num_views).argsort(dim=1)[:, :count]


class MemoryViews:
    """`Views` of the training objects of a prepared set, all kept on `device`; partition j has the objects k mod P = j.

    A step's objects come from the current random stream, whatever its number. Raises DataError where there are none.
    """

    def __init__(self, data: SequenceSet, device: torch.device | str = "cpu") -> None:
        objects = data.split("train")
        if len(objects) == 0:
            raise DataError(f"data set {data.name}: has no training objects, expected at least one")
        self.name, self.num_views, self.device = data.name, data.train_views, device
        self.keys = [s.key for s in objects]
        seen = slice(0, self.num_views)
        cameras = [s.cameras for s in objects]
        self.images = torch.stack([s.images[seen] for s in objects]).to(device)  # (objects, v, h, w, 3)
        self.masks = torch.stack([s.masks[seen] for s in objects]).to(device)
        self.world_to_camera = torch.stack([c.world_to_camera[seen] for c in cameras]).to(device)
        self.intrinsics = torch.stack([c.intrinsics[seen] for c in cameras]).to(device)

    def members(self, partition: int, partitions: int) -> Tensor:
        return torch.arange(partition, len(self.keys), partitions)

    def draw(self, step: int, count: int, partition: int = 0, partitions: int = 1) -> Tensor:
        members = self.members(partition, partitions)
        return members[torch.randperm(len(members))[:count]]

    def batch(self, objects: Tensor, views: Tensor) -> Batch:
        objects, views = objects.to(self.device), views.to(self.device)
        rows = objects[:, None].expand_as(views)
        stores = (self.images, self.masks, self.world_to_camera, self.intrinsics)
        return Batch(objects, *(store[rows, views] for store in stores))


def training_views(data: SequenceSet, device: torch.device | str, seed: int) -> Views:
    """The `Views` that a training with this seed has on a data set."""
    return MemoryViews(data, device)
