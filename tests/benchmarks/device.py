"""What one GPU is asked first, in phases by their value: `.ci/device` runs this within a quarter of an hour.

    python -m tests.benchmarks.device --out FOLDER [--device cuda] [--seconds 700] [--tiny] [--only PHASE ...]

Every phase is a process of its own under a time limit. Its log is FOLDER/<phase>.log, its numbers are lines of
FOLDER/results.jsonl as soon as they are known, and FOLDER/<phase>.done says that it ended well: a later call goes on
with what is missing. `--tiny` does the same on sizes that take a CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vader.autodecoder.decoder import Decoder
from vader.autodecoder.reconstruction import Reconstruction
from vader.diffusion.inference import for_inference, how_it_runs
from vader.diffusion.products import choices
from vader.diffusion.sampling import sample_objects
from vader.rendering.cameras import Cameras
from vader.rendering.render import render_images
from vader.settings.diffusion import SamplerConfig
from vader.settings.experiment import Experiment
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER
from vader.store.provenance import device_name
from vader.store.runs import RunError, utc_now
from vader.studies.scaling import noise_pictures
from vader.training import graphs, select_device

from . import renderer, sampler, stage1
from .contest import alternate

ROOT = Path(__file__).parents[2]
Results = Iterator[dict]


@dataclass(frozen=True)
class Phase:
    seconds: int  # at most
    work: Callable[[torch.device, bool], Results] | None = None  # numbers, one after another
    command: tuple[str, ...] = ()  # or a command, whose log is what is wanted; {device} and {seconds} are filled in
    tiny: tuple[str, ...] = ()  # what stands for the command in a rehearsal; nothing: it is left out


def timed(run: Callable[[], object], device: torch.device, tiny: bool) -> dict[str, float]:
    seconds = alternate({"": run}, 2 if tiny else 20, device)[""].wall
    return {"median": statistics.median(seconds), "min": min(seconds)}


def machine(device: torch.device, tiny: bool) -> Results:
    """What the device is, and its rates of copying and of multiplying."""
    yield {"device": device_name(device), "torch": torch.__version__, "python": sys.version.split()[0]}
    n = 256 if tiny else 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    yield {"work": f"product of {n}^2 matrices, bfloat16", "flops": 2 * n**3, **timed(lambda: a @ a, device, tiny)}
    block = torch.zeros(n * n, device=device)
    yield {"work": "copy", "bytes": 2 * block.nbytes, **timed(block.clone, device, tiny)}


def tried(what: dict, work: Callable[[], dict]) -> dict:
    """`what` and the numbers of some work, or the error that ended it: one variant that fails leaves the others."""
    try:
        return what | work()
    except Exception as error:
        return what | {"error": f"{type(error).__name__}: {error}"[:500]}


def as_graph(run: Callable[[], object]) -> Callable[[], object]:
    for _ in range(2):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def render(device: torch.device, tiny: bool) -> Results:
    """The renderer with voxels kept in registers or not, in one to four parts, eager and as a graph, and the others."""
    small = renderer.Scene(size=32, samples=48, resolution=32, batch=2)
    scenes = [renderer.Scene(9, 7, 6, 2, 2)] if tiny else [renderer.Scene(), small]
    cuda = device.type == "cuda"
    for scene in scenes:
        run = renderer.ours("fused")(scene, device)
        volume, cameras = scene.build(device)
        cameras = Cameras(
            *(x.repeat(scene.batch, 1, 1) for x in (cameras.world_to_camera, cameras.intrinsics)),
            cameras.height,
            cameras.width,
        )

        def from_cameras(volume=volume, cameras=cameras, samples=scene.samples) -> object:
            leaf = volume.detach().requires_grad_()
            colour, occupancy, _ = render_images(leaf, cameras, samples)
            return torch.autograd.grad([colour, occupancy], leaf, [torch.ones_like(x) for x in (colour, occupancy)])

        for keep in (True, False) if cuda else (True,):
            for parts in (0, 1, 2, 4) if cuda else (0,):
                if cuda:
                    from vader.rendering import cuda as kernels

                    kernels.KEEP, kernels.PARTS = keep, parts
                for how, work in {"from rays": run, "from cameras": from_cameras}.items():
                    what = {"work": str(scene), "keep": keep, "parts": parts, "how": how}
                    yield tried(what | {"launch": "eager"}, lambda work=work: timed(work, device, tiny))
                    if cuda:
                        graph = lambda work=work: timed(as_graph(work), device, tiny)  # noqa: E731
                        yield tried(what | {"launch": "graph"}, graph)
        if cuda:
            kernels.KEEP, kernels.PARTS = True, 0
        yield from renderer.compare(scene, device, repeats=2 if tiny else 7, memory=False)


# How a sampler may run: options of `for_inference`. Compiling comes last, since it may take the rest of the time.
SAMPLERS: dict[str, dict] = {
    "graph": {},
    "graph, convolutions as measured": {"products": True},
    "eager": {"graphs": False},
    "graph, compiled": {"compile": True},
}


def sampling(device: torch.device, tiny: bool) -> Results:
    """Samples of the paper's Chairs size by each way to run, one and many at a time, and decoding."""
    config = experiment("smoke", "procedural_chairs") if tiny else PAPER["photoshape_chairs"]
    shape, settings = config.autodecoder.latent_shape, SamplerConfig(num_steps=2) if tiny else config.sampler
    denoiser = sampler.randomised(config.unet, shape, device)
    with torch.device(device):
        decoder = Decoder(config.autodecoder)
    decoder = decoder.to(memory_format=torch.channels_last_3d, dtype=torch.bfloat16).eval().requires_grad_(False)
    cuda = device.type == "cuda"
    for way, options in SAMPLERS.items():
        if not cuda and ("compiled" in way or "graphs" in options):
            continue
        denoise = for_inference(denoiser, device, torch.bfloat16, **options)
        for batch in (1, 2) if tiny else (1, 32):

            def numbers(denoise=denoise, batch=batch) -> dict:
                def run() -> object:
                    return sample_objects(denoise, settings, range(batch), shape, 0, device=device)

                begun = time.perf_counter()
                run()
                first = time.perf_counter() - begun
                seconds = alternate({"": run}, 3, device)[""].wall
                found = {"seconds per sample": min(seconds) / batch, "first, seconds": first}
                network = getattr(denoise, "denoise", denoise).network
                chosen = {choice: n for (objects, choice), n in choices(network).items() if objects == batch}
                return found | {"execution": how_it_runs(denoise), "convolutions": chosen}

            yield tried({"work": "sample", "how": way, "batch": batch}, numbers)
    for batch in (1, 2) if tiny else (1, 32):
        latents = torch.randn(batch, *shape, device=device, dtype=torch.bfloat16)
        with torch.no_grad():
            run = as_graph(lambda x=latents: decoder.g2(x)) if cuda else lambda x=latents: decoder.g2(x)
            yield {"work": "decode", "batch": batch, **timed(run, device, tiny)}


def training(device: torch.device, tiny: bool) -> Results:
    """A step of stage 1, of the laptop and of the gpu profile, as it is and as a graph, and its parts."""
    changes = dict(reconstruction=dict(perceptual_network="none"))
    for profile in ("smoke",) if tiny else ("laptop", "gpu"):
        config = experiment(profile, "furniture_chairs")
        config = config.replace(**changes) if tiny else config
        for recorded in (False, True):
            graphs.GRAPHS = recorded
            what = {"work": f"{profile} step of stage 1", "as a graph": recorded}
            yield tried(what, lambda config=config: stage1_step(config, device, tiny))
        graphs.GRAPHS = False  # parts are timed one by one
        for quantity in stage1.breakdown(device, config, repeats=2 if tiny else 7):
            yield asdict(quantity)


def stage1_step(config: Experiment, device: torch.device, tiny: bool) -> dict:
    """Seconds of a step with its optimiser, on images of noise that come again and again."""
    task = Reconstruction(config, noise_pictures(config, 32), device)

    def step() -> None:
        task.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        task.step(0)
        task.optimizer.step()

    step()
    return {**timed(step, device, tiny), **task.execution()}


def shards(device: torch.device, tiny: bool) -> Results:
    """FSDP2 on one rank: its start over NCCL (gloo on a CPU), and three steps that equal those of whole weights."""
    from vader.training.sharding import shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    backend = "nccl" if device.type == "cuda" else "gloo"
    begun = time.perf_counter()
    torch.distributed.init_process_group(backend, rank=0, world_size=1)
    yield {"work": f"{backend} starts", "seconds": time.perf_counter() - begun}
    found = []
    for divided in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).to(device)
        if divided:
            shard(model)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 64, device=device)).square().mean()
            loss.backward()
            optimizer.step()
        found.append(loss.item())
    torch.distributed.destroy_process_group()
    yield {"work": "three steps, whole and divided", "losses": found}
    assert abs(found[0] - found[1]) <= 1e-4 * abs(found[0]), found


PYTHON = (sys.executable, "-m")
TEST = (*PYTHON, "pytest", "-m", "gpu", "-n", "0", "-q", "tests/rendering", "tests/diffusion", "tests/training")


def train(data: str, *options: str) -> tuple[str, ...]:
    """A training that pauses when its time is over and goes on when it is called again."""
    return (*PYTHON, "vader", "train", data, *options, "--device", "{device}", "--max-seconds", "{seconds}")


SMOKE = ("procedural_chairs", "--profile", "smoke", "--stage")
GPU = ("--profile", "gpu")
STAGE1, STAGE2 = (*GPU, "--stage", "autodecoder"), (*GPU, "--stage", "diffusion")
# In the order of their value. What is under way when the time is over goes on at the next call, and is not done before.
PHASES = {
    "machine": Phase(60, machine),
    "tests": Phase(120, command=TEST, tiny=(*TEST[:-3], "tests/diffusion/test_products.py")),
    "render": Phase(90, render),
    "sampling": Phase(180, sampling),
    "training": Phase(90, training),
    "shards": Phase(40, shards),
    "chairs": Phase(540, command=train("furniture_chairs", *STAGE1), tiny=train(*SMOKE, "autodecoder")),
    "chairs, stage 2": Phase(540, command=train("furniture_chairs", *STAGE2), tiny=train(*SMOKE, "diffusion")),
    "table": Phase(200, command=(*PYTHON, "vader", "report", "table1", *GPU, "-p", "data=furniture")),
    "benchmarks": Phase(200, command=(*PYTHON, "tests.benchmarks", "--device", "{device}")),
    "tables": Phase(540, command=train("furniture_tables", *STAGE1)),
    "tables, stage 2": Phase(540, command=train("furniture_tables", *STAGE2)),
    "household": Phase(540, command=train("household", *STAGE1)),
    "household, stage 2": Phase(540, command=train("household_text", *STAGE2)),
    "heads": Phase(540, command=train("people_heads", "--profile", "laptop")),
}
RESERVE = 15  # seconds a phase leaves for what follows a run
TINY = [name for name, phase in PHASES.items() if phase.work or phase.tiny]


def run_phase(name: str, options: argparse.Namespace, left: float) -> bool:
    """Run a phase in a process of its own with what time there is; whether it ended well."""
    phase, done = PHASES[name], options.out / f"{file_name(name)}.done"
    limit = int(left if options.tiny else min(phase.seconds, left))  # a busy CPU may need minutes to start
    if phase.work:
        command = [*PYTHON, "tests.benchmarks.device", "--phase", name, "--device", options.device]
        command += ["--out", str(options.out), *(["--tiny"] if options.tiny else [])]
    else:
        parts = phase.tiny if options.tiny else phase.command
        command = [part.format(device=options.device, seconds=max(1, limit - RESERVE)) for part in parts]
    begun, places = time.monotonic(), {}
    if options.tiny:  # nothing of a rehearsal is taken for a result; views are those of the bundle, where there is one
        places = {f"VADER_{name.upper()}": str(options.out.resolve() / name) for name in ("runs", "data")}
        places["VADER_DATA"] = os.environ.get("VADER_DATA") or places["VADER_DATA"]
    with open(options.out / f"{file_name(name)}.log", "ab") as log:
        log.write(f"== {utc_now()} at most {limit} s: {' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **places}
        )
        try:
            status: int | str = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # a training writes its checkpoint
            try:
                process.wait(timeout=RESERVE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            status = "out of time"
    told = {"phase": name, "status": status, "seconds": round(time.monotonic() - begun, 1)}
    note(options.out, told)
    print(json.dumps(told), flush=True)
    if status == 0:
        done.touch()
    return status == 0


def file_name(phase: str) -> str:
    return phase.replace(", ", "-").replace(" ", "")


def note(out: Path, result: dict) -> None:
    with open(out / "results.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps(result) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=".ci/device", description="What one GPU is asked first.")
    parser.add_argument("--out", type=Path, default=ROOT / "device", help="folder of logs and results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=700, help="for everything (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="sizes that take a CPU seconds")
    parser.add_argument("--only", nargs="+", metavar="PHASE", choices=PHASES, help="some phases (default: all)")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        select_device(options.device)
    except RunError as error:
        parser.error(f"{error}; --tiny --device cpu runs without one")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.phase:
        for result in PHASES[options.phase].work(torch.device(options.device), options.tiny):
            note(options.out, {"phase": options.phase, **result})
        return 0
    begun, missing = time.monotonic(), []
    for name in options.only or (TINY if options.tiny else PHASES):
        left = options.seconds - (time.monotonic() - begun)
        if (options.out / f"{file_name(name)}.done").exists():
            continue
        if left < (5 if options.tiny else 2 * RESERVE) or not run_phase(name, options, left):
            missing.append(name)
    print("missing:", ", ".join(missing) or "nothing", flush=True)
    return 75 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
