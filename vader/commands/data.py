"""`vader data`: prepare a data set."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..autodecoder.mask_filter import mask_judge
from ..data import READERS, load_set, prepare
from ..data.formats import FORMATS
from ..data.formats.sweethome3d import read_catalogues
from ..data.hull_check import check_set, lines, placed_lines
from ..data.pipeline import pack_set
from ..data.preparation.detection import detector
from ..data.prepared import EMBEDDED, SequenceSet
from ..data.reading.earlier import dropped_lines, said_of
from ..data.sets import mvimgnet
from ..data.sets.furniture import NAMES, attribution_page
from ..data.sets.own import experiment_named, prepare_folder
from ..data.shards import ShardedSet
from ..data.streaming.parts import Join, Part, PartOfSet
from ..data.video import Video
from ..report.figures import hull_rows
from ..report.png import fine_png
from ..settings.checks import require
from ..settings.experiment import DataConfig
from ..settings.profiles import DOWNLOADED, experiment
from ..store.files import write_file

DRAWN = 4  # objects on the picture of the check
SHOWN = 12  # clips in a message


def contact_sheet(data: SequenceSet, columns: int = 12) -> Tensor:
    """The first view of every object, or frame of every video, training objects first, as one image
    (rows * h, columns * w, 3) uint8."""
    images = [(s.frames if isinstance(s, Video) else s.images)[0] for s in data]
    images += [torch.zeros_like(images[0])] * (-len(images) % columns)
    return torch.cat([torch.cat(images[i : i + columns], 1) for i in range(0, len(images), columns)])


def beside_embedded(data: SequenceSet) -> str | None:
    """How a set agrees with the one of its name that comes with the package, if there is one.

    Raises DataError where the pixels differ by more than rasterisers do.
    """
    if data.embedded:
        return "this set comes with the package, nothing was rendered"
    for manifest in EMBEDDED.glob(f"{data.name}-*/manifest.json"):
        embedded = load_set(manifest.parent)
        if embedded.digest != data.digest:
            return f"other settings or models than those of the set that comes with the package ({embedded.digest})"
        difference = data.compare_pixels(embedded.pixel_record(), "come with the package")
        return difference or "all pixels are equal to those of the set that comes with the package"
    return None


def _part(given: argparse.Namespace) -> Part | Join | None:
    if not (given.part or given.join):
        return None
    require(not (given.part and given.join), "--part prepares a part and --join joins all, expected one of them")
    require(given.objects_per_shard is not None, "--part and --join are for sets of shards, with --objects-per-shard")
    return Join() if given.join else Part.parse(given.part)


def _say_cut(data: SequenceSet) -> None:
    """Clips of which fewer frames could be decoded than their containers declare."""
    found = {item.key: item.attributes["frames"] for item in data if "frames" in item.attributes}
    for key, frames in list(found.items())[:SHOWN]:
        print(f"warning: clip {key}: {frames['decoded']} of the {frames['declared']} frames it declares were decoded")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more clips")


def _prepared(given: argparse.Namespace) -> SequenceSet | ShardedSet | PartOfSet:
    if given.own_name:
        sharing = {"objects_per_shard": given.objects_per_shard, "part": _part(given), "strict": given.strict}
        sharing |= {"root": given.out, "captions": given.captions}
        return prepare_folder(Path(given.name), given.own_name, given.profile, given.format, given.workers, **sharing)
    folder = given.name not in READERS and Path(given.name).is_dir()
    require(not folder, f"{given.name} is a folder; expected --name, which says what the set made of it is called")
    for option in ("captions", "out", "check"):
        require(getattr(given, option) is None, f"--{option} is for a folder of your own data, with --name")
    names = ("source", "workers", "objects_per_shard")
    options = {name: value for name in names if (value := getattr(given, name)) is not None}
    if part := _part(given):
        options["part"] = part
    from_files = given.source is not None and given.name in DOWNLOADED  # whose counts are what is asked for, at most
    require(not given.strict or from_files, "--strict is for a folder of files: with --name, or with --source of a set")
    options |= {"strict": True} if given.strict else {}
    options |= _filters(given, from_files)
    return prepare((experiment if from_files else experiment_named)(given.profile, given.name).data, **options)


def _filters(given: argparse.Namespace, from_files: bool) -> dict[str, Any]:
    """MVImgNet's filters of C.1: masks that fit no shape, and, with a detector, objects that it does not find."""
    filtered = from_files and given.name == mvimgnet.NAME
    for option, value in (("detector", given.detector), ("keep-misfits", given.keep_misfits)):
        require(filtered or not value, f"--{option} is a filter of {mvimgnet.NAME}, with --source")
    judge = {} if given.keep_misfits or not filtered else {"mask_judge": mask_judge}
    return judge | ({"detector": detector(given.detector)} if given.detector else {})


def _check(data: SequenceSet, picture: Path | None) -> None:
    """Say how well the cameras explain the masks, and draw the objects where they do so worst."""
    checks = check_set(data)
    print("\n".join([*placed_lines(data), *lines(checks)]))
    if picture is not None:
        by_key = {sequence.key: sequence for sequence in data}
        worst = sorted(checks.values(), key=lambda check: check.iou)[:DRAWN]
        figure = hull_rows([(by_key[c.key], c) for c in worst], f"{data.name}: cameras, and visual hulls over masks")
        content = io.BytesIO()
        figure.savefig(content, dpi=110)
        write_file(picture, content.getvalue())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vader data", description="Prepare a data set once: rendered or read, then it loads."
    )
    parser.add_argument("name", help=f"one of {', '.join(READERS)}; or a folder of your own data, with --name")
    parser.add_argument("--name", dest="own_name", metavar="NAME", help="what to call the set made of a folder")
    parser.add_argument("--format", choices=FORMATS, help="of the folder (default: found out by looking)")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE", help="own data: captions, categories and splits by key (.csv or .json)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="own data: where prepared sets are kept (default: $VADER_DATA)"
    )
    parser.add_argument(
        "--check", type=Path, metavar="PNG", help="own data: also draw cameras and visual hulls of the worst objects"
    )
    parser.add_argument("--profile", default="laptop", help="whose counts and resolution to use (default: laptop)")
    parser.add_argument(
        "--source",
        help="furniture and household: folder of catalogues, a catalogue (.sh3f) or the Debian package (.deb); sets to "
        "download: their folder, see the data cards; people_bodies: folder of motion clips",
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--objects-per-shard", type=int, metavar="N", help="write tars of N objects, for sets larger than memory"
    )
    parser.add_argument("--part", metavar="I/K", help="of K parts write the I-th alone, e.g. 3/64")
    parser.add_argument("--join", action="store_true", help="make the parts a set, without looking at pixels again")
    parser.add_argument("--strict", action="store_true", help="own data: an object that cannot be used is an error")
    parser.add_argument(
        "--detector",
        metavar="MODEL",
        help="mvimgnet: leave out what this Grounding DINO (folder or name) never finds",
    )
    parser.add_argument("--keep-misfits", action="store_true", help="mvimgnet: keep objects whose masks fit no shape")
    parser.add_argument("--sheet", metavar="PNG", help="also write a picture of the first view of every object")
    parser.add_argument(
        "--attribution", metavar="FILE", type=Path, help="furniture: list its models with their licences"
    )
    parser.add_argument(
        "--pack", metavar="FOLDER", type=Path, help="also write the set small, as those that come with the package"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.attribution:
        require(given.name in NAMES, f"--attribution is for {' and '.join(NAMES)}, not for {given.name!r}")
        given.attribution.write_text(
            attribution_page(read_catalogues(given.source), *map(DataConfig, sorted(NAMES))), encoding="utf-8"
        )
        return 0
    data = _prepared(given)
    if isinstance(data, PartOfSet):
        print(f"{data.folder}: part {data.part}, {data.objects} objects; with all parts there, the same with --join")
        if data.left_out:
            print("\n".join(dropped_lines("left out, or another one takes its place", data.left_out, data.folder)))
        return 0
    for line in said_of(data.folder):
        print(line)
    if isinstance(data, ShardedSet):
        print(f"{data.folder}: {len(data)} objects, {len(data.keys)} of them for training, checksum {data.checksum}")
        return 0
    if given.sheet:
        write_file(Path(given.sheet), fine_png(Image.fromarray(contact_sheet(data).numpy())))
    train, test = len(data.split("train")), len(data.split("test"))
    views = f"{data.train_views} training and {data.heldout_views} held-out views"
    print(f"{data.folder}: {train} training and {test} held-out objects, {views} each")
    print(f"digest {data.digest}, pixels {data.pixel_checksum}")
    for item in data if given.own_name or given.name in DOWNLOADED else ():
        if lacking := item.attributes.get("missing_textures"):
            print(f"object {item.key!r} is drawn without {', '.join(map(repr, lacking))}: no such texture is there")
    _say_cut(data)
    if given.own_name and not isinstance(data[0], Video):
        _check(data, given.check)
    if said := beside_embedded(data):
        print(said)
    if given.pack:
        print(f"packed in {pack_set(data, given.pack).folder}")
    return 0
