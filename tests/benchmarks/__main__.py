"""Every contest, side by side, with one command:

    python -m tests.benchmarks [PART ...] [--device auto|cpu|cuda] [--threads N] [--report NAME]

runs the parts (renderer, skipping, sampler, stage1, full_size, shards, preparation, training, chamfer, features; all
that use the device unless some are named) and writes `reports/benchmarks.<cpu or the GPU's name>.json` and `.png`.
A selection is only printed, unless `--report NAME` has it as `reports/benchmarks.NAME.json`. Have nothing else run on
the machine. Without PyTorch3D or torch-fidelity, as on many GPU machines, their contests are left out and the report
says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from matplotlib import pyplot as plt

from vader.report.png import figure_png
from vader.settings.table5 import PAPER
from vader.store.files import write_file, write_json
from vader.store.paths import reports_dir
from vader.store.provenance import device_name, environment
from vader.store.runs import RunError, utc_now
from vader.training import select_device

from . import chamfer, features, full_size, preparation, renderer, sampler, shards, skipping, stage1, training
from .contest import Quantity

Part = tuple[list[dict], list[Quantity], dict[str, dict[str, list[tuple[float, float]]]]]  # rows, quantities, curves

SCENES = (renderer.Scene(), renderer.Scene(size=32, samples=48))


def run_renderer(device: torch.device) -> Part:
    rows = [row for scene in SCENES for row in renderer.compare(scene, device)]
    return rows, [q for scene in SCENES for q in renderer.limits(scene, device)], renderer.curves(device)


def run_sampler(device: torch.device) -> Part:
    chairs = PAPER["photoshape_chairs"]
    quantities = sampler.overhead(device) + sampler.overhead(device, chairs, steps=4, batch=1, repeats=3)
    quantities += sampler.paper_size(device)
    if importlib.util.find_spec("torch_fidelity"):
        quantities += sampler.effect_of_precision(device)
    return sampler.compare(device), quantities, {"sampler steps": sampler.curve(device)}


def run_stage1(device: torch.device) -> Part:
    return [], stage1.breakdown(device), {}


def run_full_size(device: torch.device) -> Part:
    return [], full_size.measure(device), {}


# Those that follow, but the last, use no GPU, and are left out of the report of one.
def run_skipping(device: torch.device) -> Part:
    rows, quantities = skipping.gains()
    return rows + skipping.kept(), quantities, {}


def run_shards(device: torch.device) -> Part:
    return [], shards.startup(), {}


def run_preparation(device: torch.device) -> Part:
    return [], preparation.growth(), {}


def run_training(device: torch.device) -> Part:
    """Ranks are processes of this machine."""
    return training.two_ranks() + training.views(), training.loop_share(), {}


def run_chamfer(device: torch.device) -> Part:
    return chamfer.compare(), [], {}


def run_features(device: torch.device) -> Part:
    return features.compare(), [], {}


PARTS: dict[str, tuple[Callable[[torch.device], Part], tuple[str, ...]]] = {  # what runs, and what it needs
    "renderer": (run_renderer, ()),
    "sampler": (run_sampler, ()),
    "stage1": (run_stage1, ()),
    "full_size": (run_full_size, ()),
    "skipping": (run_skipping, ("numba",)),
    "shards": (run_shards, ("webdataset",)),
    "preparation": (run_preparation, ("webdataset",)),
    "training": (run_training, ()),
    "chamfer": (run_chamfer, ("pytorch3d", "numba")),
    "features": (run_features, ("torch_fidelity",)),
}
CPU_ONLY = ("skipping", "shards", "preparation", "training", "chamfer")


def plot(curves: dict[str, dict[str, list[tuple[float, float]]]], title: str):
    """One panel per quantity: seconds against it, a line per contestant, both axes logarithmic."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3.2), layout="constrained", squeeze=False)
    for axis, (quantity, lines) in zip(axes[0], curves.items(), strict=True):
        for name, points in lines.items():
            axis.loglog(*zip(*points, strict=True), marker="o", label=name)
        ticks = [x for x, _ in next(iter(lines.values()))]
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axis.minorticks_off()
        axis.set(xlabel=quantity, ylabel="seconds per sample" if "steps" in quantity else "seconds forward + backward")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=9)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Run the benchmarks.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: the device's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all)")
    parser.add_argument("--report", metavar="NAME", help="name of the report (default: the device's, of all its parts)")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    try:
        device = select_device(options.device)
    except RunError as error:
        parser.error(str(error))

    rows: list[dict] = []
    quantities: list[Quantity] = []
    curves: dict[str, Any] = {}
    left_out: list[str] = []
    for name in options.parts or [part for part in PARTS if device.type == "cpu" or part not in CPU_ONLY]:
        run, needs = PARTS[name]
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if missing:
            left_out.append(f"{name} (needs {', '.join(missing)})")
            continue
        more_rows, more_quantities, more_curves = run(device)
        for item in [*more_rows, *map(asdict, more_quantities)]:
            print(json.dumps(item), flush=True)
        rows, quantities, curves = rows + more_rows, quantities + more_quantities, curves | more_curves
    if options.parts and not options.report:
        return 0
    kind = "cpu" if device.type == "cpu" else device_name(device)
    kind = re.sub(r"[^a-z0-9]+", "-", (options.report or kind).lower())
    report = {
        "created": utc_now(),
        "environment": {**environment(device), "threads": options.threads},
        "left_out": left_out,
        "rows": rows,
        "quantities": [asdict(q) for q in quantities],
        "curves": curves,
    }
    file = reports_dir() / f"benchmarks.{kind}.json"
    write_json(file, report)
    if curves:
        title = f"{device_name(device)}, {options.threads} threads" if kind == "cpu" else device_name(device)
        write_file(file.with_suffix(".png"), figure_png(plot(curves, title)))
    print(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
