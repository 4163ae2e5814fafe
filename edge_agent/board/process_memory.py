"""The memory of this process, as glibc and the system have it."""

import contextlib
import ctypes
import os

__all__ = ["forget_peak", "give_back_memory", "give_way_first", "keep_one_heap", "rss_mb"]

_M_ARENA_MAX = -8  # of mallopt(3)
_PEAK = "5"  # of proc(5), clear_refs: VmHWM
_GIVES_WAY = "800"  # of 1000
_LIBC = ctypes.CDLL(None)


def keep_one_heap() -> None:
    """Let all threads share one heap: every further one of glibc's would keep its own peak."""
    _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Give the system what has become free."""
    _LIBC.malloc_trim(0)


def forget_peak() -> None:
    """Let the peak of this process begin anew; a kernel that cannot has the peak of its life."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write(_PEAK)


def give_way_first() -> None:
    """Have the system end this process before others where memory is short."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_GIVES_WAY)


def rss_mb() -> float:
    """Return how much is resident."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
