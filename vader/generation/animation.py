"""Use of a trained articulated model: reconstruct a video, drive a subject by another's motion, turn the camera,
fit a subject that never trained.

    animator = load_animator(config, data)                            # trained first where there is none
    animator.reconstruct("puppet-000003").save("same.gif")
    animator.animate(animator.generate(7), data[3]).save("new.mp4")   # a generated subject, a driving video's poses
    animator.animate(animator.volume(2), data[3], animator.turntable(60)).save("turned.gif")
    animator.animate(animator.fit(video).volume(), data[3]).save("fitted.gif")

Motion is transferred as in UVA [63]: the driving video's absolute poses, frame by frame, on the source's volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..articulation.pose_model import PoseModel, load_pose_model
from ..articulation.poses import PoseError, fixed_camera, orbit
from ..articulation.skinning import posed_views, render_posed
from ..autodecoder.inversion import Inversion, InversionError, fit_views
from ..autodecoder.losses import image_losses, perceptual_loss
from ..autodecoder.reconstruction import Autodecoder, load_autodecoder
from ..rendering.cameras import Cameras
from ..settings.autodecoder import InversionConfig
from ..settings.checks import nearest
from ..settings.experiment import Experiment
from ..store.runs import Run

if TYPE_CHECKING:
    from ..data import SequenceSet, Video


@dataclass(frozen=True, eq=False)
class Clip:
    """Rendered frames on the CPU: colour and normals (t, h, w, 3), occupancy and depth (t, h, w), parts (t, h, w, p)
    and the poses (t, p, 3, 4) they were rendered in; values as of `skinning.posed_views`."""

    colour: Tensor
    occupancy: Tensor
    depth: Tensor
    normals: Tensor
    parts: Tensor
    poses: Tensor

    def __len__(self) -> int:
        return len(self.colour)

    def pictures(self, channels: Sequence[str] = ("colour",)) -> Tensor:
        """Frames side by side, (t, h, w * channels, 3) uint8. Raises PoseError for a channel that there is not."""
        shown = [self._picture(name) for name in channels]
        return (torch.cat(shown, dim=2).clamp(0, 1) * 255).round().to(torch.uint8)

    def _picture(self, name: str) -> Tensor:
        known = ("colour", "normals", "occupancy", "depth", "parts")
        if name not in known:
            raise PoseError(f"channel {name!r} is unknown{nearest(name, list(known))}, expected one of {known}")
        seen = self.occupancy[..., None]
        if name == "colour":
            return self.colour
        if name == "normals":
            return (self.normals + seen) / 2  # black where nothing is hit
        if name == "occupancy":
            return seen.expand(-1, -1, -1, 3)
        if name == "parts":
            return self.parts @ palette(self.parts.shape[-1])
        hit = self.depth > 0
        near, far = (self.depth[hit].min(), self.depth[hit].max()) if hit.any() else (0.0, 1.0)
        shade = 1 - 0.8 * (self.depth - near) / max(float(far - near), 1e-6)  # near is bright
        return torch.where(hit, shade, 0.0)[..., None].expand(-1, -1, -1, 3)

    def save(self, file: Path | str, fps: float = 15.0, channels: Sequence[str] = ("colour",)) -> Path:
        """Write a GIF or an MP4 (needs PyAV), by the file's suffix. Raises PoseError for another one."""
        return write_video(Path(file), self.pictures(channels), fps)


def palette(parts: int) -> Tensor:
    """Colours of parts, (p, 3): hues evenly around the circle."""
    hue = 2 * torch.pi * (torch.arange(parts)[:, None] / parts + torch.arange(3) / 3)
    return 0.5 + 0.5 * torch.cos(hue)


@dataclass(frozen=True, eq=False)
class Animator:
    """A trained articulated model and the videos it was trained on."""

    config: Experiment
    data: SequenceSet
    run: Run
    autodecoder: Autodecoder
    pose_model: PoseModel
    device: torch.device

    @torch.no_grad()
    def volume(self, video: int | str) -> Tensor:
        """The subject of a training video (1 + 3 + p, S, S, S), from its learned embedding.

        Raises PoseError for a number or key that no training video has.
        """
        return self.autodecoder(torch.tensor([self._number(video)], device=self.device))[0]

    def generate(self, index: int, seed: int = 0) -> Tensor:
        """A new subject (1 + 3 + p, S, S, S): sample `index` of the latent diffusion, which is trained if need be."""
        from .volumes import load_models

        return load_models(self.config, self.data, self.device.type).ours()([index], seed)[0]

    def poses(self, driving: Video | Tensor) -> Tensor:
        """Poses (t, p, 3, 4) of a video, or of frames (t, h, w, 3), float in [0, 1] or uint8."""
        return self.pose_model.read(driving if isinstance(driving, Tensor) else driving.frames)

    def reconstruct(self, video: int | str, cameras: Cameras | None = None) -> Clip:
        """A training video rendered from its embedding, in the poses of its own frames, held-out ones included."""
        number = self._number(video)
        return self.animate(self.volume(number), self.data.split("train")[number], cameras)

    def animate(
        self, volume: Tensor, driving: Video | Tensor, cameras: Cameras | None = None, resolution: int | None = None
    ) -> Clip:
        """A subject in the motion of another video.

        Args:
            volume: (1 + 3 + p, S, S, S) of any subject of this model: learned, generated or fitted.
            driving: a video, its frames (t, h, w, 3), or poses (t, p, 3, 4) that some model has read.
            cameras: one, or one for each frame, such as `turntable`. The default is the videos' fixed camera.
            resolution: of the fixed camera's picture, the data's by default.

        Raises:
            PoseError: poses of another number of parts than the volume has, as of a model with another N_p.
        """
        is_poses = isinstance(driving, Tensor) and driving.shape[-2:] == (3, 4)
        poses = driving.to(self.device) if is_poses else self.poses(driving)
        if poses.ndim != 4 or volume.ndim != 4 or poses.shape[1] != volume.shape[0] - 4:
            raise PoseError(
                f"driving poses are {tuple(poses.shape)} and the volume is {tuple(volume.shape)}, expected "
                "(t, p, 3, 4) and (4 + p, S, S, S) of the same number of parts p"
            )
        camera = fixed_camera(self.config.articulation, resolution or self.config.data.resolution)
        cameras = camera if cameras is None else cameras
        if len(cameras) not in (1, len(poses)):
            raise PoseError(f"cameras are {len(cameras)}, expected 1 or one for each of the {len(poses)} frames")
        frames = []
        for t in tqdm(range(len(poses)), desc="frames", disable=None):
            view = cameras[t if len(cameras) > 1 else 0]
            seen = posed_views(volume[None], poses[None, t : t + 1], view, self.config.reconstruction.num_samples)
            frames.append({name: value[0, 0].cpu() for name, value in seen.items()})
        joined = {name: torch.stack([frame[name] for frame in frames]) for name in frames[0]}
        return Clip(**joined, poses=poses.cpu())

    def turntable(self, frames: int, degrees: float = 60.0, resolution: int | None = None) -> Cameras:
        """One camera per frame, swinging to both sides of the fixed one by up to half of `degrees`."""
        angles = degrees / 2 * torch.sin(2 * torch.pi * torch.arange(frames) / max(frames, 1))
        return orbit(self.config.articulation, resolution or self.config.data.resolution, angles)

    def fit(self, video: Video, settings: InversionConfig | None = None, seed: int = 0) -> Inversion:
        """A subject that never trained: UVA's two-step inversion [63] to the training frames of its video.

        As `inversion.invert`, but in the poses that the pose model reads from the frames, which stays as it is.

        Raises:
            InversionError: frames that are not square.
        """
        views = _PosedFrames(self, video)
        return fit_views(
            self.autodecoder, self.config, views, settings or InversionConfig(), seed, None, prior_weight=0.0
        )

    def _number(self, video: int | str) -> int:
        keys = [v.key for v in self.data.split("train")]
        if isinstance(video, str) and video in keys:
            return keys.index(video)
        if isinstance(video, int) and 0 <= video < len(keys):
            return video
        hint = nearest(video, keys) if isinstance(video, str) else ""
        raise PoseError(f"video {video!r} is no training video{hint}, expected 0 to {len(keys) - 1} or a key of one")


def load_animator(config: Experiment, data: SequenceSet, device: str = "auto", run: Run | None = None) -> Animator:
    """The articulated model of an experiment from the run store, trained first where there is none.

    run: of stage 1, where it is known: the run that it started from need not be there.
    """
    from ..stages import autodecoder_run
    from ..training import select_device

    if not config.articulated:
        raise PoseError("lbs_channels is 0, expected an experiment on articulated subjects")
    run, chosen = run or autodecoder_run(config, data, device), select_device(device)
    model, pose_model = load_autodecoder(run, config, chosen), load_pose_model(run, config, chosen)
    return Animator(config, data, run, model, pose_model, chosen)


class _PosedFrames:
    """The training frames of a video in the poses read from them, for `inversion.fit_views`."""

    def __init__(self, animator: Animator, video: Video):
        if video.frames.shape[1] != video.frames.shape[2]:
            h, w = video.frames.shape[1:3]
            raise InversionError(f"video {video.key!r}: frames are {w}x{h} pixels, expected square ones")
        self.settings, self.device = animator.config.reconstruction, animator.device
        shown = slice(0, video.train_frames)
        self.frames = video.frames[shown].to(self.device).float() / 255
        self.masks = video.masks[shown].to(self.device).float() / 255
        self.poses = animator.poses(video.frames[shown])
        camera = fixed_camera(animator.config.articulation, self.masks.shape[-1])
        self.rays = [x[None].to(self.device) for x in camera.rays()]
        self.perceptual = perceptual_loss(self.settings, self.device)

    def compare(self, volume: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Stage 1's loss of a volume (1, c, S, S, S) on `count` random frames, and their mean L1 in pixels."""
        chosen = torch.randperm(len(self.frames))[:count].to(self.device)
        seed, (h, w) = int(torch.randint(2**31, ())), self.masks.shape[1:]
        seen = render_posed(
            volume, self.poses[chosen][None], *self.rays, self.settings.num_samples, stratified_seed=seed
        )
        colour, occupancy = seen.colour[0].unflatten(1, (h, w)), seen.occupancy[0].unflatten(1, (h, w))
        target = self.frames[chosen]
        losses = image_losses(self.settings, self.perceptual, colour, occupancy, target, self.masks[chosen])
        return sum(losses.values()), (colour - target).abs().mean()


def write_video(file: Path, pictures: Tensor, fps: float = 15.0) -> Path:
    """Write pictures (t, h, w, 3) uint8 as a GIF or, with PyAV, an MP4. Raises PoseError for what it cannot write."""
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != torch.uint8 or len(pictures) == 0:
        raise PoseError(f"pictures are {tuple(pictures.shape)} {pictures.dtype}, expected (t, h, w, 3) torch.uint8")
    if not fps > 0:
        raise PoseError(f"fps is {fps:g}, expected a positive rate")
    if file.suffix.lower() == ".gif":
        images = [Image.fromarray(picture) for picture in pictures.numpy()]
        images[0].save(file, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    elif file.suffix.lower() == ".mp4":
        _write_mp4(file, pictures.numpy(), fps)
    else:
        raise PoseError(f"{file}: suffix is {file.suffix!r}, expected '.gif' or '.mp4'")
    return file


def _write_mp4(file: Path, pictures: np.ndarray, fps: float) -> None:
    try:
        import av
    except ImportError as error:
        raise ImportError("writing MP4 needs PyAV: pip install av; a GIF needs nothing") from error
    from fractions import Fraction

    h, w = (n - n % 2 for n in pictures.shape[1:3])  # its pixel format has one colour for 2x2 pixels
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt, stream.options = w, h, "yuv420p", {"crf": "18"}
        for picture in tqdm(pictures, desc=file.name, disable=None):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:h, :w]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
