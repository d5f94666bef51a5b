"""Poses as the recipe reads them: a keypoint network is told the truth, and then released among the recipe's losses.

The network sees pictures of the scene with the limb at random angles, moved by random affine maps, and is told where
they show the 3D keypoints (as `vader/articulation/learning/teaching.py`). It is measured at other angles. Then
network, 3D keypoints and voxels, which are true at that moment, go on together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...articulation.losses import pose_losses, projection_loss
from ...articulation.pose_model import PoseModel
from ...articulation.poses import random_affine, unwarp_points, warp_images
from .explanations import ALL_TRUE, ARMS, VOXEL_RATE, Course, Voxels
from .keypoints import predicted_error
from .scene import BODY, LIMB, Scene, Shape, correlation, draw, measure, poses_of, recipe, signed_turn

POOL, BATCH = 64, 8  # pictures to be told, and of a step
KEPT = 16  # pictures at other angles, which measure
SOLVERS = {"EPnP": 0, "least squares": 6}  # refine_steps


@dataclass(frozen=True)
class Reading:
    """What a told network reads at angles that it was not told.

    noise_px: root mean square of the limb's 2D keypoints in pixels of the network's picture, along each axis.
    shared: of that noise's power, the share that is a turn and shift of all keypoints of a picture together.
    independent_deg: the turn error that such noise would have if it were independent (`keypoints.predicted_error`).
    correlation, error_deg: by solver, of the turn about the limb's axis.
    """

    noise_px: float
    shared: float
    independent_deg: float
    correlation: dict[str, float]
    error_deg: dict[str, float]


def taught(shape: Shape, resolution: int, steps: int, seed: int = 0) -> PoseModel:
    """A network of the recipe that is told the truth for so many steps, in training mode."""
    torch.manual_seed(seed)
    config = recipe()
    settings = config.articulation
    model = PoseModel(config).train()
    limb = torch.tensor([0.2 + shape.length / 2, 0.15, 0.0])
    model.keypoints.gather_around(torch.stack([torch.zeros(3), limb]), settings.taught_extent)
    angles = shape.swing * (2 * torch.rand(POOL) - 1)
    pictures, poses = _pictures(shape, angles, resolution), poses_of(shape.axis, angles)
    with torch.no_grad():
        told = model.project(poses)
    optimizer = torch.optim.Adam(model.predictor.parameters(), betas=config.reconstruction.betas)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = settings.taught_rate * settings.predictor_learning_rate * (1 - step / steps)
        chosen = torch.randperm(POOL)[:BATCH]
        maps = random_affine(BATCH, settings.taught_sigma)
        moved = unwarp_points(maps, told[chosen].flatten(1, 2)).view_as(told[chosen])
        optimizer.zero_grad()
        projection_loss(model.predictor(warp_images(maps, pictures[chosen])), moved).backward()
        optimizer.step()
    return model


def _pictures(shape: Shape, angles: Tensor, resolution: int) -> Tensor:
    config = recipe()
    return torch.cat([draw(shape, poses_of(shape.axis, angle[None]), config, resolution)[0] for angle in angles])


@torch.no_grad()
def read(model: PoseModel, shape: Shape, resolution: int) -> Reading:
    """What a told network reads from pictures at angles evenly spread over the limb's swing."""
    model = model.eval()
    angles = shape.swing * (2 * (torch.arange(KEPT) + 0.5) / KEPT - 1)
    pictures, poses = _pictures(shape, angles, resolution), poses_of(shape.axis, angles)
    pixels = model.predictor.settings.predictor_resolution / 2
    true = model.project(poses)[:, LIMB]
    error = pixels * (model.predictor(pictures)[:, LIMB] - true)
    noise = error.square().mean().sqrt().item()
    points = model.keypoints()[LIMB]
    pixel = 1 / pixels * model.camera.centres()[0].norm().item() * model.camera.width / 2
    pixel = pixel / model.camera.intrinsics[0, 0, 0].item()
    spread = (points - points.mean(0)).square().mean().sqrt().item() / pixel
    steps, found, off = model.refine_steps, {}, {}
    for name, model.refine_steps in SOLVERS.items():
        solved = model(pictures).poses
        turns = signed_turn(solved[:, BODY, :, :3].mT @ solved[:, LIMB, :, :3], shape.axis)
        found[name] = correlation(turns, angles)
        off[name] = (turns - angles - (turns - angles).mean()).square().mean().sqrt().item()
    model.refine_steps = steps
    independent = predicted_error(noise, spread, len(points), shape.axis)
    return Reading(noise, _shared(error, points), independent, found, off)


def _shared(error: Tensor, points: Tensor) -> float:
    """Share of the power of errors (n, k, 2) that an affine function of the 3D keypoints (k, 3) explains: no more than
    that can come from a pose of its own in each picture."""
    design = torch.cat([points - points.mean(0), torch.ones(len(points), 1)], dim=1)
    basis = torch.linalg.qr(design).Q
    explained = basis.mT @ error
    return (explained.square().sum() / error.square().sum().clamp_min(1e-12)).item()


def released(model: PoseModel, scene: Scene, at: Sequence[int], seed: int = 0) -> Course:
    """Everything goes on together from the true volume and a told network, by all losses of the recipe."""
    torch.manual_seed(seed)
    settings, model = scene.config.articulation, model.train()
    voxels = Voxels(scene, ARMS[ALL_TRUE], seed)
    rate, scores = settings.predictor_learning_rate, {}
    groups = [
        {"params": voxels.parameters(), "lr": 0.02 * VOXEL_RATE},
        {"params": model.predictor.hourglass.parameters(), "lr": settings.parts_hourglass_rate * rate},
        {
            "params": [*model.predictor.head.parameters(), *model.keypoints.parameters()],
            "lr": settings.parts_heads_rate * rate,
        },
    ]
    optimizer = torch.optim.Adam(groups, betas=scene.config.reconstruction.betas)
    for step in range(max(at) + 1):
        if step in at:
            with torch.no_grad():
                scores[step] = measure(scene, voxels(), model.eval()(scene.frames).poses)
            model.train()
        if step < max(at):
            found, volume = model(scene.frames), voxels()
            loss, density = scene.loss(volume, found.poses, step)
            density = density / scene.config.autodecoder.density_scale
            rest = pose_losses(settings, model, scene.frames, found.poses, found.points2d, density, False)
            optimizer.zero_grad()
            (loss + sum(rest.values())).backward()
            clip = scene.config.reconstruction.clip_value
            torch.nn.utils.clip_grad_value_([p for g in groups for p in g["params"]], clip)
            optimizer.step()
    with torch.no_grad():
        return Course(scores, voxels(), model.eval()(scene.frames).poses)
