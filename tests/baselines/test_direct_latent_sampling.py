"""Both priors of direct latent sampling against the statistics they claim."""

from __future__ import annotations

import pytest
import torch

from vader.baselines.direct_latent_sampling import fit_gaussian, sample_embeddings
from vader.settings.checks import ConfigError


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    return torch.randn(500, 6, generator=generator) @ mixing.T + torch.arange(6.0)


def test_the_fitted_prior_has_the_embeddings_mean_and_covariance(embeddings):
    samples = sample_embeddings(embeddings, range(20_000), "fitted", seed=1).double()
    scale = embeddings.double().T.cov().diagonal().sqrt()
    assert ((samples.mean(0) - embeddings.double().mean(0)).abs() / scale).max() < 0.03
    wanted = embeddings.double().T.cov()
    assert (samples.T.cov() - wanted).abs().max() / wanted.abs().max() < 0.04


def test_the_standard_prior_ignores_the_embeddings(embeddings):
    samples = sample_embeddings(embeddings, range(20_000), "standard", seed=1)
    assert samples.mean(0).abs().max() < 0.03
    assert (samples.T.cov() - torch.eye(6)).abs().max() < 0.04


def test_fewer_objects_than_dimensions_stay_in_their_span():
    embeddings = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    mean, root = fit_gaussian(embeddings)
    assert torch.allclose(root @ root.T, (embeddings.double() - mean).T.cov(), atol=1e-10)
    samples = sample_embeddings(embeddings, range(8), "fitted", seed=0).double() - mean
    span = torch.linalg.svd(embeddings.double() - mean, full_matrices=False).Vh[:3]
    assert torch.allclose(samples @ span.T @ span, samples, atol=1e-5)


def test_a_sample_depends_on_its_number_and_seed_alone(embeddings):
    together = sample_embeddings(embeddings, range(6), "fitted", seed=3)
    assert torch.equal(sample_embeddings(embeddings, [4], "fitted", seed=3)[0], together[4])
    assert not torch.equal(sample_embeddings(embeddings, [4], "fitted", seed=4)[0], together[4])


def test_an_unknown_prior(embeddings):
    with pytest.raises(ConfigError, match="expected one of standard, fitted"):
        sample_embeddings(embeddings, [0], "uniform", seed=0)
