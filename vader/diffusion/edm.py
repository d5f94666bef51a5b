"""Diffusion in the latent volume as in EDM (Karras et al. 2022; Sec. 3.3, B.2): preconditioning, loss, sampler.

A latent x0 (c, d, h, w) with standard deviation sigma_data is corrupted to x = x0 + sigma n, n ~ N(0, I), and the
denoiser D(x; sigma) estimates x0. Sampling follows dx / dsigma = (x - D(x; sigma)) / sigma from sigma_max to 0.
Shapes: x (b, c, d, h, w), sigma (b,), context (b, l, k) or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..settings.checks import ConfigError, require
from ..settings.diffusion import SamplerConfig

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x, sigma, context -> estimate of x0
Generators = torch.Generator | Sequence[torch.Generator]  # one for the batch, or one for each object in it


def per_object(values: Tensor, like: Tensor) -> Tensor:
    """(b,) -> (b, 1, ..., 1) with the dtype and the number of axes of `like`."""
    return values.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) around a network F (Eq. 7 and Tab. 1 of EDM).

    The network may have any precision; x keeps its own.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise, each shaped like sigma."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        return c_skip, c_out, total.rsqrt(), sigma.log() / 4

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        """The estimate of x0, shaped like x. sigma is (b,) and positive."""
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        scaled = per_object(c_in, x) * x
        output = self.network(scaled.float(), c_noise.float(), context)
        c_skip, c_out = per_object(c_skip, x), per_object(c_out, x)
        if torch.is_grad_enabled():
            return c_skip * x + c_out * output.to(x.dtype)
        return scaled.copy_(output).mul_(c_out).addcmul_(c_skip, x)  # the same, in memory that is at hand


def standard_normal(shape: tuple[int, ...], generators: Generators, device: torch.device | str) -> Tensor:
    """float32 N(0, I) of `shape`, drawn on the generators' device; row i from generators[i] if there are several."""
    if isinstance(generators, torch.Generator):
        return torch.randn(shape, generator=generators, device=generators.device).to(device)
    require(len(generators) == shape[0], f"{len(generators)} generators for {shape[0]} objects, expected one each")
    return torch.stack([torch.randn(shape[1:], generator=g, device=g.device) for g in generators]).to(device)


def edm_loss(
    denoiser: Denoiser,
    x: Tensor,
    generator: torch.Generator,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    context: Tensor | None = None,
) -> Tensor:
    """lambda(sigma) |D(x + sigma n; sigma) - x|^2, averaged over each latent: (b,).

    ln sigma ~ N(p_mean, p_std^2) and lambda = 1 / c_out^2, so the network starts with a loss of 1 at every sigma.
    """
    sigma, noise = corruption(tuple(x.shape), generator, x.device, p_mean, p_std)
    return corrupted_loss(denoiser, denoiser.sigma_data, x, sigma, noise, context)


def corruption(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str, p_mean: float, p_std: float
) -> tuple[Tensor, Tensor]:
    """What a batch of this shape is corrupted with: sigma (b,), with ln sigma ~ N(p_mean, p_std^2), and noise n."""
    sigma = (p_mean + p_std * standard_normal(shape[:1], generator, device)).exp()
    return sigma, standard_normal(shape, generator, device)


def corrupted_loss(
    denoise: Denoise, sigma_data: float, x: Tensor, sigma: Tensor, noise: Tensor, context: Tensor | None = None
) -> Tensor:
    """`edm_loss` under a given corruption."""
    error = denoise(x + per_object(sigma, x) * noise, sigma, context) - x
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * error.square().flatten(1).mean(1)


def drop_condition(context: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Context (b, l, k) in which each object's is the null condition (zeros) with this probability."""
    keep = torch.rand(len(context), generator=generator, device=generator.device) >= probability
    return context * per_object(keep.to(context.device), context)


def guidance_scale(weight: float, convention: Literal["difference", "ho_salimans"]) -> float:
    """The weight s of u + s (c - u) that a published guidance weight means.

    'difference' (LDM): the weight is s itself. 'ho_salimans': the weight w of (1 + w) c - w u, so s = 1 + w.
    """
    scales = {"difference": weight, "ho_salimans": 1 + weight}
    require(convention in scales, f"guidance convention {convention!r} is unknown, expected one of {list(scales)}")
    return scales[convention]


def guided(denoise: Denoise, scale: float, batched: bool = True) -> Denoise:
    """Classifier-free guidance u + s (c - u) from the estimates c with the context and u with the null one.

    `batched` evaluates both in one call on 2b objects, else in two calls on b, which takes half the memory.
    """

    def guided_denoise(x: Tensor, sigma: Tensor, context: Tensor | None) -> Tensor:
        null = torch.zeros_like(context)
        if batched:
            c, u = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([context, null])).chunk(2)
        else:
            c, u = denoise(x, sigma, context), denoise(x, sigma, null)
        return u + scale * (c - u)

    return guided_denoise


def sigma_schedule(config: SamplerConfig) -> list[float]:
    """The num_steps + 1 noise levels: sigma_max to sigma_min, equally spaced in sigma^(1 / rho), then 0."""
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    last = config.num_steps - 1
    return [(high + i / last * (low - high)) ** config.rho for i in range(config.num_steps)] + [0.0]


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    config: SamplerConfig,
    generators: Generators | None = None,
    context: Tensor | None = None,
    batched_guidance: bool = True,
    progress: Callable | None = None,
) -> Tensor:
    """Algorithm 2 of EDM: from N(0, I) noise (b, c, d, h, w) to samples of the same shape, in 2 N - 1 evaluations.

    The state has the dtype of `noise` whatever the network's precision. `generators` draw the noise that S_churn > 0
    adds; `progress` wraps the range of steps (a tqdm). With a context, guidance other than 1 is applied; then each
    evaluation covers 2b objects.

    Raises `ConfigError` if guidance lacks a context or churn a generator.
    """
    if config.guidance != 1:
        require(context is not None, f"guidance is {config.guidance}, which needs a context, but there is none")
        denoise = guided(denoise, config.guidance, batched_guidance)
    if config.s_churn > 0 and generators is None:
        raise ConfigError(f"s_churn is {config.s_churn}, which needs generators, but there are none")

    def estimate(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), context)

    sigmas = sigma_schedule(config)
    x = sigmas[0] * noise
    euler = torch.empty_like(x)  # on CPUs, fresh memory costs more than the sums
    steps = range(config.num_steps)
    for i in progress(steps) if progress else steps:
        sigma, following = sigmas[i], sigmas[i + 1]
        if config.s_churn > 0 and config.s_min <= sigma <= config.s_max:
            raised = sigma * (1 + min(config.s_churn / config.num_steps, math.sqrt(2) - 1))
            added = config.s_noise * math.sqrt(raised**2 - sigma**2)
            fresh = standard_normal(tuple(x.shape), generators, x.device).to(x.dtype)
            x, sigma = x.add_(fresh, alpha=added), raised
        # An Euler step x + (sigma' - sigma) (x - D) / sigma goes to D by the share 1 - sigma' / sigma of the way.
        torch.lerp(x, estimate(x, sigma), 1 - following / sigma, out=euler)
        if following > 0:
            # Heun: the mean of the slopes at both ends leads half as far as one Euler step and, from its end, another.
            euler.lerp_(estimate(euler, following), sigma / following - 1)
            x.lerp_(euler, 0.5)
        else:
            x.copy_(euler)
    return x
