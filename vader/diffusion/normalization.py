"""Robust normalisation of latent features (Sec. 3.3, B.2).

The features F of G1 are bell-shaped with a few extreme values, which ruin the mean and the standard
deviation. The robust pair is the median m and the Normalised Interquartile Range 0.7413 * IQR, which is
the standard deviation if F is normal. Three scalings of it occur in the paper and in the field:

    (F - m) / IQR                          robust std 0.74        the formula of Sec. 3.3, taken by itself
    (F - m) / (0.7413 IQR)                 robust std 1           the definition of the normalised IQR
    sigma_data (F - m) / (0.7413 IQR)      robust std sigma_data  what EDM's preconditioning assumes; used here

The last one is what "we modify the feature statistics" to match sigma_data = 0.5 asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

NORMALIZED_IQR = 0.7413  # 1 / (2 * 0.6745): the interquartile range of N(0, 1) is 2 * 0.6745


class StatisticsError(ValueError):
    """Features without usable statistics."""


def exact_quantiles(values: Tensor, fractions: tuple[float, ...]) -> list[Tensor]:
    """Quantiles of each row of (rows, n), each (rows,) float64, interpolated linearly as in numpy.

    Exact for any n, by selection: `torch.quantile` sorts everything and refuses more than 2^24 values.
    """
    n = values.shape[1]
    positions = [fraction * (n - 1) for fraction in fractions]
    ranks = sorted({rank for p in positions for rank in (math.floor(p), math.ceil(p))})
    selected = np.partition(values.detach().cpu().numpy(), ranks, axis=1)[:, ranks].astype(np.float64)
    at_rank = {rank: torch.from_numpy(selected[:, i]) for i, rank in enumerate(ranks)}
    return [torch.lerp(at_rank[math.floor(p)], at_rank[math.ceil(p)], p - math.floor(p)) for p in positions]


@dataclass(frozen=True, eq=False)
class RobustStatistics:
    """Centre and scale of latent features; each statistic is float32, () or, per channel, (c,).

    All four statistics are kept whichever `mode` normalises, so that a report can show both.
    """

    median: Tensor
    iqr: Tensor
    mean: Tensor
    std: Tensor
    mode: Literal["robust", "classic"] = "robust"  # classic: mean and std, which the paper finds not to converge
    sigma_data: float = 0.5

    @classmethod
    def fit(
        cls,
        features: Tensor,
        mode: Literal["robust", "classic"] = "robust",
        sigma_data: float = 0.5,
        per_channel: bool = False,
    ) -> RobustStatistics:
        """Statistics of features (n, c, d, h, w), over everything or for each channel by itself.

        Raises `StatisticsError` for NaN or infinite features and for features that do not vary.
        """
        if mode not in ("robust", "classic"):
            raise StatisticsError(f"mode is {mode!r}, expected 'robust' or 'classic'")
        if features.ndim != 5 or features.numel() == 0:
            raise StatisticsError(f"features have shape {tuple(features.shape)}, expected a non-empty (n, c, d, h, w)")
        bad = ~torch.isfinite(features).flatten(1).all(1)
        if bad.any():
            raise StatisticsError(
                f"features of {int(bad.sum())} objects, first number {int(bad.nonzero()[0])}, "
                "have NaN or infinite entries, expected finite numbers"
            )
        rows = features.float().transpose(0, 1).flatten(1) if per_channel else features.float().reshape(1, -1)
        lower, median, upper = exact_quantiles(rows, (0.25, 0.5, 0.75))
        mean = rows.mean(dim=1, dtype=torch.float64)
        std = torch.linalg.vector_norm(rows - mean.float()[:, None], dim=1, dtype=torch.float64) / rows.shape[1] ** 0.5
        fields = [(f if per_channel else f[0]).float() for f in (median, upper - lower, mean, std)]
        statistics = cls(*(f.to(features.device) for f in fields), mode=mode, sigma_data=sigma_data)
        degenerate = (statistics.scale == 0).reshape(-1)
        if degenerate.any():
            where = f"of channel {int(degenerate.nonzero()[0])}" if per_channel else "of the features"
            name = "interquartile range" if mode == "robust" else "standard deviation"
            raise StatisticsError(f"the {name} {where} is 0, expected features that vary")
        return statistics

    @property
    def per_channel(self) -> bool:
        return self.median.ndim == 1

    @property
    def centre(self) -> Tensor:
        return self.median if self.mode == "robust" else self.mean

    @property
    def scale(self) -> Tensor:
        """What one unit of normalised features is worth: std / sigma_data, with the std of `mode`."""
        return (NORMALIZED_IQR * self.iqr if self.mode == "robust" else self.std) / self.sigma_data

    def normalize(self, features: Tensor) -> Tensor:
        """(..., c, d, h, w) features of G1 -> the diffusion model's features, same shape."""
        centre, scale = self._broadcast(features)
        return (features - centre) / scale

    def denormalize(self, features: Tensor) -> Tensor:
        """The inverse: (..., c, d, h, w) samples of the diffusion model -> features for G2."""
        centre, scale = self._broadcast(features)
        return features * scale + centre

    def _broadcast(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.per_channel and features.shape[-4] != len(self.median):
            raise StatisticsError(f"features have {features.shape[-4]} channels, expected {len(self.median)}")
        shape = (-1, 1, 1, 1) if self.per_channel else ()
        return tuple(t.to(features.device).reshape(shape) for t in (self.centre, self.scale))

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {
            "median": self.median,
            "iqr": self.iqr,
            "mean": self.mean,
            "std": self.std,
            "sigma_data": torch.tensor(self.sigma_data, dtype=torch.float64),
            "robust": torch.tensor(self.mode == "robust"),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> RobustStatistics:
        """The inverse of `to_tensors`. Raises `StatisticsError` naming a missing tensor."""
        names = ("median", "iqr", "mean", "std", "sigma_data", "robust")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise StatisticsError(f"statistics lack {missing}, expected {list(names)}")
        return cls(
            *(tensors[name] for name in names[:4]),
            mode="robust" if tensors["robust"] else "classic",
            sigma_data=float(tensors["sigma_data"]),
        )
