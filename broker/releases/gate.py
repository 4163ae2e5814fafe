"""Publishes nothing that is much worse than what there is, and finds out whose fault it is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.folding.aggregator import Fold, Offer
from broker.releases.release_patches import Step
from models.learning.scoring import Score

__all__ = ["Candidate", "Gate", "gated"]


class Candidate(NamedTuple):
    """What would become of a fold, as devices would get it."""

    fold: Fold
    step: Step | None  # None: nothing could be folded
    score: Score | None


class Gate(NamedTuple):
    """What a release must not fall short of."""

    sign: int  # of the metric, to make larger better
    limit: float | None  # of sign * metric; None: any release passes

    def stops(self, score: Score | None) -> bool:
        """Whether ``score`` is beyond the limit; a metric that is not a number is."""
        if score is None or self.limit is None:
            return False
        return not self.sign * score.metric >= self.limit


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
            refused.append((offer, f"alone it lowers the metric to {_metric(alone):.4f}"))
        else:
            harmless.append(offer)
    if harmless and len(harmless) < len(result.folded):
        rest = candidate(harmless)
        result, score = rest.fold, rest.score
        refused += result.refused
        if not gate.stops(score):
            return rest._replace(fold=result._replace(refused=tuple(refused)))
    reason = f"the release made from it would have had metric {_metric(score):.4f}"
    refused += [(offer, reason) for offer in result.folded if offer in harmless]
    return Candidate(Fold(None, (), tuple(refused)), None, None)


def _metric(score: Score | None) -> float:
    return score.metric if score else float("nan")
