"""Figure 4: photographed objects by name. Cameras come from structure from motion, and both stages learn from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data import SequenceSet
from ...data.formats import Options, read, scan
from ...data.meshes.captures import Captures, write_captures
from ...data.meshes.walk import camera_errors
from ...data.preparation.masks import write_masks
from ...data.preparation.segmentation import BackgroundRemover
from ...data.prepared import DataError, data_root
from ...data.reading.earlier import fitted
from ...data.sets.own import experiment_named, prepare_folder
from ...evaluation.pictures import Mean, mean_over_objects
from ...settings.experiment import Experiment
from ...settings.studies import CAPTURES, study

NAME = "household_walks"
VERSION = 1  # raised whenever the code that draws captures changes them


def captures(profile: str, source: str | Path | None = None, masks: str = "drawn") -> Captures:
    """The photographs of a profile, below the data root: drawn once, and gone on with where that was stopped.

    masks: "drawn" are those of the drawing, and "prepared" ones are made of the photographs alone, by Grounding DINO
    and SAM (`data.preparation`), asked for each object's name. Raises WeightsError where these cannot be had.
    """
    content = [VERSION, CAPTURES[profile], None if source is None else str(source), masks]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder, drawn = data_root() / f"captures-{digest[:12]}", masks == "drawn"
    taken = write_captures(folder, **CAPTURES[profile], source=source, masks=drawn)
    if not drawn:
        write_masks(scan(folder, "photographs"), folder, BackgroundRemover(""), taken.names)
    return taken


def prepared(profile: str, taken: Captures, workers: int = 1) -> tuple[Experiment, SequenceSet]:
    """The photographs as a data set with cameras, and the experiment on it. Raises ImportError without pycolmap."""
    data = prepare_folder(taken.folder, NAME, profile, format="photographs", captions=taken.captions, workers=workers)
    found = experiment_named(profile, NAME).data
    config = fitted(study("figure4", profile), dataclasses.replace(found, name=NAME))
    return config, data


def side(profile: str) -> int:
    """Pixels of a photograph's side."""
    return CAPTURES[profile]["side"]


def first_photographs(taken: Captures, objects: int, every: int) -> dict[str, Tensor]:
    """{object: every so many of its photographs, (n, h, w, 3) in [0, 1]}, of the first objects."""
    shown = {}
    for key in list(taken.cameras)[:objects]:
        files = sorted((taken.folder / key / "images").iterdir())[::every]
        shown[key] = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).float() / 255
    return shown


@dataclass(frozen=True)
class Placed:
    """How well the photographs of an object were placed."""

    key: str
    share: float  # of its photographs that have a camera
    error: float  # mean reprojection error, pixels
    degrees: float  # mean rotation error, after the similarity between both worlds
    centres: float  # mean error of the cameras' centres, in lengths of their mean distance


def placed(taken: Captures) -> list[Placed]:
    """Cameras that were found against the true ones of the drawing. An object without a model has share 0 and is NaN
    elsewhere."""
    found = []
    for scene in scan(taken.folder, "photographs"):
        true = taken.cameras[scene.key]
        try:
            sequence = read(scene, Options(resolution=32))
        except DataError:
            found.append(Placed(scene.key, 0.0, *[float("nan")] * 3))
            continue
        about = sequence.attributes["structure_from_motion"]
        left_out = sequence.attributes.get("left_out", {})
        kept = [view for view in range(len(true)) if f"{view:03d}.png" not in left_out]
        degrees, centres = camera_errors(sequence.cameras, true[kept])
        found.append(
            Placed(
                scene.key, len(kept) / len(true), float(about["error"]), float(degrees.mean()), float(centres.mean())
            )
        )
    return found


QUANTITIES = {"placed_share": "share", "reprojection_px": "error", "rotation_error_deg": "degrees"}


def placed_rows(found: list[Placed]) -> dict[str, Mean]:
    """{metric of a report's row: its mean over objects}; objects without a model count for the share alone."""
    return {
        metric: mean_over_objects(torch.tensor([getattr(one, field) for one in found], dtype=torch.float64))
        for metric, field in QUANTITIES.items()
    }
