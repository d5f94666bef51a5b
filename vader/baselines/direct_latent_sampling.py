"""Direct latent sampling [63]: draw an embedding at random and decode it with G. No second stage.

The paper draws from N(0, I) (Sec. 4.2). UVA whitens its embeddings, so that N(0, I) is a Gaussian fitted to them. Our
embeddings are not whitened. The prior 'fitted' is a Gaussian fitted to them, and the stronger of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..diffusion.edm import standard_normal
from ..diffusion.sampling import object_generators
from ..generation.parallel import spread
from ..generation.volumes import Models, System
from ..settings.checks import ConfigError

Prior = Literal["standard", "fitted"]
PRIORS: dict[Prior, str] = {"standard": "N(0, I)", "fitted": "Gaussian fitted to the embeddings"}


def fit_gaussian(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (k,) and a square root A (k, k), A A^T the covariance, of embeddings (n, k).

    With fewer objects than dimensions the covariance is singular and samples stay in the embeddings' affine span.
    """
    embeddings = embeddings.double()
    mean = embeddings.mean(0)
    variances, axes = torch.linalg.eigh((embeddings - mean).T.cov())
    return mean, axes * variances.clamp_min(0).sqrt()


def sample_embeddings(embeddings: Tensor, indices: Sequence[int], prior: Prior, seed: int) -> Tensor:
    """Embeddings (len(indices), k) of the samples numbered `indices`, drawn from `prior`; (seed, index) decides each.

    embeddings: the learned ones, (n, k). Raises ConfigError for an unknown prior.
    """
    if prior not in PRIORS:
        raise ConfigError(f"prior {prior!r} is unknown, expected one of {', '.join(PRIORS)}")
    noise = standard_normal((len(indices), embeddings.shape[1]), object_generators(seed, indices), "cpu")
    if prior == "standard":
        return noise
    mean, root = fit_gaussian(embeddings)
    return (mean + noise.double() @ root.T).float()


def direct_latent_sampling(models: Models, prior: Prior) -> System:
    """The baseline as a system of volumes, on the autodecoder of ours."""
    learned = models.autodecoder.embedding.all().cpu()

    @torch.no_grad()
    def system(indices: Sequence[int], seed: int) -> Tensor:
        return models.autodecoder.decoder(sample_embeddings(learned, indices, prior, seed).to(models.device))

    return spread(system, models.device)
