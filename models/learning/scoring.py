"""How good answers are: metric and loss of a model's outputs against labels. Pure.

The only place where this is decided: devices, server and author score by it (`measurement.py`),
so that a number from one means the same as a number from another. What the outputs are is said by
``spec.answers``, not guessed. Weights of samples or classes have no part in it: they are a matter
of training.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.task.spec import TaskSpec

__all__ = ["Doubles", "Score", "mean_score", "score", "score_each"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

TINY = 1e-12  # keeps log() away from 0


class Score(NamedTuple):
    """How good a model is on ``samples`` samples."""

    metric: float  # accuracy in 0..1, or the mean squared error if that is the task's metric
    loss: float
    samples: int


def score(spec: TaskSpec, outputs: Array, y: Array) -> Score:
    """Return the means over samples of metric and loss; both arrays have shape (n, ...), n > 0.

    Raises:
        UsageError: see `score_each`.
    """
    metrics, losses = score_each(spec, outputs, y)
    return Score(float(metrics.mean()), float(losses.mean()), len(y))


def score_each(spec: TaskSpec, outputs: Array, y: Array) -> tuple[Doubles, Doubles]:
    """Return metric and loss of each sample, both of shape (n,); see `score`.

    ``cross_entropy``: outputs (n, *y, classes) and integer labels; a label counts as hit where its
    class has the largest output. ``bce``: probabilities, or logits where the spec says so, and
    targets from 0 to 1; an element is right on the same side of one half as its target. ``mse``:
    any numbers. bce and mse want as many outputs as targets. What is not a number is never right. A
    sample of several positions or elements counts once, with their mean. All of it in float64.

    Raises:
        UsageError: the shapes do not belong together.
    """
    values = outputs.astype(np.float64)
    if spec.loss == "cross_entropy":
        right, losses = _of_classes(spec, values, y)
    else:
        if values.size != y.size:
            raise UsageError(
                f"task {spec.task}: infer.onnx answers with shape {outputs.shape} for targets of "
                f"shape {y.shape}: they must have as many elements"
            )
        target = y.astype(np.float64).reshape(len(y), -1)
        values = values.reshape(len(y), -1)
        if spec.loss == "bce":
            right, losses = _of_yes_and_no(spec, values, target)
        else:
            right = losses = np.square(values - target)
    metrics, losses = (each.reshape(len(y), -1).mean(axis=1) for each in (right, losses))
    return metrics, losses


def mean_score(parts: Iterable[Score]) -> Score:
    """Return the score of several batches together; there is at least one."""
    metric = loss = 0.0
    samples = 0
    for part in parts:
        metric += part.metric * part.samples
        loss += part.loss * part.samples
        samples += part.samples
    return Score(metric / samples, loss / samples, samples)


def _of_classes(spec: TaskSpec, values: Doubles, y: Array) -> tuple[Doubles, Doubles]:
    """Return hits and losses of each position, from outputs with the classes in the last axis."""
    shape = (*y.shape, spec.classes)
    if values.size != y.size * spec.classes or values.shape[: y.ndim] != y.shape:
        raise UsageError(
            f"task {spec.task}: infer.onnx answers with shape {values.shape} for labels of shape "
            f"{y.shape}: {shape} was expected, the classes in the last axis"
        )
    rows = values.reshape(-1, spec.classes)
    labels = y.reshape(-1).astype(np.int64)
    chosen = _log_probabilities(spec, rows)[np.arange(len(labels)), labels]
    # argmax takes NaN for the largest: what is no answer is no hit.
    is_answer = ~(np.isnan(rows) | (rows == np.inf)).any(axis=1)
    return ((rows.argmax(axis=1) == labels) & is_answer).astype(np.float64), -chosen


def _log_probabilities(spec: TaskSpec, rows: Doubles) -> Doubles:
    """Return the logarithms of the classes' probabilities.

    A spec from before there was ``answers`` does not say what the model answers. There a row
    counts as probabilities where its values are >= 0 and sum to 1 within 0.001; each row by itself,
    so that it does not matter how the samples are cut into batches.
    """
    with np.errstate(invalid="ignore"):  # of a row that is no answer the loss is NaN
        shifted = rows - rows.max(axis=1, keepdims=True)
    of_logits = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if spec.answers == "logits":
        return np.asarray(of_logits, np.float64)
    of_probabilities: Doubles = np.log(rows.clip(TINY))
    if spec.answers == "probabilities":
        return of_probabilities
    are_shares = (rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= 1e-3)
    chosen: Doubles = np.where(are_shares[:, np.newaxis], of_probabilities, of_logits)
    return chosen


def _of_yes_and_no(spec: TaskSpec, values: Doubles, target: Doubles) -> tuple[Doubles, Doubles]:
    """Return hits (or squared errors, if that is the metric) and losses of each element."""
    if spec.answers == "logits":
        losses = np.maximum(values, 0) - values * target + np.log1p(np.exp(-np.abs(values)))
        values = 1 / (1 + np.exp(-values.clip(-500, 500)))
    else:  # also in a spec from before there was `answers`: bce always answered so
        inside = values.clip(TINY, 1 - TINY)
        losses = -(target * np.log(inside) + (1 - target) * np.log(1 - inside))
    if spec.metric == "mse":
        return np.square(values - target), losses
    is_right = ((values > 0.5) == (target > 0.5)) & ~np.isnan(values)
    return is_right.astype(np.float64), losses
