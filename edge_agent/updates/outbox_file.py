"""The file outbox.db: its transactions, answers remembered between them, and errors of ours."""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from edge_agent.updates.outbox_schema import FOLDS, OWNER, SCHEMA, STEPS, VERSION
from models.errors import TransientError
from models.host.durable import open_database

__all__ = ["DamagedError", "OutboxFile", "Question", "Rows", "ask_beside", "put_aside"]

Answer = TypeVar("Answer")
Rows = list[tuple[Any, ...]]
Table = Literal["updates", "refunds", "codec", "facts", "folds"]

_TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table'"


class DamagedError(TransientError):
    """The file is damaged; what can be done about it is done at the next start."""


class Question(NamedTuple, Generic[Answer]):
    """What is asked of one table, and what is made of its rows."""

    table: Table
    query: str
    read: Callable[[Rows], Answer]
    at_first: str = ""  # the query for a file of version 0; "": the same


class OutboxFile:
    """One connection, the only one that writes.

    Every method either does all it says, durably, or raises `TransientError` and does nothing.
    """

    def __init__(self, path: Path | str, *, installation: str, earlier: str) -> None:
        """Open or make the file at ``path``; `edge_agent.updates.outbox.Outbox` says whose it is.

        Raises:
            DamagedError: it is damaged.
            TransientError: it cannot be opened now, or is of a later version.
        """
        self._found: dict[Table, Any] = {}  # what was read of a table since it was written
        self._errors = _Errors()
        with self._errors:
            self._database = open_database(path)
            try:
                self.installation: Final = self._made_ready(installation, earlier)
            except BaseException:
                self._database.close()  # an open transaction would lock out whoever tries again
                raise

    def _made_ready(self, installation: str, earlier: str) -> str:
        self._look_for_damage()
        tables = {name for (name,) in self._database.execute(_TABLES).fetchall()}
        if "updates" not in tables:
            self._database.executescript(SCHEMA + OWNER % installation)
        elif "owner" not in tables:
            self._database.executescript("BEGIN IMMEDIATE;" + OWNER % (earlier or installation))
        if "folds" not in tables:
            self._database.executescript(FOLDS)
        self._bring_up_to_date()
        return str(self._database.execute("SELECT installation FROM owner").fetchone()[0])

    def close(self) -> None:
        self._database.close()

    def _bring_up_to_date(self) -> None:
        while (version := _version_of(self._database)) != VERSION:
            if version > VERSION:
                raise TransientError(
                    f"outbox.db is of version {version}, this edgefold knows {VERSION}: install "
                    "the edgefold that wrote it, or a later one"
                )
            self._database.executescript(STEPS[version])

    def _look_for_damage(self) -> None:
        found = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise DamagedError(f"outbox.db: {found.splitlines()[-1]}")

    def check(self) -> None:
        """After an answer that said so, look whether the file is damaged.

        Raises:
            DamagedError: it is: only a new start helps, which puts it aside.
            TransientError: it cannot be read now.
        """
        if self._errors.said_damaged:
            with self._errors:
                self._look_for_damage()
            self._errors.said_damaged = False

    @property
    def changes(self) -> int:
        """A number that grows with every write: as long as it stays, so do all answers."""
        return self._database.total_changes

    @contextmanager
    def transaction(self, *tables: Table) -> Iterator[None]:
        """Make changes of ``tables`` durable together, or none of them."""
        with self._errors:
            for table in tables:
                self._found.pop(table, None)
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def answer(self, question: Question[Answer]) -> Answer:
        """Return the answer to ``question``; it is asked again only after a write to its table.

        Each tick of the agent asks the same few questions, and nobody else writes here. There is
        one question for each table. Whoever gets an answer must not change it.
        """
        if question.table not in self._found:
            answer = question.read(self.rows(question.query))
            if self._database.in_transaction:  # this may yet be rolled back
                return answer
            self._found[question.table] = answer
        found: Answer = self._found[question.table]
        return found

    def rows(self, statement: str, *values: object) -> Rows:
        """Run ``statement`` to its end and return what it answers."""
        with self._errors:
            return self._database.execute(statement, values).fetchall()

    def one(self, statement: str, *values: object) -> int:
        """Run ``statement``, which answers with one number."""
        ((value,),) = self.rows(statement, *values)
        return int(value)

    def repeat(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Run ``statement`` for each of ``rows``, within a transaction."""
        with self._errors:
            self._database.executemany(statement, rows)


def ask_beside(path: Path, questions: Sequence[Question[Any]]) -> list[Any]:
    """Return the answers to ``questions`` of a file that another process may be using.

    Raises:
        TransientError: there is none, or it cannot be read now.
        PermissionError: we may not read it.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))  # SQLite does not tell why it cannot
    except FileNotFoundError:
        raise TransientError(f"{path}: there is none yet") from None
    with _Errors():
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            is_first = _version_of(database) == 0
            queries = [one.at_first or one.query if is_first else one.query for one in questions]
            pairs = zip(questions, queries, strict=True)
            return [one.read(database.execute(query).fetchall()) for one, query in pairs]
        except sqlite3.OperationalError:
            if not os.access(path.parent, os.W_OK):  # where nobody reads yet, readers write locks
                raise PermissionError(errno.EACCES, "Permission denied", str(path)) from None
            raise
        finally:
            database.close()


def _version_of(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def put_aside(path: Path) -> None:
    """Move a damaged outbox out of the way, with the digits whose numbers it had used."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(part.with_name(f"damaged-{part.name}"))


class _Errors:
    """Turns SQLite's errors into ours: nothing was changed, the caller tries again later."""

    def __init__(self) -> None:
        self.said_damaged = False  # one of them

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        text = f"outbox.db: {error}"
        if "malformed" in text or "not a database" in text:
            self.said_damaged = True
            raise DamagedError(text) from error
        raise TransientError(text) from error
