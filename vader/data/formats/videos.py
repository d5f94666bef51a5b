"""Videos and folders of frames of subjects that move; video files frame by frame, in memory that no length changes.

    <name>.mp4           with <name>.mask.mp4 (or another suffix) beside it, whose grey levels are the masks
    <name>/*.png         RGBA, or with <name>/masks/; or <name>/frames/ and <name>/masks/

A phone stores what its sensor saw and a matrix that turns it upright; frames come out turned. Time stamps, not numbers,
decide which frames are evenly spaced: phones record at a rate that varies.

A container declares how many frames it has, and some declare a few more than can be had: frames that their own edit
list discards, or a last one that was never finished. Such a clip is read, and what was declared and decoded is said. A
clip that lacks more than MISSING frames and MISSING_SHARE of them, not counting discarded ones, was cut off: it is
refused.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..prepared import DataError
from ..transient import unusable
from ..video import Video
from .shared import images
from .shared.scenes import Options, Places, Scene, folders, sampled, spread

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
SIGNS = f"video files ({', '.join(SUFFIXES)}), or folders of pictures"
UP = None  # the camera stands still, and poses are learned
FRAMES, MASKS = ("frames", "images", "rgb"), ("masks", "mask")
MISSING, MISSING_SHARE = 2, 0.01  # frames that are declared and cannot be had, in a clip that is not cut off

# (file, its frames (h, w, 3) one after the other) -> their masks (h, w) uint8, in step
Masker = Callable[[Path, Iterator[np.ndarray]], Iterator[np.ndarray]]


class Undecodable(DataError):
    """A file that gives no frames, or not all of them. reason: the message without the file and what was found."""

    def __init__(self, file: Path, reason: str, found: str = "") -> None:
        super().__init__(f"{file}: {reason}{found}, expected a whole video of one size")
        self.reason = reason


@dataclass
class Counts:
    """Frames of a file: those that the container declares (0: it does not say), of these those that it wants discarded,
    and those that were decoded."""

    declared: int = 0
    discarded: int = 0
    decoded: int = 0

    @property
    def cut_off(self) -> bool:
        missing = self.declared - self.discarded - self.decoded
        return self.decoded == 0 or missing > max(MISSING, MISSING_SHARE * self.declared)

    def note(self) -> dict[str, dict[str, int]]:
        """For an object's attributes, where less was decoded than declared."""
        lacking = self.decoded < self.declared
        return {"frames": {"declared": self.declared, "decoded": self.decoded}} if lacking else {}


# ---------------------------------------------------------------------------------------- video files


def _open(file: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "reading video files needs av (PyAV), which the extra 'video' installs: pip install 'vader[video]'"
        ) from error
    try:
        container = av.open(str(file))
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise Undecodable(file, "cannot be decoded") from error
    if not container.streams.video:
        container.close()
        raise Undecodable(file, "no video stream")
    return container


def stream(file: Path, counts: Counts | None = None) -> Iterator[np.ndarray]:
    """Frames (h, w, 3) uint8 in the order they are shown, turned upright; one at a time is in memory.

    counts: is filled. Raises Undecodable where frames cannot be had, where the file is cut off, or where they change
    their size.
    """
    counts = Counts() if counts is None else counts
    with _open(file) as container:
        import av  # which is there, or the file would not be open

        video, shape = container.streams.video[0], None
        counts.declared, counts.discarded, counts.decoded = video.frames, 0, 0
        try:
            for packet in container.demux(video):
                counts.discarded += packet.is_discard
                for frame in packet.decode():
                    pixels = upright(frame.to_ndarray(format="rgb24"), frame.rotation)
                    if shape not in (None, pixels.shape):
                        raise Undecodable(file, "frames of varying size")
                    shape, counts.decoded = pixels.shape, counts.decoded + 1
                    yield pixels
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise Undecodable(file, "cannot be decoded") from error
        if counts.cut_off:
            raise Undecodable(
                file, "cannot be decoded", f" to its end: {counts.decoded} of the {counts.declared} frames it declares"
            )


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """A frame turned as its display matrix says: `rotation` degrees counterclockwise, to the nearest quarter."""
    return np.ascontiguousarray(np.rot90(pixels, round(rotation / 90) % 4))


def time_stamps(file: Path) -> np.ndarray:
    """When each frame is shown, in seconds, in that order, without decoding. Frames without a stamp follow at the mean
    rate, and those that the container wants discarded are none. Raises Undecodable where there are none."""
    with _open(file) as container:
        import av

        video = container.streams.video[0]
        try:
            packets = [p for p in container.demux(video) if p.size and not p.is_discard]
        except av.FFmpegError as error:
            raise Undecodable(file, "cannot be decoded") from error
        if not packets:
            raise Undecodable(file, "cannot be decoded")
        if any(p.pts is None for p in packets):
            return np.arange(len(packets)) / float(video.average_rate or 25)
        return np.sort([float(p.pts * p.time_base) for p in packets])


def evenly(times: np.ndarray, wanted: int) -> list[int]:
    """Indices of `wanted` different frames, as evenly spaced in time as may be: of each of so many equal stretches of
    time the frame that is shown in its middle."""
    end = times[-1] + (np.median(np.diff(times)) if len(times) > 1 else 1.0)
    middles = times[0] + (np.arange(wanted) + 0.5) / wanted * (end - times[0])
    chosen, last = [], -1
    for number, middle in enumerate(middles):
        shown = int(np.searchsorted(times, middle, side="right")) - 1
        last = min(max(shown, last + 1), len(times) - wanted + number)
        chosen.append(last)
    return chosen


def mask_files(file: Path) -> list[Path]:
    """Mask videos beside a video: one, if all is well."""
    return [f for suffix in SUFFIXES if (f := file.with_name(f"{file.stem}.mask{suffix}")).is_file()]


def mask_beside(file: Path, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Masks from the video `<stem>.mask.<suffix>` beside `file`, its grey levels. Raises DataError where there is no
    such video or it cannot be decoded."""
    found = mask_files(file)
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise DataError(f"{file}: expected one mask video {file.stem}.mask.* beside it, found {names}")
    try:
        for frame in stream(found[0]):
            yield frame[..., 1]
    except Undecodable as error:
        raise DataError(f"{found[0]}: mask video of {file.name}: {error.reason}") from error


def masked_frames(file: Path, masker: Masker, counts: Counts | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames (h, w, 3) and masks (h, w), uint8, in step; counts: as `stream`.

    Raises Undecodable for the file, and DataError for masks that do not fit it in number, size or type.
    """
    frames, ahead = stream(file, counts), deque()
    frames = chain([next(frames)], frames)  # a file without frames is told before its masks are looked for

    def shown() -> Iterator[np.ndarray]:
        """The frames, for the mask step; kept until their masks are there."""
        for frame in frames:
            ahead.append(frame)
            yield frame

    def refused(message: str) -> DataError:
        """The error, unless the file itself is broken, which is told first."""
        for _ in frames:
            pass
        return DataError(message)

    count, masks = 0, masker(file, shown())
    while True:
        try:
            mask = next(masks, None)
        except Undecodable:
            raise
        except DataError as error:
            raise refused(str(error)) from error
        if mask is None:
            break
        frame = ahead.popleft() if ahead else next(frames, None)
        if frame is None:
            raise DataError(f"{file}: more masks than frames, expected {count}")
        if mask.shape != frame.shape[:2] or mask.dtype != np.uint8:
            found, expected = f"{mask.shape} {mask.dtype}", f"{frame.shape[:2]} uint8"
            raise refused(f"{file}: mask of frame {count} is {found}, expected {expected} as the frame")
        count += 1
        yield frame, mask
    rest = len(ahead) + sum(1 for _ in frames)
    if rest:
        raise DataError(f"{file}: {count} masks, expected {count + rest} as the frames")


def squared(frame: np.ndarray, mask: np.ndarray, fit: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame on black and its mask, made square and scaled."""
    square = images.Square.of(*mask.shape, fit)
    return square.apply(images.on_black(frame, mask), resolution), square.apply(mask, resolution)


# ---------------------------------------------------------------------------------------- objects


def find(folder: Path) -> str | None:
    for place in sampled(folder):
        if files := video_files(place):
            return f"{files[0]} is a video"
        if place.name not in MASKS and len(images.picture_files(place)) > 1:
            return f"{place} has frames"
    return None


def places(folder: Path) -> Places:
    """Videos, keyed by path and name, and folders of two or more pictures."""
    for place in folders(folder):
        for file in video_files(place):
            yield str(file.relative_to(folder).with_suffix("")), file, {}
        if place.name not in MASKS and len(images.picture_files(place)) > 1:
            subject = place.parent if place.name in FRAMES and place != folder else place
            yield str(subject.relative_to(folder)), subject, {"frames": str(place)}


def extra_files(scene: Scene) -> list[Path]:
    """Files beside a video that decide what it is."""
    return [] if scene.place.is_dir() else mask_files(scene.place)


def video_files(folder: Path) -> list[Path]:
    return sorted(
        f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.stem.endswith(".mask") and f.is_file()
    )


def read(scene: Scene, options: Options) -> Video:
    """All frames are for training; a set that holds some out replaces `train_frames`. Frames whose mask is empty are
    left out and named. Raises DataError where there are no masks, or too few frames are left."""
    frames, masks, faults, counts = [], [], {}, Counts()
    source = _of_folder(scene, options, faults) if "frames" in scene.files else frames_of_file(scene, options, counts)
    for name, frame, mask in source:
        small, coverage = squared(frame, mask, options.fit, options.resolution)
        if coverage.max() == 0:
            faults[name] = f"{scene.where}: {name}: mask is empty, expected some foreground"
            continue
        frames.append(small)
        masks.append(coverage)
    least = max(2, options.least_share * (len(frames) + len(faults)))
    if len(frames) < least or (options.frames or 0) > len(frames):
        wanted = options.frames or int(np.ceil(least))
        reasons = "".join(f"\n  {reason}" for reason in list(faults.values())[:3])
        raise DataError(f"{scene.where}: {len(frames)} usable frames, expected at least {wanted}{reasons}")
    about = {"format": scene.format} | ({"left_out": faults} if faults else {}) | counts.note()
    return Video(
        key=scene.key,
        frames=torch.from_numpy(np.stack(frames)),
        masks=torch.from_numpy(np.stack(masks)),
        train_frames=len(frames),
        split=scene.split,
        caption=scene.caption,
        attributes=scene.attributes | about,
    ).validate(scene.place)


def frames_of_file(
    scene: Scene, options: Options, counts: Counts | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, frame and mask of a video's frames, or of `options.frames` of them; counts: as `stream`."""
    file = scene.place
    wanted = None
    if options.frames is not None or options.most_frames is not None:
        times = time_stamps(file)
        if len(times) < (options.frames or 0):
            raise DataError(f"{scene.where}: {len(times)} frames, expected at least {options.frames}")
        wanted = set(evenly(times, options.frames or min(options.most_frames, len(times))))
    beside = bool(mask_files(file))
    if not beside and options.masker is None and options.background is None:
        expected = f"expected {file.stem}.mask.* beside it, or background given"
        raise DataError(f"{scene.where}: no masks, {expected}; {mask_command(scene)}")
    masker = mask_beside if beside else lambda _, frames: (_mask(f, options) for f in frames)
    for number, (frame, mask) in enumerate(masked_frames(file, masker, counts)):
        if wanted is None or number in wanted:
            yield f"frame {number}", frame, mask


def mask_command(scene: Scene) -> str:
    """Which command makes the masks that an object of a folder lacks."""
    format = "" if scene.format == "videos" else f" --format {scene.format}"
    folder = shlex.quote(str(scene.root))
    return f"'vader prepare masks {folder}{format} --class NAME' makes them, for people with --people for --class NAME"


def _mask(frame: np.ndarray, options: Options) -> np.ndarray:
    if options.background is None:
        return options.masker(frame)
    level = {"black": 0, "white": 255}[options.background]
    return np.where((frame != level).any(-1), 255, 0).astype(np.uint8)


def _of_folder(scene: Scene, options: Options, faults: dict[str, str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The same of a folder of pictures, by their numbers. Pictures that cannot be used are added to `faults`."""
    folder = Path(scene.files["frames"])
    files = images.picture_files(folder)
    if (count := options.frames or options.most_frames) is not None:
        files = [files[i] for i in sorted(spread(len(files), count)[:count])]
    places = [base / name for base in (scene.place, folder) for name in MASKS if (base / name).is_dir()]
    beside = {mask.name: mask for place in places for mask in images.picture_files(place)}
    for file in files:
        what = f"{file}: object {scene.key!r}"
        try:
            picture = images.open_picture(file, what, premultiplied=options.premultiplied)
            names = (file.name, f"{file.name}.png", f"{file.stem}.png", f"{file.stem}.jpg")
            mask_file = next((beside[n] for n in names if n in beside), None)
            if mask_file is not None:
                mask = images.open_mask(mask_file, f"{mask_file}: object {scene.key!r}: mask", picture.size)
            elif picture.alpha is not None:
                mask = picture.alpha
            elif options.background is None and options.masker is None:
                expected = f"expected alpha, masks/, or background given; {mask_command(scene)}"
                raise DataError(f"{what}: no mask, {expected}")
            else:
                mask = _mask(picture.colour, options)
        except DataError as error:
            faults[file.name] = unusable(error)
            continue
        yield file.name, picture.colour, mask
