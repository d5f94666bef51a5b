"""Scores of learned poses, parts and animations on videos with known ground truth (beyond the paper).

Silhouettes and PSNR are of held-out frames of training videos, which show a known subject in poses that never trained.
Parts and poses are compared with the ground truth, which no model has seen (`metrics.poses`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ..articulation.fitting import fit_poses
from ..articulation.poses import PoseError, compose, fixed_camera
from ..data import Truth, Video
from ..data.video import NO_PART
from ..diffusion.sampling import object_generators
from ..generation.animation import Animator, Clip
from .metrics.images import foreground_psnr, has_foreground, psnr
from .metrics.poses import adjusted_rand_index, match_parts, normal_error, pose_errors, silhouette_iou

if TYPE_CHECKING:
    from ..generation.volumes import System

ROOT = 0  # the part that all others hang on comes first in the truth


@dataclass(frozen=True)
class VideoScores:
    """One training video. Errors are medians over frames; of NaN are those that there is nothing to measure on."""

    key: str
    iou: float  # of silhouettes on held-out frames
    psnr: float  # dB, on held-out frames
    psnr_foreground: float
    normals_deg: float  # mean angle to the true normals on held-out frames, where both silhouettes are
    ari: float  # of learned against true parts, over the foreground of all frames
    root_rotation_deg: float  # of the learned part that covers most of the root, one alignment for this video
    root_translation: float  # in the truth's units, half an edge of its cube
    part_rotation_deg: tuple[float, ...]  # of each true part, against the learned one that covers most of it
    part_translation: tuple[float, ...]
    part_with_root_rotation_deg: tuple[float, ...]  # of each true part, against the learned one that covers the root


def score_video(animator: Animator, video: Video, truth: Truth) -> VideoScores:
    """Scores of a training video. Raises PoseError where it has no held-out frames."""
    if video.train_frames >= len(video):
        raise PoseError(f"video {video.key!r} has no held-out frames, expected some to be scored on")
    clip = animator.reconstruct(video.key)
    held = slice(video.train_frames, None)
    frames, masks = video.frames[held].float() / 255, video.masks[held].float() / 255
    _say_bare(video.key, masks)
    learned, true = part_labels(clip, truth)
    both = shown_by_both(clip, truth)
    matches = match_parts(learned, true, truth.poses.shape[1])
    cameras = part_cameras(animator, clip.poses)
    errors = [
        pose_errors(cameras[:, own], truth.poses[:, part]) if own >= 0 else None for part, own in enumerate(matches)
    ]
    root = matches[ROOT]
    with_root = tuple(
        pose_errors(cameras[:, root], truth.poses[:, part]).rotation.median().item()
        if root >= 0 <= own
        else float("nan")
        for part, own in enumerate(matches)
    )
    rotation = tuple(e.rotation.median().item() if e else float("nan") for e in errors)
    translation = tuple(e.translation.median().item() if e else float("nan") for e in errors)
    return VideoScores(
        video.key,
        _mean_iou(clip.occupancy[held], masks),
        psnr(clip.colour[held], frames).mean().item(),
        foreground_psnr(clip.colour[held], frames, masks).item(),
        normal_error(clip.normals[held], truth.normals[held] / 127.5 - 1, both[held]).nanmean().item(),
        adjusted_rand_index(learned, true) if len(true) else 0.0,
        rotation[ROOT],
        translation[ROOT],
        rotation,
        translation,
        with_root,
    )


def score_videos(
    animator: Animator, truth_of: Callable[[str], Truth], keys: Sequence[str] | None = None
) -> list[VideoScores]:
    """`score_video` of training videos, all of them by default."""
    videos = [v for v in animator.data.split("train") if keys is None or v.key in keys]
    return [score_video(animator, v, truth_of(v.key)) for v in tqdm(videos, desc="videos", disable=None)]


def fitted_psnr(animator: Animator, video: Video, steps: int, every: int = 1) -> float:
    """PSNR in dB of every n-th held-out frame of a training video in poses that `fitting.fit_poses` moved to it: what
    volume and skinning can show, whatever the predictor reads. Raises PoseError where there are no such frames."""
    held = video.frames[video.train_frames :][::every]
    if not len(held):
        raise PoseError(f"video {video.key!r} has no held-out frames, expected some to be scored on")
    volume, samples = animator.volume(video.key), animator.config.reconstruction.num_samples
    camera = fixed_camera(animator.config.articulation, held.shape[1])
    poses = fit_poses(volume, animator.poses(held), held, camera, samples, steps)
    return psnr(animator.animate(volume, poses).colour, held.float() / 255).mean().item()


def common_root_errors(animator: Animator, truth_of: Callable[[str], Truth], keys: Sequence[str]) -> Tensor:
    """Root rotation errors (frames of all videos,) in degrees, with one alignment for all subjects together.

    Stricter than a video at a time: it asks that the canonical frame means the same for each subject.
    """
    learned, true = [], []
    for key in keys:
        truth, clip = truth_of(key), animator.reconstruct(key)
        [own, *_] = match_parts(*part_labels(clip, truth), truth.poses.shape[1])
        if own >= 0:
            learned.append(part_cameras(animator, clip.poses)[:, own])
            true.append(truth.poses[:, ROOT])
    if not learned:
        raise PoseError(f"of {len(keys)} videos none has a learned part where its root is seen, expected one at least")
    return pose_errors(torch.cat(learned), torch.cat(true)).rotation


@dataclass(frozen=True)
class AnimationScores:
    """A rendered animation against the true pictures, means over frames; NaN where there is nothing to measure."""

    psnr_foreground: float  # dB, over the true silhouette
    iou: float


def score_animation(clip: Clip, truth: Video) -> AnimationScores:
    """An animation against the true render of the same subject in the driving poses.

    Raises PoseError for another number or size of frames.
    """
    if clip.colour.shape != truth.frames.shape:
        raise PoseError(
            f"the animation is {tuple(clip.colour.shape)}, expected {tuple(truth.frames.shape)} as the true frames"
        )
    frames, masks = truth.frames.float() / 255, truth.masks.float() / 255
    _say_bare(truth.key, masks)
    return AnimationScores(foreground_psnr(clip.colour, frames, masks).item(), _mean_iou(clip.occupancy, masks))


def _mean_iou(occupancy: Tensor, masks: Tensor) -> float:
    """Mean of `silhouette_iou` over the frames (n, h, w) in which either silhouette has a pixel, NaN without any."""
    either = has_foreground(occupancy) | has_foreground(masks)
    return silhouette_iou(occupancy[either], masks[either]).mean().item()


def _say_bare(key: str, masks: Tensor) -> None:
    """Warn of frames (n, h, w) that are left out of scores of the foreground, since they have none."""
    if bare := int((~has_foreground(masks)).sum()):
        warnings.warn(
            f"{bare} of {len(masks)} scored frames of video {key!r} have no foreground pixel and are left out of IoU "
            "and psnr_foreground",
            stacklevel=3,
        )


def render_in_random_poses(animator: Animator, system: System, count: int, views: int, seed: int) -> Tensor:
    """Samples 0 ... count - 1 of a system as Sec. 4.2 renders generated videos, (count, views, h, w, 3) in [0, 1].

    Each is seen in `views` poses of random training frames, by the fixed camera. system: such as
    `generation.Models.ours()` or `direct_latent_sampling(...)`, volumes with their skinning logits.
    """
    videos = animator.data.split("train")
    pictures = []
    for index in tqdm(range(count), desc="samples", disable=None):
        [generator] = object_generators(seed + 1_000_003, [index])  # another stream than the sample's own noise
        frames = []
        for _ in range(views):
            video = videos[int(torch.randint(len(videos), (), generator=generator))]
            frames.append(video.frames[int(torch.randint(video.train_frames, (), generator=generator))])
        [volume] = system([index], seed)
        pictures.append(animator.animate(volume, torch.stack(frames)).colour)
    return torch.stack(pictures)


def shown_by_both(clip: Clip, truth: Truth) -> Tensor:
    """The overlap of both silhouettes, (t, h, w)."""
    return (clip.occupancy >= 0.5) & (truth.parts != NO_PART)


def part_labels(clip: Clip, truth: Truth) -> tuple[Tensor, Tensor]:
    """The learned and the true part of every pixel that both show, (n,) each; none where the silhouettes are apart."""
    if clip.parts.shape[:3] != truth.parts.shape:
        raise PoseError(f"parts are {tuple(clip.parts.shape[:3])}, expected {tuple(truth.parts.shape)} as the truth's")
    both = shown_by_both(clip, truth)
    return clip.parts.argmax(-1)[both], truth.parts[both].long()


def part_cameras(animator: Animator, poses: Tensor) -> Tensor:
    """Learned poses (t, p, 3, 4) as maps from each part to the camera, OpenCV axes."""
    return compose(fixed_camera(animator.config.articulation, 2).world_to_camera[0], poses)
