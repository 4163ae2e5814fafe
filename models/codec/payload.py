"""A delta to few bytes and back: the one door to the codec. Pure.

A payload is a frame, whose first byte says which, or a frame in an npz file (for files and for
everyone else; 176 bytes more). docs/payload.md has the format. Whatever bytes come, they decode
to a finite delta or a PayloadError, within memory and time that the spec bounds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.codec.budget import Budget, frame_within
from models.codec.sparse import coreset_frame
from models.codec.sparse.coreset_frame import coreset_of, decode_coreset, encode_coreset
from models.codec.transform import frame
from models.codec.transform.frame import decode_frame, prepare
from models.codec.transform.shared_basis import Context, Held
from models.errors import PayloadError
from models.protocol.manifest import CodecPlan
from models.protocol.npz import read_arrays, write_array
from models.protocol.update import IN_CONTEXT
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["Compressed", "compress", "compressed", "decompress", "frame_of", "is_npz", "to_npz"]

MEMBER = "z"  # of the npz form
NOTHING = bytes([coreset_frame.TAG])  # the payload of a delta of zeros

_FRAME_BYTES_PER_VALUE = 8  # no sane payload is longer
_FRAME_ALLOWANCE = 4096


class Compressed(NamedTuple):
    """What goes out, and what to remember for the next time."""

    payload: bytes
    step: float | None  # the ``hint`` for this sender's next delta; None: keep the one you have


def compress(
    wanted: Vector,
    tensors: Sequence[TensorSpec],
    plan: CodecPlan | Budget,
    *,
    context: Held = None,
    importance: Sequence[float] | None = None,
) -> bytes:
    """Return the payload of `compressed`, for who sends but once."""
    return compressed(wanted, tensors, plan, context=context, importance=importance).payload


def compressed(
    wanted: Vector,
    tensors: Sequence[TensorSpec],
    plan: CodecPlan | Budget,
    *,
    context: Held = None,
    importance: Sequence[float] | None = None,
    hint: float | None = None,
) -> Compressed:
    """Return ``wanted``, float32 of shape (d,), as a payload of the size that ``plan`` allows.

    It is lossy: what is missing is owed (`models.codec.feedback`). ``context`` is a
    vector of the same shape that the receiver holds too, bit for bit, such as the last payload
    of this sender that it folded, as decoded; `models.protocol.update.context_in` tells which.
    ``importance``: see `models.codec.transform.frame.prepare`. ``hint`` is the ``step`` that
    came with the last payload of this sender; with it, encoding takes about a fifth of the time,
    and the payload is up to a quarter shorter than ``plan`` allows, never longer, or its NMSE up
    to a tenth off.

    Raises:
        ValueError: ``wanted`` is not the vector of ``tensors``, or not finite; ``hint`` is not a
            positive finite number.
    """
    size = sum(tensor.size for tensor in tensors)
    if wanted.dtype != np.float32 or wanted.shape != (size,):
        raise ValueError(f"{wanted.dtype} {wanted.shape}, float32 ({size},) was expected")
    held = Context.of(context)
    if held and (held.vector.dtype != np.float32 or held.vector.shape != (size,)):
        raise ValueError(f"context: {held.vector.dtype} {held.vector.shape}, not float32 ({size},)")
    if not np.isfinite(wanted).all():
        raise ValueError("the delta is not finite: training diverged, there is nothing to send")
    if isinstance(plan, CodecPlan) and plan.method == "coreset":
        return Compressed(encode_coreset(coreset_of(wanted, plan.keep, plan.centers), size), None)
    budget = plan if isinstance(plan, Budget) else _budget_of(plan)
    delta = prepare(wanted, tensors, context=held, importance=importance)
    found = frame_within(delta, budget, hint=hint)
    return Compressed(NOTHING, None) if found is None else Compressed(found.frame, found.step)


def decompress(payload: bytes, tensors: Sequence[TensorSpec], *, context: Held = None) -> Vector:
    """Return the delta that ``payload`` stands for, float32 of shape (d,), finite.

    Raises:
        PayloadError: it is no payload for ``tensors``, or was made in another context.
    """
    size = sum(tensor.size for tensor in tensors)
    found = frame_of(payload, size)
    tag = found[0] if found else None
    if tag == coreset_frame.TAG:
        return decode_coreset(found, size)
    if tag in (frame.TAG, IN_CONTEXT):
        return decode_frame(found, tensors, context)
    raise PayloadError("payload: not one of ours, or of a version that is not known here")


def is_npz(payload: bytes) -> bool:
    """Whether ``payload`` is in its npz form, not a bare frame."""
    return payload[:2] == b"PK"


def to_npz(frame: bytes) -> bytes:
    """Return ``frame`` as an npz file: what ``numpy.load(..., allow_pickle=False)`` opens."""
    return write_array(MEMBER, np.frombuffer(frame, np.uint8))


def frame_of(payload: bytes, size: int) -> bytes:
    """Return the bare frame of a payload of ``size`` values, whatever its form.

    Raises:
        PayloadError: an npz file without a frame, or with one that is far too long.
    """
    if not is_npz(payload):
        return payload
    arrays = read_arrays(payload, max_bytes=_FRAME_BYTES_PER_VALUE * size + _FRAME_ALLOWANCE)
    found = arrays.get(MEMBER)
    if len(arrays) != 1 or found is None or found.dtype != np.uint8 or found.ndim != 1:
        raise PayloadError(f"npz: not a payload, which is one uint8 vector named {MEMBER!r}")
    return found.tobytes()


def _budget_of(plan: CodecPlan) -> Budget:
    return Budget(bytes=plan.bytes) if plan.bytes else Budget(nmse=plan.nmse)
