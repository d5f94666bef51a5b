"""The fused renderer: against the reference, in autograd, torch.compile and DDP, and its CUDA kernels without CUDA."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from vader.rendering import backends, fused
from vader.rendering.backends import fused_backend, how_it_renders
from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at
from vader.rendering.fused import empty_space, render_backward, render_forward, render_rays_fused
from vader.rendering.rays import RenderingError
from vader.rendering.reference import render_rays_reference
from vader.rendering.render import render_images, render_rays, render_views

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])  # of subprocesses
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(seed=0, b=2, r=24, size=(5, 4, 6), channels=4, density=4.0, filled=1.0, dtype=torch.float32, device="cpu"):
    """A random volume and rays: from outside and inside, along the axes, and past the cube."""
    g = rng(seed)
    volume = torch.rand(b, channels, *size, generator=g)
    volume[:, 0] *= density * (torch.rand(b, *size, generator=g) < filled)
    directions = normalize(torch.randn(b, r, 3, generator=g), dim=-1)
    axes = torch.eye(3)[torch.randint(3, (r // 4,), generator=g)] * (1 - 2 * torch.randint(2, (r // 4, 1), generator=g))
    directions[:, : r // 4] = axes
    middle = torch.rand(b, r, 3, generator=g) * 2.4 - 1.2
    origins = middle - directions * 3 * torch.rand(b, r, 1, generator=g)
    return volume.to(dtype).to(device), origins.to(device), directions.to(device)


def picture(rendering) -> torch.Tensor:
    return torch.cat([rendering.colour, rendering.occupancy[..., None], rendering.depth[..., None]], dim=-1)


def picture_and_gradient(render, volume, origins, directions, samples, *options):
    """(b, r, 5) and the gradient of its random projection."""
    volume = volume.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    result = picture(render(volume, origins, directions, samples, *options))
    weights = torch.randn(result.shape, generator=rng(1)).to(result.device)
    (result * weights).sum().backward()
    return result.detach(), volume.grad


def assert_agrees(ours, reference, atol=3e-5):
    torch.testing.assert_close(ours[0], reference[0], atol=atol, rtol=1e-5)
    scale = max(1.0, reference[1].float().abs().max().item())
    precision = atol if ours[1].dtype == torch.float32 else 2**-8  # of the volume's gradient
    torch.testing.assert_close(ours[1].float(), reference[1].float(), atol=precision * scale, rtol=0)


@needs_numba
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    b=st.integers(1, 3),
    size=st.tuples(*[st.integers(2, 9)] * 3),
    channels=st.sampled_from([4, 4, 14]),
    density=st.sampled_from([0.1, 3.0, 40.0]),
    filled=st.sampled_from([0.0, 0.1, 1.0]),
    samples=st.sampled_from([1, 2, 7, 8, 33, 48]),
    stratified=st.one_of(st.none(), st.integers(-(2**33), 2**33)),
    bounds=st.sampled_from([(0.0, math.inf), (0.5, 2.0)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    channels_last=st.booleans(),
)
def test_fused_is_the_reference(
    seed, b, size, channels, density, filled, samples, stratified, bounds, dtype, channels_last
):
    volume, origins, directions = scene(seed, b, 12, size, channels, density, filled, dtype)
    if channels_last:
        volume = volume.contiguous(memory_format=torch.channels_last_3d)
    options = (origins, directions, samples, stratified, 0.0, *bounds)
    ours = picture_and_gradient(render_rays_fused, volume, *options)
    assert_agrees(ours, picture_and_gradient(render_rays_reference, volume, *options))
    assert ours[1].dtype == dtype and (ours[1][:, 4:] == 0).all()
    assert ours[0][..., 3].min() >= -1e-6 and ours[0][..., 3].max() <= 1 + 1e-6


@needs_numba
def test_early_termination_is_that_of_the_reference():
    """Where no ray's light comes near the threshold, both drop exactly the same samples."""
    volume, origins, directions = scene(3, b=2, r=60, density=30.0)
    for samples in (8, 50):
        options = (volume, origins, directions, samples, 4, 0.05)
        ours = picture_and_gradient(render_rays_fused, *options)
        assert_agrees(ours, picture_and_gradient(render_rays_reference, *options))
        assert (ours[0] - picture(render_rays_fused(*options[:-1]))).abs().max() > 1e-3  # it did stop


@needs_numba
def test_gradient_by_finite_differences():
    volume, origins, directions = scene(5, b=1, r=40)
    weights = torch.randn(40, 5, generator=rng(1))
    _, gradient = picture_and_gradient(render_rays_fused, volume, origins, directions, 16)
    change = torch.randn(volume.shape, generator=rng(2))
    change[:, 0] *= volume[:, 0] > 0.05

    def projected(h):
        return (picture(render_rays_fused(volume + h * change, origins, directions, 16)).double() * weights).sum()

    h = 0.01
    slope = (projected(h) - projected(-h)) / (2 * h)
    assert slope.item() == pytest.approx((gradient * change).sum().item(), rel=2e-3)
    assert abs(slope) > 0.5


@needs_numba
def test_threads_change_no_bits_of_the_picture_and_rounding_of_the_gradient():
    threads = torch.get_num_threads()
    try:
        for b in (1, 3):
            volume, origins, directions = scene(6, b=b, r=200)
            torch.set_num_threads(1)
            one = picture_and_gradient(render_rays_fused, volume, origins, directions, 20)
            torch.set_num_threads(2)
            two, again = (picture_and_gradient(render_rays_fused, volume, origins, directions, 20) for _ in range(2))
            assert torch.equal(one[0], two[0])
            assert torch.equal(two[1], again[1])
            torch.testing.assert_close(one[1], two[1], atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(threads)


@needs_numba
def test_auto_takes_what_can_answer_and_says_so():
    volume, origins, directions = scene()
    assert render_rays(volume, origins, directions, 3).backend == "numba"
    assert render_rays(volume.double(), origins.double(), directions.double(), 3).backend == "reference"
    assert render_rays(volume, origins.clone().requires_grad_(), directions, 3).backend == "reference"
    with torch.no_grad():
        assert render_rays(volume, origins.clone().requires_grad_(), directions, 3).backend == "numba"
    assert fused_backend(torch.device("meta")) is None


def test_without_a_compiler_the_reference_answers(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {})
    assert render_rays(*scene(), 3).backend == "reference"
    with pytest.raises(RenderingError, match=r"no fused renderer for cpu: numba \(CPU\) or triton \(CUDA\) is needed"):
        render_rays(*scene(), 3, backend="fused")


CompilationError = type("CompilationError", (Exception,), {"__module__": "triton.compiler.errors"})


@needs_numba
@pytest.mark.parametrize("broken", ["render_forward", "render_backward", "empty_space"])
def test_kernels_that_do_not_compile_are_replaced_by_the_reference_which_is_said_once(monkeypatch, broken):
    monkeypatch.setattr(backends, "FAILED", {})
    monkeypatch.setattr(fused, broken, in_turn(CompilationError("at 3:4")))

    def rectified(volume, origins, directions, samples):
        return render_rays(volume, origins, directions, samples, rectified=True)

    arguments = (*scene(), 7)
    reference = picture_and_gradient(render_rays_reference, *arguments)
    with pytest.warns(UserWarning, match="cpu: the fused renderer is not compiled .at 3:4.; the reference renders"):
        assert_agrees(picture_and_gradient(rectified, *arguments), reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_agrees(picture_and_gradient(rectified, *arguments), reference)
    assert how_it_renders(torch.device("cpu")) == "reference (numba: CompilationError)"
    assert rectified(*arguments).backend == "reference"
    with pytest.raises(RenderingError, match="no fused renderer for cpu"):
        render_rays(*arguments, backend="fused")


@pytest.mark.parametrize(
    "error", [RuntimeError("Triton Error [CUDA]: an illegal memory access"), torch.OutOfMemoryError("no memory")]
)
def test_what_fails_in_running_is_not_hidden(monkeypatch, error):
    monkeypatch.setattr(backends, "FAILED", {})
    with pytest.raises(type(error), match=str(error)[:5]):
        backends.attempt(torch.device("cpu"), in_turn(error), lambda: 0)
    assert not backends.FAILED
    for compiling in (RuntimeError("Failed to find C compiler."), FileNotFoundError("ptxas")):
        backends.FAILED.clear()
        with pytest.warns(UserWarning, match="the reference renders"):
            assert backends.attempt(torch.device("cpu"), in_turn(compiling), lambda: 7) == 7


def test_a_volume_larger_than_memory_is_refused_before_any_work():
    leaf = torch.zeros(1, 4, 1, 1, 1)
    rays = torch.zeros(64, 1, 3), torch.zeros(64, 1, 3)
    lens = intrinsics_from_fov(36.0, 2, 2).expand(64, 3, 3)
    cameras = Cameras(look_at(torch.ones(64, 3)), lens, 2, 2)
    for learning, expected in ((False, r"512.0 GiB to be rendered, but cpu has \S+ GiB free"), (True, "1,024.0 GiB")):
        volume = leaf.clone().requires_grad_(learning).expand(64, 4, 512, 1024, 1024)
        for backend in ("auto", "reference"):
            with pytest.raises(RenderingError, match=expected):
                render_rays(volume, *rays, 4, backend=backend)
        with pytest.raises(RenderingError, match=expected):
            render_images(volume, cameras, 4)


@needs_numba
def test_a_seed_in_a_tensor_is_that_seed():
    for backend in ("fused", "reference"):
        for seed in (5, 2**31 - 1):
            a, b = (render_rays(*scene(), 9, stratified_seed=x, backend=backend) for x in (seed, torch.tensor(seed)))
            assert torch.equal(picture(a), picture(b))


@needs_numba
def test_what_the_kernels_do_not_do_is_refused():
    volume, origins, directions = scene()
    with pytest.raises(RenderingError, match="no gradient for rays: take backend='reference'"):
        render_rays(volume, origins.requires_grad_(), directions, 3, backend="fused")
    origins = origins.detach()
    with pytest.raises(RenderingError, match="volume is torch.float64, expected one of"):
        render_rays(volume.double(), origins, directions, 3, backend="fused")
    with pytest.raises(RenderingError, match="skip_empty leaves out samples that a gradient needs"):
        render_rays(volume.requires_grad_(), origins, directions, 3, skip_empty=True)
    loss = render_rays(volume, origins, directions, 3).colour.square().sum()
    (gradient,) = torch.autograd.grad(loss, volume, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@needs_numba
def test_unchecked_nan_stays_nan():
    volume, origins, directions = scene(7, b=1)
    volume[0, 0, 2, 2, 3] = math.nan
    ours, reference = (
        render_rays(volume, origins, directions, 9, backend=backend, check=False).occupancy.isnan()
        for backend in ("fused", "reference")
    )
    assert torch.equal(ours, reference) and 0 < ours.sum() < ours.numel()
    origins[0, 0] = math.nan  # and a ray without a place reads no memory but the volume's
    render_rays(volume, origins, directions, 9, check=False)


@needs_numba
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(*[st.integers(2, 13)] * 3),
    samples=st.sampled_from([1, 8, 20, 64]),
    stratified=st.one_of(st.none(), st.integers(0, 100)),
    stop=st.sampled_from([0.0, 1e-3, 0.05]),
    filled=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    haze=st.sampled_from([0.0, 1e-5, 1e-2]),
)
def test_skipping_empty_space_changes_at_most_the_threshold(seed, size, samples, stratified, stop, filled, haze):
    volume, origins, directions = scene(seed, 2, 40, size, density=30.0, filled=filled)
    volume[:, 0] += haze * torch.rand(volume[:, 0].shape, generator=rng(seed))
    options = {"stratified_seed": stratified, "stop": stop, "backend": "fused"}
    plain, skipping = (
        render_rays(volume, origins, directions, samples, skip_empty=skip, **options) for skip in (False, True)
    )
    # What is left out absorbs at most `stop`; that, and its shadow, may also move the end of a ray by a sample.
    allowed = 1e-6 + 2 * stop
    assert (plain.colour - skipping.colour).abs().max() <= allowed
    assert (plain.occupancy - skipping.occupancy).abs().max() <= allowed


@needs_numba
def test_skipping_skips(monkeypatch):
    """Rays that meet nothing but a lone bright voxel: a wrong map would lose or keep it."""
    volume = torch.zeros(1, 4, 17, 17, 17)
    volume[0, 0, 3, 12, 9], volume[0, 1:] = 50.0, 0.9
    origins = torch.rand(1, 500, 3, generator=rng()) * 0.3 - 0.15 + torch.tensor([0.125, 0.5, -0.625])
    directions = normalize(torch.randn(1, 500, 3, generator=rng(1)), dim=-1)
    options = (volume, origins - 2 * directions, directions, 100)
    plain, skipping = (render_rays(*options, skip_empty=skip).colour for skip in (False, True))
    assert torch.equal(plain, skipping) and plain.max() > 0.5

    def nothing(*arguments):
        return tuple(torch.zeros_like(x) for x in empty_space(*arguments))

    monkeypatch.setattr(fused, "empty_space", nothing)
    assert render_rays(*options, skip_empty=True).colour.max() == 0  # the maps decide


@needs_numba
@pytest.mark.parametrize("samples", [24, 33, 64])
def test_a_lone_voxel_is_found_wherever_it_lies_on_a_segment(samples):
    """Segments as long as several blocks of the map: what decides for one must reach to both of its ends."""
    voxels = torch.randint(2, 31, (8, 3), generator=rng())
    volume = torch.zeros(8, 4, 33, 33, 33)
    volume[:, 1:] = 0.9
    for one, (z, y, x) in zip(volume, voxels.tolist(), strict=True):
        one[0, z, y, x] = 30.0
    towards = (voxels.flip(1) / 16 - 1)[:, None] + 0.02 * torch.randn(8, 40, 3, generator=rng(1))
    directions = normalize(torch.randn(8, 40, 3, generator=rng(2)), dim=-1)
    options = {"stratified_seed": 3, "backend": "fused"}
    found = []
    for rectified in (False, True):
        leaf = volume.clone().requires_grad_()
        result = picture(
            render_rays(leaf, towards - 3 * directions, directions, samples, rectified=rectified, **options)
        )
        result.square().sum().backward()
        found.append((result.detach(), leaf.grad * (volume[:, :1] > 0)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert (found[0][0][..., 3] > 0.2).sum() > 40 and empty_space(volume, 0.0, samples)[0] is not None


@needs_numba
def test_a_full_volume_is_marched_through_without_maps():
    assert empty_space(torch.rand(1, 4, 9, 9, 9) + 0.1, 0.0, 20) == (None, None)
    solid, close = empty_space(torch.zeros(2, 4, 9, 6, 7), 0.0, 20)
    assert solid.shape == (2, 9, 6, 7) and close.shape == (2, 4, 3, 3) and not solid.any() and not close.any()


@needs_numba
def test_maps_of_empty_space_against_a_slow_search(monkeypatch):
    monkeypatch.setattr(fused, "FULL", 1.0)
    volume = torch.zeros(2, 4, 6, 5, 17)
    density = volume[:, 0]
    density[0, 5, 4, 8], density[1, 2, 1, 4] = 1.0, 0.3
    samples, threshold = 27, 0.2
    solid, close = empty_space(volume, threshold, samples)
    assert solid.dtype == close.dtype == torch.uint8 and close.shape == (2, 3, 2, 8)
    for b, z, y, x in torch.cartesian_prod(*[torch.arange(n - (k > 0)) for k, n in enumerate(density.shape)]).tolist():
        cell = density[b, z : z + 2, y : y + 2, x : x + 2]
        assert solid[b, z, y, x] == (cell.max() > threshold)
    reach = [8 / samples / 2 * (n - 1) for n in density.shape[1:]]
    for b, z, y, x in torch.cartesian_prod(*[torch.arange(n) for n in close.shape]).tolist():
        region = density[b]
        for axis, k in enumerate((z, y, x)):
            low, high = k * 2 - reach[axis], (k + 1) * 2 + reach[axis]
            index = [i for i in range(density.shape[axis + 1]) if low - 1 < i < high + 1]
            region = region.index_select(axis, torch.tensor(index))
        if region.max() > threshold:  # a trilinear density above the threshold may be within reach
            assert close[b, z, y, x] == 1
    assert close[0, 0, 0, 0] == 0 and close[1, 2, 1, 6] == 0
    assert not empty_space(volume, 0.4, samples)[1][1].any()
    solid, close = empty_space(torch.full((1, 4, 2, 2, 2), math.nan), 0.4, samples)
    assert solid[0, 0, 0, 0] == close.min() == 1  # NaN is not empty


@needs_numba
@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(*[st.integers(2, 11)] * 3),
    samples=st.sampled_from([1, 8, 19, 40]),
    stop=st.sampled_from([0.0, 0.05]),
    filled=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_behind_a_relu_skipping_changes_no_bit_of_picture_or_gradient(seed, size, samples, stop, filled):
    volume, origins, directions = scene(seed, 2, 40, size, density=20.0, filled=filled)
    raw = torch.cat([volume[:, :1] - 0.01 * (volume[:, :1] == 0), volume[:, 1:]], dim=1)
    results = []
    for rectified in (False, True):
        leaf = raw.clone().requires_grad_()
        behind = torch.cat([leaf[:, :1].relu(), leaf[:, 1:]], dim=1)
        options = {"stratified_seed": seed, "stop": stop, "rectified": rectified, "backend": "fused"}
        result = picture(render_rays(behind, origins, directions, samples, **options))
        (result * torch.randn(result.shape, generator=rng(1))).sum().backward()
        results.append((result.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=needs_numba)])
def test_no_objects_and_no_rays(backend):
    for b, r in ((0, 3), (2, 0)):
        volume = torch.rand(b, 4, 3, 3, 3, requires_grad=True)
        rendering = render_rays(volume, torch.zeros(b, r, 3), torch.ones(b, r, 3) / 3**0.5, 4, backend=backend)
        assert rendering.colour.shape == (b, r, 3) and rendering.depth.shape == (b, r)
        rendering.colour.sum().backward()
        assert volume.grad.shape == volume.shape and not volume.grad.any()


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=needs_numba)])
def test_no_objects_have_no_pictures(backend):
    cameras = Cameras(look_at(torch.ones(2, 3)), intrinsics_from_fov(36.0, 3, 5).expand(2, 3, 3), 3, 5)
    views = render_views(torch.rand(0, 4, 3, 3, 3), cameras, 4, backend=backend)
    assert views["colour"].shape == views["normals"].shape == (0, 2, 3, 5, 3) and views["depth"].shape == (0, 2, 3, 5)


def operator_arguments(volume, origins, directions, samples=5, seed=3, stop=0.0):
    return volume, origins, directions, 0.0, math.inf, 0, 0, samples, seed, stop


def in_turn(*errors):
    """A function that raises these one after the other."""
    left = list(errors)

    def fail(*arguments):
        raise left.pop(0)

    return fail


@needs_numba
def test_operators_keep_torchs_rules():
    tests = ("test_schema", "test_faketensor")
    volume, *options = operator_arguments(*scene(8, r=8, channels=6))
    low = volume.bfloat16().contiguous(memory_format=torch.channels_last_3d)
    drawn = torch.tensor(3)
    for values, maps in ((volume, (None, None, drawn)), (low, (*empty_space(0 * low, 0.0, 5), None))):
        results = render_forward(values, *options, *maps)
        above = [torch.rand_like(x) for x in results[:3]]
        torch.library.opcheck(render_forward.default, (values, *options, *maps), test_utils=tests)
        torch.library.opcheck(
            render_backward.default, (values, *options, *maps, *results, None, *above[1:]), test_utils=tests
        )


@needs_numba
def test_compiled_code_has_no_graph_break():
    volume, origins, directions = scene(9)

    def loss(volume):
        r = render_rays(torch.nn.functional.softplus(volume), origins, directions, 7, stratified_seed=2, check=False)
        return r.colour.square().sum() + r.depth.mean()

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaf = volume.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


class DistributedScene(torch.nn.Module):
    """A volume whose loss on rank k are the rays of seed k."""

    def __init__(self):
        super().__init__()
        self.volume = torch.nn.Parameter(scene(10)[0])

    def forward(self, rank: int) -> torch.Tensor:
        _, origins, directions = scene(11 + rank)
        return picture(render_rays(self.volume, origins, directions, 6, backend="fused")).square().sum()


def gradient_of_rank(rank: int, store: Path) -> torch.Tensor:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        return averaged_gradient(rank)
    finally:
        gc.collect()  # a wrapped module that outlives its group can abort the process at its end
        torch.distributed.destroy_process_group()


def averaged_gradient(rank: int) -> torch.Tensor:
    module = DistributedScene()
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    parallel(rank).backward()
    torch.distributed.barrier()
    return module.volume.grad


@needs_numba
def test_two_ranks_average_their_gradients(tmp_path):
    store, result = tmp_path / "store", tmp_path / "gradient.pt"
    other = f"from test_fused import *; torch.save(gradient_of_rank(1, {str(store)!r}), {str(result)!r})"
    with subprocess.Popen([sys.executable, "-c", other], env={**os.environ, "PYTHONPATH": PYTHONPATH}) as process:
        mine = gradient_of_rank(0, store)
        assert process.wait(timeout=280) == 0
    module = DistributedScene()
    (0.5 * (module(0) + module(1))).backward()
    torch.testing.assert_close(mine, module.volume.grad)
    torch.testing.assert_close(torch.load(result), module.volume.grad)


TRITON_AGREES = """
import torch
from test_fused import assert_agrees, picture, picture_and_gradient, rng, scene
from vader.rendering import cuda
from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at
from vader.rendering.reference import render_rays_reference

def march(volume, rays, image, samples, seed, stop, skip, weights, parts, drawn, near=0.0, far=float("inf")):
    values = volume.movedim(1, -1).contiguous()
    b, r = len(volume), rays[0].shape[1] * (image[0] * image[1] or 1)
    results = [torch.full((b, r, *more), 7.0) for more in ((3,), (), (), (parts, 5))]
    maps = cuda.empty_bricks(values, 0.0) if skip else None, torch.tensor(seed) if drawn else None
    options = (near, far, *image, samples, -1 if drawn else seed, stop)
    cuda.forward(values, rays, maps, results, options)
    out = torch.cat([results[0], results[1][..., None], results[2][..., None]], -1)
    above = (weights[..., :3], weights[..., 3], weights[..., 4])  # rows of five: slices that are not contiguous
    above = [None if not g.any() else g for g in above]
    gradient = cuda.backward(values, rays, maps, results, above, options)
    assert gradient.dtype == torch.float32
    return out, gradient.movedim(-1, 1)

def check(volume, rays, samples, seed, stop, skip, image=(0, 0), weighted=5, keep=True, parts=1, drawn=False,
          **bounds):
    cuda.KEEP = keep
    origins, directions = rays
    if image[0]:
        cameras = Cameras(rays[0].flatten(0, 1), rays[1].flatten(0, 1), *image)
        origins, directions = (x.view(len(volume), -1, 3) for x in cameras.rays())
    leaf = volume.detach().clone().float().requires_grad_()
    options = (samples, None if seed < 0 else seed, stop, bounds.get("near", 0.0), bounds.get("far", float("inf")))
    result = picture(render_rays_reference(leaf, origins, directions, *options))
    weights = torch.randn(result.shape, generator=rng(1))
    weights[..., weighted:] = 0
    (result * weights).sum().backward()
    ours = march(volume, rays, image, samples, seed, stop, skip, weights, parts, drawn, **bounds)
    reference = (result.detach(), leaf.grad)
    if skip:  # behind a ReLU
        mask = (volume[:, :1] > 0).float()
        mask = torch.cat([mask, torch.ones_like(volume[:, 1:].float())], 1)
        ours, reference = (ours[0], ours[1] * mask), (reference[0], reference[1] * mask)
    assert_agrees(ours, reference)

def empty_but_a_corner(volume):
    filled = torch.zeros_like(volume[:, 0])  # another corner in each object: maps must be its own
    filled[0, :, :4, :3] = 1
    filled[1:, :, -4:, -3:] = 1
    return torch.cat([(volume[:, 0] * filled)[:, None], volume[:, 1:]], 1)

float32, bfloat16 = torch.float32, torch.bfloat16
for rays, size, dtype, samples, seed, stop, skip, keep, bounds in [
    (20, (3, 4, 5), float32, 9, -1, 0.0, False, True, {}),
    (20, (3, 4, 5), float32, 5, 2**31 + 5, 0.0, False, False, {}),
    (20, (2, 3, 5), bfloat16, 5, 3, 0.0, False, True, {}),
    (20, (3, 4, 5), float32, 8, 1, 0.05, False, True, {}),
    (37, (3, 4, 5), float32, 1, -1, 0.0, False, True, {}),
    (33, (3, 12, 9), float32, 10, 4, 0.0, True, True, {}),
    (1, (4, 4, 4), float32, 6, -1, 0.0, False, True, {"near": 0.5, "far": 2.0}),
    (33, (3, 4, 5), float32, 11, 2**31 - 3, 0.0, False, True, {"parts": 4, "drawn": True}),
    (20, (3, 12, 9), float32, 9, 4, 0.0, True, True, {"parts": 2}),
    (5, (2, 3, 5), bfloat16, 3, -1, 0.0, False, False, {"parts": 4}),
    (4, (2, 2, 2), float32, 3, -1, 0.0, False, True, {}),  # every ray reaches every voxel, the first one, too
]:
    volume, *where = scene(rays, 2, max(rays, 8), size, density=30.0 if stop else 4.0, dtype=dtype)
    where = [x[:, -rays:].contiguous() for x in where]
    check(empty_but_a_corner(volume) if skip else volume, where, samples, seed, stop, skip, keep=keep, **bounds)

volume, *where = scene(5, 2, 8, (3, 3, 3))
check(volume, where, 4, 2, 0.0, False, weighted=3)  # no gradient of occupancy and depth
w2c = look_at(torch.tensor([[3.0, 1.0, 2.0], [-2.0, 0.5, 3.0]]))
lens = intrinsics_from_fov(36.0, 3, 5).expand(2, 3, 3).clone()
lens[1, 0, 1], lens[1, 1, 2] = 0.3, 1.1  # skewed and off centre
check(volume, (w2c[None].repeat(2, 1, 1, 1), lens[None].repeat(2, 1, 1, 1)), 6, 3, 0.0, False, image=(3, 5), parts=2)

values = volume.movedim(1, -1).contiguous()
nothing = torch.zeros(2, 0, 3)
results = torch.zeros(2, 0, 3), torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, 1, 5)
options = (0.0, float("inf"), 0, 0, 4, -1, 0.0)
no_maps, no_bricks = (None, None), (cuda.empty_bricks(values[:0], 0.0), None)
cuda.forward(values, (nothing, nothing), no_maps, results, options)  # no ray
assert not cuda.backward(values, (nothing, nothing), no_maps, results, (None,) * 3, options).any()
cuda.forward(values[:0], (nothing[:0],) * 2, no_bricks, [x[:0] for x in results], options)

volume[:, 0] = 0
volume[1, 0, 1, 1, 2], volume[0, 0, 0, 0, 0] = 0.5, float("nan")
bricks = cuda.empty_bricks(torch.nn.functional.pad(volume, (0, 5, 0, 6, 0, 3)).movedim(1, -1).contiguous(), 0.1)
assert bricks.shape == (2, 2, 2, 2) and bricks.flatten(1).sum(1).tolist() == [1, 1] and bricks[0, 0, 0, 0] == 1
for place, reached in (((4, 4, 4), 8), ((4, 1, 1), 2), ((1, 4, 1), 2), ((1, 1, 4), 2), ((8, 8, 8), 1)):
    lone = torch.zeros(1, 9, 9, 9, 4)  # a voxel between two bricks belongs to cells of both
    lone[0][place][0] = 1.0
    assert cuda.empty_bricks(lone, 0.0).sum() == reached
print("agrees")
"""


@needs_triton
def test_triton_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": PYTHONPATH}
    run = subprocess.run(
        [sys.executable, "-c", TRITON_AGREES], env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "agrees"


@needs_triton
@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize(
    "name, parts", [("forward", 1), ("forward", 4), ("backward", 1), ("backward", 4), ("bricks", 1)]
)
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(name, parts, capability):
    """Without a device: voxels move as vectors, and nothing goes through shared memory but what all parts agree on."""
    import triton
    from triton.backends.compiler import GPUTarget

    from vader.rendering import cuda

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter has replaced the compiler")
    source = cuda.kernel_source(name, "bf16", SKIP=True, PARTS=parts, SEEDS=parts > 1)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": parts})
    code = compiled.asm["ptx"]
    if name != "bricks":
        assert len(re.findall(r"ld\.global[.\w]*\.v2\.b32", code)) == 8  # eight slots of four bfloat16 channels each
        assert compiled.metadata.shared <= 4 * (parts - 1) * parts
    if capability == 90:
        # a slot's gradient goes to memory when its voxel changes, and at the end of the ray
        vectors = code.count("atom.global.gpu.relaxed.add.v4.f32")
        assert vectors == (16 if name == "backward" else 0)


@needs_triton
def test_few_rays_are_marched_in_parts(monkeypatch):
    from vader.rendering import cuda
    from vader.rendering.cuda import parts_of_rays

    rays = (65_536, 60_000, 59_999, 30_000, 29_999, 100)
    assert [parts_of_rays(n, 128, 0.0) for n in rays] == [1, 1, 2, 2, 4, 4]
    monkeypatch.setattr(cuda, "PARTS", 2)
    assert parts_of_rays(10**6, 128, 0.0) == 2 and parts_of_rays(10**6, 128, 1e-4) == 1
    monkeypatch.setattr(cuda, "PARTS", 0)
    assert parts_of_rays(100, 128, 1e-4) == 1 and parts_of_rays(100, 31, 0.0) == 1 and parts_of_rays(100, 32, 0.0) == 4


class Calls(TorchDispatchMode):
    """Counts the operations that are not views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if not function.is_view:
            self.names.append(function.name())
        return function(*arguments, **(options or {}))


@needs_numba
def test_a_picture_and_its_gradient_are_one_operator_each():
    volume = scene()[0].contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    lens = intrinsics_from_fov(36.0, 4, 4).expand(4, 3, 3)
    cameras = Cameras(look_at(torch.randn(4, 3, generator=rng())), lens, 4, 4)
    places, lenses = (x.unflatten(0, (2, 2)) for x in (cameras.world_to_camera, cameras.intrinsics))
    above = [torch.ones(2, 32, 3), torch.ones(2, 32)]
    with Calls() as calls:
        fused_ones = render_rays_fused(volume, places, lenses, 5, image=(4, 4))
        torch.autograd.backward([fused_ones.colour, fused_ones.occupancy], above)
    assert [name for name in calls.names if name != "aten::detach"] == [
        "vader::render_forward",
        "vader::render_backward",
    ]
    colour, _, _ = render_images(volume, cameras, 5)
    assert torch.equal(colour.flatten(1, 3), fused_ones.colour)
    with pytest.raises(RenderingError, match="3 cameras for 2 volumes, expected as many for each"):
        render_images(volume, cameras[:3], 5)
    with pytest.raises(RenderingError, match="4 cameras for 0 volumes"):
        render_images(volume[:0], cameras, 5)


@needs_triton
def test_on_cuda_a_picture_and_its_gradient_are_one_launch_each(monkeypatch):
    """Of all that a GPU is asked for: the kernels are counted in their place, everything else by torch's dispatcher."""
    from vader.rendering import cuda

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter has replaced the compiler")
    launches = []

    class Counted:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **options: launches.append((self.name, grid))

    for name in ("forward", "backward", "bricks"):
        monkeypatch.setattr(cuda, f"{name}_kernel", Counted(name))
    volume = torch.rand(2, 9, 8, 7, 4)
    rays = torch.rand(2, 1, 3, 4), torch.rand(2, 1, 3, 3)  # cameras of 5 x 13 pixels
    results = [torch.empty(2, 65, *more) for more in ((3,), (), (), (1, 5))]
    options = (0.0, math.inf, 5, 13, 40, 3, 0.0)
    sliced = torch.rand(2, 65, 5)
    above = (sliced[..., :3], sliced[..., 3], None)
    with Calls() as calls:
        maps = cuda.empty_bricks(volume, 0.0), None
        cuda.forward(volume, rays, maps, results, options)
    assert launches == [("bricks", (8, 2)), ("forward", (3, 2))]
    assert all("empty" in name for name in calls.names), calls.names  # memory, and no work
    with Calls() as calls:
        cuda.backward(volume, rays, maps, results, above, options)
    assert launches[2:] == [("backward", (3, 2))]
    assert [name for name in calls.names if name != "aten::detach"] == ["aten::zeros_like"]


def test_without_triton_a_gpu_has_the_reference_and_is_told_once(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {"cpu": "numba"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    backends._lacks.cache_clear()
    with pytest.warns(UserWarning, match="cuda: Triton is not installed, which the fused renderer needs; the refer"):
        assert fused_backend(torch.device("cuda")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert how_it_renders(torch.device("cuda")).startswith("reference (Triton is not installed")
    backends._lacks.cache_clear()


def test_an_older_gpu_has_the_reference_and_is_told_once(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {"cuda": "triton"})
    capability = (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backends._lacks.cache_clear()
    with pytest.warns(UserWarning, match=r"capability 7.5, the fused renderer needs 8.0 or newer; the reference"):
        assert fused_backend(torch.device("cuda")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused_backend(torch.device("cuda")) is None
    capability = (8, 0)
    assert fused_backend(torch.device("cuda:1")) == "triton"
    backends._lacks.cache_clear()


@pytest.mark.gpu
@needs_triton
def test_cameras_on_cuda_are_the_rays(monkeypatch):
    volume = scene(4, 2, size=(9, 8, 7), device="cuda")[0]
    lens = intrinsics_from_fov(36.0, 13, 11).expand(4, 3, 3)
    cameras = Cameras(look_at(torch.randn(4, 3, generator=rng())), lens, 13, 11).to("cuda")
    rays = (x.view(2, -1, 3) for x in cameras.rays())
    expected = render_rays(volume, *rays, 20, backend="reference").images(13, 11)
    for ours, theirs in zip(render_images(volume, cameras, 20), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("rectified", [False, True])
def test_voxels_kept_in_registers_and_graphs_change_rounding_only(monkeypatch, rectified):
    from vader.rendering import cuda

    volume, *rays = scene(5, 3, 333, (9, 8, 7), filled=0.1, device="cuda")
    found = []
    for keep in (True, False):
        monkeypatch.setattr(cuda, "KEEP", keep)
        found.append(picture_and_gradient(lambda *a: render_rays_fused(*a, rectified=rectified), volume, *rays, 30, 7))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(cuda, "KEEP", True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = render_rays_fused(volume, *rays, 30, 7, rectified=rectified).colour
    volume.mul_(0.5)
    graph.replay()
    torch.testing.assert_close(held, render_rays_fused(volume, *rays, 30, 7, rectified=rectified).colour)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [0.0, 0.05])
def test_fused_on_cuda_is_the_reference(dtype, stop):
    for seed, samples in ((0, 1), (1, 33), (2, 64)):
        volume, origins, directions = scene(
            seed, 3, 333, (9, 8, 7), 6, density=30.0 if stop else 4.0, dtype=dtype, device="cuda"
        )
        options = (volume, origins, directions, samples, 5, stop)
        assert_agrees(
            picture_and_gradient(render_rays_fused, *options),
            picture_and_gradient(render_rays_reference, *options),
            atol=1e-4,
        )
    assert render_rays_fused(volume, origins, directions, 4).backend == "triton"


@pytest.mark.gpu
@needs_triton
def test_operators_keep_torchs_rules_on_cuda():
    arguments = (*operator_arguments(*scene(8, r=8, device="cuda")), None, None, None)
    tests = ("test_schema", "test_faketensor")
    results = render_forward(*arguments)
    torch.library.opcheck(render_forward.default, arguments, test_utils=tests)
    above = [torch.rand_like(x) for x in results[:3]]
    torch.library.opcheck(
        render_backward.default, (*arguments, *results, *above), atol=1e-5, rtol=1e-4, test_utils=tests
    )


@needs_numba
def test_the_first_rendering_leaves_torch_its_number_of_threads():
    """numba's OpenMP layer shares torch's library, and sets the number of threads when it starts."""
    code = """
import torch
torch.set_num_threads(1)
from test_fused import picture_and_gradient, render_rays_fused, scene
picture_and_gradient(render_rays_fused, *scene(), 4)
print(torch.get_num_threads())
"""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1"]
