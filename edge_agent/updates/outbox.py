"""What this device has learned and the server has not yet answered for: durable, in SQLite.

A training result enters in one transaction with the codec's state (residual, personal values), so
a crash neither loses nor doubles what was left out of a payload. An update leaves only by the
server's final receipt. Large vectors lie in files that are complete and durable before the
transaction that names them; files that no transaction names are garbage.
"""

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from edge_agent.updates.outbox_schema import FOLDS, OWNER, SCHEMA
from models.errors import TransientError
from models.host.durable import open_database
from models.protocol.messages import Receipt
from models.protocol.update import context_in

__all__ = [
    "Codec",
    "DamagedError",
    "Entry",
    "Outbox",
    "Settled",
    "Trained",
    "put_aside",
    "read_only",
]

Answer = TypeVar("Answer")
Rows = list[tuple[Any, ...]]
Table = Literal["updates", "refunds", "codec", "facts", "folds"]
State = Literal["queued", "sending", "sent", "stored"]
Settled = Literal["", "stored", "folded", "refused", "resend", "partial"]

_TABLES = "SELECT name FROM sqlite_schema WHERE type = 'table'"
_ENTRIES = "SELECT seq, state, base, chunk_size, length(data) FROM updates ORDER BY seq"
_CODEC = "SELECT job, residual, personal FROM codec"
_FACTS = "SELECT name, value FROM facts"
_PUT = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = "
_SET = f"{_PUT} excluded.value"
_FOLDED = "INSERT INTO folds VALUES (?, 1) ON CONFLICT (release) DO UPDATE SET count = count + 1"
_ADD = f"{_PUT} value + excluded.value"


class Entry(NamedTuple):
    """An update that waits for its final receipt."""

    seq: int
    state: State
    base: int  # the release that it was trained on
    chunk_size: int
    size: int  # bytes, header included


class Codec(NamedTuple):
    """What the codec carries from one training to the next: names of files in ``codec/``."""

    job: int  # the last training that was committed
    residual: str | None
    personal: str | None


class Trained(NamedTuple):
    """The result of one training, ready to be committed."""

    job: int
    base: int
    header: bytes  # `models.protocol.update`, without the payload
    payload: bytes
    residual: str | None
    personal: str | None
    merged: tuple[int, ...]  # the refunds that are part of the new residual
    lost: int  # refunds that could not be read


class Outbox:
    """The updates, refunds, codec state and counters of one installation.

    A new file belongs to ``installation`` (8 hex digits) for ever: the numbers of its updates are
    unique together with these digits only, so one is never there without the other.

    Every method either does all it says, durably, or raises `TransientError` and does nothing.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        max_bytes: int,
        max_waiting: int,
        installation: str,
        earlier: str = "",
    ) -> None:
        """Open or make the file at ``path``.

        ``earlier``: the digits of a file that does not tell its own, as the first ones did not.

        Raises:
            DamagedError: it is damaged.
            TransientError: it cannot be opened now.
        """
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._found: dict[Table, Any] = {}  # what was read of a table since it was written
        self._saw_damage = False
        with self._told():
            self._database = open_database(path)
            self._check()
            tables = {name for (name,) in self._database.execute(_TABLES).fetchall()}
            if "updates" not in tables:
                self._database.executescript(SCHEMA + OWNER % installation)
            elif "owner" not in tables:
                self._database.executescript("BEGIN IMMEDIATE;" + OWNER % (earlier or installation))
            if "folds" not in tables:
                self._database.executescript(FOLDS)
            row = self._database.execute("SELECT installation FROM owner").fetchone()
        self.installation: Final = str(row[0])

    def close(self) -> None:
        self._database.close()

    def _check(self) -> None:
        found = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise DamagedError(f"outbox.db: {found.splitlines()[-1]}")

    def check(self) -> None:
        """After an answer that said so, look whether the file is damaged.

        Raises:
            DamagedError: it is: only a new start helps, which puts it aside.
            TransientError: it cannot be read now.
        """
        if self._saw_damage:
            with self._told():
                self._check()
            self._saw_damage = False

    def _told(self) -> "_told":
        return _told(self)

    @property
    def changes(self) -> int:
        """A number that grows with every write: as long as it stays, so do all answers."""
        return self._database.total_changes

    # -- what is learned comes in

    def commit(
        self, trained: Trained, *, chunk_size: int, facts: Mapping[str, float]
    ) -> tuple[int, int]:
        """Queue the update of ``trained`` with the codec state that it leaves.

        Where the bounds are exceeded, the oldest updates that never left this device become
        refunds. A job that was committed before changes nothing.

        Returns:
            The number of the update, 0 for a job committed before; how many became refunds.
        """
        with self._transaction("updates", "refunds", "codec", "facts", "folds") as database:
            if trained.job <= self._one("SELECT job FROM codec"):
                return 0, 0
            for seq in trained.merged:
                database.execute("DELETE FROM refunds WHERE seq = ?", (seq,))
            database.execute(
                "UPDATE codec SET job = ?, residual = ?, personal = ?",
                (trained.job, trained.residual, trained.personal),
            )
            new = database.execute(
                "INSERT INTO updates (state, base, chunk_size, header_size, data) "
                "VALUES ('queued', ?, ?, ?, ?)",
                (
                    trained.base,
                    chunk_size,
                    len(trained.header),
                    trained.header + trained.payload,
                ),
            ).lastrowid
            assert new is not None  # SQLite gives every inserted row a number
            database.execute("DELETE FROM folds WHERE release <= ?", (trained.base,))
            self._set({"owed": 0, **facts})
            self._add(made=1, refunds_lost=trained.lost)
            return new, self._merge_back(keep=new)

    def _merge_back(self, keep: int) -> int:
        count = 0
        while not self._within_bounds():
            oldest = self._database.execute(
                "SELECT min(seq) FROM updates WHERE state = 'queued' AND seq < ?", (keep,)
            ).fetchone()[0]
            if oldest is None:
                break
            self._refund(oldest)
            count += 1
        self._add(merged_back=count)
        return count

    def _within_bounds(self) -> bool:
        count, size = self._database.execute(
            "SELECT count(*), coalesce(sum(length(data)), 0) FROM updates"
        ).fetchone()
        return bool(count <= self._max_waiting and size <= self._max_bytes)

    def has_room(self) -> bool:
        """Whether one more update fits, at the price of some that never left this device."""
        count, size = self._left()
        return count < self._max_waiting and size < self._max_bytes

    def may_leave(self) -> bool:
        """Whether a queued update may leave this device now.

        What has left cannot be merged back, only answered. So one place stays free of it for what
        is learned while the server is silent: each new update takes the one before into itself,
        and learning never has to wait.
        """
        count, size = self._left()
        return count < max(1, self._max_waiting - 1) and size < max(1, self._max_bytes // 2)

    def _left(self) -> tuple[int, int]:
        """Return count and bytes of the updates that the server may hold."""
        sizes = [entry.size for entry in self.waiting() if entry.state != "queued"]
        return len(sizes), sum(sizes)

    def begin_anew(self, installation: str, *, keeps_learned: bool) -> tuple[int, int]:
        """Give this file to a device of another name or task, with digits of its own.

        What never left this device becomes a refund. What has left is dropped: the server may fold
        it yet, under the old name, and nothing is counted twice. Unless ``keeps_learned``, nothing
        stays but the numbers, which go on.

        Returns:
            How many updates were kept as refunds, and how many are dropped.
        """
        with self._transaction("updates", "refunds", "codec", "facts", "folds") as database:
            queued = [entry.seq for entry in self.waiting() if entry.state == "queued"]
            for seq in queued:
                self._refund(seq)
            left = database.execute("DELETE FROM updates").rowcount
            if keeps_learned:
                counters = ("made", "folded", "refused", "merged_back", "refunds_lost")
                marks = ", ".join("?" * len(counters))
                database.execute(f"DELETE FROM facts WHERE name IN ({marks})", counters)
            else:
                job = self._one(f"{_ADD} RETURNING value", "job", 1)
                database.execute("DELETE FROM refunds")
                database.execute("DELETE FROM folds")
                database.execute("DELETE FROM facts WHERE name != 'job'")
                # A result that lies about was made from what is no longer so.
                database.execute(
                    "UPDATE codec SET job = ?, residual = NULL, personal = NULL", (job,)
                )
            database.execute("UPDATE owner SET installation = ?", (installation,))
        return (len(queued), left) if keeps_learned else (0, len(queued) + left)

    # -- what is sent

    def waiting(self) -> Sequence[Entry]:
        """Return all updates without a final receipt, oldest first."""
        return self._answer("updates", _ENTRIES, _entries)

    def read(self, seq: int, start: int, length: int) -> bytes:
        """Return a piece of an update.

        Not by an incremental blob: CPython's connection keeps 90 bytes for each one ever opened,
        and an agent runs for years. For this moment all of the update is in memory, as it was
        when it was committed.
        """
        with self._told():
            row = self._database.execute(
                "SELECT substr(data, ?, ?) FROM updates WHERE seq = ?", (start + 1, length, seq)
            ).fetchone()
        if row is None:
            raise TransientError(f"outbox.db: update {seq} is gone")
        return bytes(row[0])

    def mark(self, seq: int, state: State) -> None:
        """Note how far an update has come; one that is gone stays gone."""
        with self._transaction("updates") as database:
            database.execute("UPDATE updates SET state = ? WHERE seq = ?", (state, seq))

    def begin(self, seq: int, chunk_size: int) -> None:
        """Note that an update may leave from now on, and how it is cut."""
        with self._transaction("updates") as database:
            database.execute(
                "UPDATE updates SET state = 'sending', chunk_size = ? WHERE seq = ?",
                (chunk_size, seq),
            )

    def settle(self, seq: int, receipt: Receipt) -> Settled:
        """Carry out a receipt and return what it was; repeated and late ones change nothing."""
        before = next((entry.state for entry in self.waiting() if entry.seq == seq), None)
        if before is None:
            return ""
        if receipt.state == before == "stored":  # the answer to a question: no write to the card
            return "stored"
        with self._transaction("updates", "refunds", "facts", "folds") as database:
            match receipt.state:
                case "folded":
                    database.execute("DELETE FROM updates WHERE seq = ?", (seq,))
                    database.execute(_FOLDED, (receipt.release,))
                    self._add(folded=1)
                    self._set({"refused_running": 0})
                    return "folded"
                case "refused":
                    self._refund(seq)
                    self._add(refused=1, refused_running=1)
                    self._set({"owed": 1})
                    return "refused"
                case "stored":
                    database.execute("UPDATE updates SET state = 'stored' WHERE seq = ?", (seq,))
                    return "stored"
                case "partial":
                    return "partial"
            return "resend"

    def _refund(self, seq: int) -> None:
        self._database.execute(
            "INSERT INTO refunds SELECT seq, substr(data, header_size + 1) FROM updates "
            "WHERE seq = ?",
            (seq,),
        )
        self._database.execute("DELETE FROM updates WHERE seq = ?", (seq,))

    # -- what the next training starts from

    def codec(self) -> Codec:
        return self._answer("codec", _CODEC, _codec)

    def refunds(self) -> Sequence[int]:
        """Return the numbers of the payloads that wait to be added to the residual."""
        return self._answer("refunds", "SELECT seq FROM refunds ORDER BY seq", _numbers)

    def refund(self, seq: int) -> bytes:
        with self._told():
            row = self._database.execute(
                "SELECT payload FROM refunds WHERE seq = ?", (seq,)
            ).fetchone()
        return bytes(row[0])

    def contexts(self) -> set[int]:
        """Return the digests of the contexts without which payloads in here cannot be decoded."""
        with self._told():
            rows = self._database.execute(
                "SELECT substr(data, header_size + 1, 5) FROM updates "
                "UNION SELECT substr(payload, 1, 5) FROM refunds"
            ).fetchall()
        found = {context_in(bytes(head)) for (head,) in rows}
        return {digest for digest in found if digest is not None}

    def next_job(self) -> int:
        """Return a job number that was never returned before, by this or an earlier process."""
        with self._transaction("facts"):
            return self._one(f"{_ADD} RETURNING value", "job", 1)

    def own_folds(self, *, after: int, until: int) -> int:
        """Return how many own updates are in the releases above ``after`` and up to ``until``.

        ``after`` is not below the release that was trained on last: older ones are forgotten.
        """
        folds = self._answer("folds", "SELECT release, count FROM folds", _pairs)
        return sum(count for release, count in folds if after < release <= until)

    # -- facts: counters and the last measurements, by name

    def facts(self) -> Mapping[str, float]:
        return self._answer("facts", _FACTS, _facts)

    def note(self, **facts: float) -> None:
        """Store measurements."""
        with self._transaction("facts"):
            self._set(facts)

    def _set(self, facts: Mapping[str, float]) -> None:
        self._database.executemany(_SET, facts.items())

    def _add(self, **counts: int) -> None:
        self._database.executemany(_ADD, counts.items())

    def _answer(self, table: Table, query: str, read: Callable[[Rows], Answer]) -> Answer:
        """Return what ``read`` makes of the rows of ``table``; asked again only after a write.

        Each tick of the agent asks the same few questions, and nobody else writes here. Whoever
        gets an answer must not change it.
        """
        if table not in self._found:
            with self._told():
                rows = self._database.execute(query).fetchall()
            if self._database.in_transaction:  # this may yet be rolled back
                return read(rows)
            self._found[table] = read(rows)
        answer: Answer = self._found[table]
        return answer

    def _one(self, query: str, *values: object) -> int:
        ((value,),) = self._database.execute(query, values).fetchall()  # to its end: then COMMIT
        return int(value)

    @contextmanager
    def _transaction(self, *tables: Table) -> Iterator[sqlite3.Connection]:
        """Make changes of ``tables`` durable together, or none of them."""
        with self._told():
            for table in tables:
                self._found.pop(table, None)
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def _entries(rows: Rows) -> list[Entry]:
    return [Entry(*row) for row in rows]


def _codec(rows: Rows) -> Codec:
    return Codec(*rows[0])


def _facts(rows: Rows) -> dict[str, float]:
    return dict(rows)


def _pairs(rows: Rows) -> list[tuple[int, int]]:
    return [(release, count) for release, count in rows]


def _numbers(rows: Rows) -> list[int]:
    return [number for (number,) in rows]


@contextmanager
def read_only(path: Path) -> Iterator[tuple[list[Entry], dict[str, float], Codec]]:
    """Yield updates, facts and codec state of an outbox that another process may be using.

    Raises:
        TransientError: there is none, or it cannot be read now.
        PermissionError: we may not read it.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))  # SQLite does not tell why it cannot
    except FileNotFoundError:
        raise TransientError(f"{path}: there is none yet") from None
    with _told():
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            entries = _entries(database.execute(_ENTRIES).fetchall())
            facts = _facts(database.execute(_FACTS).fetchall())
            codec = database.execute(_CODEC).fetchall()
        except sqlite3.OperationalError:
            if not os.access(path.parent, os.W_OK):  # where nobody reads yet, readers write locks
                raise PermissionError(errno.EACCES, "Permission denied", str(path)) from None
            raise
        finally:
            database.close()
    if not codec:
        raise TransientError(f"{path}: it is being made now")
    yield entries, facts, _codec(codec)


def put_aside(path: Path) -> None:
    """Move a damaged outbox out of the way, with the digits whose numbers it had used."""
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(part.with_name(f"damaged-{part.name}"))


class DamagedError(TransientError):
    """The file is damaged; what can be done about it is done at the next start."""


class _told:  # noqa: N801 (it is used as a function; a class, since each tick enters many)
    """Turn SQLite's errors into ours: nothing was changed, the caller tries again later."""

    def __init__(self, outbox: Outbox | None = None) -> None:
        self._outbox = outbox

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        text = f"outbox.db: {error}"
        if "malformed" in text or "not a database" in text:
            if self._outbox is not None:
                self._outbox._saw_damage = True
            raise DamagedError(text) from error
        raise TransientError(text) from error
