"""What the registry knows of devices: what each says and costs, and whom an operator removed.

All methods but `ask_to_forget` expect to run within a transaction if they change anything.
"""

from collections.abc import Collection
from typing import NamedTuple

import msgspec

from broker.records.registry import Registry
from models.protocol.messages import Status

__all__ = ["DeviceRecords", "DeviceRow"]

RUNS_KEPT = 8  # of each device
_TASK = "json_extract(CAST(status AS TEXT), '$.task')"  # of a device, as its status says


class DeviceRow(NamedTuple):
    """One device as the server knows it."""

    device: str
    seen: float  # Unix seconds, of its last status, retained ones too; 0: it sent none yet
    heard: float  # Unix seconds, of a live word or its will; 0: never
    online: bool  # says its last status, retained or not
    status: Status | None
    doubled: float  # Unix seconds: two boards spoke by this name; 0: never
    bytes_received: int
    duplicates: int
    garbage: int


class DeviceRecords:
    """The tables devices and forgotten of one registry.

    Whoever introduces and forgets devices does it through one of these, which counts them.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._counted: int | None = None  # devices; None: to be counted
        self._rollbacks = registry.rollbacks  # when they were

    def how_many(self) -> int:
        if self._counted is None or self._rollbacks != self._registry.rollbacks:
            self._counted = int(self._registry.query("SELECT COUNT(*) FROM devices")[0][0])
            self._rollbacks = self._registry.rollbacks
        return self._counted

    def introduce(self, device: str) -> None:
        """Make a row for a device that has none; one that was forgotten is back."""
        self._registry.execute("INSERT INTO devices (device) VALUES (?)", device)
        self._registry.execute("DELETE FROM forgotten WHERE device = ? AND step > 0", device)
        if self._counted is not None:
            self._counted += 1

    def note_heard(self, device: str, heard: float, *, is_here: bool) -> bool:
        """Record a live word of ``device``, or its will; return whether it has a row."""
        changed = self._registry.execute(
            "UPDATE devices SET heard = ?, online = max(online, ?) WHERE device = ?",
            heard,
            is_here,
            device,
        )
        return changed > 0

    def note_status(self, device: str, status: Status, now: float) -> bool | None:
        """Record what a device says; return if it is there twice, None for one without a row.

        Of a device that is gone, what it last said online stays.
        """
        rows = self._registry.query(
            "UPDATE devices SET seen = ?, online = ?, status = coalesce(?, status) "
            "WHERE device = ? RETURNING runs",
            now,
            status.online,
            msgspec.json.encode(status) if status.online else None,
            device,
        )
        if not rows:
            return None
        return bool(status.run) and self._note_run(device, status.run, str(rows[0][0]), now)

    def _note_run(self, device: str, run: str, before: str, now: float) -> bool:
        """Record which run of its process ``device`` speaks from; return if it is there twice.

        A process that another one followed has ended, or there are two boards of one identity.
        """
        runs = before.split()
        if runs and runs[-1] == run:
            return False
        is_double = run in runs
        kept = " ".join([*(other for other in runs if other != run), run][-RUNS_KEPT:])
        self._registry.execute("UPDATE devices SET runs = ? WHERE device = ?", kept, device)
        if is_double:
            self._registry.execute("UPDATE devices SET doubled = ? WHERE device = ?", now, device)
        return is_double

    def count(
        self, device: str, *, bytes_received: int = 0, duplicates: int = 0, garbage: int = 0
    ) -> bool:
        """Add to the counters of ``device``; return whether it has a row."""
        changed = self._registry.execute(
            "UPDATE devices SET bytes_received = bytes_received + ?, "
            "duplicates = duplicates + ?, garbage = garbage + ? WHERE device = ?",
            bytes_received,
            duplicates,
            garbage,
            device,
        )
        return changed > 0

    def rows(self) -> list[DeviceRow]:
        rows = self._registry.query(
            "SELECT device, seen, heard, online, status, doubled, bytes_received, duplicates, "
            "garbage FROM devices ORDER BY device"
        )
        return [
            DeviceRow(
                device,
                seen,
                heard,
                bool(online),
                msgspec.json.decode(status, type=Status) if status else None,
                *counters,
            )
            for device, seen, heard, online, status, *counters in rows
        ]

    def was_another_heard(self, device: str, task: str, since: float) -> bool:
        """Whether a device of ``task`` other than ``device`` sent a status after ``since``."""
        rows = self._registry.query(
            f"SELECT 1 FROM devices WHERE device != ? AND seen > ? AND {_TASK} = ? LIMIT 1",
            device,
            since,
            task,
        )
        return bool(rows)

    def asking_for(self, task: str) -> int:
        """Return how many devices say that they ask for ``task``."""
        rows = self._registry.query(f"SELECT COUNT(*) FROM devices WHERE {_TASK} = ?", task)
        return int(rows[0][0])

    def cannot_follow(self, task: str, needs: int) -> tuple[int, list[str]]:
        """Return how many devices that ask for ``task`` follow less than ``needs`` (see
        `models.protocol.manifest.FOLLOWS`), and their versions.
        """
        rows = self._registry.query(
            "SELECT coalesce(json_extract(CAST(status AS TEXT), '$.version'), ''), COUNT(*) "
            f"FROM devices WHERE {_TASK} = ? "
            "AND coalesce(json_extract(CAST(status AS TEXT), '$.follows'), 0) < ? "
            "GROUP BY 1 ORDER BY 1",
            task,
            needs,
        )
        return sum(count for _, count in rows), [version for version, _ in rows]

    def samples_reported(self, task: str) -> int:
        """Return how many samples the devices of ``task`` say they ever had to train on."""
        rows = self._registry.query(
            "SELECT sum(coalesce(json_extract(CAST(status AS TEXT), '$.samples_ever'), "
            "json_extract(CAST(status AS TEXT), '$.samples'))) FROM devices "
            f"WHERE {_TASK} = ?",
            task,
        )
        return int(rows[0][0] or 0)

    def oldest_release_in_use(self, task: str) -> int:
        """Return the lowest release that a device of ``task`` said to have; 0 if none did."""
        rows = self._registry.query(
            "SELECT min(nullif(json_extract(CAST(status AS TEXT), '$.release'), 0)) FROM devices "
            f"WHERE {_TASK} = ?",
            task,
        )
        return int(rows[0][0] or 0)

    # Forgotten, step by step (`broker.devices.forgetting`)

    def ask_to_forget(self, devices: Collection[str], now: float) -> None:
        """Ask the server of the registry, running or not, to forget ``devices``; all or none."""
        with self._registry.transaction():
            for device in devices:
                self._registry.execute(
                    "INSERT OR REPLACE INTO forgotten VALUES (?, ?, 0)", device, now
                )

    def to_be_forgotten(self) -> list[str]:
        """Return the devices that were asked for and that nobody has forgotten yet."""
        return self._forgotten("step = 0")

    def forget(self, device: str) -> None:
        """Remove the row of ``device``, if it has one, as was asked for."""
        self._registry.execute("DELETE FROM devices WHERE device = ?", device)
        self._registry.execute("UPDATE forgotten SET step = 1 WHERE device = ?", device)
        self._counted = None

    def retained(self) -> list[str]:
        """Return the forgotten devices whose status the broker may still retain."""
        return self._forgotten("step = 1")

    def was_cleared(self, device: str) -> None:
        """The broker does not retain the status of a forgotten device any more."""
        self._registry.execute(
            "UPDATE forgotten SET step = 2 WHERE device = ? AND step = 1", device
        )

    def is_forgotten(self, device: str) -> bool:
        """Whether an operator removed ``device`` and it did not come back since."""
        return bool(self._forgotten("device = ? AND step > 0", device))

    def _forgotten(self, where: str, *values: str) -> list[str]:
        rows = self._registry.query(f"SELECT device FROM forgotten WHERE {where}", *values)
        return [device for (device,) in rows]
