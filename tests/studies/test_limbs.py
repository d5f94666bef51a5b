"""The study of limbs: each experiment on a tiny scene, and a planted fault that it sees."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch

from vader.__main__ import main
from vader.articulation.poses import turn_about
from vader.data.sets.puppets import MOTIONS
from vader.settings.checks import ConfigError
from vader.store.files import read_json
from vader.studies.limbs import basins, explanations, gradient, keypoints, predictor, scene, study
from vader.studies.limbs.page import page
from vader.studies.limbs.scene import ACROSS, LIMB, TOWARDS, Shape, make_scene, measure, poses_of, signed_turn

pytest.importorskip("pytorch3d")
REPORTS = Path(__file__).parents[2] / "reports"
ANGLES = torch.tensor([-30.0, 10.0, 35.0])


@pytest.fixture(scope="module")
def tiny():
    return {axis: make_scene(Shape(axis, 0.12), 3, 24, 20, ANGLES) for axis in (ACROSS, TOWARDS)}


class Reversed(torch.autograd.Function):
    """The identity with a gradient of the wrong sign."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient


def wrong_way(points, vectors, shifts):
    return turn_about(points, Reversed.apply(vectors), shifts)


# -------------------------------------------------------------------------------------------------- the scene


@pytest.mark.parametrize("axis", [ACROSS, TOWARDS])
def test_the_true_model_shows_the_true_pictures(tiny, axis):
    true = tiny[axis]
    found = measure(true, true.volume, true.poses)
    assert found["psnr"] > 20 and found["ari"] > 0.85 and found["share"] > 0.9
    assert found["correlation"] > 0.999 and found["turn_error_deg"] < 4
    still = measure(true, true.volume, poses_of(axis, 0 * ANGLES))
    assert still["correlation"] == still["share"] == 0 and still["loss"] > found["loss"]


def test_turns_to_the_wrong_side_are_seen_by_the_measure(tiny):
    found = measure(tiny[ACROSS], tiny[ACROSS].volume, poses_of(ACROSS, -ANGLES))
    assert found["correlation"] < -0.9 and found["share"] < -0.5 and found["turn_error_deg"] > 30


@pytest.mark.parametrize("axis", [ACROSS, TOWARDS])
def test_a_turn_is_read_from_a_rotation_of_any_scale(axis):
    rotations = poses_of(axis, ANGLES)[:, LIMB, :, :3]
    assert signed_turn(7 * rotations, axis).tolist() == pytest.approx(ANGLES.tolist(), abs=1e-3)


def test_labels_are_of_the_part_in_front(tiny):
    labels, masks = tiny[ACROSS].labels, tiny[ACROSS].masks
    assert set(labels.unique().tolist()) == {0, 1, 255}
    assert ((labels != 255) == (masks > 0.5)).all()
    columns = (labels == LIMB).flatten(0, 1).float().mean(0)
    assert columns[:12].sum() == 0 < columns[14:].sum(), "the limb points to the right"


# ---------------------------------------------------------------------------------------------------- gradients


def test_gradients_are_those_of_finite_differences(tiny):
    found = gradient.check_gradients(tiny[ACROSS], directions=1)
    assert len(found) == 4
    assert max(share for places in found.values() for share in places.values()) < 2e-3


def test_a_gradient_of_the_wrong_sign_is_found(tiny, monkeypatch):
    monkeypatch.setattr(gradient, "turn_about", wrong_way)
    found = gradient.check_gradients(tiny[ACROSS], directions=1)
    assert min(found["turn and shift"].values()) > 0.1 > max(found["2D keypoints, EPnP"].values())


# ------------------------------------------------------------------------------------------------------- basins


def curve_of(function, truth: float) -> basins.Curve:
    angles = [float(a) for a in range(-180, 180, 10)]
    return basins.Curve(truth, tuple(angles), tuple(function(math.radians(a)) for a in angles))


def test_wells_of_known_curves():
    one = curve_of(lambda a: 1 - math.cos(a - math.radians(30)), 30.0)
    assert one.well() == (180, 180) and one.minima() == 1 and one.off() == 0
    assert one.at(-30) == pytest.approx(0.5) and one.at(30) == 0
    two = curve_of(lambda a: (math.cos(a) - math.cos(math.radians(30))) ** 2, 30.0)
    assert two.minima() == 2 and two.at(-30) == pytest.approx(0, abs=1e-9)
    assert two.well() == (30, 150), "down to the hill at 0, up to that at 180"


def test_pictures_tell_more_of_a_turn_across_them_than_of_one_towards_the_camera(tiny):
    curves = {axis: basins.loss_curve(tiny[axis], 2, 24) for axis in (ACROSS, TOWARDS)}
    told = {axis: curve.at(0) - curve.at(35) for axis, curve in curves.items()}
    assert told[ACROSS] > 5 * abs(told[TOWARDS]) > 0
    assert curves[ACROSS].off() < 10 and min(curves[ACROSS].well()) > 30


def test_limbs_come_back_and_stay_away_where_the_gradient_has_the_wrong_sign(tiny, monkeypatch):
    frames = torch.tensor([0, 2])
    monkeypatch.setattr(basins, "BACK", 10.0)  # pixels and voxels are coarse here
    assert basins.returned(tiny[ACROSS], frames, (20.0,), 12, True) == {20.0: 1.0}
    right = basins.returned(tiny[ACROSS], frames, (20.0,), 12, False)
    monkeypatch.setattr(basins, "turn_about", wrong_way)
    assert basins.returned(tiny[ACROSS], frames, (20.0,), 12, False)[20.0] < right[20.0]


# ------------------------------------------------------------------------------------------------- explanations


def test_arms_start_where_they_say(tiny):
    true = tiny[ACROSS]
    course = explanations.fit(true, explanations.ARMS[explanations.ALL_TRUE], (0,))
    torch.testing.assert_close(course.poses, true.poses, atol=1e-4, rtol=0)
    torch.testing.assert_close(course.volume[:, 0], true.volume[:, 0], atol=0.01, rtol=1e-3)
    assert course.scores[0]["correlation"] > 0.999
    for name in (explanations.ONE, explanations.CHANCES):
        start = explanations.fit(true, explanations.ARMS[name], (0,))
        assert (start.poses[..., :3] - torch.eye(3)).abs().max() < 1e-6 and start.scores[0]["correlation"] == 0


def test_poses_that_are_given_stay_and_others_move(tiny):
    true = tiny[ACROSS]
    given = explanations.fit(true, explanations.ARMS[explanations.GIVEN], (2,))
    torch.testing.assert_close(given.poses, true.poses, atol=1e-4, rtol=0)
    found = explanations.fit_all(true, (explanations.ONE, explanations.STAGED), (0, 2))
    one, staged = found.values()
    assert (staged.poses - true.poses[:1, :1]).abs().max() > 0.01
    assert staged.scores[0]["psnr"] == pytest.approx(one.scores[2]["psnr"], abs=0.1), "goes on from its picture"
    assert one.volume.shape[1] == 5 and staged.volume.shape[1] == 6


def test_the_true_volume_pulls_limbs_to_the_truth_unless_the_gradient_has_the_wrong_sign(tiny, monkeypatch):
    true = tiny[ACROSS]
    found = explanations.first_pull(true, true.volume)
    assert found["correlation"] > 0.8 and found["pull"] > 0
    empty = explanations.first_pull(true, 0 * true.volume)
    assert empty == {"correlation": 0.0, "pull": 0.0}
    monkeypatch.setattr(explanations, "turn_about", wrong_way)
    assert explanations.first_pull(true, true.volume)["correlation"] < -0.8


# ---------------------------------------------------------------------------------------------------- keypoints


@pytest.mark.parametrize("per_axis", [3, 5])
def test_least_squares_reach_the_bound_and_epnp_only_where_it_is_little_strained(per_axis):
    count = per_axis**3
    for spread, noise, strained in ((8.0, 0.1, False), (1.0, 0.25, True)):
        bound = keypoints.predicted_error(noise, spread, count)
        found = keypoints.measured_errors(spread, noise, per_axis, 32, 200)
        assert found["least squares"] == pytest.approx(bound, rel=0.15)
        assert (keypoints.epnp_strain(noise, spread, count, 32) > 0.2) is strained
        assert found["EPnP"] > 5 * bound if strained else found["EPnP"] < 1.5 * bound


def test_more_noise_than_said_is_seen():
    found = keypoints.measured_errors(4.0, 0.5, 3, 32, 200)["least squares"]
    assert found > 1.5 * keypoints.predicted_error(0.25, 4.0, 27)


def test_bounds_of_single_axes_add_up():
    across, towards, whole = (keypoints.predicted_error(0.3, 2.0, 27, axis) for axis in (ACROSS, TOWARDS, None))
    assert whole**2 == pytest.approx(across**2 + 2 * towards**2)


def test_an_independent_error_lowers_the_correlation_as_expected():
    generator = torch.Generator().manual_seed(0)
    turns, errors = torch.randn(2, 20_000, generator=generator) * torch.tensor([[4.0], [3.0]])
    assert scene.correlation(turns, turns + errors) == pytest.approx(keypoints.expected_correlation(4, 3), abs=0.01)


@pytest.mark.parametrize(("amplitudes", "largest"), [((0, 0, 10), "across_deg"), ((10, 0, 0), "towards_deg")])
def test_turns_of_puppets_are_split_by_axis(monkeypatch, amplitudes, largest):
    still = (0, 0, 0)
    planted = {name: (parent, still, amplitudes if "arm" in name else still) for name, (parent, *_) in
               MOTIONS["puppets"].items()}  # fmt: skip
    monkeypatch.setitem(MOTIONS, "puppets", planted)
    found = dataclasses.asdict(keypoints.limb_facts("puppets", 1))
    turns = {name: value for name, value in found.items() if name.endswith("_deg")}
    assert max(turns, key=turns.get) == largest and turns[largest] > 1
    assert sum(turns.values()) == pytest.approx(turns[largest], abs=0.2)
    assert found["length_px"] > found["width_px"] > 2


def test_waving_puppets_move_further_across_the_picture():
    still, waving = (keypoints.limb_facts(name, 2) for name in ("puppets", "puppets_waving"))
    assert waving.across_deg > 2 * still.across_deg and waving.towards_deg < still.towards_deg
    assert waving.end_px > 1.5 * still.end_px and waving.limbs == still.limbs


# ---------------------------------------------------------------------------------------------------- predictor


def test_noise_that_a_pose_explains_is_told_from_noise_that_none_does():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(27, 3, generator=generator)
    posed = points @ torch.randn(6, 3, 2, generator=generator) + torch.randn(6, 1, 2, generator=generator)
    assert predictor._shared(posed, points) == pytest.approx(1, abs=1e-5)
    single = torch.randn(500, 27, 2, generator=generator)
    assert predictor._shared(single, points) == pytest.approx(4 / 27, abs=0.02)


def test_a_network_that_is_right_reads_the_turns_and_one_that_is_wrong_does_not(monkeypatch):
    shape = Shape(ACROSS, 0.12)
    model = predictor.taught(shape, 16, steps=0)
    angles = shape.swing * (2 * (torch.arange(predictor.KEPT) + 0.5) / predictor.KEPT - 1)
    for sign in (1, -1):
        seen = model.project(poses_of(ACROSS, sign * angles)).detach()
        monkeypatch.setattr(model.predictor, "forward", lambda images, seen=seen: seen)
        found = predictor.read(model, shape, 16)
        assert all(value == pytest.approx(sign, abs=0.01) for value in found.correlation.values())
        assert (found.noise_px < 1e-4) is (sign == 1) and model.refine_steps == 6


# --------------------------------------------------------------------------------------- the command and its page


def test_the_command_writes_all_experiments_and_their_page(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))
    assert main(["study", "limbs", "--profile", "smoke"]) == 0
    found = read_json(tmp_path / "limbs-smoke.json")
    assert set(study.EXPERIMENTS) <= set(found) and found["environment"]["python"]
    assert (tmp_path / "limbs.md").read_text(encoding="utf-8") == page(found)
    with pytest.raises(ConfigError, match="profile is 'gpu'"):
        study.write("gpu")


def test_the_committed_page_is_that_of_the_committed_numbers():
    found = read_json(REPORTS / "limbs-laptop.json")
    assert (REPORTS / "limbs.md").read_text(encoding="utf-8") == page(found)


def test_what_the_notebook_and_the_departures_say_of_limbs_is_on_the_page():
    shown = (REPORTS / "limbs.md").read_text(encoding="utf-8")
    cells = json.loads((REPORTS.parent / "notebooks" / "parts.ipynb").read_text(encoding="utf-8"))["cells"]
    told = ["".join(cell["source"]) for cell in cells if "vader study limbs" in "".join(cell["source"])]
    told += [x for x in (REPORTS / "departures.md").read_text(encoding="utf-8").splitlines() if "`limbs.md`" in x]
    numbers = [n for text in told for n in re.findall(r"\d+\.\d+", text)]
    assert len(told) >= 2 and len(numbers) >= 6
    assert [n for n in numbers if not re.search(rf"(?<![\d.]){re.escape(n)}(?!\d)", shown)] == []
