"""After a power cut it is all old or all new, and what was promised is there."""

import sqlite3
from pathlib import Path

import pytest
from power_cut import disks_after_power_cuts

from models.host import durable
from models.host.durable import atomic_write, open_database, remove

PATH = Path("/state/active.json")


def test_atomic_write_leaves_old_or_new_after_a_power_cut_at_every_step() -> None:
    disks = list(
        disks_after_power_cuts(
            durable, lambda: atomic_write(PATH, b"new content"), {str(PATH): b"old content"}
        )
    )
    found = {(finished, disk[str(PATH)]) for finished, disk in disks}
    assert found == {(False, b"old content"), (False, b"new content"), (True, b"new content")}
    assert len(disks) > 15  # every step, and what each leaves open


def test_the_first_write_of_a_file_leaves_nothing_or_all_of_it() -> None:
    found = {
        (finished, disk.get(str(PATH)))
        for finished, disk in disks_after_power_cuts(
            durable, lambda: atomic_write(PATH, b"content"), {}
        )
    }
    assert found == {(False, None), (False, b"content"), (True, b"content")}


@pytest.mark.parametrize("left_out", ["fsync of the file", "sync of the directory"])
def test_the_recorder_sees_what_a_missing_sync_costs(
    left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_out == "sync of the directory":
        monkeypatch.setattr(durable, "sync_directory", lambda path: None)
        write = atomic_write
    else:

        def write(path: Path, data: bytes) -> None:
            draft = path.with_name("draft")
            with durable.open(draft, "wb") as file:  # type: ignore[attr-defined]
                file.write(data)
            durable.os.replace(draft, path)
            durable.sync_directory(path.parent)

    promised = {
        disk[str(PATH)]
        for finished, disk in disks_after_power_cuts(
            durable, lambda: write(PATH, b"new"), {str(PATH): b"old"}
        )
        if finished
    }
    assert promised > {b"new"}


def test_a_removed_file_stays_removed() -> None:
    found = {
        (finished, str(PATH) in disk)
        for finished, disk in disks_after_power_cuts(
            durable, lambda: remove(PATH), {str(PATH): b"x"}
        )
    }
    assert found == {(False, True), (False, False), (True, False)}


def test_a_write_that_fails_changes_nothing_and_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()  # a directory cannot be replaced by a file
    with pytest.raises(OSError, match="model"):
        atomic_write(tmp_path / "model", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_written_file_reads_back_and_removing_it_twice_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    remove(path)
    remove(path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_commits_for_good_and_checks_references(tmp_path: Path) -> None:
    database = open_database(tmp_path / "queue.db")
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert database.execute("PRAGMA foreign_keys").fetchone() == (1,)
    database.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    database.execute("CREATE TABLE child (parent INTEGER REFERENCES parent(id))")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("INSERT INTO child VALUES (1)")
    database.close()


def test_transactions_are_the_callers_own(tmp_path: Path) -> None:
    database = open_database(tmp_path / "queue.db")
    other = open_database(tmp_path / "queue.db")
    database.execute("CREATE TABLE numbers (number INTEGER)")
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO numbers VALUES (1)")
    assert other.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
    database.execute("COMMIT")
    assert other.execute("SELECT count(*) FROM numbers").fetchone() == (1,)
    database.close()
    other.close()
