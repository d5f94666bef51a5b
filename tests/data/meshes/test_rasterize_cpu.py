"""The z-buffer against the ray caster, and against planes whose every pixel is known."""

from __future__ import annotations

import numpy as np
import torch

from vader.data.meshes.rasterize_cpu import light, render_mesh
from vader.data.meshes.raycast import Hits, Material, Primitive, render_labelled, shade
from vader.data.synthetic.people_mesh import vertex_normals
from vader.data.video import NO_PART, video_camera
from vader.settings.experiment import DataConfig
from vader.settings.videos import UVA_CAMERA

CAMERA = video_camera(DataConfig("puppets", resolution=24, **UVA_CAMERA))
CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
     [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def turned_boxes():
    """Two boxes that overlap in the picture, as solids of the ray caster and as one mesh."""
    rng = np.random.default_rng(0)
    solids, points = [], []
    for centre in ((-0.15, 0.1, 0.1), (0.2, -0.1, -0.2)):
        frame = np.column_stack([np.linalg.qr(rng.normal(size=(3, 3)))[0] * [0.45, 0.25, 0.35], centre])
        solids.append(Primitive("box", frame, Material((0.5, 0.5, 0.5)), "box"))
        points.append(CUBE @ frame[:, :3].T + frame[:, 3])
    faces = np.concatenate([CUBE_FACES, CUBE_FACES + 8])
    return solids, np.concatenate(points), faces, np.repeat([3, 1], 12)


def test_masks_and_parts_are_those_of_the_ray_caster():
    solids, vertices, faces, labels = turned_boxes()
    _, masks, parts, _ = render_labelled(solids, [3, 1], CAMERA, 4)
    _, mask, part, _ = render_mesh(vertices, faces, np.ones((16, 3)), labels, CAMERA, 4)
    assert mask.max() == 255 and set(np.unique(part)) == {1, 3, NO_PART}
    assert (masks[0].numpy() != mask).mean() < 0.01, "only where a ray meets an edge"
    assert np.abs(masks[0].numpy().astype(int) - mask).max() <= 16, "by one of 16 rays"
    expected = torch.where(parts[0] < 0, NO_PART, parts[0]).numpy()
    assert (expected != part).mean() < 0.01


def test_the_order_of_faces_does_not_matter():
    _, vertices, faces, labels = turned_boxes()
    albedo = np.random.default_rng(1).uniform(size=(16, 3))
    first = render_mesh(vertices, faces, albedo, labels, CAMERA, 2)
    order = np.random.default_rng(2).permutation(len(faces))
    *pictures, normals = render_mesh(vertices, faces[order], albedo, labels[order], CAMERA, 2)
    for a, b in zip(first, pictures, strict=False):
        assert np.array_equal(a, b)
    assert np.allclose(first[3], normals), "up to the order in which a vertex adds up its faces"


def test_colours_are_interpolated_in_space_and_not_in_the_picture():
    """A steep plane z = -3 x in front of the camera, its colour linear in x: each pixel's ray meets it at a known x."""
    corner = np.array([[-0.5, -0.9, 1.5], [0.5, -0.9, -1.5], [0.5, 0.9, -1.5], [-0.5, 0.9, 1.5]])
    albedo = np.repeat(corner[:, :1] + 0.5, 3, axis=1)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    image, mask, _, normals = render_mesh(corner, faces, albedo, np.zeros(2), CAMERA, 1)
    tangent = (np.arange(24) + 0.5 - 12) / CAMERA.intrinsics[0, 0, 0].item()  # x / depth, depth = 10.5 - z = 10.5 + 3 x
    x = 10.5 * tangent / (1 - 3 * tangent)
    inside = mask[12] > 0
    lit = light(vertex_normals(corner, faces))[0]
    assert inside.sum() > 8 and np.allclose(image[12, inside, 0], 255 * lit * (x[inside] + 0.5), atol=0.6)
    assert np.allclose(normals[12, inside], vertex_normals(corner, faces)[0]) and not normals[12, ~inside].any()


def test_light_is_that_of_the_ray_caster():
    normals = np.random.default_rng(3).normal(size=(50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    white = Primitive("box", np.eye(4)[:3], Material((1.0, 1.0, 1.0)), "box")
    n = torch.from_numpy(normals.T).float()
    hits = Hits(torch.ones(50), torch.zeros(50, dtype=torch.long), n, torch.zeros(3, 50))
    assert np.allclose(shade([white], hits, -n)[0].numpy(), np.minimum(light(normals), 1), atol=1e-6)


def test_normals_of_an_octahedron_are_its_axes():
    vertices = np.array([[2, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 3], [0, 0, -3]], float)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    normals = vertex_normals(vertices, np.array(faces))
    assert np.allclose(normals, vertices / np.linalg.norm(vertices, axis=1, keepdims=True))
