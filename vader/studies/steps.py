"""Table 3: diffusion in 16, 32 and 64 steps, and direct latent sampling, against views of the training objects.

Sec. 4.2: five random views of each sample are compared with five views of each training object. Subjects of videos are
seen in five poses of training frames instead, as in Figure 2.

Both stages can be trained from several seeds. Each training has direct latent sampling from its own autodecoder, and
the claims are decided over all of them (`KernelDistance.ratio_over_trainings`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..baselines.direct_latent_sampling import PRIORS, direct_latent_sampling
from ..data import SequenceSet
from ..evaluation import pictures
from ..evaluation.metrics.distribution import Estimate, KernelDistance, Trainings
from ..evaluation.metrics.features import Features
from ..evaluation.metrics.neighbours import memorisation
from ..evaluation.pictures import Mean, distance_rows, heldout_scores, mean_over_objects
from ..evaluation.text import effective_number
from ..generation.animation import load_animator
from ..generation.volumes import Models, System
from ..report import decide
from ..settings.experiment import EvaluationConfig, Experiment
from .videos import animation

STEPS = (16, 32, 64)
VIEWS = 5
Name = tuple[str, str]  # system, variant
REPEATED: Name = ("ours", "reconstruction")


def protocol(config: Experiment) -> Experiment:
    """The experiment as Table 3 scores it: five views of each object, real or generated."""
    return config.replace(evaluation=dict(views=VIEWS, real_views=VIEWS))


def systems(models: Models) -> dict[Name, System]:
    """{("ours", "64 steps"): ..., ("dls", "standard"): ...}, on one autodecoder."""
    found: dict[Name, System] = {}
    for steps in STEPS:
        config = models.config.replace(sampler=dict(num_steps=steps))
        found["ours", f"{steps} steps"] = dataclasses.replace(models, config=config).ours()
    return found | {("dls", prior): direct_latent_sampling(models, prior) for prior in PRIORS}


def trainings(config: Experiment, count: int) -> list[Experiment]:
    """The same experiment from `count` seeds of training, its own and those after it."""
    return [config.replace(seed=config.seed + number) for number in range(count)]


def named(trained: Sequence[Models]) -> list[str]:
    """What rows of each training add to their variant; nothing where there is one only."""
    return [f", training seed {models.config.seed}" for models in trained] if len(trained) > 1 else [""]


def reconstructed(trained: Sequence[Models]) -> Iterator[tuple[str, str, Mean]]:
    """Held-out views of reconstructed training objects: (measure, what its variant adds, mean over objects).

    Of several trainings, their mean for each object comes first, with the interval over objects, and then each.
    """
    scores = [heldout_scores(models) for models in trained]
    each = list(zip(named(trained), scores, strict=True))
    mean = {name: torch.stack([found[name] for found in scores]).mean(0) for name in scores[0]}
    for suffix, found in [("", mean), *each] if len(each) > 1 else each:
        for measure, values in found.items():
            yield measure, suffix, mean_over_objects(values)


def compared(trained: Sequence[Models], chosen: Sequence[Name] = ()) -> tuple[Features, dict[Name, Trainings]]:
    """Features of the training objects' views, and of each system's samples: by training, by sampling seed.

    ("ours", "reconstruction") is what a second stage that repeats the training objects would reach: one set of each
    training. chosen: names of systems, by default all.
    """
    config, data = trained[0].config, trained[0].data
    if config.articulated:
        real = animation.real_features(data, config.evaluation.features)
    else:
        real = pictures.real_features(data, config.evaluation)
    found: dict[Name, list[list[Features]]] = {}
    for models, suffix in zip(trained, named(trained), strict=True):
        for name, sets in _sampled(models, suffix, chosen):
            found.setdefault(name, []).append(sets)
    return real, found


def _sampled(models: Models, suffix: str, chosen: Sequence[Name]) -> Iterator[tuple[Name, list[Features]]]:
    """Features of one training's systems, and of its reconstructions."""
    drawn = {name: system for name, system in systems(models).items() if not chosen or name in chosen}
    labels = {name: " ".join(name) + suffix for name in drawn}
    if models.config.articulated:
        animator = load_animator(models.config, models.data)
        for name, system in drawn.items():
            yield name, animation.sample_features(animator, system, labels[name])
        subjects = animation.training_subjects(animator)
        yield REPEATED, animation.sample_features(animator, subjects, "reconstruction", seeds=(0,))
        return
    for name, system in drawn.items():
        yield name, pictures.sample_features(models, system, labels[name])
    yield REPEATED, [pictures.reconstruction_features(models)]


def rows(sets: Trainings, real: Features, config: EvaluationConfig) -> tuple[list[dict], list[list[dict]]]:
    """Rows of all trainings of a system together, and those of each (`distance_rows`).

    Together they have the mean over trainings and the standard deviation over them. The kernel distance has the
    interval of `estimate_over_trainings`. The Fréchet distance is too slow for that. The square of its half width is
    the mean of those of the trainings, as if these erred as one, since they share the real objects, and beside it that
    of the mean of as many trainings.
    """
    each = [distance_rows(one, real, config) for one in sets]
    if len(each) == 1:
        return each[0], each
    kernel, together = KernelDistance(real).estimate_over_trainings(sets), []
    for found in zip(*each, strict=True):
        values = torch.tensor([row["value"] for row in found], dtype=torch.float64)
        mean, std, scale = float(values.mean()), float(values.std(correction=1)), found[0]["scale"]
        low, high = scale * kernel.low, scale * kernel.high
        if found[0]["metric"] in ("fid", "fd"):
            within = sum(((row["high"] - row["low"]) / 2) ** 2 for row in found) / len(found)
            half = (within + pictures.INTERVAL**2 * std**2 / len(found)) ** 0.5
            low, high = mean - half, mean + half
        notes = "; ".join(dict.fromkeys(row["note"] for row in found))
        note = f"mean and deviation of {len(found)} training seeds, {found[0]['n']} sampling seeds each; {notes}"
        together.append(found[0] | dict(value=mean, std=std, low=low, high=high, n=len(found), note=note))
    return together, each


def stronger_prior(distance: KernelDistance, features: dict[Name, Trainings]) -> str:
    """The prior of direct latent sampling with the smaller mean kernel distance."""
    return min(PRIORS, key=lambda prior: distance.estimate_over_trainings(features["dls", prior]).value)


@dataclass(frozen=True)
class Comparison:
    """A ratio of kernel distances: over all trainings, and of each alone."""

    against: str
    ratio: Estimate
    each: tuple[float, ...]

    def told(self, seeds: Sequence[int]) -> str:
        """The ratio in words; seeds: of the trainings."""
        text = f"{self.ratio.value:.3f} times that of {self.against} (95 % interval {self.ratio.low:.3f} to "
        text += f"{self.ratio.high:.3f})"
        if len(self.each) == 1:
            return text
        alone = ", ".join(f"{value:.3f} with training seed {s}" for value, s in zip(self.each, seeds, strict=True))
        return f"{text} over {len(seeds)} trainings; {alone}"


def ratios(real: Features, features: dict[Name, Trainings]) -> dict[str, Comparison]:
    """The table's two comparisons as ratios of kernel distances, below 1 where the claim is right."""
    distance = KernelDistance(real)
    prior = stronger_prior(distance, features)
    ours = features["ours", f"{STEPS[-1]} steps"]
    others = {
        "ours_beats_dls": (f"direct latent sampling, {PRIORS[prior]}", features["dls", prior]),
        "more_steps_help": (f"{STEPS[0]} steps", features["ours", f"{STEPS[0]} steps"]),
    }
    return {
        claim: Comparison(
            against,
            distance.ratio_over_trainings(ours, other),
            tuple(distance.ratio(*pair, resamples=2).value for pair in zip(ours, other, strict=True)),
        )
        for claim, (against, other) in others.items()
    }


def categories_of(data: SequenceSet) -> list[str]:
    """Category of each training object, as its attributes say; all are of one kind where they do not."""
    return [item.attributes.get("category") or data.name for item in data.split("train")]


def spread(
    samples: Features, real: Features, categories: Sequence[str], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Effective number of categories of the samples' nearest training objects, its 95 % interval, and that of the
    training objects themselves. Resampling lowers an entropy, so the interval is shifted to the estimate."""
    nearest = memorisation(samples, real).sample_neighbours.tolist()
    labels = [categories[index] for index in nearest]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(labels), (resamples, len(labels)), generator=generator).tolist()
    values = torch.tensor([effective_number([labels[i] for i in row]) for row in drawn], dtype=torch.float64)
    value = effective_number(labels)
    low, high = (values.quantile(q).item() - values.median().item() + value for q in (0.025, 0.975))
    return value, low, high, effective_number(categories)


def varied(real: Features, samples: Trainings, categories: Sequence[str], name: str) -> tuple[str, str]:
    """Verdict and evidence on 'samples are of at least half as many kinds as the training objects' (`spread`).

    Of several trainings the least varied one decides, by the samples of its first sampling seed. A set of one category
    decides nothing.
    """
    if len(set(categories)) == 1:
        return "not_tested", f"{name} has one category, which cannot tell whether one model holds many"
    value, low, high, most = min(spread(sets[0], real, categories) for sets in samples)
    least = f", the least of {len(samples)} trainings" if len(samples) > 1 else ""
    told = f"samples have {value:.1f} categories in effect (95 % interval {low:.1f} to {high:.1f}){least}"
    return decide(value - most / 2, low - most / 2, high - most / 2), f"{told}, training objects {most:.1f}; {name}"
