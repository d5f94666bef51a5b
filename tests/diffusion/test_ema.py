"""The moving average against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vader.diffusion.ema import EMA


def test_average_is_the_weighted_sum_of_all_weights():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2).double()
    ema = EMA(model, half_life=40, rampup=1e9)  # no ramp-up after the first step
    history = [model.weight.detach().clone()]
    batch, steps = 10, 25
    for step in range(steps):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        history.append(model.weight.detach().clone())
        ema.update(model, latents_seen=step * batch, batch_size=batch)
    beta = 0.5 ** (batch / 40)
    expected = beta ** (steps - 1) * history[1]  # at the first step the average starts afresh
    for k in range(2, steps + 1):
        expected = expected + (1 - beta) * beta ** (steps - k) * history[k]
    torch.testing.assert_close(ema.module.weight.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 10, 500])
def test_half_life_counts_latents_not_steps(batch):
    model = nn.Linear(1, 1, bias=False).double()
    ema = EMA(model, half_life=1000, rampup=0.05)
    with torch.no_grad():
        ema.module.weight.fill_(1.0)
        model.weight.zero_()
    start = 1_000_000  # far beyond the ramp-up
    for seen in range(start, start + 1000, batch):
        ema.update(model, seen, batch)
    assert ema.module.weight.item() == pytest.approx(0.5, rel=1e-9)


def test_rampup_limits_the_half_life():
    ema = EMA(nn.Linear(1, 1), half_life=1000, rampup=0.05)
    assert ema.decay(0, 16) == 0
    assert ema.decay(2_000, 100) == pytest.approx(0.5)  # half-life 100
    assert ema.decay(20_000, 1000) == ema.decay(10**9, 1000) == pytest.approx(0.5)


def test_average_is_frozen_separate_and_copies_buffers():
    model = nn.BatchNorm1d(3)
    ema = EMA(model, half_life=10)
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    model.train()(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) + 4)
    assert ema.module.running_mean.abs().max() == 0
    ema.update(model, 10**6, 1)
    assert torch.equal(ema.module.running_mean, model.running_mean)
    assert ema.module.num_batches_tracked == 1
