"""What an experiment gives: figures, what was published, what must be reached, and curves."""

import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

__all__ = ["Course", "Experiment", "Figure", "Outcome", "Told", "figure", "found_in"]

Told = Callable[[float, str], None]  # the share that is done (0..1), and a few words


class Figure(msgspec.Struct, frozen=True):
    """One figure of an experiment, mean over seeds; what was not verified is None."""

    name: str
    metric: str
    published: float | None
    ours: float
    spread: float  # standard deviation over the seeds
    must_reach: float | None
    moonshot: float | None
    direction: Literal["least", "most"]  # ours must be at least, or at most, what must be reached
    reached: bool | None  # None: nothing had to be
    moonshot_reached: bool | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # by seed
    bytes: float | None = None  # that were sent, mean
    seconds: float | None = None  # of simulated time, mean
    note: str = ""


class Course(NamedTuple):
    """A curve for the pictures: how good after so many bytes and so much simulated time."""

    label: str
    bytes_sent: Sequence[float]
    seconds: Sequence[float]  # or what `Outcome.time` says
    metric: Sequence[float]


class Outcome(NamedTuple):
    """All that one experiment gives."""

    figures: tuple[Figure, ...]
    courses: tuple[Course, ...] = ()
    metric: str = "accuracy"  # of the courses
    time: str = "simulated seconds"  # likewise


Run = Callable[[Sequence[int], bool, Told], Outcome]


def found_in(module: str, name: str = "run") -> Run:
    """Return an experiment's function, whose module is imported when it is called.

    What experiments import is not there for everyone who asks what there is.
    """

    def run(seeds: Sequence[int], is_small: bool, told: Told) -> Outcome:
        function: Run = getattr(importlib.import_module(module), name)
        return function(seeds, is_small, told)

    return run


class Experiment(NamedTuple):
    """A row of `tools.experiments.reproduce.EXPERIMENTS`. ``run``: seeds, is_small, told."""

    summary: str
    run: Run
    is_long: bool = False  # hours: not part of "all"


def figure(
    name: str,
    metric: str,
    values: Sequence[float],
    *,
    seeds: Sequence[int],
    must_reach: float | None = None,
    moonshot: float | None = None,
    direction: Literal["least", "most"] = "least",
    published: float | None = None,
    bytes_sent: float | None = None,
    seconds: float | None = None,
    note: str = "",
) -> Figure:
    """Return the figure that ``values``, one for each seed, make: their mean is what counts."""
    ours = statistics.fmean(values)

    def reached(bound: float | None) -> bool | None:
        if bound is None:
            return None
        if not math.isfinite(ours):
            return False
        return ours >= bound if direction == "least" else ours <= bound

    return Figure(
        name=name,
        metric=metric,
        published=published,
        ours=ours,
        spread=statistics.stdev(values) if len(values) > 1 else 0.0,
        must_reach=must_reach,
        moonshot=moonshot,
        direction=direction,
        reached=reached(must_reach),
        moonshot_reached=reached(moonshot),
        seeds=tuple(seeds),
        values=tuple(float(value) for value in values),
        bytes=bytes_sent,
        seconds=seconds,
        note=note,
    )
