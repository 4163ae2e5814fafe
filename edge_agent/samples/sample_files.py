"""Files of samples as people write them: npz with ``x`` and ``y``. Judges, and stores nothing."""

from pathlib import Path
from typing import NamedTuple

from edge_agent.samples.fitting import Array, broken, fitted, fitted_x
from models.errors import ForeignError, PayloadError, UsageError
from models.host.sentences import brief
from models.protocol.npz import array_names, read_arrays
from models.samples.foreign_files import foreign_kind
from models.samples.npz_layouts import about_missing
from models.task.spec import TaskSpec

__all__ = ["Given", "read_npz", "read_x"]


class Given(NamedTuple):
    """What a user's npz holds, the good rows in the shapes and dtypes of the spec."""

    x: Array
    y: Array
    test: Array | None  # which of them its owner wants held out; bool
    bad: Array  # which rows of the file have values that are not finite; bool (n,)
    bad_x: Array
    bad_y: Array


def read_npz(data: bytes, spec: TaskSpec, *, max_bytes: int) -> Given:
    """Return ``x``, ``y`` and, if there is one, ``test`` of a user's npz, as the spec has them.

    Single rows may have values that are not finite: a sensor fails now and then. Where both the
    file (``classes``) and the task name their classes, labels go by these names. What else it has,
    such as users, is not looked at.

    Raises:
        PayloadError: no such file, or one that unpacks to more than ``max_bytes``.
        UsageError: samples that do not fit the task (`NotHereError`), or any.
    """
    try:
        arrays = read_arrays(
            data,
            max_bytes=max_bytes,
            only=("x", "y", "test", *(["classes"] if spec.class_names else [])),
            texts=("y", "classes"),
        )
    except ForeignError as error:
        kind = foreign_kind(data[:16], "FILE")
        raise ForeignError(f"{error}: it is {kind}" if kind else str(error)) from None
    if "x" not in arrays or "y" not in arrays:
        raise UsageError(about_missing([brief(name) for name in array_names(data)]))
    x, y = arrays["x"], arrays["y"]
    test = arrays.get("test")
    if test is not None and test.shape != (len(x),):
        raise UsageError(f"test has shape {test.shape}, one number per sample is needed")
    bad = broken(x, y, spec)
    if bad.all():
        fitted(x, y, spec)  # says what is wrong
    good_x, good_y = fitted(x[~bad], y[~bad], spec, arrays.get("classes"))
    return Given(good_x, good_y, None if test is None else test[~bad] > 0, bad, x[bad], y[bad])


def read_x(file: Path, spec: TaskSpec, *, max_bytes: int) -> Array:
    """Return the array ``x`` of an npz as samples of the task; other arrays are ignored.

    Raises:
        UsageError, PayloadError: it is not there or does not fit.
        PermissionError: it is not for us to read.
    """
    try:
        arrays = read_arrays(file.read_bytes(), max_bytes=max_bytes, only=("x",))
    except PermissionError:
        raise
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except PayloadError as error:
        raise PayloadError(f"{file}: {error}") from None
    if "x" not in arrays:
        raise UsageError(f"{file}: no array 'x'; write it with numpy.savez(file, x=...)")
    return fitted_x(arrays["x"], spec)
