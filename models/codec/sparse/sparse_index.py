"""Which coordinates a sparse payload names: as gaps or as a bitmap, whichever is smaller. Pure.

Gaps are Rice-coded in two planes: the low bits of every gap packed side by side, then the high
parts in unary (zeros ended by a one), so that numpy packs and unpacks them without a loop.
"""

import numpy as np
import numpy.typing as npt

from models.codec.sparse.selection import Positions
from models.errors import PayloadError
from models.protocol.varint import Reader, varint

__all__ = ["decode_positions", "encode_positions", "pack_bits", "unpack_bits"]

BITMAP = 0xFF  # in the place of a Rice parameter
MAX_RICE = 28


def encode_positions(positions: Positions, size: int) -> bytes:
    """Return ascending ``positions`` below ``size`` as bytes; their count is not part of them."""
    gaps = np.diff(positions, prepend=-1) - 1
    rice = max(0, int(gaps.mean() * 0.7 + 1).bit_length() - 1) if gaps.size else 0
    best = min((_gap_bytes(gaps, r), r) for r in {max(rice - 1, 0), rice, rice + 1})
    bitmap_bytes = (size + 7) // 8
    if best[0] >= bitmap_bytes:
        bitmap = np.zeros(size, np.uint8)
        bitmap[positions] = 1
        return bytes([BITMAP]) + np.packbits(bitmap).tobytes()
    rice = best[1]
    ones = np.cumsum((gaps >> rice) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1 if ones.size else 0, np.uint8)
    unary[ones] = 1
    high = np.packbits(unary).tobytes()
    return bytes([rice]) + varint(len(high)) + pack_bits(gaps, rice) + high


def decode_positions(reader: Reader, count: int, size: int) -> Positions:
    """Return the ``count`` positions below ``size`` that come next in ``reader``.

    Raises:
        PayloadError: they are not there, or not below ``size``.
    """
    if count > size:
        raise PayloadError(f"payload: {count} positions of {size}")
    rice = reader.byte()
    if rice == BITMAP:
        bitmap = np.unpackbits(np.frombuffer(reader.take((size + 7) // 8), np.uint8))
        positions = np.flatnonzero(bitmap)
    else:
        if rice > MAX_RICE:
            raise PayloadError(f"payload: Rice parameter {rice}, at most {MAX_RICE} can be")
        high_bytes = reader.varint(reader.left)
        low = unpack_bits(reader.take((count * rice + 7) // 8), rice, count)
        ones = np.flatnonzero(np.unpackbits(np.frombuffer(reader.take(high_bytes), np.uint8)))
        if ones.size != count:
            raise PayloadError(f"payload: {ones.size} gaps where {count} are expected")
        gaps = ((np.diff(ones, prepend=-1) - 1) << rice) + low
        positions = np.cumsum(gaps + 1) - 1
    if positions.size != count or (count and positions[-1] >= size):
        raise PayloadError(f"payload: not {count} positions below {size}")
    return positions


def pack_bits(values: npt.NDArray[np.int64], width: int) -> bytes:
    """Return the low ``width`` bits of each value side by side, most significant first."""
    shifts = np.arange(width - 1, -1, -1)
    bits = (values[:, None] >> shifts & 1).astype(np.uint8)
    return np.packbits(bits).tobytes()


def unpack_bits(data: bytes, width: int, count: int) -> npt.NDArray[np.int64]:
    """Return the ``count`` values that `pack_bits` made ``data`` of."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width)
    places = (1 << np.arange(width - 1, -1, -1)).astype(np.int64)
    values: npt.NDArray[np.int64] = bits.reshape(count, width).astype(np.int64) @ places
    return values


def _gap_bytes(gaps: npt.NDArray[np.int64], rice: int) -> int:
    high_bits = int((gaps >> rice).sum()) + gaps.size
    return (gaps.size * rice + 7) // 8 + (high_bits + 7) // 8 + 3
