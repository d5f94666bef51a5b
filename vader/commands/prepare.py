"""`vader prepare`: make the masks or captions that a folder lacks, with pretrained models."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import torch

from ..data import READERS, Sequence, ShardedSet, prepare
from ..data.formats import FORMATS, Scene, detect, scan
from ..data.formats.shared.captions import with_captions
from ..data.preparation.captions import Subject, captioner, write_captions
from ..data.preparation.detection import BOX_THRESHOLD
from ..data.preparation.layouts import first_view
from ..data.preparation.masks import REPORT, Outcome, write_masks, write_people_masks
from ..data.preparation.matting import matting
from ..data.preparation.models import MODELS
from ..data.preparation.segmentation import BackgroundRemover
from ..data.prepared import DataError
from ..data.sets.own import experiment_named, is_prepared
from ..settings.checks import require

SHOWN = 5


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    require(given.batch_size >= 1, f"--batch-size is {given.batch_size}, expected at least 1")
    return masks(given) if given.what == "masks" else captions(given)


# ---------------------------------------------------------------------------------------- masks


def masks(given: argparse.Namespace) -> int:
    """Masks beside the pictures of a folder."""
    scenes = _scenes(given.folder, given.format, given.captions)
    if given.people:
        require(given.thing is None, "--people and --class exclude each other, expected one of them")
        outcome = write_people_masks(scenes, given.folder, matting(given.matting, given.device), given.downsample_ratio)
    else:
        classes = {s.key: s.attributes["category"] for s in scenes if "category" in s.attributes}
        bare = [s.key for s in scenes if s.key not in classes]
        require(
            given.thing is not None or not bare,
            f"object {bare[0]!r} has no class, expected --class, a category in --captions FILE, or --people"
            if bare else "",
        )  # fmt: skip
        remover = BackgroundRemover(given.thing or "", given.detector, given.segmenter, given.device, given.threshold)
        outcome = write_masks(
            scenes, given.folder, remover, {} if given.thing is not None else classes, given.batch_size
        )
    _say(outcome, len(scenes), given.folder)
    return 0


def _say(outcome: Outcome, objects: int, folder: Path) -> None:
    print(
        f"{folder}: {objects} objects: masks of {outcome.written} pictures made, {outcome.given} came with the data, "
        f"{outcome.missed} pictures without a detection ({folder / REPORT})"
    )
    if outcome.black:
        print(f"nothing was found in {outcome.black} frames of clips, whose masks are black")
    if outcome.undetected:
        _list(f"{len(outcome.undetected)} objects were found in none of their pictures", outcome.undetected)
    if outcome.faults:
        _list(f"{len(outcome.faults)} objects could not be read", list(outcome.faults.values()))


def _list(what: str, lines: list[str]) -> None:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    print("\n  ".join([f"{what}:", *lines[:SHOWN], *more]))


def _scenes(folder: Path, format: str | None, captions: Path | None) -> list[Scene]:
    scenes = scan(folder, format or detect(folder)[0])
    return scenes if captions is None else with_captions(scenes, captions)


# ---------------------------------------------------------------------------------------- captions


def captions(given: argparse.Namespace) -> int:
    """A sentence about each object of a folder or a prepared set, as a file that `--captions` reads."""
    folder = Path(given.name)
    own = given.name in READERS or (not folder.is_dir() and is_prepared(given.name))
    if not own and not folder.is_dir():
        raise DataError(f"{given.name}: no such folder or data set, expected one of {', '.join(READERS)}, or a folder")
    subjects = _of_set(given) if own else _of_folder(given, folder)
    require(not own or given.out is not None, "--out is missing, expected the captions' file of a data set")
    file = given.out or folder / "captions.csv"
    faults: dict[str, str] = {}
    new = write_captions(subjects, file, captioner(given.captioner, given.device), given.batch_size, faults)
    print(f"{file}: {new} new captions of {len(subjects)} objects")
    if faults:
        _list(f"{len(faults)} objects have none", list(faults.values()))
    return 0


def _of_folder(given: argparse.Namespace, folder: Path) -> list[Subject]:
    scenes = _scenes(folder, given.format, given.captions)
    return [Subject(s.key, _hint(given.hint, s.key, s.attributes), functools.partial(first_view, s)) for s in scenes]


def _of_set(given: argparse.Namespace) -> list[Subject]:
    data = prepare(experiment_named(given.profile, given.name).data)
    require(not isinstance(data, ShardedSet), f"data set {given.name!r} is in shards, expected --out and a folder")
    return [Subject(s.key, _hint(given.hint, s.key, s.attributes), functools.partial(_first, s)) for s in data]


def _first(sequence: Sequence) -> np.ndarray:
    return (sequence.images if isinstance(sequence, Sequence) else sequence.frames)[0].numpy()


def _hint(given: str | None, key: str, attributes: dict) -> str:
    """What the thing is called: as given, or its category or name."""
    hint = given or attributes.get("category") or attributes.get("name")
    require(
        isinstance(hint, str) and bool(hint.strip()),
        f"object {key!r} has neither category nor name, expected --hint or a category in --captions FILE",
    )
    return hint.strip()


# ---------------------------------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vader prepare", description="Make masks or captions with pretrained models, as files beside the data."
    )
    commands = parser.add_subparsers(dest="what", required=True)
    making = commands.add_parser("masks", help="cut things or people out of pictures that have no mask")
    making.add_argument("folder", type=Path, help="posed pictures, frames or videos")
    making.add_argument("--class", dest="thing", metavar="NAME", help="what the pictures show, in a word: chair")
    making.add_argument("--people", action="store_true", help="videos of people, by Robust Video Matting")
    making.add_argument("--threshold", type=float, default=BOX_THRESHOLD, help="least score of a detection")
    making.add_argument("--downsample-ratio", type=float, help="of matting (default: by the frames' size)")
    for role, kind in (("detector", "FOLDER|NAME"), ("segmenter", "FOLDER|NAME"), ("matting", "FILE")):
        making.add_argument(f"--{role}", metavar=kind, help=f"default: {MODELS[role].name}")
    telling = commands.add_parser("captions", help="describe each object's first view in a sentence")
    telling.add_argument("name", metavar="NAME|FOLDER", help="a data set, or a folder of pictures or videos")
    telling.add_argument("--hint", help="what the things are (default: each one's category or name)")
    telling.add_argument("--out", type=Path, metavar="FILE", help="default: captions.csv in the folder")
    telling.add_argument("--profile", default="laptop", help="of a data set (default: laptop)")
    telling.add_argument("--captioner", metavar="FOLDER|NAME", help=f"default: {MODELS['captioner'].name}")
    for command in (making, telling):
        command.add_argument("--format", choices=FORMATS, help="of the folder (default: found out by looking)")
        command.add_argument("--captions", type=Path, metavar="FILE", help="CSV or JSON file with categories")
        command.add_argument("--batch-size", type=int, default=8, help="pictures that a model sees at once")
        command.add_argument(
            "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ..."
        )
    return parser
