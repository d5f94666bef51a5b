"""The model that reads poses from pictures (B.1): K^2D predicted, K^3D learned, EPnP between them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..settings.checks import require
from ..settings.experiment import Experiment
from ..store.files import load_weights
from ..store.runs import Run
from .keypoints import CanonicalKeypoints, KeypointPredictor
from .poses import Guard, PoseError, fixed_camera, project, solve_poses
from .refinement import at_distance, refine_poses

FRAMES_AT_ONCE = 64  # of a video, when its poses are read


@dataclass(frozen=True)
class Poses:
    """Poses (n, p, 3, 4) of n images, canonical cube -> world, and the 2D keypoints (n, p, k, 2) they come from."""

    poses: Tensor
    points2d: Tensor
    guard: Guard


class PoseModel(nn.Module):
    """Images (n, h, w, 3) in [0, 1] -> poses: K^2D predicted, K^3D learned, EPnP between them (B.1).

    With `refine_steps`, EPnP solves for the subject as a whole, and each part's pose is refined from there.
    """

    def __init__(self, config: Experiment):
        super().__init__()
        settings, parts = config.articulation, config.autodecoder.lbs_channels
        require(parts >= 1, "lbs_channels is 0, expected the number of parts N_p of an articulated subject")
        self.refine_steps = settings.refine_steps
        self.renewed = settings.taught_channels > 0  # not the first stage's predictor
        if self.renewed:
            settings = dataclasses.replace(settings, predictor_channels=settings.taught_channels)
        self.predictor = KeypointPredictor(settings, parts)
        self.keypoints = CanonicalKeypoints(settings, parts)
        self.camera = fixed_camera(settings, settings.predictor_resolution)

    def forward(self, images: Tensor) -> Poses:
        points2d = self.predictor(images)
        n, p, k, _ = points2d.shape
        points3d = self.keypoints().expand(n, p, k, 3)
        problems = points3d.flatten(0, 1), points2d.flatten(0, 1)
        if self.refine_steps:
            start = self._whole(points3d.flatten(1, 2), points2d.flatten(1, 2))[:, None].expand(n, p, 3, 4)
            poses, guard = refine_poses(*problems, self.camera, start.flatten(0, 1), self.refine_steps)
        else:
            poses, guard = solve_poses(*problems, self.camera)
        return Poses(poses.view(n, p, 3, 4), points2d, guard)

    @torch.no_grad()
    def _whole(self, points3d: Tensor, points2d: Tensor) -> Tensor:
        """Poses (n, 3, 4) of n subjects as if all keypoints, (n, p k, 3) and (n, p k, 2), were of one part, which stays
        at the camera's distance."""
        start = at_distance(solve_poses(points3d, points2d, self.camera)[0], self.camera)
        refined, _ = refine_poses(points3d, points2d, self.camera, start, self.refine_steps)
        return at_distance(refined, self.camera)

    def project(self, poses: Tensor) -> Tensor:
        """Image positions (n, p, k, 2) in [-1, 1] of the 3D keypoints in poses (n, p, 3, 4)."""
        return project(poses, self.keypoints(), self.camera)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Poses (t, p, 3, 4) of a video's frames (t, h, w, 3), float in [0, 1] or uint8; each frame on its own.

        Raises PoseError for frames of another shape, and for a model in training mode.
        """
        if self.training:
            raise PoseError("pose model is in training mode, expected evaluation mode (model.eval())")
        if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
            raise PoseError(f"frames have shape {tuple(images.shape)}, expected (t, h, w, 3) with at least one frame")
        if images.shape[1] != images.shape[2]:
            raise PoseError(f"frames are {images.shape[2]}x{images.shape[1]} pixels, expected square ones")
        device = self.keypoints.raw.device
        chunks = (chunk.to(device) for chunk in images.split(FRAMES_AT_ONCE))
        return torch.cat([self(c.float() / 255 if c.dtype == torch.uint8 else c).poses for c in chunks])


def load_pose_model(run: Run, config: Experiment, device: torch.device | str = "cpu") -> PoseModel:
    """The pose model of a finished run, in evaluation mode."""
    model = PoseModel(config)
    load_weights(run.weights("poses"), model)
    return model.to(device).eval()
