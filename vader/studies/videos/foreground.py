"""Foreground supervision (Eq. 2) where poses are learned from video (A.2, Fig. 6): with against without.

The same trainings run with and without it, all else equal. They are scored on held-out frames whose truth is known. The
notebook `figure6` trains them. So does this command beforehand, in pieces. Exit status 75 means "run it again":

    vader study foreground --profile laptop --max-seconds 540
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...articulation.learning.one_part import rigid
from ...data import SequenceSet, Truth, Video
from ...evaluation.poses import VideoScores, score_videos
from ...generation.animation import Animator, load_animator
from ...report import decide, seed_interval
from ...settings.checks import require
from ...settings.experiment import Experiment
from ...settings.profiles import experiment
from ...settings.videos import VIDEO_SETS

SEEDS = {"smoke": 2, "laptop": 3, "gpu": 3}  # trainings of each variant
IMAGES = {"smoke": 320, "laptop": 36_000, "gpu": 200_000}  # seen by each
VARIANTS = ("with", "without")  # foreground supervision
CHANNELS = ("colour", "occupancy", "normals")  # of a clip, as Fig. 6 shows them
QUANTITIES = {"iou": 1.0, "normals_deg": -1.0}  # of VideoScores -> 1 where more is better


def base(profile: str, data: str) -> Experiment:
    """The experiment with foreground supervision. Raises ConfigError for names that are unknown, or no videos."""
    config = experiment(profile, data)
    require(config.articulated, f"{data} has no poses to learn, expected one of {', '.join(VIDEO_SETS)}")
    return rigid(config, IMAGES[profile])


def variants(config: Experiment) -> dict[str, Experiment]:
    """The two experiments of the study. The start (`articulation.start`), which knows the mean silhouette, stays.

    Raises ConfigError for an experiment without poses to learn, or without foreground supervision to leave out.
    """
    require(config.articulated, "lbs_channels is 0: the study needs an experiment on articulated subjects")
    weight = config.reconstruction.foreground_weight
    require(weight > 0, f"foreground_weight is {weight:g}: the study needs an experiment with foreground supervision")
    return {"with": config, "without": config.replace(reconstruction=dict(foreground_weight=0.0))}


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained variant and the scores of its training videos on their held-out frames."""

    variant: str
    seed: int
    animator: Animator
    scores: tuple[VideoScores, ...]

    def mean(self, quantity: str) -> float:
        """Mean of 'iou' or 'normals_deg' over the videos it is defined on. NaN where it is on none."""
        found = [value for s in self.scores if math.isfinite(value := getattr(s, quantity))]
        return math.fsum(found) / len(found) if found else math.nan

    @property
    def unseen(self) -> int:
        """Videos whose subject is nowhere as opaque as one half where it should be, so that it has no normals."""
        return sum(math.isnan(s.normals_deg) for s in self.scores)


def measure(
    config: Experiment, data: SequenceSet, truth_of: Callable[[str], Truth], seeds: Sequence[int], device: str = "auto"
) -> list[Outcome]:
    """Both variants with every seed, from the run store or trained now.

    truth_of: of a video's key, for the scores only.
    """
    outcomes = []
    for seed in seeds:
        for name, variant in variants(config.replace(seed=seed)).items():
            animator = load_animator(variant, data, device)
            outcomes.append(Outcome(name, seed, animator, tuple(score_videos(animator, truth_of))))
    return outcomes


def over_seeds(outcomes: Sequence[Outcome], variant: str, quantity: str) -> list[float]:
    """The mean of a quantity in each training of a variant, in the order of the seeds."""
    chosen = sorted((o for o in outcomes if o.variant == variant), key=lambda o: o.seed)
    return [o.mean(quantity) for o in chosen]


def gain(outcomes: Sequence[Outcome], quantity: str) -> tuple[str, str]:
    """Whether supervision improves a quantity, paired by seed: the verdict, and the sentence that it rests on.

    Inconclusive where a training has no value, as where none of its subjects is seen.
    """
    pairs = zip(*(over_seeds(outcomes, variant, quantity) for variant in VARIANTS), strict=True)
    gains = [QUANTITIES[quantity] * (a - b) for a, b in pairs]
    unseen, videos = (sum(f(o) for o in outcomes) for f in (lambda o: o.unseen, lambda o: len(o.scores)))
    note = f"; {unseen} of {videos} videos, all trainings together, do not show their subject" if unseen else ""
    if not all(map(math.isfinite, gains)):
        return "inconclusive", f"not measured in every training{note}"
    mean, low, high = seed_interval(gains)
    unit = " degrees" if quantity == "normals_deg" else ""
    sentence = f"better by {mean:.3g}{unit} (95 % interval over {len(gains)} training seeds {low:.3g} to {high:.3g})"
    return decide(mean, low, high), sentence + note


def picture_rows(outcomes: Sequence[Outcome], video: Video, truth: Truth, frames: Sequence[int]) -> dict[str, Tensor]:
    """Fig. 6 for one video: the truth, then each outcome's reconstruction, {row: (3 n, h, w, 3) in [0, 1]}.

    A row has the colour of the n frames, then their opacity, then their normals.
    """
    chosen = list(frames)
    masks = video.masks[chosen, ..., None].float() / 255
    colour, normals = (pictures[chosen].float() / 255 for pictures in (video.frames, truth.normals))
    rows = {"truth": torch.cat([colour, masks.expand_as(colour), normals * masks])}
    for outcome in outcomes:
        clip = outcome.animator.reconstruct(video.key)
        rows[outcome.variant] = torch.cat([clip.pictures((name,))[chosen].float() / 255 for name in CHANNELS])
    return rows


def experiments(profile: str, data: str, seed: int) -> list[Experiment]:
    """Both variants with every seed, in the order in which they are trained."""
    config = base(profile, data)
    seeds = range(seed, seed + SEEDS[profile])
    return [variant for s in seeds for variant in variants(config.replace(seed=s)).values()]
