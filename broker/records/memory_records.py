"""What the registry holds of the devices that are remembered: whose memory is which artifact."""

from collections.abc import Collection, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from broker.records.registry import Registry
from models.protocol.manifest import Artifact
from models.protocol.update_life import ReceiptState

__all__ = ["MemoryRecords", "MemoryRow", "Remembered"]

AT_ONCE = 500  # rows that are read together


class MemoryRow(NamedTuple):
    """The memory of one device."""

    device: str
    installation: int  # of the update that was folded last
    digest: int  # `models.codec.feedback.history_digest`
    artifact: Artifact
    samples: float  # its weight
    release: int  # that its last update was folded into


class Remembered(NamedTuple):
    """All memories of a task together."""

    devices: int
    weight: float  # sum of their samples
    size: int  # bytes of their artifacts


class MemoryRecords:
    """The table memories of one registry. Changes expect to be made within a transaction."""

    _COLUMNS = "device, installation, digest, sha256, size, samples, release"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get(self, task: str, device: str) -> MemoryRow | None:
        rows = self._registry.query(
            f"SELECT {self._COLUMNS} FROM memories WHERE task = ? AND device = ?", task, device
        )
        return _row(*rows[0]) if rows else None

    def rows(self, task: str) -> Iterator[MemoryRow]:
        """Yield all memories of ``task``, by name of the device."""
        last = ""
        while rows := self._registry.query(
            f"SELECT {self._COLUMNS} FROM memories WHERE task = ? AND device > ? "
            f"ORDER BY device LIMIT {AT_ONCE}",
            task,
            last,
        ):
            for row in rows:
                yield _row(*row)
            last = rows[-1][0]

    def longest_unheard(self, task: str) -> Iterator[MemoryRow]:
        """Yield the same, those first that nothing was folded of for longest."""
        offset = 0
        while rows := self._registry.query(
            f"SELECT {self._COLUMNS} FROM memories WHERE task = ? "
            f"ORDER BY release, device LIMIT {AT_ONCE} OFFSET ?",
            task,
            offset,
        ):
            for row in rows:
                yield _row(*row)
            offset += len(rows)

    def heard(self, task: str, since: float) -> tuple[int, int]:
        """Return how many remembered devices were heard after ``since``, and how many of these
        have an update waiting.
        """
        rows = self._registry.query(
            "SELECT COUNT(*), TOTAL(device IN (SELECT device FROM updates WHERE task = ?1 "
            f"AND state = '{ReceiptState.STORED}')) FROM memories JOIN devices USING (device) "
            "WHERE memories.task = ?1 AND heard >= ?2",
            task,
            since,
        )
        return int(rows[0][0]), int(rows[0][1])

    def total(self, task: str) -> Remembered:
        rows = self._registry.query(
            "SELECT COUNT(*), TOTAL(samples), COALESCE(SUM(size), 0) FROM memories WHERE task = ?",
            task,
        )
        return Remembered(*rows[0])

    def usual(self, task: str, but: Collection[str] = (), *, also: Sequence[float] = ()) -> float:
        """Return the median weight of all devices but those of ``but``, and of ``also``.

        0: there is none.
        """
        rows = self._registry.query("SELECT device, samples FROM memories WHERE task = ?", task)
        weights = [samples for device, samples in rows if device not in but]
        return float(median([*weights, *also] or [0.0]))

    def heavier(self, task: str, weight: float) -> list[MemoryRow]:
        """Return the memories that weigh more than ``weight``."""
        rows = self._registry.query(
            f"SELECT {self._COLUMNS} FROM memories WHERE task = ? AND samples > ?", task, weight
        )
        return [_row(*row) for row in rows]

    def put(self, task: str, row: MemoryRow) -> None:
        self._registry.execute(
            "INSERT OR REPLACE INTO memories VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            task,
            row.device,
            row.installation,
            row.digest,
            row.artifact.sha256,
            row.artifact.size,
            row.samples,
            row.release,
        )

    def drop(self, task: str, device: str) -> None:
        self._registry.execute("DELETE FROM memories WHERE task = ? AND device = ?", task, device)

    def drop_all(self, task: str) -> int:
        """Forget every device of ``task``; return how many there were."""
        return self._registry.execute("DELETE FROM memories WHERE task = ?", task)

    def forget(self, device: str) -> None:
        """Forget ``device``, whatever its tasks; sums are computed anew by whoever sees that."""
        self._registry.execute("DELETE FROM memories WHERE device = ?", device)
        self._registry.execute("DELETE FROM device_reports WHERE device = ?", device)

    def artifacts(self) -> set[str]:
        """Return the digests of all memories of all tasks."""
        return {sha256 for (sha256,) in self._registry.query("SELECT sha256 FROM memories")}


def _row(
    device: str,
    installation: int,
    digest: int,
    sha256: str,
    size: int,
    samples: float,
    release: int,
) -> MemoryRow:
    artifact = Artifact(sha256=sha256, size=size)
    return MemoryRow(device, installation, digest, artifact, samples, release)
