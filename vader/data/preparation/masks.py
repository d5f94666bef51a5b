"""Masks as files beside the pictures, where the readers look for them: `vader prepare masks`.

`<folder>/masks.jsonl` says what was done: in its first line with which models, then a line for each picture: its mask,
or why there is none. A picture that has a line is not looked at again, so a run that was stopped goes on where it was.
Where a picture has a mask or varying alpha of its own, that stays. A clip has one line, and its masks are a video
beside it. The line says in how many frames nothing was found: there the mask is black.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...store.files import write_file
from ..formats import videos
from ..formats.shared.scenes import Scene
from ..prepared import DataError
from .layouts import Shot, batches, open_shot, shots
from .matting import matte
from .models import Loaded
from .segmentation import BackgroundRemover

REPORT = "masks.jsonl"


@dataclass
class Outcome:
    """Pictures by what became of them. undetected: objects in none of whose pictures anything was found, which C.1
    drops; faults: objects that could not be opened, and why."""

    written: int = 0
    given: int = 0
    missed: int = 0  # pictures in which nothing was found
    black: int = 0  # frames of clips in which nothing was found
    undetected: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)


class Report:
    """The lines of `REPORT`. Raises DataError for one that is of other models, classes or settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.file = folder, folder / REPORT
        settings = json.loads(json.dumps(settings))
        self.lines: dict[str, dict[str, Any]] = {}
        if not self.file.is_file():
            write_file(self.file, json.dumps(settings) + "\n")
            return
        first, *rest = self.file.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        if (found := _parsed(first, self.file)) != settings:
            raise DataError(
                f"{self.file}: masks were made with {json.dumps(found)}, expected {json.dumps(settings)}; to make all "
                "anew, remove this file and the masks"
            )
        whole = [line for line in rest if line.endswith("\n")]  # a run that was killed may leave half a line
        if len(whole) < len(rest):
            write_file(self.file, "".join([first, *whole]))
        for line in whole:
            entry = _parsed(line, self.file)
            self.lines[entry["picture"]] = entry

    def name(self, picture: Path) -> str:
        return picture.relative_to(self.folder).as_posix()

    def add(self, picture: Path, entry: dict[str, Any]) -> None:
        entry = {"picture": self.name(picture), **entry}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.lines[entry["picture"]] = entry


def _parsed(line: str, file: Path) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError("no object")
        return entry
    except ValueError as error:
        raise DataError(f"{file}: a line is not as 'vader prepare masks' writes it ({error})") from error


# ---------------------------------------------------------------------------------------- things


def write_masks(
    scenes: Iterable[Scene],
    folder: Path,
    remover: BackgroundRemover,
    classes: dict[str, str] | None = None,
    batch_size: int = 8,
) -> Outcome:
    """Masks of the pictures and frames of objects, by their class: `classes` by key, else `remover.thing`.

    Pictures without a detection get no mask, so that their reader leaves them out; objects without any detection are
    named in the outcome. Raises WeightsError where the models cannot be had.
    """
    settings = {"class": remover.thing, "classes": classes or {}, "threshold": remover.threshold, **remover.about}
    report = Report(folder, settings)

    def make(scene: Scene, pending: list[Shot]) -> Iterator[tuple[Shot, np.ndarray | None, dict[str, Any]]]:
        thing = (classes or {}).get(scene.key, remover.thing)
        for chunk in batches(pending, batch_size):
            opened = [open_shot(scene, shot.picture) for shot in chunk]
            bare = [i for i, (_, alpha) in enumerate(opened) if alpha is None]
            done = dict(zip(bare, remover.cut_out([opened[i][0] for i in bare], thing), strict=True))
            for i, shot in enumerate(chunk):
                if i not in done:
                    yield shot, None, {"given": "alpha"}
                    continue
                found, mask = done[i]
                about = {"box": None} if found is None else {"box": [*found.box], "score": found.score}
                yield shot, mask, about

    def film(scene: Scene) -> Iterator[np.ndarray]:
        thing = (classes or {}).get(scene.key, remover.thing)
        for chunk in batches(videos.stream(scene.place), batch_size):
            for frame, (_, mask) in zip(chunk, remover.cut_out(chunk, thing), strict=True):
                yield np.zeros(frame.shape[:2], np.uint8) if mask is None else mask

    return _each(list(scenes), report, make, film)


# ---------------------------------------------------------------------------------------- people


def write_people_masks(
    scenes: Iterable[Scene], folder: Path, loaded: Loaded, downsample_ratio: float | None = None
) -> Outcome:
    """Masks of people in videos, and in folders of frames, by `matte`. A clip is done as a whole."""
    report = Report(folder, {"matting": loaded.about, "downsample_ratio": downsample_ratio})

    def make(scene: Scene, pending: list[Shot]) -> Iterator[tuple[Shot, np.ndarray | None, dict[str, Any]]]:
        everything = shots(scene)  # the network remembers frames, also those whose mask is there
        wanted = {shot.picture for shot in pending}
        frames = (open_shot(scene, shot.picture)[0] for shot in everything)
        for shot, mask in zip(everything, matte(frames, loaded, downsample_ratio), strict=True):
            if shot.picture in wanted:
                yield shot, mask, {"share": round(float(mask.mean()) / 255, 4)}

    def film(scene: Scene) -> Iterator[np.ndarray]:
        return matte(videos.stream(scene.place), loaded, downsample_ratio)

    return _each(list(scenes), report, make, film)


# ---------------------------------------------------------------------------------------- both


def _each(scenes: list[Scene], report: Report, make: Callable, film: Callable) -> Outcome:
    """Go through objects, write what `make` and `film` return, and count. An object that cannot be read is named."""
    outcome = Outcome()
    for scene in tqdm(scenes, desc="masks", unit="object", disable=None):
        try:
            found = shots(scene)
            entries = (
                _film(scene, found[0], report, film) if scene.place.is_file() else _scene(scene, found, report, make)
            )
        except DataError as error:
            outcome.faults[scene.key] = str(error)
            continue
        made = [e for e in entries if e is not None]
        missed = sum("box" in e and e["box"] is None for e in made)
        given = len(entries) - len(made) + sum("given" in e for e in made)
        outcome.given += given
        outcome.missed += missed
        outcome.black += sum(e.get("empty", 0) for e in made)
        outcome.written += len(entries) - given - missed
        if missed and missed == len(entries):
            outcome.undetected.append(scene.key)
    return outcome


def _scene(scene: Scene, found: list[Shot], report: Report, make: Callable) -> list[dict[str, Any] | None]:
    """What became of each picture; None: its mask came with the data."""
    pending = [s for s in found if _is_pending(s, report)]
    for shot, mask, about in make(scene, pending) if pending else ():
        report.add(shot.picture, about)
        if mask is not None:  # after its line: a mask without one came with the data
            shot.mask.parent.mkdir(parents=True, exist_ok=True)
            write_file(shot.mask, _png(mask))
    return [report.lines.get(report.name(shot.picture)) for shot in found]


def _is_pending(shot: Shot, report: Report) -> bool:
    entry = report.lines.get(report.name(shot.picture))
    if entry is None:
        return not shot.given
    return not (shot.mask.is_file() or "given" in entry or entry.get("box", True) is None)


def _film(scene: Scene, shot: Shot, report: Report, film: Callable) -> list[dict[str, Any] | None]:
    """The same for a video file, whose masks are a video. Where nothing is found in any frame, there is none."""
    if _is_pending(shot, report):
        count, empty = 0, 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal count, empty
            for mask in film(scene):
                count, empty = count + 1, empty + int(mask.max() == 0)
                yield mask

        report.add(shot.picture, {"video": shot.mask.name})  # before its masks: those without a line came with the data
        write_mask_video(shot.mask, counted())
        if empty == count:
            shot.mask.unlink()
        found = {"video": shot.mask.name} if empty < count else {"box": None}
        report.add(shot.picture, {**found, "frames": count, "empty": empty})
    return [report.lines.get(report.name(shot.picture))]


def write_mask_video(file: Path, masks: Iterable[np.ndarray]) -> None:
    """Masks (h, w) uint8 as the grey levels of a video without loss (FFV1 in Matroska). The file appears whole or not
    at all."""
    import av

    partial = file.with_suffix(".partial")
    try:
        with av.open(str(partial), "w", format="matroska") as container:
            stream = None
            for mask in masks:
                if stream is None:
                    stream = container.add_stream("ffv1", rate=25)
                    stream.height, stream.width, stream.pix_fmt = *mask.shape, "gray"
                container.mux(stream.encode(av.VideoFrame.from_ndarray(mask, format="gray")))
            if stream is not None:
                container.mux(stream.encode())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()
