"""The hall of a set of videos: subjects driven by other videos, reconstructions beside the real ones, new subjects."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...data import SequenceSet, Video, prepare
from ...generation.animation import Animator, load_animator
from ...generation.volumes import load_models
from ...stages import diffusion_settings
from ...store import runs
from ..schema import SYSTEMS
from ..viewer import Exhibit
from .contents import Hall, Picture, Row, Work
from .finding import Found, check_data
from .pictures import SIZE, as_bytes

SUBJECTS, FRAMES = 4, 28  # of a row, and of a film at most
SEED = 0


def hall(found: Found, device: str, step: Callable[[str], None]) -> Hall:
    """Everything that is shown of a set of videos. step: told what is done, once for each row."""
    config, data = found.config, prepare(found.config.data)
    check_data(found, data.digest)
    animator = load_animator(config, data, device, found.runs[0])
    videos = list(data.split("train"))
    rows, facts = [], (("run of stage 1", animator.run.digest),)
    for title, make in (("Driven by another video", _driven), ("Reconstructions", _reconstructed)):
        step(f"{found.name}: {title}")
        rows.append(make(title, animator, videos, facts))
    second = runs.matching(f"{data.name}-diffusion", diffusion_settings(config, animator.run.digest))
    if second:
        title = f"{SYSTEMS['ours']}, latent diffusion"
        step(f"{found.name}: {title}")
        facts += (("run of stage 2", next(iter(second))), ("seed", str(SEED)))
        rows.append(_generated(title, animator, data, videos, facts))
    return Hall(
        key=found.name,
        title=found.name.replace("_", " ").capitalize(),
        profile=config.profile,
        size=(config.data.resolution, config.autodecoder.resolution),
        objects=len(videos),
        rows=tuple(rows),
        names=(found.name, data.name, *(video.key for video in videos)),
        runs=tuple(dict.fromkeys(value for row in rows for label, value in row.facts if label.startswith("run"))),
    )


def _driven(title: str, animator: Animator, videos: list[Video], facts: tuple) -> Row:
    works = []
    for i in range(min(SUBJECTS, len(videos))):
        subject, driving = videos[i], videos[(i + max(1, len(videos) // 2)) % len(videos)]
        volume = animator.volume(i)
        text = f"{subject.key} moves as {driving.key} does."
        beside = (_video("Driving video", driving), _still("The subject's own video", subject))
        works.append(_work(f"{subject.key} driven by {driving.key}", animator, volume, driving, text, beside))
    note = "The poses of the driving video, frame by frame, on the subject's volume (Sec. 3.2)."
    return Row("driven", title, tuple(works), facts, note)


def _reconstructed(title: str, animator: Animator, videos: list[Video], facts: tuple) -> Row:
    works = []
    for i, video in enumerate(videos[:SUBJECTS]):
        text = f"{video.key} in the poses read from its own frames, the last of which training never saw."
        works.append(_work(video.key, animator, animator.volume(i), video, text, (_video("Real video", video),)))
    return Row("reconstructions", title, tuple(works), facts)


def _generated(title: str, animator: Animator, data: SequenceSet, videos: list[Video], facts: tuple) -> Row:
    system = load_models(animator.config, data, animator.device.type).ours()
    works = []
    for i, volume in enumerate(system(range(SUBJECTS), SEED)):
        driving = videos[i % len(videos)]
        beside = (_video("Driving video", driving),)
        works.append(_work(f"Sample {i}", animator, volume, driving, f"It moves as {driving.key} does.", beside))
    return Row("ours", title, tuple(works), facts, "New subjects in the motion of training videos.")


def _work(
    name: str, animator: Animator, volume: Tensor, driving: Video, text: str, beside: tuple[Picture, ...]
) -> Work:
    config = animator.config
    clip = animator.animate(volume, _chosen(driving), resolution=SIZE)
    exhibit = Exhibit(
        name,
        volume[:4].cpu(),
        f"{text} Here it is in the canonical pose, and does not move.",
        samples=max(96, config.reconstruction.num_samples),
        azimuth=0.0,
        elevation=0.0,
        field_of_view=config.data.field_of_view,
        distance=config.data.camera_distance,
    )
    return Work(name, as_bytes(clip.colour), f"{name}, moving", text, beside, exhibit)


def _chosen(video: Video) -> Tensor:
    """At most `FRAMES` frames of a video, evenly over it, (t, h, w, 3) uint8."""
    return video.frames[:: -(-len(video.frames) // FRAMES)]


def _video(label: str, video: Video) -> Picture:
    return Picture(label, _chosen(video), f"{label}: {video.key}")


def _still(label: str, video: Video) -> Picture:
    return Picture(label, torch.as_tensor(video.frames[:1]), f"{label}: {video.key}, its first frame")
