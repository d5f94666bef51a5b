"""Diffusion in the latent volume as in EDM (Karras et al. 2022; Sec. 3.3, B.2): preconditioning and loss.

A latent x0 (c, d, h, w) with standard deviation sigma_data is corrupted to x = x0 + sigma n, n ~ N(0, I), and the
denoiser D(x; sigma) estimates x0. Sampling follows dx / dsigma = (x - D(x; sigma)) / sigma from sigma_max to 0.
Shapes: x (b, c, d, h, w), sigma (b,), context (b, l, k) or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..settings.checks import require

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
    """The corruption of a batch of this shape: sigma (b,), with ln sigma ~ N(p_mean, p_std^2), and noise n."""
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
