"""Pictures of the method: the framework drawn from its modules, and one object followed through it.

Nothing here is drawn by hand. Shapes, parameters and operations come from the live modules (`costs`), and volumes from
a forward pass that is watched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..autodecoder.decoder import Decoder
from ..autodecoder.reconstruction import Autodecoder
from ..diffusion.edm import Denoiser, per_object
from ..diffusion.normalization import RobustStatistics
from ..evaluation import costs
from ..settings.experiment import Experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"G1": "#4c78a8", "G2": "#f58518", "denoiser": "#54a24b"}
STEP = 2.5  # between the volumes of a row


# ------------------------------------------------------------------------------------------------ following an object


@torch.no_grad()
def follow(decoder: Decoder, embedding: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One embedding (embedding_dim,) through G: the features (c, r, r, r) at each resolution, and the volume.

    The features are called '4³', '8³', ...; the volume is (1 + 3 (+ lbs), S, S, S) with the density first.
    """
    features: dict[str, Tensor] = {}

    def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        for x in (inputs[0], output):
            features[f"{x.shape[-1]}³"] = x[0].float().cpu()

    hooks = [stage.register_forward_hook(note) for stage in decoder.stages]
    volume = decoder(embedding[None])[0].cpu()
    for hook in hooks:
        hook.remove()
    return features, volume


@torch.no_grad()
def noise_and_denoise(
    denoiser: Denoiser, statistics: RobustStatistics, features: Tensor, sigmas: Sequence[float], seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features F (c, r, r, r) noised to each sigma (after normalisation), and the denoiser's one-step estimates.

    Both are (len(sigmas), c, r, r, r) and back in the units of F, ready for G2. The noise is the same at every sigma.
    """
    x = statistics.normalize(features[None])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    sigma = torch.tensor(sigmas)
    noisy = x + per_object(sigma, x) * noise
    return statistics.denormalize(noisy), statistics.denormalize(denoiser(noisy, sigma))


def projection(volume: Tensor) -> Tensor:
    """Magnitude over channels of (c, d, h, w), its maximum along z: the view from the front (h, w), y upwards."""
    return volume.square().mean(0).sqrt().amax(0).flip(0)


def middle_slice(volume: Tensor) -> Tensor:
    """Magnitude over channels of (c, d, h, w) in the slice z = 0, (h, w), y upwards."""
    return volume.square().mean(0).sqrt()[volume.shape[1] // 2].flip(0)


def journey(
    embedding: Tensor, features: dict[str, Tensor], volume: Tensor, rendered: Tensor, real: Tensor, title: str
) -> Figure:
    """From an embedding (n,) over `follow`'s volumes to pictures: rendered and real (h, w, 3) from the same camera."""
    from matplotlib.figure import Figure

    columns = {f"F at {name}, {len(x)} channels": x for name, x in features.items()}
    columns |= {f"density {volume.shape[-1]}³": volume[:1]}
    figure = Figure(figsize=(1.75 * (len(columns) + 2), 4.0), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2, len(columns) + 2)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    embedding = embedding.detach().cpu()
    side = math.isqrt(len(embedding))
    shown = embedding[: len(embedding) // side * side].view(side, -1)
    axes[0, 0].imshow(shown, cmap="coolwarm", vmin=-3, vmax=3)
    axes[0, 0].set_title(f"embedding, {len(embedding)} numbers", fontsize=7)
    axes[1, 0].hist(embedding, bins=16, color="0.5")
    axes[1, 0].set_title("their histogram", fontsize=7)
    for axis, (name, x) in zip(axes[:, 1:-1].T, columns.items(), strict=True):
        axis[0].imshow(projection(x), cmap="magma", interpolation="nearest", vmin=0)
        axis[0].set_title(f"{name}\nmaximum along z", fontsize=7)
        axis[1].imshow(middle_slice(x), cmap="magma", interpolation="nearest", vmin=0)
        axis[1].set_title("middle slice", fontsize=7)
    for axis, image, name in zip(axes[:, -1], (rendered, real), ("rendered", "real image"), strict=True):
        axis.imshow(image.clamp(0, 1), interpolation="nearest")
        axis.set_title(name, fontsize=7)
    return figure


# ------------------------------------------------------------------------------------------------------- costs


def cost_bars(config: Experiment, title: str) -> Figure:
    """Parameters and operations of each stage of an experiment, as bars beside one another."""
    from matplotlib.figure import Figure

    stages = costs.stages(config)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{s.part}: {s.name}" for s in stages]
    colours = [COLOURS[s.part] for s in stages]
    left.barh(names, [s.parameters / 1e6 for s in stages], color=colours)
    right.barh(names, [s.flops / 1e9 for s in stages], color=colours)
    left.invert_yaxis()
    left.set_xlabel("million parameters", fontsize=8)
    right.set_xlabel("GFLOP of one forward pass, one object", fontsize=8)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
    return figure


# --------------------------------------------------------------------------------------------------- the framework


def framework(autodecoder: Autodecoder, denoiser: Denoiser, title: str, picture: Tensor | None = None) -> Figure:
    """Figure 1 from the modules: library of embeddings, G1, latents, denoiser, G2, renderer.

    Each volume is a cube as wide as the logarithm of its resolution, with its shape below it and, above the arrow that
    makes it, parameters and operations. picture: a rendering (h, w, 3) to show at the end.
    """
    from matplotlib.figure import Figure

    decoder = autodecoder.decoder
    first, second = costs.decoder_stages(decoder), costs.denoiser_stages(denoiser.network)
    width = STEP * (len(first) + 2)
    figure = Figure(figsize=(0.62 * width, 5.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axis = figure.subplots()
    axis.set_aspect("equal")
    axis.axis("off")

    library = autodecoder.embedding
    for i in range(5):
        _box(axis, -0.55 + 0.07 * i, 0.35 - 0.17 * i, 1.1, 0.14, "0.85")
    size = f"{library.num_objects} × {library.dim}"
    axis.text(0.1, -0.75, f"library of embeddings\n{size}", ha="center", va="top", fontsize=7)
    x = 0.9
    for stage in first:
        x = _arrow(axis, x, 0, stage)
        _cube(axis, x, 0, stage)
        if stage is first[decoder.num_g1_stages]:
            latent = x
        x += _side(stage) / 2
    for part, colour in list(COLOURS.items())[:2]:
        inside = [i for i, s in enumerate(first) if s.part == part]
        a, b = 0.9 + STEP * inside[0], 0.9 + STEP * (inside[-1] + 1) - 0.3
        axis.plot([a, b], [1.35, 1.35], color=colour, lw=3, solid_capstyle="butt")
        total = sum(s.parameters for s in first if s.part == part)
        label = f"{part[0]}{'₁₂'[part == 'G2']}: {_count(total)} parameters"
        axis.text((a + b) / 2, 1.42, label, ha="center", fontsize=8, color=colour)
    _plain_arrow(axis, x + 0.2, 0, x + STEP - 0.75, 0)
    axis.text(x + STEP / 2 - 0.3, 0.12, "render\nEq. 6–7", ha="center", va="bottom", fontsize=6)
    x += STEP
    if picture is None:
        _box(axis, x - 0.65, -0.65, 1.3, 1.3, "0.85")
    else:
        axis.imshow(picture.clamp(0, 1), extent=(x - 0.65, x + 0.65, -0.65, 0.65), zorder=2)
    axis.text(x, -0.75, "picture", ha="center", va="top", fontsize=7)

    left, right, low = _second_stage(axis, second, latent)
    axis.set_xlim(min(-0.8, left - 1), max(x, right) + 1)
    axis.set_ylim(low - 2.1, 1.9)
    return figure


def _second_stage(axis: Axes, second: list[costs.Stage], latent: float) -> tuple[float, float, float]:
    """Down from the latent volume at x = `latent`, through the U-Net, and back up to G2: its ends, and its height."""
    start, y = latent - STEP * (len(second) - 1) / 2 * 0.8, -3.5
    start = max(start, 0.4)
    xs = [start + 0.8 * STEP * i for i in range(len(second))]
    for i, (stage, at) in enumerate(zip(second, xs, strict=True)):
        low = y - 0.35 * (i in range(2, len(second) - 2))
        _cube(axis, at, low, stage, scale=0.8)
        cost = f"{stage.name}\n{_count(stage.parameters)}, {_count(stage.flops)}FLOP"
        axis.text(at + 0.1, low + 0.75, cost, ha="center", fontsize=6)
        if i:
            _plain_arrow(axis, xs[i - 1] + 0.55, y, at - 0.5, y)
    colour, total = COLOURS["denoiser"], sum(s.parameters for s in second)
    axis.plot([xs[0] - 0.5, xs[-1] + 0.5], [y - 1.45, y - 1.45], color=colour, lw=3, solid_capstyle="butt")
    label = f"denoiser: {_count(total)} parameters, run 2N − 1 times from noise to a latent volume"
    axis.text((xs[0] + xs[-1]) / 2, y - 1.55, label, ha="center", va="top", fontsize=8, color=colour)
    _plain_arrow(axis, latent, -1.15, xs[0], y + 1.45, style="dashed")
    axis.text((latent + xs[0]) / 2 - 0.4, -1.5, "training:\nnormalise", ha="right", fontsize=7)
    back = dict(arrowstyle="->", lw=1, connectionstyle="angle,angleA=180,angleB=-90,rad=4")
    axis.annotate("", (latent + 0.42 * STEP, -0.2), (xs[-1], y + 1.45), arrowprops=back)
    axis.text(latent + 0.5 * STEP, y + 1.55, "generation: de-normalise, then G₂", ha="left", fontsize=7)
    return xs[0], xs[-1], y


def _side(stage: costs.Stage) -> float:
    return 0.3 + 0.13 * math.log2(stage.shape[-1])


def _count(number: float) -> str:
    """12345678 -> '12.3 M'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def _cube(axis: Axes, x: float, y: float, stage: costs.Stage, scale: float = 1.0) -> None:
    """A cube in oblique projection, centred at (x, y), with its shape below."""
    from matplotlib.patches import Polygon

    s, colour = scale * _side(stage), COLOURS[stage.part]
    a, b, c, d = (x - s / 2, y - s / 2), (x + s / 2, y - s / 2), (x + s / 2, y + s / 2), (x - s / 2, y + s / 2)
    shift = 0.3 * s
    b2, c2, d2 = ((px + shift, py + shift) for px, py in (b, c, d))
    for corners, alpha in (((a, b, c, d), 0.55), ((d, c, c2, d2), 0.35), ((b, b2, c2, c), 0.75)):
        axis.add_patch(Polygon(corners, facecolor=colour, alpha=alpha, edgecolor="black", lw=0.6))
    text = stage.volume + (f"\n{stage.attention}" if stage.attention else "")
    axis.text(x, y - s / 2 - 0.1, text, ha="center", va="top", fontsize=7 * scale**0.5)


def _arrow(axis: Axes, x: float, y: float, stage: costs.Stage) -> float:
    """The arrow that makes a stage's volume, labelled with its cost; returns where the volume's centre goes."""
    centre = x + STEP - _side(stage) / 2
    _plain_arrow(axis, x + 0.1, y, x + STEP - _side(stage) - 0.1, y)
    cost = f"{stage.name}\n{_count(stage.parameters)}\n{_count(stage.flops)}FLOP"
    axis.text(x + (STEP - _side(stage)) / 2, y + 0.12, cost, ha="center", va="bottom", fontsize=6)
    return centre


def _plain_arrow(axis: Axes, x0: float, y0: float, x1: float, y1: float, style: str = "solid") -> None:
    axis.annotate("", (x1, y1), (x0, y0), arrowprops=dict(arrowstyle="->", lw=1, linestyle=style))


def _box(axis: Axes, x: float, y: float, w: float, h: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="black", lw=0.6))
