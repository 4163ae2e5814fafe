"""A matrix as a product of two coded factors. Pure.

What local training changes in a dense layer is a sum of few outer products. The left factor is
coded first; the right one is fitted by least squares to the left factor *as the decoder will see
it*, so that its errors are made up for, and then coded with the same step: with unit left
columns, an error in either factor costs the same in the product.
"""

from typing import NamedTuple

import numpy as np

from models.codec.transform.entropy import Doubles, Rows
from models.codec.transform.matrices import Grid, from_frequencies, to_frequencies
from models.codec.transform.quantize import MatrixReader, Offsets, Wholes, Writer, reconstruct
from models.codec.transform.shared_basis import UNIT_BITS, SharedBasis
from models.errors import PayloadError
from models.task.params import Tensor

__all__ = [
    "MAX_RANK",
    "Fit",
    "LowRankPart",
    "Spectrum",
    "rank_worth_trying",
    "read_low_rank",
    "spectrum_of",
    "unit_rows",
    "write_low_rank",
]

MAX_RANK = 256
FINER_BITS = 8  # more of a fraction in the right factor, so that its rounding does not show
COEFFICIENT_BITS = 6.5  # what a nonzero coefficient costs at least, at low rates
THRESHOLD = 0.2  # singular values below this many expected errors of a row are not tried


class Spectrum(NamedTuple):
    """The left singular vectors of a matrix (in columns), and the singular values, descending."""

    vectors: Doubles
    values: Doubles


class Fit(NamedTuple):
    """A coded matrix: who wrote it, and its error in squared steps (offsets not used yet)."""

    writer: Writer
    error: float
    rank: int = 0  # of two factors; 0: another form

    def cost(self, price: float) -> float:
        """Return what this is to be kept small, against other ways to go on from one point."""
        return self.error + price * self.writer.bits


def spectrum_of(matrix: Tensor) -> Spectrum:
    """Return the singular vectors on the side of the rows, which are not more than the columns."""
    squares, vectors = np.linalg.eigh((matrix @ matrix.T).astype(np.float64))
    return Spectrum(vectors[:, ::-1], np.sqrt(np.maximum(squares[::-1], 0)))


def rank_worth_trying(
    matrix: Tensor, spectrum: Spectrum, grid: Grid, step: float, price: float
) -> int:
    """Return the rank to begin with: rather a little too high.

    A row pays for itself if its large coefficients, at a few bits each, take away more error
    than those bits and its left column cost.
    """
    floor = THRESHOLD * step * np.sqrt(matrix.shape[1])
    rank = min(MAX_RANK, int((spectrum.values > floor).sum()))
    left = np.abs(spectrum.vectors[:, :rank]) * (spectrum.values[:rank] / step)
    right = to_frequencies(_product(spectrum.vectors[:, :rank].T, matrix), grid) / step
    gains = np.maximum(right * right - COEFFICIENT_BITS * price, 0).sum(axis=1)
    costs = price * np.log2(1 + left).sum(axis=0)
    paying = np.flatnonzero(gains > costs)
    return int(paying[-1]) + 1 if paying.size else 0


def write_low_rank(
    before: Writer,
    matrix: Tensor,
    energy: float,
    spectrum: Spectrum,
    grid: Grid,
    step: float,
    price: float,
    basis: SharedBasis | None = None,
    most: int = MAX_RANK,
) -> Fit | None:
    """Append ``matrix`` as two factors of the rank that is worth its bits; None if none is.

    Ranks above ``most`` are not tried.
    """
    rank = min(most, rank_worth_trying(matrix, spectrum, grid, step, price))
    for last in (False, False, True):
        if rank == 0:
            return None
        writer = before.fork()
        writer.put_uniform(rank - 1, MAX_RANK)
        wanted = (spectrum.vectors[:, :rank] * (spectrum.values[:rank] / step)).T
        rows = Rows(writer.model, matrix.shape[0], local=False)
        left = writer.matrix(wanted, price, rows, centered=False)
        some = np.flatnonzero(~left.quantized.any(axis=1))
        if some.size:  # from the first column that vanished on, there is nothing to stand on
            rank = int(some[0])
            continue
        unit = unit_rows(left.quantized) * 2.0**-UNIT_BITS
        overlap = unit @ unit.T
        right = np.linalg.solve(overlap, _product(unit, matrix)).astype(np.float64) / step
        fitted = to_frequencies(right, grid)
        missed, row_bits = _write_right(writer, fitted, price, basis)
        row_bits = row_bits + left.row_bits
        each = (fitted**2).sum(axis=1) - (missed**2).sum(axis=1)
        gains = np.cumsum(each - price * row_bits)
        best = int(gains.argmax()) + 1 if gains.max() > 0 else 0
        if best == rank or last:
            outside = energy / step**2 - float((right * (overlap @ right)).sum())
            error = outside + float((missed * (overlap @ missed)).sum())
            return Fit(writer, error, rank)
        rank = best
    return None


def _product(rows: Doubles, matrix: Tensor) -> Doubles:
    """Return ``rows @ matrix``, in float32: a copy of the matrix in float64 is not affordable."""
    product: Doubles = (rows.astype(np.float32) @ matrix).astype(np.float64)
    return product


def _write_right(
    writer: Writer, fitted: Doubles, price: float, basis: SharedBasis | None
) -> tuple[Doubles, Doubles]:
    """Append the right factor; return what it misses and its bits per row."""
    if basis is None:
        coded = writer.matrix(fitted, price, Rows(writer.model, fitted.shape[1]))
        return fitted - coded.quantized, coded.row_bits
    inside = fitted @ basis.directions.T * 2.0**-UNIT_BITS
    rows = Rows(writer.model, len(basis.directions), local=False)
    coordinates = writer.matrix(inside, price, rows, centered=False)
    outside = fitted - coordinates.quantized @ basis.directions * 2.0**-UNIT_BITS
    rows = Rows(writer.model, fitted.shape[1], scale=basis.scale)
    coded = writer.matrix(outside, price, rows)
    return outside - coded.quantized, coordinates.row_bits + coded.row_bits


class LowRankPart(NamedTuple):
    """The two factors as read; whole once the reader has finished."""

    left: Wholes
    right: Wholes
    coordinates: Wholes | None
    basis: SharedBasis | None

    def whole(self, grid: Grid, offsets: Offsets) -> tuple[Doubles, int]:
        """Return the product in whole numbers, and how many bits of them are a fraction."""
        fixed = reconstruct(self.right, offsets) * 2.0**FINER_BITS
        if self.basis is not None and self.coordinates is not None:
            inside = reconstruct(self.coordinates, Offsets()) @ self.basis.directions
            fixed += np.rint(inside * 2.0 ** (FINER_BITS - UNIT_BITS))
        product = unit_rows(self.left).T @ from_frequencies(fixed, grid)
        return product, UNIT_BITS + FINER_BITS


def read_low_rank(
    reader: MatrixReader, rows: int, columns: int, basis: SharedBasis | None = None
) -> LowRankPart:
    """Read what `write_low_rank` appended."""
    rank = 1 + reader.decoder.take_uniform(MAX_RANK)
    if rank > rows:
        raise PayloadError(f"payload: rank {rank} of a matrix with {rows} rows")
    left = reader.matrix(rank, rows, Rows(reader.model, rows, local=False))
    if basis is None:
        right = reader.matrix(rank, columns, Rows(reader.model, columns))
        return LowRankPart(left, right, None, None)
    directions = len(basis.directions)
    coordinates = reader.matrix(rank, directions, Rows(reader.model, directions, local=False))
    right = reader.matrix(rank, columns, Rows(reader.model, columns, scale=basis.scale))
    return LowRankPart(left, right, coordinates, basis)


def unit_rows(quantized: Wholes) -> Doubles:
    """Return each row at length 2**UNIT_BITS, in whole numbers: the same on every machine.

    The sum of squares is one of integers; square root and division round as IEEE 754 says.
    """
    values = quantized.astype(np.float64)
    lengths = np.sqrt((values * values).sum(axis=1))
    unit: Doubles = np.rint(values * (2.0**UNIT_BITS) / np.maximum(lengths, 1.0)[:, None])
    return unit
