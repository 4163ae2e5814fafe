"""What a server took of a load, and what it cost: the figures of `edgefold bench server`."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Back", "Taken", "cpu_seconds", "taken_by"]


class Taken(NamedTuple):
    """What one side did with its load."""

    side: str
    updates: int
    bytes_per_update: int
    updates_per_second: float  # from the first byte sent to the last receipt
    cpu_ms_per_update: float
    peak_rss_mb: float


class Back(NamedTuple):
    """A server that starts on the registry of an old, large fleet."""

    devices: int
    past_updates: int
    seconds: float  # from the start of its process to its answer to a device
    rss_mb: float


def taken_by(
    side: str, updates: Sequence[bytes], count: int, seconds: float, pid: int, before_s: float
) -> Taken:
    """Return the figures of a side that is done; ``before_s`` is its CPU time before."""
    from edge_agent.board.children import peak_rss_mb

    return Taken(
        side=side,
        updates=count,
        bytes_per_update=sum(map(len, updates)) // len(updates),
        updates_per_second=count / seconds,
        cpu_ms_per_update=(cpu_seconds(pid) - before_s) / count * 1e3,
        peak_rss_mb=peak_rss_mb(pid),
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, of user and system."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
