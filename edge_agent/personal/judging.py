"""Compares a device's models sample by sample on its hold-out. Pure; for the trainer child."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.personal.model_choice import LEAST, comparison, decides
from edge_agent.personal.own_scores import Scores
from models.learning.scoring import Doubles
from models.task.params import Tensor
from models.task.spec import TaskSpec

__all__ = ["HoldOut", "is_worth_keeping", "scores_of"]


Array = npt.NDArray[Any]


class HoldOut(NamedTuple):
    """The samples of a device that nothing is trained on; ``numbers`` as for `scores_of`."""

    spec: TaskSpec
    x: Array
    y: Array
    numbers: list[int]
    evaluate: Callable[[Mapping[str, Tensor], Array, Array], Doubles]
    chooses: bool

    def each(self, tensors: Mapping[str, Tensor]) -> Doubles | None:
        """Return how good infer.onnx is with ``tensors`` on each sample; None: there are none."""
        return self.evaluate(tensors, self.x, self.y) if len(self.x) else None

    def scores(self, **each: Doubles | None) -> Scores:
        """Return what the metrics of these models mean for the device, see `scores_of`."""
        lower_is_better = self.spec.metric == "mse"
        return scores_of(
            self.numbers, chooses=self.chooses, lower_is_better=lower_is_better, **each
        )


def scores_of(
    numbers: Sequence[int],
    *,
    chooses: bool,
    lower_is_better: bool,
    released: Doubles | None = None,
    tuned: Doubles | None = None,
    shared: Doubles | None = None,
    alone: Doubles | None = None,
) -> Scores:
    """Return what the metrics of each sample say, arrays of shape (n,) each; None: not measured.

    ``numbers`` are the samples', counted since the first one ever; ``chooses``: whether some of
    them decide which model runs. Those do not report, unless they are too few to decide.
    """
    deciding = np.array([chooses and decides(number) for number in numbers], np.bool_)
    if deciding.sum() < LEAST or deciding.all():
        deciding[:] = False

    def reported(each: Doubles | None) -> float | None:
        return None if each is None or deciding.all() else float(each[~deciding].mean())

    found = None
    if released is not None and tuned is not None and deciding.any():
        ours, theirs = tuned[deciding], released[deciding]
        gains = _finite(ours, theirs) - _finite(theirs, ours)
        found = comparison((-gains if lower_is_better else gains).tolist())
    return Scores(
        samples=int((~deciding).sum()),
        shared=reported(shared),
        released=reported(released),
        tuned=reported(tuned),
        alone=reported(alone),
        comparison=found,
    )


def _finite(each: Doubles, other: Doubles) -> Doubles:
    """Return squared errors with ones that are worse than all in the place of what is no number:
    a model that has no answer to a sample has not done well on it.
    """
    if np.isfinite(each).all():
        return each
    known = np.concatenate([each, other])
    worst = 2 * max(1.0, float(known[np.isfinite(known)].max(initial=0.0)))
    found: Doubles = np.where(np.isfinite(each), each, worst)
    return found


def is_worth_keeping(numbers: Sequence[int]) -> bool:
    """Whether a tuned model may ever run by what samples of these ``numbers`` say."""
    return sum(map(decides, numbers)) >= LEAST
