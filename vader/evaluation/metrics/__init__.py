"""Metrics of pictures, shapes, poses and attributes: FID, KID, PSNR, LPIPS, COV, MMD, 1-NNA and others."""

from __future__ import annotations

import importlib
from types import ModuleType


class MetricError(ValueError):
    """Data on which a metric would be meaningless: named set, field and what was expected."""


def optional_import(module: str) -> ModuleType:
    """`module` of a package that only metrics need, or an `ImportError` that says how to get it."""
    package = module.split(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # the package is there, and something that it needs itself is not
        raise ImportError(f"this metric needs {package}: pip install 'vader[eval]'") from error
    return importlib.import_module(module)
