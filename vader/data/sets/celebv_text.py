"""CelebV-Text, or any folder of clips of one person each: video files, filtered as in C.1, with masks.

Data card: `data_cards/celebv_text.md`. A clip is a file `<stem>.mp4` (or another of SUFFIXES); `<stem>.txt` beside it
may hold its caption in the first line. Masks come from a function that is told the file and its frames, by default from
a mask video `<stem>.mask.<suffix>` beside the clip.

Two passes, both parallel and resumable: `select_frames` decodes every clip once and writes down which frames pass the
filter and why others do not; then `prepare` decodes the clips that are left and writes their frames.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...settings.checks import ConfigError
from ...settings.experiment import DataConfig
from ..preparation import prepare_set, run_each
from ..prepared import DataError, SequenceSet, data_digest, data_root, read_json, write_json
from ..video import VIDEOS, Video, check_video_settings, load_videos, train_share

NAME = "celebv_text"
READER_VERSION = 1  # raised whenever the code between a file and its frames changes them
SUFFIXES = (".avi", ".mkv", ".mp4", ".webm")
FILTER = {  # C.1
    "ends": 0.1,  # share of a clip's frames that is dropped at its beginning, and at its end
    "foreground": 0.25,  # frames with a smaller share of foreground are dropped
    "frames": 4,  # clips with fewer frames after this are dropped
    "bytes": 200_000,  # smaller files are dropped
}
Masker = Callable[[Path, np.ndarray], np.ndarray]  # (file, frames (t, h, w, 3)) -> masks (t, h, w), uint8


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


def decode(file: Path) -> np.ndarray:
    """All frames of a video file, (t, h, w, 3) uint8. Raises Unusable with the reason where they cannot be had."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "reading video files needs av (PyAV), which the extra 'video' installs: pip install 'vader[video]'"
        ) from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise Unusable("no video stream")
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            declared = stream.frames  # 0 where the container does not say
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise Unusable("cannot be decoded") from error
    if not frames or len(frames) < declared:
        raise Unusable("cannot be decoded")  # cut off: fewer frames than the container declares
    if len({frame.shape for frame in frames}) > 1:
        raise Unusable("frames of varying size")
    return np.stack(frames)


def mask_beside(file: Path, frames: np.ndarray) -> np.ndarray:
    """Masks from the video `<stem>.mask.<suffix>` beside `file`, its grey levels. Raises DataError where there is no
    such video or it cannot be decoded."""
    found = [f for suffix in SUFFIXES if (f := file.with_name(f"{file.stem}.mask{suffix}")).is_file()]
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise DataError(f"{file}: expected one mask video {file.stem}.mask.* beside it, found {names}")
    try:
        return decode(found[0])[..., 1]
    except Unusable as error:
        raise DataError(f"{found[0]}: mask video of {file.name}: {error}") from error


def read_clip(file: Path, masker: Masker) -> tuple[np.ndarray, np.ndarray]:
    """Frames (t, h, w, 3) and masks (t, h, w), uint8. Raises Unusable for a clip that the filter drops unseen, and
    DataError for masks that do not fit it."""
    frames = decode(file)
    masks = masker(file, frames)
    if masks.shape != frames.shape[:3] or masks.dtype != np.uint8:
        raise DataError(
            f"{file}: masks are {masks.shape} {masks.dtype}, expected {frames.shape[:3]} uint8 as the frames"
        )
    return frames, masks


# ---------------------------------------------------------------------------------------- filter


def passing_frames(masks: np.ndarray) -> tuple[list[int], Counter[str]]:
    """Indices of a clip's frames that C.1 keeps, by its masks (t, h, w), and how many it drops for which reason."""
    count = len(masks)
    ends = int(FILTER["ends"] * count)
    inner = range(ends, count - ends)
    share = masks.reshape(count, -1).mean(1) / 255
    kept = [i for i in inner if share[i] >= FILTER["foreground"]]
    return kept, Counter({"first and last 10 %": 2 * ends, "less than 25 % foreground": len(inner) - len(kept)})


def _look_at(clip: Clip) -> None:
    """Write down what the filter makes of a clip. The file appears whole or not at all."""
    found: dict[str, Any] = {"file": clip.file.name, "frames": 0, "kept": [], "dropped_frames": {}, "reason": None}
    content = clip.file.read_bytes()
    found["sha256"] = hashlib.sha256(content).hexdigest()
    try:
        if len(content) < FILTER["bytes"]:
            raise Unusable("less than 200 kB")
        masks = read_clip(clip.file, clip.masker)[1]
        kept, dropped = passing_frames(masks)
        found |= {"frames": len(masks), "dropped_frames": dict(dropped)}
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
    }


def masker_name(masker: Masker) -> str:
    """What a mask function enters digests as."""
    return f"{masker.__module__}.{masker.__qualname__}"


# ---------------------------------------------------------------------------------------- the data set


def read_video(job: tuple[DataConfig, Clip, list[int], str]) -> tuple[Video, None]:
    """A clip's kept frames as a Video: masked, cropped to the central square, and scaled by a box filter."""
    config, clip, kept, split = job
    frames, masks = read_clip(clip.file, clip.masker)
    h, w = masks.shape[1:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = np.s_[kept, top : top + side, left : left + side]
    alpha = masks[square].astype(np.float32) / 255
    composited = np.round(frames[square] * alpha[..., None]).astype(np.uint8)
    size = (config.resolution, config.resolution)
    images = [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BOX)) for f in composited]
    small = [np.asarray(Image.fromarray(m).resize(size, Image.Resampling.BOX)) for m in masks[square]]
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
    """Load or prepare the clips of the folder `source`. masker: top-level function (file, frames) -> masks; workers:
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
