"""C.1's filter of badly segmented objects: a volumetric autodecoder is fitted to the masks alone.

Masks are white objects on black. Those of a well segmented object are the views of one shape, which a volume can show
from all sides at once. Masks that contradict each other cannot be fitted: "objects for which the fitting loss is
unusually high are removed".

Loss. Eq. 2's error |O - O_hat|, summed over the pixels of a view, divided by the length of the masks' outlines in the
mean view, in pixels. Where the picture's edge cuts a mask, the edge counts as outline. A good fit errs by part of a
pixel along the outline, whatever the object's size, and a thin object has more outline than a thick one: so divided,
losses of all objects can be compared. An object's loss is the mean of the quarter of its views that fit worst, since
masks of a bad object need not all be bad.

Unexplained. A fit ends above its best, most where thin parts fill the picture or its edge cuts them, and an autodecoder
of this size cannot draw all of them. One bad mask among many hardly moves it. So the loss alone tells gross failures
only. The same question has an answer without a fit: which share of the masks' pixels shows no point of the visual hull,
the points of the cube that all views which see them have inside their masks? It is 0 for exact masks of any shape, also
of one that pictures cut. A mask that lacks half of the object, or is another frame's, takes that half from the hull and
so from all other views. Masks may err by `hull_slack` pixels.

Rule. An object is out where its loss or its unexplained share exceeds median + k * spread over all objects. The spread
is the distance of the median from the values' lower quartile, divided by 0.6745, as a normal distribution's is. Bad
objects lie above, so they hardly move it. Where most objects are bad, or there are only a few, median and spread say
little: two bounds hold the threshold between a value that good objects have and one that no good object has. Below the
lower bound an object stays whatever the others are.
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
from ..data.formats.shared.normalise import CIRCUMSCRIBED, hull_points
from ..rendering.cameras import CameraError, Cameras
from ..rendering.render import render_rays
from ..settings.autodecoder import AutodecoderConfig, MaskFilterConfig
from .decoder import Decoder
from .embedding import DenseEmbedding

CUBE = 1.05  # half the side of the cube that the hull is looked for in: objects touch the faces of theirs at most
QUARTILE = 0.6745  # standard deviations from the median to the quartile of a normal distribution
LOSSES = {"loss": ("spreads", "bounds"), "unexplained": ("hull_spreads", "hull_bounds")}  # and their settings


class Masked(Protocol):
    """An object of which only these are used: masks (v, h, w), uint8 or in [0, 1]; v cameras in the cube's world."""

    key: str
    masks: Tensor
    cameras: Cameras


@dataclass(frozen=True)
class MaskJudgement:
    """What the filter found. losses: by key, "loss" of each object, in pixels of outline, and "unexplained", a share of
    mask pixels. thresholds: of the two. dropped: by key, why. An object whose masks are all empty is dropped and has no
    losses."""

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
    through their pixels. unexplained: the share of the masks that no point of the visual hull explains."""

    key: str
    masks: Tensor
    origins: Tensor
    directions: Tensor
    unexplained: float

    def outlines(self) -> Tensor:
        """Length of the outlines in each view (v,), in pixels: an edge from 0 to 1 counts 1, as does the picture's."""
        padded = F.pad(self.masks, (1, 1, 1, 1))
        return sum(padded.diff(dim=axis).abs().sum(dim=(1, 2)) for axis in (1, 2))


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
    coverage, small = _shrunk(masks, cameras, settings.pixels)
    origins, directions = (x.reshape(-1, 3).to(device) for x in small.rays())
    share = unexplained(*_shrunk(masks.cpu(), cameras, settings.hull_pixels), settings)
    return Target(item.key, coverage, origins, directions, share)


def _shrunk(masks: Tensor, cameras: Cameras, pixels: int) -> tuple[Tensor, Cameras]:
    """Coverage (v, h, w) of at most so many pixels along the longer side, and cameras of that size, float32 on CPU."""
    scale = min(1.0, pixels / max(masks.shape[1:]))
    h, w = (max(1, round(scale * side)) for side in masks.shape[1:])
    shrink = torch.diag(torch.tensor([w / cameras.width, h / cameras.height, 1.0], dtype=torch.float64))
    intrinsics = (shrink @ cameras.intrinsics.cpu().double()).float()
    small = Cameras(cameras.world_to_camera.cpu().float(), intrinsics, h, w)
    return F.interpolate(masks[None], (h, w), mode="area")[0], small


def unexplained(masks: Tensor, cameras: Cameras, settings: MaskFilterConfig) -> float:
    """Share of the pixels of masks (v, h, w) that are at least half covered and show no point of the visual hull; 0
    where there are none. Some views and pixels are looked at, spread evenly; the hull is that of all views."""
    reach = settings.hull_slack
    covered = F.max_pool2d(masks[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0] >= 0.25
    shown = looked_at = 0
    for view in sorted({i * len(masks) // settings.hull_views for i in range(settings.hull_views)}):
        pixels = (masks[view] >= 0.5).nonzero()
        pixels = pixels[:: max(1, math.ceil(len(pixels) / settings.hull_rays))]
        if len(pixels):
            points, there = hull_points(
                cameras, covered, view, pixels, torch.zeros(3).double(), CIRCUMSCRIBED, slack=True
            )
            shown += int((there & (points.abs().amax(-1) <= CUBE)).any(1).sum())
            looked_at += len(pixels)
    return 1 - shown / looked_at if looked_at else 0.0


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
            volumes = model()
            rendering = render_rays(
                volumes, origins, directions, settings.resolution, stratified_seed=step, check=False
            )
            loss = (rendering.occupancy - masks).abs().mean() + settings.density_weight * volumes[:, 0].mean()
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
    """Error per pixel of outline of the views that fit worst, and the share that the hull does not explain."""
    rendering = render_rays(volume, target.origins[None], target.directions[None], 2 * settings.resolution, check=False)
    error = (rendering.occupancy.view(target.masks.shape) - target.masks).abs().sum(dim=(1, 2))
    count = math.ceil(settings.worst_share * len(error))
    loss = error.sort(descending=True).values[:count].mean() / target.outlines().mean()
    return {"loss": loss.item(), "unexplained": target.unexplained}
