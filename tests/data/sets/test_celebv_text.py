"""Video files: the paper's filter, every rule of it violated on purpose in real files; masks; resuming."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vader.data import load_videos, prepare
from vader.data.formats.videos import stream
from vader.data.prepared import DataError
from vader.data.sets import celebv_text
from vader.data.sets.celebv_text import FILTER, filter_report, list_clips, passing_frames, select_frames
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig
from vader.settings.videos import UVA_CAMERA

av = pytest.importorskip("av", reason="video files are read by PyAV (extra 'video')")

CONFIG = DataConfig(
    "celebv_text", num_objects=2, heldout_objects=1, train_views=3, heldout_views=1, resolution=8, **UVA_CAMERA
)
SIZE = (80, 96)  # height, width of the made-up clips


def decode(file: Path) -> np.ndarray:
    return np.stack(list(stream(file)))


def noise(frames: int, seed: int, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)


def subject(frames: int, share: float = 0.5, size=SIZE) -> np.ndarray:
    """Masks (t, h, w) whose left `share` is foreground."""
    masks = np.zeros((frames, *size), dtype=np.uint8)
    masks[:, :, : round(share * size[1])] = 255
    return masks


def write_video(file: Path, frames: np.ndarray, codec: str, pixels: str, **options: str) -> None:
    with av.open(str(file), "w", options={"movflags": "faststart"} if file.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="gray" if frame.ndim == 2 else "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_clip(folder: Path, name: str, frames: int = 20, masks: np.ndarray | None = None) -> Path:
    """An mp4 of noise (h264, more than 200 kB from 10 frames on), and its mask video."""
    file = folder / f"{name}.mp4"
    write_video(file, noise(frames, sum(name.encode())), "libx264", "yuv444p", crf="2", preset="ultrafast")
    write_video(folder / f"{name}.mask.mkv", subject(frames) if masks is None else masks, "ffv1", "gray")
    return file


def write_varying_sizes(file: Path) -> None:
    """A stream of JPEG pictures, the last of them smaller: what a camera that was turned may record."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        for number in range(60):
            height, width = SIZE if number < 55 else (64, 64)
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = height, width, "yuvj420p"
            encoder.time_base, encoder.qmin, encoder.qmax = Fraction(1, 25), 1, 1
            picture = av.VideoFrame.from_ndarray(noise(1, number, (height, width))[0], format="rgb24")
            for packet in encoder.encode(picture.reformat(format="yuvj420p")):
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = Fraction(1, 25), stream
                container.mux(packet)


def write_sound(file: Path) -> None:
    """Three seconds of noise and no picture."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000)
        sound = np.random.default_rng(0).integers(-9999, 9999, (1, 2 * 144_000), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(sound, format="s16", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Three good clips, and one for each reason to drop a clip."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("good-1", "good-2"):
        write_clip(folder, name)
    (folder / "deeper").mkdir()
    write_clip(folder / "deeper", "good-3", frames=25)  # of which 2 + 2 are ends
    (folder / "good-1.txt").write_text("\nShe speaks.\nShe turns her head.\n", encoding="utf-8")
    masks = subject(20)
    masks[5:9] = subject(1, 0.24)  # less than a quarter
    masks[9:12] = subject(1, 0.25)  # exactly a quarter
    write_clip(folder, "partly", masks=masks)
    write_clip(folder, "hardly", masks=np.concatenate([subject(5), subject(15, 0.1)]))  # 3 frames left
    write_clip(folder, "empty", masks=subject(20, 0.0))
    write_clip(folder, "single", frames=1)
    with open(folder / "single.mp4", "ab") as file:
        file.write(bytes(250_000))  # one frame, yet no small file
    write_clip(folder, "small", frames=4)
    whole = write_clip(folder, "cut").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: int(0.8 * len(whole))])
    (folder / "corrupt.mp4").write_bytes(np.random.default_rng(1).bytes(300_000))
    write_sound(folder / "sound.mkv")
    write_varying_sizes(folder / "turned.avi")
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# ------------------------------------------------------------------------------------------------ filter


def test_every_rule_drops_what_breaks_it_and_is_counted(clips, root):
    findings = select_frames(clips)
    reasons = {key: found["reason"] for key, found in findings.items() if found["reason"]}
    assert reasons == {
        "hardly": "less than 4 frames left",
        "empty": "less than 4 frames left",
        "single": "less than 4 frames left",
        "small": "less than 200 kB",
        "cut": "cannot be decoded",
        "corrupt": "cannot be decoded",
        "sound": "no video stream",
        "turned": "frames of varying size",
    }
    assert findings["good-1"]["kept"] == list(range(2, 18)) and findings["good-3"]["kept"] == list(range(2, 23))
    assert findings["partly"]["kept"] == [2, 3, 4, *range(9, 18)]  # a quarter is enough, 24 % is not
    report = filter_report(findings)
    assert report["clips"] == {**Counter(reasons.values()), "kept": 4, "total": 12}
    assert report["frames"] == {
        "first and last 10 %": 5 * 4 + 4 + 0,  # of five clips of 20 frames, of one of 25, and of one of 1
        "less than 25 % foreground": 4 + 13 + 16,
        "kept": 16 + 16 + 21 + 12,
        "of dropped clips": 3 + 1,
        "total": 20 * 5 + 25 + 1,
    }
    assert report["dropped"] == reasons


@pytest.mark.parametrize(("count", "ends"), [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2), (373, 37)])
def test_the_first_and_last_tenth_is_dropped(count, ends):
    kept, dropped = passing_frames([1.0] * count)
    assert kept == list(range(ends, count - ends))
    assert dropped == {"first and last 10 %": 2 * ends, "less than 25 % foreground": 0}


def test_the_rules_are_those_of_the_paper():
    assert FILTER == {"ends": 0.1, "foreground": 0.25, "frames": 4, "bytes": 200_000}


def test_selection_resumes_and_looks_at_no_clip_twice(clips, root, monkeypatch):
    looked, real = [], celebv_text._look_at

    def failing(clip):
        looked.append(clip.key)
        if len(looked) == 3:
            raise KeyboardInterrupt
        real(clip)

    monkeypatch.setattr(celebv_text, "_look_at", failing)
    with pytest.raises(KeyboardInterrupt):
        select_frames(clips)
    findings = select_frames(clips)
    assert list(findings) == sorted(findings) and looked == [*list(findings)[:3], *list(findings)[2:]]
    assert select_frames(clips) == findings and len(looked) == len(findings) + 1


# ------------------------------------------------------------------------------------------------ the set


def test_clips_become_videos_in_a_fixed_order(clips, root, monkeypatch):
    data = prepare(CONFIG, source=clips)
    order = sorted(["good-1", "good-2", "good-3", "partly"], key=lambda k: hashlib.sha256(f"0/{k}".encode()).digest())
    assert [(v.key, v.split) for v in data] == [(order[1], "train"), (order[2], "train"), (order[0], "test")]
    report = json.loads((data.folder / "filter.json").read_text())
    assert report == filter_report(select_frames(clips))
    for video in data:
        count = {"good-3": 21, "partly": 12}.get(video.key, 16)
        assert len(video) == count and video.train_frames == count - count // 4
        assert video.frames.shape[1:] == (8, 8, 3) and video.caption == (
            "She speaks." if video.key == "good-1" else None
        )
    monkeypatch.setattr(celebv_text, "masked_frames", lambda *_: pytest.fail("decoded again"))
    assert prepare(CONFIG, source=clips).pixel_checksum == data.pixel_checksum
    assert prepare(CONFIG).pixel_checksum == load_videos(data.folder).pixel_checksum == data.pixel_checksum


def test_frames_are_masked_cropped_to_the_central_square_and_averaged(clips, root):
    data = prepare(dataclasses.replace(CONFIG, num_objects=3, heldout_objects=1), source=clips)
    video = next(v for v in data if v.key == "partly")
    frames, masks = decode(clips / "partly.mp4"), decode(clips / "partly.mask.mkv")[..., 1]
    alpha = masks[[2, 3, 4, *range(9, 18)], :, 8:88] / 255.0
    square = frames[[2, 3, 4, *range(9, 18)], :, 8:88] * alpha[..., None]
    pooled = square.reshape(12, 8, 10, 8, 10, 3).mean((2, 4))
    assert np.abs(video.frames.numpy() - pooled).max() <= 1  # 80 x 80 pixels to 8 x 8
    assert np.abs(video.masks.numpy() / 255 - alpha.reshape(12, 8, 10, 8, 10).mean((2, 4))).max() < 0.005
    assert (video.frames[:3, :, 4:] == 0).all() and video.frames[:3, :, :3].float().mean() > 60


def grey_levels(file: Path, frames):
    """Another mask step: what is brighter than its frame's median."""
    for frame in frames:
        grey = frame.mean(-1)
        yield np.where(grey > np.median(grey), 255, 0).astype(np.uint8)


def test_the_mask_step_can_be_replaced_and_is_in_the_digest(clips, root):
    ours, other = (prepare(CONFIG, source=clips, **o) for o in ({}, {"masker": grey_levels}))
    assert other.digest != ours.digest and "hardly" in {v.key for v in prepare(
        dataclasses.replace(CONFIG, num_objects=5, heldout_objects=1), source=clips, masker=grey_levels
    )}  # fmt: skip
    assert 0.45 < other[0].masks.float().mean() / 255 < 0.55


def test_worker_processes_and_interruptions_change_nothing(clips, root, tmp_path, monkeypatch):
    whole, real, calls = prepare(CONFIG, source=clips, workers=2), celebv_text.read_video, []

    def failing(job):
        calls.append(job[1].key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(celebv_text, "read_video", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(CONFIG, source=clips, root=tmp_path / "again", workers=1)
    again = prepare(CONFIG, source=clips, root=tmp_path / "again", workers=1)
    assert again.pixel_checksum == whole.pixel_checksum
    assert len(calls) == 4


# ------------------------------------------------------------------------------------------------ bad input


def test_masks_that_do_not_fit_are_an_error_not_a_filter(tmp_path, root):
    file = write_clip(tmp_path, "clip")
    for masks, message in (
        (subject(19), r"clip.mp4: 19 masks, expected 20 as the frames"),
        (subject(21), r"clip.mp4: more masks than frames, expected 20"),
        (subject(20, size=(80, 90)), r"clip.mp4: mask of frame 0 is \(80, 90\) uint8, expected \(80, 96\) uint8"),
    ):
        write_video(tmp_path / "clip.mask.mkv", masks, "ffv1", "gray")
        with pytest.raises(DataError, match=message):
            select_frames(tmp_path)
    (tmp_path / "clip.mask.mkv").write_bytes(b"nothing")
    with pytest.raises(DataError, match="clip.mask.mkv: mask video of clip.mp4: cannot be decoded"):
        select_frames(tmp_path)
    (tmp_path / "clip.mask.mkv").unlink()
    with pytest.raises(DataError, match="clip.mp4: expected one mask video clip.mask.* beside it, found none"):
        select_frames(tmp_path)
    assert file.exists()


def test_what_cannot_work_is_refused_with_what_there_is(clips, tmp_path, root, monkeypatch):
    with pytest.raises(ConfigError, match="are 6 together, but 4 of 12 clips are left: .*'less than 200 kB': 1"):
        prepare(dataclasses.replace(CONFIG, num_objects=5), source=clips)
    with pytest.raises(DataError, match="no set of these settings was prepared .* expected source"):
        prepare(dataclasses.replace(CONFIG, seed=7))
    with pytest.raises(DataError, match="gone: no such folder"):
        list_clips(tmp_path / "gone")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: no video files in it"):
        list_clips(tmp_path / "none")
    for name in ("a b.mp4", "a_b.mp4"):
        (tmp_path / "none" / name).touch()
    with pytest.raises(DataError, match="a_b.mp4: its key 'a_b' is that of .*a b.mp4 as well"):
        list_clips(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="output folder is not writable"):
        select_frames(clips, root=tmp_path / "file")


def test_without_av_the_extra_is_named(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"vader\[video\]"):
        decode(clips / "good-1.mp4")
