"""Ten parts against one (Sec. 3.2, Eq. 8), measured on videos whose ground truth is known.

The same two stages of training run with one part in the second or with all. Agreement with the true parts is measured
at the start (`regions`), too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...articulation.learning.one_part import rigid, single
from ...articulation.learning.regions import Division
from ...articulation.poses import fixed_camera
from ...data import SequenceSet, Truth, Video
from ...data.video import NO_PART
from ...evaluation.metrics.poses import adjusted_rand_index
from ...evaluation.poses import ROOT, VideoScores, part_labels
from ...generation.animation import Animator, Clip, load_animator, palette
from ...settings.experiment import Experiment

ONE_PART = "one part"
CERTAIN = 20.0  # logit of a part that has a place to itself


def variants(config: Experiment) -> dict[str, Experiment]:
    """The two experiments: one part in both stages, and N_p in the second."""
    return {ONE_PART: single(config), f"{config.autodecoder.lbs_channels} parts": config}


def start(config: Experiment, data: SequenceSet, device: str = "auto") -> Animator:
    """The model with one part that both variants go on from."""
    return load_animator(rigid(config, config.articulation.rigid_images), data, device)


def starting_clips(animator: Animator, parts: int) -> list[Clip]:
    """Each training video as `start`, with the parts where N_p = `parts` of them are told to start."""
    videos = animator.data.split("train")
    volumes = torch.stack([animator.volume(number)[:4] for number in range(len(videos))])
    camera = fixed_camera(animator.config.articulation, animator.config.data.resolution)
    division = Division(volumes, parts, camera, animator.config.reconstruction.num_samples)
    clips = []
    for video, volume, labels in zip(videos, volumes, division.labels, strict=True):
        logits = CERTAIN * F.one_hot(labels.long(), parts).movedim(-1, 0).to(volume)
        poses = animator.poses(video).expand(-1, parts, -1, -1)
        clips.append(animator.animate(torch.cat([volume, logits]), poses))
    return clips


def agreement(clip: Clip, truth: Truth) -> float:
    """Adjusted Rand index of a clip's parts and the true ones; 0 where they show nothing in common."""
    learned, true = part_labels(clip, truth)
    return adjusted_rand_index(learned, true) if len(true) else 0.0


def limb_rotations(scores: Sequence[VideoScores]) -> tuple[list[float], list[float]]:
    """Rotation errors in degrees of the true parts that hang on the root, means over those of a video that a learned
    part covers: of that part's own pose, and of the root's, which they would have if nothing bent. NaN without any."""
    own, with_root = [], []
    for score in scores:
        pairs = list(zip(score.part_rotation_deg, score.part_with_root_rotation_deg, strict=True))
        del pairs[ROOT]
        errors = torch.tensor([pair for pair in pairs if all(map(math.isfinite, pair))]).view(-1, 2)
        for value, into in zip(errors.mean(0).tolist(), (own, with_root), strict=True):  # NaN for the mean of none
            into.append(value)
    return own, with_root


def picture_rows(
    animators: dict[str, Animator], started: Clip, video: Video, truth: Truth, frames: Sequence[int]
) -> dict[str, Tensor]:
    """A training video and what was made of it, {row: (n, h, w, 3) in [0, 1]}: colours, and parts in colours of their
    own; `started` is the video in `starting_clips`."""
    chosen, known = list(frames), truth.parts != NO_PART
    true = F.one_hot(torch.where(known, truth.parts.long(), 0), truth.poses.shape[1]).float() * known[..., None]
    rows = {"video": video.frames[chosen].float() / 255}
    clips = {name: animator.reconstruct(video.key) for name, animator in animators.items()}
    rows |= {name: clip.pictures()[chosen].float() / 255 for name, clip in clips.items()}
    rows["true parts"] = true[chosen] @ palette(truth.poses.shape[1])
    rows["where parts start"] = started.pictures(("parts",))[chosen].float() / 255
    *_, several = clips.values()
    return rows | {"learned parts": several.pictures(("parts",))[chosen].float() / 255}
