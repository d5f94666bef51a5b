"""Tails of latents as training makes them with the paper's activations, at two widths of the decoder (Fig. 9).

Small profiles scale the density and bound the colour, so that their latents have no tail to speak of. Here stage 1 is
trained as the paper has it, without any scale and with a ReLU alone, and with a decoder of the profile's width and a
wider one. Diffusion then runs on its latents under both statistics, with nothing planted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...data import SequenceSet
from ...diffusion.normalization import NORMALIZED_IQR, RobustStatistics
from ...report import seed_interval
from ...settings.experiment import Experiment
from ...stages import autodecoder_run
from ...store.files import read_weights
from .study import MODES, NormalizationStudy, tailed_run, trained_features

FACTORS = (1, 4)  # times the profile's width
PAPERS = dict(density_activation="relu", density_scale=1.0, density_bias=0.0, colour_activation="none")


@dataclass(frozen=True)
class Width:
    """The latents of one decoder, and what denoisers make of them."""

    channels: int  # of the decoder at its start
    ratio: float  # classic over robust standard deviation: what Fig. 9 shows to be 200
    reach: float  # of the most extreme feature, in robust standard deviations from the median
    errors: dict[str, list[float]]  # error on the bulk by statistics, one for each seed


def wide(config: Experiment, factor: int) -> Experiment:
    """The experiment with the paper's activations and a decoder `factor` times as wide."""
    return config.replace(autodecoder=PAPERS | {"max_channels": factor * config.autodecoder.max_channels})


def widths(config: Experiment, data: SequenceSet, study: NormalizationStudy, device: str = "auto") -> list[Width]:
    """Each of FACTORS measured; what is trained already is found in the run store."""
    found = []
    for factor in FACTORS:
        own = wide(config, factor)
        stage1, features = autodecoder_run(own, data, device), trained_features(own, data, device)
        statistics = RobustStatistics.fit(features)
        spread = NORMALIZED_IQR * statistics.iqr
        errors = {mode: [] for mode in MODES}
        for mode in MODES:
            for seed in study.seeds:
                run = tailed_run(own, stage1, study, mode, 0.0, seed, device)
                errors[mode].append(float(read_weights(run.weights("result"))[0]["bulk_error"]))
        ratio = float(statistics.std / spread)
        reach = float((features - statistics.median).abs().max() / spread)
        found.append(Width(own.autodecoder.max_channels, ratio, reach, errors))
    return found


def lines(found: list[Width]) -> list[str]:
    """The table as lines of Markdown."""
    text = [
        "## Latents as training makes them",
        "",
        "Stage 1 with the paper's activations: a ReLU without scale or bias, and colours without a bound. Nothing is "
        "planted. The paper shows a ratio of 200. A dash stands for what was not trained.",
        "",
        "| channels of the decoder | classic over robust deviation | most extreme feature, robust deviations | error "
        "under robust statistics | under classic ones |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        robust, classic = (said(one.errors.get(mode)) for mode in MODES)
        text.append(f"| {one.channels} | {one.ratio:.3g} | {one.reach:.3g} | {robust} | {classic} |")
    return text


def said(errors: list[float] | None) -> str:
    """Geometric mean over seeds, and its interval."""
    if not errors:
        return "–"
    mean, low, high = (math.exp(x) for x in seed_interval([math.log(e) for e in errors]))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"
