"""Whether arrays are samples of a task: in its shapes and dtypes, or one sentence why not. Pure.

The only such rule: the intake of a device, training, measuring on device and server, and ``edgefold
task train`` all ask here, so that none of them learns from or measures what another would refuse.

| given | for | |
|---|---|---|
| floats of any width | float32 | taken, unless a value is not finite or too large |
| integers, as x | float32 | refused: they would miss the conversion (pixels 0..255 to 0..1) |
| integers, as y | float32 | taken: they mean the same numbers |
| integers of any width | an integer type | taken where they are in its range |
| truth values | any | taken as 0 and 1 |
| floats, as x | an integer type | refused |
| floats, as y | an integer type | taken where they are whole |
| y in another form of the same: names, one-hot rows, axes of 1 | | taken (`label_forms`) |
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import UsageError
from models.samples.label_forms import UnknownClassError, labels_by_names, labels_of
from models.task.spec import ArraySpec, TaskSpec

__all__ = ["OtherTaskError", "broken_rows", "checked_x", "samples_of"]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.bool_]

AT_ONCE = 1 << 20  # elements looked at together: bounds what checking adds to the memory


class OtherTaskError(UsageError):
    """Nothing is wrong with them in themselves: another task, or a later release, may take them."""


def samples_of(
    spec: TaskSpec, x: Array, y: Array, names: Array | None = None
) -> tuple[Array, Array]:
    """Return ``x`` and ``y`` in the spec's dtypes and shapes; not copied where they have them.

    ``names``: by which the file of ``y`` counts its classes; None: it says none. There may be no
    samples: whether that is enough is the caller's to say.

    Raises:
        OtherTaskError: another shape or dtype, or labels or names that the task does not know.
        UsageError: not as many of both, or values that are not finite. Each names array and row.
    """
    x, y = _shaped(spec, x, y, names)
    for found in (*_x_faults(spec, x), *_y_faults(spec, y)):
        _refuse_first(found)
    return _cast(x, spec.x), _cast(y, spec.y)


def checked_x(spec: TaskSpec, x: Array) -> Array:
    """Return ``x`` alone, as `samples_of` does.

    Raises:
        OtherTaskError, UsageError: as `samples_of`.
    """
    x = _shaped_array(spec, "x", x, spec.x)
    for found in _x_faults(spec, x):
        _refuse_first(found)
    return _cast(x, spec.x)


def broken_rows(spec: TaskSpec, x: Array, y: Array) -> Rows:
    """Return which rows hold a value that is no finite number, which no task takes; bool (n,).

    Raises:
        OtherTaskError, UsageError: it is not a matter of rows: another shape or dtype.
    """
    x, y = _shaped(spec, x, y)
    return _not_finite("x", x, spec.x).rows | _not_finite("y", y, spec.y).rows


def _x_faults(spec: TaskSpec, x: Array) -> Iterator["_Faults"]:
    yield _not_finite("x", x, spec.x)
    yield _beyond_the_dtype(spec, "x", x, spec.x)


def _y_faults(spec: TaskSpec, y: Array) -> Iterator["_Faults"]:
    yield _not_finite("y", y, spec.y)
    yield _between_classes(spec, y)
    yield _beyond_the_classes(spec, y)
    yield _beyond_the_dtype(spec, "y", y, spec.y)


def _shaped(spec: TaskSpec, x: Array, y: Array, names: Array | None = None) -> tuple[Array, Array]:
    x = np.asarray(x)
    try:
        y = labels_of(labels_by_names(np.asarray(y), names, spec), spec)
    except UnknownClassError as error:
        raise OtherTaskError(str(error)) from None
    x = _shaped_array(spec, "x", x, spec.x)
    y = _shaped_array(spec, "y", y, spec.y)
    if len(x) != len(y):
        raise UsageError(f"{len(x)} samples with {len(y)} labels: as many of both are needed")
    return x, y


def _shaped_array(spec: TaskSpec, name: str, array: Array, wanted: ArraySpec) -> Array:
    if array.ndim == 0 or array.shape[1:] != wanted.shape:
        shape = ", ".join(map(str, ("n", *wanted.shape))) + ("," if not wanted.shape else "")
        raise OtherTaskError(
            f"{name} has shape {array.shape}, task {spec.task} takes ({shape}): one row for each "
            "sample, shaped as in the data that the task was made from"
        )
    if (remedy := _dtype_fault(name, array.dtype, np.dtype(wanted.dtype))) is not None:
        raise OtherTaskError(
            f"{name} is {array.dtype}, task {spec.task} takes {wanted.dtype}: {remedy}"
        )
    return array


def _dtype_fault(name: str, found: np.dtype[Any], wanted: np.dtype[Any]) -> str | None:
    """Return what to do where values of one dtype do not mean the same in the other."""
    if found.kind not in "biuf":
        return "save it as numbers"
    if name == "x" and wanted.kind == "f" and found.kind in "iu":
        return (
            "convert it as the data that the task was made from were (pixels of 0..255 would miss "
            "that), and save it as float32"
        )
    if name == "x" and wanted.kind in "iu" and found.kind == "f":
        return (
            f"save the {wanted} values as they were before conversion (pixels from 0 to 255)"
            if wanted == np.uint8
            else f"save x.astype('{wanted}') if the values are whole"
        )
    return None


class _Faults(NamedTuple):
    """What one check finds."""

    rows: Rows  # which are bad
    words: Callable[[int], str]  # for one of them
    are_broken: bool = False  # else they may be good for another task


def _refuse_first(found: _Faults) -> None:
    if found.rows.any():
        words = found.words(int(np.argmax(found.rows)))
        raise UsageError(words) if found.are_broken else OtherTaskError(words)


def _not_finite(name: str, array: Array, wanted: ArraySpec) -> _Faults:
    """Floats that are no numbers, or that the spec's floats cannot hold."""
    if array.dtype.kind != "f":
        return _none(array)
    dtype = np.dtype(wanted.dtype)
    limit = np.finfo(dtype if dtype.kind == "f" else array.dtype).max
    return _Faults(
        _rows_where(array, lambda part: ~(np.abs(part) <= limit)),
        lambda row: (
            f"{name}: row {row} has a value that is "
            f"{'too large for float32' if np.isfinite(array[row]).all() else 'not finite'}: repair "
            "it, or leave the row out"
        ),
        are_broken=True,
    )


def _beyond_the_dtype(spec: TaskSpec, name: str, array: Array, wanted: ArraySpec) -> _Faults:
    """Numbers that the spec's integers cannot hold."""
    dtype = np.dtype(wanted.dtype)
    if dtype.kind == "f" or np.can_cast(array.dtype, dtype):
        return _none(array)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    # For floats a power of two, so that the limit is exact: 2**63 - 1 is none.
    return _Faults(
        _rows_where(array, lambda part: ~((part >= low) & (part < high + 1))),
        lambda row: (
            f"{name}: row {row} has a value outside {low} to {high}, and task {spec.task} takes "
            f"{dtype}: save it in that range"
        ),
    )


def _between_classes(spec: TaskSpec, y: Array) -> _Faults:
    """Labels that are not whole."""
    if np.dtype(spec.y.dtype).kind == "f" or y.dtype.kind != "f":
        return _none(y)
    return _Faults(
        _rows_where(y, lambda part: part != np.floor(part)),
        lambda row: (
            f"y: label {_first(y[row], lambda v: v != np.floor(v))} in row {row} is not a whole "
            f"number; task {spec.task} learns classes: save their numbers"
        ),
    )


def _beyond_the_classes(spec: TaskSpec, y: Array) -> _Faults:
    """Labels of classes that the task does not have, and for bce what is no probability."""
    if spec.loss == "cross_entropy" and spec.classes:
        highest, known = spec.classes - 1, f"the classes are 0 to {spec.classes - 1}"
    elif spec.loss == "bce":
        highest, known = 1, "labels are from 0 to 1 (bce)"
    else:
        return _none(y)
    return _Faults(
        _rows_where(y, lambda part: ~((part >= 0) & (part <= highest))),
        lambda row: (
            f"y: label {_first(y[row], lambda v: ~((v >= 0) & (v <= highest)))} in row {row}, but "
            f"in task {spec.task} {known}"
        ),
    )


def _none(array: Array) -> _Faults:
    return _Faults(np.zeros(len(array), bool), str)


def _rows_where(array: Array, is_bad: Callable[[Array], Array]) -> Rows:
    """Return for each row whether any of its values is bad; in pieces, to save memory."""
    rows = np.zeros(len(array), bool)
    per_row = max(1, array[:1].size)
    step = max(1, AT_ONCE // per_row)
    for start in range(0, len(array), step):
        part = array[start : start + step]
        with np.errstate(invalid="ignore"):
            rows[start : start + step] = is_bad(part).reshape(len(part), -1).any(axis=1)
    return rows


def _first(values: Array, is_bad: Callable[[Array], Array]) -> str:
    """Return the first bad value of a row, as people write it."""
    flat = np.asarray(values).reshape(-1)
    return f"{flat[np.flatnonzero(is_bad(flat))[0]]:g}"


def _cast(array: Array, wanted: ArraySpec) -> Array:
    return array.astype(wanted.dtype, copy=False)
