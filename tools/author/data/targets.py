"""What ``y`` of somebody's data is: classes, several labels at once, or numbers. Pure.

Nothing is guessed in silence: each choice that was made comes back in words, and what has two
meanings is refused with the options that say which one is meant.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.samples.label_forms import (
    UnknownClassError,
    are_whole,
    is_one_hot,
    labels_by_names,
    labels_of,
)
from models.task.spec import TaskSpec
from tools.author.data.datasets import Dataset, relabeled

__all__ = [
    "Targets",
    "about_balance",
    "balance_of",
    "class_weights",
    "fitted_to",
    "understood",
]

Array = npt.NDArray[Any]
Loss = Literal["cross_entropy", "mse", "bce"]

MAX_CLASSES = 1 << 16
FEWER_THAN = 100  # whole floats below this may be classes; above, they are counts of something
MANY_ROWS = 5  # per class, or a hundred classes may be none
UNEVEN = 10  # times as many samples of one class as of another deserve a word
HEAVIEST = 20.0  # times the lightest weight of a class: a lone sample must not rule the rest


class Targets(NamedTuple):
    """``y`` as the task has it: int64 labels, or float32."""

    y: Array
    kind: Literal["classes", "multi_label", "numbers"]
    loss: Loss
    words: tuple[str, ...] = ()  # the choices that were made
    columns: int = 0  # of one-hot rows: so many classes there are, whether they occur or not


def understood(
    name: str,
    y: Array,
    *,
    loss: Loss | None = None,
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
        _check_count(name, y, loss, output)
        if loss == "bce":
            return _binary(name, y)
        return Targets(y.astype(np.float32), "numbers", "mse")
    y, words = _without_ones(y, output)
    if y.ndim > 1 and y.shape[1:] != (1,) and not _are_positions(y, output):
        found = _rows(name, y, loss, output)
    else:
        found = _labels_or_numbers(name, y, loss, output, classes, are_names=are_names)
    if found.kind == "classes":
        known = _class_count(found.y.shape[1:], output) or classes
        if known is None and loss is None and not are_names:
            _check_few(name, found.y)
        _check_labels(name, found.y, known, output)
    else:
        _check_count(name, found.y, found.loss, output)
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


def class_weights(labels: Array, classes: int) -> tuple[float, ...]:
    """Return a weight for each class, by which all classes count alike; their mean over
    ``labels`` [n] is 1.

    As scikit-learn's "balanced", n / (classes * count), but of a rare class at most `HEAVIEST`
    times the weight of the most frequent one. A class without a sample here counts 1.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.ones(classes)
    there = counts > 0
    weights[there] = 1 / np.maximum(counts[there], counts.max() / HEAVIEST)
    weights[there] *= counts.sum() / (weights[there] * counts[there]).sum()
    return tuple(float(weight) for weight in weights)


def about_balance(labels: Array, names: Sequence[str], classes: int) -> str:
    """Return a sentence if some classes have far more samples than others, else an empty text."""
    counts = np.bincount(labels.reshape(-1), minlength=classes)
    there = np.flatnonzero(counts)
    most, least = int(counts.argmax()), int(there[counts[there].argmin()])
    if counts[most] < UNEVEN * counts[least]:
        return ""
    shown = [f"{n} {names[n]}" if names else f"{n}" for n in (most, least)]
    return (
        f"the classes are uneven: class {shown[0]} has {counts[most]:,} training samples, class "
        f"{shown[1]} has {counts[least]:,}; --balance lets rare classes count more"
    )


def balance_of(
    data: Dataset, names: Sequence[str], classes: int, *, wanted: bool
) -> tuple[tuple[float, ...], str]:
    """Return what a training sample of each class counts, () for 1 each, and a sentence on it.

    Raises:
        UsageError: it is ``wanted``, and the data have no classes of samples.
    """
    is_single = classes > 0 and data.y.ndim == 1
    labels = data.y[data.train_rows]
    if not wanted:
        return (), about_balance(labels, names, classes) if is_single else ""
    if not is_single:
        what = "labels of positions" if classes else "0 and 1 of outputs, or numbers"
        raise UsageError(
            f"--balance weighs samples by their class, and y of {data.name} holds {what}: leave it "
            "away"
        )
    weights = class_weights(labels, classes)
    return weights, _about_weights(labels, names, weights)


def _about_weights(labels: Array, names: Sequence[str], weights: Sequence[float]) -> str:
    """Say what `class_weights` came to."""
    counts = np.bincount(labels, minlength=len(weights))
    there = [n for n in range(len(weights)) if counts[n]]
    shown = [
        f"{n} {names[n]}".strip() if names else f"{n}"
        for n in (min(there, key=lambda n: weights[n]), max(there, key=lambda n: weights[n]))
    ]
    least, most = (min(weights[n] for n in there), max(weights[n] for n in there))
    said = (
        f"--balance: in training a sample counts from {least:.3g} (class {shown[0]}) to {most:.3g} "
        f"(class {shown[1]}), 1 on average"
    )
    if most > 0.99 * HEAVIEST * least:
        said += f", at most {HEAVIEST:.0f} times another's"
    return said + ("; of a class without a sample here, 1" if len(there) < len(weights) else "")


def _without_ones(y: Array, output: Sequence[int] | None) -> tuple[Array, tuple[str, ...]]:
    """Return ``y`` without an axis of 1 that says nothing, as masks [n, 1, H, W] have it."""
    if not _is_whole(y):
        return y, ()
    if y.ndim > 2 and y[0].size == 1:
        return y.reshape(len(y)), ("the axes of y have length 1 and are left out",)
    for axis in (1, y.ndim - 1):
        if y.ndim > 2 and y.shape[axis] == 1:
            less = y.squeeze(axis)
            if _are_positions(less, output):
                return less, (f"axis {axis} of y has length 1 and is left out",)
    return y, ()


def _labels_or_numbers(
    name: str,
    y: Array,
    loss: Loss | None,
    output: Sequence[int] | None,
    classes: int | None,
    *,
    are_names: bool,
) -> Targets:
    """One value per sample, or one per position of an output that has classes there."""
    positions = y.ndim > 1 and y.shape[1:] != (1,)
    outputs = None if output is None else _size(output)
    if y.dtype.kind == "f":
        if not _is_whole(y):
            if loss is None and not positions:
                return Targets(y, "numbers", "mse")
            place = tuple(np.argwhere(~are_whole(y))[0])
            raise UsageError(
                f"{name}: y holds float32, {y[place]:g} in row {place[0]}, and cross_entropy "
                "needs integer labels: --loss mse learns numbers"
            )
        if loss is None and not positions and outputs == 1 and not _is_binary(y):
            _check_signs(name, y, "one of two classes")
            return Targets(y, "numbers", "mse", ("y is learned as numbers (mse)",))
        if loss is None and not positions and outputs is None and classes is None:
            _check_signs(name, y, "one of two classes")
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
        if _is_binary(y):
            words = "the model has one output and y is 0 or 1: learned by bce; --loss mse insists"
            return Targets(y.astype(np.float32), "multi_label", "bce", (words + " on numbers",))
        _check_signs(name, y, "one of two classes")
        raise UsageError(
            f"{name}: y has labels from {y.min()} to {y.max()}, and the model has one output: "
            "--loss mse learns them as numbers; for classes it needs an output for each"
        )
    said = ["y are whole floats: taken as labels"] if y.dtype.kind == "f" else []
    if y.shape[1:] == (1,):
        y = y[:, 0]
        said.append("y is a column: taken as one label per sample")
    return Targets(y.astype(np.int64), "classes", "cross_entropy", tuple(said))


def _rows(name: str, y: Array, loss: Loss | None, output: Sequence[int] | None) -> Targets:
    """Several values per sample, none of them labels of positions."""
    last = y.shape[-1]
    positions = y.shape[1:-1]
    if is_one_hot(y) and (
        output is None or _plural(output) in (y.shape[1:], (last, *_plural(positions)))
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
            + ("; or save y=y[:, 1]" if last == 2 and _size(output or ()) == 1 else "")
        )
    if _is_binary(y) and y.any():
        if loss is None and (output is None or _size(output) == _size(shape)):
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
        _check_signs(name, y, "several labels at once")
        return Targets(y, "numbers", "mse", (f"y has {shape} numbers: learned by mse",))
    answers = "" if output is None else f"; the model answers {list(output)}"
    remedy = "--loss mse learns numbers"
    if output is not None and _size(output) != _size(shape):
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


def _check_count(name: str, y: Array, loss: Loss, output: Sequence[int] | None) -> None:
    """Refuse another count of numbers than the model answers with."""
    if output is not None and _size(y.shape[1:]) != _size(output):
        count = _size(y.shape[1:])
        raise UsageError(
            f"{name}: y has {count} number{'' if count == 1 else 's'} per sample, and the model "
            f"answers {list(output)}: {loss} needs as many; cross_entropy needs whole labels"
        )
    found, wanted = _plural(y.shape[1:]), _plural(output or ())
    if output is None or found == wanted or min(len(found), len(wanted)) < 2:
        return  # the same, or the same numbers one after the other
    remedy = "save y in that shape"
    if sorted(found) == sorted(wanted) and len(set(found)) == len(found) == len(y.shape) - 1:
        axes = [0, *(1 + found.index(side) for side in wanted)]
        remedy = f"save np.transpose(y, {axes})"
    raise UsageError(
        f"{name}: y has {list(y.shape[1:])} numbers per sample, and the model answers "
        f"{list(output)}, in which others stand side by side: {remedy}"
    )


def _check_signs(name: str, y: Array, what: str) -> None:
    """Refuse -1 and 1 where they may be numbers: they are no and yes to many."""
    if (np.abs(y) == 1).all() and (y == -1).any():
        raise UsageError(
            f"{name}: y has -1 and 1, which may be {what} or numbers: save "
            "y=(y > 0).astype(int) to learn labels, or --loss mse learns numbers"
        )


def _check_few(name: str, y: Array) -> None:
    """Refuse whole numbers that are more likely counts of something than classes."""
    found = len(np.unique(y))
    if found > FEWER_THAN and MANY_ROWS * found > y.size:
        raise UsageError(
            f"{name}: y has {found:,} different whole numbers in {y.size:,} rows, which may be "
            "classes or numbers: --loss cross_entropy learns classes, --loss mse numbers"
        )


def _check_labels(name: str, y: Array, classes: int | None, output: Sequence[int] | None) -> None:
    """Refuse labels that are none of ``classes``, counted from 0; None: as many as there are."""
    low, high = int(y.min()), int(y.max())
    anew = "number them anew: names, y = np.unique(y, return_inverse=True)"
    found = np.unique(y)
    if low < 0:
        row = int(np.argwhere(y < 0)[0][0])
        remedy = "leave such rows out (keep = y >= 0), or " + anew
        if found.tolist() == [-1, 1]:
            remedy = "save y=(y > 0).astype(int)"
        elif y.ndim > 1:
            remedy = "positions without a label cannot be left out; give them a class of their own"
        raise UsageError(f"{name}: label {low} in row {row}, and classes count from 0: {remedy}")
    if len(found) > MAX_CLASSES or (classes is None and high >= MAX_CLASSES):
        row = int(np.argwhere(y == high)[0][0])
        raise UsageError(
            f"{name}: label {high} in row {row}; labels count from 0 and stay below {MAX_CLASSES}: "
            f"{anew}; or --loss mse learns numbers"
        )
    if high == 0 and (classes or 1) == 1:
        raise UsageError(
            f"{name}: all labels are 0, and at least two classes are needed: say that there are "
            "others too: --classes 2"
        )
    is_offset = high - low + 1 <= (classes or high) and low > 0
    shift = f"save y=y - {low}"
    if classes is not None and high >= classes:
        remedy = f"give a model with {high + 1}" if output is not None else f"--classes {high + 1}"
        if is_offset:
            remedy = f"they begin at {low}, and classes count from 0: {shift}"
        elif len(found) <= classes:
            remedy = f"only {len(found)} occur: {anew}"
        raise UsageError(
            f"{name} has labels up to {high}, the model knows {classes} classes: {remedy}"
        )
    if classes is None and low > 0:
        remedy = shift if len(found) == high - low + 1 else anew
        raise UsageError(
            f"{name}: labels go from {low} to {high}, and classes count from 0: {remedy}; or say "
            f"that there are others too: --classes {high + 1}"
        )
    if classes is None and 2 * len(found) < high + 1:
        raise UsageError(
            f"{name}: labels go up to {high}, and only {len(found)} occur "
            f"({', '.join(map(str, found[:6]))}{', ...' if len(found) > 6 else ''}): {anew}; or "
            f"say that there are others too: --classes {high + 1}"
        )


def _class_count(shape: Sequence[int], output: Sequence[int] | None) -> int | None:
    """Return how many classes an output has for labels of ``shape``: in its last or first axis."""
    if output is None:
        return None
    wanted, answer = _plural(shape), _plural(output)
    if len(answer) != len(wanted) + 1:
        return None
    if answer[:-1] == wanted:
        return answer[-1]
    return answer[0] if answer[1:] == wanted else None


def _are_positions(y: Array, output: Sequence[int] | None) -> bool:
    return y.ndim > 1 and _class_count(y.shape[1:], output) is not None


def _is_whole(y: Array) -> bool:
    return y.dtype.kind == "i" or bool(are_whole(y).all())


def _is_binary(y: Array) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _plural(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
