"""The entropy coder: range asymmetric numeral systems over plain integers. Pure.

One lane, 32-bit state, 16-bit words, frequencies that add up to 2**14. A Python loop over small
integers is faster here than numpy lanes until payloads reach hundreds of kilobytes, and costs no
lane headers, which matters for payloads of two hundred bytes. Integers only: the same bytes on
every machine. Duda, "Asymmetric numeral systems", arXiv:1311.2540; streaming form after Giesen.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.errors import PayloadError

__all__ = ["SCALE", "RansDecoder", "RansEncoder", "Table", "uniform"]

SCALE_BITS = 14
SCALE = 1 << SCALE_BITS
_LOW = 1 << 16  # the state stays in [2**16, 2**32)

Table = npt.NDArray[np.int64]  # (classes, symbols): frequencies >= 1 that add up to SCALE
Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class RansEncoder:
    """Collects symbols in the order in which they will be decoded."""

    def __init__(self) -> None:
        self._put: list[tuple[Table, Bytes, Bytes]] = []

    def fork(self) -> "RansEncoder":
        """Return a copy that goes its own way."""
        twin = RansEncoder()
        twin._put = list(self._put)
        return twin

    def put(self, table: Table, classes: Integers, symbols: Integers) -> None:
        """Append ``symbols``, each with the frequencies in the row of ``table`` of its class.

        Both are below 256. The table is kept: it must not change afterwards.
        """
        self._put.append((table, classes.astype(np.uint8), symbols.astype(np.uint8)))

    def put_uniform(self, symbol: int, choices: int) -> None:
        """Append one of ``choices`` equally likely symbols."""
        self.put(uniform(choices), np.zeros(1, np.int64), np.array([symbol]))

    def finish(self) -> bytes:
        """Return the code: the state (4 bytes), then 16-bit words, all little-endian."""
        state, words = _LOW, []
        for table, classes, symbols in reversed(self._put):
            frequencies = table[classes, symbols][::-1].tolist()
            starts = (np.cumsum(table, axis=1) - table)[classes, symbols][::-1].tolist()
            for frequency, start in zip(frequencies, starts, strict=True):
                if state >= frequency << 32 - SCALE_BITS:
                    words.append(state & 0xFFFF)
                    state >>= 16
                over, rest = divmod(state, frequency)
                state = (over << SCALE_BITS) + rest + start
        return state.to_bytes(4, "little") + np.array(words[::-1], "<u2").tobytes()


class RansDecoder:
    """Gives the symbols back; damage shows as a PayloadError, here or in `finish`."""

    def __init__(self, code: bytes) -> None:
        if len(code) < 4:
            raise PayloadError(f"payload: {len(code)} bytes of entropy code")
        self._state = int.from_bytes(code[:4], "little")
        self._words: list[int] = np.frombuffer(code, "<u2", len(code) // 2 - 2, 4).tolist()
        self._at = 0
        if self._state < _LOW:
            raise PayloadError("payload: impossible state of the entropy coder")

    def take(self, table: Table, classes: Integers) -> Integers:
        """Return the next symbols, one for each class."""
        frequencies: list[list[int]] = table.tolist()
        starts: list[list[int]] = (np.cumsum(table, axis=1) - table).tolist()
        zero: list[int] = table[:, 0].tolist()
        return np.array(self._run(frequencies, starts, zero, classes.tolist()), np.int64)

    def _run(
        self,
        frequencies: Sequence[Sequence[int]],
        starts: Sequence[Sequence[int]],
        zero: Sequence[int],
        classes: Sequence[int],
    ) -> list[int]:
        state, words, at = self._state, self._words, self._at
        symbols = [0] * len(classes)
        mask, bits, low = SCALE - 1, SCALE_BITS, _LOW
        try:
            for index, kind in enumerate(classes):
                slot = state & mask
                frequency = zero[kind]
                if slot < frequency:
                    state = frequency * (state >> bits) + slot
                else:
                    begins = starts[kind]
                    symbol = bisect_right(begins, slot) - 1
                    symbols[index] = symbol
                    state = frequencies[kind][symbol] * (state >> bits) + slot - begins[symbol]
                if state < low:
                    state = state << 16 | words[at]
                    at += 1
        except IndexError:
            raise PayloadError("payload: the entropy code is cut off") from None
        self._state, self._at = state, at
        return symbols

    def take_uniform(self, choices: int) -> int:
        """Return the next of ``choices`` equally likely symbols."""
        return int(self.take(uniform(choices), np.zeros(1, np.int64))[0])

    def finish(self) -> int:
        """Return how many bytes the code had, if it ends as the encoder began.

        Raises:
            PayloadError: it does not.
        """
        if self._state != _LOW:
            raise PayloadError("payload: the entropy code is damaged")
        return 4 + 2 * self._at


def uniform(choices: int) -> Table:
    """Return one class in which ``choices`` symbols are as equally likely as integers allow."""
    edges = np.arange(choices + 1) * SCALE // choices
    return np.diff(edges)[None]
