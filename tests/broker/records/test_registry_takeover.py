"""A registry that an older version made is taken over as it is."""

import re
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.records.device_records import DeviceRecords
from broker.records.registry import DATABASE, Registry, open_to_read
from broker.records.update_records import UpdateKey, UpdateRecords
from models.errors import TransientError, UsageError
from models.protocol.messages import Status

OLD = Path(__file__).parents[2] / "vectors" / "registry_0_1.sql"  # dumped from a small fleet's
INSTALLATION = 0xA0A0A0A0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    database = sqlite3.connect(tmp_path / DATABASE)
    database.executescript(OLD.read_text())
    database.execute("PRAGMA journal_mode=WAL")
    database.close()
    return tmp_path


def test_nothing_is_lost_when_an_older_registry_is_taken_over(directory: Path) -> None:
    for _ in range(2):  # and again, as it is taken over already
        registry = Registry(directory / DATABASE, "test")
        known = DeviceRecords(registry)
        first, second = known.rows()
        assert (first.device, first.heard, first.online) == ("dev-1", 0.0, True)
        assert isinstance(first.status, Status)
        assert (second.online, second.seen) == (False, 1_700_000_000.0)
        updates = UpdateRecords(registry, is_owner=True)
        states = [
            updates.receipt(UpdateKey(device, INSTALLATION, number)).state
            for device, number in (("dev-1", 1), ("dev-2", 1), ("dev-2", 2), ("dev-2", 3))
        ]
        assert states == ["folded", "folded", "stored", "unknown"]
        assert known.note_heard("dev-1", 5.0, is_here=True)
        known.note_heard("dev-1", 0.0, is_here=True)
        registry.close()


def test_whoever_only_reads_it_is_told_to_start_the_server(directory: Path) -> None:
    with pytest.raises(UsageError, match="restart it"):
        open_to_read(directory)
    Registry(directory / DATABASE, "test").close()
    open_to_read(directory).close()


def test_a_registry_that_was_taken_over_is_as_a_new_one(directory: Path) -> None:
    Registry(directory / DATABASE, "test").close()
    Registry(directory / "new.db", "test").close()
    assert columns(directory / DATABASE) == columns(directory / "new.db")


@pytest.mark.parametrize("name", [DATABASE, "new.db"], ids=["older", "new"])
def test_a_takeover_that_is_interrupted_changed_nothing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The files are copied before each statement, as a process that is killed there leaves them."""
    copies: list[Path] = []

    class Watched(sqlite3.Connection):
        def execute(self, *statement: Any) -> sqlite3.Cursor:
            copies.append(tmp_path / str(len(copies)))
            copies[-1].mkdir()
            for file in directory.glob(f"{name}*"):
                shutil.copy(file, copies[-1])
            return super().execute(*statement)

    before = content(directory / name)
    with monkeypatch.context() as here:
        here.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
        Registry(directory / name, "test").close()
    after = content(directory / name)
    assert len(copies) > 12
    found = [content(copy / name) for copy in copies]
    first = found.index(after)
    assert found == [before] * first + [after] * (len(copies) - first)
    for copy in copies:
        Registry(copy / name, "test").close()
        assert content(copy / name) == after


@pytest.mark.parametrize("made", range(1, 10))
def test_what_an_older_version_did_not_finish_making_is_made_anew(
    tmp_path: Path, made: int
) -> None:
    """It made one table after the other, and wrote only then whose they are."""
    tables = re.findall(r"^CREATE TABLE .*?;\n", OLD.read_text(), re.DOTALL | re.MULTILINE)
    tables.sort(key=lambda table: "TABLE meta" not in table)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.executescript("".join(tables[:made]))
    with pytest.raises(TransientError, match="being made now"):
        open_to_read(tmp_path)
    Registry(tmp_path / DATABASE, "test").close()
    Registry(tmp_path / "new.db", "test").close()
    assert content(tmp_path / DATABASE) == content(tmp_path / "new.db")


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("CREATE TABLE songs (title TEXT)")
    before = content(tmp_path / DATABASE)
    with pytest.raises(TransientError):
        Registry(tmp_path / DATABASE, "test")
    assert content(tmp_path / DATABASE) == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_registry_of_a_newer_version_is_left_alone(directory: Path, read_only: bool) -> None:
    Registry(directory / DATABASE, "test").close()
    with closing(sqlite3.connect(directory / DATABASE)) as database:
        database.execute("PRAGMA user_version = 7")
    before = content(directory / DATABASE)
    with pytest.raises(UsageError, match=r"version 7, .*: install the one that wrote it"):
        Registry(directory / DATABASE, "test", read_only=read_only)
    assert content(directory / DATABASE) == before


def test_a_version_that_did_not_count_refuses_what_it_cannot_read(directory: Path) -> None:
    Registry(directory / DATABASE, "test").close()
    with closing(sqlite3.connect(directory / DATABASE)) as database:
        found = database.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
    assert found not in ([], [("1",)]), "release 0.1 reads this one only, and names the remedy"


def test_what_belongs_to_another_fleet_is_not_taken_over(directory: Path) -> None:
    before = content(directory / DATABASE)
    with pytest.raises(UsageError, match="belongs to fleet test"):
        Registry(directory / DATABASE, "orchard")
    assert content(directory / DATABASE) == before


def content(path: Path) -> list[str]:
    """All that is in a database."""
    with closing(sqlite3.connect(path)) as database:
        return [*database.iterdump(), *map(str, database.execute("PRAGMA user_version"))]


def columns(path: Path) -> dict[str, object]:
    """Tables with their columns, in whatever order they were added, and indices."""
    with closing(sqlite3.connect(path)) as database:
        return {
            name: {row[1:] for row in database.execute(f"PRAGMA table_info({name})")}
            if kind == "table"
            else " ".join((sql or "").split())
            for name, sql, kind in database.execute("SELECT name, sql, type FROM sqlite_master")
        }
