"""The baselines of Tables 1 and 4, found or trained on the same data as ours, ready to generate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..generation.volumes import Generator, Models
from ..settings.diffrf import diffrf
from ..store import runs
from ..store.runs import Run
from .diffrf import diffrf_run, diffrf_settings, diffrf_system
from .eg3d import EG3D
from .gan import Baseline
from .pi_gan import PI_GAN

GANS = {baseline.name: baseline for baseline in (EG3D, PI_GAN)}
RIVALS = {"diffrf": "DiffRF"} | {name: gan.label for name, gan in GANS.items()}  # from Tab. 1's best to its worst


@dataclass(frozen=True)
class Rival:
    """A trained baseline."""

    run: Run
    generator: Generator


def trained_rivals(models: Models, train: bool) -> dict[str, Rival]:
    """{name: baseline} on the data, profile and seed of ours, in the order of `RIVALS`.

    train: train those that the run store lacks; otherwise they are left out.
    """
    openers: dict[str, Callable[[Models, bool], Rival | None]] = {
        "diffrf": _diffrf,
        "eg3d": lambda *asked: _gan(EG3D, *asked),
        "pi_gan": lambda *asked: _gan(PI_GAN, *asked),
    }
    found = {name: openers[name](models, train) for name in RIVALS}
    return {name: rival for name, rival in found.items() if rival is not None}


def _diffrf(models: Models, train: bool) -> Rival | None:
    data, device = models.data, models.device.type
    config = diffrf(models.config.profile, models.config.seed)
    run = diffrf_run(config, data, device) if train else runs.find(f"{data.name}-diffrf", diffrf_settings(config, data))
    return run and Rival(run, models.generator(diffrf_system(run, config, data, device), "diffrf"))


def _gan(baseline: Baseline, models: Models, train: bool) -> Rival | None:
    config, data, device = models.config, models.data, models.device.type
    run = baseline.run(config, data, device) if train else baseline.find(config, data)
    return run and Rival(run, baseline.load(run, config, data, device))
