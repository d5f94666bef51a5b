"""Table 3: diffusion in 16, 32 and 64 steps, and direct latent sampling, against views of the training objects.

Sec. 4.2: five random views of each sample are compared with five views of each training object. Subjects of videos are
seen in five poses of training frames instead, as in Figure 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ..baselines.direct_latent_sampling import PRIORS, direct_latent_sampling
from ..data import SequenceSet
from ..evaluation import pictures
from ..evaluation.metrics.distribution import Estimate, KernelDistance
from ..evaluation.metrics.features import Features
from ..evaluation.metrics.neighbours import memorisation
from ..evaluation.text import effective_number
from ..generation.animation import load_animator
from ..generation.volumes import Models, System
from ..settings.experiment import Experiment
from . import animation

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


def compared(models: Models, drawn: dict[Name, System]) -> tuple[Features, dict[Name, list[Features]]]:
    """Features of the training objects' views, and of each system's samples, one set for each sampling seed.

    ("ours", "reconstruction") is what a second stage that repeats the training objects would reach: one set.
    """
    config, data = models.config, models.data
    names = {name: " ".join(name) for name in drawn}
    if config.articulated:
        animator = load_animator(config, data)
        real = animation.real_features(data, config.evaluation.features)
        found = {name: animation.sample_features(animator, drawn[name], names[name]) for name in drawn}
        subjects = animation.training_subjects(animator)
        return real, found | {REPEATED: animation.sample_features(animator, subjects, "reconstruction", seeds=(0,))}
    real = pictures.real_features(data, config.evaluation)
    found = {name: pictures.sample_features(models, drawn[name], names[name]) for name in drawn}
    return real, found | {REPEATED: [pictures.reconstruction_features(models)]}


def stronger_prior(distance: KernelDistance, features: dict[Name, list[Features]]) -> str:
    """The prior of direct latent sampling with the smaller kernel distance."""
    return min(PRIORS, key=lambda prior: distance.estimate(features["dls", prior]).value)


def ratios(real: Features, features: dict[Name, list[Features]]) -> dict[str, tuple[str, Estimate]]:
    """The table's two comparisons as ratios of kernel distances, below 1 where the claim is right."""
    distance = KernelDistance(real)
    prior = stronger_prior(distance, features)
    ours = features["ours", f"{STEPS[-1]} steps"]
    return {
        "ours_beats_dls": (f"direct latent sampling, {PRIORS[prior]}", distance.ratio(ours, features["dls", prior])),
        "more_steps_help": (f"{STEPS[0]} steps", distance.ratio(ours, features["ours", f"{STEPS[0]} steps"])),
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
