"""Figure 9: diffusion under robust and classic statistics (`study`), and why robust ones lose on planted tails
(`tails`)."""

from .study import (
    MODES,
    STUDIES,
    BulkTest,
    Curve,
    NormalizationStudy,
    curves_figure,
    findings,
    histogram_figure,
    normalization_curves,
    plant_tail,
    tail_name,
    trained_features,
)

__all__ = [
    "MODES", "STUDIES", "BulkTest", "Curve", "NormalizationStudy", "curves_figure", "findings", "histogram_figure",
    "normalization_curves", "plant_tail", "tail_name", "trained_features",
]  # fmt: skip
