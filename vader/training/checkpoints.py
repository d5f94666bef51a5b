"""Checkpoints: a folder each, which appears whole or not at all, with checksums that reveal damage.

    checkpoint-000000012800/       the clock in its name
        shared.pt                  modules and optimiser, alike on all ranks
        rows-00003.pt ...          rows of partition 3 of a divided library, whatever the number of ranks
        checkpoint.json            schema, task, clock, settings, and the SHA-256 of each file

It is written under the name `….tmp` and renamed once everything is on the disk. Then all but the last two go. Files
are read with `weights_only`, so nothing in them is executed.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..store.files import RunError, differences, read_json, sha256, sync, write_json
from .distributed import ALONE, Ranks

SCHEMA = 1
KEPT = 2
SHARED = "shared"


def rows_part(partition: int) -> str:
    """The part of a checkpoint that belongs to a partition."""
    return f"rows-{partition:05d}"


def checkpoints(work: Path) -> list[Path]:
    """Complete checkpoints of a work folder, the newest first."""
    found = [path for path in Path(work).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def kept(work: Path) -> str:
    """What is left of a training that stopped, in words."""
    left = [path.name for path in checkpoints(work)]
    return f"{left[0]} stays, and the run resumes from it" if left else "there is no earlier checkpoint"


def write(
    work: Path,
    task: str,
    clock: int,
    parts: Iterable[tuple[str, Callable[[], Any]]],
    settings: Any = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Write a checkpoint, of which every rank brings its own `parts` (name, what makes the content).

    Raises RunError, on all ranks, where one of them cannot write (a full disk); what was begun is removed then, and
    earlier checkpoints stay.
    """
    final = Path(work) / f"checkpoint-{clock:012d}"
    partial = final.with_name(final.name + ".tmp")
    if ranks.first:
        for leftover in Path(work).glob("checkpoint-*.tmp"):  # of a process that was killed while writing
            shutil.rmtree(leftover)
    digests: dict[str, str] = {}
    fault = ranks.told(_attempt(partial.mkdir) if ranks.first else None)
    if fault is None:
        fault = _attempt(lambda: digests.update(_write_parts(partial, parts)))
    reports = ranks.gathered((digests, fault))
    faults = [problem for _, problem in reports if problem]
    if not faults and ranks.first:
        head = {"schema": SCHEMA, "task": task, "clock": clock, "settings": settings}
        files = {name: digest for written, _ in reports for name, digest in written.items()}
        faults += filter(None, [_attempt(lambda: _finish(partial, final, {**head, "files": files}))])
    faults = ranks.told(faults)
    if faults:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"{final}: cannot be written ({faults[0]}), so training stops; {kept(work)}")
    if ranks.first:
        for old in checkpoints(work)[KEPT:]:
            shutil.rmtree(old)
    return final


def _write_parts(folder: Path, parts: Iterable[tuple[str, Callable[[], Any]]]) -> dict[str, str]:
    digests = {}
    for name, content in parts:
        file = folder / f"{name}.pt"
        with open(file, "wb") as stream:
            torch.save(content(), stream)
        sync(file)
        digests[file.name] = sha256(file)
    return digests


def _finish(partial: Path, final: Path, head: dict[str, Any]) -> None:
    missing = [name for name in head["files"] if not (partial / name).is_file()]
    if missing:
        raise OSError(f"{missing[0]} of another rank is not there: all ranks need to see one file system")
    write_json(partial / "checkpoint.json", head)
    sync(partial)
    if final.exists():  # a training that went back to an earlier checkpoint passes its clock again
        shutil.rmtree(final)
    partial.rename(final)
    sync(final.parent)


def _attempt(action: Callable[[], Any]) -> str | None:
    """None, or what the file system said against it (torch reports it as a RuntimeError, after Python's own error)."""
    try:
        action()
    except OSError as error:
        return str(error)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            return str(error.__context__)
        if "file" in str(error):  # PytorchStreamWriter failed writing file
            return str(error).splitlines()[0]
        raise
    return None


def newest(work: Path, task: str, parts: Iterable[str], settings: Any = None, ranks: Ranks = ALONE) -> Path | None:
    """The newest checkpoint whose files are what they were when written; None where none was ever written.

    parts: what this rank will read of it. A damaged one is left out, which is said on stderr. Raises RunError where
    all are damaged, or where one is of another task, schema or settings; these are named field by field.
    """
    parts, found = list(parts), checkpoints(work)
    if not found and (Path(work) / "checkpoint.pt").exists():
        raise RunError(f"{work / 'checkpoint.pt'}: not a checkpoint of this version; remove it to start over")
    faults = []
    for folder in found:
        problems = [problem for problem in ranks.gathered(_fault(folder, parts)) if problem]
        if not problems:
            _check_head(folder, task, settings)
            if faults and ranks.first:
                print(f"{faults[0]}; using {folder.name} in its place", file=sys.stderr)
            return folder
        faults.append(problems[0])
    if faults:
        raise RunError(f"{faults[0]}, and there is no earlier one; remove it to start over")
    return None


def read(folder: Path, part: str, device: torch.device) -> Any:
    """A part's content. Raises RunError naming the file that holds something else."""
    try:
        return torch.load(folder / f"{part}.pt", weights_only=True, map_location=device)
    except Exception as error:
        raise RunError(f"{folder / part}.pt: not a part of a checkpoint ({error}); remove it to start over") from error


def _fault(folder: Path, parts: list[str]) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None where nothing is."""
    try:
        files = read_json(folder / "checkpoint.json")["files"]
        for name in (f"{part}.pt" for part in parts):
            if name not in files:
                return f"{folder}: has no {name}, expected one; the library was divided otherwise when it was written"
            if (found := sha256(folder / name)) != files[name]:
                return (
                    f"{folder / name}: is damaged, SHA-256 is {found[:12]}…, expected {files[name][:12]}… as "
                    "checkpoint.json has it"
                )
    except (RunError, OSError, KeyError, TypeError) as error:
        return f"{folder}: is damaged ({error})"
    return None


def _check_head(folder: Path, task: str, settings: Any) -> None:
    head = read_json(folder / "checkpoint.json")
    for name, expected in (("schema", SCHEMA), ("task", task)):
        if head[name] != expected:
            raise RunError(
                f"{folder}: not a checkpoint of this {task} training: its {name} is {head[name]!r}, expected "
                f"{expected!r}; remove it to start over"
            )
    if settings is not None and head["settings"] is not None and (changed := differences(head["settings"], settings)):
        raise RunError(f"{folder}: is of other settings: {'; '.join(changed)}; remove it to start over")
