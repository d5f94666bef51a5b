"""Places of folders, independent of the working directory: papermill's is the caller's, nbval's the notebook's."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout this package is imported from; where it was installed without one, the working directory."""
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def notebooks_dir() -> Path:
    return project_root() / "notebooks"


def reports_dir() -> Path:
    """Where reports are written: $VADER_REPORTS, or `reports` (where git ignores those of the smoke profile)."""
    return _from_environment("VADER_REPORTS", "reports")


def runs_dir() -> Path:
    """Where runs are trained and kept: $VADER_RUNS, or `runs`, which git ignores."""
    return _from_environment("VADER_RUNS", "runs")


def reference_runs_dir() -> Path:
    """The runs that are committed. Only read, except by `vader runs commit`."""
    return project_root() / "reports" / "runs"


def _from_environment(variable: str, default: str) -> Path:
    # relative to the root, since a notebook's kernel has another working directory than the command that starts it
    return project_root() / Path(os.environ.get(variable) or default).expanduser()
