"""C.1's filter of badly segmented objects: a volumetric autodecoder is fitted to the masks alone.

Masks are white objects on black. Those of a well segmented object are the views of one shape, which a volume can show
from all sides at once. Masks that contradict each other cannot be fitted: "objects for which the fitting loss is
unusually high are removed".

Loss. Eq. 2's error |O - O_hat|, summed over the pixels of a view, divided by the length of the masks' outlines in the
mean view, in pixels. A good fit errs by part of a pixel along the outline, whatever the object's size, and a thin
object has more outline than a thick one: so divided, losses of all objects can be compared. An object's loss is the
mean of the quarter of its views that fit worst, since masks of a bad object need not all be bad.

Gap. One bad mask among many good ones hardly moves that mean, but its error stands apart. So the views' errors, each
over its own outline, are sorted, and the largest step from one to the next among the worst quarter is judged, too.

Rule. An object is out where a loss exceeds median + k * spread over all objects. The spread is the distance of the
median from the losses' lower quartile, divided by 0.6745, as a normal distribution's is. Bad objects lie above, so they
hardly move it. Where most objects are bad, or there are only a few, median and spread say little: two bounds hold the
threshold between a loss that good objects have and one that no good object has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data import DataError
from ..rendering.cameras import CameraError, Cameras
from ..rendering.render import render_rays
from ..settings.autodecoder import AutodecoderConfig, MaskFilterConfig
from .decoder import Decoder
from .embedding import DenseEmbedding

LEAST_OUTLINE = 0.5  # of the mean view's, by which a view's error is divided at least: a mask may be empty
QUARTILE = 0.6745  # standard deviations from the median to the quartile of a normal distribution
LOSSES = {"loss": ("spreads", "bounds"), "gap": ("gap_spreads", "gap_bounds")}  # and their settings


class Masked(Protocol):
    """An object of which only these are used: masks (v, h, w), uint8 or in [0, 1]; v cameras in the cube's world."""

    key: str
    masks: Tensor
    cameras: Cameras


@dataclass(frozen=True)
class MaskJudgement:
    """What the filter found. losses: by key, "loss" and "gap" of each object, in pixels of outline; thresholds:
    of the two; dropped: by key, why. An object whose masks are all empty is dropped and has no losses."""

    losses: dict[str, dict[str, float]]
    thresholds: dict[str, float]
    dropped: dict[str, str]
    settings: MaskFilterConfig

    def report(self) -> dict[str, Any]:
        """For filter.json: what was measured, the rule in words, and who is out."""
        return {
            "rule": {
                name: f"above median + {getattr(self.settings, k):g} * (median - lower quartile) / {QUARTILE}, "
                f"between {getattr(self.settings, bounds)[0]:g} and {getattr(self.settings, bounds)[1]:g}"
                for name, (k, bounds) in LOSSES.items()
            },
            "thresholds": self.thresholds,
            "objects": len(self.losses.keys() | self.dropped.keys()),
            "dropped": self.dropped,
            "losses": self.losses,
        }


def mask_judge(
    sequences: Iterable[Masked],
    settings: MaskFilterConfig | None = None,
    device: torch.device | str = "cpu",
    total: int | None = None,
) -> MaskJudgement:
    """Fit an autodecoder to the masks of each few objects, and judge all objects by their losses.

    Objects are taken one after the other and only what is compared of a few of them is kept. The result depends on
    their order, but not on the caller's random stream, which is left alone. total: for the progress bar.

    Raises:
        DataError: an object whose masks or cameras cannot be used, or whose key was there before.
    """
    settings = MaskFilterConfig() if settings is None else settings
    device = torch.device(device)
    total = len(sequences) if total is None and hasattr(sequences, "__len__") else total
    losses: dict[str, dict[str, float]] = {}
    empty: list[str] = []
    with tqdm(total=total, desc="masks", unit="object", disable=None) as progress:
        for group in _groups(_targets(sequences, settings, device, empty, progress), settings.objects):
            losses |= _fit(group, settings, device)
            progress.update(len(group))
    return judge(losses, settings, empty)


def judge(losses: dict[str, dict[str, float]], settings: MaskFilterConfig, empty: Iterable[str] = ()) -> MaskJudgement:
    """The rule alone: for losses that were measured in parts."""
    dropped = {key: "all masks are empty" for key in empty}
    thresholds = {}
    for name, (spreads, bounds) in LOSSES.items():
        values = torch.tensor([found[name] for found in losses.values()], dtype=torch.float64)
        thresholds[name] = threshold(values, getattr(settings, spreads), getattr(settings, bounds))
        for key, found in losses.items():
            if found[name] > thresholds[name]:
                dropped.setdefault(key, f"{name} {found[name]:.3f} is above {thresholds[name]:.3f}")
    return MaskJudgement(losses, thresholds, dropped, settings)


def threshold(losses: Tensor, spreads: float, bounds: tuple[float, float]) -> float:
    """The rule's threshold of losses (n,); the upper bound where there are none."""
    if len(losses) == 0:
        return bounds[1]
    quartile, median = torch.quantile(losses, torch.tensor([0.25, 0.5], dtype=losses.dtype)).tolist()
    return min(max(median + spreads * (median - quartile) / QUARTILE, bounds[0]), bounds[1])


# ---------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True, eq=False)
class Target:
    """An object's masks (v, h, w) in [0, 1] at the resolution at which they are compared, and the rays (v * h * w, 3)
    through their pixels."""

    key: str
    masks: Tensor
    origins: Tensor
    directions: Tensor

    def outlines(self) -> Tensor:
        """Length of the outlines in each view (v,), in pixels: an edge from 0 to 1 counts 1."""
        return sum(self.masks.diff(dim=axis).abs().sum(dim=(1, 2)) for axis in (1, 2))


def _targets(
    sequences: Iterable[Masked], settings: MaskFilterConfig, device: torch.device, empty: list[str], progress: tqdm
) -> Iterator[Target]:
    seen: set[str] = set()
    for item in sequences:
        if item.key in seen:
            raise DataError(f"object {item.key!r} is there twice, expected each once")
        seen.add(item.key)
        target = _target(item, settings, device)
        if target.outlines().sum() == 0:
            empty.append(item.key)
            progress.update()
        else:
            yield target


def _target(item: Masked, settings: MaskFilterConfig, device: torch.device) -> Target:
    """Raises DataError for masks or cameras that cannot be used."""
    what, masks, cameras = f"object {item.key!r}", item.masks, item.cameras
    expected = (len(cameras), cameras.height, cameras.width)
    if tuple(masks.shape) != expected or len(cameras) == 0:
        raise DataError(f"{what}: masks have shape {tuple(masks.shape)}, expected {expected} as its cameras")
    try:
        cameras.to("cpu").validate(what)
    except CameraError as error:
        raise DataError(str(error)) from error
    masks = masks.to(device).float() / (1 if masks.is_floating_point() else 255)
    if not ((masks >= 0) & (masks <= 1)).all():
        raise DataError(f"{what}: masks have other values than in [0, 1], expected coverage")
    scale = min(1.0, settings.pixels / max(masks.shape[1:]))
    h, w = (max(1, round(scale * side)) for side in masks.shape[1:])
    masks = F.interpolate(masks[None], (h, w), mode="area")[0]
    shrink = torch.diag(torch.tensor([w / cameras.width, h / cameras.height, 1.0], dtype=torch.float64))
    intrinsics = (shrink @ cameras.intrinsics.cpu().double()).float()
    small = Cameras(cameras.world_to_camera.cpu().float(), intrinsics, h, w)
    origins, directions = (x.reshape(-1, 3).to(device) for x in small.rays())
    return Target(item.key, masks, origins, directions)


def _groups(targets: Iterator[Target], size: int) -> Iterator[list[Target]]:
    """Groups of `size`; the rest and the group before it are shared out evenly, since few objects are fitted better."""
    waiting: list[Target] = []
    for target in targets:
        waiting.append(target)
        if len(waiting) == 2 * size:
            yield waiting[:size]
            waiting = waiting[size:]
    parts = math.ceil(len(waiting) / size)
    for part in range(parts):
        yield waiting[part * len(waiting) // parts : (part + 1) * len(waiting) // parts]


# ---------------------------------------------------------------------------------------- the fit


class MaskAutodecoder(nn.Module):
    """Embeddings and decoder G of a few objects; of the volumes only the density is used, their colour is white."""

    def __init__(self, objects: int, settings: MaskFilterConfig) -> None:
        super().__init__()
        network = AutodecoderConfig(
            embedding_dim=settings.embedding_dim,
            max_channels=settings.max_channels,
            resolution=settings.resolution,
            depth=1,
            attention_resolutions=(),
            latent_resolution=4,
            density_activation="softplus",
            density_scale=10.0,
            density_bias=-2.0,
        )
        self.embedding, self.decoder = DenseEmbedding(objects, settings.embedding_dim), Decoder(network)

    def forward(self) -> Tensor:
        """White volumes (b, 4, s, s, s) of all objects."""
        density = self.decoder(self.embedding.table.weight)[:, :1]
        return torch.cat([density, torch.ones_like(density).expand(-1, 3, -1, -1, -1)], dim=1)


def _fit(group: list[Target], settings: MaskFilterConfig, device: torch.device) -> dict[str, dict[str, float]]:
    """Losses of the objects of a group, after `settings.steps` steps of all of them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = MaskAutodecoder(len(group), settings).to(device).to(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=settings.betas)
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - step / settings.steps)
            origins, directions, masks = _draw(group, settings.rays)
            rendering = render_rays(
                model(), origins, directions, settings.resolution, stratified_seed=step, check=False
            )
            loss = (rendering.occupancy - masks).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        volumes = model()
        return {t.key: _losses(t, volumes[i : i + 1], settings) for i, t in enumerate(group)}


def _draw(group: list[Target], rays: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rays (b, rays, 3) through pixels of each object's views, and their masks (b, rays)."""
    parts = []
    for target in group:
        chosen = torch.randint(target.masks.numel(), (rays,)).to(target.masks.device)
        parts.append((target.origins[chosen], target.directions[chosen], target.masks.flatten()[chosen]))
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def _losses(target: Target, volume: Tensor, settings: MaskFilterConfig) -> dict[str, float]:
    """Error per pixel of outline of the views that fit worst, and how far they stand apart from the others."""
    rendering = render_rays(volume, target.origins[None], target.directions[None], 2 * settings.resolution, check=False)
    error = (rendering.occupancy.view(target.masks.shape) - target.masks).abs().sum(dim=(1, 2))
    outlines, count = target.outlines(), math.ceil(settings.worst_share * len(error))
    loss = error.sort(descending=True).values[:count].mean() / outlines.mean()
    own = (error / outlines.clamp(min=LEAST_OUTLINE * outlines.mean())).sort(descending=True).values
    steps = (own[:-1] - own[1:])[:count]
    return {"loss": loss.item(), "gap": steps.max().item() if len(steps) else 0.0}
