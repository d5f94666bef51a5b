"""What a training asks of its process: to keep the memory that it frees, and to note SIGTERM."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1
_PAD = 2**28


def keep_freed_memory() -> bool:
    """Let malloc use freed memory again, whatever its size, in place of returning it; the same bits come out.

    glibc asks the system for every large array anew and gives it back at once, so that each activation of each step is
    zeroed page by page: on a CPU an eighth of a step of stage 1, and a quarter of one of π-GAN's. Holds until the
    process ends. Returns whether the C library could do so: glibc can.
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
