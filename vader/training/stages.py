"""The two stages as runs: found in the run store, or trained now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import runs
from ..autodecoder.reconstruction import Reconstruction
from ..config import Experiment
from ..data import SequenceSet
from ..diffusion.denoising import Denoising
from ..diffusion.text import text_digest, text_embeddings
from ..distributed import select_device
from ..runs import Run
from .loop import fit


def autodecoder_settings(config: Experiment, data: SequenceSet) -> dict[str, Any]:
    """What decides a stage-1 run."""
    return {
        "stage": "autodecoder",
        "data": data.digest,
        "autodecoder": config.autodecoder,
        "reconstruction": config.reconstruction,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
    }


def autodecoder_run(
    config: Experiment, data: SequenceSet, device: str = "auto", max_seconds: float | None = None
) -> Run:
    """The stage-1 run of an experiment: found, or trained on the data's training objects."""
    settings = autodecoder_settings(config, data)

    def train(work: Path) -> None:
        task = Reconstruction(config, data, select_device(device))
        record = runs.Record(work, config.seed, task.device, pixels=data.pixel_record(), **task.facts())
        fit(task, work, record, max_seconds)

    return runs.get(f"{data.name}-autodecoder", settings, train, data)


def diffusion_run(config: Experiment, data: SequenceSet, device: str = "auto", max_seconds: float | None = None) -> Run:
    """The stage-2 run of an experiment, on the latents of its stage-1 run, which is trained first if need be.

    Of a conditional experiment, the captions and their encoding are settings too. Raises DataError, before any
    training, for a caption that is missing.
    """
    conditions = {"text": text_digest(data, config.text)} if config.conditional else {}
    stage1 = autodecoder_run(config, data, device, max_seconds)
    settings = {
        "stage": "diffusion",
        "autodecoder": stage1.digest,
        "unet": config.unet,
        "diffusion": config.diffusion,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
        **conditions,
    }

    def train(work: Path) -> None:
        contexts = None
        if config.conditional:
            contexts = text_embeddings(data, config.text).rows(data, "train", config.unet.context_dim)
        task = Denoising(config, stage1, select_device(device), contexts)
        fit(task, work, runs.Record(work, config.seed, task.device, **task.facts()), max_seconds)

    return runs.get(f"{data.name}-diffusion", settings, train)
