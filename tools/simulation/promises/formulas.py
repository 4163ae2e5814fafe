"""The formulas of a server's fold once more, in float64 and loops of their own: an oracle. Pure.

What they are compared with is `broker.folding`; nothing of that is used here.
"""

import math

import numpy as np
import numpy.typing as npt

from broker.config import FoldPolicy
from models.task.params import Vector

__all__ = ["Doubles", "Moments", "average_by_formula", "damping_by_formula", "length"]

Doubles = npt.NDArray[np.float64]
BETA1, BETA2, TAU = 0.9, 0.99, 1e-3  # Reddi et al. 2021


def length(vector: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


def damping_by_formula(age: int, policy: FoldPolicy) -> float:
    """Return by how much an update ``age`` releases old counts, as docs/server.md has it."""
    if policy.staleness == "constant":
        return 1.0
    if policy.staleness == "polynomial":
        return math.exp(-policy.staleness_exponent * math.log1p(age))
    if policy.staleness == "hinge":
        late = age - policy.staleness_after
        return 1.0 if late <= 0 else 1.0 / (policy.staleness_slope * late + 1.0)
    return math.exp2(-age / policy.half_life)


def average_by_formula(
    average: Vector | None, published: Vector, number: int, decay: float
) -> Vector:
    """Return the ``number``-th average of published parameters, rounded as devices round."""
    if average is None:
        return published
    weight = np.float32(max(1.0 - decay, 9.0 / (number + 8)))
    gap = (published.astype(np.float64) - average.astype(np.float64)).astype(np.float32)
    part = (gap.astype(np.float64) * float(weight)).astype(np.float32)
    moved: Vector = (average.astype(np.float64) + part.astype(np.float64)).astype(np.float32)
    return moved


class Moments:
    """What an optimizer carries from fold to fold, as its formula has it."""

    def __init__(self, policy: FoldPolicy, size: int) -> None:
        self._policy = policy
        self._first: Doubles = np.zeros(size)
        self._second: Doubles = np.zeros(size)

    def begin_anew(self) -> None:
        self._first, self._second = np.zeros_like(self._first), np.zeros_like(self._second)

    def move(self, step: Doubles, damping: float, rate: float) -> Doubles:
        """Return by how much ``step`` moves the parameters, and carry on what it leaves."""
        name, square = self._policy.optimizer, step * step
        if name == "sgd":
            return rate * step
        if name == "momentum":
            self._first = self._policy.momentum * damping * self._first + step
            return rate * self._first
        self._first = BETA1 * self._first + (1 - BETA1) * step
        if name == "adam":
            self._second = BETA2 * self._second + (1 - BETA2) * square
        else:
            self._second = self._second - (1 - BETA2) * square * np.sign(self._second - square)
        moved: Doubles = rate * self._first / (np.sqrt(self._second) + TAU)
        return moved
