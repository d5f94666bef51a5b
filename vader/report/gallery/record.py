"""What a gallery says of itself: its profile, and of each hall the pages, names and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...store.files import RunError, read_json
from ...store.paths import reports_dir

RECORD = "gallery.json"
SCHEMA = 1


def gallery_dir() -> Path:
    """Where the gallery is, unless it is asked for elsewhere."""
    return reports_dir() / "gallery"


def read_record(folder: Path) -> dict[str, Any] | None:
    """What is in a gallery: profile, halls with their pages, names and runs; None where there is none."""
    try:
        record = read_json(folder / RECORD)
    except (RunError, OSError):
        return None
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else None
