"""Baselines beside ours: found, left out or trained, and what evaluation gets of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vader.baselines import systems
from vader.baselines.systems import RIVALS, trained_rivals
from vader.generation.volumes import Models
from vader.rendering.cameras import turntable
from vader.settings.diffrf import diffrf
from vader.settings.gans import EG3D_PROFILES, PI_GAN_PROFILES


@pytest.fixture
def models(config, data, monkeypatch):
    """Ours without its runs, which no baseline asks for, and baselines of a few steps."""
    gan = dict(images_seen=16, num_samples=4)
    planes = dict(resolution=16, rendering_resolution=8, plane_resolution=8)
    monkeypatch.setitem(EG3D_PROFILES, "smoke", dataclasses.replace(EG3D_PROFILES["smoke"], **gan, **planes))
    small = dict(resolutions=(8, 16), fade_images=4, channels=16)
    monkeypatch.setitem(PI_GAN_PROFILES, "smoke", dataclasses.replace(PI_GAN_PROFILES["smoke"], **gan, **small))
    fields = diffrf("smoke").replace(
        fields=dict(resolution=8, rays_per_object=64, rays_per_step=64, num_samples=8),
        unet=dict(channels=8, channels_per_head=8, channel_mult=(1, 1), attention_resolutions=(2,)),
        diffusion=dict(fields_seen=8, batch_size=4, guidance_rays=16, guidance_samples=8),
        sampler=dict(num_steps=2),
    )
    monkeypatch.setattr(systems, "diffrf", lambda profile, seed: fields.replace(seed=seed))
    return Models(config, data, (), None, torch.device("cpu"))


def test_what_is_not_trained_is_left_out_or_trained_and_then_found(models):
    assert trained_rivals(models, train=False) == {}
    trained = trained_rivals(models, train=True)
    assert list(trained) == list(RIVALS) == ["diffrf", "eg3d", "pi_gan"]
    found = trained_rivals(models, train=False)
    assert {name: r.run.digest for name, r in found.items()} == {name: r.run.digest for name, r in trained.items()}
    cameras = [turntable(models.config.data, resolution=16)[:2]] * 3
    for name, rival in found.items():
        assert rival.run.settings["stage"] == name == rival.generator.name
        pictures = rival.generator.pictures([0, 1, 2], cameras, seed=0)
        assert pictures.shape == (3, 2, 16, 16, 3) and pictures.isfinite().all()
        assert not torch.equal(pictures[0], pictures[1]), "objects of their own"
        assert rival.generator.density([0], 0, 8).shape == (1, 8, 8, 8)


def test_another_seed_is_another_training(models):
    trained_rivals(models, train=True)
    other = dataclasses.replace(models, config=models.config.replace(seed=1))
    assert trained_rivals(other, train=False) == {}
