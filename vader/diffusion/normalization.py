"""Robust normalisation of latent features (Sec. 3.3, B.2).

The features F of G1 are bell-shaped with a few extreme values, which ruin the mean and the standard
deviation. The robust pair is the median m and the Normalised Interquartile Range 0.7413 * IQR, which is
the standard deviation if F is normal. Three scalings of it occur in the paper and in the field:

    (F - m) / IQR                          robust std 0.74        the formula of Sec. 3.3, taken by itself
    (F - m) / (0.7413 IQR)                 robust std 1           the definition of the normalised IQR
    sigma_data (F - m) / (0.7413 IQR)      robust std sigma_data  EDM's preconditioning assumes it; used here

The paper's "we modify the feature statistics" to match sigma_data = 0.5 asks for the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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


def streamed_quantiles(
    passes: Callable[[], Iterable[np.ndarray]], n: int, fractions: tuple[float, ...]
) -> list[Tensor]:
    """`exact_quantiles` of values that are only seen a piece at a time, without any error, in three passes.

    passes: called for each pass, gives pieces (rows, m) float32 of the n values of each row, in any order. A float32 is
    found by its rank 11, 11 and 10 bits at a time: each pass counts the values that agree with the bits known so
    far by the bits that follow. Memory is 16 KiB per row and rank, whatever n. NaN has no rank and must not occur.
    """
    positions = [fraction * (n - 1) for fraction in fractions]
    ranks = sorted({rank for p in positions for rank in (math.floor(p), math.ceil(p))})
    known = left = None  # (rows, ranks): the leading bits of the value at a rank, and its rank among those with them
    for shift, bits in ((21, 11), (10, 11), (0, 10)):
        counts = None
        for piece in passes():
            keys = _ordered(piece)
            if known is None:
                known, left = (np.tile(x, (len(keys), 1)) for x in (np.zeros(len(ranks), np.uint32), np.array(ranks)))
            if counts is None:
                counts = np.zeros((*known.shape, 2**bits), np.int64)
            for row, own in enumerate(keys):
                for prefix in np.unique(known[row]):
                    fits = own if shift + bits == 32 else own[own >> np.uint32(shift + bits) == prefix]
                    following = fits >> np.uint32(shift) & np.uint32(2**bits - 1)
                    counts[row, known[row] == prefix] += np.bincount(following, minlength=2**bits)
        up_to = counts.cumsum(axis=-1)  # values with these bits or smaller ones
        found = (up_to <= left[..., None]).sum(axis=-1)
        left = left - np.take_along_axis(up_to - counts, found[..., None], axis=-1)[..., 0]
        known = known << np.uint32(bits) | found.astype(np.uint32)
    selected = np.where(known >> np.uint32(31), known & np.uint32(2**31 - 1), ~known).view(np.float32)
    at_rank = {rank: torch.from_numpy(selected[:, i].astype(np.float64)) for i, rank in enumerate(ranks)}
    return [torch.lerp(at_rank[math.floor(p)], at_rank[math.ceil(p)], p - math.floor(p)) for p in positions]


def _ordered(values: np.ndarray) -> np.ndarray:
    """float32 as uint32 in the same order: the sign bit inverted, and all other bits of negative numbers."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(2**31))


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
        _require_mode(mode)
        if features.ndim != 5 or features.numel() == 0:
            raise StatisticsError(f"features have shape {tuple(features.shape)}, expected a non-empty (n, c, d, h, w)")
        bad = ~torch.isfinite(features).flatten(1).all(1)
        _require_finite(int(bad.sum()), int(bad.nonzero()[0]) if bad.any() else 0)
        rows = features.float().transpose(0, 1).flatten(1) if per_channel else features.float().reshape(1, -1)
        quartiles = exact_quantiles(rows, (0.25, 0.5, 0.75))
        mean = rows.mean(dim=1, dtype=torch.float64)
        std = torch.linalg.vector_norm(rows - mean.float()[:, None], dim=1, dtype=torch.float64) / rows.shape[1] ** 0.5
        return cls._of(quartiles, mean, std, mode, sigma_data, per_channel, features.device)

    @classmethod
    def fit_stream(
        cls,
        features: Iterable[Tensor],
        mode: Literal["robust", "classic"] = "robust",
        sigma_data: float = 0.5,
        per_channel: bool = False,
    ) -> RobustStatistics:
        """`fit` of features that come in pieces (n, c, d, h, w), the same ones each time they are iterated over.

        Five passes. Median and IQR are those of `fit`, bit for bit; mean and std differ by the order of float64 sums.
        """
        _require_mode(mode)
        total, n, objects, bad, first_bad = 0.0, 0, 0, 0, 0
        for rows, count in _rows(features, per_channel):
            faulty = ~np.isfinite(rows).reshape(len(rows), count, -1).all(axis=(0, 2))
            first_bad = first_bad if bad or not faulty.any() else objects + int(faulty.argmax())
            total, n = total + rows.sum(1, np.float64), n + rows.shape[1]
            objects, bad = objects + count, bad + int(faulty.sum())
        if n == 0:
            raise StatisticsError("features are empty, expected a non-empty (n, c, d, h, w)")
        _require_finite(bad, first_bad)
        mean, squares = total / n, 0.0
        for rows, _ in _rows(features, per_channel):
            squares = squares + np.square(rows.astype(np.float64) - mean[:, None]).sum(1)
        quartiles = streamed_quantiles(lambda: (rows for rows, _ in _rows(features, per_channel)), n, (0.25, 0.5, 0.75))
        std = torch.from_numpy(np.sqrt(squares / n))
        return cls._of(quartiles, torch.from_numpy(mean), std, mode, sigma_data, per_channel, "cpu")

    @classmethod
    def _of(
        cls,
        quartiles: list[Tensor],
        mean: Tensor,
        std: Tensor,
        mode: Literal["robust", "classic"],
        sigma_data: float,
        per_channel: bool,
        device: torch.device | str,
    ) -> RobustStatistics:
        """From statistics (rows,) float64. Raises StatisticsError for features that do not vary."""
        lower, median, upper = quartiles
        fields = [(f if per_channel else f[0]).float() for f in (median, upper - lower, mean, std)]
        statistics = cls(*(f.to(device) for f in fields), mode=mode, sigma_data=sigma_data)
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
        """The size of one unit of normalised features: std / sigma_data, with the std of `mode`."""
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


def _rows(features: Iterable[Tensor], per_channel: bool) -> Iterator[tuple[np.ndarray, int]]:
    """Each piece as (rows, m) float32, object by object in each row, and the number of its objects."""
    for piece in features:
        values = piece.detach().float().cpu()
        rows = values.transpose(0, 1).flatten(1) if per_channel else values.reshape(1, -1)
        yield rows.numpy(), len(piece)


def _require_mode(mode: str) -> None:
    if mode not in ("robust", "classic"):
        raise StatisticsError(f"mode is {mode!r}, expected 'robust' or 'classic'")


def _require_finite(bad: int, first: int) -> None:
    if bad:
        raise StatisticsError(
            f"features of {bad} objects, first number {first}, have NaN or infinite entries, expected finite numbers"
        )
