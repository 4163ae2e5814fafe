"""Weights as the payload gives them back, during training: the codec in the loop."""

from collections.abc import Sequence

import numpy as np

from models.codec.budget import Budget
from models.codec.payload import compress, decompress
from models.codec.transform.frame import draft_frame, prepare, read_frame
from models.errors import PayloadError, UsageError
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["Recoding"]

_RENEWALS = 20  # of the payload, over the whole run
_CAUTION = 0.4  # log step over log bytes: what a step too fine or too coarse is corrected by


class Recoding:
    """A constraint for `tools.compress.compress_training.descend`.

    The weights are coded anew from time to time; in between, what coding them changed is added to
    the moving weights, so that the gradient is taken where the receiver will be.
    """

    def __init__(self, specs: Sequence[TensorSpec], most_bytes: int, weights: Vector) -> None:
        self._specs = tuple(specs)
        self._bytes = most_bytes
        first = compress(weights, specs, Budget(bytes=most_bytes))
        try:
            self._step = read_frame(first, specs).step
        except PayloadError:
            raise UsageError(f"{most_bytes} bytes hold nothing of this model") from None
        self._missing = decompress(first, specs) - weights
        self._next = 1 / _RENEWALS

    def __call__(self, weights: Vector, done: float) -> Vector:
        """Return ``weights`` about as they would arrive when ``done`` of all steps lie behind."""
        if done >= self._next:
            self._next += 1 / _RENEWALS
            frame = draft_frame(prepare(weights, self._specs), self._step).finish()
            self._missing = decompress(frame, self._specs) - weights
            self._step *= (len(frame) / self._bytes) ** _CAUTION
        point: Vector = np.add(weights, self._missing)
        return point

    def fit(self, weights: Vector) -> bytes:
        """Return the payload of ``weights``, as long as allowed."""
        return compress(weights, self._specs, Budget(bytes=self._bytes))
