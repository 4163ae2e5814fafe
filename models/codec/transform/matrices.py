"""A flat delta as matrices, and the cosine transform of their columns. Pure.

Weights behind a flattened image, and convolution kernels, have columns that lie on a grid;
what training changes is smooth over that grid, so a two-dimensional cosine transform of each
cell gathers it in few coefficients.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from models.codec.transform.entropy import Doubles
from models.task.params import Tensor, Vector
from models.task.spec import TensorSpec

__all__ = [
    "TRANSFORM_BITS",
    "Grid",
    "Group",
    "cosines",
    "forward_whole",
    "from_frequencies",
    "groups_of",
    "to_frequencies",
    "whole_cosines",
]

SMALL = 1000  # values; smaller tensors share one row
MIN_SIDE = 4  # a matrix with fewer rows or columns has no rank to exploit
MAX_GRID = 32
TRANSFORM_BITS = 12

Grid = tuple[int, int]


class Group(NamedTuple):
    """Some of the flat vector, seen as a matrix of ``rows`` x ``columns``."""

    spans: tuple[slice, ...]  # of the flat vector
    rows: int
    columns: int
    transposed: bool  # the tensor has more rows than columns: coded on its side
    grids: tuple[Grid, ...]  # that the columns may form; the first is (1, 1)
    tensors: tuple[int, ...]  # their numbers in the spec

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def take(self, vector: Vector) -> Tensor:
        """Return the matrix; a view of ``vector`` if it lies in one piece."""
        parts = [vector[span] for span in self.spans]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.transposed:
            return flat.reshape(self.columns, self.rows).T
        return flat.reshape(self.rows, self.columns)

    def put(self, vector: Vector, matrix: Tensor) -> None:
        """Write a matrix of this group into its place in ``vector``."""
        flat = (matrix.T if self.transposed else matrix).reshape(-1)
        at = 0
        for span in self.spans:
            size = span.stop - span.start
            vector[span] = flat[at : at + size]
            at += size


def groups_of(tensors: Sequence[TensorSpec]) -> tuple[Group, ...]:
    """Return all values of ``tensors`` as groups: the small ones as one row, then each matrix."""
    small: list[slice] = []
    small_numbers: list[int] = []
    matrices: list[Group] = []
    start = 0
    for number, tensor in enumerate(tensors):
        span = slice(start, start + tensor.size)
        start += tensor.size
        rows = tensor.shape[0] if tensor.shape else 1
        columns = tensor.size // rows if rows else 0
        if tensor.size < SMALL or min(rows, columns) < MIN_SIDE:
            if tensor.size:
                small.append(span)
                small_numbers.append(number)
            continue
        on_side = rows > columns
        grids: tuple[Grid, ...] = ((1, 1),) if on_side else _grids(tensor.shape, columns)
        sides = (columns, rows) if on_side else (rows, columns)
        matrices.append(Group((span,), *sides, on_side, grids, (number,)))
    size = sum(span.stop - span.start for span in small)
    rest = [Group(tuple(small), 1, size, False, ((1, 1),), tuple(small_numbers))] if size else []
    return (*rest, *matrices)


def to_frequencies(matrix: Doubles, grid: Grid) -> Doubles:
    """Return the orthonormal cosine transform of every cell of ``grid`` columns."""
    if grid == (1, 1):
        return matrix
    cells = matrix.reshape(-1, grid[1]) @ cosines(grid[1]).T
    return _down(cells, grid, cosines(grid[0])).reshape(matrix.shape)


def forward_whole(whole: Doubles, grid: Grid) -> Doubles:
    """Return `to_frequencies` of whole numbers, as whole numbers: exact everywhere."""
    if grid == (1, 1):
        return whole
    cells = _scaled_back(whole.reshape(-1, grid[1]) @ whole_cosines(grid[1]).T)
    return _scaled_back(_down(cells, grid, whole_cosines(grid[0]))).reshape(whole.shape)


def from_frequencies(fixed: Doubles, grid: Grid) -> Doubles:
    """Return the inverse transform of whole numbers, as whole numbers: exact everywhere.

    First along the rows of each cell, then along its columns, rounded after each. All products
    and sums stay below 2**53, so float64 adds them without rounding.
    """
    if grid == (1, 1):
        return fixed
    cells = _scaled_back(fixed.reshape(-1, grid[1]) @ whole_cosines(grid[1]))
    return _scaled_back(_down(cells, grid, whole_cosines(grid[0]).T)).reshape(fixed.shape)


@lru_cache(maxsize=2 * MAX_GRID)
def whole_cosines(side: int) -> Doubles:
    """Return the DCT-II of ``side`` points in whole multiples of 2**-TRANSFORM_BITS."""
    whole: Doubles = np.rint(cosines(side) * 2.0**TRANSFORM_BITS)
    return whole


def _down(cells: Doubles, grid: Grid, waves: Doubles) -> Doubles:
    """Return ``waves`` times every cell, as one product of two matrices."""
    if grid[0] == 1:
        flat: Doubles = cells * waves[0, 0]
        return flat
    columns = cells.reshape(-1, *grid).transpose(0, 2, 1).reshape(-1, grid[0])
    product = (columns @ waves.T).reshape(-1, grid[1], grid[0])
    return np.ascontiguousarray(product.transpose(0, 2, 1))


def _scaled_back(product: Doubles) -> Doubles:
    product *= 2.0**-TRANSFORM_BITS
    return np.rint(product, out=product)


def _grids(shape: tuple[int, ...], columns: int) -> tuple[Grid, ...]:
    if len(shape) > 2:
        kernel = (math.prod(shape[2:-1]), shape[-1])
        return ((1, 1), kernel) if 1 < max(kernel) <= MAX_GRID else ((1, 1),)
    sides = range(2, MAX_GRID + 1)
    squares = [(side, side) for side in sides if columns % (side * side) == 0]
    lines = [(1, side) for side in sides if side > 3 and columns % side == 0]
    return ((1, 1), *squares, *lines)


@lru_cache(maxsize=2 * MAX_GRID)
def cosines(size: int) -> Doubles:
    """Return the orthonormal DCT-II, frequencies down the rows."""
    places = np.arange(size)
    waves = np.cos(np.pi * (places[None] + 0.5) * places[:, None] / size)
    return np.asarray(waves / np.linalg.norm(waves, axis=1, keepdims=True))
