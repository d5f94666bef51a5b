"""Scores of animated subjects (Fig. 2) against the ground truth and against direct latent sampling.

Training videos, poses and transferred motion are compared with the ground truth. Generated subjects are compared with
those of direct latent sampling. The notebook `figure2` shows the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from ...articulation.poses import neutral
from ...data import READERS, SequenceSet, Truth, Video
from ...diffusion.sampling import object_generators
from ...evaluation.metrics.features import Features, check_independent, extract
from ...evaluation.metrics.poses import pose_errors
from ...evaluation.metrics.surfaces import solid_parts
from ...evaluation.pictures import finite_features
from ...evaluation.poses import (
    ROOT,
    VideoScores,
    common_root_errors,
    part_cameras,
    render_in_random_poses,
    score_animation,
)
from ...generation.animation import Animator
from ...generation.volumes import System
from ...report import decide, seed_interval
from ...settings.experiment import DataConfig

VIEWS = 5  # poses of each generated and frames of each training subject that are compared (Sec. 4.2)
CHANNELS = ("colour", "depth", "normals")  # of a clip, as Fig. 2 shows them
RECONSTRUCTION = {  # variant and metric of a report's row -> field of VideoScores
    ("reconstruction", "iou"): "iou",
    ("reconstruction", "psnr"): "psnr",
    ("reconstruction, foreground", "psnr"): "psnr_foreground",
    ("reconstruction", "normal_error_deg"): "normals_deg",
    ("parts", "ari"): "ari",
    ("root, a video at a time", "rotation_error_deg"): "root_rotation_deg",
}


@dataclass(frozen=True)
class Measured:
    """A quantity of several videos, NaN where it is not defined."""

    variant: str
    metric: str
    values: tuple[float, ...]

    def finite(self) -> list[float]:
        """The values that are defined."""
        return [value for value in self.values if math.isfinite(value)]

    def row(self) -> dict | None:
        """Fields of a report's row, mean and 95 % interval over videos; None for fewer than two defined values."""
        found = self.finite()
        if len(found) < 2:
            return None
        mean, low, high = seed_interval(found)
        missing = len(self.values) - len(found)
        note = f"mean over videos; {missing} of {len(self.values)} show no subject" if missing else "mean over videos"
        names = {"variant": self.variant, "metric": self.metric}
        return names | {"value": mean, "low": low, "high": high, "n": len(found), "note": note}


def reconstruction(scores: Sequence[VideoScores]) -> list[Measured]:
    """Scores of training videos (`score_videos`) as rows of a report."""
    return [
        Measured(*names, tuple(getattr(score, field) for score in scores)) for names, field in RECONSTRUCTION.items()
    ]


def root_rotations(
    animator: Animator, truth_of: Callable[[str], Truth], scores: Sequence[VideoScores]
) -> list[Measured]:
    """Rotation errors of the root with one alignment for all scored videos, medians over the frames of a video.

    Beside them stand those of the neutral pose in every frame, which has learned nothing: with one alignment for all
    videos, and with one for each.
    """
    keys, shown = [s.key for s in scores], [s.key for s in scores if math.isfinite(s.root_rotation_deg)]
    truths = {key: truth_of(key).poses[:, ROOT] for key in keys}
    still = {key: part_cameras(animator, neutral(len(truth), 1))[:, 0] for key, truth in truths.items()}
    alone = [pose_errors(still[key], truths[key]).rotation.median().item() for key in keys]
    together = pose_errors(torch.cat(list(still.values())), torch.cat(list(truths.values()))).rotation
    learned = common_root_errors(animator, truth_of, shown) if shown else torch.zeros(0)
    of_shown = iter(_medians(learned, [len(truths[key]) for key in shown]))
    together = _medians(together, [len(truths[key]) for key in keys])
    return [
        Measured(variant, "rotation_error_deg", tuple(values))
        for variant, values in (
            ("root, all videos together", [next(of_shown) if key in shown else math.nan for key in keys]),
            ("root, all videos together, neutral pose", together),
            ("root, a video at a time, neutral pose", alone),
        )
    ]


def render_motion(config: DataConfig, identity: int, motion: int) -> tuple[Video, Truth]:
    """The subject of rendered video `identity` moving as in video `motion`, by the renderer of the set."""
    return import_module(f"...data.sets.{READERS[config.name]}", __package__).render_motion(config, identity, motion)


def number(key: str) -> int:
    """The number of a rendered video's subject, by its key."""
    return int(key.rpartition("-")[2])


def true_transfers(config: DataConfig, data: SequenceSet, pairs: Sequence[tuple[int, int]]) -> list[Video]:
    """Training subjects moving as in other training videos, (subject, driving video) each, as they should look.

    Raises ImportError where the renderer of the set lacks a package.
    """
    keys = [video.key for video in data.split("train")]
    return [render_motion(config, number(keys[subject]), number(keys[driving]))[0] for subject, driving in pairs]


def transfer(animator: Animator, pairs: Sequence[tuple[int, int]], truths: Sequence[Video]) -> list[Measured]:
    """Training subjects in the motion of other training videos against `true_transfers` of the same pairs.

    Beside it the same subjects in the neutral pose in every frame, which transfers nothing.
    """
    videos, parts = animator.data.split("train"), animator.config.autodecoder.lbs_channels
    moved, still = [], []
    for (subject, driving), true in zip(pairs, truths, strict=True):
        volume = animator.volume(subject)
        moved.append(score_animation(animator.animate(volume, videos[driving]), true))
        still.append(score_animation(animator.animate(volume, neutral(len(true), parts)), true))
    return [
        Measured(variant, metric, tuple(getattr(score, field) for score in scores))
        for variant, scores in (("animation", moved), ("animation, neutral pose", still))
        for metric, field in (("iou", "iou"), ("psnr", "psnr_foreground"))
    ]


def gain(ours: Sequence[float], other: Sequence[float], sign: int, unit: str = "") -> tuple[str, str]:
    """Whether the values of `ours` are the better ones, paired: the verdict, and the sentence that it rests on.

    sign: 1 where more is better, else -1. Pairs of which one is not defined are left out; inconclusive with fewer than
    two others. Where all of many pairs are equal, a gain fails (`decide`).
    """
    both = zip(ours, other, strict=True)
    gains = [sign * (a - b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
    counted = f"{len(gains)} of {len(ours)} pairs"
    if len(gains) < 2:
        return "inconclusive", f"measured in {counted} only"
    mean, low, high = seed_interval(gains)
    told = f"better by {mean:.3g}{unit} (95 % interval over {counted} {low:.3g} to {high:.3g})"
    return decide(mean, low, high, len(gains)), told + (", equal in each of them" if not any(gains) else "")


# ---------------------------------------------------------------------------------------------- generated subjects


def spurious_density(system: System, count: int, seed: int) -> tuple[float, ...]:
    """Share of solid voxels outside of the largest connected part, of samples 0 ... count - 1. NaN without any."""
    found = [solid_parts(system([index], seed)[0, 0]) for index in range(count)]
    return tuple(share if voxels else math.nan for voxels, share in found)


def real_features(data: SequenceSet, network: str, seed: int = 0) -> Features:
    """Features of `VIEWS` random training frames of each training video, fewer where it has fewer."""
    pictures = []
    for index, video in enumerate(data.split("train")):
        [generator] = object_generators(seed, [index])
        pictures.append(video.frames[torch.randperm(video.train_frames, generator=generator)[:VIEWS]])
    objects = torch.cat([torch.full((len(frames),), index) for index, frames in enumerate(pictures)])
    return extract(torch.cat(pictures), network, objects)


def sample_features(
    animator: Animator, system: System, name: str, seeds: Sequence[int] | None = None
) -> list[Features]:
    """Features of a system's samples in poses of training frames (Sec. 4.2), one set for each sampling seed.

    seeds: those of the experiment by default. Raises MetricError for the network that stage 1 was trained with, and
    where no sample is finite.
    """
    config = animator.config.evaluation
    check_independent(config.features, animator.config.reconstruction.perceptual_network)
    sets = []
    for seed in config.sampling_seeds if seeds is None else seeds:
        pictures = render_in_random_poses(animator, system, config.num_samples, VIEWS, seed)
        sets.append(finite_features(pictures, config.features, f"{name}, seed {seed}"))
    return sets


def training_subjects(animator: Animator) -> System:
    """The learned subjects as if a system had made them, over and over: what a second stage that repeats them gets."""
    count = len(animator.data.split("train"))
    return lambda indices, seed: torch.stack([animator.volume(index % count) for index in indices])


# ------------------------------------------------------------------------------------------------------- pictures


def picture_rows(
    animator: Animator, driving: Video, subjects: dict[str, Tensor], frames: Sequence[int]
) -> dict[str, Tensor]:
    """A block of Fig. 2: frames of the driving video, then each subject (1 + 3 + p, S, S, S) in its poses there, as
    colour, depth and normals: {row: (n, h, w, 3) in [0, 1]}."""
    shown = driving.frames[list(frames)]
    rows = {"driving video": shown.float() / 255}
    for name, volume in subjects.items():
        clip = animator.animate(volume, shown)
        rows |= {f"{name}, {channel}": clip.pictures((channel,)).float() / 255 for channel in CHANNELS}
    return rows


def spread_frames(video: Video, count: int) -> list[int]:
    """`count` of a video's frames, evenly from the first to the last; all where it has fewer."""
    return torch.linspace(0, len(video) - 1, min(count, len(video))).round().int().tolist()


def _medians(errors: Tensor, frames: Sequence[int]) -> list[float]:
    return [part.median().item() for part in errors.split(list(frames))]
