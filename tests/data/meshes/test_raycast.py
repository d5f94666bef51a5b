"""Ray casting against closed forms, a reference that marches along the ray, and the exported mesh."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.data.meshes import raycast
from vader.data.meshes.raycast import HALF_EXTENT, SPHERE_RADIUS, Material, Primitive, cast, fit_to_cube, mesh, render
from vader.data.synthetic.factors import draw
from vader.data.synthetic.shapes import build
from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at

WHITE = Material((1.0, 1.0, 1.0))
UNIT = np.column_stack([np.eye(3), np.zeros(3)])


def one(kind: str, frame=UNIT, taper=(1.0, 1.0), material=WHITE) -> Primitive:
    return Primitive(kind, np.asarray(frame, dtype=np.float64), material, "part", taper)


def columns(*vectors) -> torch.Tensor:
    return torch.tensor(np.array(vectors), dtype=torch.float32).T.contiguous()


def ray(primitives, origin, towards):
    """(distance, normal) of one ray."""
    direction = torch.nn.functional.normalize(columns(np.subtract(towards, origin)), dim=0)
    hits = cast(primitives if isinstance(primitives, list) else [primitives], columns(origin), direction)
    return hits.distance.item(), hits.normal[:, 0].tolist()


def views(n: int, resolution: int, distance: float = 4.0) -> Cameras:
    azimuth = torch.arange(n, dtype=torch.float64) * 2.4 + 0.3
    height = torch.linspace(-0.3, 0.8, n, dtype=torch.float64)
    flat = (1 - height**2).sqrt()
    eyes = distance * torch.stack([flat * azimuth.sin(), height, flat * azimuth.cos()], -1)
    intrinsics = intrinsics_from_fov(36.0, resolution, resolution).expand(n, 3, 3).contiguous()
    return Cameras(look_at(eyes).float(), intrinsics, resolution, resolution)


# ------------------------------------------------------------------------------------------------ closed forms


def test_a_ball():
    distance, normal = ray(one("ball"), (0, 0, 4), (0, 0, 0))
    assert distance == pytest.approx(3) and normal == pytest.approx([0, 0, 1])
    angle = math.atan2(1.001, 4)
    chord = math.sqrt(1 - (4 * math.sin(angle)) ** 2)
    assert ray(one("ball"), (0, 0, 4), (0, 1.001, 0))[0] == pytest.approx(4 * math.cos(angle) - chord, abs=1e-5)
    assert math.isinf(ray(one("ball"), (0, 0, 4), (0, 1.1, 0))[0])
    assert math.isinf(ray(one("ball"), (0, 0, 4), (0, 0, 8))[0])


def test_an_ellipsoid_has_the_normals_of_its_gradient():
    ellipsoid = one("ball", np.column_stack([np.diag([2.0, 0.5, 1.0]), [0.1, 0.2, 0.3]]))
    distance, normal = ray(ellipsoid, (1.1, 5.0, 0.3), (1.1, 0.0, 0.3))
    y = 0.5 * math.sqrt(1 - 0.25)  # at x = 1 from the centre
    gradient = np.array([1 / 4, y / 0.25, 0])
    assert distance == pytest.approx(5 - 0.2 - y, abs=1e-5)
    assert normal == pytest.approx(list(gradient / np.linalg.norm(gradient)), abs=1e-5)


def test_a_box_and_its_faces():
    for axis in range(3):
        for sign in (-1, 1):
            origin = np.eye(3)[axis] * 3 * sign
            distance, normal = ray(one("box"), origin, (0, 0, 0))
            assert distance == pytest.approx(2) and normal == pytest.approx(list(np.eye(3)[axis] * sign))
    assert math.isinf(ray(one("box"), (1.001, 0, 3), (1.001, 0, 0))[0])  # parallel to a face, outside
    assert ray(one("box"), (0.999, 0, 3), (0.999, 0, 0))[0] == pytest.approx(2)


def test_a_tapered_box_leans_its_sides():
    pyramid = one("box", taper=(0.5, 1.0))  # |x| <= 1 at y = -1, 0.5 at y = +1
    distance, normal = ray(pyramid, (3, 0, 0), (0, 0, 0))
    assert distance == pytest.approx(3 - 0.75)
    assert normal == pytest.approx(list(np.array([1, 0.25, 0]) / math.hypot(1, 0.25)))
    assert math.isinf(ray(pyramid, (0.6, 3, 0.9), (0.6, 1.01, 0.9))[0]) is False
    assert ray(pyramid, (0.4, 3, 0.9), (0.4, 0, 0.9))[0] == pytest.approx(2)  # the top
    assert ray(pyramid, (0.9, 3, 0), (0.9, 0, 0))[0] == pytest.approx(3 + 0.6)  # x = 0.9 where y = -0.6


def test_a_cylinder_and_its_caps():
    distance, normal = ray(one("round"), (3, 0.5, 0), (0, 0.5, 0))
    assert distance == pytest.approx(2) and normal == pytest.approx([1, 0, 0])
    distance, normal = ray(one("round"), (0.3, 5, 0.3), (0.3, 0, 0.3))  # along its axis
    assert distance == pytest.approx(4) and normal == pytest.approx([0, 1, 0])
    distance, normal = ray(one("round"), (0.3, -5, 0.3), (0.3, 0, 0.3))
    assert distance == pytest.approx(4) and normal == pytest.approx([0, -1, 0])
    assert math.isinf(ray(one("round"), (0.8, 5, 0.8), (0.8, 0, 0.8))[0])


def test_a_frustum_has_the_slope_of_its_cone():
    distance, normal = ray(one("round", taper=(0.5, 0.5)), (3, 0, 0), (0, 0, 0))
    assert distance == pytest.approx(3 - 0.75)
    assert normal == pytest.approx(list(np.array([1, 0.25, 0]) / math.hypot(1, 0.25)))


def test_the_nearer_of_two_primitives_is_seen():
    near, far = np.column_stack([np.eye(3), [0, 0, 2]]), UNIT
    for order in ([one("ball", near), one("box", far)], [one("box", far), one("ball", near)]):
        assert ray(order, (0, 0, 9), (0, 0, 0))[0] == pytest.approx(6)


# ------------------------------------------------------------------------------------------------ reference


def inside(kind: str, points: np.ndarray, taper) -> np.ndarray:
    x, y, z = points.T
    if kind == "ball":
        return x**2 + y**2 + z**2 <= 1
    wx, wz = (1 - (1 - k) * (y + 1) / 2 for k in taper)
    section = np.maximum(np.abs(x) - wx, np.abs(z) - wz) <= 0 if kind == "box" else x**2 + z**2 <= wx**2
    return section & (np.abs(y) <= 1)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["box", "round", "ball"]),
    taper=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
    seed=st.integers(0, 2**32 - 1),
)
def test_hits_are_where_marching_along_the_ray_first_finds_the_solid(kind, taper, seed):
    """Any affine frame, seen from anywhere outside: entry found by 4,000 steps along each ray in float64."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(3, 3)) * 0.3 + np.diag(rng.uniform(0.3, 0.8, 3))
    if abs(np.linalg.det(axes)) < 0.02:
        axes += np.eye(3)
    frame = np.column_stack([axes, rng.uniform(-0.3, 0.3, 3)])
    origins = rng.normal(size=(12, 3))
    origins *= 8 / np.linalg.norm(origins, axis=1, keepdims=True)
    targets = (rng.uniform(-1.1, 1.1, (12, 3))) @ axes.T + frame[:, 3]
    directions = (targets - origins) / np.linalg.norm(targets - origins, axis=1, keepdims=True)
    hits = cast([one(kind, frame, taper)], columns(*origins), columns(*directions))
    steps = np.linspace(4, 12, 4001)
    for i in range(12):
        points = origins[i] + steps[:, None] * directions[i]
        within = inside(kind, (points - frame[:, 3]) @ np.linalg.inv(axes).T, taper)
        if hits.primitive[i] < 0:
            assert within.sum() <= 6  # a graze thinner than float32 resolves
            continue
        t = hits.distance[i].item()
        if within.any():
            assert steps[within.argmax()] - 0.003 <= t <= steps[within.argmax()] + 1e-4
        on_surface = ((origins[i] + t * directions[i]) - frame[:, 3]) @ np.linalg.inv(axes).T
        shrunk, grown = inside(kind, np.stack([on_surface * 0.995, on_surface * 1.005]), taper)
        assert not grown or kind != "ball"
        assert shrunk or not within.any()
        normal = hits.normal[:, i].double().numpy()
        assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-5)
        assert normal @ directions[i] < 1e-3  # the entry faces the ray
        assert hits.local[:, i].tolist() == pytest.approx(list(on_surface), abs=1e-4)


@pytest.mark.parametrize("category", ["chairs", "tables"])
@pytest.mark.parametrize("index", [2, 5, 15])
def test_rays_meet_the_exported_mesh_where_they_meet_the_solids(category, index):
    """Moeller-Trumbore over all triangles, in float64."""
    primitives = build(category, draw(category, 0, index))
    triangles = mesh(primitives).triangles
    camera = views(1, 18)
    origins, directions = (x[0].double().numpy() for x in camera.rays())
    hits = cast(primitives, *(x[0].T.contiguous() for x in camera.rays()))
    a, edge1, edge2 = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    distances = np.full(len(directions), math.inf)
    for i, (o, d) in enumerate(zip(origins, directions, strict=True)):
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.cross(d, edge2)
            scale = 1 / (edge1 * p).sum(1)
            u = ((o - a) * p).sum(1) * scale
            q = np.cross(o - a, edge1)
            v, t = (q @ d) * scale, (edge2 * q).sum(1) * scale
        inner = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
        distances[i] = t[inner].min(initial=math.inf)
    ours = hits.distance.double().numpy()
    both = np.isfinite(ours) & np.isfinite(distances)
    assert both.sum() / (np.isfinite(ours) | np.isfinite(distances)).sum() > 0.97  # curved parts are inscribed
    error = np.abs(ours[both] - distances[both])
    assert np.median(error) < 1e-5 and np.quantile(error, 0.98) < 0.02


# ------------------------------------------------------------------------------------------------ images


def test_the_mask_of_a_ball_has_the_area_of_its_projection():
    radius, distance, resolution = 0.7, 4.0, 40
    _, masks = render([one("ball", np.column_stack([radius * np.eye(3), np.zeros(3)]))], views(3, resolution), 6)
    focal = views(1, resolution).intrinsics[0, 0, 0].item()
    area = math.pi * (focal * radius) ** 2 / (distance**2 - radius**2)
    for mask in masks:
        assert mask.double().sum().item() / 255 == pytest.approx(area, rel=2e-3)
        assert ((mask > 0) & (mask < 255)).sum() > 40  # antialiased


def test_the_mask_of_a_half_covered_pixel_is_half():
    """A wall whose edge runs through the middle of a pixel column."""
    camera = Cameras(look_at(torch.tensor([[0.0, 0.0, 4.0]])), intrinsics_from_fov(36.0, 8, 8)[None], 8, 8)
    metres_per_pixel = 4 / camera.intrinsics[0, 0, 0].item()
    wall = one("box", np.column_stack([np.diag([1.0, 2.0, 1e-4]), [1.0 + 0.5 * metres_per_pixel, 0, 0]]))
    _, masks = render([wall], camera, 4)
    assert masks[0, 4].tolist() == [0, 0, 0, 0, 128, 255, 255, 255]


def test_images_are_composited_on_black_and_masks_are_their_coverage():
    """A face of one colour: image = colour * coverage, in every pixel."""
    camera = Cameras(look_at(torch.tensor([[0.0, 0.0, 4.0]])), intrinsics_from_fov(36.0, 16, 16)[None], 16, 16)
    frame = np.column_stack([0.6 * np.eye(3)[:, [1, 0, 2]] * (1, 1, 0.01), np.zeros(3)])
    images, masks = render([one("box", frame, material=Material((0.9, 0.5, 0.2)))], camera, 4)
    colour = images[0, 8, 8].double()
    assert torch.allclose(images[0].double(), masks[0, ..., None].double() / 255 * colour, atol=1)
    lights = raycast.LIGHT_RIG
    lit = lights["ambient"] + sum(
        lights[k]["intensity"] * max(0, lights[k]["direction"][2]) / np.linalg.norm(lights[k]["direction"])
        for k in ("key", "fill", "back")
    )  # for the normal (0, 0, 1)
    assert colour.tolist() == pytest.approx([255 * lit * c for c in (0.9, 0.5, 0.2)], abs=0.51)


def test_matt_surfaces_look_the_same_from_everywhere_and_glossy_ones_do_not():
    def top_colour(eye, gloss):
        camera = Cameras(look_at(torch.tensor([eye])), intrinsics_from_fov(10.0, 1, 1)[None], 1, 1)
        material = Material((0.5, 0.5, 0.5), gloss=gloss)
        frame = np.column_stack([np.diag([1, 0.01, 1]), np.zeros(3)])
        return render([one("box", frame, material=material)], camera, 1)[0].flatten().tolist()

    mirrored = (-4 * 0.45, 4 * 0.8, -4 * 0.4)  # of the key light in the horizontal face
    assert top_colour(mirrored, 0.0) == top_colour((3.0, 2.0, 1.0), 0.0)
    assert top_colour(mirrored, 0.1)[0] == pytest.approx(top_colour(mirrored, 0.0)[0] + 25.5, abs=1)
    assert top_colour((3.0, 2.0, 1.0), 0.1)[0] < top_colour(mirrored, 0.1)[0] - 15


def test_lights_cannot_overexpose_and_leave_nothing_black():
    """The shading of a white matt ball over all directions of the normal."""
    images, masks = render([one("ball")], views(8, 64), 1)
    values = images[masks == 255]
    assert 0.9 * 255 < values.max() < 255 and values.min() > 0.3 * 255


def test_views_rendered_together_or_one_by_one_are_the_same_bits(monkeypatch):
    primitives, cameras = build("chairs", draw("chairs", 0, 9)), views(5, 20)
    together = render(primitives, cameras, 3)
    monkeypatch.setattr(raycast, "RAYS_AT_ONCE", 1)
    for a, b in zip(together, render(primitives, cameras, 3), strict=True):
        assert torch.equal(a, b)


def test_skipping_rays_far_from_a_primitive_changes_nothing():
    primitives, cameras = build("tables", draw("tables", 0, 1)), views(2, 24)
    origins, directions = (x.reshape(-1, 3).T.contiguous() for x in cameras.rays())
    _, masks = render(primitives, cameras, 1)
    assert torch.equal(masks.flatten() == 255, cast(primitives, origins, directions).primitive >= 0)


def test_textures_darken_the_albedo_by_their_contrast():
    for texture in raycast.TEXTURES:
        primitive = one("box", material=Material((0.8, 0.6, 0.4), texture, 2.0, 0.25))
        points = torch.rand(3, 2000, generator=torch.Generator().manual_seed(0)) * 2 - 1
        colours = raycast.albedo_at([primitive], torch.zeros(2000, dtype=torch.long), points)
        share = colours / torch.tensor([0.8, 0.6, 0.4])[:, None]
        assert share.max() == pytest.approx(1, abs=1e-3)
        assert share.min() == pytest.approx(1 if texture == "plain" else 0.75, abs=1e-3)
        if texture in ("stripes", "checker"):
            assert (share[0] < 0.9).float().mean() == pytest.approx(0.5, abs=0.06)


# ------------------------------------------------------------------------------------------------ extent and mesh


@pytest.mark.parametrize("category", ["chairs", "tables"])
def test_objects_fill_the_cube_and_stay_inside(category):
    for index in range(12):
        solids = build(category, draw(category, 3, index))
        points = mesh(solids).vertices
        low, high = points.min(0), points.max(0)
        radius = np.linalg.norm(points, axis=1).max()
        assert max(high.max(), -low.min()) <= HALF_EXTENT + 1e-9 and radius <= SPHERE_RADIUS + 1e-9
        assert max(high.max(), -low.min()) > HALF_EXTENT - 0.01 or radius > SPHERE_RADIUS - 0.01
        assert np.abs(low + high).max() < 0.02  # curved parts of the mesh are inscribed


def test_bounds_are_exact():
    """Against the support of a finely meshed solid."""
    rng = np.random.default_rng(0)
    for kind in ("box", "round", "ball"):
        for _ in range(5):
            frame = np.column_stack([rng.normal(size=(3, 3)) * 0.4, rng.normal(size=3)])
            primitive = one(kind, frame, tuple(rng.uniform(0.2, 1, 2)))
            low, high, radius = primitive.bounds()
            points = mesh([primitive]).vertices
            assert np.abs(points.min(0) - low).max() < 0.03 and np.abs(points.max(0) - high).max() < 0.03
            assert (points.min(0) >= low - 1e-9).all() and (points.max(0) <= high + 1e-9).all()
            assert radius >= np.linalg.norm(points, axis=1).max() - 1e-9


def test_every_part_of_the_mesh_is_closed_and_faces_outwards():
    """Volumes by the divergence theorem: those of the solids, positive even where a frame mirrors."""
    mirrored = np.column_stack([np.diag([-0.5, 0.3, 0.4]), [0.2, 0, 0]])
    for kind, taper, volume in (
        ("box", (1, 1), 8),
        ("box", (0.5, 1), 6),
        ("round", (1, 1), 2 * math.pi),
        ("round", (0.5, 0.5), 2 * math.pi * (1 + 0.5 + 0.25) / 3),
        ("ball", (1, 1), 4 / 3 * math.pi),
    ):
        surface = mesh([one(kind, mirrored, taper)])
        assert surface.is_watertight and surface.is_winding_consistent
        assert surface.volume == pytest.approx(volume * 0.5 * 0.3 * 0.4, rel=0.03)


def test_the_mesh_carries_the_colours_of_its_materials():
    red, blue = Material((0.8, 0.1, 0.1)), Material((0.1, 0.2, 0.7))
    both = mesh([one("ball", material=red), one("box", UNIT + [[0, 0, 0, 5], [0] * 4, [0] * 4], material=blue)])
    left = both.vertices[:, 0] < 2
    assert (both.visual.vertex_colors[left][:, :3] == [204, 26, 26]).all()
    assert (both.visual.vertex_colors[~left][:, :3] == [26, 51, 179]).all()


def test_fitting_keeps_proportions():
    tall = one("box", np.column_stack([np.diag([1.0, 10.0, 2.0]), [5.0, 5.0, 5.0]]))
    (fitted,) = fit_to_cube([tall])
    assert np.allclose(fitted.frame, np.column_stack([np.diag([0.09, 0.9, 0.18]), np.zeros(3)]))
    (cube,) = fit_to_cube([one("box")])
    assert np.allclose(cube.frame[:, :3], np.eye(3) * SPHERE_RADIUS / math.sqrt(3))
