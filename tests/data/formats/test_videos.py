"""Video files and folders of frames: rotation, time stamps, memory, masks, and what is broken."""

from __future__ import annotations

import struct
import tracemalloc
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vader.data.formats import Options, detect, read, scan, videos
from vader.data.formats.videos import Counts, Undecodable, evenly, masked_frames, stream, time_stamps
from vader.data.prepared import DataError

av = pytest.importorskip("av", reason="video files are read by PyAV (extra 'video')")
SIZE = (48, 80)


def frames_of(count: int, size=SIZE) -> np.ndarray:
    """A bright square on black that walks to the right, its brightness telling the frame's number."""
    frames = np.zeros((count, *size, 3), np.uint8)
    for i in range(count):
        left = 4 + i * (size[1] - 24) // max(count - 1, 1)
        frames[i, 8:24, left : left + 16] = (255 - 5 * (i % 50), 60, 60)
    return frames


def write(file: Path, frames: np.ndarray, stamps=None, codec="ffv1", pixels="bgr0") -> Path:
    """stamps: in milliseconds; default 40 each."""
    with av.open(str(file), "w") as container:
        out = container.add_stream(codec, rate=25)
        out.height, out.width, out.pix_fmt = *frames.shape[1:3], pixels
        out.time_base = out.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="gray" if frame.ndim == 2 else "rgb24")
            picture.pts, picture.time_base = int(40 * i if stamps is None else stamps[i]), Fraction(1, 1000)
            container.mux(out.encode(picture))
        container.mux(out.encode())
    return file


def write_masks(file: Path, frames: np.ndarray, stamps=None) -> None:
    masks = np.where(frames.max(-1) > 0, 255, 0).astype(np.uint8)
    write(file.with_name(f"{file.stem}.mask.mkv"), masks, stamps, pixels="gray")


def turn_like_a_phone(file: Path, degrees: int) -> None:
    """Write the display matrix into an mp4's track header (ISO 14496-12, 8.3.2): `degrees` clockwise for display."""
    content = bytearray(file.read_bytes())
    at = content.index(b"tkhd") + 4
    assert content[at] == 0  # version 0: 4 flags, 3 x 4, 4, 4, 8, 2, 2, 2, 2 bytes before the matrix
    cosine, sine = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1]  # x' = a x + c y, y' = b x + d y, y down
    fixed = [v << (30 if i % 3 == 2 else 16) for i, v in enumerate(matrix)]
    struct.pack_into(">9i", content, at + 40, *fixed)
    file.write_bytes(content)


@pytest.mark.parametrize(("degrees", "quarters"), [(0, 0), (90, -1), (180, 2), (270, 1)])
def test_the_display_matrix_of_a_phone_is_honoured(tmp_path, degrees, quarters):
    file = write(tmp_path / "a.mp4", frames_of(5), codec="libx264", pixels="yuv420p")
    turn_like_a_phone(file, degrees)
    found = np.stack(list(stream(file)))
    expected = np.rot90(frames_of(5), quarters, (1, 2))  # counterclockwise quarters
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 6
    if degrees % 180:
        assert found.shape[1:3] == SIZE[::-1]


def test_a_turned_video_is_prepared_with_masks_that_stand_as_it_does(tmp_path):
    file = write(tmp_path / "a.mp4", frames_of(6), codec="libx264", pixels="yuv420p")
    turn_like_a_phone(file, 90)
    upright = np.rot90(frames_of(6), -1, (1, 2)).copy()
    write_masks(file, upright)
    video = read(scan(tmp_path)[0], Options(resolution=80))
    assert (video.masks.numpy()[:, :, 16:64] == np.where(upright.max(-1) > 0, 255, 0)).all()
    assert (video.masks.numpy()[:, :, :16] == 0).all() and video.frames[video.masks == 255].float().mean() > 80


def test_frames_are_read_back_exactly_and_cropped_or_padded(tmp_path):
    frames = frames_of(8)
    write_masks(write(tmp_path / "walk.mkv", frames), frames)
    assert detect(tmp_path)[0] == "videos"
    (scene,) = scan(tmp_path)
    assert scene.key == "walk"
    padded = read(scene, Options(resolution=80))
    assert (padded.frames.numpy()[:, 16:64] == frames).all() and len(padded) == padded.train_frames == 8
    cropped = read(scene, Options(resolution=48, fit="crop", least_share=0.1))
    kept = [i for i in range(8) if frames[i, :, 16:64].max() > 0]
    assert (cropped.frames.numpy() == frames[kept, :, 16:64]).all()


def test_time_stamps_decide_what_is_evenly_spaced(tmp_path):
    """Ten frames in the first second, then one every second: five of them are not the first five."""
    stamps = [100 * i for i in range(10)] + [1000 * i for i in range(1, 6)]
    frames = frames_of(15)
    write_masks(write(tmp_path / "a.mkv", frames, stamps), frames, stamps)
    np.testing.assert_allclose(time_stamps(tmp_path / "a.mkv"), np.array(stamps) / 1000, atol=1e-3)
    video = read(scan(tmp_path)[0], Options(resolution=80, frames=5))
    middles = (np.arange(5) + 0.5) / 5 * 5.1
    expected = [int(np.searchsorted(np.array(stamps) / 1000, t, side="right")) - 1 for t in middles]
    assert expected == [5, 10, 11, 12, 13] and evenly(np.array(stamps) / 1000, 5) == expected
    assert (video.frames.numpy()[:, 16:64] == frames[expected]).all()


@pytest.mark.parametrize(("count", "wanted"), [(5, 5), (7, 3), (100, 10), (2, 1), (12, 11)])
def test_evenly_chosen_frames_differ_and_keep_their_order(count, wanted):
    rng = np.random.default_rng(count)
    for times in (np.arange(count) / 25, np.sort(rng.uniform(0, 9, count)), np.sort(rng.exponential(1, count) ** 4)):
        chosen = evenly(times, wanted)
        assert len(chosen) == wanted and chosen == sorted(set(chosen)) and 0 <= chosen[0] and chosen[-1] < count


def test_memory_does_not_grow_with_the_clip(tmp_path):
    peaks = {}
    for count in (20, 120):
        folder = tmp_path / str(count)
        folder.mkdir()
        frames = frames_of(count, (240, 320))
        write_masks(write(folder / "a.mkv", frames), frames)
        del frames
        tracemalloc.start()
        read(scan(folder)[0], Options(resolution=16))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    one = 240 * 320 * 3
    assert (
        peaks[120] - peaks[20] < 100 * 16 * 16 * 4 * 3 + one
    )  # the small results (with a copy), and no frame of 230 kB
    assert peaks[120] < 25 * one


def test_alpha_masks_beside_and_a_background_are_masks_of_folders(tmp_path):
    frames = frames_of(6)
    alpha = np.where(frames.max(-1) > 0, 255, 0).astype(np.uint8)
    for name in ("rgba", "beside/frames", "beside/masks", "plain"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.dstack([frames[i], alpha[i]])).save(tmp_path / "rgba" / f"{i + 7}.png")  # 7 ... 12
        Image.fromarray(np.where(alpha[i, ..., None] > 0, frames[i], 90)).save(tmp_path / "beside/frames" / f"{i}.png")
        Image.fromarray(alpha[i]).save(tmp_path / "beside/masks" / f"{i}.png")
        Image.fromarray(frames[i]).save(tmp_path / "plain" / f"{i}.png")
    scenes = {s.key: s for s in scan(tmp_path)}
    assert list(scenes) == ["beside", "plain", "rgba"]
    for key, options in (("rgba", {}), ("beside", {}), ("plain", {"background": "black"})):
        video = read(scenes[key], Options(resolution=80, **options))
        assert (video.frames.numpy()[:, 16:64] == frames).all() and (video.masks.numpy()[:, 16:64] == alpha).all()
    assert len(read(scenes["rgba"], Options(resolution=8, frames=3))) == 3
    with pytest.raises(
        DataError, match=r"object 'plain': 0 usable frames, .*\n.*0.png: object 'plain': no mask, expected"
    ):
        read(scenes["plain"], Options(resolution=8))


def test_frames_that_cannot_be_used_are_left_out_or_too_many(tmp_path):
    frames = frames_of(6)
    rgba = np.dstack([frames[0], np.where(frames[0].max(-1) > 0, 255, 0)]).astype(np.uint8)
    for i in range(6):
        Image.fromarray(rgba).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    Image.fromarray(rgba * np.array([1, 1, 1, 0], np.uint8)).save(tmp_path / "2.png")
    video = read(scan(tmp_path)[0], Options(resolution=16))
    assert len(video) == 4 and video.attributes["left_out"].keys() == {"1.png", "2.png"}
    for i in (3, 4):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2 usable frames, expected at least 3\n.*1.png.*cannot be decoded"):
        read(scan(tmp_path)[0], Options(resolution=16))


def test_broken_videos_are_named(tmp_path):
    frames = frames_of(40)
    file = write(tmp_path / "a.mp4", frames, codec="libx264", pixels="yuv444p")
    with pytest.raises(
        DataError, match="a.mp4: object 'a': no masks, expected a.mask.* beside it, or background given"
    ):
        read(scan(tmp_path)[0], Options())
    (tmp_path / "b.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(Undecodable, match="b.mp4: cannot be decoded, expected a whole video"):
        read(scan(tmp_path)[1], Options(background="black"))
    with pytest.raises(DataError, match="object 'a': 40 frames, expected at least 50"):
        read(scan(tmp_path)[0], Options(background="black", frames=50))
    write_masks(file, frames[:30])
    with pytest.raises(DataError, match="a.mp4: 30 masks, expected 40 as the frames"):
        read(scan(tmp_path)[0], Options())
    with pytest.raises(Undecodable) as error:
        list(stream(tmp_path / "b.mp4"))
    assert error.value.reason == "cannot be decoded"


def end_earlier(file: Path, milliseconds: int) -> None:
    """Let an mp4's edit list end sooner (ISO 14496-12, 8.6.6), so that the frames after it are to be discarded."""
    content = bytearray(file.read_bytes())
    at = content.index(b"elst") + 4
    (version, count, duration) = struct.unpack_from(">III", content, at)
    assert version == 0 and count == 1
    struct.pack_into(">I", content, at + 8, duration - milliseconds)
    file.write_bytes(content)


def declare(file: Path, frames: int) -> None:
    """Write a number of frames into the header of an AVI's stream (AVISTREAMHEADER.dwLength)."""
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, frames)
    file.write_bytes(content)


def test_frames_that_a_clip_wants_discarded_are_left_out_and_said(tmp_path):
    """As OpenCV's box.mp4, whose edit list ends before its last frame."""
    frames = frames_of(20)
    file = write(tmp_path / "a.mp4", frames, codec="libx264", pixels="yuv444p")
    end_earlier(file, 3 * 40)
    counts = Counts()
    assert len(list(stream(file, counts))) == 17 and counts == Counts(20, 3, 17) and len(time_stamps(file)) == 17
    write_masks(file, frames[:17])
    video = read(scan(tmp_path)[0], Options(resolution=16))
    assert len(video) == 17 and video.attributes["frames"] == {"declared": 20, "decoded": 17}
    assert len(read(scan(tmp_path)[0], Options(resolution=16, frames=17))) == 17


@pytest.mark.parametrize("count, missing, whole", [(20, 0, True), (20, 2, True), (20, 3, False), (400, 4, True)])
def test_a_clip_that_lacks_a_few_frames_is_read_and_one_that_is_cut_off_is_refused(tmp_path, count, missing, whole):
    frames = frames_of(count, (16, 32))
    file = write(tmp_path / "a.avi", frames)
    declare(file, count + missing)
    write_masks(file, frames)
    (scene,) = scan(tmp_path)
    if not whole:
        with pytest.raises(Undecodable, match="to its end: 20 of the 23 frames it declares, expected a whole video"):
            read(scene, Options(resolution=16))
        return
    found = read(scene, Options(resolution=16)).attributes.get("frames")
    assert found == ({"declared": count + missing, "decoded": count} if missing else None)


def test_a_clip_without_masks_is_refused_with_the_command_that_makes_them(tmp_path):
    folder = tmp_path / "my clips"
    folder.mkdir()
    write(folder / "a.mp4", frames_of(4), codec="libx264", pixels="yuv420p")
    for format, option in (("videos", ""), ("photographs", " --format photographs")):
        with pytest.raises(
            DataError, match=f"'vader prepare masks '.*/my clips'{option} --class NAME' makes them, for"
        ):
            list(videos.frames_of_file(scan(folder, format)[0], Options()))


def test_a_mask_step_may_look_ahead(tmp_path):
    """It need not give a mask for each frame before it takes the next one."""
    frames = frames_of(9)
    file = write(tmp_path / "a.mkv", frames)

    def in_fours(_, shown):
        while batch := list(islice(shown, 4)):
            yield from (f.max(-1) for f in batch)

    def all_at_once(_, shown):
        yield from [f.max(-1) for f in list(shown)]

    for step in (in_fours, all_at_once):
        pairs = list(masked_frames(file, step))
        assert len(pairs) == 9
        for i, (frame, mask) in enumerate(pairs):
            assert (frame == frames[i]).all() and (mask == frames[i].max(-1)).all()
