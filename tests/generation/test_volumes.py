"""Trained runs as systems of volumes: what is done to features before and after sampling."""

from __future__ import annotations

import torch

from tests.tiny import tiny_experiment
from vader.diffusion.normalization import RobustStatistics
from vader.generation import volumes
from vader.generation.volumes import Models


def test_what_sampling_starts_from_is_normalised_and_comes_back_as_features(monkeypatch):
    """A denoiser that changes nothing leaves start + sigma_max n in the unit of latents, whatever that of features."""
    config = tiny_experiment(sampler=dict(num_steps=3, sigma_max=2.0, s_churn=0.0))
    shape = config.autodecoder.latent_shape
    statistics = RobustStatistics.fit(5 + 3 * torch.randn(9, *shape, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(volumes, "load_denoiser", lambda *_: (None, statistics))
    monkeypatch.setattr(volumes, "for_inference", lambda *_: lambda x, *_: x)
    models = Models(config, None, (None, None), None, torch.device("cpu"))
    given = 5 + 3 * torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    noise = statistics.normalize(models.features()([3, 1], 0))
    found = models.features(start=lambda indices: given[list(indices)])([3, 1], 0)
    torch.testing.assert_close(statistics.normalize(found), statistics.normalize(given[[3, 1]]) + noise)
    assert noise.std() > 1 and (statistics.normalize(given) - given).abs().mean() > 1, "noise counts, and so do units"
