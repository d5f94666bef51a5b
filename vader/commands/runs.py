"""`vader runs`: list trained runs, or commit one as a reference run."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..store import runs
from ..store.files import RunError


def _overview(place: Path) -> list[str]:
    """One line for each folder of a store, also for those that are refused."""
    lines = []
    for folder in sorted(folder for folder in place.glob("*") if folder.is_dir()):
        if folder.name.endswith(".partial"):
            lines.append(f"{folder}: partial, resumes when it is asked for again")
            continue
        try:
            run = runs.open_run(folder)
        except RunError as error:
            lines.append(f"refused: {error}")
            continue
        size, minutes = sum(f.stat().st_size for f in folder.iterdir()) / 1e6, run.record["seconds"] / 60
        lines.append(f"{folder}: {run.origin}, {size:.1f} MB, trained in {minutes:.0f} min on {run.record['device']}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vader runs", description="List trained runs, or commit runs as reference runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list all runs, own and committed")
    committing = commands.add_parser("commit", help="copy finished runs to reports/runs, without checkpoints")
    committing.add_argument("run", nargs="+", type=Path, help="folder or name of a finished run")
    options = parser.parse_args(arguments)
    if options.command == "commit":
        folders = [run if run.exists() or len(run.parts) > 1 else runs.runs_dir() / run for run in options.run]
        lines = [f"{folder} -> {runs.commit_run(folder)}" for folder in folders]
    else:
        lines = _overview(runs.runs_dir()) + _overview(runs.reference_runs_dir())
    print("\n".join(lines or ["no runs yet"]))
    return 0
