"""A delta to few bytes and back: select, cluster, write positions and center numbers. Pure.

Frame (docs/payload.md): the tag byte 0xE1; nothing more for an all-zero delta. Else the
number of kept coordinates (varint), the number of centers minus one (byte), the centers
(little-endian float32, ascending), the positions (`models.codec.sparse_index`), then for each
kept coordinate the number of its center in as few bits as the largest number needs.

The frame is what travels; ``to_npz`` wraps it for files, as the one uint8 member ``z``.
``decompress`` takes both.
"""

from collections.abc import Sequence

import numpy as np

from models.codec.coreset import kmeans_centers, nearest
from models.codec.selection import top_k
from models.codec.sparse_index import decode_positions, encode_positions, pack_bits, unpack_bits
from models.codec.wire import Reader, varint
from models.errors import PayloadError
from models.params import Vector
from models.payload.manifest import CodecPlan
from models.payload.npz import read_arrays, write_array
from models.spec import TensorSpec

TAG = 0xE1
MEMBER = "z"


def compress(wanted: Vector, tensors: Sequence[TensorSpec], plan: CodecPlan) -> bytes:
    """Return ``wanted``, float32 of shape (d,), as a payload of the size that ``plan`` allows.

    It is lossy: what is missing is `models.codec.feedback.residual_after`.

    Raises:
        ValueError: ``wanted`` is not the vector of ``tensors``, or not finite.
    """
    size = sum(tensor.size for tensor in tensors)
    if wanted.dtype != np.float32 or wanted.shape != (size,):
        raise ValueError(f"{wanted.dtype} {wanted.shape}, float32 ({size},) was expected")
    if not np.isfinite(wanted).all():
        raise ValueError("the delta is not finite: training diverged, there is nothing to send")
    positions = top_k(wanted, plan.keep)
    if positions.size == 0:
        return bytes([TAG])
    values = wanted[positions]
    centers = kmeans_centers(values, plan.centers)
    numbers = nearest(values, centers)
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


def decompress(payload: bytes, tensors: Sequence[TensorSpec]) -> Vector:
    """Return the delta that ``payload`` stands for, float32 of shape (d,), finite.

    Raises:
        PayloadError: it is no payload for ``tensors``.
    """
    size = sum(tensor.size for tensor in tensors)
    frame = from_npz(payload, max_frame_bytes=8 * size + 4096) if is_npz(payload) else payload
    reader = Reader(frame)
    if reader.byte() != TAG:
        raise PayloadError("payload: not one of ours, or of a version that is not known here")
    delta: Vector = np.zeros(size, np.float32)
    if reader.left == 0:
        return delta
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
    delta[positions] = centers[numbers]
    return delta


def is_npz(payload: bytes) -> bool:
    """Whether ``payload`` is in its npz form, not a bare frame."""
    return payload[:2] == b"PK"


def to_npz(frame: bytes) -> bytes:
    """Return ``frame`` as an npz file: what ``numpy.load(..., allow_pickle=False)`` opens."""
    return write_array(MEMBER, np.frombuffer(frame, np.uint8))


def from_npz(data: bytes, *, max_frame_bytes: int) -> bytes:
    """Return the frame in an npz file.

    Raises:
        PayloadError: there is none, or it is larger than allowed.
    """
    arrays = read_arrays(data, max_bytes=max_frame_bytes)
    frame = arrays.get(MEMBER)
    if len(arrays) != 1 or frame is None or frame.dtype != np.uint8 or frame.ndim != 1:
        raise PayloadError(f"npz: not a payload, which is one uint8 vector named {MEMBER!r}")
    return frame.tobytes()
