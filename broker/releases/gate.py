"""Publishes nothing that is much worse than what there is, and finds out whose fault it is. Pure:
the scores of what devices have and of what they would get, and a tolerance, in; a decision out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from broker.folding.aggregator import Fold, Offer, Refusal
from broker.folding.server_step import ServerState
from broker.records.memory_records import MemoryRow
from models.learning.scoring import Score
from models.task.params import Vector

__all__ = ["Candidate", "Evaluate", "Gate", "Made", "gated"]

Evaluate = Callable[[Vector], Score]


class Made(NamedTuple):
    """What a release would be made of."""

    state: ServerState
    patch: bytes | None  # to its parameters; None: there is none
    trained: Score | None  # of its parameters, where devices run the average; None: not measured
    memories: Mapping[str, MemoryRow]  # by device
    delta2: float | None = None  # of `broker.folding.step_estimates.Spread`


class Candidate(NamedTuple):
    """What would become of a fold, as devices would get it."""

    fold: Fold
    made: Made | None  # None: nothing could be folded
    score: Score | None  # of what devices would run; None: it is not measured here


class Gate(NamedTuple):
    """What a release must not fall short of."""

    metric: str  # of the task; of all but "mse" larger is better
    published: float | None  # that of the newest release; None: not measured
    tolerance: float | None  # how much worse the next one may be; None: by anything

    @property
    def is_closed(self) -> bool:
        """Whether it could stop anything."""
        return self.published is not None and self.tolerance is not None

    def stops(self, score: Score | None) -> bool:
        """Whether ``score`` is beyond the tolerance; a metric that is not a number is."""
        if score is None or self.published is None or self.tolerance is None:
            return False
        sign = -1 if self.metric == "mse" else 1
        return not sign * score.metric >= sign * self.published - self.tolerance


def gated(
    offers: Sequence[Offer], candidate: Callable[[Sequence[Offer]], Candidate], gate: Gate
) -> Candidate:
    """Fold ``offers``; where the result is much worse than its parent, find out whose fault.

    Then each update is tried alone: those that do such harm by themselves are refused, and the
    others folded without them. If that is as bad, all are refused. A refused update goes back
    into its device's residual, so what was good in it comes again with the next one.
    """
    whole = candidate(offers)
    if not gate.stops(whole.score):
        return whole
    result, score = whole.fold, whole.score
    refused = list(result.refused)
    harmless = []
    for offer in result.folded:
        alone = candidate([offer]).score
        if gate.stops(alone):
            because = f"alone it lowers the metric to {_metric(alone):.4f}"
            refused.append(Refusal(offer, because))
        else:
            harmless.append(offer)
    if harmless and len(harmless) < len(result.folded):
        rest = candidate(harmless)
        result, score = rest.fold, rest.score
        refused += result.refused
        if not gate.stops(score):
            return rest._replace(fold=result._replace(refused=tuple(refused)))
    reason = f"the release made from it would have had metric {_metric(score):.4f}"
    refused += [Refusal(offer, reason) for offer in result.folded if offer in harmless]
    return Candidate(Fold(None, (), tuple(refused)), None, None)


def _metric(score: Score | None) -> float:
    return score.metric if score else float("nan")
