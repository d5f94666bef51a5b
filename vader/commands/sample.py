"""`vader sample`: objects of a trained model, as files that other programs open."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.sets.own import experiment_named
from ..generation.export import VOLUME_UNITS, require_mesh_packages
from ..generation.model import Model, check_count, check_prompt, load
from ..generation.objects import ObjectError, VolumeObject
from ..settings.checks import check_seed, require
from ..store.files import RunError, read_json, write_file, write_json
from ..store.provenance import environment
from ..store.runs import utc_now

MESHES = (".glb", ".ply", ".obj")
AT_ONCE = 8  # objects that are made before their files are written
INDEX = "samples.json"
SCHEMA = 1  # of the index
DESCRIPTION = """\
Make objects with a trained model. Of each object you get

  NAME.webp   a turntable, an animation that repeats for ever
  NAME.png    four views, then depth and normals of the first
  NAME.glb    a mesh with vertex colours: y up, front towards +z
  NAME.npz    the volume: density, red, green, blue

and samples.json says how each was made. The data set is not needed. Files of the same names are replaced."""
EXAMPLES = """\
examples:
  vader sample furniture_chairs --count 8 --seed 0 --out chairs/
  vader sample furniture_tables --reconstruct Blend-Swap-CC-BY-bedsideTable.v0
  vader sample procedural_chairs_text --prompt "a red chair with four legs" --guidance 3"""


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vader sample",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="name of the data that it was trained on, e.g. furniture_chairs")
    parser.add_argument("--count", type=int, help="number of new objects (default: 8, with --reconstruct 0)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the sampling; another seed makes other objects (default: 0)"
    )
    parser.add_argument("--out", type=Path, help="folder for the files (default: samples/MODEL)")
    parser.add_argument("--prompt", help="text that describes the objects, for a model that takes text")
    parser.add_argument("--guidance", type=float, help="weight of the prompt, e.g. 3 (default: 1, as in training)")
    parser.add_argument(
        "--reconstruct",
        metavar="NAME",
        action="append",
        default=[],
        help="reconstruct this training object; may be repeated",
    )
    parser.add_argument("--objects", action="store_true", help="list the names of the training objects, and stop")
    parser.add_argument("--ply", action="store_true", help="also write the mesh as PLY")
    parser.add_argument("--obj", action="store_true", help="also write the mesh as Wavefront OBJ")
    parser.add_argument(
        "--profile", default="laptop", help="size of the trained model: smoke, laptop (default), gpu or paper"
    )
    parser.add_argument("--training-seed", type=int, default=0, help="seed of the training (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    config = experiment_named(options.profile, options.model).replace(seed=options.training_seed)
    count = options.count if options.count is not None else 0 if options.reconstruct else 8
    if not options.reconstruct or options.count is not None:
        check_count(count)
    check_seed(options.seed)
    if count:
        check_prompt(options.model, config, options.prompt, options.guidance)
    else:
        require(
            options.prompt is None, "there is a prompt, but no objects to sample: give --count beside --reconstruct"
        )
    out = Path("samples") / options.model if options.out is None else options.out
    if not options.objects:
        require_mesh_packages()
        check_folder(out)
    model = load(options.model, options.profile, options.training_seed, options.device)
    if options.objects:
        print("\n".join(model.objects))
        return 0
    numbers = [model.number(name) for name in options.reconstruct]
    return _write(model, numbers, count, out, options)


def check_folder(folder: Path) -> None:
    """Raise RunError unless files can be written into the folder, or it can be made; nothing is left behind."""
    place = folder
    try:
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise RunError(f"{place} is a file, expected a folder for the objects")
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from error
    if (folder / INDEX).exists():
        entries(folder)


def entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder's index. Raises RunError where it is another file of that name."""
    file = folder / INDEX
    index = read_json(file)
    if not isinstance(index, dict) or index.get("schema") != SCHEMA or not isinstance(index.get("objects"), list):
        raise RunError(f"{file} is no list of `vader sample`, expected another folder for the objects")
    return index["objects"]


def _write(model: Model, numbers: list[int], count: int, out: Path, options: argparse.Namespace) -> int:
    """Make the objects and write their files, one object whole after the other; 1 where some were not finite."""
    meshes = [".glb", *(suffix for suffix in MESHES[1:] if getattr(options, suffix[1:]))]
    total, done, broken, facts = len(numbers) + count, 0, 0, environment(model.trained.device)
    bar = tqdm(total=total, desc="objects", unit="object", disable=None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for made in _objects(model, numbers, count, options):
            try:
                made.require_finite()
            except ObjectError as error:
                broken += 1
                tqdm.write(f"{error}; nothing is written of it", file=sys.stderr)
            else:
                _enter(out, made, _save(made, out, meshes), facts)
                done += 1
            bar.update()
    except OSError as error:
        why = f"{error.filename or out}: cannot be written ({error.strerror or error})"
        raise RunError(f"{why}; {done} of {total} objects are finished, and their files are whole") from error
    finally:
        bar.close()
    print(f"{out}: {done} object{'s' * (done != 1)}, and {INDEX}, which says how each was made")
    return 1 if broken else 0


def _objects(model: Model, numbers: list[int], count: int, options: argparse.Namespace) -> Iterator[VolumeObject]:
    """Training objects first, then samples, some at a time."""
    for start in range(0, len(numbers), AT_ONCE):
        yield from model.reconstruct(numbers[start : start + AT_ONCE])
    for start in range(0, count, AT_ONCE):
        indices = range(start, min(start + AT_ONCE, count))
        yield from model.sample(indices, options.seed, options.prompt, options.guidance)


def _save(made: VolumeObject, out: Path, meshes: list[str]) -> list[str]:
    """Write the files of an object and return their names; without a surface a line on stderr says so, and no mesh."""
    contents = {suffix: made.encoded(suffix) for suffix in (".npz", ".png", ".webp")}
    try:
        mesh = made.mesh()
        contents |= {suffix: made.encoded(suffix, mesh) for suffix in meshes}
    except ObjectError as error:
        tqdm.write(f"{error}; no mesh is written", file=sys.stderr)
        for suffix in MESHES:  # of an earlier object of this name
            (out / f"{made.name}{suffix}").unlink(missing_ok=True)
    for suffix, content in contents.items():
        write_file(out / f"{made.name}{suffix}", content)
    return [f"{made.name}{suffix}" for suffix in contents]


def _enter(out: Path, made: VolumeObject, files: list[str], facts: dict[str, Any]) -> None:
    """Put an object into the folder's index, in place of an earlier one of its name."""
    listed = entries(out) if (out / INDEX).exists() else []
    entry = {"name": made.name, **made.origin, "files": files, "made": utc_now(), "environment": facts}
    listed = [one for one in listed if one.get("name") != made.name] + [entry]
    write_json(out / INDEX, {"schema": SCHEMA, "units": VOLUME_UNITS, "objects": listed})
