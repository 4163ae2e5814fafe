"""What this device has learned and the server has not yet answered for: durable, in SQLite.

A training result enters in one transaction with the codec's state (residual, personal values), so
a crash neither loses nor doubles what was left out of a payload. An update leaves only by the
server's final receipt; how it moves until then says `models.protocol.update_life`. One that was
made against a memory (docs/protocol.md) names the state that it leaves; that becomes the codec's
in the transaction of its receipt, and no second one leaves before. Large
vectors lie in files that are complete and durable before the transaction that names them; files
that no transaction names are garbage.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge_agent.updates.codec_table import CodecTable
from edge_agent.updates.outbox_contents import ENTRIES, CodecState, Committed, Entry, Trained
from edge_agent.updates.outbox_facts import OF_UPDATES, FactTable, Noted
from edge_agent.updates.outbox_file import OutboxFile
from edge_agent.updates.own_folds import OwnFolds
from models.errors import TransientError
from models.life import Life
from models.protocol.messages import Receipt
from models.protocol.update_life import (
    ON_DEVICE,
    WAITING,
    WITH_MEMORY,
    OutboxEvent,
    OutboxState,
    ReceiptState,
)

__all__ = ["Outbox"]

_NEWS = {  # what a receipt moves; one that says `partial` or `unknown` moves nothing by itself
    ReceiptState.STORED: OutboxEvent.STORED,
    ReceiptState.FOLDED: OutboxEvent.FOLDED,
    ReceiptState.REFUSED: OutboxEvent.REFUSED,
}
_COUNTERS = (
    "made",
    "folded",
    "refused",
    "merged_back",
    "replaced",
    "refunds_lost",
)  # of one device
_EVERYTHING: Final = ("updates", "refunds", "codec", "facts", "folds")


class Outbox:
    """The updates, refunds, codec state and counters of one installation.

    A new file belongs to ``installation`` (8 hex digits) for ever: the numbers of its updates are
    unique together with these digits only, so one is never there without the other.

    Every method either does all it says, durably, or raises `TransientError` and does nothing.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        max_bytes: int,
        max_waiting: int,
        installation: str,
        earlier: str = "",
    ) -> None:
        """Open or make the file at ``path``.

        ``earlier``: the digits of a file that does not tell its own, as the first ones did not.

        Raises:
            DamagedError: it is damaged.
            TransientError: it cannot be opened now.
        """
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self.file: Final = OutboxFile(path, installation=installation, earlier=earlier)
        self.installation: Final = self.file.installation
        self.facts: Final = FactTable(self.file)
        self.folds: Final = OwnFolds(self.file)
        self.carried: Final = CodecTable(self.file)

    def close(self) -> None:
        self.file.close()

    @property
    def changes(self) -> int:
        """A number that grows with every write: as long as it stays, so do all answers."""
        return self.file.changes

    # -- what is learned comes in

    def commit(self, trained: Trained, *, chunk_size: int, facts: Noted) -> Committed:
        """Queue the update of ``trained`` with the codec state that it leaves.

        Where the bounds are exceeded, the oldest updates that never left this device become
        refunds. A job that was committed before changes nothing. No update comes of a training
        without a payload, nor of one that cannot be said any more: it was made against another
        memory than there is now, or one that has left waits for its answer. Of these stays what is
        this device's own.
        """
        with self.file.transaction(*_EVERYTHING):
            codec = self.codec()
            if trained.job <= codec.job:
                return Committed(0)
            is_said = (
                bool(trained.payload)
                and not self.must_wait(trained.feedback)
                and codec.history_for(trained.feedback) == trained.history
            )
            self.carried.trained(trained, is_said=is_said)
            if not is_said:
                others = {name: fact for name, fact in facts.items() if name not in OF_UPDATES}
                self.facts.put(others)
                return Committed(0)
            for seq in trained.merged:
                self._move(seq, OutboxState.REFUNDED, OutboxEvent.LEARNED)
            new = self.file.one(
                "INSERT INTO updates "
                "(state, base, chunk_size, header_size, data, next_history, next_owed) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq",
                ON_DEVICE.first,
                trained.base,
                chunk_size,
                len(trained.header),
                trained.header + trained.payload,
                trained.next_history,
                trained.next_owed,
            )
            self.folds.forget(until=trained.base)
            self.facts.put({"owed": 0, **facts})
            self.facts.add(made=1, refunds_lost=trained.lost)
            replaced = self._replace(before=new)
            return Committed(new, self._make_room(keep=new), replaced)

    def _replace(self, before: int) -> int:
        """Drop those that were made against a memory and never left: a newer one says it better."""
        old = [entry for entry in self.waiting() if entry.seq < before and entry.has_memory]
        for entry in old:  # none has left: see `must_wait`
            self._move(entry.seq, entry.state, OutboxEvent.OVERTAKEN, life=WITH_MEMORY)
        self.facts.add(replaced=len(old))
        return len(old)

    def take_back(self, feedback: str) -> int:
        """Take back what never left and was made by another method; return how many there were.

        Before a training under ``feedback``, which begins with what was owed before those: were one
        folded meanwhile, that would be said twice. Without a memory they become refunds, since the
        server's memory of this device begins after them; with one they are dropped, as by `commit`.
        """
        others = [
            entry
            for entry in self.waiting()
            if not entry.has_left and _method_of(entry, self.codec()) != feedback
        ]
        if others:
            dropped = sum(entry.has_memory for entry in others)
            with self.file.transaction(*_EVERYTHING):
                for entry in others:
                    event = OutboxEvent.OVERTAKEN if entry.has_memory else OutboxEvent.CROWDED
                    self._move(entry.seq, entry.state, event, life=_life_of(entry))
                self.facts.add(merged_back=len(others) - dropped, replaced=dropped)
                if dropped:
                    self.facts.put({"owed": 1})  # also where that training fails
        return len(others)

    def _make_room(self, keep: int) -> int:
        """Take back the oldest that never left, as many as there are too many; return how many."""
        entries = self.waiting()
        count, size = len(entries), sum(entry.size for entry in entries)
        crowded = 0
        for entry in entries:
            if count - crowded <= self._max_waiting and size <= self._max_bytes:
                break
            if entry.seq < keep and _life_of(entry).allows(entry.state, OutboxEvent.CROWDED):
                self._move(entry.seq, entry.state, OutboxEvent.CROWDED)
                size -= entry.size
                crowded += 1
        self.facts.add(merged_back=crowded)
        return crowded

    def has_room(self) -> bool:
        """Whether one more update fits, at the price of some that never left this device."""
        count, size = self._left()
        return count < self._max_waiting and size < self._max_bytes

    def may_leave(self, entry: Entry) -> bool:
        """Whether ``entry``, which is queued, may leave this device now.

        What has left cannot be merged back, only answered. So one place stays free of it for what
        is learned while the server is silent: each new update takes the one before into itself,
        and learning never has to wait. With a memory one leaves at a time: what it was made
        against is settled only by the answer to the one before.
        """
        count, size = self._left()
        if entry.has_memory:
            return count == 0
        return count < max(1, self._max_waiting - 1) and size < max(1, self._max_bytes // 2)

    def must_wait(self, feedback: str) -> bool:
        """Whether what is learned under ``feedback`` now cannot be said before an answer comes."""
        left = [entry for entry in self.waiting() if entry.has_left]
        return any(entry.has_memory for entry in left) or (bool(left) and feedback != "residual")

    def _left(self) -> tuple[int, int]:
        """Return count and bytes of the updates that the server may hold."""
        sizes = [entry.size for entry in self.waiting() if entry.has_left]
        return len(sizes), sum(sizes)

    def begin_anew(self, installation: str, *, keeps_learned: bool) -> tuple[int, int]:
        """Give this file to a device of another name or task, with digits of its own.

        What never left this device becomes a refund. What has left is dropped: the server may fold
        it yet, under the old name, and nothing is counted twice. So is what was made against a
        memory, which begins at zeros: its work is in the next training. Unless ``keeps_learned``,
        nothing stays but the numbers, which go on.

        Returns:
            How many updates were kept as refunds, and how many are dropped.
        """
        with self.file.transaction(*_EVERYTHING):
            waiting = self.waiting()
            moved = [
                self._move(e.seq, e.state, OutboxEvent.READDRESSED, life=_life_of(e))
                for e in waiting
            ]
            if keeps_learned:
                self.facts.drop(*_COUNTERS)
                self.carried.forget_history()
                if any(entry.has_memory for entry in waiting):
                    self.facts.put({"owed": 1})
            else:
                for seq in self.carried.refunds():
                    self._move(seq, OutboxState.REFUNDED, OutboxEvent.GIVEN_UP)
                self.folds.forget()
                self.carried.forget(job=self.facts.count_job())
                self.facts.drop_all()
            self.file.rows("UPDATE owner SET installation = ?", installation)
        kept = moved.count(OutboxState.REFUNDED) if keeps_learned else 0
        return kept, len(moved) - kept

    # -- what is sent

    def waiting(self) -> Sequence[Entry]:
        """Return all updates without a final receipt, oldest first."""
        return self.file.answer(ENTRIES)

    def read(self, seq: int, start: int, length: int) -> bytes:
        """Return a piece of an update.

        Not by an incremental blob: CPython's connection keeps 90 bytes for each one ever opened,
        and an agent runs for years. For this moment all of the update is in memory, as it was
        when it was committed.
        """
        rows = self.file.rows(
            "SELECT substr(data, ?, ?) FROM updates WHERE seq = ?", start + 1, length, seq
        )
        if not rows:
            raise TransientError(f"outbox.db: update {seq} is gone")
        return bytes(rows[0][0])

    def begin(self, seq: int, chunk_size: int) -> None:
        """Note that an update may leave from now on, and how it is cut."""
        if entry := self._entry(seq):
            with self.file.transaction("updates"):
                life = _life_of(entry)
                self._move(seq, entry.state, OutboxEvent.BEGUN, life=life, chunk_size=chunk_size)

    def was_sent(self, seq: int) -> None:
        """Note that the broker took over all of an update; one that is gone stays gone."""
        if entry := self._entry(seq):
            with self.file.transaction("updates"):
                self._move(seq, entry.state, OutboxEvent.ACKNOWLEDGED, life=_life_of(entry))

    def settle(self, seq: int, receipt: Receipt) -> ReceiptState | None:
        """Carry out a receipt and return what it says; None: the update is gone.

        Repeated and late ones change nothing.
        """
        entry = self._entry(seq)
        if entry is None:
            return None
        event, life = _NEWS.get(receipt.state), _life_of(entry)
        if event is None or life.after(entry.state, event) is entry.state:
            return receipt.state  # the answer to a question: no write to the card
        with self.file.transaction(*_EVERYTHING):
            if entry.has_memory and event is OutboxEvent.FOLDED:
                self.carried.folded(seq)
            if entry.has_memory and event is OutboxEvent.REFUSED and receipt.reset:
                self.carried.forget_history()
            self._move(seq, entry.state, event, life=life)
            if event is OutboxEvent.FOLDED:
                self.folds.add(receipt.release)
                self.facts.add(folded=1)
                self.facts.put({"refused_running": 0})
            elif event is OutboxEvent.REFUSED:
                self.facts.add(refused=1, refused_running=1)
                self.facts.put({"owed": 1})
        return receipt.state

    def _entry(self, seq: int) -> Entry | None:
        return next((entry for entry in self.waiting() if entry.seq == seq), None)

    def _move(
        self,
        seq: int,
        state: OutboxState,
        event: OutboxEvent,
        *,
        life: Life[OutboxState, OutboxEvent] | None = None,
        chunk_size: int | None = None,
    ) -> OutboxState:
        """Let ``event`` happen to an update in ``state``; nothing else moves one. In a transaction.

        The table of the updates holds those that wait, that of the refunds the refunded ones.
        """
        then = (life or ON_DEVICE).after(state, event)
        if then in WAITING:
            self.file.rows(
                "UPDATE updates SET state = ?, chunk_size = coalesce(?, chunk_size) WHERE seq = ?",
                then,
                chunk_size,
                seq,
            )
            return then
        if then is OutboxState.REFUNDED:
            self.file.rows(
                "INSERT INTO refunds SELECT seq, substr(data, header_size + 1) FROM updates "
                "WHERE seq = ?",
                seq,
            )
        table = "refunds" if state is OutboxState.REFUNDED else "updates"
        self.file.rows(f"DELETE FROM {table} WHERE seq = ?", seq)
        return then

    # -- what the next training starts from

    def codec(self) -> CodecState:
        return self.carried.read()


def _method_of(entry: Entry, codec: CodecState) -> str | None:
    """Return the method that ``entry``, which never left, was made by: of one with memory the last.

    At most one such waits, and another method takes it back first.
    """
    return codec.feedback if entry.has_memory else "residual"


def _life_of(entry: Entry) -> Life[OutboxState, OutboxEvent]:
    return WITH_MEMORY if entry.has_memory else ON_DEVICE
