"""The reference renderer against closed forms, a slow loop, finite differences and PyTorch3D."""

from __future__ import annotations

import math

import pytest
import torch

from vader.config import DataConfig
from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at, sample_orbit
from vader.rendering.volume import (
    RenderingError,
    clip_to_cube,
    hash_uniform,
    normal_volume,
    render_rays,
    render_rays_reference,
    render_views,
    sample_depths,
)

AXIS = (torch.tensor([[[0.1, -0.2, -3.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]]))  # a ray along z through the cube


def constant_volume(density: float, colour=(0.2, 0.5, 0.8), size: int = 5) -> torch.Tensor:
    values = torch.tensor([density, *colour]).view(1, 4, 1, 1, 1)
    return values.expand(1, 4, size, size, size).contiguous()


def random_scene(seed: int = 0, size: int = 6, views: int = 2, resolution: int = 8, batch: int = 2):
    """Volumes (b, 4, s, s, s) with empty and dense places, and the rays (b, r, 3) of a few cameras."""
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(batch, 4, size, size, size, generator=generator)
    volume[:, 0] = (8 * volume[:, 0] - 3).clamp_min(0)
    cameras = sample_orbit(batch * views, DataConfig("x", resolution=resolution), generator)
    origins, directions = (x.reshape(batch, -1, 3) for x in cameras.rays())
    return volume, origins, directions


def slow_ray(volume, origin, direction, num_samples):
    """Eq. 6-7 for one ray, sample by sample and corner by corner."""
    enter, leave = 0.0, math.inf
    for axis in range(3):
        o, d = origin[axis].item(), direction[axis].item()
        if abs(d) < 1e-9:
            if abs(o) > 1:
                return [0.0] * 5
            continue
        a, b = sorted(((-1 - o) / d, (1 - o) / d))
        enter, leave = max(enter, a), min(leave, b)
    if leave <= enter:
        return [0.0] * 5
    step, light, result = (leave - enter) / num_samples, 1.0, [0.0] * 5
    size = volume.shape[-1]
    for i in range(num_samples):
        t = enter + (i + 0.5) * step
        position = [(origin[axis].item() + t * direction[axis].item() + 1) / 2 * (size - 1) for axis in range(3)]
        lower = [min(max(int(p), 0), size - 2) for p in position]
        values = [0.0] * 4
        for dz in (0, 1):
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = 1.0
                    for p, low, d in zip(position, lower, (dx, dy, dz), strict=True):
                        weight *= (p - low) if d else 1 - (p - low)
                    for c in range(4):
                        values[c] += weight * volume[c, lower[2] + dz, lower[1] + dy, lower[0] + dx].item()
        alpha = 1 - math.exp(-values[0] * step)
        for k, value in enumerate((*values[1:], 1.0, t)):
            result[k] += light * alpha * value
        light *= 1 - alpha
    return result


@pytest.mark.parametrize("density", [0.0, 0.3, 2.0, 50.0])
@pytest.mark.parametrize("num_samples", [1, 7, 64])
def test_a_homogeneous_slab(density, num_samples):
    """Occupancy 1 - exp(-sigma L) through L = 2, whatever the number of samples, and the slab's colour times that."""
    rendering = render_rays_reference(constant_volume(density), *AXIS, num_samples)
    occupancy = 1 - math.exp(-2 * density)
    assert rendering.occupancy.item() == pytest.approx(occupancy, abs=1e-6)
    assert rendering.colour[0, 0].tolist() == pytest.approx([occupancy * c for c in (0.2, 0.5, 0.8)], abs=1e-6)


def test_depth_of_a_homogeneous_slab():
    """The mean free path: integral of t sigma exp(-sigma (t - 2)) over t from 2 to 4."""
    sigma = 1.5
    expected = 2 + 1 / sigma - math.exp(-2 * sigma) * (4 + 1 / sigma)
    rendering = render_rays_reference(constant_volume(sigma), *AXIS, 2000)
    assert rendering.depth.item() == pytest.approx(expected, rel=1e-4)


def test_an_opaque_half_hides_what_is_behind():
    volume = constant_volume(1e4, size=9)
    volume[:, 1:, :4] = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)  # towards -z, where the ray comes from
    colour = render_rays_reference(volume, *AXIS, 200).colour[0, 0]
    assert colour.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-3)


def test_against_a_slow_loop():
    volume, origins, directions = random_scene()
    rendering = render_rays_reference(volume.double(), origins.double(), directions.double(), 9)
    for b in range(2):
        for r in range(0, origins.shape[1], 7):
            red, green, blue, occupancy, depth = slow_ray(volume[b], origins[b, r], directions[b, r], 9)
            assert rendering.colour[b, r].tolist() == pytest.approx([red, green, blue], abs=1e-5)
            assert rendering.occupancy[b, r].item() == pytest.approx(occupancy, abs=1e-5)
            assert rendering.depth[b, r].item() == pytest.approx(depth, abs=1e-5)


def test_gradients_by_finite_differences():
    volume, origins, directions = (x.double() for x in random_scene(size=3, views=1, resolution=2, batch=1))
    volume[:, 0] += 0.1

    def outputs(volume, origins, directions):
        rendering = render_rays_reference(volume, origins, directions, 5)
        return rendering.colour, rendering.occupancy, rendering.depth

    inputs = [x.requires_grad_() for x in (volume, origins, directions)]
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-6, atol=1e-5)


def test_agrees_with_pytorch3d_on_the_same_cameras_and_points():
    renderer = pytest.importorskip("pytorch3d.renderer")
    structures = pytest.importorskip("pytorch3d.structures")
    volume, origins, directions = random_scene(seed=3, size=7, resolution=6)
    samples = 24
    ours = render_rays_reference(volume, origins, directions, samples)
    enter, leave = clip_to_cube(origins, directions, 0.0, math.inf)
    depths = sample_depths(enter, leave, samples, None)
    bundle = renderer.RayBundle(
        origins[:, :, None], directions[:, :, None], depths[:, :, None], origins[:, :, None, :2]
    )
    # PyTorch3D's voxel grids span -1 to 1 between the centres of the outer voxels, as ours do
    voxel = 2 / (volume.shape[-1] - 1)
    grid = structures.Volumes(densities=volume[:, :1], features=volume[:, 1:4], voxel_size=voxel)
    sampler = renderer.VolumeSampler(grid)
    densities, features = sampler(bundle)
    opacity = 1 - torch.exp(-densities * ((leave - enter) / samples)[:, :, None, None, None])
    image = renderer.EmissionAbsorptionRaymarcher(surface_thickness=1)(opacity, features, ray_bundle=bundle)[:, :, 0]
    assert (image[..., :3] - ours.colour).abs().max() < 5e-5
    assert (image[..., 3] - ours.occupancy).abs().max() < 5e-5
    assert ours.occupancy.max() > 0.9 and ours.occupancy.min() < 0.1


def test_rays_that_miss_render_nothing():
    origins, directions = torch.tensor([[[0.0, 3.0, -3.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
    rendering = render_rays_reference(constant_volume(10.0), origins, directions, 8)
    assert rendering.occupancy.item() == 0 and rendering.depth.item() == 0 and not rendering.colour.any()


def test_a_camera_inside_the_cube_sees_what_is_in_front():
    origins = torch.zeros(1, 1, 3)
    rendering = render_rays_reference(constant_volume(0.7), origins, AXIS[1], 16)
    assert rendering.occupancy.item() == pytest.approx(1 - math.exp(-0.7), abs=1e-6)


def test_near_and_far_cut_the_ray():
    rendering = render_rays_reference(constant_volume(0.7), *AXIS, 16, near=2.5, far=3.0)
    assert rendering.occupancy.item() == pytest.approx(1 - math.exp(-0.35), abs=1e-6)


def test_stopping_early_moves_no_pixel_by_more_than_the_threshold():
    volume, origins, directions = random_scene(seed=1)
    whole = render_rays_reference(volume, origins, directions, 32)
    for stop in (1e-3, 0.1):
        stopped = render_rays_reference(volume, origins, directions, 32, stop=stop)
        assert (stopped.colour - whole.colour).abs().max() <= stop
        assert (stopped.occupancy - whole.occupancy).abs().max() <= stop


def test_stratified_depths_lie_one_in_each_bin_and_are_reproducible():
    enter, leave = torch.full((1, 50), 2.0), torch.full((1, 50), 4.0)
    depths = sample_depths(enter, leave, 10, 7)
    bins = ((depths - 2) / 0.2).floor()
    assert torch.equal(bins, torch.arange(10.0).expand(1, 50, 10))
    assert torch.equal(depths, sample_depths(enter, leave, 10, 7))
    assert not torch.equal(depths, sample_depths(enter, leave, 10, 8))


def test_the_hash_is_uniform():
    values = hash_uniform(123, torch.arange(100_000)).double()
    assert 0 <= values.min() and values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.005)
    assert (torch.histc(values.float(), 20, 0, 1) / 5000 - 1).abs().max() < 0.06
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(neighbours) < 0.01


def test_normals_point_out_of_a_ball():
    line = torch.linspace(-1, 1, 32)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    normals = normal_volume((20 * (0.6 - radius)).clamp_min(0)[None])[0]
    outward = torch.stack([x, y, z]) / radius.clamp_min(1e-6)
    surface = (radius > 0.35) & (radius < 0.5)
    assert ((normals * outward).sum(0)[surface] > 0.99).all()


def test_views_of_a_ball():
    line = torch.linspace(-1, 1, 48)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    volume = torch.zeros(1, 4, 48, 48, 48)
    volume[0, 0] = (400 * (0.6 - (x**2 + y**2 + z**2).sqrt())).clamp_min(0)
    volume[0, 1:] = 0.5
    eye = torch.tensor([[0.0, 0.0, 4.0]])
    cameras = Cameras(look_at(eye), intrinsics_from_fov(36.0, 33, 33)[None], 33, 33)
    views = render_views(volume, cameras, 256)
    centre = (0, 0, 16, 16)
    # below the surface sigma = 400 s, so light ends sqrt(pi / (2 * 400)) deep on average
    assert views["depth"][centre].item() == pytest.approx(3.4 + math.sqrt(math.pi / 800), abs=0.01)
    assert views["normals"][centre].tolist() == pytest.approx([0, 0, 1], abs=0.05)
    silhouette = 2 * math.asin(0.6 / 4)
    covered = 2 * (views["occupancy"][0, 0] > 0.5).sum().div(math.pi).sqrt().item()
    focal = cameras.intrinsics[0, 0, 0].item()
    assert covered == pytest.approx(2 * focal * math.tan(silhouette / 2), abs=1.0)
    assert views["depth"][0, 0, 0, 0] == 0 and views["occupancy"][0, 0, 0, 0] == 0


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, o, d: (v.index_fill(1, torch.tensor([0]), math.nan), o, d), "NaN or infinite"),
        (lambda v, o, d: (v.index_fill(1, torch.tensor([0]), math.inf), o, d), "NaN or infinite"),
        (lambda v, o, d: (v - 100, o, d), "expected none below 0"),
        (lambda v, o, d: (v, o, 2 * d), "length 2, expected unit length"),
        (lambda v, o, d: (v, o, 0 * d), "length 0, expected unit length"),
        (lambda v, o, d: (v[:, :3], o, d), "expected (b, 1 + 3, d, h, w)"),
        (lambda v, o, d: (v, o[:1], d[:1]), "2 volumes but rays for 1"),
        (lambda v, o, d: (v, o[..., :2], d), "expected both (b, r, 3)"),
    ],
)
def test_input_without_a_rendering(backend, change, message):
    volume, origins, directions = change(*random_scene())
    with pytest.raises(RenderingError) as error:
        render_rays(volume, origins, directions, 8, backend=backend)
    assert message in str(error.value)


def test_near_beyond_far():
    with pytest.raises(RenderingError, match="expected near < far"):
        render_rays(*random_scene(), 8, near=3.0, far=2.0)
    with pytest.raises(RenderingError, match="num_samples is 0"):
        render_rays(*random_scene(), 0)
    with pytest.raises(RenderingError, match="backend is 'fast'"):
        render_rays(*random_scene(), 8, backend="fast")
