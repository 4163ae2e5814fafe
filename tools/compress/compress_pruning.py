"""Few weights that are not zero: what a payload of given bytes can hold, during training.

`Pruning` is a constraint for `compress_training.descend`. It keeps the largest weights,
ever fewer of them (Zhu, Gupta, arXiv:1710.01878: the cubic schedule), the same yardstick for all
tensors; what is zero once stays zero. How many the bytes hold is measured on the way, by making
the payload.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.codec.transform.frame import draft_frame, prepare
from models.codec.transform.quantize import step_code, step_of
from models.errors import UsageError
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["PRUNED", "Pruning", "kept_share"]

PRUNED = 0.5  # of all steps: from here on as few weights are kept as the bytes allow
FINENESS = 0.2  # a step of the payload's grid, in root mean squares of what is kept
_RENEWALS = 400  # of the choice of weights, until then
_MEASURED = (0.3, 0.4, 0.45, 0.48, PRUNED)  # when the payload is really made
_BITS = 8.5  # a kept weight, until the first measurement
_FINEST, _COARSEST = 0.15, 0.8  # steps that are tried in the end
_COARSER = 1.08  # from one to the next
_EXACT = 1e-6  # price of a bit: every weight goes to the next point of the grid


class Pruning:
    """Sets the weights that are not kept to zero, and writes the others down."""

    def __init__(self, specs: Sequence[TensorSpec], most_bytes: int) -> None:
        self._specs = tuple(specs)
        self._size = sum(tensor.size for tensor in specs)
        self._bytes = most_bytes
        self._least = min(self._size, max(1, round(8 * most_bytes / _BITS)))  # kept in the end
        self._kept: npt.NDArray[np.int64] = np.arange(self._size)
        self._renewed = -1.0
        self._to_measure = list(_MEASURED)

    @property
    def kept(self) -> int:
        """How many weights are not zero."""
        return int(self._kept.size)

    def __call__(self, weights: Vector, done: float) -> Vector:
        """Prune ``weights`` for when ``done`` of all steps lie behind; return them."""
        due = self._renewed + 1 / _RENEWALS
        if done >= due and self._to_measure:
            self._renewed = done
            while self._to_measure and done >= self._to_measure[0]:
                self._to_measure.pop(0)
                self._measure(weights)
            self._choose(weights, round(kept_share(self._least / self._size, done) * self._size))
        weights[:] = self._pruned(weights)
        return weights

    def fit(self, weights: Vector) -> bytes:
        """Return the payload with the finest grid for which the bytes suffice.

        Raises:
            UsageError: not even one weight fits.
        """
        write = self._writer(weights)
        while (size := len(write(_COARSEST))) > self._bytes:
            if self.kept == 1:
                raise UsageError(f"{self._bytes} bytes hold no weight of this model")
            self._choose(weights, int(0.98 * self.kept * self._bytes / size))
            write = self._writer(weights)
        fineness = _FINEST
        while len(frame := write(fineness)) > self._bytes:
            fineness = min(fineness * _COARSER, _COARSEST)
        return frame

    def _writer(self, weights: Vector) -> Callable[[float], bytes]:
        """Return what writes the payload of what is kept of ``weights`` at a fineness."""
        kept = weights[self._kept].astype(np.float64)
        root = float(np.sqrt(np.square(kept).mean()))
        prepared = prepare(self._pruned(weights), self._specs)
        groups = tuple(one._replace(spectrum=None) for one in prepared.groups)  # no factors
        plain = prepared._replace(groups=groups)

        def write(fineness: float) -> bytes:
            step = step_of(step_code(max(root * fineness, 1e-30)))
            return draft_frame(plain, step, _EXACT).finish()

        return write

    def _measure(self, weights: Vector) -> None:
        """Correct how many weights the bytes are expected to hold."""
        held = round(self.kept * self._bytes / len(self._writer(weights)(FINENESS)))
        self._least = max(1, min(self._size, held))

    def _choose(self, weights: Vector, count: int) -> None:
        """Keep ``count`` of the weights that are kept, the largest."""
        size = np.abs(weights[self._kept])
        count = max(1, min(count, size.size))
        self._kept = np.sort(self._kept[np.argpartition(size, size.size - count)[-count:]])

    def _pruned(self, weights: Vector) -> Vector:
        point = np.zeros_like(weights)
        point[self._kept] = weights[self._kept]
        return point


def kept_share(least: float, done: float) -> float:
    """Return the share of weights that is kept: from 1 down to ``least``, as a cubic."""
    left = max(0.0, 1 - done / PRUNED)
    return least + (1 - least) * left**3
