"""The memory of this process, as glibc and the system have it."""

import ctypes
import os

__all__ = ["give_back_memory", "keep_one_heap", "rss_mb"]

_M_ARENA_MAX = -8  # of mallopt(3)
_LIBC = ctypes.CDLL(None)


def keep_one_heap() -> None:
    """Let all threads share one heap: every further one of glibc's would keep its own peak."""
    _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Give the system what has become free."""
    _LIBC.malloc_trim(0)


def rss_mb() -> float:
    """Return how much is resident."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
