"""Shapes: every factor shows, chairs and tables stand as furniture does, and objects look different."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vader.data.meshes.raycast import mesh, render
from vader.data.synthetic.factors import CONTINUOUS, DISCRETE, draw
from vader.data.synthetic.shapes import build
from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at

CATEGORIES = ("chairs", "tables")


def signature(category: str, factors) -> list:
    return [(p.kind, p.frame.tolist(), p.taper, p.material) for p in build(category, factors)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_continuous_factor_shows_in_some_object(category):
    objects = [draw(category, 0, i) for i in range(60)]
    plain = [signature(category, f) for f in objects]
    for name, (low, high) in CONTINUOUS[category].items():
        assert any(
            signature(category, f | {name: low + high - f[name]}) != s for f, s in zip(objects, plain, strict=True)
        ), name


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_pair_of_options_of_a_discrete_factor_shows_in_some_object(category):
    objects = [draw(category, 0, i) for i in range(300)]
    for name, options in DISCRETE[category].items():
        for option in set(options):
            having = [f for f in objects if f[name] == option][:25]
            for other in set(options) - {option}:
                assert any(_differ(category, f, {name: other}) for f in having), f"{name}: {option}, {other}"


def _differ(category: str, factors, change) -> bool:
    factors = factors | {"bars": factors.get("bars") or 3}  # a solid back has none, but its replacement may need some
    return signature(category, factors | change) != signature(category, factors)


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_stand_on_the_floor_and_face_the_front(category):
    for index in range(14):
        solids = build(category, draw(category, 1, index))
        points = {part: mesh([p for p in solids if p.part == part]).vertices for part in {p.part for p in solids}}
        floor = min(p[:, 1].min() for p in points.values())
        standing = points["leg"] if "leg" in points else points["base"]
        assert standing[:, 1].min() == pytest.approx(floor, abs=0.01)
        everything = np.concatenate(list(points.values()))
        x_low, x_high = everything[:, 0].min(), everything[:, 0].max()
        assert x_low == pytest.approx(-x_high, abs=0.02)  # left and right alike
        if category == "chairs":  # the back rises above the seat, behind it
            assert points["back"][:, 1].max() > points["seat"][:, 1].max() + 0.3
            assert points["back"][:, 2].mean() < points["seat"][:, 2].mean() - 0.2
        else:
            assert max(points, key=lambda part: points[part][:, 1].max()) in ("top", "inlay")


@pytest.mark.parametrize("category", CATEGORIES)
def test_nothing_floats(category):
    """All solids of an object hang together: every one touches another, and all form one group."""
    for index in range(14):
        solids = build(category, draw(category, 4, index))
        boxes = [mesh([p], spacing=0.04).vertices for p in solids]
        group, waiting = {0}, set(range(1, len(solids)))
        while waiting:
            near = {j for j in waiting if any(_touch(solids[i], boxes[i], solids[j], boxes[j]) for i in group)}
            assert near, f"{category} {index}: {sorted({solids[j].part for j in waiting})} touch nothing"
            group |= near
            waiting -= near


def _touch(p, p_points, q, q_points) -> bool:
    """Some surface point of one lies in the other, grown by 5 per cent (at least a little)."""
    return _within(p, q_points) or _within(q, p_points)


def _within(p, points) -> bool:
    local = (points - p.frame[:, 3]) @ np.linalg.inv(p.frame[:, :3]).T
    slack = 1 + 0.012 / np.linalg.norm(p.frame[:, :3], axis=0)
    x, y, z = (local / slack).T
    if p.kind == "ball":
        return bool((x**2 + y**2 + z**2 <= 1).any())
    wx, wz = (1 - (1 - k) * (y + 1) / 2 for k in p.taper)
    section = (np.abs(x) <= wx) & (np.abs(z) <= wz) if p.kind == "box" else x**2 + z**2 <= wx**2
    return bool((section & (np.abs(y) <= 1)).any())


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_are_visibly_different(category):
    """Of 50 objects from one view, the two most alike differ by more than 15 levels RMS, background included."""
    eye = torch.tensor([[2.0, 1.6, 3.0]])
    camera = Cameras(look_at(eye), intrinsics_from_fov(30.0, 20, 20)[None], 20, 20)
    images, masks = zip(*(render(build(category, draw(category, 0, i)), camera, 1) for i in range(50)), strict=True)
    for values in (torch.cat(images), torch.cat(masks)):
        values = values.flatten(1).float()
        distance = torch.cdist(values, values) / values.shape[1] ** 0.5 + 1e3 * torch.eye(50)
        assert distance.min() > 15
