"""Few weights of few different values: what a payload of given bytes can hold, during training.

`Pruning` is a constraint for `tools.compress_training.descend`. It keeps the weights that are
worth their bits, ever fewer of them (Zhu, Gupta, arXiv:1710.01878: the cubic schedule), then puts
them on the uniform grid that the payload codes. Weights that are not kept go on learning and may
come back (dynamic network surgery: Guo, Yao, Chen, arXiv:1608.04493). What the payload really
takes is measured on the way, and the number of kept weights follows it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.codec.frame import draft_frame, prepare
from models.codec.matrices import Group, groups_of
from models.codec.quantize import step_code, step_of
from models.errors import UsageError
from models.params import Vector
from models.spec import TensorSpec

Mask = npt.NDArray[np.bool_]

PRUNED = 0.35  # of all steps: from here on as few weights are kept as the bytes allow
GRIDDED = 0.4  # and from here on they are on the grid
SETTLED = 0.8  # the last change of what is kept and of the grid
COARSENESS = 0.65  # a step of the grid, in root mean squares of what is kept
_RENEWALS = 400  # of the choice of weights, over the whole run
_MEASURED = (0.4, 0.5, 0.6, 0.7, 0.75, SETTLED)  # when the payload is really made
_BITS = 10.0  # a kept weight, until the first measurement
_VALUE_BITS = 2.5  # of those, for sign and magnitude
_ROOM = 0.985  # of the bytes are aimed at
_TRUST = 0.5  # expected weights that the average density of a column counts for: as the coder
_EXACT = 1e-6  # price of a bit: every weight stays where it is on the grid


class Pruning:
    """Turns moving weights into what would be sent."""

    def __init__(
        self, specs: Sequence[TensorSpec], most_bytes: int, *, coarseness: float = COARSENESS
    ) -> None:
        self._specs = tuple(specs)
        self._groups = groups_of(specs)
        self._size = sum(tensor.size for tensor in specs)
        self._bytes = most_bytes
        self._coarseness = coarseness
        self._least = min(self._size, max(1, round(8 * most_bytes / _BITS)))  # kept in the end
        self._kept: npt.NDArray[np.int64] = np.arange(self._size)
        self._renewed = -1.0
        self._to_measure = list(_MEASURED)
        self.step: float | None = None  # of the grid

    def __call__(self, weights: Vector, done: float) -> Vector:
        """Return ``weights`` as they would be sent when ``done`` of all steps lie behind."""
        if done <= SETTLED and done >= self._renewed + 1 / _RENEWALS:
            self._renew(weights, done)
        return self.constrained(weights)

    def constrained(self, weights: Vector) -> Vector:
        """Return ``weights`` under the present choice and grid."""
        values = weights[self._kept]
        if self.step is not None:
            whole = np.maximum(np.rint(np.abs(values) / self.step), 1.0)
            values = (np.sign(values) * whole * self.step).astype(np.float32)
        point = np.zeros_like(weights)
        point[self._kept] = values
        return point

    def frame(self, weights: Vector) -> bytes:
        """Return the payload of `constrained` weights, which decodes to exactly these."""
        if self.step is None:
            raise ValueError("there is no grid yet")
        prepared = prepare(self.constrained(weights), self._specs)
        plain = tuple(one._replace(spectrum=None) for one in prepared.groups)  # no factors
        return draft_frame(prepared._replace(groups=plain), self.step, _EXACT).finish()

    def fit(self, weights: Vector) -> bytes:
        """Return `frame`; while it is too long, the least of what is kept goes.

        Raises:
            UsageError: not even one weight fits.
        """
        if self._to_measure:  # so few steps that training ended before
            self._renew(weights, SETTLED)
        frame = self.frame(weights)
        while len(frame) > self._bytes:
            if self._kept.size < 2:
                raise UsageError(f"{self._bytes} bytes hold no weight of this model")
            self.drop(weights, max(1, int((len(frame) - self._bytes) * 8 / _BITS)))
            frame = self.frame(weights)
        return frame

    def drop(self, weights: Vector, count: int) -> None:
        """Keep ``count`` weights fewer: without those that are worth the least."""
        worth = _worth(weights, self._kept, self._groups)[self._kept]
        best = np.argpartition(worth, min(count, worth.size - 1))[count:]
        self._kept = np.sort(self._kept[best])

    def _renew(self, weights: Vector, done: float) -> None:
        self._renewed = done
        self._choose(weights, done)
        while self._to_measure and done >= self._to_measure[0]:
            self._to_measure.pop(0)
            size = len(self.frame(weights))
            if size > self._bytes or size < _ROOM * _ROOM * self._bytes:
                self._least = max(1, round(self._kept.size * _ROOM * self._bytes / size))
                self._choose(weights, done)

    def _choose(self, weights: Vector, done: float) -> None:
        share = kept_share(self._least / self._size, done)
        count = max(1, round(share * self._size))
        worth = _worth(weights, self._kept, self._groups)
        found = np.argpartition(worth, self._size - count)[self._size - count :]
        self._kept = np.sort(found)
        if done >= GRIDDED:
            values = weights[self._kept].astype(np.float64)
            root = float(np.sqrt(np.square(values).mean()))
            self.step = step_of(step_code(max(root * self._coarseness, 1e-30)))


def kept_share(least: float, done: float) -> float:
    """Return the share of weights that is kept: from 1 down to ``least``, as a cubic."""
    left = max(0.0, 1 - done / PRUNED)
    return least + (1 - least) * left**3


def _worth(weights: Vector, kept: npt.NDArray[np.int64], groups: Sequence[Group]) -> Vector:
    """Return squared weights over the bits that each would take: as the Lagrangian has it.

    A place costs less in rows and columns where much is kept already.
    """
    flags = np.zeros(weights.size, np.float32)
    flags[kept] = 1
    worth = np.empty_like(weights)
    for group in groups:
        matrix = group.take(flags)
        density = max(float(matrix.mean()), 1e-6)
        likely = np.full(matrix.shape, density, np.float32)
        if group.rows > 1:
            rows = (matrix.sum(axis=1) + _TRUST) / (group.columns * density + _TRUST)
            columns = (matrix.sum(axis=0) + _TRUST) / (group.rows * density + _TRUST)
            likely *= np.outer(rows, columns)
        bits = _VALUE_BITS - np.log2(np.clip(likely, 1e-6, 1.0))
        group.put(worth, (np.square(group.take(weights)) / bits).astype(np.float32))
    return worth
