"""What labels and numbers of somebody's data cannot be, in a sentence each. Pure."""

from collections.abc import Sequence

import numpy as np

from models.errors import UsageError
from models.graph.training.losses import LossName
from models.samples.label_forms import (
    are_whole,
)
from tools.author.data.labeled_data import Array

__all__ = [
    "are_positions",
    "check_count",
    "check_few",
    "check_labels",
    "check_signs",
    "class_count",
    "is_binary",
    "is_whole",
    "plural",
    "size_of",
]

MAX_CLASSES = 1 << 16

MANY_ROWS = 5  # per class, or a hundred classes may be none

FEWER_THAN = 100  # whole floats below this may be classes; above, they are counts of something


def check_count(name: str, y: Array, loss: LossName, output: Sequence[int] | None) -> None:
    """Refuse another count of numbers than the model answers with."""
    if output is not None and size_of(y.shape[1:]) != size_of(output):
        count = size_of(y.shape[1:])
        raise UsageError(
            f"{name}: y has {count} number{'' if count == 1 else 's'} per sample, and the model "
            f"answers {list(output)}: {loss} needs as many; cross_entropy needs whole labels"
        )
    found, wanted = plural(y.shape[1:]), plural(output or ())
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


def check_signs(name: str, y: Array, what: str) -> None:
    """Refuse -1 and 1 where they may be numbers: they are no and yes to many."""
    if (np.abs(y) == 1).all() and (y == -1).any():
        raise UsageError(
            f"{name}: y has -1 and 1, which may be {what} or numbers: save "
            "y=(y > 0).astype(int) to learn labels, or --loss mse learns numbers"
        )


def check_few(name: str, y: Array) -> None:
    """Refuse whole numbers that are more likely counts of something than classes."""
    found = len(np.unique(y))
    if found > FEWER_THAN and MANY_ROWS * found > y.size:
        raise UsageError(
            f"{name}: y has {found:,} different whole numbers in {y.size:,} rows, which may be "
            "classes or numbers: --loss cross_entropy learns classes, --loss mse numbers"
        )


def check_labels(name: str, y: Array, classes: int | None, output: Sequence[int] | None) -> None:
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


def class_count(shape: Sequence[int], output: Sequence[int] | None) -> int | None:
    """Return how many classes an output has for labels of ``shape``: in its last or first axis."""
    if output is None:
        return None
    wanted, answer = plural(shape), plural(output)
    if len(answer) != len(wanted) + 1:
        return None
    if answer[:-1] == wanted:
        return answer[-1]
    return answer[0] if answer[1:] == wanted else None


def are_positions(y: Array, output: Sequence[int] | None) -> bool:
    return y.ndim > 1 and class_count(y.shape[1:], output) is not None


def is_whole(y: Array) -> bool:
    return y.dtype.kind == "i" or bool(are_whole(y).all())


def is_binary(y: Array) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def size_of(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def plural(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
