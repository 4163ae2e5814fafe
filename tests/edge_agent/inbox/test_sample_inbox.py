"""The inbox: whatever lies there, and whatever it does to its parser, the agent goes on.

And nothing is lost that is only not ready, or not understood here.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import COOL, Clock, Device, Files, Server, blobs, launch_here, tiny_spec

from edge_agent.board.children import Child
from edge_agent.inbox import examination, intake, sample_inbox
from edge_agent.inbox.inbox_folder import EMPTY_S
from edge_agent.inbox.intake_job import INTAKE, OPENED, IntakeJob
from edge_agent.samples import segment_writer
from edge_agent.samples.entry_fate import CUT_OFF_S
from edge_agent.samples.sample_store import segments
from models.protocol.messages import encode_message
from models.protocol.topics import Topics
from models.task.spec import ArraySpec
from tools.simulation.machines.memory_broker import MemoryBroker

WALL = 2e9  # by the device's clock


@pytest.fixture
def ready(device: Device, broker: MemoryBroker, topics: Topics) -> Device:
    Files(1, is_open=False).publish(broker, topics)
    device.run(10)
    return device


@pytest.fixture
def patient(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server, topics: Topics
) -> Device:
    """As `ready`, for many days: it looks once a minute whether to train, not every 2 s."""
    device = Device(tmp_path, broker, clock, server=server, training__check_seconds=60)
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


def test_names_that_say_unfinished_for_a_day_are_said(
    ready: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.npz.part", "b.tmp"):
        (ready.config.inbox / name).write_bytes(b"?")
        os.utime(ready.config.inbox / name, (WALL - 3600, WALL - 3600))
    ready.run(10)
    assert ready.status.problem == ""
    for name in ("a.npz.part", "b.tmp"):
        os.utime(ready.config.inbox / name, (WALL - 90_000, WALL - 90_000))
    ready.run(10)
    assert ready.status.problem.startswith("2 wait in the inbox: a.npz.part and 1 more: a name")


def test_a_bad_file_is_said_soon_and_put_aside_when_nothing_more_comes_for_minutes(
    ready: Device,
) -> None:
    bad = ready.config.inbox / "bad.npz"
    bad.write_bytes(b"PK\3\4?")
    ready.run(20)
    assert "bad.npz: npz: empty, or cut off" in ready.status.problem
    assert bad.exists()
    ready.run(CUT_OFF_S)
    assert ready.status.problem == "rejected: bad.npz: npz: empty, or cut off"
    assert ready.agent.parts.inbox.rejected == 1
    assert (ready.config.inbox / "rejected" / "bad.npz").exists()
    ready.add_samples(20)
    ready.run(10)
    assert ready.status.problem == ""


class Launches:
    """Counts the children of the inbox; the board is too hot to train."""

    def __init__(self, device: Device) -> None:
        self.count = 0
        device.launch = self
        device.vitals = COOL._replace(celsius=99.0)

    def __call__(self, module: str, arguments: Sequence[str], *, log: Path | None) -> Child:
        self.count += module == INTAKE
        return launch_here(module, arguments, log=log)


@pytest.mark.parametrize("pauses", [(6,), (30, 30), (1, 2, 3, 4, 5, 6, 7, 8), (500,)])
def test_a_file_that_is_copied_slowly_is_taken_when_it_is_whole(
    ready: Device, pauses: tuple[float, ...]
) -> None:
    launches = Launches(ready)
    x, y = blobs(400, 1)
    file = io.BytesIO()
    np.savez(file, x=x, y=y)
    data = file.getvalue()
    step = len(data) // (len(pauses) + 1)
    with open(ready.config.inbox / "slow.npz", "wb", buffering=0) as copy:
        for number, pause_s in enumerate(pauses):
            copy.write(data[number * step : (number + 1) * step])
            ready.run(pause_s)
            assert ready.status.samples == 0
        copy.write(data[len(pauses) * step :])
    assert ready.run(70, until=lambda: ready.status.samples > 300)
    assert launches.count <= len(pauses) + 1
    assert list(ready.config.inbox.iterdir()) == []


PIXELS = tiny_spec(x=ArraySpec("uint8", (2, 2)))


def picture(side: int = 2) -> bytes:
    return b"P5\n%d %d\n255\n" % (side, side) + bytes(side * side)


def fill(folder: Path, count: int, data: bytes, ending: str = ".pgm") -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}{ending}").write_bytes(data)


def files_in(device: Device) -> int:
    return sum(path.is_file() for path in device.config.inbox.rglob("*"))


def taken(device: Device) -> int:
    directory = device.config.storage.directory
    return sum(s.samples for n in ("samples", "holdout") for s in segments(directory / n))


def test_pictures_wait_for_pillow_and_are_taken_when_it_is_there(
    device: Device, broker: MemoryBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    launches = Launches(device)
    Files(1, spec=PIXELS, is_open=False).publish(broker, topics)
    device.run(10)
    with monkeypatch.context() as without:
        for name in ("PIL", "PIL.Image"):
            without.setitem(sys.modules, name, None)
        for label in range(3):
            fill(device.config.inbox / str(label), 200, picture())
        device.run(2 * 3600)
        assert files_in(device) == 600
        assert device.status.problem.startswith("600 wait in the inbox: ")
        assert "and 599 more: images need Pillow" in device.status.problem
        assert launches.count <= 8
    assert device.run(30, until=lambda: taken(device) == 600)
    device.run(60)
    assert files_in(device) == 0
    assert device.status.problem == ""


def test_folders_with_the_names_of_classes_wait_for_a_release_that_knows_them(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    pytest.importorskip("PIL")
    launches = Launches(device)
    Files(1, spec=PIXELS, is_open=False).publish(broker, topics)
    device.run(10)
    for name in ("ape", "bee", "cat"):
        fill(device.config.inbox / name, 200, picture())
    device.run(3600)
    assert files_in(device) == 600
    assert "599 more: no class of task blobs: a folder is named by" in device.status.problem
    assert launches.count == 1
    named = msgspec.structs.replace(PIXELS, class_names=("ape", "bee", "cat"))
    Files(2, spec=named, is_open=False).publish(broker, topics)
    assert device.run(60, until=lambda: taken(device) == 600)
    assert files_in(device) == 0


def test_pictures_of_another_size_wait_until_somebody_scales_them(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    pytest.importorskip("PIL")
    launches = Launches(device)
    Files(1, spec=PIXELS, is_open=False).publish(broker, topics)
    device.run(10)
    folder = device.config.inbox / "1"
    fill(folder, 600, picture(3))
    device.run(3600)
    assert files_in(device) == 600
    assert "599 more: image of 3 x 3 pixels, task blobs takes (2, 2)" in device.status.problem
    assert launches.count == 1
    fill(folder, 600, picture())
    assert device.run(600, until=lambda: taken(device) == 600)
    assert files_in(device) == 0


def test_folders_that_are_copied_slowly_are_taken_as_they_come(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1, spec=PIXELS, is_open=False).publish(broker, topics)
    device.run(10)
    folder, launches = device.config.inbox / "1", Launches(device)
    folder.mkdir()
    sample = io.BytesIO()
    np.save(sample, np.zeros((2, 2), np.uint8))
    data = sample.getvalue()
    for number in range(60):  # each in two halves, with a long pause in some
        with open(folder / f"{number}.npy", "wb", buffering=0) as copy:
            copy.write(data[: number * 2])
            device.run(700 if number == 30 else 15 if number % 10 == 0 else 1)
            copy.write(data[number * 2 :])
    assert device.run(60, until=lambda: taken(device) == 60)
    assert not (device.config.inbox / "rejected").exists()
    assert launches.count <= 40
    device.run(EMPTY_S + 60)
    assert not folder.exists()


def test_a_folder_that_we_have_not_emptied_is_not_ours_to_remove(ready: Device) -> None:
    folder = ready.config.inbox / "0"
    folder.mkdir()
    ready.run(86400)
    assert folder.exists()


def test_what_waits_stays_said_when_good_files_come(ready: Device) -> None:
    (ready.config.inbox / "notes.txt").write_text("hello")
    ready.run(10)
    ready.add_samples(20)
    ready.run(10)
    assert ready.status.samples > 10
    assert ready.status.problem.startswith("1 waits in the inbox: notes.txt: neither an .npz")
    (ready.config.inbox / "notes.txt").unlink()
    ready.run(10)
    assert ready.status.problem == ""


def test_a_thousand_entries_that_wait_do_not_keep_a_good_one_waiting(ready: Device) -> None:
    launches = Launches(ready)
    for number in range(1000):
        (ready.config.inbox / f"{number}.csv").write_text("1,2")
    ready.run(120)
    there = launches.count
    ready.add_samples(20)
    assert ready.run(30, until=lambda: ready.status.samples > 10)
    assert launches.count == there + 1
    ready.run(3 * 3600)
    assert launches.count == there + 1
    assert files_in(ready) == 1000
    assert "999 more" in ready.status.problem


def test_samples_that_wait_for_the_first_release_are_said(device: Device) -> None:
    device.add_samples(20)
    device.run(10)
    problems = device.agent.parts.problems
    assert [problem.text for problem in problems.all() if "inbox" in problem.text] == []
    device.run(35)
    (said,) = [problem.text for problem in problems.all() if "inbox" in problem.text]
    assert "1 waits in the inbox: samples-1.npz: no release has come yet" in said


def test_a_full_disk_is_said_and_tried_ever_more_rarely(
    ready: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = Launches(ready)
    monkeypatch.setattr(sample_inbox, "free_bytes", lambda folder: free)
    free = 1000

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(segment_writer, "atomic_write", full)
        ready.add_samples(20)
        ready.run(6 * 3600)
        assert "samples-1.npz: No space left on device" in ready.status.problem
        assert 30 <= launches.count <= 50
        assert files_in(ready) == 1
    free += 2_000_000  # somebody has made room
    assert ready.run(30, until=lambda: ready.status.samples > 10)
    ready.run(10)
    assert ready.status.problem == ""


def test_the_file_that_ends_its_parser_is_found_and_left_alone(patient: Device) -> None:
    """The others go on; it stays, is said, and is tried again ever more rarely."""
    ends = 0

    def launch(module: str, arguments: Sequence[str], *, log: Path | None) -> Child:
        nonlocal ends
        if module == INTAKE:
            workspace, evil = Path(arguments[0]).parent, patient.config.inbox / "evil.npz"
            job = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=IntakeJob)
            name = examination.noted(b"evil.npz", evil.lstat())
            if any(entry.name == b"evil.npz" for entry in job.entries) and name not in job.skip:
                (workspace / OPENED).write_bytes(name)
                ends += 1
                return _Ended(-9)
        return launch_here(module, arguments, log=log)

    patient.launch = launch
    (patient.config.inbox / "evil.npz").write_bytes(b"?")
    for seed in (1, 2, 3):
        patient.add_samples(20, seed)
    patient.run(60)
    assert patient.status.samples > 40
    assert ends == 1
    assert "1 waits in the inbox: evil.npz: reading it was ended" in patient.status.problem
    patient.run(3 * 86400)
    assert 4 <= ends <= 8
    assert files_in(patient) == 1


def test_a_parser_that_no_file_has_ended_is_started_ever_more_rarely(ready: Device) -> None:
    starts = 0

    def launch(module: str, arguments: Sequence[str], *, log: Path | None) -> Child:
        nonlocal starts
        starts += module == INTAKE
        return _Ended(-9) if module == INTAKE else launch_here(module, arguments, log=log)

    ready.launch = launch
    ready.add_samples(20)
    ready.run(6 * 3600)
    assert 30 <= starts <= 50
    assert "too little memory?" in ready.status.problem
    ready.launch = launch_here
    ready.run(601)
    assert ready.status.samples > 10
    assert ready.status.problem == ""


@pytest.mark.parametrize("name", [b"K\xfcche.npz", b"a\nb.npz", b"\xff/0.npy"])
def test_a_name_that_is_no_text_ends_nothing(ready: Device, name: bytes) -> None:
    path = Path(os.fsdecode(os.fsencode(ready.config.inbox) + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"?")
    ready.add_samples(20)
    ready.run(30)
    assert ready.status.samples > 10
    assert ready.status.problem.isprintable()
    assert ready.status.problem.isascii()
    encode_message(ready.status)


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

    def remove(path: Path, identity: object) -> None:
        if path.name == "samples-1.npz":
            tries.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        path.unlink()

    monkeypatch.setattr(intake, "remove_same", remove)
    ready.add_samples(20, seed=1)
    ready.run(10)
    assert "1 waits in the inbox: samples-1.npz: Permission denied" in ready.status.problem
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


def test_what_waits_is_looked_at_once_a_day(patient: Device) -> None:
    launches = Launches(patient)
    (patient.config.inbox / "notes.txt").write_text("hello")
    fill(patient.config.inbox / "cat", 2, b"?", ".npy")
    patient.run(3 * 86400)
    assert launches.count <= 7
