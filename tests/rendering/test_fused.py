"""The fused renderer computes the reference's function: forward, gradients, autograd, compile, devices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.rendering.fused import fused_backend, render_forward, render_rays_fused
from vader.rendering.volume import RenderingError, clip_to_cube, render_rays, render_rays_reference

pytestmark = pytest.mark.skipif(fused_backend(torch.device("cpu")) is None, reason="numba is not installed")


def scene(seed: int, batch: int, size: tuple[int, int, int], rays: int, inside: bool, empty: float):
    """Random volumes, a share `empty` of whose density is 0, and random rays from inside or outside the cube."""
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(batch, 4, *size, generator=generator)
    volume[:, 0] = torch.where(torch.rand(batch, *size, generator=generator) < empty, 0.0, 20 * volume[:, 0] ** 2)
    origins = torch.randn(batch, rays, 3, generator=generator)
    origins = 0.9 * torch.tanh(origins) if inside else 3 * torch.nn.functional.normalize(origins, dim=-1)
    targets = 2.4 * torch.rand(batch, rays, 3, generator=generator) - 1.2  # some rays miss
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    weights = torch.randn(5, batch, rays, generator=generator)
    return volume, origins, directions, weights


def objective(rendering, weights):
    return (
        (rendering.colour * weights[:3].movedim(0, -1)).sum()
        + (rendering.occupancy * weights[3]).sum()
        + (rendering.depth * weights[4]).sum()
    )


def compare(volume, origins, directions, weights, num_samples, seed=None, stop=0.0, tolerance=2e-5):
    results, gradients = [], []
    for render in (render_rays_reference, render_rays_fused):
        leaf = volume.clone().requires_grad_()
        rendering = render(leaf, origins, directions, num_samples, seed, stop)
        objective(rendering, weights).backward()
        results.append(torch.cat([rendering.colour, rendering.occupancy[..., None], rendering.depth[..., None]], -1))
        gradients.append(leaf.grad.float())
    assert (results[0] - results[1]).abs().max() < tolerance
    scale = gradients[0].abs().max().clamp_min(1.0)
    assert (gradients[0] - gradients[1]).abs().max() / scale < tolerance
    return results, gradients


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31 - 1),
    batch=st.integers(1, 3),
    size=st.tuples(*[st.integers(2, 9)] * 3),
    rays=st.integers(1, 70),
    inside=st.booleans(),
    empty=st.sampled_from([0.0, 0.5, 1.0]),
    num_samples=st.integers(1, 40),
    stratified=st.booleans(),
)
def test_forward_and_gradient_equal_the_reference(seed, batch, size, rays, inside, empty, num_samples, stratified):
    compare(*scene(seed, batch, size, rays, inside, empty), num_samples, seed if stratified else None)


def test_rays_along_an_axis_and_rays_that_miss():
    origins = torch.tensor([[[0.3, 0.1, -3.0], [0.0, 0.0, 3.0], [-3.0, 0.2, 0.2], [0.0, 3.0, -3.0], [5.0, 5.0, 5.0]]])
    directions = torch.tensor([[[0, 0, 1.0], [0, 0, -1.0], [1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]])
    volume, *_ = scene(0, 1, (5, 6, 7), 1, False, 0.3)
    weights = torch.randn(5, 1, 5, generator=torch.Generator().manual_seed(1))
    results, _ = compare(volume, origins, directions, weights, 12)
    assert not results[1][0, 3:].any()


@pytest.mark.parametrize("stop", [1e-3, 0.2])
def test_early_stopping_equals_the_reference(stop):
    """Away from the threshold itself: a ray that ends on it to the last bit may end one sample apart."""
    for seed in range(5):
        compare(*scene(seed, 2, (6, 6, 6), 40, False, 0.2), 24, stop=stop)


def test_bfloat16_volumes_are_read_exactly_and_get_their_own_gradient():
    volume, origins, directions, weights = scene(2, 2, (6, 6, 6), 30, False, 0.3)
    half = volume.bfloat16().requires_grad_()
    objective(render_rays_fused(half, origins, directions, 16), weights).backward()
    full = volume.bfloat16().float().requires_grad_()
    rendering = render_rays_reference(full, origins, directions, 16)
    objective(rendering, weights).backward()
    assert half.grad.dtype == torch.bfloat16
    assert (render_rays_fused(half, origins, directions, 16).colour - rendering.colour).abs().max() < 2e-5
    assert (half.grad.float() - full.grad).abs().max() / full.grad.abs().max() < 2**-8


def test_memory_layouts_do_not_matter():
    volume, origins, directions, weights = scene(4, 2, (6, 6, 6), 30, False, 0.3)
    _, plain = compare(volume, origins, directions, weights, 16)
    _, channels_last = compare(
        volume.contiguous(memory_format=torch.channels_last_3d), origins, directions, weights, 16
    )
    assert torch.equal(plain[1], channels_last[1])


def test_further_channels_are_not_rendered_and_get_no_gradient():
    volume, origins, directions, weights = scene(5, 1, (5, 5, 5), 20, False, 0.3)
    wide = torch.cat([volume, torch.rand(1, 10, 5, 5, 5)], dim=1).requires_grad_()
    objective(render_rays_fused(wide, origins, directions, 10), weights).backward()
    narrow = volume.clone().requires_grad_()
    objective(render_rays_fused(narrow, origins, directions, 10), weights).backward()
    assert torch.equal(wide.grad[:, :4], narrow.grad)
    assert not wide.grad[:, 4:].any()


def test_the_same_bits_again():
    volume, origins, directions, weights = scene(6, 3, (8, 8, 8), 60, False, 0.3)
    gradients = []
    for _ in range(3):
        leaf = volume.clone().requires_grad_()
        objective(render_rays_fused(leaf, origins, directions, 16, 9), weights).backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_the_operator_is_well_formed():
    """Schema, fake tensors and autograd registration, by torch's own checker; so DDP and compile can use it."""
    volume, origins, directions, _ = scene(7, 1, (4, 4, 4), 6, False, 0.3)
    enter, leave = clip_to_cube(origins, directions, 0.0, float("inf"))
    torch.library.opcheck(render_forward, (volume.requires_grad_(), origins, directions, enter, leave, 5, -1, 0.0))


def test_auto_takes_the_fused_kernel_unless_rays_want_gradients():
    volume, origins, directions, _ = scene(8, 1, (4, 4, 4), 6, False, 0.3)
    assert render_rays(volume, origins, directions, 5).backend == "numba"
    assert render_rays(volume, origins, directions, 5, backend="reference").backend == "reference"
    directions.requires_grad_()
    assert render_rays(volume, origins, directions, 5).backend == "reference"
    with pytest.raises(RenderingError, match="no gradient for rays"):
        render_rays(volume, origins, directions, 5, backend="fused")
    with torch.no_grad():
        assert render_rays(volume, origins, directions, 5).backend == "numba"
