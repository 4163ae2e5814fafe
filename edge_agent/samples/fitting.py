"""Samples for the store of this device: what `sample_check.py` refuses waits or goes. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.samples.entry_fate import NotHereError, Wait
from models.errors import UsageError
from models.samples.sample_check import OtherTaskError, broken_rows, checked_x, samples_of
from models.task.spec import TaskSpec

__all__ = ["Array", "broken", "fitted", "fitted_x"]

Array = npt.NDArray[Any]


def fitted(x: Array, y: Array, spec: TaskSpec, names: Array | None = None) -> tuple[Array, Array]:
    """Return ``x`` and ``y`` in the spec's dtypes, if all of them are samples of the task.

    ``names``: of the classes by which ``y`` counts, if its file says them.

    Raises:
        NotHereError: they are samples of another task, or of a later release of this one.
        UsageError: they are of none; says what is wrong and what to do.
    """
    try:
        x, y = samples_of(spec, x, y, names)
    except OtherTaskError as error:
        raise NotHereError(Wait.SPEC, str(error)) from None
    if not len(x):
        raise UsageError("0 samples with 0 labels: at least one of both is needed")
    return x, y


def broken(x: Array, y: Array, spec: TaskSpec) -> npt.NDArray[np.bool_]:
    """Return which rows hold a value that is no finite number; bool (n,).

    Raises:
        NotHereError, UsageError: as `fitted`.
    """
    try:
        return broken_rows(spec, x, y)
    except OtherTaskError as error:
        raise NotHereError(Wait.SPEC, str(error)) from None


def fitted_x(x: Array, spec: TaskSpec) -> Array:
    """Return ``x`` alone, as `fitted` does.

    Raises:
        NotHereError, UsageError: as `fitted`.
    """
    try:
        x = checked_x(spec, x)
    except OtherTaskError as error:
        raise NotHereError(Wait.SPEC, str(error)) from None
    if not len(x):
        raise UsageError("0 samples: at least one is needed")
    return x
