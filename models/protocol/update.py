"""An update on the wire: a small binary header, then the payload. Pure, and without numpy.

Layout (docs/payload.md): ``b"EU"``, one version byte 1, then: task (length byte, ASCII), base,
samples, steps and payload size as varints (LEB128, shortest form), loss_first, loss_last and
accuracy as little-endian float32 (accuracy NaN: none), the payload's sha256, the payload.
"""

import hashlib
import math
import re
import struct
from typing import NamedTuple

from models.errors import DigestMismatchError, PayloadError

__all__ = [
    "MAGIC",
    "MAX_HEADER_BYTES",
    "UpdateHeader",
    "context_in",
    "decode_header",
    "decode_update",
    "encode_update",
]

MAGIC = b"EU\x01"
IN_CONTEXT = 0xE3  # the first byte of such a payload; see `models.codec.transform.frame`
MAX_HEADER_BYTES = 160  # 3 + 1 + 64 + 4 varints of at most 9 + 12 + 32, rounded up
MAX_PAYLOAD_BYTES = 1 << 30
MAX_COUNT = 1 << 53

_TASK = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_METRICS = struct.Struct("<fff")


class UpdateHeader(NamedTuple):
    """What the server needs to know of an update before it looks at its payload.

    ``loss_first``, ``loss_last`` and ``accuracy`` travel as float32: they come back rounded.
    """

    task: str
    base: int  # the release that was trained on
    samples: int
    steps: int
    loss_first: float  # mean over the first tenth of the steps (in 0.1.0: over the first epoch)
    loss_last: float  # and over the last one
    accuracy: float | None  # of the base release on the device's own hold-out; None: it has none
    payload_size: int  # bytes
    payload_sha256: str  # lower-case hex


def encode_update(header: UpdateHeader, payload: bytes) -> bytes:
    """Return the update as bytes.

    Raises:
        ValueError: a field is out of range, or ``header`` does not describe ``payload``.
    """
    if not _TASK.fullmatch(header.task):
        raise ValueError(f"task {header.task!r}")
    if (header.payload_size, header.payload_sha256) != (
        len(payload),
        hashlib.sha256(payload).hexdigest(),
    ):
        raise ValueError("the header's size and digest are not those of the payload")
    if header.payload_size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"payload of {header.payload_size} bytes, at most {MAX_PAYLOAD_BYTES}")
    if header.accuracy is not None and not 0 <= header.accuracy <= 1:
        raise ValueError(f"accuracy {header.accuracy}")
    if not (math.isfinite(header.loss_first) and math.isfinite(header.loss_last)):
        raise ValueError(f"losses {header.loss_first} and {header.loss_last}: not finite")
    task = header.task.encode("ascii")
    numbers = (header.base, header.samples, header.steps, header.payload_size)
    accuracy = math.nan if header.accuracy is None else header.accuracy
    try:
        metrics = _METRICS.pack(header.loss_first, header.loss_last, accuracy)
    except OverflowError:
        raise ValueError("a loss beyond float32") from None
    return b"".join(
        [MAGIC, bytes([len(task)]), task]
        + [_varint(number) for number in numbers]
        + [metrics, bytes.fromhex(header.payload_sha256), payload]
    )


def decode_header(head: bytes) -> tuple[UpdateHeader, int]:
    """Read the header from the first bytes of an update (its first chunk will do).

    Returns:
        The header, and how many bytes it took.

    Raises:
        PayloadError: not an update, or cut off within the header.
    """
    if head[: len(MAGIC)] != MAGIC:
        raise PayloadError("not an update: it does not begin with EU and version 1")
    at = len(MAGIC)
    length = head[at] if at < len(head) else 0
    task = bytes(head[at + 1 : at + 1 + length]).decode("ascii", "replace")
    if len(task) != length or not _TASK.fullmatch(task):
        raise PayloadError("update header: no valid task name")
    at += 1 + length
    numbers = []
    for _ in range(4):
        number, at = _read_varint(head, at)
        numbers.append(number)
    base, samples, steps, payload_size = numbers
    end = at + _METRICS.size + 32
    if len(head) < end:
        raise PayloadError(f"update header: cut off after {len(head)} bytes")
    loss_first, loss_last, accuracy = _METRICS.unpack_from(head, at)
    if not (math.isfinite(loss_first) and math.isfinite(loss_last)):
        raise PayloadError("update header: a loss that is not finite")
    if not (math.isnan(accuracy) or 0 <= accuracy <= 1):
        raise PayloadError(f"update header: accuracy {accuracy}")
    if payload_size > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"update header: payload of {payload_size} bytes")
    header = UpdateHeader(
        task=task,
        base=base,
        samples=samples,
        steps=steps,
        loss_first=loss_first,
        loss_last=loss_last,
        accuracy=None if math.isnan(accuracy) else accuracy,
        payload_size=payload_size,
        payload_sha256=bytes(head[end - 32 : end]).hex(),
    )
    return header, end


def context_in(payload: bytes) -> int | None:
    """Return the digest of the context that ``payload`` was made in, from its first five bytes.

    None: it needs none.
    """
    if len(payload) < 5 or payload[0] != IN_CONTEXT:
        return None
    return int.from_bytes(payload[1:5], "little")


def decode_update(data: bytes) -> tuple[UpdateHeader, bytes]:
    """Read a whole update and check the payload's size and digest.

    Raises:
        PayloadError: not an update, or not the payload that its header describes.
    """
    header, start = decode_header(data)
    payload = bytes(data[start:])
    if len(payload) != header.payload_size:
        raise PayloadError(
            f"update: {len(payload)} bytes of payload, its header says {header.payload_size}"
        )
    found = hashlib.sha256(payload).hexdigest()
    if found != header.payload_sha256:
        mismatch = DigestMismatchError(expected=header.payload_sha256, found=found)
        raise PayloadError(f"update: {mismatch}") from mismatch
    return header, payload


def _varint(number: int) -> bytes:
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(f"{number} is not between 0 and {MAX_COUNT}")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 56, 7):
        if at >= len(data):
            raise PayloadError(f"update header: cut off after {len(data)} bytes")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if (byte == 0 and shift) or number > MAX_COUNT:
                break
            return number, at
    raise PayloadError("update header: a number that is too large or not in its shortest form")
