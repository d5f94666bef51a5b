"""CelebV-Text, or any folder of clips of one person each: video files, filtered as in C.1, with masks.

Data card: `data_cards/celebv_text.md`. A clip is a file `<stem>.mp4` (or another of SUFFIXES); `<stem>.txt` beside it
may hold its caption in the first line. Masks come from a function that is given the file and its frames one after the
other (`vader.data.formats.videos.Masker`), by default from a mask video `<stem>.mask.<suffix>` beside the clip.

Two passes, both parallel and resumable: `select_frames` decodes every clip once and writes down which frames pass the
filter and why others do not; then `prepare` decodes the clips that are left and writes their frames.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...settings.checks import ConfigError
from ...settings.experiment import DataConfig
from ..formats.videos import SUFFIXES, Counts, Masker, Undecodable, mask_beside, masked_frames, squared
from ..pipeline import prepare_set, run_each
from ..prepared import DataError, SequenceSet, data_digest, data_root, read_json, write_json
from ..video import VIDEOS, Video, check_video_settings, load_videos, train_share

NAME = "celebv_text"
FEWER = "fewer_than_declared"  # in the report: clips that decode fewer frames than their container declares
READER_VERSION = 3  # raised whenever the code between a file and its frames changes them
FILTER = {  # C.1
    "ends": 0.1,  # share of a clip's frames that is dropped at its beginning, and at its end
    "foreground": 0.25,  # frames with a smaller share of foreground are dropped
    "frames": 4,  # clips with fewer frames after this are dropped
    "bytes": 200_000,  # smaller files are dropped
}


class Unusable(Exception):
    """A clip that the filter drops; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Clip:
    """A file to look at, and where the finding is written."""

    file: Path
    key: str
    finding: Path
    masker: Masker


# ---------------------------------------------------------------------------------------- video files


def clip_frames(file: Path, masker: Masker, counts: Counts | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames (h, w, 3) and masks (h, w), uint8, one after the other; counts: as `videos.stream`.

    Raises Unusable for a clip that the filter drops unseen, and DataError for masks that do not fit it.
    """
    try:
        yield from masked_frames(file, masker, counts)
    except Undecodable as error:
        raise Unusable(error.reason) from error


# ---------------------------------------------------------------------------------------- filter


def passing_frames(share: Items[float]) -> tuple[list[int], Counter[str]]:
    """Indices of a clip's frames that C.1 keeps, by their shares of foreground, and how many it drops for which
    reason."""
    count = len(share)
    ends = int(FILTER["ends"] * count)
    inner = range(ends, count - ends)
    kept = [i for i in inner if share[i] >= FILTER["foreground"]]
    return kept, Counter({"first and last 10 %": 2 * ends, "less than 25 % foreground": len(inner) - len(kept)})


def _look_at(clip: Clip) -> None:
    """Write down what the filter makes of a clip. The file appears whole or not at all."""
    found: dict[str, Any] = {"file": clip.file.name, "frames": 0, "kept": [], "dropped_frames": {}, "reason": None}
    with open(clip.file, "rb") as file:
        found["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if clip.file.stat().st_size < FILTER["bytes"]:
            raise Unusable("less than 200 kB")
        counts = Counts()
        share = [mask.mean() / 255 for _, mask in clip_frames(clip.file, clip.masker, counts)]
        if note := counts.note():
            found[FEWER] = note["frames"]
        kept, dropped = passing_frames(share)
        found |= {"frames": len(share), "dropped_frames": dict(dropped)}
        if len(kept) < FILTER["frames"]:
            raise Unusable("less than 4 frames left")
        found["kept"] = kept
    except Unusable as reason:
        found["reason"] = str(reason)
    partial_file = clip.finding.with_suffix(".partial")
    write_json(partial_file, found, indent=None)
    partial_file.replace(clip.finding)


def list_clips(source: Path) -> dict[str, Path]:
    """Key -> clip in the folder `source` and below, by key. Raises DataError where there are none or two of a key."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder, expected video files ({', '.join(SUFFIXES)}) in it")
    clips: dict[str, Path] = {}
    for file in sorted(f for f in source.rglob("*") if f.suffix.lower() in SUFFIXES and not f.stem.endswith(".mask")):
        key = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in file.stem).lstrip("._-") or "_"
        if key in clips:
            raise DataError(f"{file}: its key {key!r} is that of {clips[key]} as well, expected different file names")
        clips[key] = file
    if not clips:
        raise DataError(f"{source}: no video files in it, expected some ({', '.join(SUFFIXES)})")
    return dict(sorted(clips.items()))


def select_frames(
    source: Path, masker: Masker = mask_beside, workers: int = 1, root: Path | None = None
) -> dict[str, Any]:
    """What the filter makes of every clip, by key: sha256, frames, kept (indices), dropped_frames (reason -> count),
    and the reason if the whole clip is dropped. Findings are kept under `root` (default `data_root()`), one file a
    clip, so that an interrupted selection goes on where it was."""
    clips = list_clips(source)
    listed = {key: [str(file.relative_to(source)), file.stat().st_size] for key, file in clips.items()}
    identity = [READER_VERSION, FILTER, masker_name(masker), listed]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = (root or data_root()) / f"{NAME}-selection-{digest[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: data set {NAME}: output folder is not writable ({error})") from error
    looked = [Clip(file, key, folder / f"{key}.json", masker) for key, file in clips.items()]
    pending = [clip for clip in looked if not clip.finding.exists()]
    run_each(_look_at, pending, workers, f"{NAME}: filter", len(clips))
    fields = ("sha256", "frames", "kept", "dropped_frames", "reason")
    return {key: read_json(folder / f"{key}.json", key, fields) for key in clips}


def filter_report(findings: dict[str, Any]) -> dict[str, Any]:
    """Counts of what was kept and dropped: clips by reason; frames, of clips that were decoded, by reason."""
    clips, frames = Counter(), Counter()
    for found in findings.values():
        clips[found["reason"] or "kept"] += 1
        frames.update(found["dropped_frames"])
        frames["kept"] += len(found["kept"])
        left = found["frames"] - sum(found["dropped_frames"].values()) - len(found["kept"])
        frames["of dropped clips"] += left
    return {
        "clips": dict(sorted(clips.items())) | {"total": len(findings)},
        "frames": dict(sorted(frames.items())) | {"total": sum(f["frames"] for f in findings.values())},
        "dropped": {key: found["reason"] for key, found in findings.items() if found["reason"]},
        FEWER: {key: f[FEWER] for key, f in findings.items() if FEWER in f},
    }


def masker_name(masker: Masker) -> str:
    """What a mask function enters digests as."""
    return f"{masker.__module__}.{masker.__qualname__}"


# ---------------------------------------------------------------------------------------- the data set


def read_video(job: tuple[DataConfig, Clip, list[int], str]) -> tuple[Video, None]:
    """A clip's kept frames as a Video: masked, cropped to the central square, and scaled; one full frame at a time."""
    config, clip, kept, split = job
    wanted = set(kept)
    pictures = [
        squared(frame, mask, "crop", config.resolution)
        for number, (frame, mask) in enumerate(clip_frames(clip.file, clip.masker))
        if number in wanted
    ]
    images, small = zip(*pictures, strict=True)
    text = clip.file.with_suffix(".txt")
    lines = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
    video = Video(
        key=clip.key,
        frames=torch.from_numpy(np.stack(images)),
        masks=torch.from_numpy(np.stack(small)),
        train_frames=train_share(config, len(kept)),
        split=split,
        caption=next((line.strip() for line in lines if line.strip()), None),
        attributes={"file": clip.file.name},
    )
    return video, None


def prepare(
    config: DataConfig,
    source: str | Path | None = None,
    masker: Masker = mask_beside,
    workers: int | None = None,
    root: Path | None = None,
) -> SequenceSet[Video]:
    """Load or prepare the clips of the folder `source`. masker: top-level function, a `Masker`; workers:
    processes, by default one per core.

    The clips that pass the filter are ordered by a hash of seed and key; the first `heldout_objects` are held-out
    identities, the next `num_objects` are for training. The set's folder gets `filter.json`, the report of what was
    dropped and why. Without a source, a set that was prepared earlier with these settings is loaded. Raises ConfigError
    where fewer clips are left than asked for, and DataError for a missing folder, masks that do not fit their clip, or
    an output folder that cannot be written.
    """
    check_video_settings(config, (NAME,), "of video files")
    if source is None:
        return load_videos(_prepared_earlier(config, masker, root or data_root()))
    source = Path(source)
    workers = torch.get_num_threads() if workers is None else workers
    findings = select_frames(source, masker, workers, root)
    report = filter_report(findings)
    order = [key for key, found in findings.items() if not found["reason"]]
    order.sort(key=lambda key: hashlib.sha256(f"{config.seed}/{key}".encode()).digest())
    asked = config.heldout_objects + config.num_objects
    if len(order) < asked:
        raise ConfigError(
            f"data set {NAME}: num_objects and heldout_objects are {asked} together, but {len(order)} of "
            f"{len(findings)} clips are left: {report['clips']}"
        )
    chosen = [(key, "train") for key in order[config.heldout_objects : asked]]
    chosen += [(key, "test") for key in order[: config.heldout_objects]]
    clips = list_clips(source)
    jobs = {key: (config, Clip(clips[key], key, Path(), masker), findings[key]["kept"], split) for key, split in chosen}
    data = prepare_set(config, sources(masker, findings, chosen), jobs, read_video, workers, root, VIDEOS)
    write_json(data.folder / "filter.json", report)
    return data


def sources(masker: Masker, findings: dict[str, Any], chosen: list[tuple[str, str]]) -> dict[str, Any]:
    """What decides the pixels beside the settings, as it enters the digest."""
    return reader(masker) | {"clips": {key: [findings[key]["sha256"], split] for key, split in chosen}}


def reader(masker: Masker) -> dict[str, Any]:
    """How files become frames."""
    return {"reader": NAME, "version": READER_VERSION, "filter": FILTER, "masks": masker_name(masker)}


def _prepared_earlier(config: DataConfig, masker: Masker, root: Path) -> Path:
    """Folder of a complete set with these settings, read as this version reads. Raises DataError if there is none."""
    for file in sorted(root.glob(f"{NAME}-*/manifest.json")):
        manifest = read_json(file, file.parent.name, ("digest", "sources"))
        read = {k: v for k, v in manifest["sources"].items() if k != "clips"}
        if read == reader(masker) and manifest["digest"] == data_digest(config, manifest["sources"]):
            return file.parent
    raise DataError(
        f"data set {NAME}: no set of these settings was prepared in {root}, and no source is given; "
        "expected source, the folder of the video files (--source PATH)"
    )
