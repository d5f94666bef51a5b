"""Real objects that samples are compared with. They are the same ones for all numbers of training objects.

Distances are Chamfer distances to the nearest training object, as in Table 4. Three kinds of real objects have them,
too, and none of them trained:

    held out    models of the held-out split, as in Table 4: few, so that their median is uncertain
    other       held-out models, and each trained model against the objects of all other models
    variants    further variants of trained models, which are new in their stretch only

Training objects are ordered variant by variant, so that a small training set is the beginning of a large one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from ...data import SequenceSet
from ...evaluation.heldout import COPY, family, held_out
from ...evaluation.metrics.geometry import chamfer_distance, distance_matrix
from ...evaluation.shapes import ShapeDistances, memorisation, real_shapes
from ...settings.checks import require

NONE = (float("nan"),) * 3  # value and interval of what cannot be measured


def first_objects(data: SequenceSet, count: int) -> SequenceSet:
    """The set with its first `count` training objects and all held-out ones. It has a digest of its own.

    Raises ConfigError for more objects than there are.
    """
    train = data.split("train")
    require(
        1 <= count <= len(train), f"{count} training objects of {data.name}, expected 1 to {len(train)}, which it has"
    )
    left_out = {sequence.key for sequence in train.sequences[count:]}
    digest = hashlib.sha256(f"{data.digest}: first {count} training objects".encode()).hexdigest()
    sequences = tuple(s for s in data if s.split != "train" or s.key not in left_out)
    return dataclasses.replace(data, digest=digest, sequences=sequences)


def spread_objects(count: int, originals: int) -> list[int]:
    """As many of `count` training objects as there are originals: one variant of each model, all variants alike."""
    return [model + originals * (model % (count // originals)) for model in range(originals)]


@dataclass(frozen=True, eq=False)
class Yardsticks:
    """Clouds (n, p, 3) of the real objects."""

    train: np.ndarray  # of all training objects, in their order
    families: np.ndarray  # (n,) the base model of each
    held_out: np.ndarray
    originals: int  # the first objects, one of each model: what the smallest training set has
    others: np.ndarray  # positions of those originals that have no copy among the other models
    variants: np.ndarray  # positions of objects that never train, of models that do
    said: str  # a sentence about the held-out objects

    def to_nearest(self, clouds: np.ndarray, count: int) -> np.ndarray:
        """Distances (n, count) of clouds to the first training objects."""
        return distance_matrix(clouds, self.train[:count]) if len(clouds) else np.empty((0, count))

    def of_held_out(self, count: int) -> np.ndarray:
        """Distances of the held-out models."""
        return self.to_nearest(self.held_out, count)

    def of_other_models(self, count: int) -> np.ndarray:
        """Distances of held-out models, and of each trained one to the objects of the others."""
        distances = self.to_nearest(self.train[self.others], count)
        own = self.families[self.others][:, None] == self.families[None, :count]
        return np.concatenate([self.of_held_out(count), np.where(own, np.inf, distances)])

    def of_variants(self, count: int) -> np.ndarray:
        """Distances of the variants that never train."""
        return self.to_nearest(self.train[self.variants], count)


@functools.lru_cache(maxsize=1)
def yardsticks(data: SequenceSet, sizes: tuple[int, ...]) -> Yardsticks:
    """The real objects of a set of which trainings see the first `sizes` training objects, kept for the next call.

    Copies of training shapes are looked for among all objects, so that the same ones count in every training. Raises
    what `held_out` and `real_shapes` do.
    """
    unseen, originals = held_out(data), sizes[0]
    train = real_shapes(data, "train").clouds
    families = np.array([family(sequence) for sequence in data.split("train")])
    again = real_shapes(data, "train", seed=1, chosen=range(originals)).clouds
    floors = chamfer_distance(train[:originals], again)
    across = distance_matrix(train[:originals])
    trained = np.isin(families, families[: sizes[0]])
    return Yardsticks(
        train=train,
        families=families,
        held_out=real_shapes(data, "test", chosen=unseen.chosen).clouds,
        originals=originals,
        others=np.flatnonzero(across.min(1) >= COPY * floors),
        variants=np.flatnonzero(trained & (np.arange(len(train)) >= sizes[-1])),
        said=unseen.said,
    )


def novelty(samples: np.ndarray, real: np.ndarray) -> tuple[float, float, float]:
    """The ratio of Table 4's "shapes are no copies" and its interval: the median distance of samples to their nearest
    training object, over that of real objects. samples, real: distances (n, count) to all training objects."""
    if not (len(samples) and len(real)):
        return NONE
    check = memorisation(*(ShapeDistances(x, np.empty((0, 0)), np.empty((0, 0)), 0, "") for x in (samples, real)))
    return check.ratio, *check.ratio_interval()


def median_distance(distances: np.ndarray) -> float:
    """The median over objects of the distance to the nearest training object; NaN where there is no object."""
    return float(np.median(distances.min(1))) if len(distances) else float("nan")
