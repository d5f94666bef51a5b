"""Start of several ranks: by torchrun's agent from the command line, in a subprocess from a notebook.

On a cluster, `submitit` starts one of torchrun's agents per node, and they meet on the first one:

    import os, subprocess, submitit
    from vader.training import torchrun_command

    def node():
        first = submitit.helpers.TorchDistributedEnvironment().export().master_addr
        command = torchrun_command(
            8, 8, f"{first}:29500", profile="gpu", data="furniture_chairs", microbatches=64, partitioned=True
        )
        threads = {"OMP_NUM_THREADS": "8"}  # of 64 cores for 8 ranks; torchrun gives each of them one
        return subprocess.run(command, env=os.environ | threads).returncode

    executor = submitit.AutoExecutor(folder="runs/slurm")
    executor.update_parameters(nodes=8, tasks_per_node=1, gpus_per_node=8, cpus_per_task=64, timeout_min=24 * 60)
    executor.submit(node)  # again after a time limit or a failure: it resumes
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.files import plain, write_json
from ..store.paths import runs_dir
from ..store.runs import Paused, RunError
from .distributed import threads_each

if TYPE_CHECKING:
    from ..data import SequenceSet, ShardedSet
    from ..settings.experiment import Experiment

PAUSED = 75  # exit status of a training that stopped on purpose and can be resumed (EX_TEMPFAIL)
PROGRESS = "VADER_PROGRESS"  # set: show progress bars though no terminal is there


def launch(arguments: list[str], ranks: int, port: int = 0, max_restarts: int = 0) -> int:
    """Run `vader train` in `ranks` processes of this machine; their exit status.

    port: where they meet; 0: any that is free. A worker that dies takes the others with it, and all start again from
    the last checkpoint, up to `max_restarts` times. SIGTERM is passed on. Raises RunError where the port is in use.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with socket.socket() as probe:
        try:
            probe.bind(("localhost", port))
        except OSError as error:
            raise RunError(f"port {port} cannot be used ({error}); take another one, or 0 for any free one") from error
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_each(ranks)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="vader",
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        max_restarts=max_restarts,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "vader", "train", *arguments)
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        return PAUSED if PAUSED in statuses else 1  # which all ranks agree on; the agent may stop some before their end
    except SignalException as error:
        return PAUSED if error.sigval == signal.SIGTERM else 1
    return 0


def torchrun_command(nodes: int, ranks: int, meeting: str, data: str, **options: Any) -> list[str]:
    """The command line that each of `nodes` machines runs to train with `ranks` processes each.

    meeting: host:port of one of them. data: the data set. options: those of `vader train`, e.g. profile='gpu',
    partitioned=True. The machines need to see one file system.
    """
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
        if value is not False
    ]
    agents = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={meeting}", "--max-restarts=3"]
    return ["torchrun", *agents, f"--nproc-per-node={ranks}", "-m", "vader", "train", data, *words]


def train_on(
    ranks: int,
    config: Experiment,
    data: SequenceSet | ShardedSet,
    stage: str,
    device: str = "auto",
    max_seconds: float | None = None,
    **options: Any,
) -> None:
    """Train a stage in `ranks` processes, in a subprocess whose output appears here as it comes.

    options: those of `fit`, and `shard`. Raises Paused as a training in this process does, and RunError with the last
    lines of what was said where it fails, and where the data are in memory only.
    """
    if data.folder is None:
        raise RunError(f"data set {data.name} is in memory only, expected one on the disk for {ranks} ranks to load")
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        write_json(job, {"experiment": plain(config), "data": str(data.folder), "options": plain(options)})
        command = [sys.executable, "-m", "vader", "train", "--job", str(job), "--stage", stage, "--device", device]
        command += ["--ranks", str(ranks)] + (["--max-seconds", str(max_seconds)] if max_seconds is not None else [])
        environment = {**os.environ, PROGRESS: "1", "VADER_RUNS": str(runs_dir())}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=Path(__file__).parents[2]
        )
        said = b""
        try:
            while chunk := process.stdout.read1(4096):
                said = (said + chunk)[-4000:]
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
            status = process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            process.wait()
    lines = said.decode(errors="replace").strip().splitlines()
    if status == PAUSED:
        raise Paused(next((line for line in lines if " paused at " in line), "paused; run it again to resume"))
    if status:
        raise RunError(f"training on {ranks} ranks failed: " + "\n".join(lines[-8:]))


def read_job(file: Path) -> tuple[Experiment, SequenceSet | ShardedSet, dict[str, Any]]:
    """The job that `train_on` wrote: the experiment, its data, and options of a stage."""
    from ..data import open_set
    from ..settings.experiment import Experiment
    from ..store.files import from_plain

    job = json.loads(Path(file).read_text(encoding="utf-8"))
    return from_plain(Experiment, job["experiment"]), open_set(Path(job["data"])), job["options"]
