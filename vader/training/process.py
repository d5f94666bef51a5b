"""The process of a training: it keeps freed memory, notes SIGTERM, and passes it on to its workers."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any

POLL_SECONDS = 0.5  # between looks at whether processes were told to stop

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1
_PAD = 2**28


def keep_freed_memory() -> bool:
    """Let malloc use freed memory again, whatever its size, in place of returning it; the same bits come out.

    glibc asks the system for every large array anew and gives it back at once. So each activation of each step is
    zeroed page by page. On a CPU this takes an eighth of a step of stage 1, and a quarter of one of π-GAN's. The change
    holds until the process ends. Returns whether the C library could do so: glibc can.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(*pair) for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _PAD)))


@contextlib.contextmanager
def sigterm_noted() -> Iterator[list[int]]:
    """A list that SIGTERM is appended to instead of ending the process: the step in progress is finished first."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def in_processes(
    work: Callable[[Any], Any], jobs: Sequence[Any], workers: int, open_worker: Callable[..., None], arguments: tuple
) -> None:
    """Do `work(job)` for all jobs in new processes, each of which calls `open_worker(*arguments)` first.

    SIGTERM is passed on to them: trainings stop at a checkpoint, nothing else is begun. Raises what a job raises.
    """
    size = min(workers, max(1, len(jobs)))
    stopping = False
    with (
        sigterm_noted() as told_to_stop,
        ProcessPoolExecutor(size, get_context("spawn"), open_worker, arguments) as pool,
    ):
        waiting = {pool.submit(work, job) for job in jobs}
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                if told_to_stop and not stopping:
                    stopping = True
                    waiting = {future for future in waiting if not future.cancel()}
                    for process in active_children():
                        process.terminate()
                for future in done:
                    future.result()
        except BaseException as error:
            pool.shutdown(cancel_futures=True)  # what is being trained goes on to its next checkpoint or end
            if not (stopping and isinstance(error, BrokenProcessPool)):  # a process that was told while it started
                raise
