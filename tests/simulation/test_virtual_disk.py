"""The simulated disk keeps what was synced, and takes everything else back sooner or later."""

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.host.durable import atomic_write, open_database
from tools.simulation.machines.disk_watch import mounted
from tools.simulation.machines.virtual_disk import Crash, VirtualDisk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VirtualDisk]:
    with mounted(tmp_path):
        yield VirtualDisk(tmp_path / "disk")


def cut(disk: VirtualDisk, seed: int) -> None:
    disk.dead = True
    disk.reboot(random.Random(seed), power_cut=True)


@pytest.mark.parametrize("seed", range(20))
def test_an_atomic_write_survives_a_power_cut(disk: VirtualDisk, seed: int) -> None:
    for content in (b"old" * 100, b"new" * 100):
        atomic_write(disk.at / "value", content)
        cut(disk, seed)
        assert (disk.at / "value").read_bytes() == content


def test_a_power_cut_at_every_step_of_an_atomic_write_leaves_old_or_new(tmp_path: Path) -> None:
    found = set()
    with mounted(tmp_path):
        for step in range(12):
            for seed in range(10):
                disk = VirtualDisk(tmp_path / f"{step}-{seed}")
                atomic_write(disk.at / "value", b"old" * 100)
                left = [step]

                def before_io(what: str, disk: VirtualDisk = disk, left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] < 0:
                        disk.dead = True
                        raise Crash

                disk.before_io = before_io
                with contextlib.suppress(Crash):
                    atomic_write(disk.at / "value", b"new" * 100)
                disk.before_io = lambda what: None
                cut(disk, seed)
                found.add((disk.at / "value").read_bytes())
    assert found == {b"old" * 100, b"new" * 100}


def test_a_rename_without_fsync_is_found(tmp_path: Path) -> None:
    found = set()
    with mounted(tmp_path):
        for seed in range(40):
            disk = VirtualDisk(tmp_path / f"{seed}")
            atomic_write(disk.at / "value", b"old" * 100)
            (disk.at / "draft").write_bytes(b"new" * 100)
            (disk.at / "draft").replace(disk.at / "value")
            cut(disk, seed)
            found.add((disk.at / "value").read_bytes())
    assert b"old" * 100 in found  # the rename was lost
    assert found - {b"old" * 100, b"new" * 100}  # it was there before its bytes


def test_a_deleted_file_may_come_back_until_its_directory_is_synced(tmp_path: Path) -> None:
    found = set()
    with mounted(tmp_path):
        for seed in range(20):
            disk = VirtualDisk(tmp_path / f"{seed}")
            atomic_write(disk.at / "value", b"old")
            (disk.at / "value").unlink()
            cut(disk, seed)
            found.add((disk.at / "value").exists())
    assert found == {True, False}


def test_a_killed_process_loses_nothing_that_it_wrote(disk: VirtualDisk) -> None:
    (disk.at / "value").write_bytes(b"unsynced")
    disk.dead = True
    disk.reboot(random.Random(1), power_cut=False)
    assert (disk.at / "value").read_bytes() == b"unsynced"


def test_a_database_keeps_what_was_committed_and_no_more(disk: VirtualDisk) -> None:
    database = open_database(disk.at / "some.db")
    database.execute("CREATE TABLE v (n INTEGER)")
    database.execute("INSERT INTO v VALUES (1)")
    database.execute("BEGIN")
    database.execute("INSERT INTO v VALUES (2)")
    disk.dead = True
    with pytest.raises(Crash):
        database.execute("COMMIT")
    cut(disk, 1)
    again = open_database(disk.at / "some.db")
    assert again.execute("SELECT n FROM v").fetchall() == [(1,)]


def test_a_full_disk_refuses_writes_and_commits_but_allows_deletions(disk: VirtualDisk) -> None:
    database = open_database(disk.at / "some.db")
    database.execute("CREATE TABLE v (n INTEGER)")
    atomic_write(disk.at / "value", b"old")
    disk.faults.full = True
    with pytest.raises(OSError, match="No space left"):
        atomic_write(disk.at / "value", b"new")
    assert (disk.at / "value").read_bytes() == b"old"
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.execute("INSERT INTO v VALUES (1)")
    (disk.at / "value").unlink()
    disk.faults.full = False
    atomic_write(disk.at / "value", b"new")


def test_a_read_only_disk_can_be_read(disk: VirtualDisk) -> None:
    atomic_write(disk.at / "value", b"old")
    disk.faults.read_only = True
    with pytest.raises(OSError, match="Read-only"):
        atomic_write(disk.at / "value", b"new")
    assert (disk.at / "value").read_bytes() == b"old"


def test_other_disks_are_left_alone(disk: VirtualDisk, tmp_path: Path) -> None:
    disk.dead = True
    (tmp_path / "elsewhere").write_bytes(b"fine")
    (tmp_path / "elsewhere").replace(tmp_path / "moved")
    assert (tmp_path / "moved").read_bytes() == b"fine"


def test_a_failing_disk_fails_reads_only_where_it_is_told_to(disk: VirtualDisk) -> None:
    path = disk.at / "file"
    path.write_bytes(b"old")
    disk.faults.failing = 0.5
    assert {path.read_bytes() for _ in range(50)} == {b"old"}
    disk.faults.failing_reads = 1.0
    with pytest.raises(OSError, match="Input/output"):
        path.read_bytes()
    disk.faults.failing = 0.0
    assert path.read_bytes() == b"old"


def test_a_tight_disk_takes_what_is_short(disk: VirtualDisk) -> None:
    disk.faults.tight = 100
    (disk.at / "short").write_bytes(bytes(100))
    with pytest.raises(OSError, match="No space"):
        (disk.at / "long").write_bytes(bytes(101))
