"""Inversion: embeddings fitted to images of new objects, interpolated, or completed from one view.

`invert` follows the test-time procedure of UVA [63], which the paper's autodecoder extends. Adam fits the embedding,
starting from the mean one, under noise that fades. If asked, it then tunes the decoder with its density and skinning
held in place. Compared with UVA, cameras are known, the images are compared by stage 1's own loss, and tuning sees no
random affine warps. Batch norm uses running statistics throughout. The decoder is a copy, so the caller's model never
changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ..rendering.cameras import CameraError, Cameras
from ..rendering.render import render_rays
from ..settings.autodecoder import InversionConfig
from ..settings.experiment import Experiment
from .decoder import Decoder
from .losses import image_losses, perceptual_loss
from .reconstruction import Autodecoder

DECODED_AT_ONCE = 8  # volumes


class InversionError(ValueError):
    """Images, cameras or embeddings that nothing can be fitted to; the message names the field and what fits."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """The embedding and the decoder fitted to the images of one object."""

    embedding: Tensor  # (embedding_dim,)
    decoder: Decoder  # frozen, in evaluation mode: a copy of the one given, tuned if that was asked for
    losses: tuple[float, ...]  # of each step of the embedding, under its noise
    tuning_losses: tuple[float, ...]  # of each step of the decoder

    @torch.no_grad()
    def volume(self) -> Tensor:
        """The object, (1 + 3 (+ lbs), S, S, S)."""
        return self.decoder(self.embedding[None])[0]


def invert(
    autodecoder: Autodecoder,
    config: Experiment,
    images: Tensor,
    masks: Tensor,
    cameras: Cameras,
    settings: InversionConfig | None = None,
    *,
    seed: int = 0,
    start: Tensor | None = None,
) -> Inversion:
    """Fit an embedding, and with `tuning_steps` > 0 then the decoder, to v views of one object [63].

    Args:
        autodecoder: trained with `config`, whose `reconstruction` says how images are rendered and compared.
        images: (v, h, w, 3) float in [0, 1], the object on black. masks: (v, h, w) float in [0, 1].
        cameras: v cameras of that image size, in the world of the canonical cube.
        settings: steps, rates and weights, UVA's by default.
        seed: of the noise, the views drawn and the samples along rays. The same seed gives the same result.
        start: (embedding_dim,) to start from instead of the mean of the learned embeddings.

    Raises:
        InversionError: no views, images, masks or cameras that do not fit together, a start of another length.
    """
    views = _Views(autodecoder, config, images, masks, cameras)
    return fit_views(autodecoder, config, views, settings or InversionConfig(), seed, start, prior_weight=0.0)


def complete(
    autodecoder: Autodecoder,
    config: Experiment,
    images: Tensor,
    masks: Tensor,
    cameras: Cameras,
    view: int = 0,
    settings: InversionConfig | None = None,
    *,
    seed: int = 0,
) -> Inversion:
    """The whole object from one of its views. The learned embeddings decide the sides that this view does not show.

    Arguments as for `invert`; of the images, masks and cameras only number `view` is read. The embedding is fitted as
    there, under the Gaussian N(mean, diag(std^2)) of the learned embeddings as a prior: `prior_weight` times the mean
    square of (z - mean) / std is added to the loss.

    Raises:
        InversionError: as `invert`, and for a view that does not exist. Also for `tuning_steps` > 0, since a decoder
            tuned to one view has no reason to keep the other sides.
    """
    settings = settings or InversionConfig()
    if settings.tuning_steps:
        raise InversionError(f"tuning_steps is {settings.tuning_steps}, expected 0: one view cannot tune a decoder")
    if not 0 <= view < len(images):
        raise InversionError(f"view is {view}, expected one of the {len(images)} views, counted from 0")
    if not (len(masks) > view and len(cameras) > view):
        raise InversionError(f"view is {view}, but there are {len(masks)} masks and {len(cameras)} cameras")
    one = slice(view, view + 1)
    views = _Views(autodecoder, config, images[one], masks[one], cameras[one])
    return fit_views(autodecoder, config, views, settings, seed, None, settings.prior_weight)


@torch.no_grad()
def interpolate(
    decoder: Decoder,
    start: Tensor,
    end: Tensor,
    steps: int,
    space: Literal["embedding", "latent"] = "embedding",
) -> Tensor:
    """Volumes (steps, 1 + 3 (+ lbs), S, S, S) on the way from one object to another, both included.

    start, end: embeddings (embedding_dim,). For space 'latent' also latent volumes F (c, r, r, r), such as
        de-normalised samples.
    space: 'embedding' goes straight from one embedding to the other and decodes with G. 'latent' goes straight
        between the features of G1, where diffusion runs, and decodes with G2.

    Raises:
        InversionError: fewer than 2 steps, shapes that do not fit, a decoder in training mode (its batch norm would
            mix the objects), an unknown space.
    """
    if decoder.training:
        raise InversionError("decoder is in training mode, expected evaluation mode (decoder.eval())")
    if steps < 2:
        raise InversionError(f"steps is {steps}, expected at least 2, the two objects")
    if space not in ("embedding", "latent"):
        raise InversionError(f"space is {space!r}, expected 'embedding' or 'latent'")
    ends = [_end(decoder, value, name, space) for name, value in (("start", start), ("end", end))]
    share = torch.linspace(0, 1, steps, device=ends[0].device).view(-1, *(1,) * ends[0].ndim)
    path = torch.lerp(ends[0][None], ends[1][None], share)
    decode = decoder if space == "embedding" else decoder.g2
    return torch.cat([decode(chunk) for chunk in path.split(DECODED_AT_ONCE)])


def _end(decoder: Decoder, value: Tensor, name: str, space: str) -> Tensor:
    """An end of an interpolation in the space where it runs."""
    if tuple(value.shape) == (decoder.config.embedding_dim,):
        return value if space == "embedding" else decoder.g1(value[None])[0].float()
    expected = f"({decoder.config.embedding_dim},)"
    if space == "latent":
        if tuple(value.shape) == decoder.config.latent_shape:
            return value
        expected += f" or {decoder.config.latent_shape}"
    raise InversionError(f"{name} has shape {tuple(value.shape)}, expected {expected}")


class Views(Protocol):
    """The images of one object, as far as fitting to them is concerned."""

    device: torch.device

    def compare(self, volume: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Stage 1's loss of a volume (1, c, S, S, S) on `count` random views, and their mean L1 in pixels."""


class _Views:
    """The images of one object, and how a volume is compared with some of them."""

    def __init__(
        self, autodecoder: Autodecoder, config: Experiment, images: Tensor, masks: Tensor, cameras: Cameras
    ) -> None:
        _check_views(images, masks, cameras)
        self.settings = config.reconstruction
        self.device = next(autodecoder.parameters()).device
        self.images, self.masks = images.to(self.device), masks.to(self.device)
        self.cameras = cameras.to(self.device)
        self.perceptual = perceptual_loss(self.settings, self.device)

    def compare(self, volume: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Stage 1's loss of a volume (1, c, S, S, S) on `count` random views, and their mean L1 in pixels."""
        chosen = torch.randperm(len(self.images))[:count].to(self.device)
        origins, directions = (x.reshape(1, -1, 3) for x in self.cameras[chosen].rays())
        stratified_seed = int(torch.randint(2**31, ()))
        samples = self.settings.num_samples
        rendering = render_rays(volume, origins, directions, samples, stratified_seed=stratified_seed, check=False)
        colour, occupancy, _ = (x[0] for x in rendering.images(self.cameras.height, self.cameras.width))
        target = self.images[chosen]
        losses = image_losses(self.settings, self.perceptual, colour, occupancy, target, self.masks[chosen])
        return sum(losses.values()), (colour - target).abs().mean()


def _check_views(images: Tensor, masks: Tensor, cameras: Cameras) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise InversionError(f"images have shape {tuple(images.shape)}, expected (v, h, w, 3)")
    if len(images) == 0:
        raise InversionError("images hold no views, expected at least one")
    v, h, w, _ = images.shape
    if tuple(masks.shape) != (v, h, w):
        raise InversionError(f"masks have shape {tuple(masks.shape)}, expected {(v, h, w)} as the images")
    if len(cameras) != v:
        raise InversionError(f"cameras are {len(cameras)}, expected one for each of {v} images")
    if (cameras.height, cameras.width) != (h, w):
        raise InversionError(f"images are {w}x{h} pixels, expected the cameras' {cameras.width}x{cameras.height}")
    for name, values in (("images", images), ("masks", masks)):
        if not values.is_floating_point() or not ((values >= 0) & (values <= 1)).all():  # NaN is refused, too
            raise InversionError(f"{name} are {values.dtype} with other values than in [0, 1], expected floats in it")
    try:
        cameras.to("cpu").validate("cameras")
    except CameraError as error:
        raise InversionError(str(error)) from error


def fit_views(
    autodecoder: Autodecoder,
    config: Experiment,
    views: Views,
    settings: InversionConfig,
    seed: int,
    start: Tensor | None,
    prior_weight: float,
) -> Inversion:
    """Fit to `views`: embedding first, then the decoder; all randomness from `seed`, the caller's stream left alone."""
    decoder = copy.deepcopy(autodecoder.decoder).eval().requires_grad_(False)
    learned = autodecoder.embedding.all().detach().float()
    centre, spread = learned.mean(0), learned.std(0, correction=0)
    if start is not None and start.shape != centre.shape:
        raise InversionError(f"start has shape {tuple(start.shape)}, expected {tuple(centre.shape)}")
    if prior_weight and not (spread > 0).all():
        raise InversionError(f"the {len(learned)} learned embeddings do not vary, expected a spread for the prior")
    embedding = (centre if start is None else start.detach().to(centre)).clone()
    with torch.random.fork_rng(devices=[views.device] if views.device.type == "cuda" else []):
        torch.manual_seed(seed)
        losses = _fit_embedding(embedding, decoder, centre, spread, config, views, settings, prior_weight)
        tuning_losses = _tune_decoder(embedding, decoder, config, views, settings)
    return Inversion(embedding, decoder.requires_grad_(False), tuple(losses), tuple(tuning_losses))


def _decode(decoder: Decoder, embedding: Tensor, config: Experiment) -> Tensor:
    with torch.autocast(embedding.device.type, torch.bfloat16, enabled=config.reconstruction.precision == "bfloat16"):
        return decoder(embedding[None])


def _fit_embedding(
    embedding: Tensor,
    decoder: Decoder,
    centre: Tensor,
    spread: Tensor,
    config: Experiment,
    views: Views,
    settings: InversionConfig,
    prior_weight: float,
) -> list[float]:
    """Move `embedding` (embedding_dim,) in place to where its renderings are like the views."""
    embedding.requires_grad_()
    optimizer = torch.optim.Adam([embedding], lr=settings.learning_rate, betas=settings.betas)
    curve = []
    for i in tqdm(range(settings.steps), desc="embedding", disable=None):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.1 ** (4 * i // settings.steps)
        noise = settings.noise * max(0.0, 1 - 2 * i / settings.steps) ** 2
        noisy = embedding + noise * spread * torch.randn(embedding.shape).to(spread)
        loss, _ = views.compare(_decode(decoder, noisy, config), settings.views_per_step)
        if prior_weight:
            loss = loss + prior_weight * ((embedding - centre) / spread).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    embedding.requires_grad_(False)
    return curve


def _tune_decoder(
    embedding: Tensor, decoder: Decoder, config: Experiment, views: Views, settings: InversionConfig
) -> list[float]:
    """Tune the whole decoder in place, so that details appear; density and skinning are held where they were."""
    if not settings.tuning_steps:
        return []

    def held(volume: Tensor) -> Tensor:  # raw density and skinning logits: a scale of the density weighs nothing
        return torch.cat([volume[:, :1] / config.autodecoder.density_scale, volume[:, 4:]], dim=1)

    decoder.requires_grad_(True)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.tuning_learning_rate, betas=settings.betas)
    with torch.no_grad():
        anchor = held(_decode(decoder, embedding, config))
    curve = []
    for _ in tqdm(range(settings.tuning_steps), desc="decoder", disable=None):
        volume = _decode(decoder, embedding, config)
        loss, pixels = views.compare(volume, settings.views_per_step)
        loss = loss + settings.tuning_pixel_weight * pixels
        loss = loss + settings.tuning_anchor_weight * (held(volume) - anchor).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve
