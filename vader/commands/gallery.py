"""`vader gallery`: pages of everything that the trained models make, to be opened in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.gallery.writing import make_gallery

DESCRIPTION = """\
Make pages of what the trained models make: samples of seed 0 of every system as turntables, each with its nearest
training object, reconstructions beside real views, driven videos, interpolations. Every object opens in a viewer, from
the disk and with no network. What is there in the folder is replaced when the new pages are whole."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vader gallery", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", help="experiments by name (default: all that have trained runs)")
    parser.add_argument("--profile", default="laptop", help="of the trainings (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the pages (default: reports/gallery)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    options = parser.parse_args(arguments)
    page = make_gallery(options.profile, options.sets, options.out, options.device)
    size = sum(file.stat().st_size for file in page.parent.rglob("*") if file.is_file())
    print(f"{page}: {size / 1e6:.1f} MB")
    return 0
