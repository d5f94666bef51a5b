"""The experiments one after the other, and what they write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...settings.checks import require
from ...store.files import write_file, write_json
from ...store.paths import reports_dir
from ...store.provenance import environment
from .basins import loss_curve, returned
from .explanations import ALL_TRUE, CHANCES, GIVEN, ONE, STAGED, Course, first_pull, fit_all
from .gradient import check_gradients
from .keypoints import epnp_strain, limb_facts, measured_errors, predicted_error
from .page import page
from .predictor import SOLVERS, read, released, taught
from .scene import ACROSS, TOWARDS, Shape, make_scene


@dataclass(frozen=True)
class LimbStudy:
    """Sizes of the experiments."""

    resolution: int = 32
    voxels: int = 24
    frames: int = 5
    directions: int = 3  # of finite differences
    half_widths: tuple[float, ...] = (0.04, 0.08, 0.16)
    curve_angles: int = 72
    errors: tuple[float, ...] = (10.0, 30.0, 60.0)
    descent_steps: int = 50
    at: tuple[int, ...] = (0, 20, 100)  # steps at which arms are measured
    taught_steps: int = 120
    released_at: tuple[int, ...] = (0, 5, 15)
    trials: int = 200
    spreads: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)  # of keypoints, pixels
    noises: tuple[float, ...] = (0.1, 0.25, 0.5)
    per_axis: tuple[int, ...] = (3, 5)
    puppets: int = 16
    seed: int = 0


STUDIES = {
    "smoke": LimbStudy(
        resolution=16, voxels=12, frames=3, directions=1, half_widths=(0.16,), curve_angles=12, errors=(10.0,),
        descent_steps=1, at=(0, 1), taught_steps=1, released_at=(0, 1), trials=4, spreads=(2.0, 8.0), noises=(0.1,),
        per_axis=(3,), puppets=1,
    ),
    "laptop": LimbStudy(),
}  # fmt: skip
# A swing of s degrees is a turn of s / sqrt(3), root mean square, where all angles are as frequent: 6 and 14 are what
# limbs of `puppets` do across the picture and towards the camera.
SCENES = {  # name -> the limb, and the arms that are trained on it
    "40° across the picture": (Shape(ACROSS, swing=40.0), (ONE, GIVEN, ALL_TRUE, CHANCES, STAGED)),
    "6° across the picture": (Shape(ACROSS, swing=6.0), (ONE, STAGED)),
    "14° towards the camera": (Shape(TOWARDS, swing=14.0), (ONE, GIVEN, STAGED)),
}
RELEASED = tuple(SCENES)[0]  # where everything goes on together


def _gradients(study: LimbStudy) -> dict[str, Any]:
    shape, _ = SCENES[RELEASED]
    return check_gradients(make_scene(shape, study.frames, study.resolution, study.voxels), study.directions)


def _basins(study: LimbStudy) -> list[dict[str, Any]]:
    rows = []
    for axis in (ACROSS, TOWARDS):
        for half_width in study.half_widths:
            shape = Shape(axis, half_width)
            scene = make_scene(shape, study.frames, study.resolution, study.voxels, torch.tensor([30.0, -20.0]))
            curve = loss_curve(scene, 0, study.curve_angles)
            row = {"axis": axis, "width_px": 2 * half_width / scene.pixel, "length_px": shape.length / scene.pixel}
            row |= {"truth_deg": curve.truth, "well_deg": curve.well(), "minima": curve.minima()}
            row["off_deg"] = curve.off()
            row["loss"] = [curve.at(angle) for angle in (curve.truth, 0.0, -curve.truth)]
            if half_width == study.half_widths[len(study.half_widths) // 2]:
                for name, alone in (("returned_angle", True), ("returned", False)):
                    back = returned(scene, torch.arange(2), study.errors, study.descent_steps, alone)
                    row[name] = {f"{error:g}": share for error, share in back.items()}
            rows.append(row)
    return rows


def _explanations(study: LimbStudy) -> dict[str, Any]:
    found = {}
    for name, (shape, arms) in SCENES.items():
        scene = make_scene(shape, study.frames, study.resolution, study.voxels)
        courses = fit_all(scene, arms, study.at, study.seed)
        pulls = {"true": first_pull(scene, scene.volume), "one part": first_pull(scene, courses[ONE].volume)}
        found[name] = {"arms": {arm: _scores(course) for arm, course in courses.items()}, "pull": pulls}
    return found


def _scores(course: Course) -> dict[str, dict[str, float]]:
    return {str(step): scores for step, scores in course.scores.items()}


def _predictor(study: LimbStudy) -> dict[str, Any]:
    found: dict[str, Any] = {"read": {}, "released": {}}
    for name, (shape, _) in SCENES.items():
        model = taught(shape, study.resolution, study.taught_steps, study.seed)
        found["read"][name] = dataclasses.asdict(read(model, shape, study.resolution))
        if name == RELEASED:
            scene = make_scene(shape, study.frames, study.resolution, study.voxels)
            told = {key: value.clone() for key, value in model.state_dict().items()}
            for solver, model.refine_steps in SOLVERS.items():
                model.load_state_dict(told)
                course = released(model, scene, study.released_at, study.seed)
                found["released"][solver] = _scores(course)
    return found


def _keypoints(study: LimbStudy) -> list[dict[str, float]]:
    rows = []
    for per_axis in study.per_axis:
        for spread in study.spreads:
            for noise in study.noises:
                count = per_axis**3
                row = {"keypoints": count, "spread_px": spread, "noise_px": noise}
                row["bound_deg"] = predicted_error(noise, spread, count)
                row["strain"] = epnp_strain(noise, spread, count, study.resolution)
                rows.append(row | measured_errors(spread, noise, per_axis, study.resolution, study.trials, study.seed))
    return rows


def _sets(study: LimbStudy) -> dict[str, Any]:
    return {name: dataclasses.asdict(limb_facts(name, study.puppets)) for name in ("puppets", "puppets_waving")}


EXPERIMENTS: dict[str, Callable[[LimbStudy], Any]] = {
    "gradients": _gradients,
    "basins": _basins,
    "explanations": _explanations,
    "predictor": _predictor,
    "keypoints": _keypoints,
    "sets": _sets,
}


def measured(study: LimbStudy) -> dict[str, Any]:
    """All experiments, as JSON values."""
    bar = tqdm(EXPERIMENTS.items(), desc="experiments", disable=None)
    return {"study": dataclasses.asdict(study), **{name: experiment(study) for name, experiment in bar}}


def write(profile: str) -> Path:
    """Measure, and write `limbs-PROFILE.json` and its page `limbs.md` beside the reports. Raises ConfigError for a
    profile without sizes."""
    require(profile in STUDIES, f"profile is {profile!r}, expected one of {set(STUDIES)}")
    content = {"profile": profile, "environment": environment("cpu"), **measured(STUDIES[profile])}
    write_json(reports_dir() / f"limbs-{profile}.json", content)
    file = reports_dir() / "limbs.md"
    write_file(file, page(content))
    return file
