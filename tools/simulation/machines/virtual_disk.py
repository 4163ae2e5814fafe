"""Disks that crash as real ones do: what was not synced may be lost, torn or full of zeros.

The files are real and lie in a directory (of memory, if possible), and the product's code opens
and renames them as ever; while they are `mounted` (`disk_watch.py`), a disk is told of those calls
that concern it. So a power cut can take back what no fsync made durable, and any call can crash the
process or fail. SQLite stays SQLite, in memory: a crash rolls back what was not committed (that WAL
with ``synchronous=FULL`` keeps what was committed is tested on ext4:
tests/faults/test_loop_disk.py).

The model of a power cut, harsher than a journaling file system: of each unsynced file any prefix,
its tail lost or zeros; of the names in each directory (creations, renames, deletions since it was
synced) any number of the last ones undone. New directories are there at once.
"""

import contextlib
import errno
import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "Crash",
    "Database",
    "DatabaseError",
    "DiskFaults",
    "VirtualDisk",
    "disk_of",
    "forget_disks",
    "untouched",
]

Database = sqlite3.Connection
DatabaseError = sqlite3.OperationalError
BLOCK = 4096  # bytes that any file or database takes at least


class Crash(BaseException):
    """The process is gone: nothing of it may run any more."""


class _Change(NamedTuple):
    """A name that changed and that no sync of its directory has made durable."""

    folder: str
    old: str  # where the file came from, "" for a creation
    new: str  # where it is, "" for a deletion
    backup: str  # what was at ``new`` (for a deletion: at ``old``) before, "" for nothing


_is_off = False  # while the disk itself is at work


@contextmanager
def untouched() -> Iterator[None]:
    """Within it, files are touched as by nobody: it costs no operation and cannot fail."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def disk_of(path: str, root: str) -> "VirtualDisk | None":
    """Return the disk in ``root`` (which ends with /) that ``path`` is on, if it is watched now."""
    if _is_off or not path.startswith(root):
        return None
    end = path.find("/", len(root))
    return _DISKS.get(path if end < 0 else path[:end])


@dataclass
class DiskFaults:
    """What is wrong with a disk now."""

    full: bool = False  # nothing more can be written
    read_only: bool = False
    failing: float = 0.0  # share of changing operations that end with EIO
    failing_reads: float = 0.0  # meanwhile: share of the others
    tight: int = 0  # longer writes find no room; 0: any does
    ended_s: float = -1000.0  # when the last trouble was over

    @property
    def are_none(self) -> bool:
        return not (self.full or self.read_only or self.failing or self.tight)


class VirtualDisk:
    """One machine's disk below the directory ``at``; ``before_io`` may raise `Crash`.

    ``is_watched`` False: it neither fails nor crashes, and costs less time.
    """

    def __init__(self, at: Path, *, is_watched: bool = True) -> None:
        self.at = at
        self.is_watched = is_watched
        self.faults = DiskFaults()
        self.dead = False  # between a crash and the reboot
        self.before_io: Callable[[str], None] = lambda what: None
        self.fault_rng = random.Random(0)
        self.databases: dict[str, sqlite3.Connection] = {}
        self._dirty: dict[int, tuple[str, bytes]] = {}  # inode -> path, durable content
        self._changes: list[_Change] = []
        self._backups = 0
        at.mkdir(parents=True)
        self._attic = at.with_name(at.name + ".attic")
        self._attic.mkdir()
        _DISKS[str(at)] = self

    # -- faults

    def reboot(self, rng: random.Random, *, power_cut: bool) -> None:
        """Come back after a crash; after a power cut, with what had reached the disk."""
        for database in self.databases.values():
            if database.in_transaction:
                database.rollback()
        self.dead = False
        if not power_cut:
            return
        with untouched():
            for folder in dict.fromkeys(change.folder for change in self._changes):
                mine = [change for change in self._changes if change.folder == folder]
                kept = rng.randrange(len(mine) + 1)
                for change in reversed(mine[kept:]):
                    _undo(change)
            for inode, (path, durable) in sorted(self._dirty.items()):
                with contextlib.suppress(OSError):
                    if os.stat(path).st_ino == inode:
                        _tear(Path(path), durable, rng)
            self._forget_changes(self._changes)
        self._changes = []
        self._dirty.clear()

    def used(self) -> int:
        """Return the bytes in use."""
        with untouched():
            files = sum(
                max(os.stat(os.path.join(folder, name)).st_size, 1)
                for folder, _, names in os.walk(self.at)
                for name in names
            )
        return files + sum(map(_size, self.databases.values()))

    def touch(self, what: str, *, writes: int = 0, changes: bool = True) -> None:
        """Raise what happens to an operation now, if something does."""
        if self.dead:
            raise Crash
        self.before_io(what)
        if not changes:
            self.touch_reading(what)
            return
        faults = self.faults
        if faults.failing and self.fault_rng.random() < faults.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO), what)
        if faults.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), what)
        if writes and (faults.full or 0 < faults.tight < writes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)

    def touch_reading(self, what: str) -> None:
        """Raise what happens to a read now, if something does; it crashes nobody."""
        faults = self.faults
        if (
            faults.failing
            and faults.failing_reads
            and self.fault_rng.random() < faults.failing_reads
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO), what)

    # -- what the watched calls tell

    def opened(self, path: str, inode: int, *, is_new: bool, before: bytes) -> None:
        """A file was opened for writing; ``before`` is what it held."""
        if inode not in self._dirty:
            self._dirty[inode] = (path, before)
        if is_new:
            self._changes.append(_Change(os.path.dirname(path), "", path, ""))

    def synced(self, inode: int) -> None:
        self._dirty.pop(inode, None)

    def synced_folder(self, folder: str) -> None:
        done = [change for change in self._changes if change.folder == folder]
        self._changes = [change for change in self._changes if change.folder != folder]
        self._forget_changes(done)

    def renaming(self, old: str, new: str) -> None:
        """Keep what is at ``new``, so that the rename can be undone."""
        self._changes.append(_Change(os.path.dirname(new), old, new, self._keep(new)))
        inode = os.stat(old).st_ino
        if inode in self._dirty:
            self._dirty[inode] = (new, self._dirty[inode][1])

    def unlinking(self, path: str) -> None:
        self._changes.append(_Change(os.path.dirname(path), path, "", self._keep(path)))

    def _keep(self, path: str) -> str:
        if not os.path.isfile(path):
            return ""
        self._backups += 1
        backup = str(self._attic / str(self._backups))
        os.link(path, backup)
        return backup

    def _forget_changes(self, changes: Iterable[_Change]) -> None:
        with untouched():
            for change in changes:
                if change.backup:
                    Path(change.backup).unlink(missing_ok=True)

    # -- databases

    def connect(self, path: str) -> "_Connection | sqlite3.Connection":
        if not self.is_watched:
            if path not in self.databases:
                self.databases[path] = _connect(":memory:", isolation_level=None, factory=_Kept)
            return self.databases[path]
        if path not in self.databases:
            try:
                self.touch(f"create {path}", writes=BLOCK)
            except OSError as error:
                raise sqlite3.OperationalError(f"unable to open database file: {error}") from None
            self.databases[path] = _connect(":memory:", isolation_level=None)
            with untouched():
                Path(path).touch()
        return _Connection(self, os.path.basename(path), self.databases[path])

    def read_database(self, what: str) -> None:
        try:
            self.touch_reading(what)
        except OSError:
            raise sqlite3.OperationalError("disk I/O error") from None

    def touch_database(self, what: str) -> None:
        try:
            self.touch(what, writes=1)
        except OSError as error:
            reasons = {
                errno.ENOSPC: "database or disk is full",
                errno.EROFS: "attempt to write a readonly database",
            }
            text = reasons.get(error.errno or 0, "disk I/O error")
            raise sqlite3.OperationalError(text) from None


_DISKS: dict[str, VirtualDisk] = {}  # by directory
_connect = sqlite3.connect


def forget_disks(root: str) -> None:
    """Close the databases of all disks in ``root`` (which ends with /)."""
    for directory in [key for key in _DISKS if key.startswith(root)]:
        for database in _DISKS.pop(directory).databases.values():
            sqlite3.Connection.close(database)


def _size(database: sqlite3.Connection) -> int:
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    free = database.execute("PRAGMA freelist_count").fetchone()[0]
    return int(pages - free) * BLOCK


def _undo(change: _Change) -> None:
    with contextlib.suppress(OSError):  # a later step may have taken its place away
        if change.new and change.old:
            os.replace(change.new, change.old)
        elif change.new:
            os.unlink(change.new)
        if change.backup:
            os.replace(change.backup, change.new or change.old)


def _tear(path: Path, durable: bytes, rng: random.Random) -> None:
    latest = path.read_bytes()
    cut = rng.randrange(len(latest) + 1)
    zeros = latest[:cut] + bytes(len(latest) - cut)
    path.write_bytes(rng.choice([durable, durable, latest[:cut], zeros, latest]))


class _Kept(sqlite3.Connection):
    """A database in memory that outlives the processes which open it."""

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()


class _Connection:
    """A process's connection to a database of a virtual disk, as `sqlite3.Connection`."""

    _READS = frozenset({"SELECT", "PRAGMA", "ROLLBACK", "EXPLAIN"})

    def __init__(self, disk: VirtualDisk, name: str, real: sqlite3.Connection) -> None:
        self._disk = disk
        self._name = name
        self._real = real

    @property
    def in_transaction(self) -> bool:
        return not self._disk.dead and self._real.in_transaction

    @property
    def total_changes(self) -> int:
        return self._real.total_changes

    def execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        disk = self._disk
        if disk.dead:
            raise Crash
        word = statement.lstrip()[:9].split(None, 1)[0].upper()
        if word in ("COMMIT", "END"):
            try:
                disk.touch_database(f"commit {self._name}")
            except sqlite3.OperationalError:
                if self._real.in_transaction:
                    self._real.rollback()
                raise
        elif word == "BEGIN" or (word not in self._READS and not self._real.in_transaction):
            disk.touch_database(f"{word.lower()} {self._name}")
        elif word == "SELECT" and disk.faults.failing:
            disk.read_database(f"select {self._name}")
        return self._real.execute(statement, tuple(values))

    def executemany(self, statement: str, rows: Iterable[Iterable[Any]]) -> sqlite3.Cursor:
        self._disk.touch_database(f"many {self._name}")
        return self._real.executemany(statement, [tuple(row) for row in rows])

    def executescript(self, script: str) -> sqlite3.Cursor:
        self._disk.touch_database(f"script {self._name}")
        return self._real.executescript(script)

    def commit(self) -> None:
        if self._real.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        if self._disk.dead:
            raise Crash
        self._real.rollback()

    def close(self) -> None:
        if not self._disk.dead and self._real.in_transaction:
            self._real.rollback()
