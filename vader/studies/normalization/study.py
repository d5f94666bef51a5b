"""Robust against classic normalisation (Sec. 3.3, supplement "Robust Normalization", Fig. 9).

The paper normalises latents by their median and interquartile range, since a few extreme features ruin mean and
standard deviation. Without this, it finds, "our diffusion training is unable to converge". Here the same denoiser is
trained for the same short budget under both statistics. It sees latents as they come from stage 1, and latents with
planted outliers that make the standard deviation a given number of times too large.

Training losses of two normalisations are losses of two tasks. The bulk error is compared instead: noise is added to the
features themselves, in units of their robust scale, and each denoiser restores them in its own units. The linear
predictor that knows only median and robust scale has a bulk error of 1. Under robust statistics an untrained denoiser
is that predictor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...autodecoder.reconstruction import load_autodecoder
from ...data import SequenceSet
from ...diffusion.denoising import Denoising, extract_latents
from ...diffusion.edm import Denoiser
from ...diffusion.normalization import NORMALIZED_IQR, RobustStatistics
from ...report import decide, seed_interval
from ...settings.checks import require
from ...settings.experiment import Experiment
from ...stages import autodecoder_run
from ...store import runs
from ...store.files import read_weights, save_weights
from ...store.runs import Run
from ...training import LOG_POINTS, fit, select_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODES = ("robust", "classic")
BULK = 4.0  # features within this many robust standard deviations of the median are its bulk


@dataclass(frozen=True)
class NormalizationStudy:
    """The size of the study; network, batch and rates are the experiment's."""

    latents_seen: int  # budget of each training
    tails: tuple[float, ...] = (0.0, 200.0)  # 0: as trained; else classic over robust standard deviation, by planting
    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, noise and planted values
    planted_share: float = 1e-3  # of the cells of the latent volume
    noise_levels: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the bulk error, in robust standard deviations
    points: int = 10  # of the bulk error along a training

    def __post_init__(self) -> None:
        require(len(self.seeds) >= 2, f"seeds are {self.seeds}, expected at least 2, for an interval")
        require(0 < self.planted_share <= 0.1, f"planted_share is {self.planted_share}, expected up to a tenth")
        for tail in self.tails:
            require(tail == 0 or tail >= 2, f"tails have {tail:g}, expected 0 (as trained) or a ratio of at least 2")


# Fig. 9 shows bands of +-3e4 (classic) and +-1.5e2 (robust): a ratio of 200.
STUDIES = {
    "smoke": NormalizationStudy(latents_seen=640, seeds=(0, 1), points=4),
    "laptop": NormalizationStudy(latents_seen=4_000, tails=(0.0, 10.0, 200.0)),
    "gpu": NormalizationStudy(latents_seen=200_000, tails=(0.0, 10.0, 200.0)),
}


def tail_name(tail: float) -> str:
    """'trained' or e.g. 'planted_200'."""
    return f"planted_{tail:g}".replace(".", "_") if tail else "trained"


def plant_tail(features: Tensor, ratio: float, share: float, seed: int) -> Tensor:
    """Features (n, c, r, r, r) with outliers that make their standard deviation about `ratio` times the robust one.

    A share of the cells of (c, r, r, r), the same ones in every object, gets m + s A e^(g/2 - 1/4) instead of its
    feature. m and s are median and robust standard deviation, and A = +-ratio / sqrt(share). The sign and g ~ N(0, 1)
    are drawn for each object and cell, with E[(e^(g/2 - 1/4))^2] = 1. ratio 0 plants nothing.
    """
    if ratio == 0:
        return features
    statistics = RobustStatistics.fit(features)
    generator = torch.Generator().manual_seed(seed)
    flat = features.flatten(1).clone()
    n, cells = flat.shape
    count = max(1, round(share * cells))
    chosen = torch.randperm(cells, generator=generator)[:count]
    magnitude = (0.5 * torch.randn(n, count, generator=generator) - 0.25).exp() * ratio / (count / cells) ** 0.5
    sign = 1 - 2 * torch.randint(2, (n, count), generator=generator)
    flat[:, chosen] = (statistics.median + NORMALIZED_IQR * statistics.iqr * magnitude * sign).to(flat)
    return flat.view_as(features)


class BulkTest:
    """Fixed noisy features, and how well a denoiser restores their bulk whatever they are normalised by."""

    def __init__(self, features: Tensor, levels: tuple[float, ...], objects: int = 16, seed: int = 0) -> None:
        """features: (n, c, r, r, r), of which the first `objects` are used; levels: in robust standard deviations."""
        statistics = RobustStatistics.fit(features)
        self.features = features[:objects]
        self.median, self.spread = statistics.median, NORMALIZED_IQR * statistics.iqr
        self.bulk = (self.features - self.median).abs() <= BULK * self.spread
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(self.features.shape, generator=generator)
        self.levels = levels

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, statistics: RobustStatistics) -> float:
        """Mean square error over the bulk relative to linear prediction, geometric mean over noise levels."""
        require(not statistics.per_channel, "statistics are per channel, expected one scale for all noise levels")
        device = next(denoiser.parameters()).device
        logarithms = []
        for level in self.levels:
            noisy = self.features + level * self.spread * self.noise
            sigma = (level * self.spread / statistics.scale).reshape(1).float()
            x = statistics.normalize(noisy).to(device).contiguous(memory_format=torch.channels_last_3d)
            restored = statistics.denormalize(denoiser(x, sigma.expand(len(x)).to(device)).float()).cpu()
            linear = self.median + (noisy - self.median) / (1 + level**2)
            errors = [(guess - self.features)[self.bulk].double().square().mean() for guess in (restored, linear)]
            logarithms.append(math.log(errors[0] / errors[1]))
        return math.exp(math.fsum(logarithms) / len(logarithms))


class TailedDenoising(Denoising):
    """Stage 2 on latents with a planted tail; its bulk error, not the network, is what the finished run holds."""

    def __init__(
        self, config: Experiment, stage1: Run, device: torch.device, study: NormalizationStudy, tail: float
    ) -> None:
        self.study, self.tail = study, tail
        super().__init__(config, stage1, device)
        steps = self.total // self.per_step
        logged = max(1, steps // LOG_POINTS)  # steps between the points of a run's curves
        self.every = logged * max(1, min(steps, LOG_POINTS) // study.points)

    def features(self, autodecoder_run: Run) -> Tensor:
        features = super().features(autodecoder_run)
        features = plant_tail(features, self.tail, self.study.planted_share, self.config.seed)
        self.test = BulkTest(features, self.study.noise_levels)
        return features

    def step(self, clock: int) -> dict[str, Tensor]:
        errors = {}
        if clock // self.per_step % self.every == 0:
            errors["bulk_error"] = torch.tensor(self.test(self.ema.module, self.statistics))
        return {**super().step(clock), **errors}

    def save(self, work: Path) -> None:
        error = torch.tensor(self.test(self.ema.module, self.statistics), dtype=torch.float64)
        tensors = {"bulk_error": error, **self.statistics.to_tensors()}
        save_weights(work / "result.safetensors", tensors, {"tail": self.tail})


@dataclass(frozen=True)
class Curve:
    """One training of the study."""

    tail: float
    mode: str
    seed: int
    losses: tuple[tuple[int, float], ...]  # (latents seen, training loss), the latter in the mode's own units
    errors: tuple[tuple[int, float], ...]  # (latents seen, bulk error), the last one of the finished denoiser
    ratio: float  # classic over robust standard deviation of the features, as measured
    run: Run

    @property
    def final(self) -> float:
        """Bulk error at the end."""
        return self.errors[-1][1]


def study_config(config: Experiment, study: NormalizationStudy, mode: str, seed: int) -> Experiment:
    """The experiment of one training of the study."""
    diffusion: dict[str, Any] = dict(normalization=mode, latents_seen=study.latents_seen, per_channel=False)
    return config.replace(diffusion=diffusion, seed=seed)


def tailed_run(
    config: Experiment, stage1: Run, study: NormalizationStudy, mode: str, tail: float, seed: int, device: str = "auto"
) -> Run:
    """One training of the study, from the run store or trained now; an interrupted one resumes."""
    own = study_config(config, study, mode, seed)
    settings = {
        "stage": "normalization study",
        "autodecoder": stage1.digest,
        "unet": own.unet,
        "diffusion": own.diffusion,
        "tail": tail,
        "planted_share": study.planted_share if tail else 0.0,
        "noise_levels": study.noise_levels,
        "points": study.points,
        "seed": seed,
    }

    def train(work: Path) -> None:
        task = TailedDenoising(own, stage1, select_device(device), study, tail)
        fit(task, work, runs.Record(work, seed, task.device, **task.facts()))

    return runs.get(f"{config.data.name}-normalization", settings, train)


def normalization_curves(
    config: Experiment, data: SequenceSet, study: NormalizationStudy, device: str = "auto"
) -> list[Curve]:
    """Every training of the study, tails x statistics x seeds, on the latents of the experiment's stage-1 run."""
    stage1 = autodecoder_run(config, data, device)
    jobs = [(tail, mode, seed) for tail in study.tails for mode in MODES for seed in study.seeds]
    curves = []
    for tail, mode, seed in tqdm(jobs, desc="trainings", disable=None):
        run = tailed_run(config, stage1, study, mode, tail, seed, device)
        points = run.record["curves"]["diffusion"]
        result, _ = read_weights(run.weights("result"))
        errors = [(point["clock"], point["bulk_error"]) for point in points if "bulk_error" in point]
        batch = config.diffusion.batch_size
        errors.append((-(-study.latents_seen // batch) * batch, float(result["bulk_error"])))
        losses = tuple((point["clock"], point["loss"]) for point in points)
        ratio = float(result["std"] / (NORMALIZED_IQR * result["iqr"]))
        curves.append(Curve(tail, mode, seed, losses, tuple(errors), ratio, run))
    return curves


def trained_features(config: Experiment, data: SequenceSet, device: str = "auto") -> Tensor:
    """G1's features of the training objects of an experiment, (n, c, r, r, r): what Fig. 9 is a histogram of."""
    chosen = select_device(device)
    return extract_latents(load_autodecoder(autodecoder_run(config, data, device), config, chosen))


# ---------------------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True)
class Finding:
    """A verdict and the sentence that it rests on."""

    verdict: str
    evidence: str


def _final_errors(curves: list[Curve], tail: float, mode: str) -> list[float]:
    """Logarithms of the final bulk errors, by seed."""
    chosen = [c for c in sorted(curves, key=lambda c: c.seed) if c.tail == tail and c.mode == mode]
    return [math.log(c.final) for c in chosen]


def _interval(logarithms: list[float]) -> tuple[str, tuple[float, float, float]]:
    mean, low, high = seed_interval(logarithms)
    return f"{math.exp(mean):.3g} (95 % interval {math.exp(low):.3g} to {math.exp(high):.3g})", (mean, low, high)


def findings(curves: list[Curve], tail: float) -> dict[str, tuple[str, Finding]]:
    """{name of a claim: (the claim in words, what was found)} on latents with a planted tail, or as trained (0)."""
    what = f"a planted tail of ratio {tail:g}" if tail else "latents as they come from training"
    return {
        "needs_robust_statistics": (
            f"Without robust normalisation, diffusion does not converge, on {what}",
            classic_diverges(curves, tail),
        ),
        "robust_beats_classic": (
            f"Robust normalisation leaves the smaller error after the same budget, on {what}",
            robust_wins(curves, tail),
        ),
    }


def classic_diverges(curves: list[Curve], tail: float) -> Finding:
    """The paper's claim: without robust statistics, training does not converge.

    It holds where, over seeds, the classic denoiser ends worse than linear prediction and the robust one better; it
    fails where the classic one, too, ends better. If the robust one does not, the budget decides nothing.
    """
    text, classic = _interval(_final_errors(curves, tail, "classic"))
    robust_text, robust = _interval(_final_errors(curves, tail, "robust"))
    verdict = decide(*classic)
    if verdict == "holds" and robust[2] >= 0:
        verdict = "inconclusive"
    seeds = len({c.seed for c in curves if c.tail == tail})
    return Finding(
        verdict,
        f"error on the bulk of the features relative to linear prediction: classic {text}, robust {robust_text}, "
        f"{seeds} seeds; the classic standard deviation is {_ratio(curves, tail):.3g} times the robust one",
    )


def robust_wins(curves: list[Curve], tail: float) -> Finding:
    """The weaker claim: after the same budget, robust statistics leave the smaller error (paired by seed)."""
    pairs = zip(_final_errors(curves, tail, "classic"), _final_errors(curves, tail, "robust"), strict=True)
    text, interval = _interval([classic - robust for classic, robust in pairs])
    return Finding(decide(*interval), f"classic over robust error on the bulk of the features: {text}")


def _ratio(curves: list[Curve], tail: float) -> float:
    ratios = [c.ratio for c in curves if c.tail == tail]
    return math.fsum(ratios) / len(ratios)


# ---------------------------------------------------------------------------------------------------- pictures


def histogram_figure(features: Tensor, title: str, bins: int = 201) -> Figure:
    """Fig. 9: the histogram of features at three zooms, with the bands of +-3 classic and robust deviations."""
    from matplotlib.figure import Figure

    statistics = RobustStatistics.fit(features)
    values = features.flatten().double().cpu()
    bands = {
        "classic": (float(statistics.mean), 3 * float(statistics.std), "tab:red"),
        "robust": (float(statistics.median), 3 * NORMALIZED_IQR * float(statistics.iqr), "tab:green"),
    }
    extreme = float((values - bands["robust"][0]).abs().max())
    zooms = {"all features": 1.05 * extreme, "classic band": 1.3 * bands["classic"][1]}
    zooms["robust band"] = 1.3 * bands["robust"][1]
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis, (name, reach) in zip(figure.subplots(1, 3), zooms.items(), strict=True):
        centre = bands["classic" if name == "classic band" else "robust"][0]
        low, high = centre - reach, centre + reach
        counts, edges = torch.histogram(values, bins, range=(low, high))
        axis.stairs(counts.numpy(), edges.numpy(), fill=True, color="tab:blue")
        for band, (middle, half, colour) in bands.items():
            axis.axvspan(middle - half, middle + half, color=colour, alpha=0.15, label=f"{band} ±3: ±{half:.3g}")
        axis.set(xlim=(low, high), yscale="log", title=name, xlabel="feature", ylim=(0.5, None))
    figure.axes[-1].legend(fontsize=7)
    return figure


def curves_figure(curves: list[Curve], title: str) -> Figure:
    """Training losses, each in its own units, above bulk errors; a column for each tail, a line for each seed."""
    from matplotlib.figure import Figure

    tails = list(dict.fromkeys(c.tail for c in curves))
    colours = dict(zip(MODES, ("tab:green", "tab:red"), strict=True))
    figure = Figure(figsize=(3.6 * len(tails), 5.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, len(tails), squeeze=False, sharex=True)
    for column, tail in zip(axes.T, tails, strict=True):
        for curve in (c for c in curves if c.tail == tail):
            label = curve.mode if curve.seed == min(c.seed for c in curves) else None
            for axis, points in zip(column, (curve.losses, curve.errors), strict=True):
                axis.plot(*zip(*points, strict=True), color=colours[curve.mode], alpha=0.7, lw=1, label=label)
        column[0].set(title=f"{tail_name(tail)}: σ ratio {_ratio(curves, tail):.3g}", yscale="log")
        column[1].axhline(1, color="black", lw=0.5, ls="--")
        column[1].set(yscale="log", xlabel="latents seen")
    axes[0, 0].set_ylabel("training loss (own units)")
    axes[1, 0].set_ylabel("bulk error (1: linear)")
    axes[0, 0].legend(fontsize=8)
    return figure
