"""What the registry finds in the statuses of devices without reading each of them in Python."""

from pathlib import Path

import pytest

from broker.records.device_records import DeviceRecords
from broker.records.registry import Registry
from models.protocol.messages import Status


@pytest.fixture
def known(tmp_path: Path) -> DeviceRecords:
    """Of two tasks, and a device that has sent none; the times are 1, 2, 3 …"""
    known = DeviceRecords(Registry(tmp_path / "registry.db", "fleet"))
    statuses = [("leaves", 7), ("leaves", 5), ("leaves", 0), ("apples", 2), ("apples", 0)]
    for number, (task, release) in enumerate(statuses, 1):
        known.introduce(f"dev-{number}")
        status = Status(online=True, task=task, release=release, problem="näh\x00\"'")
        known.note_status(f"dev-{number}", status, float(number))
    known.introduce("dev-9")
    known.note_status("dev-2", Status(online=False), 9.0)
    return known


def test_the_oldest_release_in_use_is_that_of_a_device_that_has_one(known: DeviceRecords) -> None:
    assert known.oldest_release_in_use("leaves") == 5
    assert known.oldest_release_in_use("apples") == 2
    assert known.oldest_release_in_use("pears") == 0


def test_another_device_counts_only_if_it_is_of_the_task_and_was_heard_of(
    known: DeviceRecords,
) -> None:
    assert known.was_another_heard("dev-1", "leaves", 8.0)
    assert not known.was_another_heard("dev-2", "leaves", 3.0)
    assert known.was_another_heard("dev-1", "apples", 4.0)
    assert not known.was_another_heard("dev-1", "pears", 0.0)
