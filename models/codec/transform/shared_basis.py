"""What both sides know beforehand: directions and column sizes of an earlier delta. Pure.

A device's deltas of different rounds lie near one subspace. From a context, a vector that sender
and receiver hold bit for bit (an earlier payload as decoded, or the last release minus the one
before), both derive the same basis of its row space, and the next payload says little more than
coordinates in it.

An SVD of floating-point numbers has other signs, and for close singular values other vectors, on
other machines. So this is subspace iteration over whole numbers: every sum is one of integers
below 2**53, and square root and division of single numbers round as IEEE 754 says.
"""

import zlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

from models.codec.transform.entropy import Doubles, Integers
from models.codec.transform.matrices import Grid, Group, forward_whole
from models.task.params import Tensor, Vector

__all__ = ["UNIT_BITS", "Context", "Held", "SharedBasis", "context_digest", "shared_basis"]

MAX_DIRECTIONS = 16
UNIT_BITS = 12  # a direction of length 1 is whole multiples of 2**-12
_MATRIX_BITS = 10
_GRAM_BITS = 20
_ITERATIONS = 4
_ROWS, _COLUMNS = 16, 256  # worked on at once: a whole copy in float64 is not affordable
_SCALES = (16, 4096)  # bounds of a column's relative size, in 1/256
_GRIDS_HELD = 2  # of a group: senders choose, and a basis may be twice as large as its group


class SharedBasis(NamedTuple):
    """What the context says of the rows of one group, on one grid."""

    directions: Doubles  # (m, columns), whole numbers, orthogonal, of length 2**UNIT_BITS
    scale: Integers  # (columns,), relative sizes in 1/256


class Context:
    """A vector that both sides hold, float32 of shape (d,), and what follows from it.

    Digest and bases are worked out when a payload wants them, once for all payloads that were made
    in this context: for one of 1.3 kB that is most of the work. The vector must not change.
    """

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        self._bases: dict[tuple[int, ...], dict[Grid, SharedBasis | None]] = {}

    @staticmethod
    def of(held: "Held") -> "Context | None":
        """Return ``held`` as a context, whatever form it has."""
        return held if held is None or isinstance(held, Context) else Context(held)

    @cached_property
    def digest(self) -> int:
        """The 32 bits by which a payload names it."""
        return context_digest(self.vector)

    def basis(self, group: Group, grid: Grid) -> SharedBasis | None:
        """Return the basis of ``group`` on ``grid``; None if it is all zero in the vector."""
        places = (at for span in group.spans for at in (span.start, span.stop))
        bases = self._bases.setdefault((group.rows, group.columns, *places), {})
        if grid not in bases:
            if len(bases) == _GRIDS_HELD:
                bases.pop(next(iter(bases)))
            bases[grid] = shared_basis(self.vector, group, grid)
        return bases[grid]


Held = Vector | Context | None  # what one side has of a context


def context_digest(context: Vector) -> int:
    """Return the 32 bits by which both sides name a vector that they share, never 0."""
    return zlib.crc32(np.ascontiguousarray(context, "<f4").tobytes()) or 1


def shared_basis(context: Vector, group: Group, grid: Grid) -> SharedBasis | None:
    """Return the basis of ``group`` in ``context``; None if it is all zero there."""
    matrix = group.take(context)
    largest = float(max(matrix.max(initial=0.0), -matrix.min(initial=0.0)))
    if largest == 0:
        return None
    whole = _whole(matrix, 2.0**_MATRIX_BITS / 2.0 ** int(np.frexp(largest)[1]), grid)
    gram = np.zeros((len(whole), len(whole)))
    sizes = np.zeros(whole.shape[1], np.int64)
    for block in _blocks(whole):  # sums of whole numbers: the order does not matter
        some = whole[:, block].astype(np.float64)
        gram += some @ some.T
        sizes[block] = np.abs(some).sum(axis=0)
    total = max(int(sizes.sum()), 1)
    scale = np.clip(sizes * (256 * sizes.size) // total, *_SCALES)
    left = _leading(gram)
    directions = np.concatenate(
        [left @ whole[:, block].astype(np.float64) for block in _blocks(whole)], axis=1
    )
    return SharedBasis(_orthogonal(directions), scale)


def _whole(matrix: Tensor, unit: float, grid: Grid) -> Tensor:
    """Return ``matrix * unit`` in whole numbers and in frequencies; float32 holds them exactly."""
    whole: Tensor = np.empty(matrix.shape, np.float32)
    for row in range(0, len(matrix), _ROWS):
        some = np.rint(matrix[row : row + _ROWS].astype(np.float64) * unit)
        whole[row : row + _ROWS] = forward_whole(some, grid)
    return whole


def _blocks(whole: Tensor) -> list[slice]:
    return [slice(start, start + _COLUMNS) for start in range(0, whole.shape[1], _COLUMNS)]


def _leading(gram: Doubles) -> Doubles:
    """Return the leading left directions, (m, rows), whole numbers."""
    shift = max(0, int(np.frexp(gram.max())[1]) - _GRAM_BITS)
    gram = np.rint(gram * 2.0**-shift)
    count = min(MAX_DIRECTIONS, len(gram))
    first = np.argsort(-np.diagonal(gram), kind="stable")[:count]
    found = _orthogonal(gram[first])
    for _ in range(_ITERATIONS):
        found = _orthogonal(found @ gram)
    return found


def _orthogonal(rows: Doubles) -> Doubles:
    """Return whole rows of length 2**UNIT_BITS that span what ``rows`` span, in their order.

    Gram-Schmidt, twice; of a row that lies within the others to 1/16, nothing is kept.
    """
    found: list[Doubles] = []
    for row in rows:
        rest = _unit(row)
        for _ in range(2):
            for other in found:
                share = float(other @ rest) * 2.0 ** (-2 * UNIT_BITS)
                rest = rest - np.rint(other * share)
            if float(rest @ rest) < 2.0 ** (2 * UNIT_BITS - 8):
                break
            rest = _unit(rest)
        else:
            found.append(rest)
    return np.array(found).reshape(len(found), rows.shape[1])


def _unit(row: Doubles) -> Doubles:
    """Return ``row``, whole numbers, at length 2**UNIT_BITS; zeros stay zeros."""
    shift = max(0, int(np.frexp(np.abs(row).max(initial=0.0))[1]) - 16)
    small = np.rint(row * 2.0**-shift)  # so that the sum of a million squares is exact
    length = float(np.sqrt(small @ small))
    unit: Doubles = np.rint(small * (2.0**UNIT_BITS / max(length, 1.0)))
    return unit
