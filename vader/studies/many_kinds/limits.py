"""What limits a reconstruction: one part after the other is replaced by the truth.

Stage 1 makes volumes out of embeddings that it shares a decoder for. Here the decoder is left out: the voxels of single
objects are fitted to their pictures by gradients through the same renderer, under the same losses. Fitted to all views,
they show what a volume of that resolution can hold. Fitted to the training views alone, they show what these say of the
others. What the autodecoder has less than that is lost in embeddings, decoder and training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Items
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...autodecoder.losses import image_losses
from ...autodecoder.reconstruction import load_autodecoder
from ...data import Sequence, SequenceSet
from ...evaluation.metrics.images import foreground_psnr, psnr
from ...evaluation.pictures import Mean, heldout_scores, mean_over_objects
from ...generation.parallel import side_by_side
from ...generation.volumes import Models
from ...rendering.render import render_images, render_views
from ...settings.checks import require
from ...settings.experiment import Experiment
from ...stages import autodecoder_run
from ...store.files import read_json, write_json
from ...store.paths import project_root, reports_dir
from ...store.provenance import environment

STEPS, VIEWS_PER_STEP = 200, 5
RATE = 0.05  # of Adam on raw voxels; it falls to a tenth
SMOOTHNESS = 0.02  # of raw voxels, mean absolute difference of neighbours: empty space between few views stays empty
CHOSEN = 24  # objects, spread over the training objects
OWN = "autodecoder, same objects"
PARTS = {  # variant of a report's row -> whether held-out views are fitted as well
    "voxels fitted to all views": True,
    "voxels fitted to training views": False,
}


def chosen_objects(count: int, wanted: int = CHOSEN) -> list[int]:
    """Numbers of `wanted` of `count` training objects, evenly spread; all where there are fewer."""
    return torch.linspace(0, count - 1, min(wanted, count)).round().int().tolist()


def fit_voxels(sequence: Sequence, views: int, config: Experiment, steps: int = STEPS, seed: int = 0) -> Tensor:
    """The volume (1, 4, S, S, S) of one object, fitted to the first `views` of its views by Adam.

    Density and colour come from raw voxels by the activations of the decoder, and start as its thin fog. The losses are
    stage 1's, without the perceptual one. Raises ConfigError for no views and no steps.
    """
    require(0 < views <= len(sequence), f"views is {views}, expected 1 to {len(sequence)}, those of {sequence.key}")
    require(steps > 0, f"steps is {steps}, expected at least 1")
    settings, side = config.reconstruction, config.autodecoder.resolution
    raw = torch.zeros(1, 4, side, side, side)
    raw[:, 0] = config.autodecoder.density_bias
    raw = nn.Parameter(raw)
    optimizer = torch.optim.Adam([raw], lr=RATE, betas=(0.9, 0.99))
    images, masks = sequence.colours(slice(views)), sequence.alphas(slice(views))
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * 0.1 ** (step / steps)
        drawn = torch.randperm(views, generator=generator)[:VIEWS_PER_STEP]
        volume = _activated(raw, config)
        stratified_seed = int(torch.randint(2**31, (), generator=generator))
        colour, occupancy, _ = render_images(
            volume, sequence.cameras[drawn], settings.num_samples, stratified_seed=stratified_seed
        )
        losses = image_losses(settings, None, colour[0], occupancy[0], images[drawn], masks[drawn])
        loss = sum(losses.values()) + SMOOTHNESS * sum(raw.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return _activated(raw.detach(), config)


def _activated(raw: Tensor, config: Experiment) -> Tensor:
    """What the decoder makes of its last layer (`Decoder.g2`)."""
    density = F.softplus(raw[:, :1]) if config.autodecoder.density_activation == "softplus" else F.relu(raw[:, :1])
    colour = raw[:, 1:4].sigmoid() if config.autodecoder.colour_activation == "sigmoid" else raw[:, 1:4]
    return torch.cat([config.autodecoder.density_scale * density, colour], dim=1)


def fitted_scores(models: Models, objects: Items[int], everything: bool, steps: int = STEPS) -> dict[str, Tensor]:
    """PSNR of fitted volumes on held-out views: 'psnr' and 'psnr_foreground' (dB), (n,) each, as `heldout_scores`.

    everything: held-out views are fitted as well.
    """
    data = models.data.split("train")
    views = slice(data.train_views, data.train_views + data.heldout_views)

    def score(index: int) -> dict[str, Tensor]:
        sequence = data[index]
        fitted = len(sequence) if everything else data.train_views
        volume = fit_voxels(sequence, fitted, models.config, steps, index)
        samples = models.config.reconstruction.num_samples
        rendered = render_views(volume, sequence.cameras[views], samples, normals=False)["colour"][0]
        target, mask = sequence.colours(views), sequence.alphas(views)
        return {
            "psnr": psnr(rendered, target).mean(),
            "psnr_foreground": foreground_psnr(rendered, target, mask),
        }

    found = list(tqdm(side_by_side(score, objects, models.device), total=len(objects), desc="voxels", disable=None))
    return {name: torch.stack([values[name] for values in found]) for name in found[0]}


Limits = dict[str, dict[str, Mean]]  # part that is true -> 'psnr', 'psnr_foreground' -> mean over objects


def measured(models: Models, objects: Items[int], steps: int = STEPS) -> Limits:
    """The parts one after the other, the autodecoder itself last."""
    scores = {part: fitted_scores(models, objects, everything, steps) for part, everything in PARTS.items()}
    own = heldout_scores(models, objects)
    scores[OWN] = {name: own[name] for name in ("psnr", "psnr_foreground")}
    return {part: {name: mean_over_objects(values) for name, values in found.items()} for part, found in scores.items()}


# ------------------------------------------------------------------------------------------- kept beside the reports


def limits_file(data: str, profile: str) -> Path:
    return reports_dir() / f"limits-{data}-{profile}.json"


def measure_and_write(config: Experiment, data: SequenceSet, wanted: int = CHOSEN, steps: int = STEPS) -> Limits:
    """`measured` on `wanted` training objects, kept in `limits_file`. Stage 1 is trained first where there is none.

    Raises ConfigError for videos, whose subjects move.
    """
    require(not config.articulated, f"{config.data.name} are videos, expected objects that stand still")
    run, device = autodecoder_run(config, data, "cpu"), torch.device("cpu")
    models = Models(config, data, (run,), load_autodecoder(run, config, device), device)
    found = measured(models, chosen_objects(len(data.split("train")), wanted), steps)
    parts = {part: {name: dataclasses.asdict(s) for name, s in scores.items()} for part, scores in found.items()}
    content = {"environment": environment("cpu"), "run": run.digest, "steps": steps, "parts": parts}
    write_json(limits_file(config.data.name, config.profile), content)
    return found


def kept(data: str, profile: str) -> dict:
    """The parts in a `limits_file`, empty where there is none. The committed file is read where the reports folder is
    another ($VADER_REPORTS) and has none."""
    file = limits_file(data, profile)
    file = file if file.is_file() else project_root() / "reports" / file.name
    return read_json(file)["parts"] if file.is_file() else {}


def read_limits(config: Experiment) -> Limits:
    """What was measured for an experiment's data, empty where nothing was."""
    parts = kept(config.data.name, config.profile)
    return {part: {name: Mean(**s) for name, s in scores.items()} for part, scores in parts.items()}


def lines(found: Limits) -> Iterator[str]:
    """Each part in words."""
    for part, scores in found.items():
        values = ", ".join(f"{name} {s.value:.2f} dB ({s.low:.2f} to {s.high:.2f})" for name, s in scores.items())
        yield f"{part}: {values}; {scores['psnr'].n} objects"
