"""Whose a state directory is: update numbers stay unique, and one agent at a time holds it."""

import os
from pathlib import Path

import pytest
from tiny_fleet import DEVICE, TASK, Clock, Device, Files, Server

from edge_agent.installation import hold, is_held, open_installation, read_installation
from models.errors import UsageError
from models.transport.memory import MemoryBroker
from models.transport.topics import Topics


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
    device.agent._parts.outbox.close()
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
