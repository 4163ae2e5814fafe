"""What became of every update that was folded or refused, for ever.

As ranges of sequence numbers, so that a million past updates of a fleet take no more room than its
devices do.
"""

from broker.records.registry import Registry
from broker.records.update_key import UpdateKey
from models.protocol.update_life import ReceiptState

__all__ = ["MAX_RANGES", "SettledRanges"]

MAX_RANGES = 65_536  # per device; an honest one needs two for each of its refused updates


class SettledRanges:
    """The table settled of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def find(self, key: UpdateKey) -> tuple[ReceiptState, int] | None:
        """Return what became of ``key``, and the newest release of its range; None: nothing yet."""
        rows = self._registry.query(
            "SELECT state, release, last FROM settled "
            "WHERE device = ? AND installation = ? AND first <= ? ORDER BY first DESC LIMIT 1",
            *key,
        )
        if not rows or rows[0][2] < key.sequence:
            return None
        state, release, _ = rows[0]
        return ReceiptState(state), release

    def add(self, key: UpdateKey, state: ReceiptState, release: int) -> None:
        """Record what became of ``key``, joined with its neighbors."""
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
            f"SELECT device, SUM((state = '{ReceiptState.FOLDED}') * (last - first + 1)), "
            f"SUM((state = '{ReceiptState.REFUSED}') * (last - first + 1)) "
            "FROM settled GROUP BY device"
        )
        return {device: (folded, refused) for device, folded, refused in rows}
