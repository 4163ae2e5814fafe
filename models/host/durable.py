"""Files that must survive a power cut: the one place that knows fsync.

Paths may be strings, see `models.host.files`.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from models.errors import EdgefoldError

__all__ = [
    "atomic_write",
    "atomic_write_pieces",
    "back_up_database",
    "open_database",
    "remove",
    "sync_directory",
]

CACHE_KIB = 512  # of a database; SQLite would take 2 MB


def atomic_write(path: Path | str, data: bytes) -> None:
    """Replace ``path`` with ``data``: after a power cut it is all old or all new.

    Raises:
        OSError: the disk is full or failing; ``path`` is as it was. Or it is new, if only its
            directory could not be synced: sync or write again before relying on it.
    """
    atomic_write_pieces(path, (data,))


def atomic_write_pieces(path: Path | str, pieces: Iterable[bytes]) -> None:
    """As `atomic_write`, of ``pieces`` one after the other: never all of them in memory.

    Where ``pieces`` itself raises an error of ours or an `OSError`, ``path`` is as it was.
    """
    draft = f"{path}.draft"
    try:
        with open(draft, "wb") as file:
            for piece in pieces:  # noqa: FURB122 (each write is a step for the power-cut recorder)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())  # the bytes, before the name that promises them
        os.replace(draft, path)
    except (OSError, EdgefoldError):
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    sync_directory(os.path.dirname(path))  # the name, before anyone relies on it


def remove(path: Path | str) -> None:
    """Delete ``path`` if it is there, for good."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: Path | str) -> None:
    """Make the names in ``path`` durable."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_database(path: Path | str) -> sqlite3.Connection:
    """Open (or create) a SQLite database whose commits survive a power cut.

    WAL with ``synchronous=FULL``: measured 30 of 30 cuts good, where NORMAL lost what was
    committed in 28 of 30. The caller begins and commits transactions itself. The cache is small,
    since the kernel has the pages too.
    """
    database = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("PRAGMA foreign_keys=ON")
    database.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    return database


def back_up_database(database: sqlite3.Connection, target: Path | str) -> None:
    """Write all that ``database`` has committed to ``target``: it is the old one, or all new.

    Raises:
        OSError, sqlite3.Error: the disk is full or failing; ``target`` is as it was.
    """
    draft = f"{target}.draft"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    try:
        database.execute("VACUUM INTO ?", (draft,))
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, target)
    except (OSError, sqlite3.Error):
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    sync_directory(os.path.dirname(target))
