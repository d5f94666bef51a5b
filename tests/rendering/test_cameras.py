"""Cameras: rays against projection, against hand-made cases, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.rendering.cameras import CameraError, Cameras, intrinsics_from_fov, look_at, sample_orbit
from vader.settings.experiment import DataConfig


def random_cameras(n: int = 3, height: int = 5, width: int = 7, seed: int = 0) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    eyes = torch.randn(n, 3, generator=generator, dtype=torch.float64) * 2
    intrinsics = torch.tensor([[6.0, 0.3, 3.1], [0.0, 5.0, 2.2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    return Cameras(look_at(eyes, target), intrinsics.expand(n, 3, 3).clone(), height, width)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 6), width=st.integers(1, 6))
def test_points_on_rays_project_to_their_pixel_centres(seed, height, width):
    cameras = random_cameras(2, height, width, seed)
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (2, height * width, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(2, height * width, dtype=torch.float64))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    expected = torch.stack([x, y], dim=-1).reshape(-1, 2).double()  # row-major, (x, y)
    for view in range(2):
        points = origins[view] + 1.7 * directions[view]
        torch.testing.assert_close(cameras[view].project(points)[0], expected)


def test_central_ray_of_a_camera_on_the_z_axis():
    cameras = Cameras(look_at(torch.tensor([[0.0, 0.0, 3.0]])), intrinsics_from_fov(60, 3, 3)[None], 3, 3)
    origins, directions = cameras.rays()
    torch.testing.assert_close(origins[0, 4], torch.tensor([0.0, 0.0, 3.0]))
    torch.testing.assert_close(directions[0, 4], torch.tensor([0.0, 0.0, -1.0]))
    # Seen from +z with y up, the top-left pixel looks to -x and up; its offset is one pixel of 2 tan(30 deg) / 3.
    pixel = 2 * math.tan(math.radians(30)) / 3
    top_left = torch.nn.functional.normalize(torch.tensor([-pixel, pixel, -1.0]), dim=0)
    torch.testing.assert_close(directions[0, 0], top_left)


def test_world_up_is_up_in_the_picture():
    cameras = sample_orbit(8, DataConfig(name="any", resolution=32), torch.Generator().manual_seed(1))
    base, top = cameras.project(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])).unbind(1)
    assert (top[:, 1] < base[:, 1]).all()  # pixel rows count downwards
    torch.testing.assert_close(base, torch.full((8, 2), 16.0))


def test_orbit_keeps_its_distance_and_elevations():
    config = DataConfig(name="any", resolution=8)
    cameras = sample_orbit(200, config, torch.Generator().manual_seed(2)).validate("orbit")
    centres = cameras.centres()
    torch.testing.assert_close(centres.norm(dim=-1), torch.full((200,), float(config.camera_distance)))
    elevation = torch.rad2deg(torch.asin(centres[:, 1] / config.camera_distance))
    low, high = config.elevation
    assert low - 1e-3 <= elevation.min() and elevation.max() <= high + 1e-3
    assert elevation.max() - elevation.min() > 0.8 * (high - low)
    # Every octant of azimuth gets its share: 200 draws leave none with fewer than 10.
    octants = torch.histc(torch.atan2(centres[:, 0], centres[:, 2]), 8, -math.pi, math.pi)
    assert octants.min() >= 10


def test_indexing_keeps_a_batch_axis():
    cameras = random_cameras(3)
    assert len(cameras) == 3 and len(cameras[1]) == 1 and len(cameras[-1]) == 1 and len(cameras[1:]) == 2
    torch.testing.assert_close(cameras[-1].world_to_camera, cameras.world_to_camera[2:])
    torch.testing.assert_close(cameras[torch.tensor([2, 0])].intrinsics, cameras.intrinsics[[2, 0]])


def broken(field: str, index: tuple, value: float) -> Cameras:
    cameras = random_cameras(3)
    getattr(cameras, field)[index] = value
    return cameras


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (broken("intrinsics", (1, 0, 0), -6.0), "chair, view 1: focal lengths are -6 and 5 pixels, expected positive"),
        (broken("intrinsics", (2, 1, 1), 0.0), "chair, view 2: focal lengths are 6 and 0 pixels, expected positive"),
        (broken("intrinsics", (0, 0, 2), math.nan), "chair, view 0: intrinsics has a NaN"),
        (broken("world_to_camera", (1, 2, 3), math.inf), "chair, view 1: world_to_camera has a NaN or infinite entry"),
        (
            broken("world_to_camera", (1, slice(None), 0), 0.0),
            r"chair, view 1: world_to_camera\[:, :3\] is not a rotation",
        ),
        (Cameras(torch.zeros(2, 4, 4), torch.zeros(2, 3, 3), 4, 4), r"world_to_camera has shape \(2, 4, 4\), expected"),
        (Cameras(torch.zeros(2, 3, 4), torch.zeros(1, 3, 3), 4, 4), r"intrinsics has shape \(1, 3, 3\), expected"),
    ],
)
def test_a_bad_camera_is_named(cameras, message):
    with pytest.raises(CameraError, match=message):
        cameras.validate("chair")


def test_a_mirrored_camera_is_refused():
    cameras = random_cameras(1)
    cameras.world_to_camera[0, 0] *= -1
    with pytest.raises(CameraError, match="det = -1.000"):
        cameras.validate("chair")


def test_looking_straight_down_is_refused():
    with pytest.raises(CameraError, match="straight up or down"):
        look_at(torch.tensor([[0.0, 2.0, 0.0]]))
