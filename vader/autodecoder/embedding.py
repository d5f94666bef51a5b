"""The library of embeddings: one learned vector per training object (GLO [3])."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseEmbedding(nn.Module):
    """A table (num_objects, dim), one row per object, drawn from N(0, I)."""

    def __init__(self, num_objects: int, dim: int):
        super().__init__()
        self.table = nn.Embedding(num_objects, dim)

    def forward(self, objects: Tensor) -> Tensor:
        """Object indices (b,) -> embeddings (b, dim)."""
        return self.table(objects)

    @torch.no_grad()
    def all(self) -> Tensor:
        """Every embedding, (num_objects, dim)."""
        return self.table.weight
