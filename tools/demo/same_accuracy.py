"""Bytes until one accuracy, with small updates and with dense ones."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tools.demo.demo_dense import DenseRun
from tools.local_fleet.fleet_facts import ReleaseView

__all__ = ["SameAccuracy", "same_accuracy"]

NEARLY_ALL = 0.95  # of what was gained: where two curves are compared,
LEAST_GAIN = 0.1  # if that was so much; less may be chance


class SameAccuracy(NamedTuple):
    """What two ways of sending cost until the releases first had ``accuracy``; bytes."""

    accuracy: float
    bytes_up: int
    bytes_up_dense_float32: int

    @property
    def factor(self) -> float:
        return self.bytes_up_dense_float32 / self.bytes_up


def same_accuracy(releases: Sequence[ReleaseView], dense: DenseRun | None) -> SameAccuracy | None:
    """Compare bytes where both have nearly all that the worse of them gained; None: too little.

    The accuracy is a whole number of percent.
    """
    if dense is None or not dense.releases:
        return None
    ours = [(r.accuracy, r.payload_bytes) for r in releases if r.accuracy is not None]
    theirs = [(r.accuracy, r.bytes_up) for r in dense.releases]
    if not ours:
        return None
    first = max(ours[0][0], theirs[0][0])
    best = min(max(accuracy for accuracy, _ in curve) for curve in (ours, theirs))
    accuracy = math.floor(100 * (first + NEARLY_ALL * (best - first))) / 100
    if accuracy < first + LEAST_GAIN:
        return None
    return SameAccuracy(accuracy, _bytes_until(ours, accuracy), _bytes_until(theirs, accuracy))


def _bytes_until(curve: Sequence[tuple[float, int]], accuracy: float) -> int:
    total = 0
    for reached, size in curve:
        total += size
        if reached >= accuracy:
            break
    return total
