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

from vader.diffusion.inference import for_inference, how_it_runs
from vader.diffusion.sampling import sample_objects
from vader.settings.diffusion import SamplerConfig
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER
from vader.store.provenance import device_name

from . import renderer, sampler, stage1
from .contest import alternate

ROOT = Path(__file__).parents[2]
Results = Iterator[dict]


@dataclass(frozen=True)
class Phase:
    seconds: int  # at most
    work: Callable[[torch.device, bool], Results] | None = None  # numbers, one after another
    command: tuple[str, ...] = ()  # or a command, whose log is what is wanted; {device} and {seconds} are filled in


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


def render(device: torch.device, tiny: bool) -> Results:
    """The renderer with voxels kept in registers and without, eager and as a graph, beside the others."""
    scenes = [renderer.Scene(9, 7, 6, 2, 2)] if tiny else [renderer.Scene(), renderer.Scene(size=32, samples=48)]
    for scene in scenes:
        for keep in (True, False) if device.type == "cuda" else (True,):
            if device.type == "cuda":
                from vader.rendering import cuda

                cuda.KEEP = keep
            run = renderer.ours("fused")(scene, device)
            yield {"work": str(scene), "keep": keep, "how": "eager", **timed(run, device, tiny)}
            if device.type == "cuda":
                graph = torch.cuda.CUDAGraph()
                run()
                with torch.cuda.graph(graph):
                    run()
                yield {"work": str(scene), "keep": keep, "how": "graph", **timed(graph.replay, device, tiny)}
        yield from renderer.compare(scene, device, repeats=2 if tiny else 7, memory=False)


def sampling(device: torch.device, tiny: bool) -> Results:
    """A sample of the paper's Chairs size, without and with graphs, then compiled, one and many at a time."""
    config = experiment("smoke", "procedural_chairs") if tiny else PAPER["photoshape_chairs"]
    shape, settings = config.autodecoder.latent_shape, SamplerConfig(num_steps=2) if tiny else config.sampler
    denoiser = sampler.randomised(config.unet, shape, device)
    cuda = device.type == "cuda"
    for compile in (False, True) if cuda else (False,):
        for graphs in (True, False) if cuda and not compile else (cuda,):
            for batch in (1, 2) if tiny else (1, 32):
                denoise = for_inference(denoiser, device, torch.bfloat16, compile, graphs and None)

                def run(denoise=denoise, batch=batch) -> object:
                    return sample_objects(denoise, settings, range(batch), shape, 0, device=device)

                seconds = alternate({"": run}, 3, device)[""].wall
                each = min(seconds) / batch
                yield {"work": "sample", "how": how_it_runs(denoise), "batch": batch, "seconds per sample": each}


def training(device: torch.device, tiny: bool) -> Results:
    """A step of stage 1 by parts, of the laptop and of the gpu profile."""
    changes = dict(reconstruction=dict(perceptual_network="none"))
    for profile in ("smoke",) if tiny else ("laptop", "gpu"):
        config = experiment(profile, "furniture_chairs")
        for quantity in stage1.breakdown(
            device, config.replace(**changes) if tiny else config, repeats=2 if tiny else 7
        ):
            yield asdict(quantity)


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
TRAIN = (*PYTHON, "vader", "train", "furniture_chairs", "--profile", "gpu", "--device", "{device}")
TEST = (*PYTHON, "pytest", "-m", "gpu", "-n", "0", "-q", "tests/rendering", "tests/diffusion")
PHASES = {
    "machine": Phase(60, machine),
    "tests": Phase(120, command=TEST),
    "render": Phase(120, render),
    "sampling": Phase(200, sampling),
    "training": Phase(90, training),
    "shards": Phase(40, shards),
    "stage1": Phase(540, command=(*TRAIN, "--stage", "autodecoder", "--max-seconds", "{seconds}")),
    "stage2": Phase(540, command=(*TRAIN, "--stage", "diffusion", "--max-seconds", "{seconds}")),
    "benchmarks": Phase(200, command=(*PYTHON, "tests.benchmarks", "--device", "{device}")),
}
RESERVE = 15  # seconds a phase leaves for what follows a run
TINY = ("machine", "render", "sampling", "training", "shards")


def run_phase(name: str, options: argparse.Namespace, left: float) -> bool:
    """Run a phase in a process of its own with what time there is; whether it ended well."""
    phase, done = PHASES[name], options.out / f"{name}.done"
    limit = int(left if options.tiny else min(phase.seconds, left))  # a busy CPU may need minutes to start
    if phase.work:
        command = [*PYTHON, "tests.benchmarks.device", "--phase", name, "--device", options.device]
        command += ["--out", str(options.out), *(["--tiny"] if options.tiny else [])]
    else:
        command = [part.format(device=options.device, seconds=max(1, limit - RESERVE)) for part in phase.command]
    begun = time.monotonic()
    with open(options.out / f"{name}.log", "ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            status: int | str = process.wait(timeout=limit)
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
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA device; --tiny --device cpu runs without one")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.phase:
        for result in PHASES[options.phase].work(torch.device(options.device), options.tiny):
            note(options.out, {"phase": options.phase, **result})
        return 0
    begun, missing = time.monotonic(), []
    for name in options.only or (TINY if options.tiny else PHASES):
        left = options.seconds - (time.monotonic() - begun)
        if (options.out / f"{name}.done").exists():
            continue
        if left < (5 if options.tiny else 2 * RESERVE) or not run_phase(name, options, left):
            missing.append(name)
    print("missing:", ", ".join(missing) or "nothing", flush=True)
    return 75 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
