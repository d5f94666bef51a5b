"""The fused renderer against the `grid_sample` reference, PyTorch3D and nerfacc: forward and backward.

Everybody renders the same samples of the same volumes from the same cameras, and the results are compared before
anything is timed. Peak memory is taken in a process of its own for each contestant.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vader.rendering.cameras import Cameras, intrinsics_from_fov, look_at
from vader.rendering.rays import clip_to_cube
from vader.rendering.reference import sample_depths, sample_volume
from vader.rendering.render import render_rays

from .contest import Quantity, alternate, speed_rows

# What a sample costs the fused kernels, counted in their source. Forward: a position (6), 8 corner weights (15),
# 4 channels of 8 fused multiply-adds (64), exp and compositing (20). Backward: the same again to recompute the
# sample, the weights' products with 4 gradients added to 8 corners (64) and the gradient of the compositing (25).
FLOPS_FORWARD, FLOPS_BACKWARD = 105, 194
VOXEL_BYTES = 4 * 4


@dataclass(frozen=True)
class Scene:
    """`batch` volumes of size^3 seen by `views` cameras of resolution^2 each, `samples` on a ray."""

    size: int = 64
    samples: int = 128
    resolution: int = 64
    views: int = 4
    batch: int = 4

    def __str__(self) -> str:
        pictures = f"{self.views}x{self.resolution}^2"
        return f"render fwd+bwd {self.size}^3 {self.samples} samples {pictures} b{self.batch}"

    @property
    def rays(self) -> int:
        return self.batch * self.views * self.resolution**2

    def build(self, device: torch.device) -> tuple[Tensor, Cameras]:
        """A batch of soft balls of random colours, (b, 4, s, s, s), and the cameras around them."""
        axis = torch.linspace(-1, 1, self.size)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        generator = torch.Generator().manual_seed(0)
        radius = 0.4 + 0.4 * torch.rand(self.batch, 1, 1, 1, generator=generator)
        density = 20 * torch.sigmoid(10 * (radius - (x**2 + y**2 + z**2).sqrt()))
        colour = torch.rand(self.batch, 3, self.size, self.size, self.size, generator=generator)
        angles = torch.arange(self.views) * (2 * math.pi / self.views)
        places = torch.stack([3.4 * angles.sin(), torch.full_like(angles, 1.5), 3.4 * angles.cos()], dim=1)
        intrinsics = intrinsics_from_fov(36, self.resolution, self.resolution).expand(self.views, 3, 3)
        cameras = Cameras(look_at(places), intrinsics, self.resolution, self.resolution)
        volume = torch.cat([density[:, None], colour], dim=1)
        return volume.to(device).contiguous(memory_format=torch.channels_last_3d), cameras.to(device)


def ours(backend: str) -> Callable[[Scene, torch.device], Callable[[], tuple[Tensor, Tensor]]]:
    """Prepare a contestant of `render_rays`: a function that gives the pictures (b, v, h * w, 4) and the gradient."""

    def prepare(scene: Scene, device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
        volume, cameras = scene.build(device)
        origins, directions = (x.reshape(1, -1, 3).expand(scene.batch, -1, -1).contiguous() for x in cameras.rays())

        def run() -> tuple[Tensor, Tensor]:
            leaf = volume.detach().requires_grad_()
            rendering = render_rays(leaf, origins, directions, scene.samples, backend=backend, check=False)
            pictures = torch.cat([rendering.colour, rendering.occupancy[..., None]], dim=-1)
            pictures.square().sum().backward()
            return pictures.detach().view(scene.batch, scene.views, -1, 4), leaf.grad

        return run

    return prepare


def pytorch3d(scene: Scene, device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
    """Prepare `VolumeRenderer` on the same samples, with alphas 1 - exp(-sigma step): volumes are repeated per view."""
    from pytorch3d.renderer import EmissionAbsorptionRaymarcher, RayBundle, VolumeRenderer
    from pytorch3d.structures import Volumes

    from vader.data.formats.pytorch3d_cameras import to_pytorch3d

    volume, cameras = scene.build(device)
    n = scene.batch * scene.views
    origins, directions = (x.reshape(scene.views, -1, 3).repeat(scene.batch, 1, 1) for x in cameras.rays())
    enter, leave = clip_to_cube(origins, directions, 0.0, math.inf)
    lengths = sample_depths(enter, leave, scene.samples, None)
    step = ((leave - enter) / scene.samples)[..., None, None]

    class BeerLambert(EmissionAbsorptionRaymarcher):
        def forward(self, rays_densities, rays_features, **options):
            return super().forward(1 - torch.exp(-rays_densities * step), rays_features, **options)

    def bundle(cameras, **options):
        return RayBundle(origins=origins, directions=directions, lengths=lengths, xys=directions[..., :2])

    renderer = VolumeRenderer(bundle, BeerLambert())
    repeated = to_pytorch3d(
        Cameras(
            cameras.world_to_camera.repeat(scene.batch, 1, 1),
            cameras.intrinsics.repeat(scene.batch, 1, 1),
            cameras.height,
            cameras.width,
        )
    )

    def run() -> tuple[Tensor, Tensor]:
        leaf = volume.detach().requires_grad_()
        each = leaf[:, None].expand(-1, scene.views, -1, -1, -1, -1).reshape(n, *leaf.shape[1:])
        volumes = Volumes(densities=each[:, :1], features=each[:, 1:], voxel_size=2 / (scene.size - 1))
        pictures = renderer(cameras=repeated, volumes=volumes)[0]
        pictures.square().sum().backward()
        return pictures.detach().view(scene.batch, scene.views, -1, 4), leaf.grad

    return run


def nerfacc(scene: Scene, device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
    """Prepare nerfacc's compositing of the same samples, read from the volumes by `grid_sample`."""
    from nerfacc import accumulate_along_rays, render_weight_from_density

    volume, cameras = scene.build(device)
    origins, directions = (x.reshape(1, -1, 3).expand(scene.batch, -1, -1) for x in cameras.rays())
    enter, leave = clip_to_cube(origins, directions, 0.0, math.inf)
    edges = enter[..., None] + (leave - enter)[..., None] * torch.linspace(0, 1, scene.samples + 1, device=device)
    starts, ends = edges[..., :-1].flatten(0, 1).contiguous(), edges[..., 1:].flatten(0, 1).contiguous()
    middle = ((edges[..., :-1] + edges[..., 1:]) / 2)[..., None]
    points = (origins[:, :, None] + middle * directions[:, :, None]).clamp(-1, 1)

    def run() -> tuple[Tensor, Tensor]:
        leaf = volume.detach().requires_grad_()
        values = sample_volume(leaf, points).movedim(1, -1).flatten(0, 1)  # (rays, samples, 4)
        weights = render_weight_from_density(starts, ends, values[..., 0])[0]
        colour, occupancy = (accumulate_along_rays(weights, v) for v in (values[..., 1:], None))
        pictures = torch.cat([colour, occupancy], dim=-1)
        pictures.square().sum().backward()
        return pictures.detach().view(scene.batch, scene.views, -1, 4), leaf.grad

    return run


CONTESTANTS = {
    "fused": ours("fused"),
    "reference (grid_sample)": ours("reference"),
    "pytorch3d": pytorch3d,
    "nerfacc": nerfacc,
}


def contestants(device: torch.device) -> dict[str, Callable]:
    """Those that can be here: PyTorch3D need not be installed, and nerfacc is made for GPUs."""
    absent = {name for name in ("pytorch3d", "nerfacc") if importlib.util.find_spec(name) is None}
    if device.type != "cuda":
        absent.add("nerfacc")
    return {name: prepare for name, prepare in CONTESTANTS.items() if name not in absent}


def peak_memory(name: str, scene: Scene, device: torch.device) -> int:
    """Bytes that one forward and backward pass adds to what it was given, at its peak."""
    if device.type == "cuda":
        run = CONTESTANTS[name](scene, device)
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_resident_growth, name, scene, torch.get_num_threads()).result()


def _resident_growth(name: str, scene: Scene, threads: int) -> int:
    torch.set_num_threads(threads)
    small = Scene(size=8, samples=4, resolution=4, views=scene.views, batch=scene.batch)
    CONTESTANTS[name](small, torch.device("cpu"))()  # what is loaded and compiled at first use is not the pass's
    run = CONTESTANTS[name](scene, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1])


def compare(scene: Scene, device: torch.device, repeats: int = 7, memory: bool = True) -> list[dict]:
    """Rows of a benchmark report. Raises AssertionError unless all contestants agree."""
    runs = {name: prepare(scene, device) for name, prepare in contestants(device).items()}
    expected = runs["reference (grid_sample)"]()
    for name, run in runs.items():
        pictures, gradient = run()
        torch.testing.assert_close(pictures, expected[0], atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        scale = expected[1].abs().max().item()
        torch.testing.assert_close(gradient / scale, expected[1] / scale, atol=1e-4, rtol=0)
    timings = alternate(runs, repeats, device)
    fused = timings.pop("fused")
    rows = speed_rows("fused", fused, timings, str(scene))
    if memory:
        peaks = {name: peak_memory(name, scene, device) for name in runs}
        for name in timings:
            ratio = peaks[name] / peaks["fused"]
            rows.append(
                {
                    "system": "fused", "against": name, "work": f"{scene}, peak extra bytes", "metric": "memory_ratio",
                    "value": ratio, "min": ratio, "max": ratio, "n": 1,
                }
            )  # fmt: skip
    return rows


def limits(scene: Scene, device: torch.device, repeats: int = 5) -> list[Quantity]:
    """Operations and bytes of the fused pass, what it takes, and the share of the machine's rates it reaches.

    The rates are measured here: a float32 matrix product for arithmetic, a copy for memory. Both passes do
    irregular reads that a matrix product does not, so the share is of a bound, not of what could be had.
    """
    samples = scene.rays * scene.samples
    flops = samples * (FLOPS_FORWARD + FLOPS_BACKWARD)
    volumes = scene.batch * scene.size**3 * VOXEL_BYTES
    traffic = 4 * volumes + scene.rays * (8 + 2 * 6) * 4  # volume twice, gradient zeroed and added to; rays
    run = ours("fused")(scene, device)
    a = torch.randn(2048, 2048, device=device)
    block = torch.zeros(2**26, device=device)

    def rate(work: Callable[[], object], amount: float) -> float:
        return amount / statistics.median(alternate({"": work}, repeats, device)[""].wall)

    arithmetic = rate(lambda: a @ a, 2 * 2048**3)
    copying = rate(lambda: block.clone(), 2 * block.nbytes)
    seconds = 1 / rate(run, 1)
    return [
        Quantity("fused", str(scene), "flops", flops),
        Quantity("fused", str(scene), "bytes", traffic),
        Quantity("fused", str(scene), "seconds", seconds),
        Quantity("fused", str(scene), "share of the machine's matrix product", flops / seconds / arithmetic),
        Quantity("fused", str(scene), "share of the machine's copy bandwidth", traffic / seconds / copying),
    ]


def curves(device: torch.device, repeats: int = 3) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Median seconds against what costs grow with: {quantity: {contestant: [(quantity, seconds), ...]}}."""
    base = dict(size=32, samples=48, resolution=32, views=4, batch=2)
    grids = {
        "voxels per axis": [("size", s) for s in (16, 32, 64, 96)],
        "samples per ray": [("samples", n) for n in (16, 32, 64, 128)],
        "objects in the batch": [("batch", b) for b in (1, 2, 4, 8)],
    }
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for quantity, points in grids.items():
        found[quantity] = {}
        for field, value in points:
            scene = Scene(**{**base, field: value})
            runs = {name: prepare(scene, device) for name, prepare in contestants(device).items()}
            for name, timing in alternate(runs, repeats, device).items():
                found[quantity].setdefault(name, []).append((value, statistics.median(timing.wall)))
    return found
