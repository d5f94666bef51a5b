"""Prepare a data set: python -m vader.data furniture_chairs --profile laptop [--source PATH] [--workers N]"""

from __future__ import annotations

import argparse
import sys

from ..config import ConfigError, experiment
from . import READERS, prepare
from .sequence import DataError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vader.data", description="Render a data set once; then it loads.")
    parser.add_argument("name", help=f"one of {', '.join(READERS)}")
    parser.add_argument("--profile", default="laptop", help="whose counts and resolution to use (default: laptop)")
    parser.add_argument(
        "--source", help="furniture: folder of catalogues, a catalogue (.sh3f) or the Debian package (.deb)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    given = parser.parse_args(arguments)
    options = {k: v for k in ("source", "workers") if (v := getattr(given, k)) is not None}
    try:
        data = prepare(experiment(given.profile, given.name).data, **options)
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    train, test = len(data.split("train")), len(data.split("test"))
    views = f"{data.train_views} training and {data.heldout_views} held-out views"
    print(f"{data.folder}: {train} training and {test} held-out objects, {views} each")
    print(f"digest {data.digest}, pixels {data.pixel_checksum}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
