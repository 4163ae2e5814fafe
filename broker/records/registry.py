"""The server's one database: schema, transactions, errors; devices and what the broker holds.

All that the server must not forget is in here, and every change is part of a transaction that
survives a power cut (`models.host.durable.open_database`). Updates are in `update_records.py`,
releases in `broker/records/release_records.py`; both work through this one connection.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from models.errors import TransientError, UsageError
from models.host.durable import open_database
from models.protocol.messages import Status

__all__ = ["DATABASE", "MIN_CHUNK", "DeviceRow", "Registry"]

DATABASE = "registry.db"
FORMAT = 1
RUNS_KEPT = 8  # of each device
MIN_CHUNK = 1024  # bytes of a chunk that is not an update's last; the schema has an index of these
_TASK = "json_extract(CAST(status AS TEXT), '$.task')"  # of a device, as its status says
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS devices (
  device TEXT PRIMARY KEY,
  seen REAL NOT NULL DEFAULT 0,           -- Unix seconds; 0: no status yet
  online INTEGER NOT NULL DEFAULT 0,
  status BLOB,                            -- the last whole one, JSON
  runs TEXT NOT NULL DEFAULT '',          -- of its process, the newest last (`Status.run`)
  doubled REAL NOT NULL DEFAULT 0,        -- Unix seconds: a run spoke again after the next one
  bytes_received INTEGER NOT NULL DEFAULT 0,  -- of update messages, repeats included
  duplicates INTEGER NOT NULL DEFAULT 0,  -- chunks that came again
  garbage INTEGER NOT NULL DEFAULT 0,     -- messages that were none of ours
  heard REAL NOT NULL DEFAULT 0           -- Unix seconds: of a live word, or of its will; 0: never
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten (    -- devices that an operator removed, until they come back
  device TEXT PRIMARY KEY,
  asked REAL NOT NULL,                    -- Unix seconds
  step INTEGER NOT NULL DEFAULT 0         -- see broker/devices/forgetting.py
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS to_be_forgotten ON forgotten (device) WHERE step = 0;
CREATE TABLE IF NOT EXISTS partials (     -- updates that are not whole yet
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  size INTEGER NOT NULL DEFAULT 0,        -- of header and payload; 0: chunk 0 has not come
  chunk_size INTEGER NOT NULL DEFAULT 0,
  touched REAL NOT NULL,
  PRIMARY KEY (device, installation, sequence)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS touched ON partials (touched);
CREATE TABLE IF NOT EXISTS chunks (
  id INTEGER PRIMARY KEY,
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  number INTEGER NOT NULL,
  size INTEGER NOT NULL,
  data BLOB NOT NULL,
  UNIQUE (device, installation, sequence, number)
);
CREATE INDEX IF NOT EXISTS short_chunks ON chunks (device, installation, sequence)
  WHERE size < {MIN_CHUNK};
CREATE TABLE IF NOT EXISTS updates (
  id INTEGER PRIMARY KEY,
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  task TEXT NOT NULL,
  base INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  steps INTEGER NOT NULL,
  loss_first REAL,
  loss_last REAL,
  accuracy REAL,
  size INTEGER NOT NULL,                  -- of header and payload
  received REAL NOT NULL,
  state TEXT NOT NULL,                    -- stored, folded, refused
  release INTEGER NOT NULL DEFAULT 0,     -- folded into
  reason TEXT NOT NULL DEFAULT '',        -- refused for
  told INTEGER NOT NULL DEFAULT 0,        -- the broker took over the receipt for this state
  payload BLOB,                           -- until it is folded or refused
  UNIQUE (device, installation, sequence)
);
CREATE INDEX IF NOT EXISTS waiting ON updates (task, id) WHERE state = 'stored';
CREATE INDEX IF NOT EXISTS untold ON updates (id) WHERE told = 0;
CREATE TABLE IF NOT EXISTS unreadable (   -- stored updates on bad blocks: refused, see `bury`
  id INTEGER PRIMARY KEY,
  reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS settled (      -- what became of every update, for ever, as ranges
  device TEXT NOT NULL,
  installation INTEGER NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  state TEXT NOT NULL,                    -- folded, refused
  release INTEGER NOT NULL,               -- the newest that one of them was folded into
  PRIMARY KEY (device, installation, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS releases (
  task TEXT NOT NULL,
  number INTEGER NOT NULL,
  created REAL NOT NULL,
  manifest BLOB NOT NULL,
  accuracy REAL,
  loss REAL,
  evaluated INTEGER NOT NULL DEFAULT 0,   -- hold-out samples
  updates INTEGER NOT NULL DEFAULT 0,     -- folded into it
  devices INTEGER NOT NULL DEFAULT 0,     -- that these came from
  bytes_received INTEGER NOT NULL DEFAULT 0,  -- of these updates
  bytes_down INTEGER NOT NULL,            -- manifest, and artifacts that its parent does not have
  PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reported (     -- how many samples the fleet had when a release was made
  task TEXT NOT NULL,
  number INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folded (       -- of each task: the exact sum of all that was folded
  task TEXT PRIMARY KEY,
  release INTEGER NOT NULL,               -- that it belongs to
  sha256 TEXT NOT NULL,                   -- of the artifact
  size INTEGER NOT NULL,
  since INTEGER NOT NULL                  -- the first release with the parameters of this one
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS published (    -- what the broker retains for us, as far as we know
  name TEXT PRIMARY KEY,                  -- an artifact's sha256, or task/<task>
  digest TEXT NOT NULL,                   -- of the manifest; of the artifact
  size INTEGER NOT NULL,
  chunk_size INTEGER NOT NULL,
  done INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""


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


class PublishedRow(NamedTuple):
    """Something that the broker retains for us, or is about to."""

    name: str
    digest: str
    size: int
    chunk_size: int
    done: bool


class Registry:
    """One connection to the registry of one fleet. Not for two threads."""

    def __init__(self, path: Path | str, fleet: str, *, read_only: bool = False) -> None:
        """Open the registry at ``path``; create it unless ``read_only``.

        Raises:
            UsageError: it belongs to another fleet or a newer version, or is damaged.
            TransientError: the disk is full or failing.
        """
        self.path = path
        self._devices: int | None = None  # how many there are; None: to be counted
        try:
            if read_only:
                self._database = sqlite3.connect(
                    f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=30.0
                )
            else:
                self._database = open_database(path)
                self._database.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise self._readable(error) from error
        if read_only:
            self._check_columns()
        else:
            self._add_columns()
            with self.transaction():
                self._introduce(fleet)
        about = self.query("SELECT value FROM meta WHERE key = 'fleet'")
        if not about:  # its server has made the tables and not yet said whose they are
            self.close()
            raise TransientError(f"registry {path}: it is being made now")
        self.fleet = str(about[0][0])

    def _introduce(self, fleet: str) -> None:
        self.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", str(FORMAT))
        self.execute("INSERT OR IGNORE INTO meta VALUES ('fleet', ?)", fleet)
        about = dict(self.query("SELECT key, value FROM meta"))
        if about["format"] != str(FORMAT):
            raise UsageError(
                f"{self.path} has format {about['format']}, this version reads {FORMAT}: "
                f"install the version that wrote it"
            )
        if about["fleet"] != fleet:
            raise UsageError(
                f"{self.path} belongs to fleet {about['fleet']}, not {fleet}: "
                f"give every fleet a [storage] directory of its own"
            )

    def _has_columns(self) -> bool:
        """Whether the devices of this registry, if it has any, have all that `SCHEMA` says."""
        columns = {row[1] for row in self.query("PRAGMA table_info(devices)")}
        return not columns or "heard" in columns

    def _add_columns(self) -> None:
        """Take over the registry of a version that did not tell live words from retained ones."""
        if not self._has_columns():
            self.execute("ALTER TABLE devices ADD COLUMN heard REAL NOT NULL DEFAULT 0")

    def _check_columns(self) -> None:
        if not self._has_columns():
            self.close()
            raise UsageError(
                f"{self.path} is of an older version, whose server has not been started since the "
                f"upgrade: restart it, then ask again"
            )

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything within it durable together, or nothing of it.

        Raises:
            TransientError: the disk is full or failing; nothing was changed.
        """
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            self._devices = None  # some of them may be gone again
            if self._database.in_transaction:  # a full disk may have ended it already
                self._database.rollback()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See everything as it was at one moment, whatever a server commits meanwhile."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            self._database.rollback()

    def execute(self, statement: str, *values: object) -> int:
        """Run ``statement``; return how many rows it changed."""
        try:
            return self._database.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise self._readable(error) from error

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows."""
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._readable(error) from error

    def _readable(self, error: sqlite3.Error) -> Exception:
        if isinstance(error, sqlite3.OperationalError):
            return TransientError(f"registry {self.path}: {error}")
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            return error  # our own mistake: with its traceback, please
        return UsageError(
            f"registry {self.path} is damaged ({error}): restore a backup, or move it away to "
            f"begin anew from the bundles; devices send again what was not folded"
        )

    # Devices

    def device_count(self) -> int:
        if self._devices is None:
            self._devices = int(self.query("SELECT COUNT(*) FROM devices")[0][0])
        return self._devices

    def introduce_device(self, device: str) -> None:
        """Make a row for a device that has none; one that was forgotten is back."""
        self.execute("INSERT INTO devices (device) VALUES (?)", device)
        self.execute("DELETE FROM forgotten WHERE device = ? AND step > 0", device)
        if self._devices is not None:
            self._devices += 1

    def drop_device(self, device: str) -> None:
        """Remove the row of ``device``, if it has one."""
        self.execute("DELETE FROM devices WHERE device = ?", device)
        self._devices = None

    def is_forgotten(self, device: str) -> bool:
        """Whether an operator removed ``device`` and it did not come back since."""
        rows = self.query("SELECT 1 FROM forgotten WHERE device = ? AND step > 0", device)
        return bool(rows)

    def note_heard(self, device: str, heard: float, *, is_here: bool) -> bool:
        """Record a live word of ``device``, or its will; return whether it has a row."""
        changed = self.execute(
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
        rows = self.query(
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
        self.execute("UPDATE devices SET runs = ? WHERE device = ?", kept, device)
        if is_double:
            self.execute("UPDATE devices SET doubled = ? WHERE device = ?", now, device)
        return is_double

    def count(
        self, device: str, *, bytes_received: int = 0, duplicates: int = 0, garbage: int = 0
    ) -> bool:
        """Add to the counters of ``device``; return whether it has a row."""
        changed = self.execute(
            "UPDATE devices SET bytes_received = bytes_received + ?, "
            "duplicates = duplicates + ?, garbage = garbage + ? WHERE device = ?",
            bytes_received,
            duplicates,
            garbage,
            device,
        )
        return changed > 0

    def devices(self) -> list[DeviceRow]:
        rows = self.query(
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
        rows = self.query(
            f"SELECT 1 FROM devices WHERE device != ? AND seen > ? AND {_TASK} = ? LIMIT 1",
            device,
            since,
            task,
        )
        return bool(rows)

    def samples_reported(self, task: str) -> int:
        """Return how many samples the devices of ``task`` say they ever had to train on."""
        rows = self.query(
            "SELECT sum(coalesce(json_extract(CAST(status AS TEXT), '$.samples_ever'), "
            "json_extract(CAST(status AS TEXT), '$.samples'))) FROM devices "
            f"WHERE {_TASK} = ?",
            task,
        )
        return int(rows[0][0] or 0)

    def oldest_release_in_use(self, task: str) -> int:
        """Return the lowest release that a device of ``task`` said to have; 0 if none did."""
        rows = self.query(
            "SELECT min(nullif(json_extract(CAST(status AS TEXT), '$.release'), 0)) FROM devices "
            f"WHERE {_TASK} = ?",
            task,
        )
        return int(rows[0][0] or 0)

    # What the broker holds for us

    def published(self) -> list[PublishedRow]:
        rows = self.query("SELECT name, digest, size, chunk_size, done FROM published")
        return [
            PublishedRow(name, digest, size, chunk_size, bool(done))
            for name, digest, size, chunk_size, done in rows
        ]

    def will_publish(self, row: PublishedRow) -> None:
        """Record that ``row`` is about to be retained by the broker, so that it can be cleared."""
        self.execute("INSERT OR REPLACE INTO published VALUES (?, ?, ?, ?, ?)", *row)

    def was_published(self, name: str) -> None:
        self.execute("UPDATE published SET done = 1 WHERE name = ?", name)

    def was_cleared(self, name: str) -> None:
        self.execute("DELETE FROM published WHERE name = ?", name)

    def forget_published(self) -> None:
        """The broker lost everything."""
        self.execute("UPDATE published SET done = 0")
