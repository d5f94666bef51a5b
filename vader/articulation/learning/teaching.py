"""Training pictures with known poses for the keypoint predictor: frames and renderings (see `phases`).

A minute of video holds few poses that differ much from each other, and a predictor learns them by heart. Subjects can
be rendered in other poses: as a whole where one video has its subject, with the limbs where another frame has them, and
more or less far. Such a picture's pose is known exactly, and random affine maps move both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...settings.articulation import ArticulationConfig
from ..pose_model import PoseModel
from ..poses import compose, random_affine, unwarp_points, warp_images
from ..skinning import render_posed
from .tracks import Tracks

SHARES = (0.5, 1.5)  # of how far limbs do in a rendering what they do in the frame that it is after


class Lessons:
    """Pictures and where they show the 3D keypoints, drawn at random."""

    def __init__(
        self,
        settings: ArticulationConfig,
        videos: list[Tensor],
        tracks: Tracks,
        decode: Callable[[Tensor], Tensor],
        num_samples: int,
    ):
        """videos: training frames (t_i, h, w, 3) uint8 of each. decode: volumes (1, 4 + p, S, S, S) of subjects (1,),
        which is called once for each of them, and only if some are to be rendered. num_samples: along a ray."""
        self.settings, self.videos, self.tracks, self.num_samples = settings, videos, tracks, num_samples
        self.counts = torch.tensor([len(video) for video in videos])
        self.rendered = round(settings.taught_rendered * settings.taught_frames)
        self.volumes: Tensor | None = None
        if self.rendered:
            with torch.no_grad():
                chosen = torch.arange(len(videos), device=videos[0].device)
                self.volumes = torch.cat([decode(k) for k in chosen.split(1)])

    @torch.no_grad()
    def draw(self, model: PoseModel) -> tuple[Tensor, Tensor]:
        """Pictures (n, r, r, 3) in [0, 1] at the predictor's resolution and keypoints (n, p, k, 2) of n =
        `taught_frames`, from the current random stream."""
        shown = self.settings.taught_frames - self.rendered
        pictures, poses = [], []
        if shown:
            videos, frames = self._frames(shown)
            of_video = zip(videos.tolist(), frames.tolist(), strict=True)
            images = torch.stack([self.videos[k][frame] for k, frame in of_video]).float() / 255
            pictures.append(model.predictor.resize(images))
            poses.append(self.tracks(videos, frames[:, None])[:, 0])
        if self.rendered:
            subjects, frames = self._frames(self.rendered)
            others, turned = self._frames(self.rendered)
            low, high = SHARES
            share = low + (high - low) * torch.rand(self.rendered)
            own = self.tracks.own(subjects, frames[:, None], share.to(subjects.device))
            found = compose(self.tracks.roots[others, turned][:, None, None], own)
            size = self.settings.predictor_resolution
            rays = (x[None].to(subjects.device) for x in model.camera.rays())
            seen = render_posed(self.volumes[subjects], found, *rays, self.num_samples)
            pictures.append(seen.colour.clamp(0, 1).view(-1, size, size, 3))
            poses.append(found[:, 0])
        images, keypoints = torch.cat(pictures), model.project(torch.cat(poses))
        if self.settings.taught_sigma:
            maps = random_affine(len(images), self.settings.taught_sigma).to(images.device)
            images = warp_images(maps, images)
            keypoints = unwarp_points(maps, keypoints.flatten(1, 2)).view_as(keypoints)
        return images, keypoints

    def _frames(self, n: int) -> tuple[Tensor, Tensor]:
        """Videos (n,) and a training frame (n,) of each."""
        videos = torch.randint(len(self.videos), (n,))
        frames = (torch.rand(n) * self.counts[videos]).long()
        device = self.videos[0].device
        return videos.to(device), frames.to(device)
