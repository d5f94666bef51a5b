"""Distributed training: this process's rank, the group's size, and every exchange, with its size in bytes.

`torchrun` starts the processes and `joined` makes them a group. Without it there is one rank, `ALONE`, for which
every exchange is nothing. A step consists of `microbatches` with a random stream each, which ranks share out among
themselves. So the result of a step does not depend on the number of ranks.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..settings.checks import require
from ..store.files import RunError
from .sharding import shard

AGREEMENT_BYTES = 3 * 8  # what ranks exchange at each step about pausing, checkpoints and losses that are not finite


def stream_seed(seed: int, stream: int, clock: int) -> int:
    """Seed of a random stream of a step: that of the whole step (0), or of a microbatch."""
    digest = hashlib.sha256(f"{seed}/{stream}/{clock}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def select_device(name: str = "auto") -> torch.device:
    """'auto' is CUDA if there is one, else the CPU; under torchrun 'cuda' is this process's own GPU.

    Raises RunError for a device that is named but absent, and for a name that is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RunError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"device is {name!r}, but this torch finds no CUDA device")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise RunError(
                f"rank {local} of this machine needs a GPU, but there are {count}, expected one for each rank"
            )
        name = f"cuda:{local}"
    return torch.device(name)


@dataclass
class Ranks:
    """This process among `size` ones. `sent` counts the bytes that it put into exchanges, by kind.

    sharded: ranks divide the weights of the networks that they train (`sharding`), and do not copy them (DDP).
    """

    rank: int = 0
    size: int = 1
    sent: Counter = field(default_factory=Counter)
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank == 0

    def share(self, microbatches: int) -> range:
        """The microbatches of this rank: j with j mod size = rank. Raises ConfigError unless `size` divides them."""
        require(
            microbatches % self.size == 0,
            f"{self.size} ranks cannot share {microbatches} microbatches a step equally; set microbatches to a "
            f"multiple of {self.size}, or take a number of ranks that divides {microbatches}",
        )
        return range(self.rank, microbatches, self.size)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` in DDP, or divided among ranks, with gradients that are sums over ranks; itself on a single rank.

        Buffers are left alone: what they mean over ranks is for the task to say.
        """
        if self.size == 1:
            return module
        if self.sharded:
            return shard(module)
        device = next(module.parameters()).device
        # of 1x1x1 convolutions, whose strides in channels_last_3d are a matter of taste
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        parallel = nn.parallel.DistributedDataParallel(
            module,
            device_ids=None if device.type == "cpu" else [device.index],
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        parallel.register_comm_hook(self, _summed)
        return parallel

    def accumulate(
        self, parallel: nn.Module, microbatches: int, seed: int, clock: int, loss: Callable[[int], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Gradients of a step's mean loss over its microbatches, of which this rank takes its share, one by one.

        loss(j): the named losses of microbatch j, computed through `parallel` (a module of `wrap`); of several, each
        has a random stream of its own. Returns this rank's part of the step's losses: over ranks they are a sum.
        """
        own, total = self.share(microbatches), {}
        statistics = BatchStatistics(parallel) if microbatches > 1 else None
        for j in own:
            if statistics:
                torch.manual_seed(stream_seed(seed, j, clock))
            silent = j != own[-1] and isinstance(parallel, nn.parallel.DistributedDataParallel)
            if self.sharded:
                parallel.set_requires_gradient_sync(j == own[-1])
            with parallel.no_sync() if silent else contextlib.nullcontext():
                losses = loss(j)
                (losses["loss"] / microbatches).backward()
            for name, value in losses.items():
                total[name] = total.get(name, 0) + value.detach() / microbatches
            if statistics:
                statistics.next()
        if statistics:
            statistics.finish(microbatches, self)
        return total

    # ------------------------------------------------------------------------------------------------- exchanges

    def sum(self, tensor: Tensor, kind: str) -> Tensor:
        """`tensor` becomes its sum over ranks, in place."""
        if self.size > 1:
            self.sent[kind] += tensor.nbytes
            dist.all_reduce(tensor)
        return tensor

    def largest(self, values: list[float]) -> list[float]:
        """The largest over ranks of each of some numbers on the host."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        self.sent["agreement"] += tensor.nbytes
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def told(self, value: Any = None) -> Any:
        """The first rank's argument, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def in_turn(self, make: Callable[[], Any]) -> Any:
        """make() of each rank, the first one's before the others', for which what it writes is there."""
        made = make() if self.first else None
        self.told()
        return made if self.first else make()

    def gathered(self, value: Any) -> list[Any]:
        """The arguments of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def assembled(self, rows: Tensor, places: Tensor, total: int) -> Tensor | None:
        """The table (total, ...) that has this rank's `rows` at `places` (n,), on the first rank; None elsewhere."""
        everywhere = self.gathered(places.tolist())
        longest = max(map(len, everywhere))
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.first else None
        if self.size > 1:
            dist.gather(padded, parts, dst=0)
        else:
            parts = [padded]
        if parts is None:
            return None
        table = rows.new_empty(total, *rows.shape[1:])
        for part, where in zip(parts, everywhere, strict=True):
            table[where] = part[: len(where)]
        return table


ALONE = Ranks()


class BatchStatistics:
    """Batch norm's running statistics over a step: each microbatch starts from the step's first, and their mean stays.

    (Microbatches one after another would each move them, further than the same ones on several ranks would.)
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.counts = [m.num_batches_tracked for m in norms]
        self.running = [x for m in norms for x in (m.running_mean, m.running_var)]
        self.before = [x.clone() for x in (*self.counts, *self.running)]
        self.sums = [torch.zeros_like(x) for x in self.running]

    @torch.no_grad()
    def next(self) -> None:
        """After a microbatch."""
        for total, x in zip(self.sums, self.running, strict=True):
            total += x
        for x, before in zip((*self.counts, *self.running), self.before, strict=True):
            x.copy_(before)

    @torch.no_grad()
    def finish(self, microbatches: int, ranks: Ranks) -> None:
        """After the last one, on every rank."""
        if not self.sums:
            return
        flat = ranks.sum(torch.cat([x.flatten() for x in self.sums]), "statistics") / microbatches
        for x, mean in zip(self.running, flat.split([x.numel() for x in self.running]), strict=True):
            x.copy_(mean.view_as(x))
        for count in self.counts:
            count += 1


def _summed(ranks, bucket):  # torch looks at annotations here, and refuses those that are text
    ranks.sent["gradients"] += bucket.buffer().nbytes
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def threads_each(ranks: int) -> int:
    """Threads of each of `ranks` on this machine: OMP_NUM_THREADS if it is set, else an equal share of the cores."""
    if given := os.environ.get("OMP_NUM_THREADS", ""):
        return int(given.split(",")[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // ranks)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The group of processes that torchrun started, until the end of the block; one rank where it started none.

    Ranks of one machine divide its cores among them, unless OMP_NUM_THREADS is set: torch's threads, which loops
    compiled by numba follow. (torchrun itself sets it to 1 where nobody has.)

    Raises RunError where its variables are incomplete or its port is taken.
    """
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield current()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RunError(f"WORLD_SIZE is set, but {', '.join(missing)} is not; expected those that torchrun sets")
    if "LOCAL_WORLD_SIZE" in os.environ and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_each(int(os.environ["LOCAL_WORLD_SIZE"])))
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store, rank, size = next(dist.rendezvous("env://"))
        # torchrun's store still has the addresses of workers that died, and who reads one of them waits for ever
        store = dist.PrefixStore(f"attempt-{attempt}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (dist.DistNetworkError, ValueError) as error:
        raise RunError(
            f"ranks cannot meet at {address} ({str(error).splitlines()[0]}); if the port is in use, take another one "
            "(torchrun --master-port, or --standalone, which finds a free one)"
        ) from error
    try:
        yield current()
    finally:
        gc.collect()  # a module in DDP that outlives its group can abort the process at its end
        dist.destroy_process_group()


def current(sharded: bool = False) -> Ranks:
    """This process's ranks within `joined`; one rank outside of it. Raises ConfigError for `sharded` with one rank."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), sharded=sharded) if dist.is_initialized() else Ranks()
    require_several(ranks.size, sharded)
    return ranks


def require_several(ranks: int, sharded: bool) -> None:
    """Raise ConfigError for weights that a single rank would divide with nobody."""
    require(
        ranks > 1 or not sharded,
        f"shard is 'fully', which divides weights among ranks, but there is {ranks}; start several or leave it out",
    )
