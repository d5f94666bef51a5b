"""Configurations: lookups, derived sizes, and settings that cannot work."""

from __future__ import annotations

import dataclasses
import re

import pytest

from vader.commands import study
from vader.report.paper import TABLE5, TABLE5_COLUMNS
from vader.settings.autodecoder import AutodecoderConfig, ReconstructionConfig
from vader.settings.checks import SEEDS, ConfigError
from vader.settings.diffrf import diffrf
from vader.settings.diffusion import SamplerConfig, UNetConfig
from vader.settings.experiment import DataConfig, EvaluationConfig
from vader.settings.profiles import DATA_NAMES, LAPTOP, PROFILES, differences, experiment
from vader.settings.table5 import PAPER, PAPER_TEXT, column_cells
from vader.store.paths import notebooks_dir


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("data", DATA_NAMES)
def test_every_profile_has_every_data_set(profile, data):
    config = experiment(profile, data)
    assert (config.profile, config.data.name) == (profile, data)
    assert config.reconstruction.objects_per_step <= config.data.num_objects
    assert config.evaluation.kid_subset_size <= config.evaluation.num_samples * config.evaluation.views


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("data", ["people_heads", "celebv_text"])
def test_every_profile_has_the_videos_of_table_3(profile, data):
    config = experiment(profile, data)
    assert config.articulated and (config.profile, config.data.name) == (profile, data)
    same = differences(config, experiment(profile, "people_heads"))
    assert same.keys() <= {"data.name"}


def test_unknown_names_are_refused_with_the_nearest_known():
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        experiment("lapto", "procedural_chairs")
    with pytest.raises(ConfigError, match="did you mean 'furniture_chairs'"):
        experiment("laptop", "furniture_chair")
    with pytest.raises(ConfigError, match="known: abo_tables"):
        experiment("paper", "procedural_chairs")


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_notebooks_refuse_is_refused_by_every_training(seed):
    for refuse in (
        lambda: experiment("smoke", "puppets").replace(seed=seed),
        lambda: diffrf("smoke", seed),
        lambda: DataConfig("procedural_chairs", seed=seed),
        lambda: study.main(["power", "--seed", str(seed)]),
    ):
        with pytest.raises(ConfigError, match=f"seed is {seed}, expected an integer from 0 to 2147483647"):
            refuse()
    with pytest.raises(ConfigError, match=f"one of sampling_seeds is {seed}, expected an integer"):
        EvaluationConfig(sampling_seeds=(0, seed))
    assert SEEDS == range(2**31), "as the notebooks have it"
    for notebook in notebooks_dir().glob("*.ipynb"):
        ranges = re.findall(r"[ ,(]seed=(range\([^)]*\))", notebook.read_text(encoding="utf-8"))
        assert set(ranges) <= {"range(2**31)"}, notebook.name


@pytest.mark.parametrize("name", PAPER)
def test_table_5_is_what_the_configurations_say(name):
    column = list(TABLE5_COLUMNS).index(name)
    assert column_cells(name) == {row: cells[column] for row, cells in TABLE5.items()}
    assert list(column_cells(name)) == list(TABLE5) and list(PAPER) == list(TABLE5_COLUMNS)


def test_a_cell_of_table_5_follows_its_field(monkeypatch):
    changed = PAPER["celebv_text"].replace(
        autodecoder=dict(lbs_channels=3, resolution=128, depth=1), diffusion=dict(learning_rate=2.5e-6)
    )
    monkeypatch.setitem(PAPER, "celebv_text", changed)
    cells = column_cells("celebv_text")
    assert cells["3D AutoDecoder", "VoxelGridSize"] == "128³ × 7"
    assert cells["3D AutoDecoder", "Depth"] == "1"
    assert cells["Latent 3D Diffusion Model", "Learning Rate"] == "2.5e-6"


def test_columns_are_frozen_and_small_profiles_are_the_chairs_column_with_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER["objaverse"].unet.depth = 2
    changes = {part: dict(values) for part, values in LAPTOP.items() if part != "data"}
    assert experiment("laptop", "procedural_chairs") == PAPER["photoshape_chairs"].replace(
        profile="laptop", weights_precision="float16", data=DataConfig("procedural_chairs"), **changes
    )


def test_differences_name_settings_and_both_values():
    base = PAPER["photoshape_chairs"]
    assert differences(base, base) == {}
    assert differences(base.replace(seed=3, unet=dict(depth=1)), base) == {"unet.depth": (1, 2), "seed": (3, 0)}


def test_a_text_model_differs_in_its_cross_attention_only():
    for name, text in PAPER_TEXT.items():
        plain = dict(cross_attention_resolutions=(), context_dim=0, transformer_depth=1)
        assert text != PAPER[name] == text.replace(unet=plain)


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
        (dict(latent_resolution=2), r"latent_resolution 2 is not a tap of this decoder: it has \(4, 8, 16, 32\)"),
        (dict(resolution=128, latent_resolution=128), "not a tap of this decoder"),
        (dict(attention_resolutions=(4,)), r"attention at 4\^3 never occurs: the decoder's stages are at \(8, 16"),
        (dict(embedding_dim=0), "embedding_dim is 0, expected at least 1"),
        (dict(lbs_channels=-1), "lbs_channels is -1, expected 0 or more"),
    ],
)
def test_decoders_that_cannot_be_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        AutodecoderConfig(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetConfig(channels=100), "do not divide into heads"),
        (lambda: UNetConfig(channels_per_head=48, channel_mult=(3, 5)), "640 .* do not divide into heads of 48"),
        (lambda: UNetConfig(channels_per_head=0), "channels_per_head is 0, expected at least 1"),
        (lambda: UNetConfig(transformer_depth=0), "transformer_depth is 0, expected at least 1"),
        (lambda: UNetConfig(context_dim=64), "go together"),
        (lambda: SamplerConfig(num_steps=1), "num_steps is 1"),
        (lambda: SamplerConfig(sigma_min=80.0), "0 < sigma_min < sigma_max"),
        (lambda: ReconstructionConfig(perceptual_images=33), "perceptual_images is 33, expected 1 to 32"),
    ],
)
def test_other_settings_that_cannot_work(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(autodecoder=dict(latent_resolution=4)),
            r"attention_resolutions has 8\^3, which never occurs: .* \[4, 2\]",
        ),
        (dict(unet=dict(attention_resolutions=(16, 8))), r"attention_resolutions has 16\^3, which never occurs"),
        (
            dict(unet=dict(cross_attention_resolutions=(2,), context_dim=8)),
            r"cross_attention_resolutions has 2\^3, which never occurs",
        ),
        (dict(unet=dict(channel_mult=(1, 1, 1, 1, 1))), "resolution 8 cannot be halved 4 times"),
    ],
)
def test_two_stages_that_do_not_fit_are_refused_before_the_first_is_trained(changes, message):
    with pytest.raises(ConfigError, match=message):
        PAPER["photoshape_chairs"].replace(**changes)


def test_replace_reaches_nested_fields():
    config = experiment("smoke", "procedural_chairs").replace(seed=3, unet=dict(depth=2))
    assert (config.seed, config.unet.depth, config.unet.channels) == (3, 2, 16)
