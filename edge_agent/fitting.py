"""Arrays as samples of a task: in its shapes and dtypes, or one sentence why they are not. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.entry_fate import NotHereError, Wait
from models.errors import UsageError
from models.label_forms import UnknownClassError, labels_of
from models.spec import TaskSpec

__all__ = ["Array", "fitted", "shaped", "unfit_rows"]

Array = npt.NDArray[Any]


def fitted(x: Array, y: Array, spec: TaskSpec) -> tuple[Array, Array]:
    """Return ``x`` and ``y`` in the spec's dtypes, if all of them are samples of the task.

    Raises:
        NotHereError: they are samples of another task, or of a later release of this one.
        UsageError: they are of none; says what is wrong and what to do.
    """
    x, y = shaped(x, y, spec)
    for name, array in (("x", x), ("y", y)):
        if (unfit := unfit_rows(array)).any():
            which = f", first in row {int(np.argmax(unfit))}" if len(array) > 1 else ""
            raise UsageError(f"{name} has values that are not finite{which}")
    return x, y


def unfit_rows(array: Array) -> npt.NDArray[np.bool_]:
    """Return which rows hold a value that is not finite; shape (n,)."""
    if array.dtype.kind != "f":
        return np.zeros(len(array), np.bool_)
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return np.logical_not(finite)


def shaped(x: Array, y: Array, spec: TaskSpec) -> tuple[Array, Array]:
    """Return ``x`` and ``y`` in the spec's dtypes; of single rows the values may not be finite.

    Raises:
        NotHereError, UsageError: as `fitted`.
    """
    try:
        y = labels_of(y, spec)
    except UnknownClassError as error:
        raise NotHereError(Wait.SPEC, str(error)) from None
    for name, array, wanted in (("x", x, spec.x), ("y", y, spec.y)):
        if array.ndim == 0 or array.shape[1:] != wanted.shape:
            shape = ", ".join(map(str, ("n", *wanted.shape)))
            raise NotHereError(
                Wait.SPEC, f"{name} has shape {array.shape}, task {spec.task} takes ({shape})"
            )
    if len(x) != len(y) or len(x) == 0:
        raise UsageError(f"{len(x)} samples with {len(y)} labels: as many of both are needed")
    if y.dtype.kind in "iu" and spec.classes and not ((y >= 0) & (y < spec.classes)).all():
        row = int(np.argmax(((y < 0) | (y >= spec.classes)).reshape(len(y), -1).any(axis=1)))
        raise NotHereError(
            Wait.SPEC, f"label {y[row]} in row {row}; the classes are 0 to {spec.classes - 1}"
        )
    for name, array, wanted in (("x", x, spec.x), ("y", y, spec.y)):
        labels = name == "y" and spec.classes > 0 and array.dtype.kind in "iu"
        same_kind = array.dtype.kind == np.dtype(wanted.dtype).kind == "f"
        if not (labels or same_kind or np.can_cast(array.dtype, np.dtype(wanted.dtype))):
            raise NotHereError(
                Wait.SPEC, f"{name} is {array.dtype}, task {spec.task} takes {wanted.dtype}"
            )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is found as that
        return x.astype(spec.x.dtype, copy=False), y.astype(spec.y.dtype, copy=False)
