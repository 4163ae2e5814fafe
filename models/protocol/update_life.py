"""The life of an update, as the device that made it keeps it and as the server does. Pure.

Two tables, since neither side sees all of the other's: the device moves by what it does and by
receipts, the server by chunks and folds. Outbox and records ask them before they move anything.
The values are what databases hold and what receipts say. docs/protocol.md shows both.
"""

from enum import StrEnum

from models.life import Life, Step

__all__ = [
    "FINAL",
    "ON_DEVICE",
    "ON_SERVER",
    "WAITING",
    "DeviceEvent",
    "DeviceState",
    "ServerEvent",
    "ServerState",
]


class DeviceState(StrEnum):
    """Of an update, on the device that made it."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    STORED = "stored"
    FOLDED = "folded"
    REFUNDED = "refunded"
    MERGED = "merged"
    DROPPED = "dropped"


class DeviceEvent(StrEnum):
    """What happens to it there."""

    BEGUN = "begun"  # its first chunk is about to leave, for the first time or again
    ACKNOWLEDGED = "acknowledged"  # the broker took over its last chunk, which promises nothing
    STORED = "receipt says stored"
    FOLDED = "receipt says folded"
    REFUSED = "receipt says refused"
    CROWDED = "no room"  # for a newer one
    READDRESSED = "device renamed"  # or given to another task
    GIVEN_UP = "task given up"
    LEARNED = "next training"  # took its payload into the residual


class ServerState(StrEnum):
    """Of an update, on the server; what a receipt says of it."""

    UNKNOWN = "unknown"
    PARTIAL = "partial"
    STORED = "stored"
    FOLDED = "folded"
    REFUSED = "refused"


class ServerEvent(StrEnum):
    """What happens to it there."""

    CHUNK = "chunk"
    WHOLE = "whole"  # with its last chunk, and its digest is right
    DAMAGED = "damaged"  # with its last chunk, and its digest is wrong
    EVICTED = "no room"  # or its device was forgotten, or cuts it otherwise now
    UNFIT = "header unfit"
    FOLDED = "folded"
    REFUSED = "refused"  # by the fold
    UNREADABLE = "disk unreadable"


# A receipt can come for what never left: an outbox from a backup, or a copied card.
ON_DEVICE = Life(
    (
        Step(DeviceState.QUEUED, DeviceEvent.BEGUN, DeviceState.SENDING),
        Step(DeviceState.QUEUED, DeviceEvent.CROWDED, DeviceState.REFUNDED),
        Step(DeviceState.QUEUED, DeviceEvent.READDRESSED, DeviceState.REFUNDED),
        Step(DeviceState.QUEUED, DeviceEvent.STORED, DeviceState.STORED),
        Step(DeviceState.QUEUED, DeviceEvent.FOLDED, DeviceState.FOLDED),
        Step(DeviceState.QUEUED, DeviceEvent.REFUSED, DeviceState.REFUNDED),
        Step(DeviceState.SENDING, DeviceEvent.BEGUN, DeviceState.SENDING),
        Step(DeviceState.SENDING, DeviceEvent.ACKNOWLEDGED, DeviceState.SENT),
        Step(DeviceState.SENDING, DeviceEvent.STORED, DeviceState.STORED),
        Step(DeviceState.SENDING, DeviceEvent.FOLDED, DeviceState.FOLDED),
        Step(DeviceState.SENDING, DeviceEvent.REFUSED, DeviceState.REFUNDED),
        Step(DeviceState.SENDING, DeviceEvent.READDRESSED, DeviceState.DROPPED),
        Step(DeviceState.SENT, DeviceEvent.BEGUN, DeviceState.SENDING),
        Step(DeviceState.SENT, DeviceEvent.STORED, DeviceState.STORED),
        Step(DeviceState.SENT, DeviceEvent.FOLDED, DeviceState.FOLDED),
        Step(DeviceState.SENT, DeviceEvent.REFUSED, DeviceState.REFUNDED),
        Step(DeviceState.SENT, DeviceEvent.READDRESSED, DeviceState.DROPPED),
        Step(DeviceState.STORED, DeviceEvent.BEGUN, DeviceState.SENDING),
        Step(DeviceState.STORED, DeviceEvent.STORED, DeviceState.STORED),
        Step(DeviceState.STORED, DeviceEvent.FOLDED, DeviceState.FOLDED),
        Step(DeviceState.STORED, DeviceEvent.REFUSED, DeviceState.REFUNDED),
        Step(DeviceState.STORED, DeviceEvent.READDRESSED, DeviceState.DROPPED),
        Step(DeviceState.REFUNDED, DeviceEvent.LEARNED, DeviceState.MERGED),
        Step(DeviceState.REFUNDED, DeviceEvent.GIVEN_UP, DeviceState.DROPPED),
    ),
    durable={
        DeviceState.QUEUED: "the update, with the codec state that it leaves; it never left",
        DeviceState.SENDING: "the update; the server may have it from now on",
        DeviceState.SENT: "the update; the server is asked for it",
        DeviceState.STORED: "the update; the server holds it too",
        DeviceState.FOLDED: "that one more of ours is in its release",
        DeviceState.REFUNDED: "the payload, for the next training",
        DeviceState.MERGED: "the residual that its payload is part of, or that it was unreadable",
        DeviceState.DROPPED: "nothing",
    },
)
WAITING = tuple(  # for a final receipt: what stands in the outbox as an update
    state for state in DeviceState if ON_DEVICE.allows(state, DeviceEvent.FOLDED)
)

ON_SERVER = Life(
    (
        Step(ServerState.UNKNOWN, ServerEvent.CHUNK, ServerState.PARTIAL),
        Step(ServerState.UNKNOWN, ServerEvent.WHOLE, ServerState.STORED),
        Step(ServerState.UNKNOWN, ServerEvent.DAMAGED, ServerState.UNKNOWN),
        Step(ServerState.UNKNOWN, ServerEvent.UNFIT, ServerState.REFUSED),
        Step(ServerState.PARTIAL, ServerEvent.CHUNK, ServerState.PARTIAL),
        Step(ServerState.PARTIAL, ServerEvent.WHOLE, ServerState.STORED),
        Step(ServerState.PARTIAL, ServerEvent.DAMAGED, ServerState.UNKNOWN),
        Step(ServerState.PARTIAL, ServerEvent.EVICTED, ServerState.UNKNOWN),
        Step(ServerState.PARTIAL, ServerEvent.UNFIT, ServerState.REFUSED),
        Step(ServerState.STORED, ServerEvent.FOLDED, ServerState.FOLDED),
        Step(ServerState.STORED, ServerEvent.REFUSED, ServerState.REFUSED),
        Step(ServerState.STORED, ServerEvent.UNREADABLE, ServerState.REFUSED),
    ),
    durable={
        ServerState.UNKNOWN: "nothing",
        ServerState.PARTIAL: "the chunks that came",
        ServerState.STORED: "the update",
        ServerState.FOLDED: "its number, for ever; the release that it is in",
        ServerState.REFUSED: "its number, for ever; a while, the reason",
    },
)
FINAL = ON_SERVER.ends()
