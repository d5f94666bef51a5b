"""Errors of a disk or network that may be back in a moment: one rule for all files that objects are read from.

An object whose files cannot be read is left out of a set. That a server did not answer for a second is no reason to:
such an object is tried again, `len(PAUSES)` times, and then the preparation stops; started again, it goes on.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

PAUSES = (1.0, 4.0, 16.0)  # seconds before each further try
# What network file systems say while a server is away, or has moved a file.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EREMOTEIO", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN")
    if hasattr(errno, name)
)
Result = TypeVar("Result")


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it comes from, is such a one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return True
        error = error.__cause__
    return False


def unusable(error: Exception) -> str:
    """Why a part of an object is left out. A transient error is no reason: it is raised again."""
    if is_transient(error):
        raise error
    return str(error)


def retried(action: Callable[[], Result]) -> Result:
    """What `action` returns, tried again after each of PAUSES while it fails for a moment. Raises its last error."""
    for pause in PAUSES:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(pause)
    return action()
