"""What the registry knows of releases: number, manifest, how good, and from how many updates."""

from collections.abc import Collection
from typing import NamedTuple

from broker.records.memory_records import MemoryRecords
from broker.records.registry import Registry
from broker.records.state_records import StateRecords
from models.protocol.manifest import Artifact, Manifest, decode_manifest, encode_manifest

__all__ = ["FoldedRow", "ReleaseRecords", "ReleaseRow"]


class ReleaseRow(NamedTuple):
    """A release, as it was made."""

    manifest: Manifest
    created: float  # Unix seconds
    metric: float | None = None  # on the server's hold-out data: accuracy, or mean squared error
    loss: float | None = None
    evaluated: int = 0  # hold-out samples
    updates: int = 0  # that were folded into it
    devices: int = 0  # that these came from
    bytes_received: int = 0  # of these updates, header and payload
    bytes_down: int = 0  # what a device that has its parent downloads
    metric_trained: float | None = None  # of the parameters, where devices run their average
    step: float | None = None  # length of what the exact sum moved by; None: nothing was folded
    age: float | None = None  # releases; the mean one of what was folded

    @property
    def number(self) -> int:
        return self.manifest.release


class FoldedRow(NamedTuple):
    """The exact sum of all that was folded, as of a release; devices may hold an approximation."""

    release: int
    artifact: Artifact
    since: int  # the first release with the parameters of this one


class ReleaseRecords:
    """The tables releases and folded of one registry."""

    _COLUMNS = (
        "manifest, created, metric, loss, evaluated, updates, devices, bytes_received, bytes_down, "
        "metric_trained, step, age"
    )

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def tasks(self) -> list[str]:
        return [row[0] for row in self._registry.query("SELECT DISTINCT task FROM releases")]

    def current(self, task: str) -> ReleaseRow | None:
        rows = self._registry.query(
            f"SELECT {self._COLUMNS} FROM releases WHERE task = ? ORDER BY number DESC LIMIT 1",
            task,
        )
        return self._row(*rows[0]) if rows else None

    def get(self, task: str, number: int) -> ReleaseRow | None:
        rows = self._registry.query(
            f"SELECT {self._COLUMNS} FROM releases WHERE task = ? AND number = ?", task, number
        )
        return self._row(*rows[0]) if rows else None

    def count_after(self, task: str, number: int) -> int:
        """Return how many releases of ``task`` are newer than ``number``."""
        rows = self._registry.query(
            "SELECT COUNT(*) FROM releases WHERE task = ? AND number > ?", task, number
        )
        return int(rows[0][0])

    def newest(self, task: str, count: int) -> int:
        """Return the number of the oldest of the newest ``count`` releases; 0: there are fewer."""
        rows = self._registry.query(
            "SELECT number FROM releases WHERE task = ? ORDER BY number DESC LIMIT 1 OFFSET ?",
            task,
            count - 1,
        )
        return int(rows[0][0]) if rows else 0

    def history(self, task: str) -> list[ReleaseRow]:
        """Return all releases of ``task``, oldest first."""
        rows = self._registry.query(
            f"SELECT {self._COLUMNS} FROM releases WHERE task = ? ORDER BY number", task
        )
        return [self._row(*row) for row in rows]

    def recent(self, task: str, count: int) -> list[tuple[ReleaseRow, int]]:
        """Return the last ``count`` releases of ``task``, oldest first.

        With each, how many samples the fleet had reported when it was made; 0: not noted.
        """
        rows = self._registry.query(
            f"SELECT COALESCE(samples, 0), {self._COLUMNS} FROM releases "
            "LEFT JOIN reported USING (task, number) WHERE task = ? ORDER BY number DESC LIMIT ?",
            task,
            count,
        )
        return [(self._row(*row), int(samples)) for samples, *row in reversed(rows)]

    def folded_at(self, task: str) -> float | None:
        """Return when the last release was made that updates were folded into; None: none was."""
        rows = self._registry.query(
            "SELECT created FROM releases WHERE task = ? AND updates > 0 "
            "ORDER BY number DESC LIMIT 1",
            task,
        )
        return float(rows[0][0]) if rows else None

    def folded(self, task: str) -> FoldedRow | None:
        rows = self._registry.query(
            "SELECT release, sha256, size, since FROM folded WHERE task = ?", task
        )
        if not rows:
            return None
        release, sha256, size, since = rows[0]
        return FoldedRow(release, Artifact(sha256=sha256, size=size), since)

    def add(self, release: ReleaseRow, folded: FoldedRow, samples: int) -> None:
        """Record a new release and what it stands for, within a transaction.

        ``samples``: how many the fleet had reported.
        """
        self._registry.execute(
            "INSERT INTO reported VALUES (?, ?, ?)", release.manifest.task, release.number, samples
        )
        self._registry.execute(
            "INSERT OR REPLACE INTO folded VALUES (?, ?, ?, ?, ?)",
            release.manifest.task,
            folded.release,
            folded.artifact.sha256,
            folded.artifact.size,
            folded.since,
        )
        manifest, *rest = release
        self._registry.execute(
            f"INSERT INTO releases (task, number, {self._COLUMNS}) "
            f"VALUES ({', '.join('?' * (2 + len(release)))})",
            manifest.task,
            manifest.release,
            encode_manifest(manifest),
            *rest,
        )

    def updates_in_releases(self, task: str | None = None) -> int:
        """Return how many updates all releases together were made from, or those of ``task``."""
        rows = self._registry.query(
            "SELECT COALESCE(SUM(updates), 0) FROM releases WHERE ?1 IS NULL OR task = ?1", task
        )
        return int(rows[0][0])

    def artifacts_wanted(self, kept: int) -> Collection[str]:
        """Return the digests that the newest ``kept`` releases of each task need, 0: all of them;
        and what is carried from fold to fold.
        """
        rows = [
            row
            for task in self.tasks()
            for row in self._registry.query(
                "SELECT manifest FROM releases WHERE task = ? ORDER BY number DESC LIMIT ?",
                task,
                kept or -1,
            )
        ]
        manifests = [decode_manifest(manifest) for (manifest,) in rows]
        exact = self._registry.query("SELECT sha256 FROM folded")
        named = {file.sha256 for manifest in manifests for file in manifest.files}
        named |= {sha256 for (sha256,) in exact}
        named |= StateRecords(self._registry).artifacts()
        return named | MemoryRecords(self._registry).artifacts()

    @staticmethod
    def _row(manifest: bytes, *rest: float) -> ReleaseRow:
        return ReleaseRow(decode_manifest(manifest), *rest)  # type: ignore[arg-type]
