"""Masks made by the preparation tools: what comes out, where it lies, and what a run that was stopped leaves."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vader import commands
from vader.data.formats import Options, photographs, read, scan
from vader.data.formats.shared.images import open_mask, picture_files
from vader.data.formats.transforms import to_transforms
from vader.data.formats.videos import mask_beside, masked_frames, stream
from vader.data.preparation import masks as masks_module
from vader.data.preparation import models, segmentation
from vader.data.preparation.detection import Detection, detector, prompt
from vader.data.preparation.layouts import shots
from vader.data.preparation.masks import write_mask_video, write_masks
from vader.data.preparation.matting import matte, matting, ratio_for
from vader.data.preparation.segmentation import BackgroundRemover, NoDetection, segmenter
from vader.data.prepared import DataError
from vader.rendering.cameras import spread_orbit
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig
from vader.store.weights import WeightsError


def pictures(count, size=(24, 32), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def remover(random_tiny_detector, random_tiny_segmenter):
    return BackgroundRemover("chair", str(random_tiny_detector), str(random_tiny_segmenter), threshold=0.0)


class Bright(BackgroundRemover):
    """A remover without models: the thing is what is bright, and is not found where nothing is. Counts pictures."""

    seen: list = []
    about = {"detector": {"model": "brightness"}}

    def cut_out(self, chosen, thing=None):
        results = []
        for picture in chosen:
            Bright.seen.append(thing)
            mask = np.where(picture.max(-1) > 128, 255, 0).astype(np.uint8)
            found = Detection((0.0, 0.0, 1.0, 1.0), 0.9) if mask.any() else None
            results.append((found, None if found is None else mask))
        return results


@pytest.fixture
def bright():
    Bright.seen = []
    return Bright("chair")


def squares(folder, count=3, dark=()):
    """Grey pictures with a white square that moves; those whose number is in `dark` have none."""
    folder.mkdir(parents=True)
    for i in range(count):
        picture = np.full((24, 32, 3), 60, np.uint8)
        if i not in dark:
            picture[8:16, 4 + i : 14 + i] = 255
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    return folder


# ---------------------------------------------------------------------------------------- the models


def test_random_tiny_detector_and_segmenter_see_a_picture_alike_alone_and_among_others(
    random_tiny_detector, random_tiny_segmenter
):
    find, cut = detector(random_tiny_detector, threshold=0.0), segmenter(random_tiny_segmenter)
    seen = [*pictures(2), *pictures(1, (20, 20), seed=1), *pictures(1, seed=2)]
    found = find(seen, "chair")
    masks = cut(seen, [d.box for d in found])
    for picture, detection, mask in zip(seen, found, masks, strict=True):
        h, w = picture.shape[:2]
        left, top, right, bottom = detection.box
        assert 0 <= left < right <= w and 0 <= top < bottom <= h and 0 <= detection.score <= 1
        assert mask.shape == (h, w) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
        (alone,) = find([picture], "chair")
        assert np.allclose(alone.box, detection.box, atol=1e-3)
        assert np.array_equal(cut([picture], [detection.box])[0], mask)
    assert len({d.box for d in found}) > 1 and len({m.tobytes() for m in masks if m.shape == (24, 32)}) > 1


def test_random_tiny_detector_finds_nothing_above_a_threshold_that_no_score_has(random_tiny_detector, remover):
    scores = [d.score for d in detector(random_tiny_detector, threshold=0.0)(pictures(2), "chair")]
    strict = BackgroundRemover(remover.thing, remover.detector, remover.segmenter, threshold=0.9999999)
    assert max(scores) <= 1 and detector(random_tiny_detector, threshold=0.9999999)(pictures(2), "chair") == [None] * 2
    assert strict.cut_out(pictures(2)) == [(None, None)] * 2
    with pytest.raises(NoDetection, match="no 'chair' was found"):
        strict(pictures(1)[0])
    assert remover(pictures(1)[0]).shape == (24, 32)


def test_prompt_is_the_class_in_lower_case_with_a_full_stop():
    assert prompt("Office_Chair") == "office chair." and prompt(" lamp. ") == "lamp."
    with pytest.raises(ConfigError, match="class of the object"):
        prompt(" . ")


def test_models_are_found_at_a_path_then_in_the_weights_folder_then_by_name(tmp_path, monkeypatch):
    monkeypatch.delenv("VADER_WEIGHTS", raising=False)
    hub = models.find("segmenter")
    assert (hub.place, hub.local) == ("facebook/sam-vit-huge", False)
    (tmp_path / "sam-vit-huge").mkdir()
    (tmp_path / "sam-vit-base").mkdir()
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    assert models.find("segmenter").place == tmp_path / "sam-vit-huge"
    assert models.find("segmenter", "facebook/sam-vit-base").place == tmp_path / "sam-vit-base"
    assert models.find("segmenter", tmp_path / "sam-vit-base").source == "explicit path"
    with pytest.raises(WeightsError, match="no such file or folder, expected the segmentation model"):
        models.find("segmenter", "/nowhere/sam")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="is not a folder"):
        models.find("segmenter")


def test_a_model_that_cannot_be_had_is_named_with_every_way_to_give_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        detector("nobody/has-this")
    for part in ("nobody/has-this", "--detector FOLDER", "$VADER_WEIGHTS", str(tmp_path), "hub"):
        assert part in str(error.value)


def test_random_tiny_model_in_the_wrong_place_is_refused(tmp_path, random_tiny_detector, random_tiny_segmenter):
    with pytest.raises(WeightsError, match=r"is a sam, expected the object detector"):
        detector(random_tiny_segmenter)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"empty: not a readable segmentation model"):
        segmenter(tmp_path / "empty")
    cut_off = shutil.copytree(random_tiny_segmenter, tmp_path / "cut")
    file = cut_off / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cut"):
        segmenter(cut_off)


# ---------------------------------------------------------------------------------------- matting


def test_scripted_tiny_matting_remembers_the_frames_before(scripted_tiny_matting):
    loaded, frames = matting(str(scripted_tiny_matting)), pictures(3)
    got = list(matte(frames, loaded, downsample_ratio=1.0))
    total = np.zeros((24, 32))
    for frame, alpha in zip(frames, got, strict=True):
        total += frame[..., 1] / 255
        expected = np.clip(0.5 * frame[..., 0] / 255 + 0.5 * total, 0, 1)
        assert alpha.dtype == np.uint8 and np.abs(alpha / 255 - expected).max() <= 0.5 / 255 + 1e-6
    assert not np.array_equal(next(matte(frames[1:], loaded, 1.0)), got[1])  # without the first frame
    with pytest.raises(ConfigError, match="downsample_ratio"):
        next(matte(frames, loaded, 0.0))


def test_downsample_ratio_is_that_of_the_authors_script():
    assert ratio_for(1080, 1920) == pytest.approx(0.2667, abs=1e-4) and ratio_for(240, 320) == 1.0


def test_matting_file_that_is_none_is_refused(tmp_path):
    file = tmp_path / "rvm.torchscript"
    file.write_bytes(b"no archive")
    with pytest.raises(WeightsError, match=r"rvm.torchscript: not a readable TorchScript file"):
        matting(str(file))


# ---------------------------------------------------------------------------------------- files


def posed(folder, format):
    """An object of three posed pictures of a white square."""
    cameras = spread_orbit(3, DataConfig("own"), 32)
    names = {"srn": "rgb", "transforms": "train", "colmap": "images"}
    images = squares(folder / "mug" / names[format])
    if format == "srn":
        (folder / "mug" / "intrinsics.txt").write_text("40 16 12 0\n0 0 0\n1\n24 32\n")
        (folder / "mug" / "pose").mkdir()
        for i, matrix in enumerate(cameras.world_to_camera):
            full = torch.cat([matrix, torch.tensor([[0.0, 0, 0, 1]])]).double()
            (folder / "mug" / "pose" / f"{i:03d}.txt").write_text(
                " ".join(str(x) for x in torch.linalg.inv(full).flatten().tolist())
            )
    elif format == "transforms":
        content = to_transforms(cameras) | {"h": 24, "w": 32}
        for i, frame in enumerate(content["frames"]):
            frame |= {"file_path": f"train/{i:03d}", "cy": 12.0}
        (folder / "mug" / "transforms.json").write_text(json.dumps(content))
    else:
        sparse = folder / "mug" / "sparse" / "0"
        sparse.mkdir(parents=True)
        (sparse / "cameras.txt").write_text("1 PINHOLE 32 24 40 40 16 12\n")
        lines = "".join(f"{i + 1} 1 0 0 0 0 0 4 1 {i:03d}.png\n\n" for i in range(3))
        (sparse / "images.txt").write_text(lines)
    return images


@pytest.mark.parametrize("format", ["srn", "transforms", "colmap"])
def test_masks_lie_where_the_reader_of_posed_pictures_looks_for_them(tmp_path, bright, format):
    posed(tmp_path, format)
    scenes = scan(tmp_path)
    assert [s.format for s in scenes] == [format]
    outcome = write_masks(scenes, tmp_path, bright)
    assert (outcome.written, outcome.given, outcome.missed, outcome.faults) == (3, 0, 0, {})
    module = __import__(f"vader.data.formats.{format}", fromlist=["read"])
    sequence = module.read(scan(tmp_path)[0], Options(resolution=32))
    for i in range(3):  # pads 4 rows above and below; the reader's default would take all grey pixels for the object
        expected = np.zeros((32, 32), np.uint8)
        expected[12:20, 4 + i : 14 + i] = 255
        assert np.array_equal(sequence.masks[i].numpy(), expected)
    assert all(shot.given for shot in shots(scenes[0]))


def test_masks_of_frames_and_videos_lie_where_their_reader_looks(tmp_path, bright):
    squares(tmp_path / "walk")
    frames = [np.asarray(Image.open(f)) for f in picture_files(tmp_path / "walk")]
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mkv"), "w", format="matroska") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 32, 24, "bgr0"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        container.mux(video.encode())
    outcome = write_masks(scan(tmp_path), tmp_path, bright)
    assert (outcome.written, outcome.faults) == (4, {})
    (clip, walk) = sorted(scan(tmp_path), key=lambda s: s.key)
    for video in (read(clip, Options(resolution=32)), read(walk, Options(resolution=32))):
        assert len(video.frames) == 3 and int(video.masks[1, 16, 6]) == 255 and int(video.masks[1, 2, 2]) == 0
    assert not write_masks(scan(tmp_path), tmp_path, bright).faults and len(Bright.seen) == 6


def test_scripted_tiny_matting_writes_masks_of_a_clip_as_a_whole(tmp_path, scripted_tiny_matting, capsys):
    squares(tmp_path / "walk")
    command = [
        "prepare",
        "masks",
        str(tmp_path),
        "--people",
        "--matting",
        str(scripted_tiny_matting),
        "--device",
        "cpu",
    ]
    assert commands.main(command) == 0 and "masks of 3 pictures made" in capsys.readouterr().out
    frames = [np.asarray(Image.open(f)) for f in picture_files(tmp_path / "walk")]
    expected = list(matte(frames, matting(str(scripted_tiny_matting))))
    (tmp_path / "walk" / "masks" / "001.png.png").unlink()  # is made again, with the frame before in memory
    assert commands.main(command) == 0
    for i in range(3):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "walk" / "masks" / f"{i:03d}.png.png")), expected[i])


def test_mask_video_keeps_every_level(tmp_path):
    masks = [p[..., 0] for p in pictures(3)]
    write_mask_video(tmp_path / "a.mask.mkv", iter(masks))
    back = [frame[..., 1] for frame in stream(tmp_path / "a.mask.mkv")]
    assert all(np.array_equal(a, b) for a, b in zip(masks, back, strict=True))

    def broken():
        yield masks[0]
        raise DataError("stopped")

    with pytest.raises(DataError, match="stopped"):
        write_mask_video(tmp_path / "b.mask.mkv", broken())
    assert [f.name for f in tmp_path.iterdir()] == ["a.mask.mkv"]


def test_a_mask_of_the_data_always_wins(tmp_path, bright):
    squares(tmp_path / "walk", 4)
    (tmp_path / "walk" / "masks").mkdir()
    own = np.full((24, 32), 200, np.uint8)
    Image.fromarray(own).save(tmp_path / "walk" / "masks" / "000.png")
    clear = np.dstack([np.asarray(Image.open(tmp_path / "walk" / "001.png")), own])
    Image.fromarray(clear).save(tmp_path / "walk" / "001.png")
    outcome = write_masks(scan(tmp_path), tmp_path, bright)
    assert (outcome.written, outcome.given) == (2, 2) and len(Bright.seen) == 2
    assert np.array_equal(np.asarray(Image.open(tmp_path / "walk" / "masks" / "000.png")), own)
    assert sorted(f.name for f in (tmp_path / "walk" / "masks").iterdir()) == ["000.png", "002.png.png", "003.png.png"]
    again = write_masks(scan(tmp_path), tmp_path, bright)
    assert (again.written, again.given) == (2, 2) and len(Bright.seen) == 2


def test_pictures_and_objects_without_a_detection_are_reported(tmp_path, bright):
    squares(tmp_path / "a", 3, dark=(1,))
    squares(tmp_path / "b", 3, dark=(0, 1, 2))
    outcome = write_masks(scan(tmp_path), tmp_path, bright)
    assert (outcome.written, outcome.missed, outcome.undetected) == (2, 4, ["b"])
    lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    assert lines[0]["class"] == "chair" and {"picture": "b/001.png", "box": None} in lines
    assert not (tmp_path / "b" / "masks").exists()
    assert write_masks(scan(tmp_path), tmp_path, bright).undetected == ["b"] and len(Bright.seen) == 6


@pytest.mark.parametrize("moment", ["before the mask", "in the line"])
def test_masks_of_a_run_that_was_killed_stay(tmp_path, bright, monkeypatch, moment):
    squares(tmp_path / "walk", 4)
    made, write_file = [], masks_module.write_file

    def dying(file, content):
        if file.suffix == ".png":
            made.append(file)
            if len(made) == 3:
                raise KeyboardInterrupt
        write_file(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "write_file", dying)
        with pytest.raises(KeyboardInterrupt):
            write_masks(scan(tmp_path), tmp_path, bright, batch_size=1)
    if moment == "in the line":
        report = tmp_path / "masks.jsonl"
        report.write_text(report.read_text()[:-9])
    first = (tmp_path / "walk" / "masks" / "000.png.png").stat().st_mtime_ns
    outcome = write_masks(scan(tmp_path), tmp_path, bright, batch_size=1)
    assert (outcome.written, outcome.given, len(Bright.seen)) == (4, 0, 3 + 2)
    assert (tmp_path / "walk" / "masks" / "000.png.png").stat().st_mtime_ns == first
    for i in range(4):
        assert open_mask(tmp_path / "walk" / "masks" / f"{i:03d}.png.png", "", (24, 32))[10, 8] == 255


def test_masks_of_another_class_are_not_mixed_in(tmp_path, bright):
    squares(tmp_path / "walk")
    write_masks(scan(tmp_path), tmp_path, bright)
    with pytest.raises(DataError, match=r"masks.jsonl: masks were made with .*chair.*expected .*table"):
        write_masks(scan(tmp_path), tmp_path, Bright("table"))


def test_random_tiny_models_make_masks_from_the_command_line(
    tmp_path, random_tiny_detector, random_tiny_segmenter, capsys
):
    squares(tmp_path / "data" / "a")
    squares(tmp_path / "data" / "b")
    (tmp_path / "classes.csv").write_text("key,category\na,chair\nb,table\n")
    tools = ["--detector", str(random_tiny_detector), "--segmenter", str(random_tiny_segmenter), "--device", "cpu"]
    command = ["prepare", "masks", str(tmp_path / "data"), *tools]
    assert commands.main(command) == 1 and "has no class, expected --class" in capsys.readouterr().err
    assert commands.main([*command, "--captions", str(tmp_path / "classes.csv"), "--threshold", "0"]) == 0
    assert "2 objects: masks of 6 pictures made, 0 came with the data, 0 pictures without" in capsys.readouterr().out
    head = json.loads((tmp_path / "data" / "masks.jsonl").read_text().splitlines()[0])
    assert head["classes"] == {"a": "chair", "b": "table"} and head["segmenter"]["model"] == "sam-vit-huge"
    assert len(head["detector"]["sha256"]) == 64
    assert len(list((tmp_path / "data").glob("*/masks/*.png"))) == 6
    segmentation._tools.cache_clear()


def clip(file: Path, frames: list[np.ndarray]) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "1"})
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], "yuv444p"
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
    return file


def clips(folder: Path, count: int, dark: tuple[int, ...] = ()) -> None:
    """Clips of three grey frames with a bright square, but where nothing is to be seen."""
    squares(folder / "frames", dark=dark)
    frames = [np.asarray(Image.open(f)) for f in picture_files(folder / "frames")]
    shutil.rmtree(folder / "frames")
    for number in range(count):
        clip(folder / f"clip{number}.mp4", frames)


def refusal(folder: Path, capsys, *options: str) -> list[str]:
    """The command that `vader data` names for clips without masks, in words."""
    assert (
        commands.main(["data", str(folder), "--name", "phone", "--profile", "smoke", "--workers", "1", *options]) == 1
    )
    said = capsys.readouterr().err
    return shlex.split(re.search(r"'vader (prepare masks .*) --class NAME' makes them", said).group(1))


def test_clips_without_masks_become_a_set_with_the_command_that_their_refusal_names(
    tmp_path, scripted_tiny_matting, capsys, monkeypatch
):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    folder = tmp_path / "my clips"
    clips(folder, 3)
    named = refusal(folder, capsys)
    tools = ["--people", "--matting", str(scripted_tiny_matting), "--device", "cpu"]
    assert commands.main([*named, *tools]) == 0
    assert sorted(f.name for f in folder.glob("*.mkv")) == [f"clip{i}.mask.mkv" for i in range(3)]
    command = ["data", str(folder), "--name", "phone", "--profile", "smoke", "--workers", "1"]
    assert commands.main(command) == 0 and "3 training and 0 held-out objects" in capsys.readouterr().out
    (scene, *_) = scan(folder)
    frames = list(stream(scene.place))
    expected = list(matte(iter(frames), matting(str(scripted_tiny_matting))))
    found = [mask for _, mask in masked_frames(scene.place, mask_beside)]
    assert len(found) == 3 and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("format", ["videos", "photographs"])
def test_random_tiny_models_make_masks_of_clips(tmp_path, random_tiny_detector, random_tiny_segmenter, capsys, format):
    clips(tmp_path, 2)
    named = refusal(tmp_path, capsys, "--format", format)
    assert named[-2:] == (["--format", format] if format == "photographs" else ["masks", str(tmp_path)])
    tools = ["--detector", str(random_tiny_detector), "--segmenter", str(random_tiny_segmenter), "--device", "cpu"]
    assert commands.main([*named, "--class", "chair", "--threshold", "0", *tools]) == 0
    assert "2 objects: masks of 2 pictures made" in capsys.readouterr().out
    for number in range(2):
        masks = [mask for _, mask in masked_frames(tmp_path / f"clip{number}.mp4", mask_beside)]
        assert len(masks) == 3 and set(np.unique(masks)) <= {0, 255}
    segmentation._tools.cache_clear()


def test_frames_of_clips_without_a_detection_are_black_and_counted(tmp_path, bright, capsys):
    clips(tmp_path, 1, dark=(1,))
    outcome = write_masks(scan(tmp_path), tmp_path, bright)
    assert (outcome.written, outcome.black, outcome.undetected) == (1, 1, [])
    masks = [mask for _, mask in masked_frames(tmp_path / "clip0.mp4", mask_beside)]
    assert [int(mask.max()) for mask in masks] == [255, 0, 255]
    assert write_masks(scan(tmp_path), tmp_path, bright).black == 1 and len(Bright.seen) == 3
    (tmp_path / "none").mkdir()
    clips(tmp_path / "none", 1, dark=(0, 1, 2))
    for _ in range(2):
        outcome = write_masks(scan(tmp_path / "none"), tmp_path / "none", bright)
        assert (outcome.written, outcome.missed, outcome.undetected) == (0, 1, ["clip0"]) and len(Bright.seen) == 6
        assert not list((tmp_path / "none").glob("*.mkv"))


def test_masks_of_photographs_lie_where_their_reader_looks(tmp_path, bright):
    squares(tmp_path / "mug" / "images")
    (scene,) = scan(tmp_path, "photographs")
    outcome = write_masks([scene], tmp_path, bright)
    assert (outcome.written, outcome.faults) == (3, {})
    names = {}
    found = list(photographs._of_folder(scene, Options(), names))
    assert names == {} and [int(mask[10, 8]) for _, _, mask in found] == [255] * 3
    assert all(int(mask[0, 0]) == 0 for _, _, mask in found)


def test_formats_without_pictures_are_refused(tmp_path, bright):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(
        ConfigError, match="is of format models, expected one of srn, transforms, colmap, videos, photographs"
    ):
        write_masks(scan(tmp_path), tmp_path, bright)


def test_masks_beside_a_video_are_masks_of_the_video(tmp_path):
    frames = pictures(2)
    write_mask_video(tmp_path / "clip.mask.mkv", [f[..., 0] for f in frames])
    write_mask_video(tmp_path / "clip.mkv", [f[..., 1] for f in frames])
    found = list(masked_frames(tmp_path / "clip.mkv", mask_beside))
    assert all(np.array_equal(m, f[..., 0]) for (_, m), f in zip(found, frames, strict=True))
