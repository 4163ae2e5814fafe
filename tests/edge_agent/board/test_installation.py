"""Whose a state directory is: update numbers stay unique, and one agent at a time holds it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tiny_fleet import DEVICE, TASK, Clock, Device, Files, Server

from edge_agent.board.installation import hold, is_held, open_installation, read_installation
from models.errors import UsageError
from models.protocol.topics import Topics
from tools.simulation.machines.memory_broker import MemoryBroker


def test_the_identity_stays_and_starts_are_counted(tmp_path: Path) -> None:
    first = open_installation(tmp_path, device="a", task="t")
    second = open_installation(tmp_path, device="a", task="t")
    assert first.installation == second.installation
    assert (first.boot, second.boot) == (1, 2)


def test_another_device_or_task_needs_another_directory(tmp_path: Path) -> None:
    open_installation(tmp_path, device="a", task="t")
    with pytest.raises(UsageError, match="belongs to task t"):
        open_installation(tmp_path, device="a", task="u")


def test_a_damaged_identity_is_a_new_one(tmp_path: Path) -> None:
    """Not the old one with numbers that may have been used."""
    first = open_installation(tmp_path, device="a", task="t")
    (tmp_path / "installation.json").write_bytes(b"\0" * 50)
    assert read_installation(tmp_path) is None
    assert open_installation(tmp_path, device="a", task="t").installation != first.installation


def test_a_directory_is_held_by_one_and_free_after_its_end(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    descriptor = hold(tmp_path)
    assert is_held(tmp_path)
    with pytest.raises(UsageError, match="another agent"):
        hold(tmp_path)
    os.close(descriptor)
    assert not is_held(tmp_path)


def test_a_damaged_outbox_is_put_aside_and_numbers_are_not_used_again(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server)
    Files(1).publish(broker, topics)
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    before = device.status.installation
    state = device.config.storage.directory
    device.agent.parts.outbox.close()
    for path in state.glob("outbox.db*"):
        path.unlink()
    (state / "outbox.db").write_bytes(b"no database at all, " * 500)
    device.restart()
    assert "put aside" in device.status.problem
    assert device.status.installation != before
    assert (state / "damaged-outbox.db").exists()
    found = read_installation(state)
    assert found is not None
    assert (found.device, found.task) == (DEVICE, TASK)
    assert device.run(120, until=lambda: device.status.updates_folded == 1)


@pytest.fixture
def told(device: Device, server: Server) -> Device:
    """A device whose first update was folded."""
    server.publish(Files(1))
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    return device


def test_numbers_begin_anew_only_with_new_digits(told: Device, server: Server) -> None:
    """Else the server would call new work folded: it knows those numbers."""
    before = told.status.installation
    told.agent.parts.outbox.close()
    for path in told.config.storage.directory.glob("outbox.db*"):
        path.unlink()
    told.restart()
    assert told.status.installation != before
    assert told.run(120, until=lambda: told.status.updates_folded == 1)
    assert len(server.updates) == 2


def test_the_digits_stay_with_the_outbox_when_their_copy_is_damaged(
    device: Device, server: Server
) -> None:
    """Else what the server has would be sent again under another id, and folded twice."""
    server.verdict = "stored"
    server.publish(Files(1))
    device.add_samples(64)
    assert device.run(60, until=lambda: bool(server.updates))
    before = device.status.installation
    (device.config.storage.directory / "installation.json").write_bytes(b"\0" * 50)
    device.restart()
    assert device.status.installation == before
    found = read_installation(device.config.storage.directory)
    assert found is not None
    assert found.installation == before
    server.verdict = "folded"
    assert device.run(4000, until=lambda: device.status.updates_folded == 1)
    assert len(server.updates) == 1


def damage(device: Device, table: str) -> None:
    """Overwrite a page of the outbox, as a bad sector or a torn write does."""
    path = device.config.storage.directory / "outbox.db"
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        page = database.execute(query, (table,)).fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("table", ["updates", "refunds", "codec", "facts", "owner"])
def test_a_damaged_page_is_found_at_the_next_start(told: Device, table: str) -> None:
    before = told.status.installation
    told.agent.parts.outbox.close()
    damage(told, table)
    told.restart()
    assert "put aside" in told.status.problem
    assert told.status.installation != before
    assert told.run(120, until=lambda: told.status.updates_folded == 1)


def test_a_page_that_is_damaged_meanwhile_ends_the_process_once(told: Device) -> None:
    outbox = told.agent.parts.outbox
    outbox.file.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(told, "facts")
    outbox.file.rows("PRAGMA shrink_memory")
    with outbox.file.transaction("facts"):  # so that they are read again
        pass
    with pytest.raises(RuntimeError, match=r"outbox\.db"):
        told.run(60)
    told.restart()
    assert told.run(120, until=lambda: told.status.updates_folded == 1)


def test_an_outbox_of_the_first_kind_gets_the_digits_that_it_was_used_with(told: Device) -> None:
    before = told.status.installation
    told.agent.parts.outbox.file.rows("DROP TABLE owner")
    told.agent.parts.outbox.close()
    told.restart()
    assert told.status.installation == before
    assert told.agent.parts.outbox.installation == before
