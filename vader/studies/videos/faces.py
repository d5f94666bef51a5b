"""Faces of people's heads as stage 1 reconstructs them (Fig. 2): PSNR and LPIPS inside the face, mouths told apart.

    vader study faces --profile laptop

writes `reports/faces-people_heads-<profile>.json` for the run that is there. The notebook `figure2` has the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...data import SequenceSet
from ...data.sets import people
from ...evaluation.faces import OPEN, SIDE, Probe, face_scores, heldout_pictures, mouth_pixels, mouth_probe
from ...evaluation.metrics.images import LPIPS
from ...evaluation.pictures import Mean, mean_over_objects
from ...generation.animation import Animator, load_animator
from ...settings.checks import require
from ...settings.experiment import Experiment
from ...store.files import write_json
from ...store.paths import reports_dir
from ...store.provenance import environment
from .animation import number

NAME = "people_heads"  # the set whose faces are known
FACE, MOUTHS, CEILING = "reconstruction, face", "mouths, reconstruction", "mouths, true frames"  # variants of rows


def measured(animator: Animator, data: SequenceSet) -> dict[tuple[str, str], Mean | Probe]:
    """{(variant, metric): score} on the held-out frames of all training videos. Empty for sets without known faces.

    Raises ImportError without anny, which knows where faces are.
    """
    if animator.config.data.name != NAME:
        return {}
    perceptual, scores, pixels, jaws = LPIPS("alex"), [], ([], []), []
    for video in tqdm(list(data.split("train")), desc="faces", disable=None):
        truth, held = people.face_truth(animator.config.data, number(video.key)), slice(video.train_frames, None)
        pictures, boxes = heldout_pictures(animator, video), truth.boxes[held]
        scores.append(face_scores(pictures, video, boxes, perceptual))
        for seen, shown in zip(pixels, (pictures, video.frames[held].float() / 255), strict=True):
            seen.append(mouth_pixels(shown, boxes))
        jaws.append(truth.jaw[held])
    sharp, perceived = torch.tensor(scores).T
    return {
        (FACE, "psnr"): mean_over_objects(sharp),
        (FACE, "lpips"): mean_over_objects(perceived),
        (MOUTHS, "attribute_accuracy"): mouth_probe(pixels[0], jaws),
        (CEILING, "attribute_accuracy"): mouth_probe(pixels[1], jaws),
    }


def rows(found: dict[tuple[str, str], Mean | Probe]) -> Iterator[dict[str, Any]]:
    """Fields of a report's rows."""
    for (variant, metric), score in found.items():
        if isinstance(score, Probe):
            note = (
                f"balanced accuracy of a linear probe, cross-validated over people, 0.5 by chance; {score.opened} open "
                f"(jaw at {OPEN:g} or more) and {score.closed} closed mouths of held-out frames"
            )
            shown = {"value": score.accuracy, "n": score.opened + score.closed}
        else:
            what = f"crops of {SIDE} pixels" if metric == "lpips" else "the subject's pixels"
            note = f"inside the face, {what}, mean over videos"
            shown = {"value": score.value, "std": score.std, "n": score.n}
        shown |= {"low": score.low, "high": score.high, "note": note}
        yield {"variant": variant, "metric": metric} | shown | ({"features": "alexnet"} if metric == "lpips" else {})


def faces_file(profile: str) -> Path:
    return reports_dir() / f"faces-{NAME}-{profile}.json"


def measure_and_write(config: Experiment, data: SequenceSet, device: str = "auto") -> list[dict[str, Any]]:
    """`rows` of `measured`, kept in `faces_file`. Stage 1 is trained first where there is none."""
    require(config.data.name == NAME, f"data is {config.data.name}, expected {NAME}, whose faces are known")
    animator = load_animator(config, data, device)
    found = list(rows(measured(animator, data)))
    content = {"environment": environment(animator.device), "run": animator.run.digest, "rows": found}
    write_json(faces_file(config.profile), content)
    return found


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """Each row in words."""
    for row in found:
        interval = f"{row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        yield f"{row['variant']}, {row['metric']}: {interval}, {row['note']}"
