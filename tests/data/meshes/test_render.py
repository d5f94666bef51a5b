"""Geometry, variants and pictures of meshes: against closed forms, slow loops and an independent rasteriser."""

from __future__ import annotations

import builtins
import ctypes
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.data.formats.wavefront import Part
from vader.data.meshes import render as mesh_render
from vader.data.meshes.render import (
    CREASE_ANGLE,
    HALF_EXTENT,
    LIGHT_RIG,
    MIN_ALBEDO,
    MULTISAMPLES,
    PALETTE,
    RADIUS,
    STRETCH,
    MeshRenderer,
    corner_normals,
    recoloured,
    reference_mesh,
    stretch_factors,
    to_canonical,
)
from vader.data.prepared import DataError
from vader.rendering.cameras import CameraError, Cameras, intrinsics_from_fov, look_at, sample_orbit
from vader.settings.experiment import DataConfig

CORNERS = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], dtype=float)
CUBE_FACES = np.array(
    [[0, 3, 1], [0, 2, 3], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4]]
    + [[2, 7, 3], [2, 6, 7], [0, 6, 2], [0, 4, 6], [1, 3, 7], [1, 7, 5]]
)


def cube(half=(0.6, 0.6, 0.6), colour=(0.5, 0.5, 0.5)) -> Part:
    return Part("paint", CORNERS * np.array(half), CUBE_FACES, np.array(colour))


def cameras_at(*eyes, resolution=32, field_of_view=36.0) -> Cameras:
    eyes = torch.tensor(eyes, dtype=torch.float64)
    k = intrinsics_from_fov(field_of_view, resolution, resolution).expand(len(eyes), 3, 3).contiguous()
    return Cameras(look_at(eyes).float(), k, resolution, resolution)


def picture(parts, cameras, supersampling=1):
    with MeshRenderer(parts) as renderer:
        images, masks = renderer.render(cameras, supersampling)
    return images.numpy(), masks.numpy()


@pytest.fixture
def vtk():
    """Skips where nothing can be drawn."""
    pytest.importorskip("pyvista", reason="drawing needs pyvista (extra 'data')")
    try:
        mesh_render._require_off_screen()
    except DataError as error:
        pytest.skip(str(error))


# ---------------------------------------------------------------------------------------------- geometry


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.floats(20, 300)] * 3),
    st.tuples(*[st.floats(0.9, 1.1)] * 3),
    st.tuples(*[st.floats(-50, 50)] * 3),
)
def test_the_box_has_the_catalogues_proportions_and_fits_the_cube(size, stretch, offset):
    part = cube((0.1, 3.0, 20.0))
    part = Part("paint", part.vertices + np.array(offset), part.faces, part.colour)
    (placed,) = to_canonical([part], np.eye(3), size, stretch, "here")
    low, high = placed.vertices.min(0), placed.vertices.max(0)
    extent = (high - low) / (np.array(size) * np.array(stretch))
    np.testing.assert_allclose(extent, extent[0], rtol=1e-9)
    np.testing.assert_allclose(low, -high, atol=1e-9)
    half, radius = high.max(), np.linalg.norm(placed.vertices, axis=1).max()
    assert half <= HALF_EXTENT + 1e-9 and radius <= RADIUS + 1e-9
    assert math.isclose(half, HALF_EXTENT) or math.isclose(radius, RADIUS)  # no smaller than need be


def test_the_rotation_comes_before_the_size():
    # a quarter turn about y: the model's x becomes -z, so its depth in the catalogue is the width of the file
    rotation = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    marked = Part("m", np.array([[2.0, 0, 0], [-2, 0, 0], [0, 1, 1], [0, -1, -1]]), CUBE_FACES[:1], np.zeros(3))
    (placed,) = to_canonical([marked], rotation, (10, 20, 40), np.ones(3), "here")
    np.testing.assert_allclose(placed.vertices[0] / HALF_EXTENT, [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(placed.vertices[2] / HALF_EXTENT, [0.25, 0.5, 0], atol=1e-12)


def test_a_model_without_extent_is_refused():
    with pytest.raises(DataError, match=r"^cat: entry 'x': the model's bounding box measures .*expected a solid"):
        to_canonical([cube((1, 0, 1))], np.eye(3), (1, 1, 1), np.ones(3), "cat: entry 'x'")


def slow_corner_normals(vertices, faces):
    def area(face):
        a, b, c = vertices[face]
        return np.cross(b - a, c - a)

    result = np.zeros((len(faces), 3, 3))
    for i, face in enumerate(faces):
        own = area(face) / np.linalg.norm(area(face))
        for corner in range(3):
            total = np.zeros(3)
            for other in faces:
                at_point = sum(np.allclose(vertices[v], vertices[face[corner]]) for v in other)
                cosine = own @ area(other) / np.linalg.norm(area(other))
                if abs(cosine) >= math.cos(math.radians(CREASE_ANGLE)):
                    total += at_point * np.sign(cosine) * area(other)
            result[i, corner] = total / np.linalg.norm(total)
    return result


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_corner_normals_agree_with_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(3), indexing="ij"), -1).reshape(-1, 2)
    vertices = np.concatenate([grid, rng.uniform(-0.4, 0.4, (12, 1))], axis=1)
    faces = [[3 * i + j, 3 * i + j + 3, 3 * i + j + 1] for i in range(3) for j in range(2)]
    faces += [[3 * i + j + 1, 3 * i + j + 3, 3 * i + j + 4] for i in range(3) for j in range(2)]
    faces = np.array([face[::-1] if rng.random() < 0.3 else face for face in faces])
    # a seam: every face gets vertices of its own
    np.testing.assert_allclose(
        corner_normals(vertices[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3)),
        slow_corner_normals(vertices, faces),
        atol=1e-6,
    )


def test_edges_of_a_cube_stay_sharp():
    part = cube()
    triangles = part.vertices[part.faces]
    outward = triangles.mean(1) / np.abs(triangles.mean(1)).max(1, keepdims=True)
    outward = np.where(np.abs(outward) > 0.99, np.sign(outward), 0)
    np.testing.assert_allclose(np.abs(corner_normals(part.vertices, part.faces)), np.abs(outward)[:, None].repeat(3, 1))


def test_the_reference_mesh_gathers_all_parts_with_their_colours():
    texture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    uv = np.array([[0.25, 0.25], [0.75, 0.25], [1.25, 0.75]])  # bottom left, bottom right, top left (repeating)
    textured = Part("cloth", CORNERS[:3] + 5, np.array([[0, 1, 2]]), np.zeros(3), uv, texture)
    mesh = reference_mesh([cube(colour=(1.0, 0.0, 0.5)), textured])
    assert len(mesh.vertices) == 11 and len(mesh.faces) == 13
    np.testing.assert_array_equal(mesh.vertices[mesh.faces[-1]], CORNERS[:3] + 5)
    low = round(255 * MIN_ALBEDO)
    np.testing.assert_array_equal(mesh.visual.vertex_colors[0, :3], [255, low, round(255 * (1 + MIN_ALBEDO) / 2)])
    expected = [[low, low, 255], [255, 255, 255], [255, low, low]]
    np.testing.assert_array_equal(mesh.visual.vertex_colors[-3:, :3], expected)


# ---------------------------------------------------------------------------------------------- variants


def test_variants_keep_shape_and_pattern_and_take_colours_of_the_palette():
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 200, (8, 8, 3)).astype(np.uint8)
    textured = Part("cloth", CORNERS, CUBE_FACES, np.zeros(3), CORNERS[:, :2], texture)
    palette = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in PALETTE.values()]) / 255
    seen = set()
    for seed in range(20):
        plain, cloth = recoloured([cube(), textured], np.random.default_rng(seed))
        again, _ = recoloured([cube(), textured], np.random.default_rng(seed))
        np.testing.assert_array_equal(plain.colour, again.colour)
        assert plain.vertices is not None and np.array_equal(cloth.vertices, CORNERS) and cloth.uv is textured.uv
        for part in (plain, cloth):
            ratio = part.colour / palette
            matches = (ratio.min(1) > 0.849) & (ratio.max(1) < 1.151) & (np.ptp(ratio, axis=1) < 1e-6)
            clipped = (np.minimum(palette * 1.15, 1) >= part.colour - 1e-9).all(1) & (part.colour == 1).any()
            assert (matches | clipped).any()
        seen.add(tuple(plain.colour))
        before, after = texture.mean(-1).ravel(), cloth.texture.mean(-1).ravel()
        assert np.corrcoef(before, after)[0, 1] > 0.95
        np.testing.assert_allclose(cloth.texture.mean((0, 1)) / 255, cloth.colour, atol=0.05)
    assert len(seen) == 20


def test_stretch_factors_stay_within_their_bounds_and_fill_them():
    factors = np.stack([stretch_factors(np.random.default_rng(seed)) for seed in range(300)])
    assert np.abs(factors - 1).max() <= STRETCH and np.ptp(factors, axis=0).min() > 1.9 * STRETCH


# ---------------------------------------------------------------------------------------------- pictures


def lambert(colour, normal) -> np.ndarray:
    """What the light rig makes of a surface, in 0..255."""
    light = LIGHT_RIG["ambient"]
    for direction, intensity in (LIGHT_RIG[name] for name in ("key", "fill", "back")):
        direction = np.array(direction) / np.linalg.norm(direction)
        light += intensity * max(float(direction @ normal), 0.0)
    return 255 * light * (MIN_ALBEDO + (1 - MIN_ALBEDO) * np.array(colour))


def test_no_surface_is_overexposed():
    normals = np.random.default_rng(0).normal(size=(20_000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = np.array([lambert((1, 1, 1), n)[0] for n in normals]) / 255
    assert 0.97 < light.max() <= 1.0 and light.min() >= 0.4


@pytest.mark.parametrize("inside_out", [False, True])
def test_faces_have_the_brightness_of_lamberts_law_from_both_sides(vtk, inside_out):
    colour = (0.8, 0.3, 0.0)
    part = cube(colour=colour)
    if inside_out:
        part = Part("paint", part.vertices, part.faces[:, ::-1], part.colour)
    eyes = [(0, 0, 4), (0, 0, -4), (4, 0, 0), (-4, 0, 0), (0.01, 4, 0), (0.01, -4, 0)]
    images, masks = picture([part], cameras_at(*eyes, resolution=16))
    for eye, image, mask in zip(eyes, images, masks, strict=True):
        normal = np.round(np.array(eye) / 4)
        np.testing.assert_allclose(image[8, 8], lambert(colour, normal), atol=1.0)
        assert mask[8, 8] == 255 and mask[0, 0] == 0 and not image[0, 0].any()


def coverage(part: Part, cameras: Cameras, samples: int) -> np.ndarray:
    """(v, h, w) fraction of samples x samples points per pixel inside of a projected triangle."""
    h, w = cameras.height, cameras.width
    y, x = np.meshgrid(*[(np.arange(n * samples) + 0.5) / samples for n in (h, w)], indexing="ij")
    pixels = cameras.project(torch.tensor(part.vertices, dtype=torch.float32)).numpy()
    inside = np.zeros((len(cameras), h * samples, w * samples), dtype=bool)
    for view in range(len(cameras)):
        for face in part.faces:
            corners = pixels[view][face]
            sides = []
            for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
            inside[view] |= np.all([s >= 0 for s in sides], axis=0) | np.all([s <= 0 for s in sides], axis=0)
    return inside.reshape(len(cameras), h, samples, w, samples).mean((2, 4))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.25, -1.5)])
def test_silhouettes_are_those_of_the_projected_mesh(vtk, shift):
    part = cube((0.3, 0.8, 0.5))
    config = DataConfig("x", resolution=24)
    cameras = sample_orbit(4, config, torch.Generator().manual_seed(3))
    cameras.intrinsics[:, :2, 2] += torch.tensor(shift)  # a principal point off the centre
    _, masks = picture([part], cameras, supersampling=4)
    expected = coverage(part, cameras, 16)
    masks = masks / 255
    assert np.abs(masks - expected).mean() < 5e-4  # of the whole image: single samples on edges may differ
    centre = np.arange(24) + 0.5
    for axis in (1, 2):
        found, true = ((m.sum(axis) * centre).sum(1) / m.sum((1, 2)) for m in (masks, expected))
        np.testing.assert_allclose(found, true, atol=0.01)  # pixels


def test_supersampling_is_a_box_filter(vtk):
    part = cube((0.3, 0.8, 0.5))
    coarse, fine = (cameras_at((2, 1.5, 3), resolution=r) for r in (12, 36))
    images, masks = picture([part], coarse, supersampling=3)
    fine_images, fine_masks = picture([part], fine)
    expected = fine_images.reshape(1, 12, 3, 12, 3, 3).astype(float).mean((2, 4))
    np.testing.assert_allclose(images, expected, atol=0.51)
    np.testing.assert_allclose(masks, fine_masks.reshape(1, 12, 3, 12, 3).astype(float).mean((2, 4)), atol=0.51)
    assert ((masks > 0) & (masks < 255)).any()
    assert (images.max(-1) <= masks.astype(int) + 1).all()  # colour is weighed by coverage


def as_displayed(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as sRGB has it."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def as_light(displayed: np.ndarray) -> np.ndarray:
    return np.where(displayed <= 0.04045, displayed / 12.92, ((displayed + 0.055) / 1.055) ** 2.4)


def test_edges_are_four_samples_averaged_in_linear_light_as_the_committed_runs_saw_them(vtk):
    (image,), (mask,) = picture([cube((0.3, 0.8, 0.5), (0.6, 0.3, 0.1))], cameras_at((0.3, 0.2, 4)))
    assert set(np.unique(mask)) == {0, 64, 128, 191, 255}, "0 to 4 of 4 samples"
    face = np.median(image[mask == 255], 0) / 255
    for level in (64, 128, 191):
        in_light, as_stored = 255 * as_displayed(level / 255 * as_light(face)), level * face
        edge = image[mask == level].mean(0)
        np.testing.assert_allclose(edge, in_light, atol=6)
        assert (edge - as_stored > 2 * np.abs(edge - in_light)).all(), "averaging levels as they are stored is darker"


def test_a_rasteriser_with_other_samples_is_refused(vtk, monkeypatch):
    assert MULTISAMPLES == 4
    monkeypatch.setattr(mesh_render, "MULTISAMPLES", 64)  # which no rasteriser has
    with pytest.raises(DataError, match=r"grants \d samples a pixel here, expected 64"):
        picture([cube()], cameras_at((0, 0, 4)))


def test_triton_is_imported_before_opengl_since_a_training_after_pictures_would_crash_otherwise(vtk, monkeypatch):
    import pyvista

    class Asked(Exception):
        pass

    def plotter(**options):
        assert imported == ["triton"]
        raise Asked

    imported = []
    monkeypatch.setattr(mesh_render, "import_module", imported.append)
    monkeypatch.setattr(pyvista, "Plotter", plotter)
    with pytest.raises(Asked):
        MeshRenderer([cube()])


def test_textures_are_the_right_way_up(vtk):
    texture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8).repeat(16, 0).repeat(16, 1)
    square = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    part = Part("print", square, np.array([[0, 1, 2], [0, 2, 3]]), np.zeros(3), uv, texture)
    (image,), _ = picture([part], cameras_at((0, 0, 4), resolution=32))
    pixels = {(10, 10): (1, 0, 0), (10, 22): (0, 1, 0), (22, 10): (0, 0, 1), (22, 22): (1, 1, 0)}
    for (row, column), colour in pixels.items():
        np.testing.assert_allclose(image[row, column], lambert(colour, np.array([0, 0, 1])), atol=1.5)


def test_pixels_that_are_not_square_are_refused(vtk):
    cameras = cameras_at((0, 0, 4))
    cameras.intrinsics[0, 1, 1] *= 1.1
    with pytest.raises(CameraError, match="expected square pixels without skew"):
        picture([cube()], cameras)


def test_without_pyvista_the_extra_to_install_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pyvista":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'vader\[data\]'"):
        MeshRenderer([cube()])


def test_without_a_library_to_draw_with_the_package_to_install_is_named(monkeypatch):
    def gone(name):
        raise OSError(name)

    monkeypatch.setattr(mesh_render.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", gone)
    with pytest.raises(DataError, match="apt-get install libegl1"):
        mesh_render._require_off_screen()
