"""A parameter coreset: the few weighted centers that stand for many values. Pure.

Exact one-dimensional k-means by dynamic programming over a fine histogram. Each bin keeps the
exact sums of its values, so only boundaries between clusters are rounded to bins: with 2,048 bins
the error agrees with exact dynamic programming over 400,000 values to five digits, in a
tenth of the time (docs/payload.md, figures).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.task.params import Vector

__all__ = ["kmeans_centers", "nearest"]

BINS = 2048

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def kmeans_centers(
    values: npt.NDArray[np.floating], count: int, *, weights: Doubles | None = None
) -> Vector:
    """Return at most ``count`` centers, float32 and ascending, that minimize the squared error.

    The error is ``sum(w * (v - nearest center)**2)`` over ``values`` of shape (n,) with
    ``weights`` > 0 (all 1 without). With ``count`` or fewer distinct values it is zero. The
    recursion is that of Wang and Song, "Ckmeans.1d.dp", The R Journal 2011; its inner minimum
    moves monotonically, so each row is solved by divide and conquer.

    Raises:
        ValueError: no center asked for, or a value is not finite.
    """
    if count < 1:
        raise ValueError(f"{count} centers")
    if values.size == 0:
        return np.zeros(0, np.float32)
    points = values.astype(np.float64)
    if not np.isfinite(points).all():
        raise ValueError("not all values are finite")
    scale = float(np.abs(points).max()) or 1.0  # squares neither overflow nor vanish
    mass, first, second = _bins(points / scale, weights)
    # Moments of the bins before bin i: sums over any run of bins are differences.
    sums = [np.concatenate([[0.0], np.cumsum(moment)]) for moment in (mass, first, second)]
    edges = _best_edges(sums[0], sums[1], sums[2], min(count, mass.size))
    means = np.diff(sums[1][edges]) / np.diff(sums[0][edges])
    return np.unique((means * scale).astype(np.float32))


def nearest(values: npt.NDArray[np.floating], centers: Vector) -> Integers:
    """Return for each value the number of the nearest of the ascending ``centers``."""
    between = (centers[1:].astype(np.float64) + centers[:-1]) / 2
    return np.searchsorted(between, values.astype(np.float64))


def _bins(points: Doubles, weights: Doubles | None) -> tuple[Doubles, Doubles, Doubles]:
    """Return mass, first and second moment per non-empty bin, in ascending order of value."""
    low, high = float(points.min()), float(points.max())
    distinct = np.unique(points) if points.size <= 8 * BINS else None
    if distinct is not None and distinct.size <= BINS:
        where, size = np.searchsorted(distinct, points), distinct.size
    else:
        where = ((points - low) * ((BINS - 1) / (high - low)) + 0.5).astype(np.int64)
        size = BINS
    share = np.ones_like(points) if weights is None else weights
    mass, first, second = (
        np.bincount(where, moment, size).astype(np.float64)
        for moment in (share, share * points, share * points * points)
    )
    used = mass > 0
    return mass[used], first[used], second[used]


class _Row(NamedTuple):
    """One row of the dynamic program, over the number of bins from the left that are covered."""

    cost: Doubles
    last: Integers  # where the last cluster begins


def _best_edges(mass: Doubles, first: Doubles, second: Doubles, count: int) -> list[int]:
    """Return ``count + 1`` edges, in bins, of the best clusters; arguments are running sums."""

    def spread(start: Integers, stop: Integers) -> Doubles:
        total = first[stop] - first[start]
        return second[stop] - second[start] - total * total / (mass[stop] - mass[start])

    size = mass.size - 1
    stops = np.arange(1, size + 1)
    cost = np.concatenate([[0.0], spread(np.zeros_like(stops), stops)])
    edges = [size]
    lasts = []
    for clusters in range(2, count + 1):
        row = _next_row(cost, spread, clusters, size)
        cost = row.cost
        lasts.append(row.last)
    for last in reversed(lasts):
        edges.append(int(last[edges[-1]]))
    return [*edges, 0][::-1]


def _next_row(
    before: Doubles, spread: Callable[[Integers, Integers], Doubles], clusters: int, size: int
) -> _Row:
    """Return the best cost of ``clusters`` clusters over the first ``clusters``... ``size`` bins.

    The best beginning of the last cluster moves right with its end, so the middle of every
    interval is solved between what its two solved neighbors found: all intervals of one width at
    once, then those of half the width.
    """
    row = _Row(np.full(size + 1, np.inf), np.zeros(size + 1, np.int64))
    ends = size - clusters + 1
    width = 1 << (ends.bit_length() - 1)
    while width:
        at = np.arange(width, ends + 1, 2 * width)
        stop = at + clusters - 1
        lowest = np.where(at > width, row.last[stop - width], clusters - 1)
        highest = np.where(at + width <= ends, row.last[np.minimum(stop + width, size)], size)
        highest = np.minimum(highest, stop - 1)
        lengths = highest - lowest + 1
        begins = np.cumsum(lengths) - lengths
        start = np.arange(lengths.sum()) - np.repeat(begins - lowest, lengths)
        cost = before[start] + spread(start, np.repeat(stop, lengths))
        least = np.minimum.reduceat(cost, begins)
        hits = np.flatnonzero(cost == np.repeat(least, lengths))
        row.cost[stop] = least
        row.last[stop] = start[hits[np.searchsorted(hits, begins)]]
        width >>= 1
    return row
