"""A directory of state is worked in by one process at a time: its lock ends with that process."""

import fcntl
import os
import time
from pathlib import Path

from models.errors import UsageError

__all__ = ["is_locked", "lock"]

TRIES = 10  # whoever asks `is_locked` holds it for a moment
APART_S = 0.1


def lock(file: Path, *, otherwise: str) -> int:
    """Lock ``file`` for this process, until it ends; return the descriptor to keep open.

    Raises:
        UsageError: another process has it; says ``otherwise``.
        OSError: it cannot be written.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(APART_S)
        else:
            return descriptor
    os.close(descriptor)
    raise UsageError(otherwise)


def is_locked(file: Path) -> bool:
    """Whether a process has locked ``file`` now.

    Raises:
        OSError: it cannot be told, as where we may not look.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
