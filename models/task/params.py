"""Named tensors <-> one flat float32 vector, in spec order. Pure."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from models.errors import PayloadError
from models.task.spec import TensorSpec

__all__ = ["Tensor", "Vector", "flatten", "unflatten"]

Vector = npt.NDArray[np.float32]  # shape (d,)
Tensor = npt.NDArray[np.float32]


def flatten(tensors: Mapping[str, Tensor], order: Sequence[TensorSpec]) -> Vector:
    """Return the tensors of ``order`` one after the other, each in C order, shape (d,)."""
    if not order:
        return np.zeros(0, np.float32)
    return np.concatenate(
        [np.ascontiguousarray(tensors[spec.name], np.float32).reshape(-1) for spec in order]
    )


def unflatten(vector: Vector, order: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """Return views into ``vector``, by name.

    Raises:
        PayloadError: its length is not the one that ``order`` asks for.
    """
    expected = sum(spec.size for spec in order)
    if vector.shape != (expected,):
        raise PayloadError(f"{vector.shape} parameters where the spec has {expected}")
    tensors, start = {}, 0
    for spec in order:
        tensors[spec.name] = vector[start : start + spec.size].reshape(spec.shape)
        start += spec.size
    return tensors
