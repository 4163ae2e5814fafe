"""The inbox: whatever lies there, and whatever it does to its parser, the agent goes on."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_fleet import Device, Files, launch_here

from edge_agent import intake
from edge_agent.children import Child
from models.transport.memory import MemoryBroker
from models.transport.topics import Topics


@pytest.fixture
def ready(device: Device, broker: MemoryBroker, topics: Topics) -> Device:
    Files(1, is_open=False).publish(broker, topics)
    device.run(10)
    return device


class _Ended:
    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def kill(self) -> None:
        return


def test_files_wait_until_a_release_says_what_a_sample_is(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    device.add_samples(50)
    device.run(10)
    assert len(list(device.config.inbox.iterdir())) == 1
    Files(1).publish(broker, topics)
    assert device.run(20, until=lambda: device.status.samples > 30)
    assert list(device.config.inbox.iterdir()) == []


def test_files_that_are_being_written_are_left_alone(ready: Device) -> None:
    for name in (".hidden.npz", "a.npz.part", "b.tmp", "c.draft"):
        (ready.config.inbox / name).write_bytes(b"?")
    ready.run(10)
    assert len(list(ready.config.inbox.iterdir())) == 4


def test_a_bad_file_is_counted_and_said_and_the_next_good_one_clears_it(ready: Device) -> None:
    (ready.config.inbox / "bad.npz").write_bytes(b"?")
    ready.run(10)
    assert "bad.npz" in ready.status.problem
    assert ready.agent._parts.inbox.rejected == 1
    ready.add_samples(20)
    ready.run(10)
    assert ready.status.problem == ""


def test_the_file_that_kills_its_parser_is_found_and_rejected(ready: Device) -> None:
    def launch(module: str, arguments: Sequence[str], *, log: Path | None) -> Child:
        if module == "edge_agent.intake" and b"evil.npz" in Path(arguments[0]).read_bytes():
            return _Ended(-9)
        return launch_here(module, arguments, log=log)

    ready.launch = launch
    (ready.config.inbox / "evil.npz").write_bytes(b"?")
    for seed in (1, 2, 3):
        ready.add_samples(20, seed)
    ready.run(60)
    reason = ready.config.inbox / "rejected" / "evil.npz.reason.txt"
    assert "memory or time" in reason.read_text()
    assert ready.status.samples > 40


def test_an_inbox_that_is_gone_is_a_problem_until_it_is_back(ready: Device) -> None:
    ready.config.inbox.rmdir()
    ready.run(10)
    assert "No such file" in ready.status.problem
    ready.config.inbox.mkdir()
    ready.run(10)
    assert ready.status.problem == ""


def test_what_cannot_be_moved_is_said_left_alone_and_tried_again_hourly(
    ready: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def remove(path: Path) -> None:
        if path.name == "samples-1.npz":
            tries.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        path.unlink()

    monkeypatch.setattr(intake, "remove", remove)
    ready.add_samples(20, seed=1)
    ready.run(10)
    assert "samples-1.npz: Permission denied" in ready.status.problem
    for seed in (2, 3):
        ready.add_samples(20, seed)
    ready.run(6 * 3600)
    assert [path.name for path in ready.config.inbox.iterdir()] == ["samples-1.npz"]
    assert 5 <= len(tries) <= 8


def test_a_folder_that_nobody_may_look_into_is_no_sample(
    ready: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inbox that is the root of a partition has a lost+found."""
    lost = ready.config.inbox / "lost+found"
    lost.mkdir()
    real = os.scandir

    def scandir(path: str | int) -> object:
        if path == str(lost):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ready.add_samples(20)
    ready.run(30)
    assert ready.status.samples > 10
    assert ready.status.problem == ""
    assert list(ready.config.inbox.iterdir()) == [lost]
