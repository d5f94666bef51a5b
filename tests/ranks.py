"""Real processes for tests of training: killed, paused, in groups. Forked after torch is imported, which is fast."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first optimizer of a process would import: here once for all that are forked
from torch import Tensor, nn

from tests.tiny import balls, tiny_experiment
from vader.autodecoder.reconstruction import Reconstruction
from vader.diffusion.denoising import Denoising
from vader.rendering import backends
from vader.settings.checks import ConfigError
from vader.settings.experiment import Experiment
from vader.store import runs
from vader.store.files import read_json
from vader.store.runs import Paused, RunError
from vader.training import checkpoints, distributed, fit
from vader.training.distributed import joined

CPU = torch.device("cpu")


def start(function, *arguments) -> BaseProcess:
    """A new process that runs a function of this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.ranks"])
    process = context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def group(function, size: int, *arguments) -> list[int]:
    """Run function(rank, *arguments) in a group of so many ranks; their exit statuses."""
    port = free_port()
    processes = [start(_member, function, rank, size, port, arguments) for rank in range(size)]
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def _member(function, rank: int, size: int, port: int, arguments: tuple) -> None:
    torch.set_num_threads(1)
    backends.BACKENDS.clear()  # the reference renderer has nothing to compile
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(size)} if size > 1 else {}
    with joined():
        function(rank, *arguments)


# ------------------------------------------------------------------------------------------- a task of no cost


class Drawn(nn.Module):
    """A mean of what a random stream says: wrong as soon as a step is missing, repeated or drawn otherwise."""

    def __init__(self, size: int = 512) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


class Drawing:
    """The smallest task of `fit`."""

    name = "drawing"
    per_step, seed, device, warmup = 1, 0, CPU, 0

    def __init__(self, total: int = 40, size: int = 512) -> None:
        self.total, self.model = total, Drawn(size)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.clip_norm = self.clip_value = 0.0

    def step(self, clock: int) -> dict[str, Tensor]:
        loss = (self.model.weight - torch.randn(len(self.model.weight))).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def after_step(self, clock: int) -> None:
        pass

    def batch(self, clock: int) -> list[str]:
        return [f"object-{clock}"]

    def state(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def save(self, work: Path) -> None:
        runs.save_weights(work / "drawing.safetensors", self.model, {})


def draw_to_the_end(work: Path, total: int, die_at: int | None = None) -> None:
    """Train a `Drawing`, a checkpoint at each step, whose clock a journal has once it is written.

    die_at: the process kills itself at its so-many-th operation on the file system within a checkpoint.
    """
    torch.set_num_threads(1)
    runs.environment = lambda device: {"device": "cpu"}  # asking git takes longer than the training
    write, left = checkpoints.write, die_at

    def counted(operation):
        def run(*arguments, **options):
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return run

    def noted(work: Path, task: str, clock: int, *rest, **options):
        folder = write(work, task, clock, *rest, **options)
        with open(work / "journal", "a") as stream:
            stream.write(f"{clock}\n")
        return folder

    for module, name in ((checkpoints, "sync"), (checkpoints, "sha256"), (checkpoints, "write_json")):
        setattr(module, name, counted(getattr(module, name)))
    checkpoints.shutil.rmtree = counted(checkpoints.shutil.rmtree)
    checkpoints.torch.save = counted(checkpoints.torch.save)
    checkpoints.write = noted
    fit(Drawing(total), work, runs.Record(work, 0), checkpoint_seconds=0)
    os._exit(0)


def draw_on_a_full_disk(work: Path) -> None:
    """Files may grow to a few kilobytes only, so a checkpoint of many weights fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
    try:
        fit(Drawing(8, size=20_000), work, runs.Record(work, 0), max_seconds=0.0)
    except RunError as error:
        (work / "error").write_text(str(error))


# -------------------------------------------------------------------------------------------- the stages on ranks


def shared_experiment(**reconstruction: Any) -> Experiment:
    settings = dict(images_seen=24, objects_per_step=4, views_per_object=2, num_samples=8, microbatches=4)
    config = tiny_experiment(
        data=dict(num_objects=9, resolution=12),
        autodecoder=dict(max_channels=16, attention_resolutions=()),
        reconstruction=settings | reconstruction,
        diffusion=dict(latents_seen=24, batch_size=8, microbatches=4),
        unet=dict(dropout=0.1, attention_resolutions=()),
    )
    return dataclasses.replace(config, weights_precision="float32")


PARTITIONED = shared_experiment(partitioned=True, clip_norm=5.0)


def train_stage_1(rank: int, config: Experiment, work: Path, pieces: bool = False, sharded: bool = False) -> None:
    """Train on the ranks of this group, one step only if in `pieces`, and leave what was exchanged in a file."""
    ranks = distributed.current(sharded)
    task = Reconstruction(config, balls(config, objects=9), CPU, ranks)
    try:
        fit(task, work, runs.Record(work, 0), max_seconds=0.0 if pieces else None)
    except Paused:
        os._exit(75)
    except RunError as error:
        (work / f"error-{rank}").write_text(str(error))
        os._exit(1)
    torch.save(dict(ranks.sent), work / f"sent-{rank}.pt")


def given_latents(config: Experiment, latents: Tensor, sharded: bool = False) -> Denoising:
    """The stage-2 task on latents (n, c, r, r, r) in place of a stage-1 run's."""

    class Given(Denoising):
        def features(self, autodecoder_run):
            return latents

    class Stage1:
        record = {"objects": [str(i) for i in range(len(latents))]}

    return Given(config, Stage1(), CPU, ranks=distributed.current(sharded))


def train_stage_2(rank: int, config: Experiment, work: Path, latents: Tensor, sharded: bool = False) -> None:
    fit(given_latents(config, latents, sharded), work, runs.Record(work, 0))


def meet_late(rank: int, size: int, port: int, attempt: int) -> None:
    """Meet the other ranks at a store that outlives them, as torchrun's does; the last rank comes after the others."""
    time.sleep(rank * attempt * 0.5)
    variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": attempt}
    os.environ |= {name: str(value) for name, value in variables.items()}
    with joined() as ranks:
        assert ranks.gathered(rank) == [*range(size)]


def write_in_turn(rank: int, work: Path) -> None:
    """What a rank makes takes the first one longest, and needs what that one made."""

    def make() -> list[int]:
        time.sleep(0.5 * (rank == 0))
        with open(work / "made", "a+") as stream:
            stream.write(f"{rank} ")
            stream.seek(0)
            return [int(word) for word in stream.read().split()]

    made = distributed.current().in_turn(make)
    assert made[0] == 0 and rank in made


def draw_on_ranks(rank: int, work: Path) -> None:
    """Train what knows of no other ranks, in a group."""
    try:
        fit(Drawing(8), work, runs.Record(work, 0))
    except ConfigError as error:
        (work / f"error-{rank}").write_text(str(error))


def last_clock(work: Path) -> int:
    """That of the newest checkpoint that is whole; 0 if there is none."""
    folder = checkpoints.newest(work, "drawing", [checkpoints.SHARED])
    return read_json(folder / "checkpoint.json")["clock"] if folder else 0


def die_once(work: Path) -> None:
    """Under torchrun: stage 1, whose second rank kills itself before its second step, unless it has before."""
    torch.set_num_threads(1)
    backends.BACKENDS.clear()
    with joined() as ranks:
        task = Reconstruction(PARTITIONED, balls(PARTITIONED, objects=9), CPU, ranks)
        step, begun = task.step, []

        def mortal(clock: int) -> dict[str, Tensor]:
            if ranks.first and not begun:
                with open(work / "starts", "a") as stream:
                    stream.write(f"{clock} ")
            begun.append(clock)
            if clock == task.per_step and not ranks.first and not (work / "died").exists():
                (work / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return step(clock)

        task.step = mortal
        fit(task, work, runs.Record(work, 0), checkpoint_seconds=0)


if __name__ == "__main__":
    die_once(Path(sys.argv[1]))
