"""What the registry holds of updates that are not whole yet: their chunks, and how many.

Each chunk of each device asks how much there is, of its update, its device and in all. So that is
counted as it changes, in tables in memory that roll back with the rest.
"""

from typing import NamedTuple

from broker.records.registry import Registry
from broker.records.schema import MIN_CHUNK
from broker.records.update_key import UpdateKey
from models.protocol.update_life import ON_SERVER, ReceiptEvent, ReceiptState

__all__ = ["Held", "Partial", "PartialRecords"]

_COUNTS = (
    "DROP TABLE IF EXISTS temp.held",
    "DROP TABLE IF EXISTS temp.held_in_all",
    "CREATE TEMP TABLE held (device TEXT, installation INTEGER, sequence INTEGER, "
    "chunks INTEGER, size INTEGER, PRIMARY KEY (device, installation, sequence)) WITHOUT ROWID",
    "INSERT INTO temp.held SELECT device, installation, sequence, count(*), sum(size) "
    "FROM chunks GROUP BY device, installation, sequence",
    "CREATE TEMP TABLE held_in_all (size INTEGER)",
    "INSERT INTO temp.held_in_all SELECT coalesce(sum(size), 0) FROM temp.held",
)


class Partial(NamedTuple):
    """An update that is not whole yet. ``size`` 0: its header has not come."""

    size: int  # bytes of header and payload
    chunk_size: int


class Held(NamedTuple):
    """What is here of an unfinished update."""

    chunks: int
    size: int  # of these, bytes


class PartialRecords:
    """The tables partials and chunks of one registry."""

    def __init__(self, registry: Registry, *, is_owner: bool = False) -> None:
        """``is_owner``: nobody else changes chunks, so that they need not be counted anew.

        Raises:
            TransientError: the disk is full or failing.
        """
        self._registry = registry
        self._is_owner = is_owner
        if is_owner:
            with registry.transaction():
                for statement in _COUNTS:
                    registry.execute(statement)

    def partial(self, key: UpdateKey) -> Partial | None:
        rows = self._registry.query(
            "SELECT size, chunk_size FROM partials "
            "WHERE device = ? AND installation = ? AND sequence = ?",
            *key,
        )
        return Partial(*rows[0]) if rows else None

    def keep_partial(self, key: UpdateKey, partial: Partial, now: float) -> None:
        self._registry.execute(
            "INSERT OR REPLACE INTO partials VALUES (?, ?, ?, ?, ?, ?)", *key, *partial, now
        )

    def drop_partial(self, key: UpdateKey, event: ReceiptEvent) -> ReceiptState:
        """Drop what is here of ``key``, if it is anything, for ``event``; return what it is now."""
        size = self.held(key).size
        named = "WHERE device = ? AND installation = ? AND sequence = ?"
        was_here = self._registry.execute(f"DELETE FROM partials {named}", *key) > 0
        self._registry.execute(f"DELETE FROM chunks {named}", *key)
        if self._is_owner:
            self._registry.execute(
                "DELETE FROM temp.held WHERE device = ? AND installation = ? AND sequence = ?", *key
            )
            self._registry.execute("UPDATE temp.held_in_all SET size = size - ?", size)
        before = ReceiptState.PARTIAL if was_here else ReceiptState.UNKNOWN
        return ON_SERVER.after(before, event)

    def partials_of(self, device: str) -> list[UpdateKey]:
        """Return the unfinished updates of ``device``, the one longest untouched first."""
        rows = self._registry.query(
            "SELECT device, installation, sequence FROM partials WHERE device = ? "
            "ORDER BY touched, sequence",
            device,
        )
        return [UpdateKey(*row) for row in rows]

    def oldest_partial(self, *, but: UpdateKey) -> UpdateKey | None:
        """Return the unfinished update longest untouched, not ``but``."""
        rows = self._registry.query(
            "SELECT device, installation, sequence FROM partials ORDER BY touched LIMIT 2"
        )
        keys = [key for row in rows if (key := UpdateKey(*row)) != but]
        return keys[0] if keys else None

    def keep_chunk(self, key: UpdateKey, number: int, data: bytes) -> bool:
        """Keep a chunk; return False if it is already there."""
        changed = self._registry.execute(
            "INSERT INTO chunks (device, installation, sequence, number, size, data) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            *key,
            number,
            len(data),
            data,
        )
        if changed:
            self._count(key, 1, len(data))
        return changed > 0

    def drop_chunk(self, key: UpdateKey, number: int) -> None:
        rows = self._registry.query(
            "DELETE FROM chunks WHERE device = ? AND installation = ? AND sequence = ? "
            "AND number = ? RETURNING size",
            *key,
            number,
        )
        for (size,) in rows:
            self._count(key, -1, -size)

    def _count(self, key: UpdateKey, chunks: int, size: int) -> None:
        if self._is_owner:
            self._registry.execute(
                "INSERT INTO temp.held VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (device, installation, sequence) "
                "DO UPDATE SET chunks = chunks + excluded.chunks, size = size + excluded.size",
                *key,
                chunks,
                size,
            )
            self._registry.execute("UPDATE temp.held_in_all SET size = size + ?", size)

    def chunk_sizes(self, key: UpdateKey) -> dict[int, int]:
        """Return the lengths of the chunks that are there, by number."""
        return dict(
            self._registry.query(
                "SELECT number, size FROM chunks "
                "WHERE device = ? AND installation = ? AND sequence = ?",
                *key,
            )
        )

    def short_chunk(self, key: UpdateKey) -> int | None:
        """Return the number of a chunk below `MIN_CHUNK` that is there; None: there is none."""
        rows = self._registry.query(
            "SELECT number FROM chunks WHERE device = ? AND installation = ? AND sequence = ? "
            f"AND size < {MIN_CHUNK} LIMIT 1",
            *key,
        )
        return int(rows[0][0]) if rows else None

    def assemble(self, key: UpdateKey) -> bytes:
        """Return the chunks that are there, one after the other."""
        rows = self._registry.query(
            "SELECT data FROM chunks WHERE device = ? AND installation = ? AND sequence = ? "
            "ORDER BY number",
            *key,
        )
        return b"".join(data for (data,) in rows)

    def missing(self, key: UpdateKey, partial: Partial) -> tuple[int, ...]:
        """Return the numbers of the chunks that are still to come."""
        if not partial.size:  # how many there are stands in chunk 0
            return (0,)
        present = self.chunk_sizes(key)
        count = -(-partial.size // partial.chunk_size)
        return tuple(number for number in range(count) if number not in present)

    # How much is here

    def held(self, key: UpdateKey) -> Held:
        counts = (
            "chunks, size FROM temp.held" if self._is_owner else "count(*), sum(size) FROM chunks"
        )
        rows = self._registry.query(
            f"SELECT {counts} WHERE device = ? AND installation = ? AND sequence = ?", *key
        )
        return Held(rows[0][0], rows[0][1] or 0) if rows else Held(0, 0)

    def partial_bytes(self, device: str | None = None) -> int:
        """Return the bytes of all chunks that are kept, or of those of ``device``."""
        where, values = ("WHERE device = ?", (device,)) if device else ("", ())
        table = "chunks"
        if self._is_owner:
            table = "temp.held" if device else "temp.held_in_all"
        rows = self._registry.query(f"SELECT COALESCE(SUM(size), 0) FROM {table} {where}", *values)
        return int(rows[0][0])
