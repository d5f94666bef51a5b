"""The study of the hash embedding: equal but for the table, counted on built models, found again in the run store."""

from __future__ import annotations

import dataclasses

import pytest

from tests.tiny import balls, tiny_experiment
from vader.settings.checks import ConfigError
from vader.settings.studies import study
from vader.settings.table5 import PAPER, TRAINING_OBJECTS
from vader.stages import autodecoder_settings
from vader.store import runs
from vader.studies.hashing import VARIANTS, measure, scored_objects, storage, variants


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_variants_differ_in_the_table_only(profile):
    config = study("hashing", profile)
    found = variants(config)
    assert tuple(found) == VARIANTS
    assert found["dense"].autodecoder.hash_rows == 0 and found["literal"].autodecoder.hash_multipliers == "literal"
    assert found["corrected"] == config and config.data.num_objects > config.autodecoder.hash_rows
    for variant in found.values():
        assert dataclasses.replace(variant, autodecoder=config.autodecoder) == config


def test_the_laptop_study_has_2000_objects_for_512_rows():
    config = study("hashing", "laptop")
    assert (config.data.num_objects, config.autodecoder.hash_rows) == (2_000, 512)


def test_storage_of_the_papers_largest_model():
    """Parameters by hand: 300,000 or 32,768 embeddings of 1024, and the decoder's 55.26 M."""
    hashed = storage(PAPER["objaverse"], TRAINING_OBJECTS["objaverse"])
    dense = storage(variants(PAPER["objaverse"])["dense"], TRAINING_OBJECTS["objaverse"])
    assert (dense.embedding, hashed.embedding) == (300_000 * 1024, 32_768 * 1024)
    assert dense.decoder == hashed.decoder == pytest.approx(55.26e6, rel=1e-3)
    assert 1 - hashed.total / dense.total == pytest.approx(0.755, abs=1e-3)


def test_scored_objects_are_odd_and_even():
    chosen = scored_objects(2_000)
    assert len(set(chosen)) == 256 and chosen == scored_objects(2_000)
    assert 96 < sum(k % 2 for k in chosen) < 160
    assert scored_objects(5) == [0, 1, 2, 3, 4]


def test_a_variant_is_trained_once_and_scored_on_the_chosen_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path))
    config = tiny_experiment(
        data=dict(resolution=32),
        autodecoder=dict(embedding_dim=16, hash_rows=2, hash_codebooks=4, sparse_embedding=True),
        reconstruction=dict(images_seen=12),
    )
    data = balls(config)
    first = measure(config, data, [0, 3], "cpu")
    assert first.scores["psnr"].n == 2
    assert first.run.digest == runs.digest(autodecoder_settings(config, data))
    again = measure(config, data, [0, 3], "cpu")
    assert again.scores == first.scores and again.run.record == first.run.record
    assert measure(config, data, [0, 1, 2, 3], "cpu").scores["psnr"].n == 4


def test_what_is_unknown_is_refused_with_the_nearest_known():
    with pytest.raises(ConfigError, match="study 'hashin' is unknown .did you mean 'hashing'"):
        study("hashin", "smoke")
    with pytest.raises(ConfigError, match="no profile 'gpu'.*it has: smoke, laptop"):
        study("hashing", "gpu")
    with pytest.raises(ConfigError, match="hash_rows is 0"):
        variants(tiny_experiment())
