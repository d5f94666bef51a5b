"""Structure from motion by COLMAP (pycolmap): from pictures of one place to a model of its cameras, on disk.

Features (SIFT), matches of pairs, incremental mapping: Schönberger and Frahm, "Structure-from-Motion Revisited", 2016.
Random seeds are fixed, and one thread works where the order of work could change the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...prepared import DataError

EVERY_PAIR = 60  # so many pictures are matched each with each other; of more, those near in the order they were taken
NEIGHBOURS = 10  # on either side, in that order, and then at distances that double
FEATURES = 8192  # of a picture, at most
SMALLEST = 3  # images of a model
FOCAL_FACTOR = 1.2  # first guess of the focal length, in lengths of the picture's longer side
CAMERA = "SIMPLE_RADIAL"  # one focal length, one term of distortion
ERROR = 2  # of COLMAP's log, this and worse is shown


def load() -> ModuleType:
    """pycolmap, quiet. Raises ImportError that says how to install it."""
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError(
            "photographs without cameras need pycolmap, which the extra 'photographs' installs: "
            "pip install 'vader[photographs]'"
        ) from error
    pycolmap.logging.minloglevel = ERROR
    return pycolmap


def pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pictures to match, each pair once. The order closes: a walk round an object ends where it began."""
    count = len(names)
    steps = range(1, count // 2 + 1)
    if count > EVERY_PAIR:
        steps = [s for s in steps if s <= NEIGHBOURS or s & (s - 1) == 0]
    for step in steps:
        for first in range(count if 2 * step != count else step):
            yield names[first], names[(first + step) % count]


def reconstruct(
    pictures: Path, names: list[str], masks: Path | None, output: Path, where: str, focal: float | None = None
) -> dict[str, Any]:
    """Place pictures. Models are written to output/sparse/0, 1, ..., in COLMAP's binary format.

    Args:
        pictures: folder that the names are relative to; pictures of one subfolder have one camera.
        names: pictures in the order they were taken, without spaces.
        masks: folder of <name>.png, black where no features are to be looked for; None looks everywhere.
        where: what messages begin with.
        focal: first guess of the focal length, in lengths of the longer side.

    Returns:
        Images of each model ("models"), and of the largest one its images ("placed"), 3D points ("points"), mean
        reprojection error in pixels ("error"), and focal length of each camera ("focal").

    Raises:
        DataError: COLMAP fails. ImportError: pycolmap is not there.
    """
    pycolmap = load()
    output.mkdir(parents=True)
    database, listed, sparse = output / "database.db", output / "pairs.txt", output / "sparse"
    sparse.mkdir()
    listed.write_text("".join(f"{a} {b}\n" for a, b in pairs(names)), encoding="utf-8")
    try:
        _find_features(pycolmap, database, pictures, names, masks, focal)
        _match(pycolmap, database, listed)
        found = pycolmap.incremental_mapping(database, pictures, sparse, _mapping(pycolmap))
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{where}: structure from motion failed, expected pictures that overlap ({error})") from error
    finally:
        database.unlink(missing_ok=True)
        listed.unlink()
    models = {str(number): model.num_reg_images() for number, model in found.items()}
    if not models:
        return {"models": {}, "placed": 0, "points": 0, "error": None, "focal": []}
    best = found[max(found, key=lambda number: found[number].num_reg_images())]
    return {
        "models": models,
        "placed": best.num_reg_images(),
        "points": best.num_points3D(),
        "error": round(best.compute_mean_reprojection_error(), 3),
        "focal": [round(float(camera.params[0]), 2) for _, camera in sorted(best.cameras.items())],
    }


def _find_features(
    pycolmap: ModuleType, database: Path, pictures: Path, names: list[str], masks: Path | None, focal: float | None
) -> None:
    reader, options = pycolmap.ImageReaderOptions(), pycolmap.FeatureExtractionOptions()
    reader.camera_model = CAMERA
    reader.default_focal_length_factor = focal or FOCAL_FACTOR
    if masks is not None:
        reader.mask_path = masks
    options.num_threads = 1
    options.use_gpu = False
    options.sift.max_num_features = FEATURES
    pycolmap.set_random_seed(0)
    pycolmap.extract_features(
        database,
        pictures,
        image_names=names,
        camera_mode=pycolmap.CameraMode.PER_FOLDER,
        reader_options=reader,
        extraction_options=options,
        device=pycolmap.Device.cpu,
    )


def _match(pycolmap: ModuleType, database: Path, listed: Path) -> None:
    matching, pairing = pycolmap.FeatureMatchingOptions(), pycolmap.ImportedPairingOptions()
    geometry = pycolmap.TwoViewGeometryOptions()
    matching.num_threads = torch.get_num_threads()  # pairs do not depend on each other
    matching.use_gpu = False
    pairing.match_list_path = listed
    geometry.ransac.random_seed = 0
    pycolmap.match_image_pairs(
        database,
        matching_options=matching,
        pairing_options=pairing,
        verification_options=geometry,
        device=pycolmap.Device.cpu,
    )


def _mapping(pycolmap: ModuleType) -> Any:
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = SMALLEST
    options.num_threads = 1
    options.random_seed = 0
    options.extract_colors = False
    return options
