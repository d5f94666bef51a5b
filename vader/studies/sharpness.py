"""What makes furniture sharper: stage 1 with one change at a time, three seeds each, and what storing it costs.

    vader study sharpness --profile laptop

trains what is missing and writes `reports/sharpness.md` and `reports/sharpness-<profile>.json`. Each change is compared
with the same seed without it, on views that training never drew. A change that makes training longer is beside one that
only repeats more of the same, so that a reader can tell what time alone buys.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch import Tensor, nn

from ..autodecoder.reconstruction import Autodecoder, load_autodecoder
from ..data import SequenceSet
from ..evaluation.pictures import heldout_scores
from ..generation.volumes import Models
from ..report import decide, seed_interval
from ..settings.experiment import Experiment
from ..settings.studies import study
from ..stages import autodecoder_run
from ..store.files import write_file, write_json
from ..store.paths import reports_dir
from ..store.provenance import environment
from ..training import select_device
from .sweep import SEEDS, Measurements, Sweep, Table

PLAIN = "as it is"
QUANTITIES = {"psnr": "PSNR, dB", "psnr_foreground": "PSNR of the foreground, dB", "lpips": "LPIPS"}
LESS_IS_BETTER = {"lpips"}
STORED = {  # ending of a quantity -> what was changed about a trained model
    "_float16": "weights rounded to float16, as runs keep them",
    "_statistics": "batch norm with the statistics of all objects together",
}


def sharpness(profile: str, seed: int = 0) -> Sweep:
    """Stage 1 of furniture's chairs, and the same with one setting changed. seed: the first of the seeds."""
    base = study("sharpness", profile).replace(seed=seed)
    stage1, g = base.reconstruction, base.autodecoder
    half, double = dict(objects_per_step=stage1.objects_per_step // 2), 2 * stage1.objects_per_step
    changes = {
        "twice the images": dict(reconstruction=dict(images_seen=2 * stage1.images_seen)),
        "twice the objects a step, half the views of each": dict(
            reconstruction=dict(objects_per_step=double, views_per_object=stage1.views_per_object // 2)
        ),
        "half the objects a step, twice the steps": dict(reconstruction=half),
        "twice the learning rate": dict(reconstruction=dict(learning_rate=2 * stage1.learning_rate)),
        "twice the voxels along each side": dict(autodecoder=dict(resolution=2 * g.resolution)),
    }
    if stage1.perceptual_network != "none":
        changes |= {
            "0.4 of the perceptual weight": dict(reconstruction=dict(perceptual_weight=0.4 * stage1.perceptual_weight)),
            "half the images under the perceptual loss": dict(
                reconstruction=dict(perceptual_images=stage1.perceptual_images // 2)
            ),
        }
    experiments = {PLAIN: base} | {name: base.replace(**change) for name, change in changes.items()}
    seeds = tuple(range(seed, seed + SEEDS[profile]))
    budget = f"{stage1.images_seen:,} images, or twice as many where that is the change"
    return Sweep("sharpness", base, experiments, seeds, budget, measure)


def measure(
    sweep: Sweep, experiment: Experiment, data: SequenceSet, device: str, max_seconds: float | None
) -> Measurements:
    """Scores of each training object on its held-out views, of the unchanged training also as stored (`STORED`), and
    seconds of training."""
    run, place = autodecoder_run(experiment, data, device, max_seconds), select_device(device)

    def scores(model: Autodecoder) -> dict[str, Tensor]:
        return heldout_scores(Models(experiment, data, (run,), model, place))

    found = scores(load_autodecoder(run, experiment, place))
    found["seconds"] = torch.tensor(run.record["seconds"], dtype=torch.float64)
    if experiment.replace(seed=sweep.base.seed) == sweep.base:
        rounded = load_autodecoder(run, experiment, place)
        for tensor in rounded.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
        known = load_autodecoder(run, experiment, place)
        take_statistics(known, len(data.split("train")))
        for ending, model in (("_float16", rounded), ("_statistics", known)):
            found |= {name + ending: values for name, values in scores(model).items()}
    return found


@torch.no_grad()
def take_statistics(model: Autodecoder, objects: int) -> None:
    """Give each batch norm of a model the statistics over all of its `objects` decoded at once, not running ones."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean, here of one batch
        norm.train()
    model(torch.arange(objects, device=next(model.parameters()).device))
    for norm in norms:
        norm.eval()


def gains(table: Table) -> dict[str, dict[str, tuple[float, float, float]]]:
    """{change: {quantity: what it exceeds the unchanged training by, mean and interval over seeds}}."""
    found = {
        name: {quantity: table.difference(name, PLAIN, quantity) for quantity in QUANTITIES}
        for name in table.sweep.experiments
        if name != PLAIN
    }
    for ending, what in STORED.items():
        found[what] = {}
        for quantity in QUANTITIES:
            pairs = zip(table.over_seeds(PLAIN, quantity + ending), table.over_seeds(PLAIN, quantity), strict=True)
            found[what][quantity] = seed_interval([a - b for a, b in pairs])
    return found


def verdict(quantity: str, difference: tuple[float, float, float]) -> str:
    """'better', 'worse' or 'open': the sign of a gain of `gains`, where its interval leaves out 0."""
    value, low, high = difference
    if quantity in LESS_IS_BETTER:
        value, low, high = -value, -high, -low
    return {"holds": "better", "fails": "worse"}.get(decide(value, low, high), "open")


def relative_cost(table: Table, name: str) -> float:
    """Seconds of a training over those of the unchanged one of the same seed, mean over seeds."""
    pairs = zip(table.over_seeds(name, "seconds"), table.over_seeds(PLAIN, "seconds"), strict=True)
    return statistics.fmean(a / b for a, b in pairs)


def page(table: Table) -> str:
    """All gains as a table in Markdown."""
    base, found = table.sweep.base, gains(table)
    profile = base.profile
    seeds = len(table.sweep.seeds)
    plain = ", ".join(
        f"{title.removesuffix(', dB')} {value:.3g}{' dB' if title.endswith('dB') else ''}"
        for quantity, title in QUANTITIES.items()
        for value in [table.row(PLAIN, quantity)["value"]]
    )
    lines = [
        f"# What makes furniture sharper, profile {profile}",
        "",
        f"Written by `vader study sharpness --profile {profile}`. Stage 1 of {base.data.num_objects} chairs is trained "
        f"on {base.reconstruction.images_seen:,} images, with {seeds} seeds. Scores are of views that training never "
        "drew. Each row changes one setting and is compared with the same seed without it: differences with 95 % "
        "intervals over seeds. These trainings are shorter than those of the profile. What wins late in a long one "
        "may lose here. Times are those of trainings that ran beside each other.",
        "",
        f"As it is: {plain}.",
        "",
        "| change | " + " | ".join(QUANTITIES.values()) + " | time of training |",
        "|---" * (2 + len(QUANTITIES)) + "|",
    ]
    for name, differences in found.items():
        cells = [
            f"{value:+.3g} ({low:.3g} to {high:.3g}), {verdict(quantity, (value, low, high))}"
            for quantity, (value, low, high) in differences.items()
        ]
        cost = "–" if name in STORED.values() else f"× {relative_cost(table, name):.1f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {cost} |")
    return "\n".join([*lines, ""])


def write(table: Table) -> list[Path]:
    """Write numbers and page of a measured study beside the reports."""
    found = {
        name: {quantity: dict(zip(("value", "low", "high"), x, strict=True)) for quantity, x in differences.items()}
        for name, differences in gains(table).items()
    }
    seconds = {name: table.over_seeds(name, "seconds") for name in table.sweep.experiments}
    content = {
        "environment": environment("cpu"),
        "run": table.run.digest,
        "seeds": table.sweep.seeds,
        "plain": {quantity: table.over_seeds(PLAIN, quantity) for quantity in QUANTITIES},
        "differences": found,
        "seconds": seconds,
    }
    numbers, text = reports_dir() / f"sharpness-{table.sweep.base.profile}.json", reports_dir() / "sharpness.md"
    write_json(numbers, content)
    write_file(text, page(table))
    return [numbers, text]
