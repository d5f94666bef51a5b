"""The reference renderer: analytic scenes, a slow loop, finite differences, PyTorch3D, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vader.rendering.cameras import CameraError, Cameras, intrinsics_from_fov, look_at
from vader.rendering.rays import RenderingError, clip_to_cube
from vader.rendering.reference import composite, hash_uniform, render_rays_reference, sample_depths, sample_volume
from vader.rendering.render import normal_volume, render_rays, render_views

DOUBLE = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def voxels(size: int) -> tuple[torch.Tensor, ...]:
    """z, y, x of the voxel centres, (size, size, size) each."""
    line = torch.linspace(-1, 1, size, dtype=DOUBLE)
    return torch.meshgrid(line, line, line, indexing="ij")


def grey_volume(density: torch.Tensor, colour=(0.2, 0.5, 0.9)) -> torch.Tensor:
    colour = torch.tensor(colour, dtype=density.dtype).view(3, 1, 1, 1).expand(3, *density.shape)
    return torch.cat([density[None], colour])[None]


def ray(origin, direction) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[origin]], dtype=DOUBLE), normalize(torch.tensor([[direction]], dtype=DOUBLE), dim=-1)


def some_rays(n: int, seed: int, dtype=DOUBLE) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from inside and outside the cube; most hit it."""
    g = rng(seed)
    directions = normalize(torch.randn(2, n, 3, generator=g, dtype=dtype), dim=-1)
    middle = torch.rand(2, n, 3, generator=g, dtype=dtype) * 2.4 - 1.2
    return middle - directions * 2.5 * torch.rand(2, n, 1, generator=g, dtype=dtype), directions


@pytest.mark.parametrize(
    ("origin", "direction", "length"),
    [
        ((0.3, -0.2, -3.0), (0, 0, 1), 2.0),
        ((-4.0, 0.1, 0.2), (1, 0, 0), 2.0),
        ((-3.0, -3.0, -3.0), (1, 1, 1), 2 * math.sqrt(3)),
        ((0.0, -3.0, 3.0), (0, 1, -1), 2 * math.sqrt(2)),
        ((0.25, 0.0, 0.0), (0, 1, 0), 1.0),  # from inside
    ],
)
def test_homogeneous_cube(origin, direction, length):
    """Beer-Lambert: occupancy 1 - exp(-sigma L), whatever the number of samples; depth -> its integral."""
    sigma = 0.7
    volume = grey_volume(torch.full((5, 4, 3), sigma, dtype=DOUBLE))
    for samples in (1, 7, 400):
        r = render_rays_reference(volume, *ray(origin, direction), samples)
        hit = 1 - math.exp(-sigma * length)
        assert r.occupancy.item() == pytest.approx(hit, rel=1e-12)
        assert r.colour[0, 0].tolist() == pytest.approx([0.2 * hit, 0.5 * hit, 0.9 * hit], rel=1e-12)
    enter = clip_to_cube(*ray(origin, direction), 0, math.inf)[0].item()
    depth = enter * hit + (1 - math.exp(-sigma * length) * (1 + sigma * length)) / sigma
    assert r.depth.item() == pytest.approx(depth, rel=1e-4)
    assert r.backend == "reference"


def test_linear_density_and_colour():
    """With sigma = a + b z and constant density's colour ramp the line integrals are known in closed form."""
    z, _, _ = voxels(5)
    o, d = ray((0.1, 0.2, -3.0), (0, 0, 1))
    r = render_rays_reference(grey_volume(0.6 + 0.5 * z), o, d, 9)  # the midpoint rule is exact for a line
    assert r.occupancy.item() == pytest.approx(1 - math.exp(-1.2), rel=1e-12)
    # Colour (1 + z) / 2 = s / 2 at the way s into the cube: integral of sigma exp(-sigma s) s / 2 over [0, 2].
    sigma = 0.8
    volume = grey_volume(torch.full((5, 5, 5), sigma, dtype=DOUBLE))
    volume[0, 1] = (1 + z) / 2
    red = render_rays_reference(volume, o, d, 500).colour[0, 0, 0].item()
    assert red == pytest.approx((1 - math.exp(-2 * sigma) * (1 + 2 * sigma)) / sigma / 2, rel=1e-4)


def test_front_hides_back_and_black_is_the_background():
    _, _, x = voxels(9)
    volume = grey_volume(200.0 * (x.abs() > 0.4), (0, 0, 0))
    volume[0, 1], volume[0, 2] = x > 0.4, x < -0.4  # red at +x, green at -x
    from_right, from_left = ray((3, 0, 0), (-1, 0, 0)), ray((-3, 0, 0), (1, 0, 0))
    right, left = (render_rays_reference(volume, *r, 200).colour[0, 0] for r in (from_right, from_left))
    assert right[0] > 0.9 and right[1] < 1e-6 and left[1] > 0.9 and left[0] < 1e-6
    miss = render_rays_reference(volume, *ray((3, 2, 0), (-1, 0, 0)), 200)
    assert miss.colour.abs().max() == miss.occupancy.item() == miss.depth.item() == 0


def slow_render(volume, o, d, n, seed, stop, near, far, first):
    """One ray in plain Python: the definition of the renderer, without a line in common with it."""
    enter, leave = near, far
    for a in range(3):
        if abs(d[a]) < 1e-9:
            if abs(o[a]) > 1:
                return [0.0] * 5
            continue
        bounds = sorted([(-1 - o[a]) / d[a], (1 - o[a]) / d[a]])
        enter, leave = max(enter, bounds[0]), min(leave, bounds[1])
    step = max(0.0, leave - enter) / n
    light, result = 1.0, [0.0] * 5
    for i in range(n):
        offset = 0.5
        if seed is not None:
            x = (first + i + seed * 0x9E3779B9) % 2**32
            x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
            x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
            offset = ((x ^ (x >> 16)) >> 8) / 2**24
        t = enter + (i + offset) * step
        values = [0.0] * 4
        sizes = volume.shape[:0:-1][:3]  # w, h, d
        position = [(o[a] + t * d[a] + 1) / 2 * (sizes[a] - 1) for a in range(3)]
        low = [min(max(math.floor(p), 0), s - 2) for p, s in zip(position, sizes, strict=True)]
        for corner in range(8):
            bits = [corner >> a & 1 for a in range(3)]
            index = [k + bit for k, bit in zip(low, bits, strict=True)]
            weight = 1.0
            for a in range(3):
                weight *= max(0.0, 1 - abs(position[a] - index[a]))
            for c in range(4):
                values[c] += weight * volume[c, index[2], index[1], index[0]].item()
        if light < stop:
            break
        absorbed = light * (1 - math.exp(-values[0] * step))
        for k, value in enumerate([*values[1:], 1.0, t]):
            result[k] += absorbed * value
        light -= absorbed
    return result


@settings(max_examples=12)
@given(
    size=st.tuples(*[st.integers(2, 5)] * 3),
    samples=st.integers(1, 6),
    seed=st.one_of(st.none(), st.integers(0, 2**31)),
    stop=st.sampled_from([0.0, 0.3]),
    bounds=st.sampled_from([(0.0, math.inf), (1.0, 2.5)]),
)
def test_against_a_slow_loop(size, samples, seed, stop, bounds):
    volume = torch.rand(2, 4, *size, generator=rng(1), dtype=DOUBLE) * 2
    o, d = some_rays(5, 2)
    d[0, 0], d[1, 0] = torch.tensor([0.0, 1, 0], dtype=DOUBLE), torch.tensor([0.0, 0, -1], dtype=DOUBLE)
    r = render_rays_reference(volume, o, d, samples, seed, stop, *bounds)
    result = torch.cat([r.colour, r.occupancy[..., None], r.depth[..., None]], dim=-1)
    for b in range(2):
        for i in range(5):
            first = (b * 5 + i) * samples
            expected = slow_render(volume[b], o[b, i].tolist(), d[b, i].tolist(), samples, seed, stop, *bounds, first)
            assert result[b, i].tolist() == pytest.approx(expected, abs=1e-7)


def test_gradients_of_volume_and_rays_by_finite_differences():
    volume = torch.rand(2, 4, 2, 4, 3, generator=rng(3), dtype=DOUBLE).requires_grad_()
    o, d = (x.requires_grad_() for x in some_rays(3, 4))
    assert torch.autograd.gradcheck(
        lambda *inputs: [getattr(render_rays_reference(*inputs, 4, 7), x) for x in ("colour", "occupancy", "depth")],
        (volume, o, d),
        fast_mode=True,
    )


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_clipping_finds_the_way_through_the_cube(seed):
    o, d = some_rays(20, seed)
    near, far = 0.2, 3.0
    enter, leave = clip_to_cube(o, d, near, far)
    t = torch.linspace(near, far, 400, dtype=DOUBLE)[1:-1]
    inside = ((o[..., None, :] + t[:, None] * d[..., None, :]).abs() <= 1).all(-1)  # (2, 20, 398)
    within = (t > enter[..., None]) & (t < leave[..., None])
    assert (inside == within).all()
    assert (enter >= near).all() and (leave <= far).all() and (enter <= leave).all()


def test_clipping_of_rays_along_faces():
    o = torch.tensor([[[0.5, 0, -3], [1.0, 0, -3], [-1.0, 0, -3], [1.001, 0, -3], [0.0, 0.0, 0.0]]])
    d = torch.tensor([0.0, 0.0, 1.0]).expand(1, 5, 3)
    enter, leave = clip_to_cube(o, d, 0.0, math.inf)
    assert (leave - enter).tolist() == [[2.0, 2.0, 2.0, 0.0, 1.0]]
    assert enter[0, :3].tolist() == [2.0] * 3 and enter[0, 4] == 0


def test_samples_are_one_in_each_bin():
    enter, leave = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])
    assert sample_depths(enter, leave, 4, None).tolist() == [[[1.25, 1.75, 2.25, 2.75], [2.0] * 4]]
    assert sample_depths(enter, leave, 1, None).tolist() == [[[2.0], [2.0]]]
    drawn = sample_depths(enter, leave, 1000, 5)
    bins = ((drawn[0, 0] - 1) / 2e-3).floor()
    assert (bins == torch.arange(1000)).float().mean() > 0.99  # float rounding may cross a bin's edge
    assert not torch.equal(drawn, sample_depths(enter, leave, 1000, 6))
    assert torch.equal(drawn, sample_depths(enter, leave, 1000, 5))


def test_hash_is_uniform_and_seeds_are_unrelated():
    index = torch.arange(20000)
    draws = torch.stack([hash_uniform(seed, index) for seed in (0, 1, 2**31 + 7)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.stack([torch.histc(x, 20, 0, 1) for x in draws])
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)  # five standard deviations
    correlation = torch.corrcoef(torch.cat([draws, draws[:1].roll(1)]))
    assert (correlation - torch.eye(4)).abs().max() < 0.035  # five standard deviations


def test_volume_values_at_voxel_centres_and_outside():
    volume = torch.rand(1, 2, 3, 4, 5, generator=rng())
    points = torch.tensor([[[-1.0, -1, -1], [1, 1, 1], [-0.5, 1 / 3, 0], [1.5, 0, 0]]])  # (x, y, z)
    values = sample_volume(volume, points)[0]
    expected = torch.stack([volume[0, :, 0, 0, 0], volume[0, :, 2, 3, 4], volume[0, :, 1, 2, 1], torch.zeros(2)], dim=1)
    torch.testing.assert_close(values, expected)


def test_early_termination_costs_at_most_its_share():
    volume = torch.rand(2, 4, 6, 6, 6, generator=rng(5), dtype=DOUBLE)
    volume[:, 0] *= 30
    o, d = some_rays(50, 6)
    whole, stopped = (render_rays_reference(volume, o, d, 40, stop=stop) for stop in (0.0, 0.02))
    lost = whole.occupancy - stopped.occupancy
    assert 0 <= lost.min() and 1e-4 < lost.max() < 0.02
    assert (whole.colour - stopped.colour).abs().max() < 0.02


def test_composite_weights_sum_to_the_light_lost():
    density = torch.rand(1, 3, 8, generator=rng(7), dtype=DOUBLE) * 5
    step = torch.tensor([[0.1, 0.0, 2.0]], dtype=DOUBLE)
    colour = torch.ones(1, 3, 3, 8, dtype=DOUBLE)
    rgb, occupancy, _ = composite(density, colour, torch.ones_like(density), step)
    torch.testing.assert_close(occupancy, 1 - torch.exp(-(density.sum(-1) * step)))
    torch.testing.assert_close(rgb, occupancy[..., None].expand(1, 3, 3))


def test_bfloat16_volumes_are_read_in_the_precision_of_the_rays():
    volume = torch.rand(2, 4, 5, 5, 5, generator=rng(8)).bfloat16()
    o, d = some_rays(20, 9, torch.float32)
    low, high = (render_rays_reference(v, o, d, 9) for v in (volume, volume.float()))
    assert low.colour.dtype == torch.float32 and torch.equal(low.colour, high.colour)


def test_pytorch3d_renders_the_same():
    """VolumeRenderer with our samples and its emission-absorption, whose alphas are 1 - exp(-sigma step)."""
    pytest.importorskip("pytorch3d")
    from pytorch3d.renderer import EmissionAbsorptionRaymarcher, NDCMultinomialRaysampler, RayBundle, VolumeRenderer
    from pytorch3d.structures import Volumes

    from vader.data.formats.pytorch3d_cameras import to_pytorch3d

    size, samples = 7, 20
    values = torch.rand(2, 4, size, size, size, generator=rng(10)) * torch.tensor([4.0, 1, 1, 1]).view(4, 1, 1, 1)
    cameras = Cameras(
        look_at(torch.tensor([[2.0, 1.0, 2.0], [0.4, 0.3, -0.5]])), intrinsics_from_fov(50, 6, 5).expand(2, 3, 3), 6, 5
    )
    own_origins, own_directions = (x.reshape(1, -1, 3).expand(2, -1, -1) for x in cameras.rays())

    theirs = to_pytorch3d(cameras)
    sampler = NDCMultinomialRaysampler(image_width=5, image_height=6, n_pts_per_ray=2, min_depth=1.0, max_depth=2.0)
    grid = sampler(theirs)
    origins, directions = (
        x.reshape(1, -1, 3).expand(2, -1, -1) for x in (grid.origins, normalize(grid.directions, dim=-1))
    )
    torch.testing.assert_close(origins, own_origins, atol=1e-5, rtol=0)
    torch.testing.assert_close(directions, own_directions, atol=1e-5, rtol=0)

    enter, leave = clip_to_cube(origins, directions, 0.0, math.inf)
    lengths = sample_depths(enter, leave, samples, None)
    step = ((leave - enter) / samples)[..., None]

    class BeerLambert(EmissionAbsorptionRaymarcher):
        def forward(self, rays_densities, rays_features, **options):
            return super().forward(1 - torch.exp(-rays_densities * step[..., None]), rays_features, **options)

    def bundle(cameras, **options):
        return RayBundle(origins=origins, directions=directions, lengths=lengths, xys=directions[..., :2])

    results = []
    weights = torch.rand(2, 60, 4, generator=rng(11))
    for render in ("theirs", "reference", "fused"):
        volume = values.clone().requires_grad_()
        if render == "theirs":
            volumes = Volumes(densities=volume[:, :1], features=volume[:, 1:], voxel_size=2 / (size - 1))
            picture = VolumeRenderer(bundle, BeerLambert())(cameras=theirs, volumes=volumes)[0]
        else:
            r = render_rays(volume, own_origins, own_directions, samples, backend=render)
            picture = torch.cat([r.colour, r.occupancy[..., None]], dim=-1)
        (picture * weights).sum().backward()
        results.append((picture.detach(), volume.grad))
    assert 0.2 < results[0][0][..., 3].mean() < 0.95
    for picture, gradient in results[1:]:
        torch.testing.assert_close(picture, results[0][0], atol=2e-5, rtol=0)
        torch.testing.assert_close(gradient, results[0][1], atol=2e-5, rtol=1e-3)


def test_normals_of_a_ball_point_outwards():
    z, y, x = voxels(17)
    radius = (x**2 + y**2 + z**2).sqrt()
    normals = normal_volume((2 - radius)[None])[0]
    shell = (radius > 0.4) & (radius < 0.9) & (x.abs() < 0.99) & (y.abs() < 0.99) & (z.abs() < 0.99)
    outwards = torch.stack([x, y, z]) / radius
    assert ((normals * outwards).sum(0)[shell] > 0.98).all()
    assert (normal_volume(torch.ones(1, 4, 4, 4)) == 0).all()


def test_views_of_a_ball():
    z, y, x = voxels(33)
    volume = grey_volume(30.0 * torch.sigmoid(15 * (0.6 - (x**2 + y**2 + z**2).sqrt()))).float()
    cameras = Cameras(
        look_at(torch.tensor([[0.0, 0, 3], [3, 0, 0]])), intrinsics_from_fov(45, 25, 25).expand(2, 3, 3), 25, 25
    )
    views = render_views(volume, cameras, 96)
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    assert shapes == {
        "colour": (1, 2, 25, 25, 3),
        "occupancy": (1, 2, 25, 25),
        "depth": (1, 2, 25, 25),
        "normals": (1, 2, 25, 25, 3),
    }
    assert shapes.keys() - render_views(volume, cameras, 96, normals=False).keys() == {"normals"}
    assert views["occupancy"][0, :, 12, 12].min() > 0.999 and views["occupancy"][0, :, 0, 0].max() < 1e-3
    assert views["depth"][0, :, 12, 12].tolist() == pytest.approx([2.35, 2.35], abs=0.1)
    assert views["depth"][0, :, 0, 0].max() == 0
    assert views["normals"][0, 0, 12, 12].tolist() == pytest.approx([0, 0, 1], abs=0.05)
    assert views["normals"][0, 1, 12, 12].tolist() == pytest.approx([1, 0, 0], abs=0.05)
    # The silhouette is where the density's own integral along a ray exceeds ln 2.
    o, d = cameras.rays()
    points = o[:, :, None] + torch.linspace(2, 4, 500)[:, None] * d[:, :, None]
    optical = (30 * torch.sigmoid(15 * (0.6 - points.norm(dim=-1)))).sum(-1) * (2 / 500)
    expected = (optical > math.log(2)).sum(1)
    assert (views["occupancy"] > 0.5).sum((-2, -1))[0].tolist() == pytest.approx(expected.tolist(), rel=0.05)
    for name in views:
        reference = render_views(volume, cameras, 96, stop=0.0, backend="reference")[name]
        torch.testing.assert_close(views[name], reference, atol=5e-4, rtol=0)


def test_views_refuse_bad_cameras():
    cameras = Cameras(look_at(torch.tensor([[0.0, 0, 3]])), -intrinsics_from_fov(45, 4, 4)[None], 4, 4)
    with pytest.raises(CameraError, match="cameras, view 0: focal lengths are -"):
        render_views(torch.rand(1, 4, 4, 4, 4), cameras, 4)


def arguments(**changes):
    volume, (o, d) = torch.rand(2, 4, 3, 3, 3), some_rays(4, 0, torch.float32)
    values = {"volume": volume, "origins": o, "directions": d, "num_samples": 4}
    for name, change in changes.items():
        values[name] = change(values[name]) if callable(change) else change
    return values


def with_value(value, *index):
    def change(x):
        x = x.clone()
        x[index] = value
        return x

    return change


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volume": with_value(math.nan, 1, 0, 2, 1, 0)}, "NaN or infinite value"),
        ({"volume": with_value(math.inf, 0, 0, 0, 0, 0)}, "NaN or infinite value"),
        ({"volume": with_value(math.nan, 0, 2, 0, 0, 0)}, "NaN or infinite value"),
        ({"volume": with_value(-0.5, 1, 0, 0, 0, 0)}, "density reaches -0.5, expected none below 0"),
        ({"directions": with_value(0.0, 1, 3)}, "a ray direction has length 0, expected unit length"),
        ({"directions": lambda d: 2 * d}, "a ray direction has length 2, expected unit length"),
        ({"directions": with_value(math.nan, 0, 0, 0)}, "NaN or infinite origin or direction"),
        ({"origins": with_value(math.inf, 0, 0, 0)}, "NaN or infinite origin or direction"),
        ({"near": 2.0, "far": 1.0}, "near is 2 and far is 1, expected near < far"),
        ({"near": 1.0, "far": 1.0}, "near is 1 and far is 1, expected near < far"),
        ({"near": math.nan}, "near is nan"),
        ({"num_samples": 0}, "num_samples is 0, expected at least 1"),
        ({"stop": 1.0}, r"stop is 1, expected a share of the light in \[0, 1\)"),
        ({"stop": -0.1}, "stop is -0.1"),
        ({"volume": lambda v: v[:, :3]}, r"volume has shape \(2, 3, 3, 3, 3\), expected \(b, 1 \+ 3, d, h, w\)"),
        ({"volume": lambda v: v[..., :1]}, "with d, h, w >= 2"),
        ({"volume": lambda v: v[0]}, r"volume has shape \(4, 3, 3, 3\)"),
        ({"volume": lambda v: v[:1]}, "1 volumes but rays for 2"),
        ({"origins": lambda o: o[:, :3]}, r"origins \(2, 3, 3\) and directions \(2, 4, 3\), expected both \(b, r, 3\)"),
        ({"origins": lambda o: o[0], "directions": lambda d: d[0]}, r"expected both \(b, r, 3\)"),
    ],
)
def test_bad_input_is_refused(changes, message, backend):
    with pytest.raises(RenderingError, match=message):
        render_rays(**arguments(**changes), backend=backend)


def test_shapes_are_checked_even_where_values_are_not():
    with pytest.raises(RenderingError, match="1 volumes but rays for 2"):
        render_rays(**arguments(volume=lambda v: v[:1]), check=False)


def test_unknown_backend_is_refused():
    with pytest.raises(RenderingError, match="backend is 'opengl', expected 'auto', 'reference' or 'fused'"):
        render_rays(**arguments(), backend="opengl")
