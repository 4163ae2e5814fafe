"""What is in an outbox, as values; and a look at it from beside the agent."""

from pathlib import Path
from typing import NamedTuple

from edge_agent.updates.outbox_facts import FACTS, OutboxFacts
from edge_agent.updates.outbox_file import Question, Rows, ask_beside
from models.errors import TransientError
from models.protocol.update_life import OutboxState

__all__ = ["CODEC", "ENTRIES", "REFUNDS", "CodecState", "Contents", "Entry", "Trained", "read_only"]


class Entry(NamedTuple):
    """An update that waits for its final receipt."""

    seq: int
    state: OutboxState
    base: int  # the release that it was trained on
    chunk_size: int
    size: int  # bytes, header included

    @property
    def has_left(self) -> bool:
        """Whether the server may hold it, so that nobody but the server may end it."""
        return self.state is not OutboxState.QUEUED


class CodecState(NamedTuple):
    """What the codec carries from one training to the next: names of files in ``codec/``."""

    job: int  # the last training that was committed
    residual: str | None
    personal: str | None


class Trained(NamedTuple):
    """The result of one training, ready to be committed."""

    job: int
    base: int
    header: bytes  # `models.protocol.update`, without the payload
    payload: bytes
    residual: str | None
    personal: str | None
    merged: tuple[int, ...]  # the refunds that are part of the new residual
    lost: int  # refunds that could not be read


def _entries(rows: Rows) -> list[Entry]:
    return [Entry(seq, OutboxState(state), *rest) for seq, state, *rest in rows]


def _codec(rows: Rows) -> CodecState | None:
    return CodecState(*rows[0]) if rows else None


def _numbers(rows: Rows) -> list[int]:
    return [number for (number,) in rows]


ENTRIES = Question(
    "updates",
    "SELECT seq, state, base, chunk_size, length(data) FROM updates ORDER BY seq",
    _entries,
)
CODEC = Question("codec", "SELECT job, residual, personal FROM codec", _codec)
REFUNDS = Question("refunds", "SELECT seq FROM refunds ORDER BY seq", _numbers)


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
