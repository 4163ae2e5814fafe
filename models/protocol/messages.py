"""The control messages between device and server: small JSON objects with a schema. Pure."""

from typing import Annotated, Any, TypeVar

import msgspec

from models.errors import PayloadError
from models.protocol.names import Digest, UpdateId
from models.protocol.update_life import ReceiptState

__all__ = [
    "MAX_BYTES",
    "STILL_HERE_S",
    "Receipt",
    "Receipts",
    "Request",
    "ServerStatus",
    "Status",
    "decode_message",
    "encode_message",
]

MAX_BYTES = 32 * 1024
# A device that has nothing to say says at least this often that it is there, by an empty `Request`
# (60 bytes with its acknowledgment); the server calls it silent when even that stays out.
STILL_HERE_S = 3600.0

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Text = Annotated[str, msgspec.Meta(max_length=400)]


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The server's durable answer to one update.

    ``partial``: we hold some chunks, ``missing`` names the others (at most 256 of them).
    ``stored``: committed; it survives a power cut of the server.
    ``folded``: part of ``release``, or of what release ``release`` was made from.
    ``refused``: never to be folded, for ``reason``; the device takes the work back.
    ``unknown``: we hold nothing of it; send it (again).
    ``reset``: with ``refused``; the memory of this device is not the one here, it begins anew. Only
    for who sent a header of version 2.
    """

    update: UpdateId
    state: ReceiptState
    release: Count = 0
    reason: Text = ""
    missing: Annotated[tuple[Count, ...], msgspec.Meta(max_length=256)] = ()
    reset: bool = False


class Receipts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the topic ``device/<id>/receipt`` carries."""

    receipts: Annotated[tuple[Receipt, ...], msgspec.Meta(max_length=64)]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a device asks for on ``device/<id>/request``.

    ``receipts``: the state of these updates. ``blobs``: chunks that the broker does not have
    (any more), by artifact. ``release``: the manifest of this task. Nothing at all: it only says
    that the device is still there.
    """

    receipts: Annotated[tuple[UpdateId, ...], msgspec.Meta(max_length=64)] = ()
    blobs: Annotated[
        dict[Digest, Annotated[tuple[Count, ...], msgspec.Meta(max_length=256)]],
        msgspec.Meta(max_length=8),
    ] = {}
    release: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device says of itself on its retained topic ``device/<id>/status``.

    The will is ``Status(online=False)``. Unknown fields are ignored, so that an old server
    reads a new device.
    """

    online: bool
    task: Annotated[str, msgspec.Meta(max_length=64)] = ""
    state: Annotated[str, msgspec.Meta(max_length=32)] = ""  # waiting, downloading, training, ...
    boot: Count = 0  # how often this installation was started
    installation: Annotated[str, msgspec.Meta(max_length=8)] = ""
    run: Annotated[str, msgspec.Meta(max_length=8)] = ""  # drawn at each start of the process
    release: Count = 0  # 0: none installed yet
    samples: Count = 0  # to train on
    samples_ever: Count = 0  # since the beginning, those dropped since included
    updates_made: Count = 0
    updates_folded: Count = 0
    updates_refused: Count = 0
    updates_waiting: Count = 0
    accuracy_first: float | None = None  # of the first installed release on the local hold-out
    accuracy: float | None = None  # of what it runs, likewise
    accuracy_shared: float | None = None  # of the release, with the bundle's own personal values
    accuracy_after: float | None = None  # of what came of the last training, whatever runs
    accuracy_alone: float | None = None  # of a model trained on this device's data alone
    serves: Annotated[str, msgspec.Meta(max_length=16)] = ""  # what it runs: "released", "tuned"
    holdout: Count = 0  # samples to measure with
    bytes_up: Count = 0
    bytes_down: Count = 0
    rss_mb: float = 0.0  # this agent, now
    peak_rss_mb: float = 0.0  # this agent, at most
    trainer_peak_rss_mb: float = 0.0
    problem: Text = ""  # the last thing that an operator should look at
    version: Annotated[str, msgspec.Meta(max_length=32)] = ""
    follows: Count = 0  # manifests that need at most so much (`Manifest.needs`)


class ServerStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who serves the fleet, on the retained topic ``server/status``: the lease of one server.

    The will is the same with ``online`` false. Unknown fields are ignored.
    """

    online: bool
    instance: Annotated[str, msgspec.Meta(max_length=16)] = ""  # drawn at each start of the process
    host: Annotated[str, msgspec.Meta(max_length=64)] = ""  # for people
    since: float = 0.0  # Unix seconds, by the server's clock: when it began to serve
    tasks: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=100)
    ] = ()
    version: Annotated[str, msgspec.Meta(max_length=32)] = ""


Message = TypeVar("Message", Receipts, Request, Status, ServerStatus)
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Receipts, Request, Status, ServerStatus)
}


def encode_message(message: Receipts | Request | Status | ServerStatus) -> bytes:
    """Return ``message`` as JSON."""
    return msgspec.json.encode(message)


def decode_message(data: bytes, kind: type[Message]) -> Message:
    """Read a message of ``kind``.

    Raises:
        PayloadError: it is none.
    """
    if len(data) > MAX_BYTES:
        raise PayloadError(f"{kind.__name__} of {len(data)} bytes, at most {MAX_BYTES} are allowed")
    try:
        message: Message = _DECODERS[kind].decode(data)
        return message
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PayloadError(f"{kind.__name__}: {error}") from None
