"""Lens models: against COLMAP's own, their inverses, and pictures of a pattern."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.data.formats.shared.lenses import Lens, Unwarper

K = np.array([[70.0, 0, 41], [0, 72.0, 30.5], [0, 0, 1]])
LENSES = {
    "SIMPLE_RADIAL": ([500, 320, 240, -0.1], Lens((-0.1,))),
    "RADIAL": ([500, 320, 240, -0.1, 0.02], Lens((-0.1, 0.02))),
    "OPENCV": ([500, 480, 320, 240, 0.1, -0.05, 0.001, 0.002], Lens((0.1, -0.05), (0.001, 0.002))),
    "FULL_OPENCV": (
        [500, 480, 320, 240, 0.1, -0.05, 0.001, 0.002, 0.01, 0.02, 0.03, 0.01],
        Lens((0.1, -0.05, 0.01, 0.02, 0.03, 0.01), (0.001, 0.002)),
    ),
    "SIMPLE_RADIAL_FISHEYE": ([500, 320, 240, 0.1], Lens((0.1,), fisheye=True)),
    "RADIAL_FISHEYE": ([500, 320, 240, 0.1, -0.05], Lens((0.1, -0.05), fisheye=True)),
    "OPENCV_FISHEYE": ([500, 480, 320, 240, 0.1, -0.05, 0.01, 0.002], Lens((0.1, -0.05, 0.01, 0.002), fisheye=True)),
}


@pytest.mark.parametrize("model", LENSES)
def test_lenses_are_those_of_colmap(model):
    pycolmap = pytest.importorskip("pycolmap", reason="COLMAP's own lens models")
    parameters, lens = LENSES[model]
    camera = pycolmap.Camera(model=model, width=640, height=480, params=parameters)
    ideal = np.random.default_rng(0).uniform(-0.6, 0.6, (200, 2))
    focal = parameters[:2] if "OPENCV" in model else [parameters[0]] * 2
    pixels = lens.distort(ideal) * focal + (320, 240)
    np.testing.assert_allclose(pixels, camera.img_from_cam(np.c_[ideal, np.ones(200)]), atol=1e-9)


@pytest.mark.parametrize("model", LENSES)
def test_the_inverse_undoes_the_lens(model):
    ideal = np.random.default_rng(1).uniform(-0.8, 0.8, (300, 2))
    lens = LENSES[model][1]
    np.testing.assert_allclose(lens.undistort(lens.distort(ideal)), ideal, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(*[st.floats(-0.25, 0.25)] * 2, *[st.floats(-0.005, 0.005)] * 2, st.booleans(), st.integers(0, 2**31))
def test_any_mild_lens_is_invertible_inside_its_reach(k1, k2, p1, p2, fisheye, seed):
    lens = Lens((k1, k2), (0.0, 0.0) if fisheye else (p1, p2), fisheye)
    radius = min(0.9 * lens.reach(), 1.0)
    points = np.random.default_rng(seed).normal(size=(50, 2))
    points *= radius * np.random.default_rng(seed).uniform(0, 0.95, (50, 1)) / np.linalg.norm(points, axis=1)[:, None]
    np.testing.assert_allclose(lens.undistort(lens.distort(points)), points, atol=1e-7)


def test_beyond_the_fold_there_is_no_inverse():
    lens = Lens((-0.3,))  # r (1 - 0.3 r^2) is largest, 0.7027, at r = 1.054
    assert lens.reach() == pytest.approx(np.sqrt(1 / 0.9), abs=2e-3)
    assert np.isnan(lens.undistort(np.array([[0.75, 0.0]]))).all()
    assert lens.undistort(np.array([[0.70, 0.0]]))[0, 0] < 1.0545


def smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A pattern of ideal coordinates, 0 to 255."""
    return 127.5 + 60 * np.sin(6 * x + 1) + 60 * np.cos(5 * y + 2 * x)


@pytest.mark.parametrize("lens", [Lens((-0.2, 0.05), (0.003, -0.002)), Lens((0.15,)), Lens((0.05,), fisheye=True)])
def test_a_picture_through_a_lens_becomes_that_of_a_pinhole(lens):
    h, w = 60, 80
    x, y = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    inverse = np.linalg.inv(K)
    seen = np.stack([x, y, np.ones_like(x)], -1) @ inverse.T
    ideal = lens.undistort(seen[..., :2])
    distorted = np.nan_to_num(smooth(ideal[..., 0], ideal[..., 1])).round().astype(np.uint8)
    found = Unwarper.of(lens, K, h, w).apply(distorted).astype(float)
    inner = np.s_[8:-8, 8:-8]
    error = np.abs(found - smooth(seen[..., 0], seen[..., 1]))
    known = Unwarper.of(lens, K, h, w).apply(np.full((h, w), 255, np.uint8)) == 255
    assert known[inner].mean() > 0.8 and error[known].max() < 3
    assert np.abs(distorted - smooth(seen[..., 0], seen[..., 1]))[inner].max() > 6  # it did distort


def test_a_pinhole_changes_nothing_and_ghosts_do_not_come_back():
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    assert (Unwarper.of(Lens(), K, 60, 80).apply(picture) == picture).all() and Lens((0.0, 0.0)).ideal
    wide = np.array([[20.0, 0, 40], [0, 20.0, 30], [0, 0, 1]])  # r up to 2.5, fold at 1.054
    found = Unwarper.of(Lens((-0.3,)), wide, 60, 80).apply(np.full((60, 80), 255, np.uint8))
    assert found[30, 40] == 255 and (found[:5] == 0).all() and (found[:, :10] == 0).all()
