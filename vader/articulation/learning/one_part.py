"""One part: UVA's first stage, also a baseline. Models of N_p parts start as copies of it."""

from __future__ import annotations

from dataclasses import fields

import torch

from ...autodecoder.reconstruction import Autodecoder, load_autodecoder
from ...settings.experiment import Experiment
from ...store.runs import Run
from ..pose_model import PoseModel, load_pose_model

SECOND_STAGE = ("region_", "track_", "taught_", "refine_", "parts_")  # how the settings begin that only it reads


def rigid(config: Experiment, images: int) -> Experiment:
    """The same experiment with one part, trained on that many images: UVA's first stage, or a baseline."""
    settings = config.articulation
    return config.replace(
        autodecoder=dict(lbs_channels=1, lbs_skips=False, lbs_scale=1.0),  # which one part does not depend on
        reconstruction=dict(
            images_seen=images, density_noise_images=min(images, config.reconstruction.density_noise_images)
        ),
        articulation=dict(
            **{f.name: f.default for f in fields(settings) if f.name.startswith(SECOND_STAGE)},
            rigid_images=0,
            free_depth_images=min(settings.free_depth_images, images // 2),
            pull_weight=settings.rigid_pull_weight,
            pull_threshold=settings.rigid_pull_threshold,
        ),
    )


def single(config: Experiment) -> Experiment:
    """The same two stages with one part in the second, too: what N_p parts on the same budget are compared with."""
    return config.replace(
        autodecoder=dict(lbs_channels=1, lbs_skips=False, lbs_scale=1.0),
        articulation=dict(region_images=0, region_weight=0.0, taught_extent=1.0),
    )


@torch.no_grad()
def grow(model: Autodecoder, pose_model: PoseModel, start: Run, config: Experiment) -> None:
    """Copy a run with one part (`config`) into models of N_p parts: its heat maps and keypoints go to every part, or
    its keypoints alone where the predictor is made anew (`taught_channels`).

    So all parts start in that run's pose, and the picture is the one it had. The skinning logits keep the random
    weights they were made with: were they copies, too, equal parts would get equal gradients and stay equal.
    """
    one, one_pose = load_autodecoder(start, config), load_pose_model(start, config)
    device = pose_model.keypoints.raw.device
    state, own = one.state_dict(), model.state_dict()
    for name in ("decoder.head.weight", "decoder.head.bias"):
        state[name] = torch.cat([state[name][:4].to(device), own[name][4:]])
    model.load_state_dict(state | {name: own[name] for name in own if name.startswith("decoder.lbs_heads.")})
    state, parts = one_pose.state_dict(), pose_model.predictor.num_parts
    for name in ("predictor.head.weight", "predictor.head.bias", "keypoints.raw"):
        state[name] = state[name].repeat(parts, *(1,) * (state[name].ndim - 1))
    if pose_model.renewed:
        state = pose_model.state_dict() | {"keypoints.raw": state["keypoints.raw"]}
    pose_model.load_state_dict(state)
