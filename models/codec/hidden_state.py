"""Releases as patches that never drift: sender and receivers advance one shared state. Pure.

The server wants to publish ``x_new``, but says only ``Q(x_new - x)``; both sides add exactly that
to ``x``. What a patch leaves out is still in the next difference, so errors do not add up (QAFeL,
arXiv:2308.00263, calls x the hidden state). Decoding is exact and the addition is one float32
operation per value: server and devices hold the same bits, which `state_digest` proves.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.codec.budget import Budget
from models.codec.chain import compress, decompress
from models.errors import PayloadError
from models.params import Vector
from models.payload.manifest import CodecPlan
from models.spec import TensorSpec


class Patch(NamedTuple):
    """A payload that takes one state to the next, and that next state."""

    payload: bytes
    state: Vector


def make_patch(
    state: Vector, wanted: Vector, tensors: Sequence[TensorSpec], plan: CodecPlan | Budget
) -> Patch:
    """Return the patch from ``state`` as near to ``wanted`` as ``plan`` allows.

    A key frame is the patch from zeros.

    Raises:
        ValueError: ``wanted`` is not finite or not of the shape of ``tensors``.
    """
    payload = compress((wanted - state).astype(np.float32), tensors, plan)
    return Patch(payload, apply_patch(state, payload, tensors))


def apply_patch(state: Vector, payload: bytes, tensors: Sequence[TensorSpec]) -> Vector:
    """Return the state after ``payload``, the same bits as `make_patch` had.

    Raises:
        PayloadError: it is no payload for ``tensors``, or leads out of float32.
    """
    with np.errstate(over="ignore"):
        advanced: Vector = state + decompress(payload, tensors)
    if not np.isfinite(advanced).all():
        raise PayloadError("patch: it leads to values that are not finite")
    return advanced


def state_digest(state: Vector) -> str:
    """Return the sha256 of a state, lower-case hex."""
    return hashlib.sha256(np.ascontiguousarray(state, "<f4").tobytes()).hexdigest()
