"""Moving average of the weights on EDM's clock: a half-life in training latents seen."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """`module` is a copy of a model whose weights decay towards the model's with a half-life in latents.

    Early on the half-life is `rampup` times the latents seen so far, so that the first weights are forgotten.
    Buffers are copied as they are.
    """

    def __init__(self, model: nn.Module, half_life: int, rampup: float = 0.05) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.half_life, self.rampup = half_life, rampup

    def decay(self, latents_seen: int, batch_size: int) -> float:
        """The share of the average that remains after a step, 0 at the very first one."""
        half_life = min(self.half_life, self.rampup * latents_seen)
        return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module, latents_seen: int, batch_size: int) -> None:
        """After an optimiser step on `batch_size` latents, with `latents_seen` before it."""
        average = get_ema_multi_avg_fn(self.decay(latents_seen, batch_size))
        average(list(self.module.parameters()), list(model.parameters()), None)
        for ours, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
