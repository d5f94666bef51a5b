"""Photographs of an object that stands still, without cameras: structure from motion finds them, by pycolmap.

    <object>/*.jpg       or images/, input/, rgb/
             masks/<name>.png       or mask/; or pictures with alpha; or the mask step
    <object>.mp4         or another video of a walk round the object, with <object>.mask.mp4 beside it

Pictures are turned upright, made no larger than MAX_SIDE and kept with their masks and COLMAP's model in
`<data root>/photographs/<key>-<digest>`, never beside the photographs; `vader.data.formats.colmap` reads them there.
Pictures of one size have one camera.

Features are looked for inside the masks, which is right for an object that is turned before a camera, and everywhere,
which is right for a room that stands still. Of the two models the one is kept that explains the masks and the points
better: cameras that followed the wrong thing leave little of the visual hull, or fit badly.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...store.files import tree_sha256
from ..prepared import DataError, data_root, new_folder, read_json, write_json
from ..sequence import Sequence
from ..transient import unusable
from . import colmap, videos
from .shared import images, structure_from_motion
from .shared.normalise import hull_iou, normalised
from .shared.scenes import Options, Places, Placing, Scene, View, coverage, folders, require_share, sampled

SIGNS = "folders of photographs, told from frames by the camera in their EXIF fields, or named: --format photographs"
UP = "cameras"
VERSION = 2  # raised whenever the code between photographs and cameras changes these
MASKS = ("masks", "mask")
MAX_SIDE = 1600  # pixels of a picture that is worked on
FRAMES = 60  # of a video, evenly spaced in time, unless told otherwise
FEWEST = 3  # pictures
NEARLY = 0.05  # difference in hull IoU that says nothing
EXACTLY = 0.75  # ratio of reprojection errors that says something
CHECKED = 64  # pixels, side of the pictures that models are compared by
MAKE, MODEL, EXIF, FOCAL_LENGTH, FOCAL_35MM = 0x010F, 0x0110, 0x8769, 0x920A, 0xA405  # tags
FULL_FRAME = 36.0  # mm, the longer side of the film that FOCAL_35MM refers to
Masked = tuple[str, np.ndarray, np.ndarray]  # name, colour (h, w, 3), mask (h, w), uint8


def find(folder: Path) -> str | None:
    for place in sampled(folder):
        files = images.picture_files(place) if place.name not in MASKS and _pictured(place) else []
        if files and _exif(files[0]).keys() & {MAKE, MODEL, FOCAL_LENGTH}:
            return f"{files[0]} is a photograph, by the camera in its EXIF fields"
    return None


def places(folder: Path) -> Places:
    """Folders of pictures, and videos."""
    for place in folders(folder):
        for file in videos.video_files(place):
            yield str(file.relative_to(folder).with_suffix("")), file, {}
        inner = next((place / name for name in colmap.IMAGES if _pictured(place / name)), None)
        if inner or (place.name not in (*MASKS, *colmap.IMAGES) or place == folder) and _pictured(place):
            yield str(place.relative_to(folder)), place, {"pictures": str(inner or place)}


def _pictured(folder: Path) -> bool:
    return folder.is_dir() and len(images.picture_files(folder)) >= FEWEST


def _exif(file: Path) -> dict[int, Any]:
    with suppress(OSError, SyntaxError, ValueError), Image.open(file) as image:
        exif = image.getexif()
        return dict(exif) | dict(exif.get_ifd(EXIF))
    return {}


def read(scene: Scene, options: Options) -> Sequence:
    """attributes["structure_from_motion"] says how many pictures were placed, with which reprojection error, in how
    many models, and where features were found. Raises DataError where fewer than `options.least_share` were placed, or
    have no masks, and ImportError without pycolmap."""
    work = placed(scene, options)
    about = read_json(work / "object.json", scene.key, ("report", "left_out", "clip"))
    sequence = colmap.read(replace(scene, place=work, root=work), options)
    attributes = scene.attributes | {"format": scene.format, "structure_from_motion": about["report"]}
    attributes |= about["clip"]
    if about["left_out"]:
        attributes["left_out"] = about["left_out"]
    return replace(sequence, attributes=attributes)


def placed(scene: Scene, options: Options) -> Path:
    """The folder with an object's pictures, masks and COLMAP model, made if it is not there yet. Raises as `read`."""
    structure_from_motion.load()
    root = (data_root() if options.cache is None else options.cache) / "photographs"
    folder = root / f"{scene.key}-{_identity(scene, options)[:12]}"
    if (folder / "object.json").is_file():
        return folder
    with new_folder(folder, scene.key) as work:
        counts = videos.Counts()
        names, faults = _develop(scene, options, work, counts)
        report = _solve(scene, options, work, list(names))
        missing = _unplaced(scene, work, names)
        faults |= {name: f"{scene.where}: {name}: structure from motion did not place it" for name in missing}
        _require_placed(scene, report, len(names) - len(missing), len(faults) + len(names) - len(missing), options)
        write_json(work / "object.json", {"report": report, "left_out": faults, "names": names, "clip": counts.note()})
    return folder


def _identity(scene: Scene, options: Options) -> str:
    """SHA-256 (hex) of what decides the cameras: the files, and how masks are made of them."""
    masker = options.masker and getattr(options.masker, "__qualname__", repr(options.masker))
    names = ("background", "mask_threshold", "premultiplied", "focal", "frames", "least_share")
    files = [tree_sha256(place) for place in (scene.place, *extra_files(scene))]
    content = [VERSION, files, masker, {n: getattr(options, n) for n in names}]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def extra_files(scene: Scene) -> list[Path]:
    """Files outside of an object's place that decide what it is: the masks of a video."""
    return videos.mask_files(scene.place) if scene.place.is_file() else []


# ---------------------------------------------------------------------------------------- pictures with masks


def _develop(
    scene: Scene, options: Options, work: Path, counts: videos.Counts | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Write pictures and masks; returns their names there with the names they had, and the faults of others. counts:
    of a video, is filled."""
    names: dict[str, str] = {}
    faults: dict[str, str] = {}
    source = _of_folder(scene, options, faults) if "pictures" in scene.files else _of_video(scene, options, counts)
    for name, colour, mask in source:
        if mask.max() == 0:
            faults[name] = f"{scene.where}: {name}: mask is empty, expected some of the object"
            continue
        h, w = mask.shape
        scale = min(1.0, MAX_SIDE / max(h, w))
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        file = f"{size[0]}x{size[1]}/{len(names):05d}.png"
        for kind, pixels, suffix in (("images", colour, ""), ("masks", mask, ".png")):
            target = work / kind / (file + suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize(size, Image.Resampling.BOX).save(target, compress_level=1)
        names[file] = name
    total = len(names) + len(faults)
    require_share(scene, len(names), total, faults, options)
    if len(names) < FEWEST:
        raise DataError(f"{scene.where}: {len(names)} of {total} pictures can be used, expected at least {FEWEST}")
    return names, faults


def _of_folder(scene: Scene, options: Options, faults: dict[str, str]) -> Iterator[Masked]:
    folder = Path(scene.files["pictures"])
    for file in images.picture_files(folder):
        what = f"{file}: object {scene.key!r}"
        try:
            picture = images.open_picture(file, what, premultiplied=options.premultiplied)
            view = View(file.name, file, np.eye(4), np.eye(3), picture.size, _mask_file(scene, folder, file))
            yield file.name, picture.colour, coverage(view, picture, scene, options)
        except DataError as error:
            faults[file.name] = unusable(error)


def _mask_file(scene: Scene, folder: Path, picture: Path) -> Path | None:
    names = (f"{picture.name}.png", picture.name, f"{picture.stem}.png", f"{picture.stem}.jpg")
    places = [base / word for base in dict.fromkeys((scene.place, folder)) for word in MASKS]
    return next((place / n for place in places for n in names if (place / n).is_file()), None)


def _of_video(scene: Scene, options: Options, counts: videos.Counts | None) -> Iterator[Masked]:
    wanted = options.frames or min(FRAMES, len(videos.time_stamps(scene.place)))
    yield from videos.frames_of_file(scene, replace(options, frames=wanted), counts)


# ---------------------------------------------------------------------------------------- cameras


def _solve(scene: Scene, options: Options, work: Path, names: list[str]) -> dict[str, Any]:
    """Leave the better of two models in work/sparse; returns what is known of it."""
    focal = _focal_factor(scene, options)
    reports = {}
    for where, masks in (("everywhere", None), ("inside the masks", work / "masks")):
        output = work / where.replace(" ", "-")
        report = structure_from_motion.reconstruct(work / "images", names, masks, output, scene.where, focal)
        report["features"] = where
        report["hull_iou"] = _explained(scene, work, output) if report["placed"] >= FEWEST else 0.0
        reports[where] = report | {"of": len(names)}
    best = _better(list(reports.values()))
    shutil.move(work / best["features"].replace(" ", "-") / "sparse", work / "sparse")
    for where in reports:
        shutil.rmtree(work / where.replace(" ", "-"))
    return best


def _better(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the models from everywhere and from inside the masks the second, if the first places less than half as many
    pictures, or its visual hull fills less of the masks, or its points lie less exactly: then the object moved against
    its surroundings. A hull of few views fills its masks whatever the cameras are."""
    everywhere, inside = reports
    if 2 * min(everywhere["placed"], inside["placed"]) < max(everywhere["placed"], inside["placed"]):
        return max(reports, key=lambda r: r["placed"])
    if abs(everywhere["hull_iou"] - inside["hull_iou"]) > NEARLY:
        return max(reports, key=lambda r: r["hull_iou"])
    return inside if (inside["error"] or 0.0) < EXACTLY * (everywhere["error"] or 0.0) else everywhere


def _explained(scene: Scene, work: Path, output: Path) -> float:
    """How much of the masks the visual hull fills with these cameras, on three views; 0 where it is empty."""
    small = Options(resolution=CHECKED, least_share=1e-6)
    shutil.move(output / "sparse", work / "sparse")
    try:
        sequence = colmap.read(replace(scene, place=work, root=work), small)
        sequence = normalised(sequence, Placing(up=UP), scene.where)
        views = sorted({0, len(sequence) // 3, 2 * len(sequence) // 3})
        return round(hull_iou(sequence.cameras, sequence.masks, views), 3)
    except DataError:
        return 0.0
    finally:
        shutil.move(work / "sparse", output / "sparse")


def _focal_factor(scene: Scene, options: Options) -> float | None:
    """The focal length in lengths of the longer side, where options or EXIF fields say it."""
    if "pictures" not in scene.files:
        return None
    first = images.picture_files(Path(scene.files["pictures"]))[0]
    if options.focal is not None:
        with Image.open(first) as image:
            return options.focal / max(image.size)
    with suppress(TypeError, ValueError):
        film = float(_exif(first).get(FOCAL_35MM) or 0)
        return film / FULL_FRAME if film > 0 else None
    return None


def _unplaced(scene: Scene, work: Path, names: dict[str, str]) -> list[str]:
    found = colmap.placed_names(replace(scene, place=work, root=work)) if any((work / "sparse").iterdir()) else set()
    return [name for file, name in names.items() if file not in found]


def _require_placed(scene: Scene, report: dict[str, Any], count: int, total: int, options: Options) -> None:
    least = max(FEWEST, math.ceil(options.least_share * total))
    if count < least:
        models = f", in models of {sorted(report['models'].values(), reverse=True)}" if report["models"] else ""
        raise DataError(
            f"{scene.where}: structure from motion placed {count} of {total} pictures{models}, expected at least "
            f"{least}: sharp pictures, each of which shows most of what the one before shows, of an object or a room "
            "with patterns"
        )
