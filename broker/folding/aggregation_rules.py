"""From many deltas to one step: the rules that an operator can choose. Pure.

Every rule damps the deltas by staleness as FedBuff does (Nguyen et al., "Federated Learning with
Buffered Asynchronous Aggregation", arXiv:2106.06639, algorithm 1), but weighs them by samples as
FedAvg does::

    step = sum_i w_i s_i d_i / sum_i w_i

``w_i`` is the weight by samples, ``s_i`` in (0, 1] the damping by age. The damping is not in the
denominator: a fold of nothing but old updates makes a small step, not a full one.

A delta is what its payload decodes to. The ``transform`` codec decodes to a dense vector that is
most of what was wanted, small everywhere but exact nowhere. The ``coreset`` codec decodes to few
coordinates, the ones that changed most, and zeros: that a coordinate is zero in everybody else's
delta does not mean that they disagree. Rules that look at coordinates one by one (``trimmed_mean``,
``median``) then leave most of them where they are; ``keep`` in the codec plan must be large.

The robust rules look at deltas as they came or as damped; each says which.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.task.params import Vector

__all__ = [
    "FROM_BASE",
    "RULES",
    "STREAMING",
    "Contribution",
    "Rule",
    "clipped_mean",
    "mean",
    "median",
    "mix",
    "multi_krum",
    "norm",
    "rule_for",
    "trimmed_mean",
]

TRIMMED_SHARE = 0.2  # of the contributions, at each end of each coordinate
LIARS_SHARE = 0.2  # of the contributions: f of multi-Krum over n
BLOCK = 1 << 14  # coordinates that are sorted at a time: bounds the scratch memory


class Contribution(NamedTuple):
    """What one update brings to a fold."""

    delta: Vector  # float32, shape (d,)
    weight: float  # w > 0, by samples
    damping: float  # s in (0, 1], by staleness


Rule = Callable[[Iterable[Contribution]], Vector]


def mean(contributions: Iterable[Contribution]) -> Vector:
    """Return the weighted, damped mean; one delta in memory at a time.

    What a codec left out, error feedback brings later. It believes everybody, up to the
    aggregator's limits.

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
    there is nothing to tune. All deltas are in memory together. Under error feedback a device that
    was away for long sends a longer delta, and what is clipped off is not refunded, so this rule
    learns more slowly where devices differ much in how often they take part. Deltas of zeros do not
    count for the median.

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
    memory together. A coordinate that no more devices moved in one direction than are trimmed moves
    not at all: see above on ``coreset``.

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


def median(contributions: Iterable[Contribution]) -> Vector:
    """Return per coordinate the median of the damped values, whatever anybody weighs.

    Yin, Chen, Ramchandran, Bartlett, arXiv:1803.01498, definition 1. Just under half of the
    devices may lie, and about their samples too. Its price is what the others know and the one in
    the middle does not: of devices with different labels, it learns little of what only a few have.
    All deltas are in memory together. A coordinate that at most half of the devices moved stays:
    see above on ``coreset``.

    Raises:
        ValueError: no contribution.
    """
    deltas, _ = _stack(list(contributions))
    step = np.empty(deltas.shape[1], np.float32)
    for start in range(0, deltas.shape[1], BLOCK):
        block = deltas[:, start : start + BLOCK].astype(np.float64)
        step[start : start + BLOCK] = np.median(block, axis=0, overwrite_input=True)
    return step


def multi_krum(contributions: Iterable[Contribution]) -> Vector:
    """Return the mean of the n - f deltas that lie nearest to their neighbors.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries", NeurIPS 2017,
    section 4: the score of a delta is the sum of its n - f - 2 smallest squared distances to
    others, f = floor(n / 5), and the lowest scores are taken. It needs n >= 2 f + 3; of one or two
    it is `clipped_mean` (`rule_for` tells), and of three or four, where f is 0, the mean. Distances
    are of the deltas as they came, since an old one is no lie; the mean weighs and damps. All
    deltas are in memory together. Where devices differ much in what they see, it leaves out those
    that see what others do not.

    Raises:
        ValueError: no contribution.
    """
    # In the order of their weights, so that of equal scores always the same ones are taken.
    all_of_them = sorted(contributions, key=lambda c: (c.weight, c.damping))
    if rule_for("multi_krum", len(all_of_them)) != "multi_krum":
        return clipped_mean(all_of_them)
    count = len(all_of_them)
    liars = int(count * LIARS_SHARE)
    distances = _squared_distances([contribution.delta for contribution in all_of_them])
    np.fill_diagonal(distances, np.inf)  # nobody is his own neighbor
    distances.sort(axis=1)
    scores = distances[:, : count - liars - 2].sum(axis=1)
    nearest = np.argsort(scores, kind="stable")[: count - liars]
    return mean(all_of_them[number] for number in nearest)


def mix(contributions: Iterable[Contribution]) -> Vector:
    """Return the step that goes toward each device's model in turn, one after the other.

    FedAsync (Xie, Koyejo, Gupta, arXiv:1903.03934, algorithm 1)::

        x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new,    alpha_t = alpha s(age)

    A contribution's ``delta`` is x_new minus the server's x before the fold (see `FROM_BASE`), its
    ``damping`` alpha_t, computed anew for each. Weights do not count. Those that wait together are
    mixed in one release in the order in which they came; their ages are in releases, and in the
    paper in updates.

    Raises:
        ValueError: no contribution.
    """
    step: npt.NDArray[Any] | None = None  # x_t - x_0
    for delta, _, share in contributions:
        if step is None:
            step = np.zeros(delta.shape, np.float64)
        step += share * (delta - step)
    if step is None:
        raise ValueError("no contribution")
    mixed: Vector = step.astype(np.float32)
    return mixed


def rule_for(rule: str, count: int) -> str:
    """Return the rule that ``rule`` comes down to with ``count`` contributions."""
    needed = 2 * int(count * LIARS_SHARE) + 3
    return "clipped_mean" if rule == "multi_krum" and count < needed else rule


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


def _squared_distances(deltas: list[Vector]) -> npt.NDArray[Any]:
    """Return the squared distances of all pairs, float64 of shape (n, n)."""
    products = np.zeros((len(deltas), len(deltas)))
    for start in range(0, deltas[0].size, BLOCK):
        block = np.stack([delta[start : start + BLOCK] for delta in deltas]).astype(np.float64)
        products += block @ block.T
    squares = np.diagonal(products)
    distances = squares[:, None] + squares[None, :] - 2 * products
    np.maximum(distances, 0.0, out=distances)
    return distances


def _quotient(total: npt.NDArray[Any], weights: float) -> Vector:
    if not weights:
        raise ValueError("no contribution")
    step: Vector = (total / weights).astype(np.float32)
    return step


RULES: dict[str, Rule] = {
    "mean": mean,
    "trimmed_mean": trimmed_mean,
    "clipped_mean": clipped_mean,
    "median": median,
    "multi_krum": multi_krum,
    "mix": mix,
}
STREAMING = frozenset({"mean", "mix"})  # rules that hold one delta at a time
FROM_BASE = frozenset({"mix"})  # rules of p_base + d - x instead of d
