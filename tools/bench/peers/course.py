"""What happened in one arm of a comparison, as values. Pure."""

from typing import NamedTuple

__all__ = ["ArmRun", "Reading", "Round", "Sample"]


class Reading(NamedTuple):
    """A role at one moment: CPU seconds since its beginning, and what its processes hold."""

    cpu_s: float
    rss_mb: float
    pss_mb: float | None  # None: not read this time


class Sample(NamedTuple):
    """All roles at one moment, and the TCP payload of each client so far: up, down."""

    at: float  # Unix seconds
    roles: dict[str, Reading]  # "client-1" and so on, "server", and what else there is
    lines: tuple[tuple[int, int], ...]


class Round(NamedTuple):
    """A model of the server. Number 0 is what all begin with, at the moment of the first task."""

    number: int
    at: float
    accuracy: float


class ArmRun(NamedTuple):
    """One arm, once."""

    arm: str
    clients: int
    submitted: float  # the clients are connected, the job is given
    settled: float  # every client has the last model, or has ended the job
    rounds: tuple[Round, ...]
    samples: tuple[Sample, ...]
    idle: tuple[float, float] | None = None  # from when to when nothing was to be done
    problems: tuple[str, ...] = ()  # what must not be
