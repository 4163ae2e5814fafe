"""The life of an update, as the device that made it keeps it and as the server does. Pure.

A table for each side, since neither sees all of the other's: the device moves by what it does and
by receipts, the server by chunks and folds. The device has two: what was made against a memory that
the server shares (`models.codec.feedback`) is never taken back, the next training says it anew.
Outbox and records ask them before they move anything. The values are what databases hold and what
receipts say. docs/protocol.md shows all three.
"""

from enum import StrEnum

from models.life import Life, Step

__all__ = [
    "FINAL",
    "ON_DEVICE",
    "ON_SERVER",
    "WAITING",
    "WITH_MEMORY",
    "OutboxEvent",
    "OutboxState",
    "ReceiptEvent",
    "ReceiptState",
]


class OutboxState(StrEnum):
    """Of an update, on the device that made it."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    STORED = "stored"
    FOLDED = "folded"
    REFUNDED = "refunded"
    MERGED = "merged"
    REPLACED = "replaced"
    DROPPED = "dropped"


class OutboxEvent(StrEnum):
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
    OVERTAKEN = "newer update"  # of a later training, made against the same memory


class ReceiptState(StrEnum):
    """Of an update, on the server; what a receipt says of it."""

    UNKNOWN = "unknown"
    PARTIAL = "partial"
    STORED = "stored"
    FOLDED = "folded"
    REFUSED = "refused"


class ReceiptEvent(StrEnum):
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
        Step(OutboxState.QUEUED, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.QUEUED, OutboxEvent.CROWDED, OutboxState.REFUNDED),
        Step(OutboxState.QUEUED, OutboxEvent.READDRESSED, OutboxState.REFUNDED),
        Step(OutboxState.QUEUED, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.QUEUED, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.QUEUED, OutboxEvent.REFUSED, OutboxState.REFUNDED),
        Step(OutboxState.SENDING, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.SENDING, OutboxEvent.ACKNOWLEDGED, OutboxState.SENT),
        Step(OutboxState.SENDING, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.SENDING, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.SENDING, OutboxEvent.REFUSED, OutboxState.REFUNDED),
        Step(OutboxState.SENDING, OutboxEvent.READDRESSED, OutboxState.DROPPED),
        Step(OutboxState.SENT, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.SENT, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.SENT, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.SENT, OutboxEvent.REFUSED, OutboxState.REFUNDED),
        Step(OutboxState.SENT, OutboxEvent.READDRESSED, OutboxState.DROPPED),
        Step(OutboxState.STORED, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.STORED, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.STORED, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.STORED, OutboxEvent.REFUSED, OutboxState.REFUNDED),
        Step(OutboxState.STORED, OutboxEvent.READDRESSED, OutboxState.DROPPED),
        Step(OutboxState.REFUNDED, OutboxEvent.LEARNED, OutboxState.MERGED),
        Step(OutboxState.REFUNDED, OutboxEvent.GIVEN_UP, OutboxState.DROPPED),
    ),
    durable={
        OutboxState.QUEUED: "the update, with the codec state that it leaves; it never left",
        OutboxState.SENDING: "the update; the server may have it from now on",
        OutboxState.SENT: "the update; the server is asked for it",
        OutboxState.STORED: "the update; the server holds it too",
        OutboxState.FOLDED: "that one more of ours is in its release",
        OutboxState.REFUNDED: "the payload, for the next training",
        OutboxState.MERGED: "the residual that its payload is part of, or that it was unreadable",
        OutboxState.DROPPED: "nothing",
    },
)
WAITING = tuple(  # for a final receipt: what stands in the outbox as an update
    state for state in OutboxState if ON_DEVICE.allows(state, OutboxEvent.FOLDED)
)

WITH_MEMORY = Life(
    (
        Step(OutboxState.QUEUED, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.QUEUED, OutboxEvent.OVERTAKEN, OutboxState.REPLACED),
        Step(OutboxState.QUEUED, OutboxEvent.READDRESSED, OutboxState.DROPPED),
        Step(OutboxState.QUEUED, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.QUEUED, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.QUEUED, OutboxEvent.REFUSED, OutboxState.DROPPED),
        Step(OutboxState.SENDING, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.SENDING, OutboxEvent.ACKNOWLEDGED, OutboxState.SENT),
        Step(OutboxState.SENDING, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.SENDING, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.SENDING, OutboxEvent.REFUSED, OutboxState.DROPPED),
        Step(OutboxState.SENDING, OutboxEvent.READDRESSED, OutboxState.DROPPED),
        Step(OutboxState.SENT, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.SENT, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.SENT, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.SENT, OutboxEvent.REFUSED, OutboxState.DROPPED),
        Step(OutboxState.SENT, OutboxEvent.READDRESSED, OutboxState.DROPPED),
        Step(OutboxState.STORED, OutboxEvent.BEGUN, OutboxState.SENDING),
        Step(OutboxState.STORED, OutboxEvent.STORED, OutboxState.STORED),
        Step(OutboxState.STORED, OutboxEvent.FOLDED, OutboxState.FOLDED),
        Step(OutboxState.STORED, OutboxEvent.REFUSED, OutboxState.DROPPED),
        Step(OutboxState.STORED, OutboxEvent.READDRESSED, OutboxState.DROPPED),
    ),
    durable={
        OutboxState.QUEUED: "the update, beside it the memory that it leaves; it never left",
        OutboxState.SENDING: "the update; the server may have it from now on, no other may leave",
        OutboxState.SENT: "the update; the server is asked for it",
        OutboxState.STORED: "the update; the server holds it too",
        OutboxState.FOLDED: "the memory that it left; that one more of ours is in its release",
        OutboxState.REPLACED: "the newer update; the memory as it was before both",
        OutboxState.DROPPED: "the memory as it was before it, or none where the receipt says reset",
    },
)

ON_SERVER = Life(
    (
        Step(ReceiptState.UNKNOWN, ReceiptEvent.CHUNK, ReceiptState.PARTIAL),
        Step(ReceiptState.UNKNOWN, ReceiptEvent.WHOLE, ReceiptState.STORED),
        Step(ReceiptState.UNKNOWN, ReceiptEvent.DAMAGED, ReceiptState.UNKNOWN),
        Step(ReceiptState.UNKNOWN, ReceiptEvent.UNFIT, ReceiptState.REFUSED),
        Step(ReceiptState.PARTIAL, ReceiptEvent.CHUNK, ReceiptState.PARTIAL),
        Step(ReceiptState.PARTIAL, ReceiptEvent.WHOLE, ReceiptState.STORED),
        Step(ReceiptState.PARTIAL, ReceiptEvent.DAMAGED, ReceiptState.UNKNOWN),
        Step(ReceiptState.PARTIAL, ReceiptEvent.EVICTED, ReceiptState.UNKNOWN),
        Step(ReceiptState.PARTIAL, ReceiptEvent.UNFIT, ReceiptState.REFUSED),
        Step(ReceiptState.STORED, ReceiptEvent.FOLDED, ReceiptState.FOLDED),
        Step(ReceiptState.STORED, ReceiptEvent.REFUSED, ReceiptState.REFUSED),
        Step(ReceiptState.STORED, ReceiptEvent.UNREADABLE, ReceiptState.REFUSED),
    ),
    durable={
        ReceiptState.UNKNOWN: "nothing",
        ReceiptState.PARTIAL: "the chunks that came",
        ReceiptState.STORED: "the update",
        ReceiptState.FOLDED: "its number, for ever; the release that it is in",
        ReceiptState.REFUSED: "its number, for ever; a while, the reason",
    },
)
FINAL = ON_SERVER.ends()
