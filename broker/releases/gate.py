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

    @property
    def trained(self) -> Score | None:
        """Of what they would train from, where that is another."""
        return self.made.trained if self.made else None


class Gate(NamedTuple):
    """What a release must not fall short of."""

    metric: str  # of the task; of all but "mse" larger is better
    published: float | None  # that of what devices run of the newest release; None: not measured
    tolerance: float | None  # how much worse the next one may be; None: by anything
    trained: float | None = None  # that of its parameters, where devices run their average

    @property
    def is_closed(self) -> bool:
        """Whether it could stop anything."""
        return self.published is not None and self.tolerance is not None

    def stops(self, score: Score | None, trained: Score | None = None) -> bool:
        """Whether ``score``, or ``trained`` of the parameters, is beyond the tolerance."""
        return self.too_bad(score, trained) is not None

    def too_bad(self, score: Score | None, trained: Score | None = None) -> Score | None:
        """Return what of the two is beyond the tolerance; a metric that is not a number is.

        An average hides for many releases what has happened to the parameters, from which devices
        go on: each is compared with its own.
        """
        if self._is_worse(trained, self.trained):
            return trained
        return score if self._is_worse(score, self.published) else None

    def _is_worse(self, score: Score | None, before: float | None) -> bool:
        if score is None or before is None or self.tolerance is None:
            return False
        sign = -1 if self.metric == "mse" else 1
        return not sign * score.metric >= sign * before - self.tolerance


def gated(
    offers: Sequence[Offer], candidate: Callable[[Sequence[Offer]], Candidate], gate: Gate
) -> Candidate:
    """Fold ``offers``; where the result is much worse than its parent, find out whose fault.

    Then each update is tried alone: those that do such harm by themselves are refused, and the
    others folded without them. If that is as bad, all are refused. A refused update goes back
    into its device's residual, so what was good in it comes again with the next one.
    """
    whole = candidate(offers)
    bad = gate.too_bad(whole.score, whole.trained)
    if bad is None:
        return whole
    result = whole.fold
    refused = list(result.refused)
    harmless = []
    for offer in result.folded:
        alone = candidate([offer])
        if harm := gate.too_bad(alone.score, alone.trained):
            refused.append(Refusal(offer, f"alone it lowers the metric to {harm.metric:.4f}"))
        else:
            harmless.append(offer)
    if harmless and len(harmless) < len(result.folded):
        rest = candidate(harmless)
        result = rest.fold
        refused += result.refused
        still_bad = gate.too_bad(rest.score, rest.trained)
        if still_bad is None:
            return rest._replace(fold=result._replace(refused=tuple(refused)))
        bad = still_bad
    reason = f"the release made from it would have had metric {bad.metric:.4f}"
    refused += [Refusal(offer, reason) for offer in result.folded if offer in harmless]
    return Candidate(Fold(None, (), tuple(refused)), None, None)
