"""The forms that a group of tensors can take in a payload: small values without state. Pure.

Each stage has a tag, which is its place in STAGES. ``write`` appends a group to a writer and says
what that costs, or None if the stage cannot do it; ``read`` is its inverse. A new form is one
class and one line in STAGES; it needs new golden vectors, since the tag is on the wire.
"""

from typing import NamedTuple, Protocol

import numpy as np

from models.codec.transform.entropy import Doubles, Rows
from models.codec.transform.low_rank import (
    MAX_RANK,
    Fit,
    LowRankPart,
    Spectrum,
    read_low_rank,
    write_low_rank,
)
from models.codec.transform.matrices import Grid, Group
from models.codec.transform.quantize import (
    FRACTION_BITS,
    MatrixReader,
    Offsets,
    Wholes,
    Writer,
    reconstruct,
)
from models.codec.transform.shared_basis import Context, SharedBasis
from models.errors import PayloadError
from models.task.params import Tensor

__all__ = [
    "LowRank",
    "LowRankInContext",
    "Part",
    "Plain",
    "Prepared",
    "Stage",
    "Zero",
    "read_part",
    "write_cheapest",
]


class Prepared(NamedTuple):
    """One group of a delta, with what is worked out once for all step sizes."""

    group: Group
    matrix: Tensor
    energy: float
    importance: float  # of its error against that of other groups; 1 if nothing is known
    spectrum: Spectrum | None  # None: zero, or a single row
    grid: int  # the number in ``group.grids`` of the smoothest
    basis: SharedBasis | None  # on that grid, of the context
    most_rank: int = MAX_RANK  # that is worth trying


class Part(NamedTuple):
    """One group as a payload has it; complete once the reader has finished."""

    group: Group
    stage: str
    grid: Grid = (1, 1)
    plain: Wholes | None = None
    low_rank: LowRankPart | None = None

    def value(self, step: float, offsets: Offsets) -> Tensor:
        """Return the matrix, float32: whole numbers times one power of two and the step."""
        if self.plain is not None:
            fixed, bits = reconstruct(self.plain, offsets), 0
        elif self.low_rank is not None:
            fixed, bits = self.low_rank.whole(self.grid, offsets)
        else:
            return np.zeros((self.group.rows, self.group.columns), np.float32)
        return _rounded(fixed, step * 2.0 ** -(FRACTION_BITS + bits))


class Stage(Protocol):
    """One form of a group."""

    name: str

    def write(self, before: Writer, one: Prepared, step: float, price: float) -> Fit | None:
        """Return a continuation of ``before`` that has this group; None if it has no such form."""

    def read(self, reader: MatrixReader, group: Group, context: Context | None) -> Part:
        """Read one group; PayloadError if it cannot have this form."""


class Zero:
    """Nothing was learned here that is worth a byte."""

    name = "zero"

    def write(self, before: Writer, one: Prepared, step: float, price: float) -> Fit | None:
        return Fit(_begun(before, self), one.energy / step**2)

    def read(self, reader: MatrixReader, group: Group, context: Context | None) -> Part:
        return Part(group, self.name)


class Plain:
    """Each coefficient by itself: sparse, ternary or dense, as the step and the prices have it."""

    name = "plain"

    def write(self, before: Writer, one: Prepared, step: float, price: float) -> Fit | None:
        writer = _begun(before, self)
        rows = Rows(writer.model, one.group.columns)
        return Fit(writer, writer.matrix(one.matrix, price, rows, step=step).error)

    def read(self, reader: MatrixReader, group: Group, context: Context | None) -> Part:
        rows = Rows(reader.model, group.columns)
        plain = reader.matrix(group.rows, group.columns, rows)
        return Part(group, self.name, plain=plain)


class LowRank:
    """Two factors, the right one in frequencies of the grid that its columns form."""

    name = "low rank"

    def write(self, before: Writer, one: Prepared, step: float, price: float) -> Fit | None:
        return self._write(before, one, step, price, None)

    def read(self, reader: MatrixReader, group: Group, context: Context | None) -> Part:
        if group.rows == 1:
            raise PayloadError("payload: a single row as two factors")
        grid = group.grids[reader.decoder.take_uniform(len(group.grids))]
        basis = self._basis(group, grid, context)
        factors = read_low_rank(reader, group.rows, group.columns, basis)
        return Part(group, self.name, grid, low_rank=factors)

    def _basis(self, group: Group, grid: Grid, context: Context | None) -> SharedBasis | None:
        return None

    def _write(
        self, before: Writer, one: Prepared, step: float, price: float, basis: SharedBasis | None
    ) -> Fit | None:
        if one.spectrum is None:
            return None
        begun = _begun(before, self)
        begun.put_uniform(one.grid, len(one.group.grids))
        grid = one.group.grids[one.grid]
        return write_low_rank(
            begun,
            one.matrix,
            one.energy,
            one.spectrum,
            grid,
            step,
            price,
            basis,
            most=one.most_rank,
        )


class LowRankInContext(LowRank):
    """Likewise, the right factor as coordinates in a basis that both sides hold, and the rest."""

    name = "low rank in context"

    def write(self, before: Writer, one: Prepared, step: float, price: float) -> Fit | None:
        return None if one.basis is None else self._write(before, one, step, price, one.basis)

    def _basis(self, group: Group, grid: Grid, context: Context | None) -> SharedBasis | None:
        basis = None if context is None else context.basis(group, grid)
        if basis is None:
            raise PayloadError("payload: a matrix in a context that says nothing of it")
        return basis


STAGES: tuple[Stage, ...] = (Zero(), Plain(), LowRank(), LowRankInContext())

_LEAST_BITS = 5.0  # what a nonzero coefficient costs at least, when there are few


def write_cheapest(before: Writer, one: Prepared, step: float, price: float) -> Fit:
    """Return the continuation of least error plus ``price`` times bits."""
    price = price / one.importance
    zero, plain, low_rank, in_context = STAGES
    best = zero.write(before, one, step, price)
    assert best is not None  # anything can be zero
    if one.energy == 0:
        return best
    fit = (low_rank if one.basis is None else in_context).write(before, one, step, price)
    if fit is not None and fit.cost(price) < best.cost(price):
        best = fit
    if _hope(one.matrix, step, price) + price * before.bits < best.cost(price):
        fit = plain.write(before, one, step, price)
        if fit is not None and fit.cost(price) < best.cost(price):
            best = fit
    return best


def read_part(reader: MatrixReader, group: Group, context: Context | None) -> Part:
    """Read one group, whatever form it has."""
    return STAGES[reader.decoder.take_uniform(len(STAGES))].read(reader, group, context)


def _begun(before: Writer, stage: Stage) -> Writer:
    writer = before.fork()
    writer.put_uniform(STAGES.index(stage), len(STAGES))
    return writer


def _hope(matrix: Tensor, step: float, price: float) -> float:
    """Return what coding ``matrix`` plainly costs at the very least."""
    limit = np.float32(np.sqrt(_LEAST_BITS * price) * step)
    total = 0.0
    for row in matrix:
        total += float(np.square(np.minimum(np.abs(row), limit)).sum(dtype=np.float64))
    return total / step**2


def _rounded(fixed: Doubles, scale: float) -> Tensor:
    most = float(np.finfo(np.float32).max)
    fixed *= scale
    value: Tensor = np.clip(fixed, -most, most, out=fixed).astype(np.float32)
    return value
