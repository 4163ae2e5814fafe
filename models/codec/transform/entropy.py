"""What to expect of each coefficient: the adaptive contexts of the entropy coder. Pure.

A matrix of quantized coefficients is coded row by row. The expected magnitude of each is the
scale of its row (sent) times the scale of its column (learned from the rows above, as the mean of
a gamma-Poisson model) times the local activity (learned within the row: the row is coded in
passes over ever denser lattices, so that neighbors on both sides are known). The expectation
picks one of a few classes; each class learns its own distribution of magnitudes, beginning with a
geometric one.

Encoder and decoder must agree to the last bit, on every machine. Therefore sums are over
integers only, and floating point is limited to single additions, multiplications, divisions and
comparisons of IEEE doubles, element by element; no logarithm, power or dot product is involved.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from models.codec.transform.rans import SCALE, RansDecoder, RansEncoder, Table

__all__ = [
    "CLASSES",
    "ESCAPE",
    "LEVEL_MEANS",
    "SYMBOLS",
    "ContextModel",
    "Doubles",
    "Integers",
    "Rows",
    "level_of",
    "read_level",
    "write_level",
]

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

SYMBOLS = 16  # magnitudes 0..14; 15 is an escape
ESCAPE = SYMBOLS - 1
CLASSES = 26
LEVELS = 32  # of the mean magnitude of a row, half an octave apart; 0: all zero

_SQRT2 = 1.4142135623730951


def _half_octave(number: int) -> float:
    """Return 2**(number / 2), the same double everywhere."""
    whole, half = divmod(number, 2)
    return float((2.0**whole) * (_SQRT2 if half else 1.0))


LEVEL_MEANS = np.array([0.0] + [_half_octave(level - 26) for level in range(1, LEVELS)])
_LEVEL_EDGES = np.array(
    [_half_octave(level - 26) * 1.189207115002721 for level in range(1, LEVELS)]
)
_CLASS_EDGES = np.array([_half_octave(k - 18) for k in range(1, CLASSES)])

_COLUMN_TRUST = 0.5  # how many expected counts the prior of a column's scale is worth
_NEXT_WEIGHT = 0.25  # of the columns to the left and right, in the rows above
_LOCAL_TRUST = 1.0  # likewise, of the local activity
_NEAR, _FAR, _FAR_WEIGHT = 2, 8, 0.6  # reach of the two windows within the row

_PRIOR = 1024  # the geometric prior of a class weighs as much as 16 symbols
_STEP = 64  # one symbol seen
_FORGET = 4000 * _STEP  # halve a class beyond this, so that it follows changes

Choose = Callable[[Integers, Integers, Table], Integers]  # (columns, classes, table) -> symbols


class ContextModel:
    """The distributions of all classes, and of the steps between rows; shared by a whole frame."""

    def __init__(self) -> None:
        self._counts = _geometric_priors()
        self._level_counts = _level_priors()
        self._table: Table | None = None

    def copy(self) -> "ContextModel":
        twin = ContextModel.__new__(ContextModel)
        twin._counts = self._counts.copy()
        twin._level_counts = self._level_counts.copy()
        twin._table = self._table
        return twin

    @property
    def table(self) -> Table:
        """The frequencies of magnitudes, one row per class."""
        if self._table is None:
            self._table = _normalized(self._counts)
        return self._table

    @property
    def level_table(self) -> Table:
        """The frequencies of ``(level - level of the row before) mod LEVELS``."""
        return _normalized(self._level_counts)

    def learn(self, classes: Integers, symbols: Integers) -> None:
        seen = np.bincount(classes * SYMBOLS + symbols, minlength=CLASSES * SYMBOLS)
        self._counts += seen.reshape(CLASSES, SYMBOLS) * _STEP
        tired = self._counts.sum(axis=1) > _FORGET
        if tired.any():
            self._counts[tired] = (self._counts[tired] + 1) >> 1
        self._table = None

    def learn_level(self, step: int) -> None:
        self._level_counts[0, step] += 4 * _STEP


class Rows:
    """Predicts the rows of one matrix from the rows before.

    ``columns`` is their length; ``scale`` is what is known of the columns beforehand (expected
    relative magnitudes in 1/256, mean about 256), ``local``: whether neighbors in a row are
    alike.
    """

    def __init__(
        self,
        model: ContextModel,
        columns: int,
        *,
        scale: Integers | None = None,
        local: bool = True,
    ) -> None:
        self._model = model
        self._size = columns
        self._local = local
        self._passes = _passes(columns) if local else [np.arange(columns)]
        self._scale = np.ones(columns) if scale is None else scale / 256.0
        self._trust = _COLUMN_TRUST * (1.0 if scale is None else 4.0)
        self._sums = np.zeros(columns, np.int64)  # of the magnitudes in the rows above
        self._expected = 0.0  # the sum of the means of the rows above
        self._level = 16

    def code(self, level: int, choose: Choose) -> Integers:
        """Run one row of mean magnitude ``LEVEL_MEANS[level]`` through ``choose``.

        ``choose`` gets the columns of a pass, their classes and the table, and returns the
        magnitudes (escapes as ESCAPE), from the coder or for it.
        """
        self._level = level
        symbols = np.zeros(self._size, np.int64)
        if level == 0:
            return symbols
        mean = float(LEVEL_MEANS[level])
        sums = self._sums
        if self._local and self._size > 2:
            around = np.zeros(self._size, np.int64)
            around[1:] += sums[:-1]
            around[:-1] += sums[1:]
            seen = sums + _NEXT_WEIGHT * around
            weight = 1 + 2 * _NEXT_WEIGHT
        else:
            seen, weight = sums.astype(np.float64), 1.0
        expected = (
            mean * (self._trust * self._scale + seen) / (self._trust + weight * self._expected)
        )
        known = np.zeros(self._size, np.int64)
        fixed = np.minimum(expected * 256.0, 4095.0).astype(np.int64)
        for number, columns in enumerate(self._passes):
            here = expected[columns]
            if number:
                here = here * _activity(symbols, known, columns)
            classes = np.searchsorted(_CLASS_EDGES, here, side="right")
            chosen = choose(columns, classes, self._model.table)
            self._model.learn(classes, chosen)
            symbols[columns] = chosen
            known[columns] = fixed[columns]
        self._sums = sums + symbols
        self._expected += mean
        return symbols

    def level_step(self, level: int) -> int:
        """Return the symbol that says ``level`` after the row before."""
        return (level - self._level) % LEVELS

    def level_after(self, step: int) -> int:
        return (self._level + step) % LEVELS


def level_of(magnitudes: npt.NDArray[np.floating]) -> int:
    """Return the level whose mean is nearest (in logarithm) to that of ``magnitudes``."""
    mean = float(np.minimum(magnitudes, ESCAPE).mean()) if magnitudes.size else 0.0
    if mean <= 0:
        return 0
    return min(LEVELS - 1, 1 + int(np.searchsorted(_LEVEL_EDGES, mean)))


def write_level(encoder: RansEncoder, model: ContextModel, rows: Rows, level: int) -> float:
    """Append a row's level and return its price in bits."""
    step = rows.level_step(level)
    table = model.level_table
    encoder.put(table, np.zeros(1, np.int64), np.array([step]))
    model.learn_level(step)
    return float(np.log2(SCALE / table[0, step]))


def read_level(decoder: RansDecoder, model: ContextModel, rows: Rows) -> int:
    step = int(decoder.take(model.level_table, np.zeros(1, np.int64))[0])
    model.learn_level(step)
    return rows.level_after(step)


def _activity(symbols: Integers, known: Integers, columns: Integers) -> Doubles:
    """Return how much more than expected lies around ``columns``; ``known`` in 1/256."""
    found = np.concatenate([[0], np.cumsum(symbols)])
    wanted = np.concatenate([[0], np.cumsum(known)])
    size = symbols.size
    near = np.minimum(columns + _NEAR + 1, size), np.maximum(columns - _NEAR, 0)
    far = np.minimum(columns + _FAR + 1, size), np.maximum(columns - _FAR, 0)
    count = (found[near[0]] - found[near[1]]) + _FAR_WEIGHT * (found[far[0]] - found[far[1]])
    hoped = (wanted[near[0]] - wanted[near[1]]) + _FAR_WEIGHT * (wanted[far[0]] - wanted[far[1]])
    activity: Doubles = (_LOCAL_TRUST + count) / (_LOCAL_TRUST + hoped / 256.0)
    return activity


def _passes(columns: int) -> list[Integers]:
    """Return the lattices of a row: every 16th column, those between, ... the odd ones."""
    stride = 16 if columns >= 1024 else 4 if columns >= 96 else 2
    passes = [np.arange(0, columns, stride)]
    while stride > 1:
        passes.append(np.arange(stride // 2, columns, stride))
        stride //= 2
    return passes


def _normalized(counts: Integers) -> Table:
    """Return frequencies that add up to SCALE, each at least 1."""
    symbols = counts.shape[1]
    table: Table = 1 + counts * (SCALE - symbols) // counts.sum(axis=1, keepdims=True)
    most = table.argmax(axis=1)
    table[np.arange(len(table)), most] += SCALE - table.sum(axis=1)
    return table


def _geometric_priors() -> Integers:
    priors = np.zeros((CLASSES, SYMBOLS), np.int64)
    for number in range(CLASSES):
        mean = _half_octave(number - 18) * 1.189207115002721
        ratio = mean / (1 + mean)
        left = 1.0
        for symbol in range(SYMBOLS):
            share = left if symbol == ESCAPE else left * (1 - ratio)
            priors[number, symbol] = int(share * _PRIOR)
            left -= share
    return priors


def _level_priors() -> Integers:
    priors = np.full((1, LEVELS), 8, np.int64)
    for step, weight in ((0, 320), (-1, 160), (1, 96), (-2, 64), (2, 48), (-3, 32), (3, 24)):
        priors[0, step % LEVELS] = weight
    return priors
