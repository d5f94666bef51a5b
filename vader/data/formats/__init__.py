"""Readers of other people's data: from a folder on disk to `Sequence`s and `Video`s, one object at a time.

    name, why = detect(folder)              # or named by the user
    for scene in scan(folder, name):        # cheap: nothing is opened
        sequence = read(scene, options)     # in the cube [-1, 1]^3, on black, square

A format is a module with

    SIGNS                   what `detect` looks for, in words
    UP                      which axis of its world is up, where nobody says ("y", "z", "cameras")
    POSES                   how its files write poses, for `shared.conventions`; missing where they hold none
    find(folder)            why the folder is of this format, or None
    places(folder)          one after the other, `Places`; or scan(folder), a list of `Scene`
    extra_files(scene)      if it has it: files outside of scene.place that decide what the object is
    read(scene, options)    Sequence with the cameras of the files, or Video

A named data set is written on top: it lists scenes (its own, or those of `scan`, with splits, captions and `placing`
replaced) and calls `read`. Errors are `DataError`s with file, object, field and expectation; what stops one object
need not stop the others (`read_all`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ...settings.checks import ConfigError, nearest
from ..prepared import DataError
from ..sequence import Sequence
from ..video import Video
from .shared.scenes import Options, Placing, Scene, View, make_scene, make_scenes, require_folder

__all__ = [
    "FORMATS", "Options", "Placing", "Scene", "View", "detect", "files_of", "format_named", "read", "read_all", "scan",
    "walk",
]  # fmt: skip

FORMATS = ("abo", "srn", "transforms", "colmap", "models", "photographs", "videos")  # the first that fits is taken


def format_named(name: str) -> ModuleType:
    """The module of a format. Raises ConfigError for an unknown name."""
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is unknown{nearest(name, list(FORMATS))}; known: {', '.join(FORMATS)}")
    return import_module(f".{name}", __name__)


def detect(folder: Path) -> tuple[str, str]:
    """(format, why) of a folder, by its first entries. Raises DataError that lists what was looked for."""
    require_folder(folder)
    for name in FORMATS:
        if why := format_named(name).find(Path(folder)):
            return name, why
    looked = "\n".join(f"  {name}: {format_named(name).SIGNS}" for name in FORMATS)
    raise DataError(f"{folder}: its format is not to be seen, expected one of\n{looked}")


def scan(folder: Path, name: str | None = None) -> list[Scene]:
    """All objects of a folder, in natural order of their paths. Raises DataError where there are none."""
    name = detect(folder)[0] if name is None else name
    module, folder = format_named(name), require_folder(folder)
    if hasattr(module, "places"):
        found = {relative: (place, files) for relative, place, files in module.places(folder)}
        scenes = make_scenes(name, folder, found)
    else:
        scenes = module.scan(folder)
    return scenes or _none(folder, name)


def walk(folder: Path, name: str) -> Iterator[Scene]:
    """`scan` of very many objects, one after the other, in the order of folders; keys are not compared."""
    module, folder, scene = format_named(name), require_folder(folder), None
    if hasattr(module, "places"):
        for relative, place, files in module.places(folder):
            scene = make_scene(name, folder, relative, place, files)
            yield scene
    else:
        for scene in module.scan(folder):
            yield scene
    if scene is None:
        _none(folder, name)


def _none(folder: Path, name: str) -> None:
    raise DataError(f"{folder}: no objects of format {name}, expected {format_named(name).SIGNS}")


def files_of(scene: Scene) -> list[Path]:
    """All files that decide what an object is, in order."""
    own = [f for f in scene.place.rglob("*") if f.is_file()] if scene.place.is_dir() else [scene.place]
    extra = getattr(format_named(scene.format), "extra_files", lambda _: [])
    return sorted({*own, *extra(scene)})


def read(scene: Scene, options: Options) -> Sequence | Video:
    """One object, in the cube if it has cameras. Raises DataError for an object that cannot be used."""
    from .shared.conventions import advice
    from .shared.normalise import merged, normalised

    module = format_named(scene.format)
    item = module.read(scene, options)
    if isinstance(item, Video) or module.UP is None:  # models are placed before they are drawn
        return item
    placing = merged(options.placing, scene.placing, module.UP)
    try:
        return normalised(item, placing, scene.where).validate(scene.place)
    except DataError as error:
        poses = getattr(module, "POSES", None)
        if poses is None or (hint := advice(item.cameras, item.masks, poses)) is None:
            raise
        raise DataError(f"{error}\n  {hint}") from error


def read_all(
    scenes: Iterable[Scene], options: Options, faults: dict[str, str] | None = None
) -> Iterator[Sequence | Video]:
    """Objects one after the other. faults: gets the message of each object that cannot be used, by key; without it the
    first such object is an error."""
    for scene in scenes:
        try:
            item = read(scene, options)
        except DataError as error:
            if faults is None:
                raise
            faults[scene.key] = str(error)
            continue
        yield item
