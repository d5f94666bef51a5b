"""Does the text matter? Category and colour of samples, read by judges that are not in the training loop (Sec. 4.5).

The judge of categories is a linear classifier on the features of real pictures of training objects (`train_judge`). How
often it is right about held-out real objects is the most that a sample can score (`Match.accuracy` of these: the
ceiling). Colours are measured on pictures by the rules that captions are made with (`read_colours`).

Chance is what the same samples score against captions that are dealt to them at random, so that a model which draws
good objects and does not listen is at chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import SequenceSet
from ..data.describe import colour_shares, colours_of
from ..data.meshes.selection import stem
from ..generation.parallel import BATCH, side_by_side
from ..generation.volumes import Models, System
from ..rendering.render import render_views
from ..settings.experiment import EvaluationConfig
from .metrics import MetricError
from .metrics.features import Features
from .metrics.neighbours import MemorisationCheck, object_distances
from .pictures import random_views, real_features

# ------------------------------------------------------------------------------------------------ the judges


@dataclass(frozen=True, eq=False)
class Judge:
    """A linear classifier of objects by the features of their pictures."""

    classes: tuple[str, ...]
    network: str  # of the features
    mean: Tensor  # (f,) of the training features, and their spread
    scale: Tensor  # (f,)
    weight: Tensor  # (f, c)
    bias: Tensor  # (c,)

    def log_probabilities(self, features: Features) -> Tensor:
        """Mean over each object's pictures, (objects, c). Raises MetricError for features of another network."""
        if features.network != self.network:
            raise MetricError(
                f"features are of {features.network}, expected {self.network}, which the judge learned on"
            )
        scores = (((features.values - self.mean) / self.scale) @ self.weight + self.bias).log_softmax(1)
        sums = torch.zeros(features.num_objects, len(self.classes)).index_add_(0, features.objects, scores)
        return sums / torch.bincount(features.objects, minlength=features.num_objects)[:, None]

    def read(self, features: Features) -> list[str]:
        """The most probable class of each object."""
        return [self.classes[i] for i in self.log_probabilities(features).argmax(1).tolist()]


def train_judge(features: Features, labels: Sequence[str], decay: float = 3e-3, steps: int = 60) -> Judge:
    """Logistic regression on standardised features of real pictures, one label an object; L-BFGS, weight decay `decay`.

    Tried on household's training objects, in five parts with namesakes together (accuracy 0.49, standard error 0.02):
    decays of 1e-3 and 1e-2 (0.50), linear discriminants with shrunk covariances (0.43 to 0.47), means of 19 views
    (0.46 to 0.48), and EfficientNet-Lite2 in six views (0.44 against 0.48). None is better beyond its error. No package
    was found that ships the weights of a CLIP.

    Raises MetricError for another number of labels than objects, and for fewer than two classes.
    """
    if len(labels) != features.num_objects:
        raise MetricError(f"there are {len(labels)} labels, expected {features.num_objects}, one for each object")
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise MetricError(f"all objects are of the class {classes[0]!r}, expected at least two to tell apart")
    target = torch.tensor([classes.index(label) for label in labels])[features.objects]
    mean, scale = features.values.mean(0), features.values.std(0).clamp_min(1e-3)
    x = (features.values - mean) / scale
    weight = torch.zeros(x.shape[1], len(classes), requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, target) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Judge(classes, features.network, mean, scale, weight.detach(), bias.detach())


LESSONS = 8  # views of a training object that a judge learns from: more than are compared, it has to know them well
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a judge of categories learns from: real views of the training objects."""

    features: Features
    labels: list[str]  # categories, one for each object
    groups: list[str]  # which objects are namesakes: of one group, they are read by a judge that saw none of them


def lessons(data: SequenceSet, config: EvaluationConfig) -> Lessons:
    """Those of a set's training objects. One without a category is of the set's only one, one without a name alone."""
    items = data.split("train")
    labels = [item.attributes.get("category", data.name) for item in items]
    groups = [stem(item.attributes.get("name", item.key)) for item in items]
    return Lessons(real_features(data, dataclasses.replace(config, real_views=LESSONS)), labels, groups)


@dataclass(frozen=True, eq=False)
class UnseenJudges:
    """Judges of training objects: each object is read by one that saw neither it nor its namesakes.

    Groups of namesakes are dealt to FOLDS parts, and a judge learns from all parts but one. A judge that saw the object
    would recognise it, whatever its category looks like.
    """

    folds: list[int]  # part of each training object
    judges: dict[int, Judge]  # the one that did not learn from a part

    @classmethod
    def train(cls, taught: Lessons) -> UnseenJudges:
        """Raises MetricError as `train_judge`."""
        order = {group: number for number, group in enumerate(sorted(set(taught.groups)))}
        folds, judges = [order[group] % FOLDS for group in taught.groups], {}
        for fold in sorted(set(folds)):
            known = torch.tensor([other != fold for other in folds])
            labels = [label for label, kept in zip(taught.labels, known, strict=True) if kept]
            judges[fold] = train_judge(_of(taught.features, known), labels)
        return cls(folds, judges)

    def read(self, seen: Features, objects: Sequence[int]) -> list[str]:
        """Classes of n objects' features, of which number i shows training object objects[i], as it is or as a model
        makes it."""
        if len(objects) != seen.num_objects:
            raise MetricError(f"{seen.num_objects} objects are shown, but {len(objects)} numbers say which they are")
        read = {fold: self.judges[fold].read(seen) for fold in {self.folds[index] for index in objects}}
        return [read[self.folds[index]][i] for i, index in enumerate(objects)]


def _of(features: Features, objects: Tensor) -> Features:
    """The features of some objects, (n,) bool, numbered anew."""
    chosen = objects[features.objects]
    numbers = objects.cumsum(0) - 1
    return dataclasses.replace(features, values=features.values[chosen], objects=numbers[features.objects[chosen]])


def read_colours(images: Tensor, masks: Tensor) -> list[list[str]]:
    """The one or two colours of each object: images (n, v, h, w, 3) in [0, 1] on black, masks (n, v, h, w)."""
    return [colours_of(colour_shares(*pair)) for pair in zip(images, masks, strict=True)]


def picture_samples(models: Models, system: System, count: int, views: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples 0 ... count - 1 from `views` random views each: (count, views, h, w, 3), and occupancy without the 3.

    A sample that came out broken is empty.
    """

    def render(indices: range) -> list[dict[str, Tensor]]:
        volumes = torch.nan_to_num(system(indices, seed), 0.0, 0.0, 0.0)
        cameras = [random_views(models.config, index, views, seed) for index in indices]
        samples = models.config.reconstruction.num_samples
        return [render_views(v[None], c, samples, normals=False) for v, c in zip(volumes, cameras, strict=True)]

    jobs = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    found = [one for batch in side_by_side(render, jobs, models.device) for one in batch]
    colours, occupancies = (torch.cat([one[name].cpu() for one in found]) for name in ("colour", "occupancy"))
    return colours.clamp(0, 1), occupancies


# ------------------------------------------------------------------------------------------------ the scores


@dataclass(frozen=True, eq=False)
class Match:
    """Whether what was read of sample i is what caption j says, (n, n) bool."""

    table: Tensor

    @property
    def hits(self) -> Tensor:
        """Of each sample with its own caption, (n,) float."""
        return self.table.diagonal().float()

    @property
    def accuracy(self) -> float:
        return float(self.hits.mean())

    @property
    def chance(self) -> float:
        """The expected accuracy of captions in random order."""
        return float(self.table.float().mean())


def match_categories(read: Sequence[str], said: Sequence[str]) -> Match:
    """Categories read of samples against those that the captions name. Raises MetricError for unequal numbers."""
    _require_pairs(read, said)
    return Match(torch.tensor([[one == other for other in said] for one in read]))


def match_colours(read: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> Match:
    """A sample has a caption's colour where its largest colour is the first that the caption names."""
    _require_pairs(read, said)
    return Match(torch.tensor([[bool(one and other) and one[0] == other[0] for other in said] for one in read]))


def _require_pairs(read: Sequence, said: Sequence) -> None:
    if len(read) != len(said) or not read:
        raise MetricError(f"{len(read)} samples and {len(said)} captions, expected as many of both, at least one")


def retrieval(samples: Features, real: Features, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """How often a sample is nearer to the real object of its own caption than to that of another: (share, low, high).

    Sample i and real object i belong to the same caption. 0.5 is chance, 1 the most; ties count half. The 95 %
    interval comes from resampling captions.
    """
    if samples.num_objects != real.num_objects or real.num_objects < 2:
        raise MetricError(
            f"{samples.num_objects} samples and {real.num_objects} real objects, expected as many, 2 or more"
        )
    samples.check_comparable(real)
    distance = object_distances(samples, real)
    own = distance.diagonal()[:, None]
    nearer = (own < distance).double() + 0.5 * (own == distance).double()
    shares = (nearer.sum(1) - nearer.diagonal()) / (len(nearer) - 1)
    drawn = torch.randint(len(shares), (resamples, len(shares)), generator=torch.Generator().manual_seed(seed))
    low, high = shares[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=shares.dtype)).tolist()
    return float(shares.mean()), low, high


def excess(matches: Sequence[Match], times: float, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Accuracy less `times` the chance, mean over matches of the same captions, one for each sampling seed.

    With its 95 % bootstrap interval over captions: (value, low, high).
    """
    table = torch.stack([match.table.float() for match in matches]).mean(0)
    return _over_captions(
        lambda w: w @ table.diagonal() - times * ((w @ table) * w).sum(1), len(table), resamples, seed
    )


def gain(
    ours: Sequence[Match], other: Sequence[Match], times: float = 1.0, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Accuracy of `ours` less `times` that of `other`, of the same captions: (value, low, high), as `excess`."""
    hits = [torch.stack([match.hits for match in matches]).mean(0) for matches in (ours, other)]
    return _over_captions(lambda w: w @ (hits[0] - times * hits[1]), len(hits[0]), resamples, seed)


def _over_captions(
    statistic: Callable[[Tensor], Tensor], n: int, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Value and bootstrap interval of a statistic of weights (r, n) of the captions."""
    drawn = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(resamples, n).scatter_add_(1, drawn, torch.ones(drawn.shape)) / n
    value, values = float(statistic(torch.full((1, n), 1 / n))), statistic(weights)
    values = values - values.median() + value  # in resamples captions repeat, which raises chance
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    value, low, high = (round(x, 6) for x in (value, low, high))  # an end at 0 is none above it by a rounding error
    return value, low, high


# ------------------------------------------------------------------------------------------------ memory


@dataclass(frozen=True)
class CategoryMemory:
    """Of the samples of a category: their median distance to the nearest training object, that of held-out objects of
    the category (NaN where there is none), and the share of samples nearer than 95 % of all held-out objects."""

    category: str
    samples: int
    distance: float
    heldout: int
    reference: float
    copies: float


def memory_by_category(
    check: MemorisationCheck, samples: Sequence[str], heldout: Sequence[str]
) -> list[CategoryMemory]:
    """`MemorisationCheck` taken apart: samples and held-out objects by the categories of their captions."""
    near, far = check.sample_distances, check.reference_distances
    for what, labels, values in (("samples", samples, near), ("held-out objects", heldout, far)):
        if len(labels) != len(values):
            raise MetricError(f"{len(labels)} categories of {len(values)} {what}, expected as many")
    limit, found = far.quantile(0.05), []
    for category in sorted(set(samples)):
        own = near[torch.tensor([label == category for label in samples])]
        others = far[torch.tensor([label == category for label in heldout])]
        reference = float(others.median()) if len(others) else float("nan")
        copies = float((own < limit).double().mean())
        found.append(CategoryMemory(category, len(own), float(own.median()), len(others), reference, copies))
    return found


def effective_number(labels: Sequence[str]) -> float:
    """How many equally frequent labels are as varied as these: exp of the entropy; 1 where all are the same."""
    counts = torch.tensor([list(labels).count(label) for label in set(labels)], dtype=torch.float64)
    shares = counts / counts.sum()
    return float((-(shares * shares.log()).sum()).exp())
