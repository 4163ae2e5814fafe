"""An update on the wire: a small binary header, then the payload. Pure, and without numpy.

Layout (docs/payload.md): ``b"EU"``, one version byte, then: task (length byte, ASCII), base,
samples, steps and payload size as varints (LEB128, shortest form), loss_first, loss_last and
accuracy as little-endian float32 (accuracy NaN: none), the payload's sha256; in version 2 a varint
and as many bytes of msgpack (`Extras`); then the payload. Version 1 has no extras.
"""

import hashlib
import math
import struct
from typing import Annotated, Literal, NamedTuple

import msgspec

from models.errors import DigestMismatchError, PayloadError
from models.protocol.names import NAME
from models.protocol.varint import Reader, varint

__all__ = [
    "IN_CONTEXT",
    "MAGIC",
    "MAX_HEADER_BYTES",
    "Extras",
    "UpdateHeader",
    "context_in",
    "decode_extras",
    "decode_header",
    "decode_update",
    "encode_extras",
    "encode_header",
    "encode_update",
    "payload_of",
]

MAGIC = b"EU"
VERSIONS = (1, 2)
IN_CONTEXT = 0xE3  # the first byte of a payload that was made in a context (docs/payload.md)
MAX_EXTRAS_BYTES = 340
MAX_HEADER_BYTES = 512  # 3 + 1 + 64 + 4 varints of at most 9 + 12 + 32 + 2 + extras, rounded up
MAX_PAYLOAD_BYTES = 1 << 30
MAX_COUNT = 1 << 53

_METRICS = struct.Struct("<fff")


Crc = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Measure = Annotated[float, msgspec.Meta(ge=0, le=1e30)]


_SHORT = {  # keys on the wire, where each byte counts
    "kind": "k",
    "memory": "m",
    "accuracy_shared": "as",
    "accuracy_after": "aa",
    "accuracy_alone": "al",
    "rho": "r",
    "beta": "b",
    "gradient_norm": "g",
    "seconds": "s",
    "ms_per_step": "p",
    "effective": "e",
}


class Extras(msgspec.Struct, frozen=True, omit_defaults=True, rename=_SHORT):
    """What an update says of itself beyond version 1. Unknown fields are ignored.

    ``memory``: `models.codec.feedback.history_digest` of the h that it was made against. The
    accuracies are this device's, on its own hold-out: of the release with the bundle's own personal
    values, of what came of the training, of a model that was trained on this device alone. ``rho``,
    ``beta`` and ``gradient_norm`` estimate what `StepsPlan` is made of. ``seconds`` the training
    took in all; ``effective``: its steps, momentum counted.
    """

    kind: Literal["delta"] = "delta"
    memory: Crc = 0
    accuracy_shared: Share | None = None
    accuracy_after: Share | None = None
    accuracy_alone: Share | None = None
    rho: Measure | None = None
    beta: Measure | None = None
    gradient_norm: Measure | None = None
    seconds: Measure = 0.0
    ms_per_step: Measure = 0.0
    effective: Measure = 0.0


_EXTRAS = msgspec.msgpack.Decoder(Extras)


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
    extras: Extras | None = None  # None: version 1


def encode_extras(extras: Extras) -> bytes:
    """Return ``extras`` as msgpack; numbers take the few bytes that their values need.

    Raises:
        ValueError: they are too long.
    """
    data = msgspec.msgpack.encode(extras)
    if len(data) > MAX_EXTRAS_BYTES:
        raise ValueError(f"extras of {len(data)} bytes, at most {MAX_EXTRAS_BYTES}")
    return data


def decode_extras(data: bytes) -> Extras:
    """Read what `encode_extras` wrote.

    Raises:
        PayloadError: it is nothing of the kind.
    """
    try:
        return _EXTRAS.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PayloadError(f"update header: extras: {error}") from None


def encode_header(header: UpdateHeader) -> bytes:
    """Return what stands before the payload.

    Raises:
        ValueError: a field is out of range.
    """
    if not NAME.fullmatch(header.task):
        raise ValueError(f"task {header.task!r}")
    if header.payload_size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"payload of {header.payload_size} bytes, at most {MAX_PAYLOAD_BYTES}")
    if header.accuracy is not None and not 0 <= header.accuracy <= 1:
        raise ValueError(f"accuracy {header.accuracy}")
    if not (math.isfinite(header.loss_first) and math.isfinite(header.loss_last)):
        raise ValueError(f"losses {header.loss_first} and {header.loss_last}: not finite")
    numbers = (header.base, header.samples, header.steps, header.payload_size)
    if max(numbers) > MAX_COUNT:
        raise ValueError(f"{max(numbers)} is above {MAX_COUNT}")
    task = header.task.encode("ascii")
    accuracy = math.nan if header.accuracy is None else header.accuracy
    try:
        metrics = _METRICS.pack(header.loss_first, header.loss_last, accuracy)
    except OverflowError:
        raise ValueError("a loss beyond float32") from None
    parts = [MAGIC, bytes([1 if header.extras is None else 2, len(task)]), task]
    parts += [varint(number) for number in numbers]
    parts += [metrics, bytes.fromhex(header.payload_sha256)]
    if header.extras is not None:
        extras = encode_extras(header.extras)
        parts += [varint(len(extras)), extras]
    return b"".join(parts)


def encode_update(header: UpdateHeader, payload: bytes) -> bytes:
    """Return the update as bytes.

    Raises:
        ValueError: a field is out of range, or ``header`` does not describe ``payload``.
    """
    if (header.payload_size, header.payload_sha256) != (
        len(payload),
        hashlib.sha256(payload).hexdigest(),
    ):
        raise ValueError("the header's size and digest are not those of the payload")
    return encode_header(header) + payload


def decode_header(head: bytes) -> tuple[UpdateHeader, int]:
    """Read the header from the first bytes of an update (its first chunk will do).

    Returns:
        The header, and how many bytes it took.

    Raises:
        PayloadError: not an update, or cut off within the header.
    """
    version = head[len(MAGIC)] if len(head) > len(MAGIC) else 0
    if head[: len(MAGIC)] != MAGIC or version not in VERSIONS:
        raise PayloadError("not an update: it does not begin with EU and version 1 or 2")
    reader = Reader(head, what="update header")
    reader.take(len(MAGIC) + 1)
    task = reader.take(reader.byte()).decode("ascii", "replace")
    if not NAME.fullmatch(task):
        raise PayloadError("update header: no valid task name")
    base, samples, steps, payload_size = (reader.varint(MAX_COUNT) for _ in range(4))
    loss_first, loss_last, accuracy = _METRICS.unpack(reader.take(_METRICS.size))
    digest = reader.take(hashlib.sha256().digest_size)
    if not (math.isfinite(loss_first) and math.isfinite(loss_last)):
        raise PayloadError("update header: a loss that is not finite")
    if not (math.isnan(accuracy) or 0 <= accuracy <= 1):
        raise PayloadError(f"update header: accuracy {accuracy}")
    if payload_size > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"update header: payload of {payload_size} bytes")
    extras = None
    if version > 1:
        extras = decode_extras(reader.take(reader.varint(MAX_EXTRAS_BYTES)))
    header = UpdateHeader(
        task=task,
        base=base,
        samples=samples,
        steps=steps,
        loss_first=loss_first,
        loss_last=loss_last,
        accuracy=None if math.isnan(accuracy) else accuracy,
        payload_size=payload_size,
        payload_sha256=digest.hex(),
        extras=extras,
    )
    return header, reader.at


def context_in(payload: bytes) -> int | None:
    """Return the digest of the context that ``payload`` was made in, from its first five bytes.

    None: it needs none, or is in its npz form, which no device sends.
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
    return header, payload_of(header, data[start:])


def payload_of(header: UpdateHeader, payload: bytes) -> bytes:
    """Return ``payload``, checked.

    Raises:
        PayloadError: it is not the one that ``header`` describes.
    """
    payload = bytes(payload)
    if len(payload) != header.payload_size:
        raise PayloadError(
            f"update: {len(payload)} bytes of payload, its header says {header.payload_size}"
        )
    found = hashlib.sha256(payload).hexdigest()
    if found != header.payload_sha256:
        mismatch = DigestMismatchError(expected=header.payload_sha256, found=found)
        raise PayloadError(f"update: {mismatch}") from mismatch
    return payload
