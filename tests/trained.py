"""A store of tiny trained models, for tests of what is made with them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.data import SequenceSet
from vader.generation.volumes import load_models
from vader.settings.diffusion import TextConfig
from vader.settings.experiment import Experiment

WIDTH = 6
ENCODER = TextConfig("tiny-t5-test", tokens=5)  # of a size that no hub has


def letters(captions: list[str], config: TextConfig) -> torch.Tensor:
    """An encoder: one token per word, made of its letters."""
    contexts = torch.zeros(len(captions), config.tokens, WIDTH)
    for row, caption in zip(contexts, captions, strict=True):
        for token, word in zip(row, caption.split(), strict=False):
            token += torch.tensor([ord(c) % 32 for c in word[:WIDTH].ljust(WIDTH)]) / 16 - 1
    return contexts


def use_letters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vader.diffusion.text.encode", letters)
    patch.setattr("vader.generation.volumes.encode", letters)


def captioned_balls(config: Experiment) -> SequenceSet:
    """Balls under the name of the experiment's data, each with a caption."""
    data = balls(config)
    sequences = [dataclasses.replace(s, caption=f"ball of size {index}") for index, s in enumerate(data)]
    return dataclasses.replace(data, name=config.data.name, sequences=tuple(sequences))


def trained_experiments(images: int = 64) -> dict[str, Experiment]:
    """{name: its experiment}: one without text and one with, trained now in $VADER_RUNS, stage 1 on so many images."""
    longer = dict(images_seen=images)
    configs = {
        "procedural_chairs": tiny_experiment(reconstruction=longer),
        "procedural_chairs_text": tiny_experiment(
            reconstruction=longer, text=ENCODER, unet=dict(context_dim=WIDTH, cross_attention_resolutions=(4,))
        ),
    }
    for config in configs.values():
        load_models(config, captioned_balls(config), "cpu")
    return configs
