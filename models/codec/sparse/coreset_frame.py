"""The coreset frame: the largest coordinates, each as the nearest of few centers. Pure.

Frame (docs/payload.md): the tag byte 0xE1; nothing more for an all-zero delta. Else the
number of kept coordinates (varint), the number of centers minus one (byte), the centers
(little-endian float32, ascending), the positions (`sparse_index.py`), then for each
kept coordinate the number of its center in as few bits as the largest number needs.

No transform, no entropy coder: what a few lines in any language can read, and what the ONNX patch
graph holds. The transform frame (`models.codec.transform.frame`) takes several times fewer bytes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.codec.sparse.coreset import kmeans_centers, nearest
from models.codec.sparse.selection import Positions, top_k
from models.codec.sparse.sparse_index import (
    decode_positions,
    encode_positions,
    pack_bits,
    unpack_bits,
)
from models.errors import PayloadError
from models.protocol.varint import Reader, varint
from models.task.params import Vector

__all__ = ["TAG", "Coreset", "coreset_of", "decode_coreset", "encode_coreset", "read_coreset"]

TAG = 0xE1


class Coreset(NamedTuple):
    """A sparse vector of few different values."""

    positions: Positions
    centers: Vector  # ascending
    numbers: npt.NDArray[np.int64]  # for each position that of its center


def coreset_of(wanted: Vector, keep: float, centers: int) -> Coreset:
    """Return the share ``keep`` of the largest values of ``wanted`` as at most ``centers``."""
    positions = top_k(wanted, keep)
    values = wanted[positions]
    found = kmeans_centers(values, centers)
    return Coreset(positions, found, nearest(values, found))


def encode_coreset(coreset: Coreset, size: int) -> bytes:
    """Return the frame of a coreset of a vector of ``size`` values."""
    positions, centers, numbers = coreset
    if positions.size == 0:
        return bytes([TAG])
    return b"".join(
        [
            bytes([TAG]),
            varint(positions.size),
            bytes([centers.size - 1]),
            centers.astype("<f4").tobytes(),
            encode_positions(positions, size),
            pack_bits(numbers, (centers.size - 1).bit_length()),
        ]
    )


def read_coreset(frame: bytes, size: int) -> Coreset:
    """Take a frame apart.

    Raises:
        PayloadError: it is none of ``size`` values.
    """
    reader = Reader(frame)
    if reader.byte() != TAG:
        raise PayloadError("payload: not a coreset frame")
    if reader.left == 0:
        none = np.zeros(0, np.int64)
        return Coreset(none, np.zeros(0, np.float32), none)
    count = reader.varint(size)
    centers = np.frombuffer(reader.take(4 * (reader.byte() + 1)), "<f4").astype(np.float32)
    if not np.isfinite(centers).all():
        raise PayloadError("payload: a center that is not finite")
    positions = decode_positions(reader, count, size)
    width = (centers.size - 1).bit_length()
    numbers = unpack_bits(reader.take((count * width + 7) // 8), width, count)
    reader.finish()
    if count and numbers.max() >= centers.size:
        raise PayloadError(f"payload: center {numbers.max()} of {centers.size}")
    return Coreset(positions, centers, numbers)


def decode_coreset(frame: bytes, size: int) -> Vector:
    """Return the vector in ``frame``, float32 of shape (size,), finite.

    Raises:
        PayloadError: it is none of ``size`` values.
    """
    positions, centers, numbers = read_coreset(frame, size)
    vector: Vector = np.zeros(size, np.float32)
    vector[positions] = centers[numbers]
    return vector
