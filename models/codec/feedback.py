"""Error feedback: what a payload leaves out is owed, and goes into the next one. Pure."""

from collections.abc import Sequence

from models.codec.payload import decompress
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["residual_after"]


def residual_after(
    wanted: Vector,
    payload: bytes,
    tensors: Sequence[TensorSpec],
    *,
    context: Vector | None = None,
) -> Vector:
    """Return what ``payload`` does not say of ``wanted``: ``wanted - decompress(payload)``.

    Error feedback as in Seide et al. 2014 and Stich et al. 2018 (e in the papers): the next
    round compresses ``delta + residual``, so whatever is learned arrives sooner or later.
    """
    return wanted - decompress(payload, tensors, context=context)
