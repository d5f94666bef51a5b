"""Cameras of other tools: round trips, the other tools' own projections, and pictures."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from vader.data.formats.pytorch3d_cameras import from_pytorch3d, to_pytorch3d
from vader.data.formats.transforms import from_transforms, to_transforms
from vader.data.prepared import DataError
from vader.rendering.cameras import Cameras, look_at, sample_orbit
from vader.rendering.render import render_views
from vader.settings.experiment import DataConfig


def cameras_of_a_wide_image(n: int = 3) -> Cameras:
    eyes = torch.tensor([[2.0, 1.0, 3.0], [-3.0, 0.5, 1.0], [0.3, -2.0, -2.5]])[:n]
    intrinsics = torch.tensor([[9.0, 0.0, 5.5], [0.0, 8.0, 3.5], [0.0, 0.0, 1.0]]).repeat(n, 1, 1)
    intrinsics[:, 0, 0] += torch.arange(n)
    return Cameras(look_at(eyes, torch.tensor([0.1, 0.2, -0.1])), intrinsics, 8, 12)


def assert_same(a: Cameras, b: Cameras) -> None:
    assert (a.height, a.width, len(a)) == (b.height, b.width, len(b))
    torch.testing.assert_close(a.world_to_camera, b.world_to_camera, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.intrinsics, b.intrinsics)


def test_pytorch3d_round_trip_and_its_own_projection():
    pytest.importorskip("pytorch3d")
    cameras = cameras_of_a_wide_image()
    theirs = to_pytorch3d(cameras)
    assert_same(from_pytorch3d(theirs), cameras)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    screen = theirs.transform_points_screen(points.expand(3, -1, -1), with_xyflip=True)
    torch.testing.assert_close(screen[..., :2], cameras.project(points), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.get_camera_center(), cameras.centres(), atol=1e-5, rtol=1e-5)


def test_pytorch3d_cameras_agree_with_its_opencv_converter():
    pytest.importorskip("pytorch3d")
    from pytorch3d.utils import cameras_from_opencv_projection

    cameras = cameras_of_a_wide_image()
    size = torch.tensor([[8, 12]]).expand(3, 2)
    matrix = cameras.world_to_camera
    theirs = cameras_from_opencv_projection(matrix[:, :, :3], matrix[:, :, 3], cameras.intrinsics, size)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ndc = theirs.transform_points_ndc(points)
    torch.testing.assert_close(to_pytorch3d(cameras).transform_points_ndc(points), ndc, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("up", ["y", "z"])
def test_transforms_round_trip(up):
    cameras = cameras_of_a_wide_image()
    text = json.dumps(to_transforms(cameras, up))
    assert_same(from_transforms(json.loads(text), "transforms.json", up), cameras)


def test_blender_camera_above_the_scene():
    """Blender's identity camera looks down its world's -z with +y at the top of the picture."""
    matrix = torch.eye(4)
    matrix[2, 3] = 3.0
    content = {"camera_angle_x": math.radians(90), "frames": [{"transform_matrix": matrix.tolist()}]}
    cameras = from_transforms(content, "transforms_train.json", size=(10, 10))
    torch.testing.assert_close(cameras.centres(), torch.tensor([[0.0, 3.0, 0.0]]))  # Blender's z is our y
    torch.testing.assert_close(cameras.intrinsics[0, 0], torch.tensor([5.0, 0.0, 5.0]))
    # Blender's (0, 1, 0) is our (0, 0, -1): straight above the centre of the picture.
    torch.testing.assert_close(cameras.project(torch.tensor([[0.0, 0.0, -1.0]]))[0, 0], torch.tensor([5.0, 5 - 5 / 3]))
    torch.testing.assert_close(cameras.project(torch.tensor([[1.0, 0.0, 0.0]]))[0, 0], torch.tensor([5 + 5 / 3, 5.0]))


def test_a_picture_survives_every_format():
    cameras = sample_orbit(2, DataConfig(name="any", resolution=12), torch.Generator().manual_seed(3))
    volume = torch.rand(1, 4, 6, 6, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([3.0, 1, 1, 1]).view(
        1, 4, 1, 1, 1
    )
    picture = render_views(volume, cameras, 24)["colour"]
    assert picture.std() > 0.05
    others = [
        from_transforms(to_transforms(cameras), "file"),
        from_transforms(to_transforms(cameras, "y"), "file", "y"),
    ]
    others.append(from_pytorch3d(to_pytorch3d(cameras)))
    for other in others:
        torch.testing.assert_close(render_views(volume, other, 24)["colour"], picture, atol=1e-4, rtol=0)
    wrong = from_transforms(to_transforms(cameras, "y"), "file", "z")
    assert (render_views(volume, wrong, 24)["colour"] - picture).abs().max() > 0.05


def test_intrinsics_of_a_frame_win_over_those_of_the_file():
    content = to_transforms(cameras_of_a_wide_image(2))
    content["fl_x"] = 100.0
    assert from_transforms(content, "file").intrinsics[:, 0, 0].tolist() == [9.0, 10.0]
    for frame in content["frames"]:
        del frame["fl_x"]
    assert from_transforms(content, "file").intrinsics[:, 0, 0].tolist() == [100.0, 100.0]


def broken_transforms(**changes):
    content = copy.deepcopy(to_transforms(cameras_of_a_wide_image(2)))
    for key, value in changes.items():
        target = content if key in ("frames", "w") else content["frames"][1]
        if value is None:
            target.pop(key)
        else:
            target[key] = value
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": []}, r"t.json: frames is missing or empty"),
        ({"w": None}, r"t.json: frames\[0\]: w is None, expected a finite number"),
        ({"fl_x": None}, r"t.json: frames\[1\]: camera_angle_x is None, expected a finite number"),
        ({"fl_y": math.nan}, r"t.json: frames\[1\]: fl_y is nan"),
        ({"k1": 0.1}, r"t.json: frames\[1\]: k1 is 0.1, expected undistorted"),
        ({"h": 9}, r"t.json: views have sizes \[\(8, 12\), \(9, 12\)\]"),
        ({"transform_matrix": [[1, 0], [0, 1]]}, r"t.json: frames\[1\]: transform_matrix has shape \(2, 2\)"),
        ({"transform_matrix": "identity"}, r"t.json: frames\[1\]: transform_matrix is not a table of numbers"),
    ],
)
def test_bad_transforms_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        from_transforms(broken_transforms(**changes), "t.json")


def test_transforms_that_are_no_cameras():
    with pytest.raises(DataError, match=r"t.json: frames\[1\]: focal lengths -3"):
        from_transforms(broken_transforms(fl_x=-3.0), "t.json")
    with pytest.raises(DataError, match=r"t.json: frames\[1\]: transform_matrix .*last row"):
        from_transforms(broken_transforms(transform_matrix=(2 * torch.eye(4)).tolist()), "t.json")


def test_cameras_that_pytorch3d_and_we_do_not_share():
    pytest.importorskip("pytorch3d")
    from pytorch3d.renderer import PerspectiveCameras

    skewed = cameras_of_a_wide_image()
    skewed.intrinsics[1, 0, 1] = 0.5
    with pytest.raises(DataError, match="view 1: intrinsics have skew"):
        to_pytorch3d(skewed)
    with pytest.raises(DataError, match="are in NDC"):
        from_pytorch3d(PerspectiveCameras())
    with pytest.raises(DataError, match="expected one"):
        from_pytorch3d(PerspectiveCameras(T=torch.zeros(2, 3), in_ndc=False, image_size=((4, 4), (4, 5))))
