"""Labels as people write them, turned into those of a task: names, one-hot rows, columns. Pure.

The one rule of author, device and server. What has only one meaning is turned; all else comes back
as it was, for the check of samples to judge.
"""

import difflib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.task.spec import TaskSpec

__all__ = [
    "UnknownClassError",
    "are_whole",
    "as_texts",
    "is_one_hot",
    "label_named",
    "labels_by_names",
    "labels_of",
    "same_name",
]

Array = npt.NDArray[Any]

LARGEST = np.float64(2**31)  # float16 cannot hold it; no task has so many classes


class UnknownClassError(UsageError):
    """A name or number that is no class of this task, or of two; a later release may know it."""


def labels_of(y: Array, spec: TaskSpec) -> Array:
    """Return ``y`` [n, ...] as the task has it, where it says the same in another form.

    For classes: names (`label_named`) or numbers written as texts, booleans, whole floats, one-hot
    rows [n, ..., classes] or [n, classes, ...]. For numbers: integers. Axes of 1 may be more or
    less.

    Raises:
        UnknownClassError: a name that is no class of the task; says the row and the nearest one.
        UsageError: names, and the task takes numbers.
    """
    if y.ndim == 0 or y.dtype.kind not in "biufUS":
        return y
    if not spec.classes:
        return _numbers(y, spec)
    if y.dtype.kind in "US":
        y = _named(y, spec)
    elif y.dtype.kind == "b":
        y = y.astype(np.uint8)
    wanted = spec.y.shape
    if y.shape[1:] != wanted and _plural(y.shape[1:]) == _plural(wanted):
        y = y.reshape(len(y), *wanted)
    elif y.shape[1:] == (*wanted, spec.classes) and is_one_hot(y):
        y = y.argmax(axis=-1)
    elif wanted and y.shape[1:] == (spec.classes, *wanted) and is_one_hot(y, 1):
        y = y.argmax(axis=1)
    if y.dtype.kind == "f" and are_whole(y).all():
        y = y.astype(np.int64)
    return y


def labels_by_names(y: Array, names: Array | None, spec: TaskSpec) -> Array:
    """Return the labels ``y`` of a file whose ``names`` (n,) say what its own labels mean.

    Another file may count the same classes in another order: its 0 is then another label of the
    task. Where the task or the file has no names, where they share none (one was renamed), or where
    ``y`` are names, ``y`` comes back as it is.

    Raises:
        UnknownClassError: a label of the file that is no class of the task by its name.
        UsageError: names that are no texts.
    """
    is_list = names is not None and names.ndim == 1 and names.dtype.kind in "US"
    if names is None or not is_list or not spec.class_names or y.dtype.kind in "US":
        return y
    texts = as_texts("classes", names)
    if not any(same_name(known, text) for known in spec.class_names for text in texts):
        return y
    y = labels_of(y, spec)
    is_same = len(texts) >= spec.classes and all(map(same_name, spec.class_names, texts))
    if is_same or y.dtype.kind not in "iu":
        return y  # what are no labels, the check of samples refuses
    places = {}
    for label in np.unique(y).tolist():
        if not 0 <= label < len(texts):
            raise UnknownClassError(
                f"y: label {label}, and the file's own classes are 0 to {len(texts) - 1} "
                f"({', '.join(texts[:4])}{', ...' if len(texts) > 4 else ''})"
            )
        try:
            places[label] = _label_of(texts[label], spec)
        except UnknownClassError as error:
            raise UnknownClassError(f"classes: {texts[label]!r}: {error}") from None
    values, rows = np.unique(y, return_inverse=True)
    new: Array = np.array([places[value] for value in values.tolist()], np.int64)[rows]
    return new.reshape(y.shape)


def is_one_hot(y: Array, axis: int = -1) -> bool:
    """Whether ``y`` has exactly one 1 along ``axis``, of at least two, and zeros else."""
    if y.ndim < 2 or y.shape[axis] < 2 or not y.size or y.dtype.kind not in "biuf":
        return False
    return bool(((y == 0) | (y == 1)).all() and ((y == 1).sum(axis=axis) == 1).all())


def are_whole(y: Array) -> npt.NDArray[np.bool_]:
    """Whether each of these floats is a whole number that may be a label."""
    whole: npt.NDArray[np.bool_] = (np.abs(y) < LARGEST) & (y == np.round(y))
    return whole


def label_named(name: str, spec: TaskSpec, *, what: str = "a class") -> int:
    """Return the label of the class that is called ``name``, or has that number.

    ``what`` is so named, for the sentence.

    Raises:
        UnknownClassError: there is none, or it is the name of one and the number of another.
    """
    named = [label for label, known in enumerate(spec.class_names) if same_name(known, name)]
    # Not isdigit(): that is true of ² too.
    is_number = name.isascii() and name.isdecimal() and len(name) <= len(str(spec.classes))
    labels = {*named, *([int(name)] if is_number and int(name) < spec.classes else [])}
    if len(labels) == 1:
        return labels.pop()
    if labels:
        raise UnknownClassError(
            f"{name!r} is the name of one class and the number of another: use numbers in an .npz"
        )
    known_numbers = f"0 to {spec.classes - 1}"
    if not spec.class_names:
        raise UnknownClassError(
            f"no class of task {spec.task}: {what} is named by its number, {known_numbers}"
        )
    near = difflib.get_close_matches(name, spec.class_names, 1)
    some = ", ".join(spec.class_names[:4]) + (", ..." if len(spec.class_names) > 4 else "")
    hint = f"did you mean {near[0]!r}?" if near else f"the classes are {some}, or {known_numbers}"
    raise UnknownClassError(f"no class of task {spec.task}: {hint}")


def same_name(one: str, other: str) -> bool:
    """Whether two spellings are one name: a Mac writes the accent as a letter of its own."""
    return one == other or unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def as_texts(name: str, y: Array) -> list[str]:
    """Return the texts of ``y``, flat, without the blanks around them, and in Unicode's form C.

    Raises:
        UsageError: bytes that are not UTF-8, or characters that are none; says the row.
    """
    texts = []
    per_row = y.size // max(1, len(y))
    for place, value in enumerate(_items(name, y)):
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
            text.encode()  # lone surrogates
        except UnicodeError:
            row = place // max(1, per_row)
            raise UsageError(f"{name}: the text in row {row} is not UTF-8") from None
        texts.append(unicodedata.normalize("NFC", text.strip()))
    return texts


def _items(name: str, y: Array) -> Sequence[Any]:
    try:
        return y.reshape(-1).tolist()
    except ValueError:  # numbers beyond Unicode
        raise UsageError(f"{name}: holds characters that are not Unicode") from None


def _label_of(text: str, spec: TaskSpec) -> int:
    """Return the label of a class by its name; only where none has it, by its number."""
    exact = [label for label, known in enumerate(spec.class_names) if same_name(known, text)]
    return exact[0] if exact else label_named(text, spec)


def _named(y: Array, spec: TaskSpec) -> Array:
    texts = as_texts("y", y)
    labels: dict[str, int] = {}
    for place, text in enumerate(texts):
        if text not in labels:
            try:
                labels[text] = _label_of(text, spec)
            except UnknownClassError as error:
                row = place // max(1, len(texts) // len(y))
                raise UnknownClassError(f"y: {text!r} in row {row}: {error}") from None
    return np.array([labels[text] for text in texts], np.int64).reshape(y.shape)


def _numbers(y: Array, spec: TaskSpec) -> Array:
    if y.dtype.kind in "US":
        first = as_texts("y", y[:1])
        shown = f" ({first[0][:40]!r} in row 0)" if first else ""
        raise UsageError(f"y holds texts{shown}, and task {spec.task} takes numbers")
    wanted = spec.y.shape
    if y.shape[1:] != wanted and _plural(y.shape[1:]) == _plural(wanted):
        y = y.reshape(len(y), *wanted)
    if y.dtype.kind in "biu" and spec.y.dtype == "float32":
        y = y.astype(np.float32)
    return y


def _plural(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
