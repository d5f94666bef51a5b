"""Training views: the objects of a step, and the pixels and cameras of chosen views.

The two are separate, so that a draw can be split over processes. `members` divides the objects into partitions,
`draw` chooses among those of one, and `batch` gathers the chosen ones, in whichever process it is called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as ListOf
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..rendering.cameras import Cameras
from .prepared import DataError, SequenceSet
from .shards import ShardedSet


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
        """Cameras of all b * v images, object by object."""
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

    A step's objects come from the current random stream, whatever its number. Raises DataError where there are none,
    and for views of different sizes.
    """

    def __init__(self, data: SequenceSet, device: torch.device | str = "cpu") -> None:
        objects = data.split("train")
        if len(objects) == 0:
            raise DataError(f"data set {data.name}: has no training objects, expected at least one")
        self.name, self.num_views, self.device = data.name, data.train_views, device
        self.keys = [s.key for s in objects]
        for s in objects:
            if s.images.shape[1:] != objects[0].images.shape[1:] or len(s.images) < self.num_views:
                (n, *size), expected = s.images.shape[:3], objects[0].images.shape[1:3]
                raise DataError(
                    f"data set {data.name}: {s.key} has {n} views of {size[0]} x {size[1]} pixels, expected at least "
                    f"{self.num_views} of {expected[0]} x {expected[1]} as of {self.keys[0]}; prepare all objects alike"
                )
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


class ShardOrder:
    """The order in which the objects of one partition are seen, a function of its name `stream` and the epoch."""

    def __init__(self, name: str, members: Tensor, shards: Tensor, stream: str, window: int) -> None:
        """name: for errors; members, shards (n,): the objects and the shard of each, ascending."""
        self.name, self.members, self.stream, self.window = name, members, stream, window
        self.drawn: tuple[int, int] | None = None  # step and count of the last draw
        self.read = False  # by this process
        _, counts = shards.unique_consecutive(return_counts=True)
        self._by_shard = members.split(counts.tolist())
        self._epochs: dict[int, Tensor] = {}  # the two used last: reading ahead crosses into the next

    def objects(self, step: int, count: int) -> Tensor:
        """The objects of a step of `count`. Raises DataError where there are not so many."""
        if len(self.members) < count:
            raise DataError(
                f"{self.name} has {len(self.members)} training objects in its shards, expected at least the {count} of "
                "a step; write smaller shards or take fewer partitions"
            )
        epoch, i = divmod(step, len(self.members) // count)
        order = self._epochs.get(epoch)
        if order is None:
            order = self._epochs[epoch] = self._shuffled(epoch)
            if len(self._epochs) > 2:
                self._epochs.pop(next(iter(self._epochs)))
        return order[i * count : (i + 1) * count]

    def _shuffled(self, epoch: int) -> Tensor:
        digest = hashlib.sha256(f"{self.stream}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        order = []
        for window in torch.randperm(len(self._by_shard), generator=generator).split(self.window):
            objects = torch.cat([self._by_shard[i] for i in window])
            order.append(objects[torch.randperm(len(objects), generator=generator)])
        return torch.cat(order)


class ShardedViews:
    """`Views` read from a sharded set as they are needed, and ahead of it; partition j has the shards s mod P = j.

    An epoch shows every object of a partition once, apart from a last incomplete step. Its order is decided by (seed,
    epoch, partition): shards in random order, and the objects of each `window` of them in random order, so that a
    step reads from few files. A step's objects follow from its number alone, so resuming needs no state. Objects
    of the next steps are read by a background thread while this one is trained. A shard that is missing, cut
    short or altered raises DataError naming it and the object, as `ShardedSet.read` does.
    """

    def __init__(self, data: ShardedSet, device: torch.device | str = "cpu", seed: int = 0, ahead: int = 4) -> None:
        """ahead: steps whose objects are read in advance."""
        if len(data.keys) == 0:
            raise DataError(f"data set {data.name}: has no training objects, expected at least one")
        self.data, self.device, self.seed, self.ahead = data, device, seed, ahead
        self.name, self.keys, self.num_views = data.name, data.keys, data.train_views
        self.shard_of = data.table["shard"][data.train].astype(np.int64)  # ascending
        self._orders: dict[tuple[int, int], ShardOrder] = {}  # by (partition, partitions)
        self._partitions = 1
        self._pool = ThreadPoolExecutor(1, "shards")
        self._reading: dict[int, Future[dict[str, bytes]]] = {}

    def members(self, partition: int, partitions: int) -> Tensor:
        return self._order(partition, partitions).members

    def draw(self, step: int, count: int, partition: int = 0, partitions: int = 1) -> Tensor:
        """Raises DataError where the partition has fewer than `count` objects."""
        order = self._order(partition, partitions)
        self._partitions, order.drawn = partitions, (step, count)
        return order.objects(step, count)

    def batch(self, objects: Tensor, views: Tensor) -> Batch:
        rows = self.data.train[objects.cpu().numpy()]
        self._look_ahead(objects, rows)
        samples = [self._reading[int(row)].result() for row in rows]
        read = [(int(row), sample) for row, sample in zip(rows, samples, strict=True)]
        cameras = [
            self.data.facts(row, sample)["cameras"][v] for (row, sample), v in zip(read, views.cpu(), strict=True)
        ]
        pixels = torch.stack(
            [self.data.pixels(row, sample, v) for (row, sample), v in zip(read, views.tolist(), strict=True)]
        ).to(self.device)
        return Batch(
            objects.to(self.device),
            pixels[..., :3].contiguous(),
            pixels[..., 3].contiguous(),
            torch.stack([c.world_to_camera for c in cameras]).to(self.device),
            torch.stack([c.intrinsics for c in cameras]).to(self.device),
        )

    def _order(self, partition: int, partitions: int) -> ShardOrder:
        place = (partition, partitions)
        if place not in self._orders:
            members = torch.from_numpy(np.flatnonzero(self.shard_of % partitions == partition))
            name = f"{self.data.folder}: partition {partition} of {partitions}"
            shards = torch.from_numpy(self.shard_of)[members]
            self._orders[place] = ShardOrder(name, members, shards, f"{self.seed}/{place}", self.data.window)
        return self._orders[place]

    def _look_ahead(self, objects: Tensor, rows: np.ndarray) -> None:
        """Start reading these objects and those of the next steps of all partitions read here; forget all others."""
        wanted = [*map(int, rows)]
        for partition in np.unique(self.shard_of[objects.cpu().numpy()] % self._partitions).tolist():
            order = self._order(partition, self._partitions)
            if not order.read:
                self.data.require_shards(self.data.train[order.members.numpy()])
                order.read = True
        for (_, partitions), order in self._orders.items():
            if partitions == self._partitions and order.read and order.drawn:
                step, count = order.drawn
                for later in range(step + 1, step + 1 + self.ahead):
                    wanted += self.data.train[order.objects(later, count).numpy()].tolist()
        for row in self._reading.keys() - set(wanted):
            self._reading.pop(row).cancel()
        for row in wanted:
            if row not in self._reading:
                self._reading[row] = self._pool.submit(self.data.read, row)


def training_views(data: SequenceSet | ShardedSet, device: torch.device | str, seed: int) -> Views:
    """The `Views` that a training with this seed has on a data set."""
    return ShardedViews(data, device, seed) if isinstance(data, ShardedSet) else MemoryViews(data, device)
