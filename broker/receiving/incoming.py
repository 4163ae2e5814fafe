"""What a message of the fleet says, parsed once. Believes nothing; an error is a value. Pure."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from models.errors import PayloadError
from models.protocol.manifest import Manifest, decode_manifest, release_in
from models.protocol.messages import Request, Status, decode_message
from models.protocol.topics import DeviceTopic, Topics, UpdateChunk
from models.protocol.update import MAX_HEADER_BYTES, UpdateHeader, decode_header
from models.transport.link import Received

__all__ = [
    "Announcement",
    "ArrivedChunk",
    "Asked",
    "Incoming",
    "Malformed",
    "SaidStatus",
    "arrived",
    "parsed",
]

Said = TypeVar("Said")


class Malformed(NamedTuple):
    """Nothing that we could read."""

    why: str


class ArrivedChunk(NamedTuple):
    """A piece of an update."""

    device: str
    update_id: str
    number: int
    data: bytes
    head: tuple[UpdateHeader, int] | Malformed | None  # of chunk 0: header and its length in bytes

    @property
    def opening(self) -> tuple[UpdateHeader, int]:
        """What the first chunk begins with.

        Raises:
            PayloadError: no header that we could read.
        """
        if self.head is None or isinstance(self.head, Malformed):
            raise PayloadError(self.head.why if self.head else "not the first chunk")
        return self.head


class SaidStatus(NamedTuple):
    """What a device says of itself."""

    device: str
    status: Status | Malformed


class Asked(NamedTuple):
    """What a device asks for."""

    device: str
    request: Request | Malformed


class Announcement(NamedTuple):
    """What stands on the topic that only the fleet's server writes."""

    task: str
    manifest: Manifest | Malformed
    release: int  # its number, also where a newer version wrote it; 0: not to be read either


class Incoming(NamedTuple):
    """A message and what it says; `Malformed`: it is of no topic of ours, None: nothing to us."""

    message: Received
    says: ArrivedChunk | SaidStatus | Asked | Announcement | Malformed | None

    @property
    def device(self) -> str:
        """Whose it is; "" if no device's."""
        match self.says:
            case ArrivedChunk(device) | SaidStatus(device) | Asked(device):
                return device
        return ""


def parsed(topics: Topics, message: Received) -> Incoming:
    """Return what ``message`` says, whatever its bytes."""
    payload = message.payload
    match _said(lambda: topics.parse(message.topic)):
        case Malformed() as malformed:
            return Incoming(message, malformed)
        case UpdateChunk() as place:
            return Incoming(message, arrived(place, payload))
        case DeviceTopic(device, "status") if payload:  # else somebody cleared it
            status = _said(lambda: decode_message(payload, Status))
            return Incoming(message, SaidStatus(device, status))
        case DeviceTopic(device, "request"):
            return Incoming(message, Asked(device, _said(lambda: decode_message(payload, Request))))
        case str(task) if payload:
            manifest = _said(lambda: decode_manifest(payload))
            return Incoming(message, Announcement(task, manifest, release_in(payload)))
    return Incoming(message, None)


def arrived(place: UpdateChunk, data: bytes) -> ArrivedChunk:
    """Return the chunk ``data``; where it is the first, with the header of its update."""
    is_first = place.number == 0
    head = _said(lambda: decode_header(data[:MAX_HEADER_BYTES])) if is_first else None
    return ArrivedChunk(*place, data, head)


def _said(read: Callable[[], Said]) -> Said | Malformed:
    try:
        return read()
    except PayloadError as error:
        return Malformed(str(error))
