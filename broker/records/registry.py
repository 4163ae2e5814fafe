"""The server's one database: connection, transactions, errors.

All that the server must not forget is in here, and every change is part of a transaction that
survives a power cut (`models.host.durable.open_database`). The tables stand in `schema.py`; what is
in them is read and written by a class for each kind of record, through this one connection.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker.records.schema import STEPS, TABLES
from models.errors import TransientError, UsageError
from models.host.durable import back_up_database, open_database
from models.host.sentences import unusable

__all__ = ["DATABASE", "Registry", "open_to_read"]

DATABASE = "registry.db"
VERSION = len(STEPS)  # of the tables


class Registry:
    """One connection to the registry of one fleet. Not for two threads."""

    def __init__(self, path: Path | str, fleet: str, *, read_only: bool = False) -> None:
        """Open the registry at ``path``; create it, or bring it up to date, unless ``read_only``.

        Raises:
            UsageError: it belongs to another fleet or a newer version, or is damaged.
            TransientError: the disk is full or failing.
        """
        self.path = path
        self.rollbacks = 0  # transactions of which nothing was kept
        try:
            if read_only:
                self._database = sqlite3.connect(
                    f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=30.0
                )
            else:
                self._database = open_database(path)
        except sqlite3.Error as error:
            raise self._readable(error) from error
        try:
            if read_only:
                self._check_version()
            elif (version := self._version()) != VERSION:
                if self._is_begun():
                    self._check_fleet(fleet)
                    self._back_up(version)
                with self.transaction():
                    self._bring_up_to_date(fleet)
            self.fleet = self._fleet()
            if not read_only:
                self._check_fleet(fleet)
        except BaseException:
            self.close()
            raise

    def _version(self) -> int:
        """Return the version of the tables; 0: there are none, or they were not counted yet.

        Raises:
            UsageError: it is newer than ours.
        """
        version = int(self.query("PRAGMA user_version")[0][0])
        if version > VERSION:
            raise UsageError(
                f"{self.path} has version {version}, this edgefold reads {VERSION}: "
                f"install the one that wrote it, or a newer one"
            )
        return version

    def _check_version(self) -> None:
        if self._version() == VERSION:
            return
        if not self._is_begun():
            raise TransientError(f"registry {self.path}: it is being made now")
        raise UsageError(
            f"{self.path} is of an older version, whose server has not been started since the "
            f"upgrade: restart it, then ask again"
        )

    def _bring_up_to_date(self, fleet: str) -> None:
        if not self._is_begun():
            for table in self._tables():  # made one by one, by a version that was killed meanwhile
                self.execute(f"DROP TABLE {table}")
            for statement in TABLES:
                self.execute(statement)
        else:
            for step in STEPS[self._version() :]:
                step(self.query)
        self.execute("INSERT OR IGNORE INTO meta VALUES ('fleet', ?)", fleet)
        self._check_fleet(fleet)
        self.execute(f"PRAGMA user_version = {VERSION}")

    def _back_up(self, version: int) -> None:
        """Keep a copy of what ``version`` wrote: it cannot read what this one makes of it."""
        target = f"{self.path}.version{version}"
        try:
            back_up_database(self._database, target)
        except OSError as error:
            raise TransientError(f"cannot keep a copy {target}: {error.strerror}") from error
        except sqlite3.Error as error:
            raise TransientError(f"cannot keep a copy {target}: {error}") from error

    def _fleet(self) -> str:
        return str(self.query("SELECT value FROM meta WHERE key = 'fleet'")[0][0])

    def _check_fleet(self, fleet: str) -> None:
        if (found := self._fleet()) != fleet:
            raise UsageError(
                f"{self.path} belongs to fleet {found}, not {fleet}: "
                f"give every fleet a [storage] directory of its own"
            )

    def _is_begun(self) -> bool:
        """Whether it says whose it is: before that nothing else is written."""
        tables = self._tables()
        if "meta" not in tables:
            return bool(tables)  # not one of ours: no version begins without it
        return bool(self.query("SELECT 1 FROM meta WHERE key = 'fleet'"))

    def _tables(self) -> list[str]:
        rows = self.query("SELECT name FROM sqlite_master WHERE type = 'table'")
        return [name for (name,) in rows]

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
            self.rollbacks += 1
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
            return ValueError(f"registry {self.path}: {error}")  # our own mistake
        return UsageError(
            f"registry {self.path} is damaged ({error}): restore a backup, or move it away to "
            f"begin anew from the bundles; devices send again what was not folded"
        )


def open_to_read(directory: Path) -> Registry:
    """Return the registry in ``directory`` for whoever only reads, beside a running server.

    Raises:
        UsageError: there is none, it is damaged or of an older version, or we may not look at it.
        TransientError: it cannot be read now.
    """
    path = directory / DATABASE
    try:
        with open(path, "rb"):
            pass
        try:
            return Registry(path, "", read_only=True)
        except TransientError:
            with open(path, "r+b"):  # SQLite may have to write in order to read
                raise
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"no {DATABASE} in {directory}: did the server ever start there?"
        ) from None
    except OSError as error:
        raise unusable(path, error) from None
