"""Why robust normalisation loses on a planted tail (Fig. 9): one thing changed at a time.

A tail that makes the classic standard deviation R times the robust one holds R^2 times the power of the bulk, whatever
its shape. So under robust statistics a squared error that is the same share of every feature is that of the tail, by
R^2 to 1. Two ways lead from there to the bulk. The *loss* asks for the tail. And the network *sees* values of
hundreds, which decide the statistics of its group normalisations. Each way is closed by itself here, and both:

    vader study tails --profile smoke

trains the arms below and writes `reports/tails.md`. Bulk errors are those of `study.BulkTest`: 1 is linear
prediction from median and robust scale, which an untrained denoiser gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...data import SequenceSet, prepare
from ...diffusion.denoising import Denoising
from ...diffusion.edm import per_object
from ...diffusion.normalization import NORMALIZED_IQR, RobustStatistics
from ...settings.experiment import Experiment
from ...stages import autodecoder_run
from ...store import runs
from ...store.files import read_weights, write_file
from ...store.paths import reports_dir
from ...store.runs import Run
from ...training import fit, select_device
from . import widths
from .study import BULK, BulkTest, NormalizationStudy, TailedDenoising, study_config
from .widths import said


@dataclass(frozen=True)
class Arm:
    """One training, and how it departs from the planted one of Figure 9 under robust statistics."""

    loss: Literal["all", "bulk"] = "all"  # bulk: the tail's features have no loss
    sees: Literal["all", "cut"] = "all"  # cut: what enters the network is cut at +-BULK of its own unit
    shape: Literal["entries", "channels", "cells"] = "entries"  # of the tail: anywhere, few channels, or few places
    same: bool = False  # the tail has the same values in all objects
    cut: bool = False  # features are cut at +-BULK robust deviations after normalisation, so that no tail is left
    rate: float = 1.0  # times the learning rate
    tail: bool = True


ARMS = {
    "as planted": Arm(),
    "no loss on the tail": Arm(loss="bulk"),
    "the tail is cut where it enters the network": Arm(sees="cut"),
    "both": Arm(loss="bulk", sees="cut"),
    "features cut after normalisation": Arm(cut=True),
    "tail in few channels": Arm(shape="channels"),
    "tail in few cells": Arm(shape="cells"),
    "the same tail in all objects": Arm(same=True),
    "a tenth of the learning rate": Arm(rate=0.1),
    "no tail": Arm(tail=False),
}
FOUR = tuple(ARMS)[:4]  # the two ways, open and closed: what is trained with the heavy tail, too
STUDIES = {
    "smoke": NormalizationStudy(latents_seen=1_600, tails=(10.0, 200.0), points=4),
    "laptop": NormalizationStudy(latents_seen=4_000, tails=(10.0, 200.0)),
}


def planted(features: Tensor, arm: Arm, ratio: float, share: float, seed: int) -> Tensor:
    """`study.plant_tail` with the shape of the tail as the arm has it; with the default arm it is the same."""
    if not arm.tail:
        return features
    statistics = RobustStatistics.fit(features)
    generator = torch.Generator().manual_seed(seed)
    flat = features.flatten(1).clone()
    objects, cells = flat.shape
    chosen = _places(features, arm.shape, max(1, round(share * cells)), generator)
    rows, count = (1 if arm.same else objects), len(chosen)
    magnitude = (0.5 * torch.randn(rows, count, generator=generator) - 0.25).exp() * ratio / (count / cells) ** 0.5
    sign = 1 - 2 * torch.randint(2, (rows, count), generator=generator)
    flat[:, chosen] = (statistics.median + NORMALIZED_IQR * statistics.iqr * magnitude * sign).to(flat)
    return flat.view_as(features)


def _places(features: Tensor, shape: str, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the cells of (c, r, r, r), (count,): anywhere, in the fewest channels, or at the fewest places."""
    channels, places = features.shape[1], math.prod(features.shape[2:])
    if shape == "entries":
        return torch.randperm(channels * places, generator=generator)[:count]
    cells = torch.arange(channels * places).view(channels, places)
    if shape == "channels":
        chosen = torch.randperm(channels, generator=generator)[: -(-count // places)]
        mixed = cells[chosen][:, torch.randperm(places, generator=generator)]
        return mixed.flatten()[:count]
    chosen = torch.randperm(places, generator=generator)[: -(-count // channels)]
    mixed = cells[torch.randperm(channels, generator=generator)][:, chosen]
    return mixed.T.flatten()[:count]


def _cut(_: nn.Module, arguments: tuple) -> tuple:
    return (arguments[0].clamp(-BULK, BULK), *arguments[1:])


class ArmDenoising(TailedDenoising):
    """Stage 2 of an arm; what it leaves is its bulk error."""

    def __init__(
        self, config: Experiment, stage1: Run, device: torch.device, study: NormalizationStudy, tail: float, arm: Arm
    ) -> None:
        self.arm = arm
        super().__init__(config, stage1, device, study, tail)
        if arm.sees == "cut":
            for denoiser in (self.denoiser, self.ema.module):
                denoiser.network.register_forward_pre_hook(_cut)

    def features(self, autodecoder_run: Run) -> Tensor:
        features = Denoising.features(self, autodecoder_run)
        features = planted(features, self.arm, self.tail, self.study.planted_share, self.config.seed)
        if self.arm.cut:
            statistics = RobustStatistics.fit(features)
            reach = BULK * NORMALIZED_IQR * statistics.iqr
            features = features.clamp(statistics.median - reach, statistics.median + reach)
        self.test = BulkTest(features, self.study.noise_levels)
        return features

    def loss(self, latents: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        if self.arm.loss == "all":
            return super().loss(latents, sigma, noise, condition)
        error = self.parallel(latents + per_object(sigma, latents) * noise, sigma, condition) - latents
        bulk = latents.abs() <= BULK * self.settings.sigma_data
        weight = (sigma**2 + self.settings.sigma_data**2) / (sigma * self.settings.sigma_data) ** 2
        return weight * (error.square() * bulk).flatten(1).sum(1) / bulk.flatten(1).sum(1)


def arm_run(
    config: Experiment, stage1: Run, study: NormalizationStudy, arm: Arm, tail: float, seed: int, device: str = "auto"
) -> Run:
    """The training of an arm, from the run store or trained now."""
    own = study_config(config, study, "robust", seed)
    own = own.replace(diffusion=dict(learning_rate=arm.rate * own.diffusion.learning_rate))
    settings = {
        "stage": "tails study",
        "autodecoder": stage1.digest,
        "unet": own.unet,
        "diffusion": own.diffusion,
        "arm": arm,
        "tail": tail if arm.tail else 0.0,
        "planted_share": study.planted_share,
        "noise_levels": study.noise_levels,
        "seed": seed,
    }

    def train(work: Path) -> None:
        task = ArmDenoising(own, stage1, select_device(device), study, tail if arm.tail else 0.0, arm)
        fit(task, work, runs.Record(work, seed, task.device, **task.facts()))

    return runs.get(f"{config.data.name}-tails", settings, train)


def arm_errors(
    config: Experiment, data: SequenceSet, study: NormalizationStudy, device: str = "auto"
) -> dict[tuple[str, float], list[float]]:
    """Final bulk errors by arm and tail, one for each seed. The heavier tails have the arms of `FOUR` only."""
    stage1 = autodecoder_run(config, data, device)
    jobs = [(name, tail) for tail in study.tails for name in (ARMS if tail == min(study.tails) else FOUR)]
    errors: dict[tuple[str, float], list[float]] = {}
    for name, tail in tqdm(jobs, desc="arms", disable=None):
        for seed in study.seeds:
            run = arm_run(config, stage1, study, ARMS[name], tail, seed, device)
            result, _ = read_weights(run.weights("result"))
            errors.setdefault((name, tail), []).append(float(result["bulk_error"]))
    return errors


def page(
    profile: str,
    data: str,
    study: NormalizationStudy,
    errors: dict[tuple[str, float], list[float]],
    trained: list[widths.Width],
) -> str:
    """Both tables as Markdown."""
    lines = [
        f"# Why robust normalisation loses on a planted tail: {data}, profile {profile}",
        "",
        f"Written by `vader study tails --profile {profile}`. Each row changes one thing about the training of "
        f"`figure9` under robust statistics ({study.latents_seen:,} latents, {len(study.seeds)} seeds). Numbers are "
        "errors on the bulk relative to linear prediction, with 95 % intervals over seeds. An untrained denoiser has "
        "1. Above 1, training has done harm.",
        "",
        "| changed | " + " | ".join(f"tail of ratio {tail:g}" for tail in study.tails) + " |",
        "|---" * (1 + len(study.tails)) + "|",
    ]
    for name in ARMS:
        cells = [said(errors.get((name, tail))) for tail in study.tails]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *widths.lines(trained), ""])


def write(config: Experiment, profile: str, device: str = "auto") -> Path:
    """Train what is not in the run store, and write `tails.md` beside the reports."""
    study = STUDIES[profile]
    data = prepare(config.data)
    errors, trained = arm_errors(config, data, study, device), widths.widths(config, data, study, device)
    file = reports_dir() / "tails.md"
    write_file(file, page(profile, config.data.name, study, errors, trained))
    return file
