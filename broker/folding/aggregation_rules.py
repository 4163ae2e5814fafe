"""From many deltas to one step: the rules that an operator can choose. Pure.

Every rule damps the deltas by staleness as FedBuff does (Nguyen et al., "Federated Learning with
Buffered Asynchronous Aggregation", arXiv:2106.06639, algorithm 1), but weighs them by samples as
FedAvg does::

    step = sum_i w_i s_i d_i / sum_i w_i

``w_i`` is the weight by samples, ``s_i`` in (0, 1] the damping by age. The damping is not in the
denominator: a fold of nothing but old updates makes a small step, not a full one.

All deltas here are sparse: a device sends the few coordinates that changed most and keeps the rest
in its residual. A coordinate that nobody else sent is 0 in everybody else's delta, which does not
mean that they disagree. What this does to each rule stands in its docstring.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.task.params import Vector

__all__ = ["RULES", "Contribution", "Rule", "clipped_mean", "mean", "norm", "trimmed_mean"]

TRIMMED_SHARE = 0.2  # of the contributions, at each end of each coordinate
BLOCK = 1 << 14  # coordinates that are sorted at a time: bounds the scratch memory


class Contribution(NamedTuple):
    """What one update brings to a fold."""

    delta: Vector  # float32, shape (d,)
    weight: float  # w > 0, by samples
    damping: float  # s in (0, 1], by staleness


Rule = Callable[[Iterable[Contribution]], Vector]


def mean(contributions: Iterable[Contribution]) -> Vector:
    """Return the weighted, damped mean; one delta in memory at a time.

    For sparse deltas the mean is the natural rule: zeros only say "nothing from here", and error
    feedback brings the rest later. It believes everybody, up to the aggregator's limits.

    Raises:
        ValueError: no contribution.
    """
    total, weights = np.zeros(0), 0.0
    for delta, weight, damped in contributions:
        if not weights:
            total = np.zeros(delta.shape, np.float64)
        total += np.multiply(delta, weight * damped, dtype=np.float64)
        weights += weight
    return _quotient(total, weights)


def clipped_mean(contributions: Iterable[Contribution]) -> Vector:
    """Return the mean after every delta was shortened to the median of their norms.

    Norm clipping against a few loud devices: Sun et al., "Can You Really Backdoor Federated
    Learning?", arXiv:1911.07963, section 4; the median takes the place of their constant, so that
    there is nothing to tune. All deltas are in memory together. Sparse deltas: under error feedback
    a device that was away for long sends a longer delta, and what is clipped off is not refunded,
    so this rule learns more slowly where devices differ much in how often they take part. Deltas of
    zeros do not count for the median.

    Raises:
        ValueError: no contribution.
    """
    all_of_them = list(contributions)
    norms = [norm(contribution.delta) for contribution in all_of_them]
    limit = float(np.median([length for length in norms if length] or [0.0]))
    return mean(
        contribution._replace(damping=contribution.damping * min(1.0, limit / (length or 1.0)))
        for contribution, length in zip(all_of_them, norms, strict=True)
    )


def trimmed_mean(contributions: Iterable[Contribution]) -> Vector:
    """Return per coordinate the weighted mean without the smallest and largest damped values.

    Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning", arXiv:1803.01498,
    definition 2, with weights: ``TRIMMED_SHARE`` of the contributions is left out at each end, at
    least one where there are three or more. With one or two it is the mean. All deltas are in
    memory together. Sparse deltas: a coordinate that fewer devices sent than are trimmed moves not
    at all, so this rule wants a large ``keep`` in the codec plan, or devices that see alike data.

    Raises:
        ValueError: no contribution.
    """
    # In the order of their weights, so that of equal values always the same ones are trimmed.
    deltas, weights = _stack(sorted(contributions, key=lambda c: c.weight))
    count = len(weights)
    trimmed = max(int(count * TRIMMED_SHARE), 1) if count >= 3 else 0
    step = np.empty(deltas.shape[1], np.float32)
    for start in range(0, deltas.shape[1], BLOCK):
        block = deltas[:, start : start + BLOCK]
        order = np.argsort(block, axis=0, kind="stable")[trimmed : count - trimmed]
        kept, kept_weights = np.take_along_axis(block, order, axis=0), weights[order]
        total = np.sum(kept * kept_weights, axis=0)
        step[start : start + BLOCK] = total / np.sum(kept_weights, axis=0)
    return step


def norm(delta: Vector) -> float:
    """Return the Euclidean norm of ``delta``, computed in float64."""
    return float(np.linalg.norm(delta.astype(np.float64)))


def _stack(contributions: list[Contribution]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the damped deltas, float32 (n, d), and the weights, float64 (n,); empties the list."""
    if not contributions:
        raise ValueError("no contribution")
    weights = np.array([contribution.weight for contribution in contributions], np.float64)
    deltas = np.empty((len(contributions), contributions[0].delta.size), np.float32)
    for row in reversed(range(len(contributions))):
        delta, _, damped = contributions.pop()
        np.multiply(delta, np.float32(damped), out=deltas[row])
    return deltas, weights


def _quotient(total: npt.NDArray[Any], weights: float) -> Vector:
    if not weights:
        raise ValueError("no contribution")
    step: Vector = (total / weights).astype(np.float32)
    return step


RULES: dict[str, Rule] = {
    "mean": mean,
    "trimmed_mean": trimmed_mean,
    "clipped_mean": clipped_mean,
}
STREAMING = frozenset({"mean"})  # rules that hold one delta at a time
FROM_BASE: frozenset[str] = frozenset()  # rules of p_base + d - x instead of d
