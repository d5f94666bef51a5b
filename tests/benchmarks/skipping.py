"""What jumping over empty space brings to the CPU's training step, and a backward that keeps a cell's sums.

    python -m tests.benchmarks skipping --device cpu --threads 1 --report cpu-skipping

Both are measured side by side in one process, on a volume as training begins and on one of a finished run: pictures,
their backward alone, and the whole step of stage 1. Ratios of CPU seconds hold beside other work, too: what is
committed in `reports/benchmarks.cpu-skipping.json` was measured beside some, and its wall-clock seconds say little.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from vader.autodecoder.reconstruction import Reconstruction
from vader.rendering import cpu, fused
from vader.rendering.cameras import sample_orbit
from vader.rendering.render import render_rays
from vader.settings.experiment import Experiment
from vader.settings.profiles import experiment
from vader.store.files import load_weights
from vader.store.paths import reference_runs_dir
from vader.studies.scaling import noise_pictures

from .contest import Quantity, alternate, speed_rows
from .renderer import Scene

CPU = torch.device("cpu")
Render = Callable[[Tensor], Tensor]


@contextmanager
def marching_through():
    """No maps of empty space: rays march through everything."""
    with mock.patch.object(fused, "empty_space", lambda *a: (None, None)):
        yield


def weights_of(name: str = "furniture_chairs") -> Path:
    """The committed autodecoder of a data set. Raises FileNotFoundError where there is none."""
    found = sorted(reference_runs_dir().glob(f"{name}-autodecoder-*/*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{reference_runs_dir()}: no finished autodecoder of {name}, expected a committed run")
    return found[0]


def backward_of(render: Render, volume: Tensor) -> Callable[[], Tensor]:
    """The backward of a picture's sum, again and again."""
    leaf = volume.detach().requires_grad_()
    total = render(leaf).sum()
    return lambda: torch.autograd.grad(total, leaf, retain_graph=True)[0]


def forward_of(render: Render, volume: Tensor) -> Callable[[], Tensor]:
    leaf = volume.detach().requires_grad_()
    return lambda: render(leaf).detach()


def gains(
    config: Experiment | None = None, weights: Path | None = None, repeats: int = 7
) -> tuple[list[dict], list[Quantity]]:
    """Rows of a report: marching through everything against skipping, for both volumes; and how empty these are."""
    config = config or experiment("laptop", "furniture_chairs")
    weights = weights or weights_of(config.data.name)
    settings, rows, quantities = config.reconstruction, [], []
    for state in ("fresh", "trained"):
        task = Reconstruction(config, noise_pictures(config, config.data.num_objects), CPU)
        for group in task.optimizer.param_groups:
            group["lr"] = 0.0  # the volume stays what it is
        if state == "trained":
            load_weights(weights, task.model)
        b, v = settings.objects_per_step, settings.views_per_object
        with torch.no_grad():
            volume = task.model(torch.arange(b)).float()
        cameras = sample_orbit(b * v, config.data, torch.Generator().manual_seed(0))
        rays = tuple(x.view(b, -1, 3) for x in cameras.rays())

        def render(leaf: Tensor, rays=rays) -> Tensor:
            options = {"stratified_seed": 1, "rectified": True, "check": False, "backend": "fused"}
            found = render_rays(leaf, *rays, settings.num_samples, **options)
            return found.colour.sum(-1) + found.occupancy

        def step(task=task) -> None:
            torch.manual_seed(1)
            task.optimizer.zero_grad(set_to_none=True)
            task.step(settings.images_seen)
            task.optimizer.step()

        def plainly(work: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                with marching_through():
                    return work()

            return run

        with marching_through():
            plain = backward_of(render, volume)
        works = {
            "pictures": (forward_of(render, volume), plainly(forward_of(render, volume))),
            "backward of pictures": (backward_of(render, volume), plain),
            "training step": (step, plainly(step)),
        }
        torch.testing.assert_close(works["pictures"][0](), works["pictures"][1]())
        name = f"{config.profile}, {state} volumes"
        for work, (skipping, marching) in works.items():
            timings = alternate({"skipping": skipping, "marching": marching}, repeats)
            rows += speed_rows("skipping", timings["skipping"], {"marching": timings["marching"]}, f"{name}, {work}")
        empty = (volume[:, 0] == 0).float().mean().item()
        quantities.append(Quantity("skipping", name, "share of voxels without density", empty))
    return rows, quantities


# ------------------------------------------------------------------------- a cell's sums kept until the ray leaves it

_ADD = "                    _add_to_cell(g, 4 * cells[j], sy, sz, weights, j, push)\n"
_LOOP = "            light = ONE\n            for i in range(0, n if t1 > t0 else 0, SEGMENT):\n"
_EDGES = ("", " + sy", " + sz", " + sz + sy")


def kept_source(source: str) -> str:
    """The CPU kernels' source with a backward that adds up what consecutive samples give to one cell."""
    assert source.count(_ADD) == 1 and source.count(_LOOP) == 1, "the kernel is written in another way"
    stores = "".join(f"store8(g, held{e}, load8(g, held{e}) + sum{i})\n" for i, e in enumerate(_EDGES))
    sums = ", ".join(f"sum{i}" for i in range(4))
    begin = f"            held = -1\n            {' = '.join(sums.split(', '))} = splat8(ZERO)\n"
    parts = ", ".join(f"splat8(weights[{8 * i + 8} + j]) * push" for i in range(4))
    added = ", ".join(f"sum{i} + splat8(weights[{8 * i + 8} + j]) * push" for i in range(4))

    def indented(text: str, spaces: int) -> str:
        return "".join(" " * spaces + line + "\n" for line in text.splitlines())

    flush = indented("if held >= 0:", 24) + indented(stores, 28)
    changed = "".join(
        [
            indented("push = push * _both_x(weights, j)\nif 4 * cells[j] != held:", 20),
            flush,
            indented(f"held = 4 * cells[j]\n{sums} = {parts}", 24),
            indented("else:", 20),
            indented(f"{sums} = {added}", 24),
        ]
    )
    head, _, tail = source.partition(_LOOP)
    last = indented("if held >= 0:", 12) + indented(stores, 16)
    return head + begin + _LOOP + tail.replace(_ADD, changed) + last


@functools.cache
def kept_kernels():
    """`vader.rendering.cpu` with that backward, compiled anew."""
    source = Path(cpu.__file__).read_text(encoding="utf-8").replace("from .kernels", "from vader.rendering.kernels")
    file = Path(tempfile.mkdtemp()) / "cpu_kept.py"
    file.write_text(kept_source(source).replace("cache=True", "cache=False"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    sys.modules[file.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept(scenes: tuple[Scene, ...] = (Scene(), Scene(size=32, samples=48)), repeats: int = 7) -> list[dict]:
    """Rows of a report: the backward that keeps a cell's sums against the one that stores each sample's."""
    backward, rows = kept_kernels().backward, []
    for scene in scenes:
        volume, cameras = scene.build(CPU)
        rays = tuple(x.reshape(1, -1, 3).expand(scene.batch, -1, -1).contiguous() for x in cameras.rays())

        def render(leaf: Tensor, rays=rays, scene=scene) -> Tensor:
            return render_rays(leaf, *rays, scene.samples, backend="fused", check=False).colour

        stored = backward_of(render, volume)

        def keeping(stored=stored) -> Tensor:
            with mock.patch.object(cpu, "backward", backward):
                return stored()

        theirs, ours = stored(), keeping()
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)
        timings = alternate({"kept": keeping, "stored": stored}, repeats)
        work = str(scene).replace("fwd+bwd", "bwd")
        rows += speed_rows("sums kept for a cell", timings["kept"], {"stored at each sample": timings["stored"]}, work)
    return rows
