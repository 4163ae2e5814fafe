"""One release's parameters out of another's, on server and device alike to the bit. Pure.

A patch is a payload without context (`models.codec.payload`). It decodes to the same float32 values
on every machine, and adding two float32 numbers rounds as IEEE 754 says.
"""

from collections.abc import Sequence

import numpy as np

from models.codec.payload import decompress
from models.errors import PayloadError
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["patched"]


def patched(parameters: Vector, patch: bytes, tensors: Sequence[TensorSpec]) -> Vector:
    """Return ``parameters``, float32 of shape (d,), moved as ``patch`` says.

    Raises:
        PayloadError: it is no patch for ``tensors``, or leads to values that are not finite.
    """
    step = decompress(patch, tensors)
    with np.errstate(over="ignore"):  # the next line looks
        moved: Vector = parameters + step
    if not np.isfinite(moved).all():
        raise PayloadError("patch: it leads to values that are not finite")
    return moved
