"""Configurations: lookups, derived sizes, and settings that cannot work."""

from __future__ import annotations

import dataclasses

import pytest

from vader.config import AutodecoderConfig, ConfigError, ReconstructionConfig, SamplerConfig, UNetConfig
from vader.profiles import DATA_NAMES, PAPER, PROFILES, experiment


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("data", DATA_NAMES)
def test_every_profile_has_every_data_set(profile, data):
    config = experiment(profile, data)
    assert (config.profile, config.data.name) == (profile, data)
    assert config.reconstruction.objects_per_step <= config.data.num_objects
    assert config.evaluation.kid_subset_size <= config.evaluation.num_samples * config.evaluation.views


def test_unknown_names_are_refused_with_the_nearest_known():
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        experiment("lapto", "procedural_chairs")
    with pytest.raises(ConfigError, match="did you mean 'furniture_chairs'"):
        experiment("laptop", "furniture_chair")
    with pytest.raises(ConfigError, match="known: abo_tables"):
        experiment("paper", "procedural_chairs")


def test_table_5():
    """What Table 5 says of each column, typed from the paper and independently of the configuration's defaults."""
    columns = ("abo_tables", "photoshape_chairs", "celebv_text", "mvimgnet", "objaverse")
    rows = {
        "depth": (2, 4, 2, 4, 4),
        "resolution": (128, 64, 64, 64, 64),
        "channels_out": (4, 4, 14, 4, 4),
        "foreground": (10, 10, 10, 10, 0),
        "unet_channels": (128, 128, 192, 192, 192),
        "unet_depth": (2, 2, 3, 3, 3),
    }
    for i, name in enumerate(columns):
        e = PAPER[name]
        measured = {
            "depth": e.autodecoder.depth,
            "resolution": e.autodecoder.resolution,
            "channels_out": 4 + e.autodecoder.lbs_channels,
            "foreground": e.reconstruction.foreground_weight,
            "unet_channels": e.unet.channels,
            "unet_depth": e.unet.depth,
        }
        assert measured == {key: values[i] for key, values in rows.items()}
        assert e.autodecoder.embedding_dim == 1024
        assert e.autodecoder.max_channels == 512
        assert e.autodecoder.attention_resolutions == (8, 16)
        assert e.autodecoder.latent_shape == (256, 8, 8, 8)
        assert e.reconstruction.views_per_object == 4
        assert e.reconstruction.learning_rate == 5e-4
        assert e.unet.channel_mult == (3, 4)
        assert e.unet.attention_resolutions == (8, 4)
        assert e.diffusion.learning_rate == 4.5e-5


def test_stage_resolutions_and_channels():
    config = AutodecoderConfig(resolution=128)
    assert config.stage_resolutions == (8, 16, 32, 64, 128)
    assert [config.channels_at(r) for r in (4, *config.stage_resolutions)] == [512, 256, 128, 64, 32, 16]
    assert dataclasses.replace(config, latent_resolution=4).latent_shape == (512, 4, 4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(resolution=48), "not base_resolution 4 times a power of two"),
        (dict(resolution=4), "not base_resolution"),
        (dict(latent_resolution=64), "not a tap of this decoder"),
        (dict(latent_resolution=12), "not a tap of this decoder"),
        (dict(attention_resolutions=(8, 128)), "attention at 128"),
        (dict(depth=0), "depth is 0"),
        (dict(max_channels=8), "cannot be halved 4 times"),
    ],
)
def test_decoders_that_cannot_be_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        AutodecoderConfig(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetConfig(channels=100), "do not divide into heads"),
        (lambda: UNetConfig(context_dim=64), "go together"),
        (lambda: SamplerConfig(num_steps=1), "num_steps is 1"),
        (lambda: SamplerConfig(sigma_min=80.0), "0 < sigma_min < sigma_max"),
        (lambda: ReconstructionConfig(perceptual_images=33), "perceptual_images is 33, expected 1 to 32"),
    ],
)
def test_other_settings_that_cannot_work(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_replace_reaches_nested_fields():
    config = experiment("smoke", "procedural_chairs").replace(seed=3, unet=dict(depth=2))
    assert (config.seed, config.unet.depth, config.unet.channels) == (3, 2, 16)
