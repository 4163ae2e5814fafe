"""Coefficients to whole numbers and back: rate-distortion choice, steps, reconstruction. Pure."""

import math
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.codec.transform.entropy import (
    ESCAPE,
    ContextModel,
    Doubles,
    Integers,
    Rows,
    level_of,
    read_level,
    write_level,
)
from models.codec.transform.rans import SCALE, RansDecoder, RansEncoder, Table
from models.errors import PayloadError

__all__ = [
    "FRACTION_BITS",
    "Coded",
    "MatrixReader",
    "Offsets",
    "Wholes",
    "Writer",
    "reconstruct",
    "step_code",
    "step_of",
]

FRACTION_BITS = 8  # decoded coefficients are whole multiples of step / 256
ESCAPE_BITS = 16  # at most: an escaped magnitude is below 15 + 2**16
_ESCAPE_PRICE = 8.0  # bits, about


Wholes = npt.NDArray[np.int32]


def step_code(step: float) -> int:
    """Return the 16 bits that stand for ``step``: the upper half of a float32, rounded to it.

    Raises:
        ValueError: not positive and finite.
    """
    if not (step > 0 and math.isfinite(step)):
        raise ValueError(f"step {step}")
    bits = int.from_bytes(struct.pack(">f", min(step, 3e38)), "big") + 0x8000 >> 16
    return min(max(bits, 1), 0x7F7F)


def step_of(code: int) -> float:
    """Return the step that 16 bits stand for.

    Raises:
        PayloadError: it is zero, negative or not finite.
    """
    step = float(struct.unpack(">f", struct.pack(">HH", code, 0))[0])
    if not (step > 0 and math.isfinite(step)):
        raise PayloadError(f"payload: step {step}")
    return step


class Offsets(NamedTuple):
    """Where coefficients of magnitude 1 and 2 are put: off by n/16 of a step, n in -8..7."""

    one: int = 0
    two: int = 0

    @property
    def code(self) -> int:
        return (self.one + 8) << 4 | (self.two + 8)

    @staticmethod
    def of(code: int) -> "Offsets":
        return Offsets((code >> 4) - 8, (code & 15) - 8)


def reconstruct(quantized: Wholes, offsets: Offsets) -> Doubles:
    """Return coefficients in units of step / 256: whole numbers."""
    fixed = quantized.astype(np.float64) * 2.0**FRACTION_BITS
    for place, offset in ((1, offsets.one), (2, offsets.two)):
        for value in (place, -place) if offset else ():
            fixed[quantized == value] += float(value // place * (offset << FRACTION_BITS - 4))
    return fixed


class Coded(NamedTuple):
    """A coded matrix and what it cost."""

    quantized: Wholes
    row_bits: Doubles
    error: float  # in squared steps, offsets not used yet


class Writer:
    """What the encoder has put so far; `fork` lets it try one thing and then another."""

    def __init__(self) -> None:
        self.encoder = RansEncoder()
        self.model = ContextModel()
        self.bits = 0.0  # what all this takes, nearly
        self._largest = 0
        self.raw: list[Wholes] = []  # coded matrices, for signs and escapes
        self._moments = [0.0, 0.0, 0.0, 0.0]  # count and sum of values put at 1, and at 2

    def fork(self) -> "Writer":
        twin = Writer.__new__(Writer)
        twin.encoder = self.encoder.fork()
        twin.model = self.model.copy()
        twin.bits = self.bits
        twin._largest = self._largest
        twin.raw = list(self.raw)
        twin._moments = list(self._moments)
        return twin

    def put_uniform(self, symbol: int, choices: int) -> None:
        """Append one of ``choices`` equally likely symbols."""
        self.encoder.put_uniform(symbol, choices)
        self.bits += float(np.log2(choices))

    def matrix(
        self,
        values: npt.NDArray[np.floating],
        price: float,
        rows: Rows,
        *,
        step: float = 1.0,
        centered: bool = True,
    ) -> Coded:
        """Quantize and append ``values`` of shape (rows, columns).

        Every coefficient becomes the candidate of least ``error**2 + price * bits``: the
        nearest integer, the one below, or zero. ``centered``: let them decide the offsets.
        """
        quantized = np.zeros(values.shape, np.int32)
        bits = np.zeros(len(values))
        error = 0.0
        for number, row in enumerate(values):
            scaled = row.astype(np.float64) / step
            whole, bits[number] = self._row(scaled, price, rows)
            error += float(np.square(scaled - whole).sum())
            quantized[number] = whole
            for place in (1, 2) if centered else ():
                at = np.abs(whole) == place
                self._moments[2 * place - 2] += float(at.sum())
                self._moments[2 * place - 1] += float(np.abs(scaled[at]).sum())
        self.raw.append(quantized)
        self.bits += float(bits.sum())
        if quantized.size:
            self._largest = max(self._largest, int(np.abs(quantized).max()))
        return Coded(quantized, bits, error)

    def offsets(self) -> Offsets:
        """Return the offsets that suit what was put."""
        one, sum_one, two, sum_two = self._moments
        found = [
            min(max(round((total / count - place) * 16), -8), 7) if count else 0
            for place, count, total in ((1, one, sum_one), (2, two, sum_two))
        ]
        return Offsets(*found)

    def finish(self) -> bytes:
        """Return the entropy code, then the signs, then the escapes.

        If there are escapes, a byte with their width in bits comes before the signs.
        """
        flat = np.concatenate([part.reshape(-1) for part in self.raw] or [np.zeros(0, np.int32)])
        used = flat[flat != 0]
        high = np.abs(used) - ESCAPE
        escapes = high[high >= 0]
        width = _escape_width(self._largest)
        places = np.arange(width - 1, -1, -1)
        bits = [(used < 0).astype(np.uint8), (escapes[:, None] >> places & 1).reshape(-1)]
        raw = np.packbits(np.concatenate(bits).astype(np.uint8)).tobytes()
        return self.encoder.finish() + (bytes([width]) if escapes.size else b"") + raw

    @property
    def bytes_expected(self) -> float:
        """How long `finish` will be, to a few bytes."""
        extra = 0.0
        if self._largest >= ESCAPE:
            escapes = sum(int((np.abs(part) >= ESCAPE).sum()) for part in self.raw)
            extra = 8 + escapes * (_escape_width(self._largest) - _ESCAPE_PRICE)
        return 4 + (self.bits + extra) / 8

    def _row(self, row: Doubles, price: float, rows: Rows) -> tuple[Integers, float]:
        magnitudes = np.abs(row)
        spent = 0.0
        chosen = np.zeros(row.size, np.int64)

        def choose(columns: Integers, classes: Integers, table: Table) -> Integers:
            nonlocal spent
            costs = np.log2(SCALE / table)
            costs[:, 1:] += 1.0
            costs[:, ESCAPE] += _ESCAPE_PRICE
            here = magnitudes[columns]
            symbols = np.zeros(columns.size, np.int64)
            hits = np.flatnonzero(here > 0.5)
            if hits.size:
                best = _best_of_three(here[hits], classes[hits], costs, price)
                chosen[columns[hits]] = best
                symbols[hits] = np.minimum(best, ESCAPE)
            spent += float(costs[classes, symbols].sum())
            self.encoder.put(table, classes, symbols)
            return symbols

        level = level_of(np.floor(magnitudes * (magnitudes > 0.62) + 0.4))
        spent += write_level(self.encoder, self.model, rows, level)
        rows.code(level, choose)
        return np.where(row < 0, -chosen, chosen), spent


def _escape_width(largest: int) -> int:
    return (largest - ESCAPE).bit_length() if largest > ESCAPE else 1


def _best_of_three(here: Doubles, classes: Integers, costs: Doubles, price: float) -> Integers:
    nearest = np.minimum(np.floor(here + 0.5), ESCAPE + (1 << ESCAPE_BITS) - 1)
    lower = nearest - 1
    best = np.zeros(here.size, np.int64)
    least = here * here + price * costs[classes, 0]
    for candidate in (lower, nearest):
        symbols = np.minimum(candidate, ESCAPE).astype(np.int64)
        total = (here - candidate) ** 2 + price * costs[classes, symbols]
        better = total < least
        best = np.where(better, candidate.astype(np.int64), best)
        least = np.where(better, total, least)
    return best


class MatrixReader:
    """Reads matrices back in the order in which they were put; signs come at the end."""

    def __init__(self, code: bytes) -> None:
        self.decoder = RansDecoder(code)
        self._code = code
        self.model = ContextModel()
        self._magnitudes: list[Wholes] = []

    def matrix(self, count: int, columns: int, rows: Rows) -> Wholes:
        """Return the magnitudes of ``count`` rows; `finish` makes them whole, in place."""

        def choose(_: Integers, classes: Integers, table: Table) -> Integers:
            return self.decoder.take(table, classes)

        found = np.zeros((count, columns), np.int32)
        for number in range(count):
            found[number] = rows.code(read_level(self.decoder, self.model, rows), choose)
        self._magnitudes.append(found)
        return found

    def finish(self) -> None:
        """Read signs and escapes, and check that nothing is missing or left over.

        Raises:
            PayloadError: something is.
        """
        raw = self._code[self.decoder.finish() :]
        used = [part != 0 for part in self._magnitudes]
        count = sum(int(at.sum()) for at in used)
        escaped = [part == ESCAPE for part in self._magnitudes]
        escapes = sum(int(at.sum()) for at in escaped)
        width = 1
        if escapes:
            if not raw or not 1 <= raw[0] <= ESCAPE_BITS:
                raise PayloadError("payload: escapes of an impossible width")
            width, raw = raw[0], raw[1:]
        size = count + escapes * width
        if len(raw) != (size + 7) // 8:
            raise PayloadError(
                f"payload: {len(raw)} bytes of signs, {(size + 7) // 8} are expected"
            )
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=size)
        places = (1 << np.arange(width - 1, -1, -1)).astype(np.int64)
        more = (bits[count:].reshape(-1, width) @ places).astype(np.int32)
        at_sign = at_escape = 0
        for part, nonzero, beyond in zip(self._magnitudes, used, escaped, strict=True):
            number = int(beyond.sum())
            part[beyond] += more[at_escape : at_escape + number]
            at_escape += number
            number = int(nonzero.sum())
            signs = bits[at_sign : at_sign + number].astype(np.int32)
            part[nonzero] *= 1 - 2 * signs
            at_sign += number
