"""The folder of the gallery: made whole beside its place, and then put there."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...generation.export import require_mesh_packages
from ...store.files import write_json
from ..ledger.links import renew_pages
from . import objects, videos
from .contents import GalleryError, Hall
from .finding import Found, find
from .pages import INDEX, common_files, hall_files, index_page
from .record import RECORD, SCHEMA, gallery_dir, read_record

LARGEST = 5_000_000  # bytes of all files


def make_gallery(profile: str, asked: Sequence[str] = (), out: Path | None = None, device: str = "auto") -> Path:
    """Write the gallery of a profile and return its first page.

    asked: experiments by name; by default all that have runs. out: its folder, by default `gallery_dir`.
    Raises GalleryError for a folder that holds something else and for experiments without runs, RunError where a run
    is gone or was changed, ImportError where a package is missing: all before any work.
    """
    out = gallery_dir() if out is None else out
    check_folder(out)
    require_packages()
    found, missing = find(profile, asked)

    def halls() -> Iterable[Hall]:
        with tqdm(found, desc="gallery", unit="set", disable=None) as bar:
            for one in bar:
                yield _hall(one, device, lambda step: bar.set_postfix_str(step, refresh=True))

    write(halls(), profile, missing, out)
    if out == gallery_dir():
        renew_pages(out.parent)  # whose pictures lead here
    return out / INDEX


def _hall(found: Found, device: str, step: Callable[[str], None]) -> Hall:
    make = videos.hall if found.config.articulated else objects.hall
    return make(found, device, step)


def require_packages() -> None:
    """Raise ImportError, with the way to get it, for a package that the gallery is made with."""
    require_mesh_packages()
    for module, package in (("pyvista", "data"), ("torch_fidelity", "eval")):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"the gallery needs {module}: pip install 'vader[{package}]'")


def check_folder(folder: Path) -> None:
    """Raise GalleryError unless the gallery may take this folder's place: it is not there, empty, or a gallery."""
    if folder.exists() and not folder.is_dir():
        raise GalleryError(f"{folder} is a file, expected a folder for the gallery")
    if folder.is_dir() and any(folder.iterdir()) and read_record(folder) is None:
        raise GalleryError(f"{folder} holds other files, expected a new folder or an earlier gallery to take its place")


def write(halls: Iterable[Hall], profile: str, missing: Sequence[str], out: Path) -> None:
    """Write a gallery of these halls, which takes the place of an earlier one when it is whole."""
    partial, old = (out.with_name(f"{out.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        size, sizes, told, record = 0, [], [], []
        for name, content in common_files():
            size += _put(partial / name, content)
        for hall in halls:
            shown, files = hall_files(hall)
            own = sum(_put(partial / name, content) for name, content in files)
            size += own
            sizes.append(f"{hall.key} {own / 1e6:.1f}")
            told.append(shown)
            record.append(_entry(hall, shown))
        claims = "../claims.html" if (out.parent / "claims.html").is_file() else None
        size += _put(partial / INDEX, index_page(told, profile, missing, claims))
        if size > LARGEST:
            raise GalleryError(
                f"the gallery would be {size / 1e6:.1f} MB, expected at most {LARGEST / 1e6:.0f} MB; ask for some "
                f"of its sets by name: {', '.join(sizes)}"
            )
        write_json(partial / RECORD, {"schema": SCHEMA, "profile": profile, "halls": record, "missing": list(missing)})
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        raise GalleryError(f"{error.filename or out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _entry(hall: Hall, told: dict[str, Any]) -> dict[str, Any]:
    rows = [{"key": row["key"], "title": row["title"], "viewer": row["viewer"]} for row in told["rows"]]
    return {
        "key": hall.key,
        "page": told["page"],
        "names": sorted(set(hall.names)),
        "runs": list(hall.runs),
        "rows": rows,
    }


def _put(file: Path, content: bytes | str) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode("utf-8") if isinstance(content, str) else content
    file.write_bytes(content)  # the folder takes its name when all of it is there
    return len(content)
