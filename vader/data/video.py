"""Monocular videos of one subject each (`Video`), and the ground truth about them, hidden from the model (`Truth`).

In a prepared set (`vader.data.prepared`) a video is a folder

    object.json        split, caption, attributes, train_frames
    frames/000.png ... RGB, the subject composited on black
    masks/000.png ...  coverage of the subject, 0 to 255
    truth/             only of rendered videos, read by `load_truth` and by nothing that trains
        truth.json     names of the parts, intrinsics
        poses.npy      (t, p, 4, 4) float32
        parts/000.png  which part a pixel shows
        normals/000.png  the surface's normal there

The camera is UVA's (`UVA_CAMERA` in vader/settings/videos.py): field of view 0.175 rad, the subject between depths 9.5
and 11.5. It stands still 10.5 before the centre of the cube [-1, 1]^3. The subject is in that cube, y up and, on the
whole, facing the camera. Camera axes are OpenCV's (x right, y down, z forward).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..rendering.cameras import Cameras, intrinsics_from_fov
from ..settings.checks import ConfigError
from ..settings.experiment import DataConfig
from .prepared import (
    FACTS,
    DataError,
    Kind,
    SequenceSet,
    check_identity,
    facts,
    load_prepared,
    mean_levels,
    new_folder,
    pixel_checksum,
    read_image,
    read_json,
    write_json,
    write_pictures,
)

NO_PART = 255  # in part maps: background


@dataclass(frozen=True, eq=False)
class Video:
    """`t` frames of one subject. Frames are uint8 and as composited on black, masks are antialiased coverage.

    Frames [0, train_frames) are for training, the others only for evaluation.
    """

    key: str
    frames: Tensor  # (t, h, w, 3) uint8
    masks: Tensor  # (t, h, w) uint8, 255 = foreground
    train_frames: int
    split: str = "train"  # "train" | "test" (held-out identity)
    caption: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)  # JSON values: creator, licence, factors, ...

    def __len__(self) -> int:
        return self.frames.shape[0]

    def validate(self, source: Path | str | None = None) -> Video:
        """Return self, or raise `DataError` naming `source` (the folder it came from), the object and the field."""
        name = f"object {self.key!r}" if source is None else f"{source}: object {self.key!r}"
        check_identity(name, self.key, self.split)
        if self.frames.dtype != torch.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            got = f"{tuple(self.frames.shape)} {self.frames.dtype}"
            raise DataError(f"{name}: frames are {got}, expected (t, h, w, 3) torch.uint8")
        if len(self) < 2:
            raise DataError(f"{name}: frames are {len(self)}, expected at least 2: poses are learned from motion")
        if self.masks.dtype != torch.uint8 or self.masks.shape != self.frames.shape[:3]:
            got = f"{tuple(self.masks.shape)} {self.masks.dtype}"
            raise DataError(
                f"{name}: masks are {got}, expected {tuple(self.frames.shape[:3])} torch.uint8 as the frames"
            )
        if not 1 <= self.train_frames <= len(self):
            raise DataError(f"{name}: train_frames is {self.train_frames}, expected 1 to {len(self)}, its frames")
        empty = (self.masks.flatten(1).amax(1) == 0).nonzero()
        if len(empty):
            raise DataError(f"{name}, frame {int(empty[0])}: mask is empty, expected some foreground in each frame")
        return self

    def pixel_checksum(self) -> str:
        """SHA-256 of frames and masks."""
        return pixel_checksum(self.frames, self.masks)

    def mean_levels(self) -> list[float]:
        """Mean r, g, b and mask levels, 0 to 255."""
        return mean_levels(self.frames, self.masks)


@dataclass(frozen=True, eq=False)
class Truth:
    """The ground truth of a rendered video, for evaluation only."""

    parts: Tensor  # (t, h, w) uint8: index of the part that most of the pixel's coverage shows, NO_PART without any
    poses: Tensor  # (t, p, 4, 4) float32: each part's own frame to camera, rigid, OpenCV axes
    intrinsics: Tensor  # (3, 3) float32, pixels
    names: tuple[str, ...]  # of the p parts
    normals: Tensor  # (t, h, w, 3) uint8: 127.5 (1 + n), n the mean normal of what the pixel shows, in the world

    def validate(self, video: Video, source: Path | str | None = None) -> Truth:
        """Return self, or raise `DataError` naming `source`, the object and the field that does not fit `video`."""
        name = f"truth of {video.key!r}" if source is None else f"{source}: truth of {video.key!r}"
        p = len(self.names)
        for what, shape, dtype in (
            ("parts", tuple(video.masks.shape), torch.uint8),
            ("poses", (len(video), p, 4, 4), torch.float32),
            ("intrinsics", (3, 3), torch.float32),
            ("normals", tuple(video.frames.shape), torch.uint8),
        ):
            value = getattr(self, what)
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise DataError(f"{name}: {what} are {tuple(value.shape)} {value.dtype}, expected {shape} {dtype}")
        if not (torch.isfinite(self.poses).all() and torch.isfinite(self.intrinsics).all()):
            raise DataError(f"{name}: poses or intrinsics have a NaN or infinite entry, expected finite numbers")
        rotation = self.poses[..., :3, :3].double()
        error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax()
        rigid = (self.poses[..., 3, :] == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()
        if error > 1e-4 or (torch.linalg.det(rotation) < 0).any() or not rigid:
            raise DataError(f"{name}: poses are not all rigid motions (|R R^T - 1| up to {error:.1e}), expected that")
        indices = self.parts[self.parts != NO_PART]
        if len(indices) and int(indices.max()) >= p:
            raise DataError(f"{name}: parts have index {int(indices.max())}, expected below {p}, or {NO_PART}")
        return self


# ---------------------------------------------------------------------------------------- camera and split


def video_camera(config: DataConfig, frames: int = 1) -> Cameras:
    """The fixed camera of a video, once for each frame: in the world (y up) at (0, 0, camera_distance), looking back
    along -z. World to camera is a half turn about x, then `camera_distance` along z."""
    r = config.resolution
    pose = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, config.camera_distance]])
    intrinsics = intrinsics_from_fov(config.field_of_view, r, r)
    return Cameras(pose.expand(frames, 3, 4).contiguous(), intrinsics.expand(frames, 3, 3).contiguous(), r, r)


def part_poses(world: np.ndarray, camera: Cameras) -> Tensor:
    """Truth.poses from rigid part-to-world matrices (t, p, 3 or 4, 4), float64, and the fixed camera."""
    view = np.vstack([camera.world_to_camera[0].double().numpy(), [0, 0, 0, 1]])
    whole = np.broadcast_to(np.eye(4), (*world.shape[:2], 4, 4)).copy()
    whole[..., :3, :] = world[..., :3, :]
    return torch.from_numpy(view @ whole).float()


def stored_normals(normals: Tensor) -> Tensor:
    """Truth.normals of normals (t, h, w, 3) in the world."""
    return (127.5 * (1 + normals)).round().to(torch.uint8)


def rendered_video(
    config: DataConfig,
    key: Callable[[int], str],
    identity: int,
    motion: int,
    frames: Tensor,
    masks: Tensor,
    caption: str,
    **attributes: str,
) -> Video:
    """The subject of video `identity` of a generated set moving as in video `motion`. key: of a video's number."""
    return Video(
        key=key(identity) if identity == motion else f"{key(identity)}-as-{key(motion)}",
        frames=frames,
        masks=masks,
        train_frames=train_share(config, len(frames)),
        split="train" if identity < config.num_objects else "test",
        caption=caption,
        attributes=attributes | {"licence": "CC0-1.0"},
    )


def train_share(config: DataConfig, frames: int) -> int:
    """How many of a video's first frames are for training: all but the last share that the settings hold out."""
    return frames - frames * config.heldout_views // (config.train_views + config.heldout_views)


def check_video_settings(config: DataConfig, known: Items[str], what: str) -> None:
    """Raise ConfigError for a data set that is not of `known`, or for settings that no video can have."""
    if config.name not in known:
        raise ConfigError(f"data set {config.name!r} is not {what}; known: {', '.join(known)}")
    counts = ("num_objects", "train_views", "resolution", "supersampling")
    for name, least in [(count, 1) for count in counts] + [("heldout_objects", 0), ("heldout_views", 0)]:
        if (value := getattr(config, name)) < least:
            raise ConfigError(f"data set {config.name}: {name} is {value}, expected at least {least}")
    if config.train_views + config.heldout_views < 2:
        raise ConfigError(f"data set {config.name}: train_views and heldout_views are 1 frame, expected at least 2")
    if config.camera_distance <= 1:
        raise ConfigError(
            f"data set {config.name}: camera_distance is {config.camera_distance}, expected more than 1, half the cube"
        )


# ---------------------------------------------------------------------------------------- one video on disk


def save_video(video: Video, folder: Path, truth: Truth | None = None) -> None:
    """Write one video to a new `folder`, which appears complete or not at all. Raises DataError where it is invalid
    or cannot be written."""
    video.validate()
    if truth is not None:
        truth.validate(video)
    with new_folder(folder, video.key) as partial:
        write_pictures(partial / "frames", video.frames)
        write_pictures(partial / "masks", video.masks)
        if truth is not None:
            write_pictures(partial / "truth" / "parts", truth.parts)
            write_pictures(partial / "truth" / "normals", truth.normals)
            np.save(partial / "truth" / "poses.npy", truth.poses.numpy(), allow_pickle=False)
            known = {"names": list(truth.names), "intrinsics": truth.intrinsics.tolist()}
            write_json(partial / "truth" / "truth.json", known)
        write_json(partial / "object.json", facts(video) | {"train_frames": video.train_frames})


def load_video(folder: Path) -> Video:
    """Read one video back, validated, without its truth. Raises DataError naming the file, object and field."""
    key = folder.name
    stored = read_json(folder / "object.json", key, (*FACTS, "train_frames"))
    frames = _read_pictures(folder / "frames", key, "frame", "RGB", None, None)
    count, h, w, _ = frames.shape
    return Video(
        frames=torch.from_numpy(frames),
        masks=torch.from_numpy(_read_pictures(folder / "masks", key, "mask", "L", count, (h, w))),
        train_frames=stored["train_frames"],
        **{k: stored[k] for k in FACTS},
    ).validate(folder)


def load_truth(folder: Path) -> Truth:
    """Read what is known of the video in `folder` (`objects/<key>` of a set). Raises DataError where there is none,
    or it does not fit the video."""
    folder = Path(folder)
    video, hidden = load_video(folder), folder / "truth"
    if not hidden.is_dir():
        raise DataError(f"{hidden}: object {video.key!r}: nothing is known of its parts and poses (a filmed video?)")
    known = read_json(hidden / "truth.json", video.key, ("names", "intrinsics"))
    try:
        poses, intrinsics = np.load(hidden / "poses.npy", allow_pickle=False), torch.tensor(known["intrinsics"])
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise DataError(f"{hidden}: object {video.key!r}: poses or intrinsics cannot be read ({error})") from error
    parts, normals = (
        torch.from_numpy(
            _read_pictures(hidden / layer, video.key, what, mode, len(video), tuple(video.masks.shape[1:]))
        )
        for layer, what, mode in (("parts", "part map", "L"), ("normals", "normal map", "RGB"))
    )
    truth = Truth(parts, torch.from_numpy(poses), intrinsics, tuple(known["names"]), normals)
    return truth.validate(video, hidden)


def _read_pictures(
    folder: Path, key: str, what: str, mode: str, count: int | None, size: tuple[int, int] | None
) -> np.ndarray:
    """Pictures 000.png, 001.png, ... of one size; `count` of them, or all there are."""
    found = len(list(folder.glob("*.png")))
    if found == 0 or count not in (None, found):
        raise DataError(f"{folder}: object {key!r}: {found} files, expected {'some' if count is None else count}")
    pictures: list[np.ndarray] = []
    for number in range(found):
        pixels = read_image(folder / f"{number:03d}.png", key, f"frame {number}: {what}", mode, size, "first frame")
        size = pixels.shape[:2]
        pictures.append(pixels)
    return np.stack(pictures)


def _departure(video: Video, config: DataConfig) -> str | None:
    """How a video departs from its set's settings. Filmed videos have any number of frames, split in their share."""
    if tuple(video.frames.shape[1:3]) != (config.resolution, config.resolution):
        return f"frames are not {config.resolution}x{config.resolution} pixels"
    if video.train_frames != (expected := train_share(config, len(video))):
        return f"train_frames is {video.train_frames}, expected {expected} of {len(video)}"
    return None


VIDEOS = Kind("videos", save_video, load_video, _departure)


def load_videos(folder: Path) -> SequenceSet[Video]:
    """Load a complete prepared set of videos, without their truth. Raises DataError naming what is missing, broken or
    altered."""
    return load_prepared(folder, VIDEOS)


def truth_of(data: SequenceSet[Video], key: str) -> Truth:
    """The truth of a video of a prepared set, for evaluation. Raises DataError where there is none."""
    if data.folder is None:
        raise DataError(f"data set {data.name}: is in memory only, so nothing is known of {key!r}")
    return load_truth(data.folder / "objects" / key)
