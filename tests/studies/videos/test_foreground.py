"""The study of foreground supervision: equal but for one weight, scored by pairs of seeds, found again in the store."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.tiny import tiny_articulated, tiny_experiment, toys
from vader.commands import main as vader
from vader.commands import study
from vader.evaluation.poses import VideoScores
from vader.settings.checks import ConfigError
from vader.settings.profiles import differences
from vader.studies.videos import foreground
from vader.studies.videos.foreground import Outcome, gain, measure, over_seeds, picture_rows, variants


def outcome(variant: str, seed: int, *pairs: tuple[float, float]) -> Outcome:
    """Of videos with these IoU and normal errors."""
    rest = dict(psnr=0.0, psnr_foreground=0.0, ari=0.0, root_rotation_deg=0.0, root_translation=0.0)
    rest |= dict(part_rotation_deg=(), part_translation=(), part_with_root_rotation_deg=())
    scores = (VideoScores(str(k), iou, normals_deg=n, **rest) for k, (iou, n) in enumerate(pairs))
    return Outcome(variant, seed, None, tuple(scores))


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_variants_differ_in_one_weight(profile):
    config = foreground.base(profile, "puppets")
    assert config.autodecoder.lbs_channels == 1 and config.articulation.rigid_images == 0
    assert config.reconstruction.images_seen == foreground.IMAGES[profile] > 2 * config.articulation.neutral_images
    found = variants(config)
    assert found["with"] == config
    weight = config.reconstruction.foreground_weight
    assert differences(found["without"], config) == {"reconstruction.foreground_weight": (0.0, weight)}
    assert weight > 0


def test_a_study_without_a_question_is_refused():
    with pytest.raises(ConfigError, match="lbs_channels is 0: the study needs"):
        variants(tiny_experiment())
    with pytest.raises(ConfigError, match="procedural_chairs has no poses to learn, expected one of puppets"):
        foreground.base("smoke", "procedural_chairs")
    with pytest.raises(ConfigError, match="foreground_weight is 0: the study needs"):
        variants(tiny_articulated(reconstruction=dict(foreground_weight=0.0)))


def test_gains_are_paired_by_seed_and_point_to_the_better():
    """Seeds differ by far more than the variants do: only pairs show it. t of 2 degrees of freedom is 4.303."""
    outcomes = [outcome("with", s, (0.5 + s / 10 + g, 40.0 - 5 * s - 2)) for s, g in ((2, 0.04), (0, 0.02), (1, 0.03))]
    outcomes += [outcome("without", s, (0.5 + s / 10, 40.0 - 5 * s)) for s in (1, 2, 0)]
    assert over_seeds(outcomes, "without", "iou") == [0.5, 0.6, 0.7]
    verdict, evidence = gain(outcomes, "iou")
    reach = 4.303 * 0.01 / 3**0.5
    assert (
        verdict == "holds" and f"better by 0.03 (95 % interval over 3 training seeds {0.03 - reach:.3g} to " in evidence
    )
    verdict, evidence = gain(outcomes, "normals_deg")
    assert verdict == "holds" and "better by 2 degrees" in evidence and "do not show" not in evidence
    swapped = [dataclasses.replace(o, variant={"with": "without", "without": "with"}[o.variant]) for o in outcomes]
    assert gain(swapped, "iou")[0] == gain(swapped, "normals_deg")[0] == "fails"


def test_subjects_that_are_not_seen_are_counted_and_decide_nothing():
    nan = math.nan
    seen = [outcome("with", s, (0.9, 20.0), (0.8, 30.0 + s)) for s in (0, 1)]
    partly = [outcome("without", s, (0.1, 60.0), (0.0, nan)) for s in (0, 1)]
    assert partly[0].mean("normals_deg") == 60.0 and partly[0].mean("iou") == 0.05 and partly[0].unseen == 1
    assert "; 2 of 8 videos, all trainings together, do not show their subject" in gain(seen + partly, "iou")[1]
    nothing = [outcome("without", s, (0.0, nan), (0.0, nan)) for s in (0, 1)]
    assert gain(seen + nothing, "normals_deg")[0] == "inconclusive"
    assert gain(seen + nothing, "iou")[0] == "holds"


def test_both_variants_are_trained_once_and_pictured_beside_the_truth(tmp_path, monkeypatch):
    pytest.importorskip("pytorch3d")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path))
    config = tiny_articulated(reconstruction=dict(images_seen=16), articulation=dict(rigid_images=16, region_images=8))
    data, truths = toys(config)
    outcomes = measure(config, data, truths.get, [3], "cpu")
    assert [(o.variant, o.seed, len(o.scores)) for o in outcomes] == [("with", 3, 4), ("without", 3, 4)]
    runs = [o.animator.run for o in outcomes]
    assert runs[0].digest != runs[1].digest
    assert len([f for f in tmp_path.iterdir() if f.is_dir()]) == 4, "one part first, then two, of each variant"
    again = measure(config, data, truths.get, [3], "cpu")
    assert [o.animator.run.record for o in again] == [run.record for run in runs]
    assert [o.mean("iou") for o in again] == [o.mean("iou") for o in outcomes]

    rows = picture_rows(outcomes, data[1], truths["toy-1"], [6, 7])
    assert list(rows) == ["truth", "with", "without"] and all(row.shape == (6, 16, 16, 3) for row in rows.values())
    assert all(0 <= row.min() and row.max() <= 1 for row in rows.values())
    torch.testing.assert_close(rows["truth"][2:4, ..., 0], data[1].masks[6:].float() / 255)
    clip = outcomes[1].animator.reconstruct("toy-1")
    torch.testing.assert_close(rows["without"][2:4, ..., 0], clip.occupancy[6:], atol=0.003, rtol=0)
    torch.testing.assert_close(rows["without"][:2], clip.colour[6:], atol=0.003, rtol=0)


def test_the_command_trains_what_the_study_needs(monkeypatch, capsys):
    from types import SimpleNamespace

    asked = []

    def run(config, data, device, max_seconds):
        asked.append((config.seed, config.reconstruction.foreground_weight, max_seconds))
        return SimpleNamespace(folder="there")

    monkeypatch.setattr(study, "autodecoder_run", run)
    monkeypatch.setattr(study, "prepare", lambda config: config)
    assert vader(["study", "foreground", "--profile", "smoke", "--seed", "5", "--max-seconds", "7"]) == 0
    assert asked == [(5, 1.0, 7.0), (5, 0.0, 7.0), (6, 1.0, 7.0), (6, 0.0, 7.0)]
    assert capsys.readouterr().out.split() == ["there"] * 4
