"""What the registry knows of updates: whole ones, and what became of each, for ever.

An update is named by device, installation and sequence number. It is partial, then stored, then
folded or refused; the last two stand for ever in `settled`, as ranges of sequence numbers, so that
a million past updates of a fleet take no more room than its devices do. All methods expect to run
within a transaction of the registry if they change anything.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from broker.records.partial_records import PartialRecords
from broker.records.registry import Registry
from broker.records.update_key import UpdateKey
from models.protocol.messages import Receipt
from models.protocol.update import UpdateHeader, decode_update
from models.protocol.update_life import ServerState

__all__ = [
    "HEADERS_KEPT",
    "MAX_RANGES",
    "FoldedUpdate",
    "UpdateKey",
    "UpdateRecords",
    "WaitingUpdate",
]

HEADERS_KEPT = 100_000  # settled updates whose metrics and reasons stay, for reports
TRIM_EVERY = 1000  # updates refused unseen
MAX_RANGES = 65_536  # per device; an honest one needs two for each of its refused updates
_WAITS = "state = 'stored' AND id NOT IN (SELECT id FROM unreadable)"
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


class FoldedUpdate(NamedTuple):
    """An update that a release has."""

    key: UpdateKey
    base: int
    samples: int
    release: int


class UpdateRecords(PartialRecords):
    """All tables about updates of one registry: of unfinished ones, updates and settled."""

    def __init__(self, registry: Registry, *, is_owner: bool = False) -> None:
        """``is_owner``: nobody else changes updates, so that what waits need not be counted anew.

        Raises:
            TransientError: the disk is full or failing.
        """
        super().__init__(registry, is_owner=is_owner)
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
        partial = self.partial(key)
        if partial is None:
            return Receipt(key.update_id, ServerState.UNKNOWN)
        missing = self.missing(key, partial)[:256]
        return Receipt(key.update_id, ServerState.PARTIAL, missing=missing)

    def whole(self, key: UpdateKey) -> Receipt | None:
        """Return the receipt of an update that is stored, folded or refused; None: it is not."""
        rows = self._registry.query(
            "SELECT state, release, updates.reason, unreadable.reason FROM updates "
            "LEFT JOIN unreadable USING (id) "
            "WHERE device = ? AND installation = ? AND sequence = ?",
            *key,
        )
        if rows:
            state, release, reason, buried = rows[0]
            if buried is not None:
                return Receipt(key.update_id, ServerState.REFUSED, reason=buried)
            return Receipt(key.update_id, state, release, reason)
        settled = self._registry.query(
            "SELECT state, release, last FROM settled "
            "WHERE device = ? AND installation = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            *key,
        )
        if settled and settled[0][2] >= key.sequence:
            state, release, _ = settled[0]
            reason = "refused long ago" if state == "refused" else ""
            return Receipt(key.update_id, state, release, reason)
        return None

    # Whole updates

    def store(self, key: UpdateKey, header: UpdateHeader, data: bytes, now: float) -> None:
        """Keep a whole update until it is folded; its chunks are not needed any more."""
        self.drop_partial(key)
        self._insert(key, header, len(data), now, state="stored", reason="", payload=data)
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
        self.drop_partial(key)
        self._insert(key, header, 0, now, state="refused", reason=reason, payload=None)
        self._settle(key, "refused", 0)
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
        state: str,
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

    def waiting(self, task: str, most: int) -> list[WaitingUpdate]:
        """Return the first ``most`` stored updates of ``task``, oldest first."""
        rows = self._registry.query(
            "SELECT id, base, samples, size, received, device, installation, sequence "
            f"FROM updates WHERE task = ? AND {_WAITS} ORDER BY id LIMIT ?",
            task,
            most,
        )
        return [
            WaitingUpdate(row, UpdateKey(*key), base, samples, size, received)
            for row, base, samples, size, received, *key in rows
        ]

    def folded(self, task: str) -> list[FoldedUpdate]:
        """Return the folded updates of ``task`` whose headers are still here, as they came."""
        rows = self._registry.query(
            "SELECT base, samples, release, device, installation, sequence FROM updates "
            "WHERE task = ? AND state = 'folded' ORDER BY id",
            task,
        )
        return [
            FoldedUpdate(UpdateKey(*key), base, samples, release)
            for base, samples, release, *key in rows
        ]

    def tasks_waiting(self) -> list[str]:
        """Return the tasks that updates wait for, also such as are not served any more."""
        rows = self._registry.query(
            "SELECT DISTINCT task FROM updates WHERE state = 'stored' ORDER BY task"
        )
        return [task for (task,) in rows]

    def waiting_summary(self, task: str) -> tuple[int, float]:
        """Return how many updates of ``task`` wait, and since when (Unix seconds)."""
        if self._is_owner:
            rows = self._registry.query("SELECT count, first FROM temp.totals WHERE task = ?", task)
            count, first = rows[0] if rows else (0, 0.0)
            if not count or first is not None:
                return int(count), float(first or 0.0)
        waits = _WAITS if self._is_owner else "state = 'stored'"  # a reader may be the first here
        rows = self._registry.query(
            f"SELECT COUNT(*), MIN(received) FROM updates WHERE task = ? AND {waits}", task
        )
        return int(rows[0][0]), float(rows[0][1] or 0.0)

    def waiting_bytes(self) -> int:
        table = "temp.totals" if self._is_owner else "updates WHERE state = 'stored'"
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
        state: Literal["folded", "refused"],
        *,
        release: int = 0,
        reason: str = "",
    ) -> None:
        """Record what became of a stored update, for ever; its payload goes."""
        changed = self._registry.execute(
            "UPDATE updates SET state = ?, release = ?, reason = ?, told = 0, payload = NULL "
            "WHERE id = ? AND state = 'stored'",
            state,
            release,
            reason[:400],
            update.row,
        )
        if changed != 1:
            raise ValueError(f"update {update.key.update_id} of {update.key.device} is not waiting")
        self._waits_no_more(update)
        self._settle(update.key, state, release)

    def bury(self, update: WaitingUpdate, reason: str) -> None:
        """Record that a stored update is refused because the disk cannot read it.

        Its row stays as it is: to change it SQLite would have to read the same block.
        """
        self._registry.execute("INSERT INTO unreadable VALUES (?, ?)", update.row, reason[:400])
        self._waits_no_more(update)
        self._settle(update.key, "refused", 0)

    def _waits_no_more(self, update: WaitingUpdate) -> None:
        if self._is_owner:
            self._registry.execute(
                "UPDATE temp.totals SET count = count - 1, size = size - ?, first = NULL "
                "WHERE task = (SELECT task FROM updates WHERE id = ?)",
                update.size,
                update.row,
            )

    def _settle(self, key: UpdateKey, state: str, release: int) -> None:
        """Add ``key`` to the ranges, joined with its neighbors."""
        device, installation, sequence = key
        first = last = sequence
        neighbors = self._registry.query(
            "SELECT first, last, release FROM settled WHERE device = ? AND installation = ? "
            "AND first = ? AND state = ? UNION ALL SELECT * FROM (SELECT first, last, release "
            "FROM settled WHERE device = ? AND installation = ? AND first < ? AND last = ? "
            "AND state = ? ORDER BY first DESC LIMIT 1)",
            *(device, installation, sequence + 1, state),
            *(device, installation, sequence, sequence - 1, state),
        )
        for low, high, newest in neighbors:
            first, last, release = min(first, low), max(last, high), max(release, newest)
            self._registry.execute(
                "DELETE FROM settled WHERE device = ? AND installation = ? AND first = ?",
                device,
                installation,
                low,
            )
        self._registry.execute(
            "INSERT INTO settled VALUES (?, ?, ?, ?, ?, ?)",
            device,
            installation,
            first,
            last,
            state,
            release,
        )

    def ranges_of(self, device: str) -> int:
        rows = self._registry.query("SELECT COUNT(*) FROM settled WHERE device = ?", device)
        return int(rows[0][0])

    def settled_counts(self) -> dict[str, tuple[int, int]]:
        """Return how many distinct updates were folded and refused, by device."""
        rows = self._registry.query(
            "SELECT device, SUM((state = 'folded') * (last - first + 1)), "
            "SUM((state = 'refused') * (last - first + 1)) FROM settled GROUP BY device"
        )
        return {device: (folded, refused) for device, folded, refused in rows}

    def waiting_counts(self) -> dict[str, int]:
        """Return how many updates are stored and not yet folded, by device."""
        return dict(
            self._registry.query(
                "SELECT device, COUNT(*) FROM updates WHERE state = 'stored' GROUP BY device"
            )
        )

    def last_received(self) -> dict[str, float]:
        """Return when the last update came whose header is still here (Unix seconds), by device."""
        return dict(
            self._registry.query("SELECT device, MAX(received) FROM updates GROUP BY device")
        )

    # Receipts that still have to go out

    def untold(self, most: int) -> list[tuple[UpdateKey, Receipt]]:
        """Return the receipts that the broker has not taken over yet, oldest first."""
        rows = self._registry.query(
            "SELECT device, installation, sequence, state, release, reason FROM updates "
            "WHERE told = 0 AND id NOT IN (SELECT id FROM unreadable) ORDER BY id LIMIT ?",
            most,
        )
        found = []
        for *name, state, release, reason in rows:
            key = UpdateKey(*name)
            found.append((key, Receipt(key.update_id, state, release, reason)))
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
            "AND state != 'stored'",
            kept,
        )

    def local_scores(self, task: str, *, since: int) -> dict[int, tuple[float | None, float]]:
        """Return what devices measured of each release from ``since`` on: accuracy and loss.

        Of the updates that were trained on it and whose headers are still here, weighted by
        samples: the accuracy on their own hold-outs, None where none has one, and the training
        loss before the training. A refused one says nothing: its header may be nonsense.
        """
        rows = self._registry.query(
            "SELECT base, SUM(accuracy * samples) / TOTAL(CASE WHEN accuracy IS NULL THEN 0 ELSE "
            "samples END), SUM(loss_first * samples) / TOTAL(samples) FROM updates "
            "WHERE task = ? AND base >= ? AND state != 'refused' GROUP BY base",
            task,
            since,
        )
        return {base: (accuracy, loss) for base, accuracy, loss in rows}

    def local_accuracies(self, task: str) -> dict[int, tuple[float | None, int]]:
        """Return what devices measured of each release on their own hold-outs, and how many did.

        The mean is weighted by samples, over the updates whose headers are still here.
        """
        rows = self._registry.query(
            "SELECT base, SUM(accuracy * samples) / SUM(samples), COUNT(*) FROM updates "
            "WHERE task = ? AND accuracy IS NOT NULL GROUP BY base",
            task,
        )
        return {base: (accuracy, count) for base, accuracy, count in rows}
