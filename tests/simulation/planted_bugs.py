"""Seven mistakes that the simulator must find: each replaces a piece of the product for a while.

They are what people write when nobody cuts their power; none of them shows on a good day.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import broker.server
import models.durable
from broker.server import Server
from broker.update_records import UpdateRecords
from edge_agent.outbox import Outbox
from models.payload.messages import Receipt
from tools.simulation.light_learning import substituted

__all__ = ["BUGS", "planted"]


@contextmanager
def ack_before_commit() -> Iterator[None]:
    """The server acknowledges what came before it is committed."""
    take_in = Server._take_in

    def hasty(self: Server, now: float) -> None:
        for message in self._held:
            self._link.acknowledge(message)
        take_in(self, now)

    with substituted((Server, "_take_in", hasty)):
        yield


@contextmanager
def no_dedupe() -> Iterator[None]:
    """The server forgets which updates were settled as soon as their rows are gone."""
    receipt = UpdateRecords.receipt

    def forgetful(self: UpdateRecords, key: Any) -> Receipt:
        found = receipt(self, key)
        if found.state in ("folded", "refused"):
            self._registry.execute(
                "DELETE FROM updates WHERE device = ? AND installation = ? AND sequence = ?", *key
            )
            self._registry.execute(
                "DELETE FROM settled WHERE device = ? AND installation = ? AND first <= ? "
                "AND last >= ?",
                *key,
                key.sequence,
            )
            return Receipt(key.update_id, "unknown")
        return found

    with substituted((UpdateRecords, "receipt", forgetful)):
        yield


@contextmanager
def no_refund() -> Iterator[None]:
    """A refused or evicted update is thrown away."""

    def thrown_away(self: Outbox, seq: int) -> None:
        self._database.execute("DELETE FROM updates WHERE seq = ?", (seq,))

    with substituted((Outbox, "_refund", thrown_away)):
        yield


@contextmanager
def rename_without_fsync() -> Iterator[None]:
    """A file is written and renamed, and nothing is synced."""

    def careless(path: Path, pieces: Any) -> None:
        draft = path.with_name(path.name + ".draft")
        with open(draft, "wb") as file:
            for piece in pieces:  # noqa: FURB122
                file.write(piece)
        os.replace(draft, path)  # noqa: PTH105

    with substituted((models.durable, "atomic_write_pieces", careless)):
        yield


@contextmanager
def lost_residual() -> Iterator[None]:
    """The codec's state is written after the update's transaction, in one of its own."""
    commit = Outbox.commit

    def in_two(self: Outbox, trained: Any, **options: Any) -> Any:
        before = self.codec()
        made = commit(self, trained._replace(residual=before.residual), **options)
        self._database.execute("UPDATE codec SET residual = ?", (trained.residual,))
        return made

    with substituted((Outbox, "commit", in_two)):
        yield


@contextmanager
def receipt_before_commit() -> Iterator[None]:
    """The receipt is published while the transaction is still open."""
    take_chunk = broker.server.Inbox.take_chunk

    def hasty(self: Any, chunk: Any, data: bytes, tasks: Any, now: float) -> Receipt | None:
        receipt = take_chunk(self, chunk, data, tasks, now)
        if receipt is not None:
            server = _servers[-1]
            server._receipts.add(chunk.device, receipt)
            server._receipts.pump(server._link)
        return receipt

    _servers: list[Server] = []
    take_in = Server._take_in

    def remembered(self: Server, now: float) -> None:
        _servers[:] = [self]
        take_in(self, now)

    with substituted((broker.server.Inbox, "take_chunk", hasty), (Server, "_take_in", remembered)):
        yield


@contextmanager
def chunk_bitmap_off_by_one() -> Iterator[None]:
    """The chunks that are missing are counted from one instead of zero."""
    missing = UpdateRecords._missing

    def shifted(self: UpdateRecords, key: Any, partial: Any) -> tuple[int, ...]:
        return tuple(number + 1 for number in missing(self, key, partial))

    with substituted((UpdateRecords, "_missing", shifted)):
        yield


BUGS: dict[str, Callable[[], Any]] = {
    "ack_before_commit": ack_before_commit,
    "no_dedupe": no_dedupe,
    "no_refund": no_refund,
    "rename_without_fsync": rename_without_fsync,
    "lost_residual": lost_residual,
    "receipt_before_commit": receipt_before_commit,
    "chunk_bitmap_off_by_one": chunk_bitmap_off_by_one,
}


def planted(name: str) -> Any:
    """Return a context in which the product has the mistake ``name``."""
    return BUGS[name]()
