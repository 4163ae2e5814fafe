"""What is in an outbox, as values; and a look at it from beside the agent."""

from pathlib import Path
from typing import NamedTuple

from edge_agent.updates.outbox_facts import FACTS, OutboxFacts
from edge_agent.updates.outbox_file import Question, Rows, ask_beside
from models.errors import TransientError
from models.protocol.update_life import OutboxState

__all__ = [
    "CODEC",
    "ENTRIES",
    "CodecState",
    "Committed",
    "Contents",
    "Entry",
    "Trained",
    "read_only",
]


class Entry(NamedTuple):
    """An update that waits for its final receipt."""

    seq: int
    state: OutboxState
    base: int  # the release that it was trained on
    chunk_size: int
    size: int  # bytes, header included
    has_memory: bool = False  # made against one that the server shares: see `WITH_MEMORY`

    @property
    def has_left(self) -> bool:
        """Whether the server may hold it, so that nobody but the server may end it."""
        return self.state is not OutboxState.QUEUED


class CodecState(NamedTuple):
    """What is carried from one training to the next: names of files in ``codec/``."""

    job: int  # the last training that was committed
    residual: str | None  # e, what is owed
    personal: str | None
    history: str | None = None  # h, what the server remembers of this device; None: zeros
    tuned: str | None = None  # this device's own model
    feedback: str | None = None  # the method that h and e are of; None: residual

    def history_for(self, feedback: str) -> str | None:
        """Return h for a training under ``feedback``: with another method it begins at zeros."""
        return self.history if self.feedback == feedback else None


class Trained(NamedTuple):
    """The result of one training, ready to be committed.

    With a memory, ``residual`` is what is owed *before* this update, refunds included, and the next
    two what is carried once it is folded; ``history`` is the h that it was made against. Without a
    payload there is nothing to send: of all this only ``personal`` and ``tuned`` count.
    """

    job: int
    base: int
    header: bytes  # `models.protocol.update`, without the payload
    payload: bytes
    residual: str | None
    personal: str | None
    merged: tuple[int, ...]  # the refunds that are part of the new residual
    lost: int  # refunds that could not be read
    feedback: str = "residual"
    history: str | None = None
    next_history: str | None = None
    next_owed: str | None = None
    tuned: str | None = None


class Committed(NamedTuple):
    """What came of committing a training."""

    seq: int  # of the update; 0: there is none
    merged_back: int = 0  # updates that had not left, which are refunds now
    replaced: int = 0  # likewise, made against the same memory, which are gone


def _entries(rows: Rows) -> list[Entry]:
    return [
        Entry(seq, OutboxState(state), base, chunk_size, size, *map(bool, has_memory))
        for seq, state, base, chunk_size, size, *has_memory in rows
    ]


def _codec(rows: Rows) -> CodecState | None:
    return CodecState(*rows[0][1 : 1 + len(CodecState._fields)]) if rows else None


_ENTRY = "SELECT seq, state, base, chunk_size, length(data)"
ENTRIES = Question(
    "updates",
    f"{_ENTRY}, next_history IS NOT NULL FROM updates ORDER BY seq",
    _entries,
    at_first=f"{_ENTRY} FROM updates ORDER BY seq",
)
CODEC = Question("codec", "SELECT * FROM codec", _codec)


class Contents(NamedTuple):
    """What an onlooker sees of an outbox."""

    waiting: list[Entry]
    facts: OutboxFacts
    codec: CodecState


def read_only(path: Path) -> Contents:
    """Return what is in an outbox that another process may be using.

    Raises:
        TransientError: there is none, or it cannot be read now.
        PermissionError: we may not read it.
    """
    waiting, facts, codec = ask_beside(path, (ENTRIES, FACTS, CODEC))
    if codec is None:
        raise TransientError(f"{path}: it is being made now")
    return Contents(waiting, facts, codec)
