"""What the registry knows of updates: whole ones, and what became of each, for ever.

An update is named by device, installation and sequence number. How it moves says
`models.protocol.update_life.ON_SERVER`: until it is whole its chunks are in `PartialRecords`; that
it was folded or refused stands for ever in `SettledRanges`. All methods expect to run within a
transaction of the registry if they change anything.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from broker.records.partial_records import PartialRecords
from broker.records.registry import Registry
from broker.records.settled_ranges import SettledRanges
from broker.records.update_headers import UpdateHeaders
from broker.records.update_key import UpdateKey
from models.errors import PayloadError
from models.protocol.messages import Receipt
from models.protocol.update import (
    Extras,
    UpdateHeader,
    decode_extras,
    decode_update,
    encode_extras,
)
from models.protocol.update_life import ON_SERVER, ReceiptEvent, ReceiptState

__all__ = ["HEADERS_KEPT", "UpdateKey", "UpdateRecords", "WaitingUpdate"]

HEADERS_KEPT = 100_000  # settled updates whose metrics and reasons stay, for reports
NO_MEMORY = (1 << 32) - 1  # a digest that hardly any memory has
TRIM_EVERY = 1000  # updates refused unseen
_STORED = f"state = '{ReceiptState.STORED}'"  # as the indexes have it
_WAITS = f"{_STORED} AND id NOT IN (SELECT id FROM unreadable)"
# What waits, by task: a table in memory that rolls back with the rest. Counting the updates
# themselves for each new one would take the square of their number.
_TOTALS = (
    "DROP TABLE IF EXISTS temp.totals",
    "CREATE TEMP TABLE totals (task TEXT PRIMARY KEY, count INTEGER, size INTEGER, first REAL)",
    "INSERT INTO temp.totals SELECT task, count(*), sum(size), min(received) FROM updates "
    f"WHERE {_WAITS} GROUP BY task",
)


class WaitingUpdate(NamedTuple):
    """A stored update that no release has yet."""

    row: int
    key: UpdateKey
    base: int
    samples: int
    size: int
    received: float
    loss_first: float = 0.0  # see `UpdateHeader`
    extras: Extras | None = None  # None: its header is of version 1


class UpdateRecords:
    """All tables about updates of one registry: ``partials``, whole ones, ``settled`` ones."""

    def __init__(self, registry: Registry, *, is_owner: bool = False) -> None:
        """``is_owner``: nobody else changes updates, so that what waits need not be counted anew.

        Raises:
            TransientError: the disk is full or failing.
        """
        self._registry = registry
        self._is_owner = is_owner
        self.partials: Final = PartialRecords(registry, is_owner=is_owner)
        self.settled: Final = SettledRanges(registry)
        self.headers: Final = UpdateHeaders(registry)
        self._unseen = 0  # updates refused before they were whole, in this process
        if is_owner:
            with registry.transaction():
                for statement in _TOTALS:
                    registry.execute(statement)

    # What is known of one update

    def receipt(self, key: UpdateKey) -> Receipt:
        """Return what the server can say of ``key`` now."""
        if whole := self.whole(key):
            return whole
        partial = self.partials.partial(key)
        if partial is None:
            return Receipt(key.update_id, ON_SERVER.first)
        missing = self.partials.missing(key, partial)[:256]
        return Receipt(key.update_id, ReceiptState.PARTIAL, missing=missing)

    def whole(self, key: UpdateKey) -> Receipt | None:
        """Return the receipt of an update that is stored, folded or refused; None: it is not."""
        rows = self._registry.query(
            "SELECT state, release, updates.reason, unreadable.reason, reset FROM updates "
            "LEFT JOIN unreadable USING (id) LEFT JOIN extras USING (id) "
            "WHERE device = ? AND installation = ? AND sequence = ?",
            *key,
        )
        if rows:
            state, release, reason, buried, reset = ReceiptState(rows[0][0]), *rows[0][1:]
            if buried is not None:
                state, reason = ON_SERVER.after(state, ReceiptEvent.UNREADABLE), buried
            return Receipt(key.update_id, state, release, reason, reset=bool(reset))
        if found := self.settled.find(key):
            state, release = found
            reason = "refused long ago" if state is ReceiptState.REFUSED else ""
            return Receipt(key.update_id, state, release, reason)
        return None

    # Whole updates

    def store(self, key: UpdateKey, header: UpdateHeader, data: bytes, now: float) -> None:
        """Keep a whole update until it is folded; its chunks are not needed any more."""
        state = self.partials.drop_partial(key, ReceiptEvent.WHOLE)
        self._insert(key, header, len(data), now, state=state, reason="", payload=data)
        if header.extras is not None:
            self._registry.execute(
                "INSERT OR REPLACE INTO device_reports VALUES (?, ?, ?, ?)",
                header.task,
                key.device,
                now,
                encode_extras(header.extras),
            )
        if self._is_owner:
            self._registry.execute(
                "INSERT INTO temp.totals VALUES (?, 1, ?, ?) ON CONFLICT (task) DO UPDATE SET "
                "count = count + 1, size = size + excluded.size, "
                "first = CASE WHEN count = 0 THEN excluded.first "
                "ELSE min(first, excluded.first) END",
                header.task,
                len(data),
                now,
            )

    def refuse_unseen(
        self, key: UpdateKey, header: UpdateHeader | None, reason: str, now: float
    ) -> None:
        """Record that ``key`` will never be folded, although it never became whole."""
        state = self.partials.drop_partial(key, ReceiptEvent.UNFIT)
        self._insert(key, header, 0, now, state=state, reason=reason, payload=None)
        self.settled.add(key, state, 0)
        self._unseen += 1
        if self._unseen % TRIM_EVERY == 0:  # else only a fold does it, and there may be none
            self.forget_old_headers()

    def _insert(
        self,
        key: UpdateKey,
        header: UpdateHeader | None,
        size: int,
        now: float,
        *,
        state: ReceiptState,
        reason: str,
        payload: bytes | None,
    ) -> None:
        about = header or UpdateHeader("", 0, 0, 0, 0.0, 0.0, None, 0, "")
        self._registry.execute(
            "INSERT INTO updates (device, installation, sequence, task, base, samples, steps, "
            "loss_first, loss_last, accuracy, size, received, state, reason, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *key,
            *about[:7],
            size,
            now,
            state,
            reason,
            payload,
        )
        if about.extras is not None:
            self._registry.execute(
                "INSERT OR REPLACE INTO extras (id, extras) VALUES (last_insert_rowid(), ?)",
                encode_extras(about.extras),
            )

    def waiting(self, task: str, most: int) -> list[WaitingUpdate]:
        """Return the first ``most`` stored updates of ``task``, oldest first."""
        rows = self._registry.query(
            "SELECT id, base, samples, size, received, loss_first, extras, device, installation, "
            f"sequence FROM updates LEFT JOIN extras USING (id) WHERE task = ? AND {_WAITS} "
            "ORDER BY id LIMIT ?",
            task,
            most,
        )
        return [
            WaitingUpdate(
                row, UpdateKey(*name), base, samples, size, received, loss_first, _extras(extras)
            )
            for row, base, samples, size, received, loss_first, extras, *name in rows
        ]

    def tasks_waiting(self) -> list[str]:
        """Return the tasks that updates wait for, also such as are not served any more."""
        rows = self._registry.query(
            f"SELECT DISTINCT task FROM updates WHERE {_STORED} ORDER BY task"
        )
        return [task for (task,) in rows]

    def waiting_summary(self, task: str) -> tuple[int, float]:
        """Return how many updates of ``task`` wait, and since when (Unix seconds)."""
        if self._is_owner:
            rows = self._registry.query("SELECT count, first FROM temp.totals WHERE task = ?", task)
            count, first = rows[0] if rows else (0, 0.0)
            if not count or first is not None:
                return int(count), float(first or 0.0)
        waits = _WAITS if self._is_owner else _STORED  # a reader may be the first here
        rows = self._registry.query(
            f"SELECT COUNT(*), MIN(received) FROM updates WHERE task = ? AND {waits}", task
        )
        return int(rows[0][0]), float(rows[0][1] or 0.0)

    def waiting_bytes(self) -> int:
        table = "temp.totals" if self._is_owner else f"updates WHERE {_STORED}"
        rows = self._registry.query(f"SELECT COALESCE(SUM(size), 0) FROM {table}")
        return int(rows[0][0])

    def payload(self, row: int) -> bytes:
        """Return the payload of a stored update.

        Raises:
            PayloadError: the disk changed it since it was stored.
        """
        rows = self._registry.query("SELECT payload FROM updates WHERE id = ?", row)
        return decode_update(rows[0][0])[1]

    def settle(
        self,
        update: WaitingUpdate,
        event: ReceiptEvent,
        *,
        release: int = 0,
        reason: str = "",
        reset: bool = False,
    ) -> None:
        """Record what became of a stored update, for ever; its payload goes.

        ``reset``: its device is told to begin its memory anew, if it understands that.
        """
        state = ON_SERVER.after(ReceiptState.STORED, event)
        changed = self._registry.execute(
            "UPDATE updates SET state = ?, release = ?, reason = ?, told = 0, payload = NULL "
            f"WHERE id = ? AND {_STORED}",
            state,
            release,
            reason[:400],
            update.row,
        )
        if reset:
            self._registry.execute("UPDATE extras SET reset = 1 WHERE id = ?", update.row)
        if changed != 1:
            raise ValueError(f"update {update.key.update_id} of {update.key.device} is not waiting")
        self._waits_no_more(update)
        self.settled.add(update.key, state, release)

    def bury(self, update: WaitingUpdate, reason: str) -> None:
        """Record that a stored update is refused because the disk cannot read it.

        Its row stays as it is: to change it SQLite would have to read the same block.
        """
        self._registry.execute("INSERT INTO unreadable VALUES (?, ?)", update.row, reason[:400])
        self._waits_no_more(update)
        state = ON_SERVER.after(ReceiptState.STORED, ReceiptEvent.UNREADABLE)
        self.settled.add(update.key, state, 0)

    def _waits_no_more(self, update: WaitingUpdate) -> None:
        if self._is_owner:
            self._registry.execute(
                "UPDATE temp.totals SET count = count - 1, size = size - ?, first = NULL "
                "WHERE task = (SELECT task FROM updates WHERE id = ?)",
                update.size,
                update.row,
            )

    def waiting_counts(self) -> dict[str, int]:
        """Return how many updates are stored and not yet folded, by device."""
        return dict(
            self._registry.query(
                f"SELECT device, COUNT(*) FROM updates WHERE {_STORED} GROUP BY device"
            )
        )

    # Receipts that still have to go out

    def untold(self, most: int) -> list[tuple[UpdateKey, Receipt]]:
        """Return the receipts that the broker has not taken over yet, oldest first."""
        rows = self._registry.query(
            "SELECT device, installation, sequence, state, release, reason, reset FROM updates "
            "LEFT JOIN extras USING (id) "
            "WHERE told = 0 AND id NOT IN (SELECT id FROM unreadable) ORDER BY id LIMIT ?",
            most,
        )
        found = []
        for *name, state, release, reason, reset in rows:
            key = UpdateKey(*name)
            receipt = Receipt(
                key.update_id, ReceiptState(state), release, reason, reset=bool(reset)
            )
            found.append((key, receipt))
        return found

    def was_told(self, told: Iterable[tuple[UpdateKey, str]]) -> None:
        """Record that the broker took over these receipts; a later state stays to be told."""
        for key, state in told:
            self._registry.execute(
                "UPDATE updates SET told = 1 "
                "WHERE device = ? AND installation = ? AND sequence = ? AND state = ? "
                "AND told = 0",
                *key,
                state,
            )

    def forget_old_headers(self, kept: int = HEADERS_KEPT) -> None:
        """Drop the headers of updates settled long ago; `settled` still knows the updates."""
        self._registry.execute(
            "DELETE FROM updates WHERE id <= (SELECT MAX(id) FROM updates) - ? "
            f"AND NOT ({_STORED})",
            kept,
        )
        self._registry.execute(
            "DELETE FROM extras WHERE id <= (SELECT MAX(id) FROM updates) - ? "
            "AND id NOT IN (SELECT id FROM updates)",
            kept,
        )


def _extras(data: bytes | None) -> Extras | None:
    """Return what `_insert` wrote; of a damaged row, what makes a device begin anew."""
    try:
        return None if data is None else decode_extras(data)
    except PayloadError:
        return Extras(memory=NO_MEMORY)
