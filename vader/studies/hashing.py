"""The hash embedding (B.3) against a table with a row for every object: quality lost, storage saved.

The notebook `hash_embedding` trains its runs. So does this command beforehand, in pieces. Exit status 75 means "run it
again":

    vader study hashing --profile laptop --max-seconds 540
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..autodecoder.reconstruction import load_autodecoder
from ..data import SequenceSet
from ..evaluation import costs
from ..evaluation.pictures import Mean, heldout_reconstruction
from ..generation.volumes import Models
from ..settings.checks import require
from ..settings.experiment import Experiment
from ..settings.studies import study
from ..stages import autodecoder_run
from ..store.runs import Run
from ..training import select_device

SEEDS = 3  # trainings of each variant
DENSE = dict(hash_rows=0, hash_codebooks=256, hash_multipliers="corrected")
VARIANTS = ("dense", "literal", "corrected")  # literal: multipliers of Eq. 11


def variants(config: Experiment) -> dict[str, Experiment]:
    """The three experiments of the study, all else equal. Raises ConfigError for an experiment without a hash."""
    require(config.autodecoder.hash_rows > 0, "hash_rows is 0: the study needs an experiment with a hash embedding")
    settings = {"dense": DENSE} | {kind: dict(hash_multipliers=kind) for kind in VARIANTS[1:]}
    return {name: config.replace(autodecoder=settings[name]) for name in VARIANTS}


@dataclass(frozen=True)
class Outcome:
    """A trained variant with its scores on held-out views, as `evaluation.heldout_reconstruction` gives them."""

    models: Models
    scores: dict[str, Mean]

    @property
    def run(self) -> Run:
        return self.models.runs[0]


def measure(config: Experiment, data: SequenceSet, objects: Sequence[int], device: str = "auto") -> Outcome:
    """Stage 1 of an experiment, from the run store or trained now, scored on these training objects."""
    run, place = autodecoder_run(config, data, device), select_device(device)
    models = Models(config, data, (run,), load_autodecoder(run, config, place), place)
    return Outcome(models, heldout_reconstruction(models, objects))


def scored_objects(num_objects: int, count: int = 256) -> list[int]:
    """Which objects are scored: `count` at random, always the same, so as to favour neither odd nor even ones."""
    order = torch.randperm(num_objects, generator=torch.Generator().manual_seed(0))
    return sorted(order[:count].tolist())


@dataclass(frozen=True)
class Storage:
    """Parameters of a stage-1 model."""

    embedding: int
    decoder: int

    @property
    def total(self) -> int:
        return self.embedding + self.decoder


def storage(config: Experiment, num_objects: int) -> Storage:
    """Sizes of an experiment's stage 1 for so many objects, counted on the model it builds, which takes no memory."""
    size = costs.parameters(config.replace(data=dict(num_objects=num_objects)))
    return Storage(size["embedding"], size["G1"] + size["G2"])


def experiments(profile: str, seed: int) -> list[Experiment]:
    """Every variant with every seed, in the order in which they are trained."""
    config = study("hashing", profile)
    return [variant for s in range(seed, seed + SEEDS) for variant in variants(config.replace(seed=s)).values()]
