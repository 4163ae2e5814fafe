"""What ``y`` of somebody's data is: classes, several labels at once, or numbers. Pure.

Nothing is guessed in silence: each choice that was made comes back in words, and what has two
meanings is refused with the options that say which one is meant.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from models.errors import UsageError
from models.graph.training.losses import LossName
from models.samples.label_forms import (
    UnknownClassError,
    are_whole,
    is_one_hot,
    labels_by_names,
    labels_of,
)
from models.task.spec import TaskSpec
from tools.author.data.class_names import relabeled
from tools.author.data.label_check import (
    FEWER_THAN,
    are_positions,
    check_count,
    check_few,
    check_labels,
    check_signs,
    class_count,
    is_binary,
    is_whole,
    plural,
    size_of,
)
from tools.author.data.labeled_data import Array, Dataset

__all__ = ["Targets", "fitted_to", "understood"]


class Targets(NamedTuple):
    """``y`` as the task has it: int64 labels, or float32."""

    y: Array
    kind: Literal["classes", "multi_label", "numbers"]
    loss: LossName
    words: tuple[str, ...] = ()  # the choices that were made
    columns: int = 0  # of one-hot rows: so many classes there are, whether they occur or not


def understood(
    name: str,
    y: Array,
    *,
    loss: LossName | None = None,
    output: Sequence[int] | None = None,
    classes: int | None = None,
    are_names: bool = False,
) -> Targets:
    """Return what ``y`` [n, ...], int64 or float32 and finite, is for a model.

    ``loss`` is what the author asked for, if anything. ``output`` is the shape that the model
    answers one sample with; None: the net is made for the data, with ``classes`` if that is said.
    ``are_names``: the labels were names.

    Raises:
        UsageError: they do not fit, or could be two things; says what to do.
    """
    if are_names and loss in ("mse", "bce"):
        raise UsageError(
            f"{name}: y holds names, and {loss} needs numbers: leave --loss away, or save "
            "y=(y == 'NAME').astype(np.float32)"
        )
    if loss in ("mse", "bce"):
        check_count(name, y, loss, output)
        if loss == "bce":
            return _binary(name, y)
        return Targets(y.astype(np.float32), "numbers", "mse")
    y, words = _without_ones(y, output)
    if y.ndim > 1 and y.shape[1:] != (1,) and not are_positions(y, output):
        found = _rows(name, y, loss, output)
    else:
        found = _labels_or_numbers(name, y, loss, output, classes, are_names=are_names)
    if found.kind == "classes":
        known = class_count(found.y.shape[1:], output) or classes
        if known is None and loss is None and not are_names:
            check_few(name, found.y)
        check_labels(name, found.y, known, output)
    else:
        check_count(name, found.y, found.loss, output)
    return found._replace(words=(*words, *found.words))


def fitted_to(data: Dataset, spec: TaskSpec) -> Dataset:
    """Return ``data`` with labels, or numbers, in the form that the task has them.

    Raises:
        UsageError: names that are no classes of the task.
    """
    y = data.y
    if data.are_names and spec.class_names:
        y = relabeled(data.name, y, data.class_names, spec.class_names)
    elif spec.class_names and data.class_names:
        try:
            y = labels_by_names(y, np.array(data.class_names), spec)
        except UnknownClassError as error:
            raise UsageError(f"{data.name}: {error}") from None
    elif data.are_names:
        raise UsageError(
            f"{data.name}: y holds names, and the classes of task {spec.task} have none: save "
            f"their numbers, 0 to {spec.classes - 1}"
        )
    names = spec.class_names or data.class_names
    return data._replace(y=labels_of(y, spec), class_names=names)


def _without_ones(y: Array, output: Sequence[int] | None) -> tuple[Array, tuple[str, ...]]:
    """Return ``y`` without an axis of 1 that says nothing, as masks [n, 1, H, W] have it."""
    if not is_whole(y):
        return y, ()
    if y.ndim > 2 and y[0].size == 1:
        return y.reshape(len(y)), ("the axes of y have length 1 and are left out",)
    for axis in (1, y.ndim - 1):
        if y.ndim > 2 and y.shape[axis] == 1:
            less = y.squeeze(axis)
            if are_positions(less, output):
                return less, (f"axis {axis} of y has length 1 and is left out",)
    return y, ()


def _labels_or_numbers(
    name: str,
    y: Array,
    loss: LossName | None,
    output: Sequence[int] | None,
    classes: int | None,
    *,
    are_names: bool,
) -> Targets:
    """One value per sample, or one per position of an output that has classes there."""
    positions = y.ndim > 1 and y.shape[1:] != (1,)
    outputs = None if output is None else size_of(output)
    if y.dtype.kind == "f":
        if not is_whole(y):
            if loss is None and not positions:
                return Targets(y, "numbers", "mse")
            place = tuple(np.argwhere(~are_whole(y))[0])
            raise UsageError(
                f"{name}: y holds float32, {y[place]:g} in row {place[0]}, and cross_entropy "
                "needs integer labels: --loss mse learns numbers"
            )
        if loss is None and not positions and outputs == 1 and not is_binary(y):
            check_signs(name, y, "one of two classes")
            return Targets(y, "numbers", "mse", ("y is learned as numbers (mse)",))
        if loss is None and not positions and outputs is None and classes is None:
            check_signs(name, y, "one of two classes")
            low, high = int(y.min()), int(y.max())
            if 0 <= low < high < FEWER_THAN:
                raise UsageError(
                    f"{name}: y has whole numbers from {low} to {high} of type float, which may be "
                    "classes or numbers: --loss cross_entropy learns classes, --loss mse numbers"
                )
            return Targets(y, "numbers", "mse", ("y is learned as numbers (mse)",))
    if are_names and not positions and outputs == 1:
        raise UsageError(
            f"{name}: y holds names, and the model has one output: save y=(y == 'NAME').astype(int)"
        )
    if loss is None and not positions and outputs == 1:
        if is_binary(y):
            words = "the model has one output and y is 0 or 1: learned by bce; --loss mse insists"
            return Targets(y.astype(np.float32), "multi_label", "bce", (words + " on numbers",))
        check_signs(name, y, "one of two classes")
        raise UsageError(
            f"{name}: y has labels from {y.min()} to {y.max()}, and the model has one output: "
            "--loss mse learns them as numbers; for classes it needs an output for each"
        )
    said = ["y are whole floats: taken as labels"] if y.dtype.kind == "f" else []
    if y.shape[1:] == (1,):
        y = y[:, 0]
        said.append("y is a column: taken as one label per sample")
    return Targets(y.astype(np.int64), "classes", "cross_entropy", tuple(said))


def _rows(name: str, y: Array, loss: LossName | None, output: Sequence[int] | None) -> Targets:
    """Several values per sample, none of them labels of positions."""
    last = y.shape[-1]
    positions = y.shape[1:-1]
    if is_one_hot(y) and (
        output is None or plural(output) in (y.shape[1:], (last, *plural(positions)))
    ):
        words = f"y are one-hot rows: taken as labels 0 to {last - 1}"
        if loss is None:
            words += "; --loss bce learns several labels at once"
        return Targets(y.argmax(axis=-1), "classes", "cross_entropy", (words,), last)
    if (
        y.ndim > 2
        and is_one_hot(y, 1)
        and output is not None
        and tuple(output) in (y.shape[1:], (*y.shape[2:], y.shape[1]))
    ):
        words = f"y is one-hot along axis 1: taken as labels 0 to {y.shape[1] - 1}"
        return Targets(y.argmax(axis=1), "classes", "cross_entropy", (words,))
    shape = list(y.shape[1:])
    if y.ndim == 2 and is_one_hot(y):
        raise UsageError(
            f"{name}: y are one-hot rows of {last} classes, and the model answers "
            f"{list(output or ())}: it needs {last} outputs"
            + ("; or save y=y[:, 1]" if last == 2 and size_of(output or ()) == 1 else "")
        )
    if is_binary(y) and y.any():
        if loss is None and (output is None or size_of(output) == size_of(shape)):
            words = f"y has 0 or 1 in {shape} places, several at once: learned by bce"
            return Targets(y.astype(np.float32), "multi_label", "bce", (words,))
        if loss is not None and y.ndim == 2:
            ones = y.sum(axis=1)
            row = int(np.argmax(ones != 1))
            raise UsageError(
                f"{name}: row {row} of y has {int(ones[row])} ones, and cross_entropy needs one "
                "label per sample: --loss bce learns several labels at once"
            )
    if loss is None and y.dtype.kind == "f":
        if y.ndim == 2 and (y >= 0).all() and np.allclose(y.sum(axis=1), 1, atol=1e-3):
            raise UsageError(
                f"{name}: the rows of y sum to 1, as probabilities of {last} classes do: save "
                "y=y.argmax(axis=1) to learn the classes, or --loss mse learns the numbers"
            )
        check_signs(name, y, "several labels at once")
        return Targets(y, "numbers", "mse", (f"y has {shape} numbers: learned by mse",))
    answers = "" if output is None else f"; the model answers {list(output)}"
    remedy = "--loss mse learns numbers"
    if output is not None and size_of(output) != size_of(shape):
        remedy = "give a model that answers y, or a y for this model"
    raise UsageError(
        f"{name}: y has {shape} values per sample, and cross_entropy needs one label per sample or "
        f"per position{answers}: {remedy}"
    )


def _binary(name: str, y: Array) -> Targets:
    bad = (y < 0) | (y > 1)
    if bad.any():
        place = tuple(np.argwhere(bad)[0])
        remedy = "labels of several classes need cross_entropy"
        if set(np.unique(y)) == {-1, 1}:
            remedy = "save y=(y > 0).astype(np.float32)"
        raise UsageError(
            f"{name}: bce needs y between 0 and 1, and row {place[0]} has {y[place]:g}: {remedy}"
        )
    return Targets(y.astype(np.float32), "multi_label", "bce")
