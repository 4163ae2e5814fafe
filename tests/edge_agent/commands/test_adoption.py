"""Another id or task for a board that has samples: they stay, and nothing is counted twice."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from tiny_fleet import DEVICE, TASK, Device, Files, Server

from edge_agent.board import installation
from edge_agent.board.installation import hold, read_installation
from edge_agent.commands import adoption
from edge_agent.commands.adoption import adopt
from edge_agent.samples.sample_store import segments
from edge_agent.updates import outbox
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_facts import OutboxFacts
from models.errors import UsageError
from models.host import durable

MODULES = (adoption, installation, outbox, durable)


def ended(device: Device) -> Path:
    """End the device's agent; return its state directory."""
    device.agent.parts.outbox.close()
    device.broker.drop_link(DEVICE)
    device.link.close()
    return device.config.storage.directory


def opened(directory: Path) -> Outbox:
    return Outbox(directory / "outbox.db", max_bytes=1 << 30, max_waiting=99, installation="0" * 8)


def add_updates(directory: Path) -> None:
    """Add to what was learned: one update that never left, one that has, one that is stored."""
    with closing(sqlite3.connect(directory / "outbox.db")) as database, database:
        for state in ("queued", "sending", "stored"):
            data = f"header{state}".encode()
            database.execute(
                "INSERT INTO updates (state, base, chunk_size, header_size, data) "
                "VALUES (?, 1, 1024, 6, ?)",
                (state, data),
            )


@pytest.fixture
def trained(device: Device, server: Server) -> Path:
    """The state of a stopped device that has a release, samples and updates of each kind."""
    server.publish(Files(1))
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    directory = ended(device)
    add_updates(directory)
    return directory


def content(directory: Path) -> tuple[list[bytes], list[str]]:
    """Return the refunds and the states of the updates."""
    with closing(sqlite3.connect(directory / "outbox.db")) as database:
        refunds = [payload for (payload,) in database.execute("SELECT payload FROM refunds")]
        states = [state for (state,) in database.execute("SELECT state FROM updates")]
    return refunds, states


def test_a_new_id_keeps_what_was_learned_but_for_what_has_left(trained: Path) -> None:
    before = read_installation(trained)
    samples = segments(trained / "samples")
    with closing(opened(trained)) as old:
        digits, codec, numbers = old.installation, old.codec(), [e.seq for e in old.waiting()]
    told = adopt(trained, device="board-9", task=TASK)
    after = read_installation(trained)
    assert before is not None
    assert after is not None
    assert (after.device, after.task, after.boot) == ("board-9", TASK, before.boot)
    assert segments(trained / "samples") == samples
    assert content(trained) == ([b"queued"], [])
    with closing(opened(trained)) as new:
        assert new.installation != digits, "numbers are unique together with the digits"
        assert new.codec() == codec
        assert new.facts.read().trained_release == 1
        assert new.facts.read().made == 0
        assert new.carried.refunds() == numbers[:1]
    assert "updates that had not left go into the next: 1" in told
    assert "dropped: updates that had left: 2" in told
    assert f"kept: {sum(s.samples for s in samples)} samples" in told


def test_a_new_task_keeps_the_samples_only(trained: Path) -> None:
    (trained / "jobs" / "7").mkdir()
    with closing(opened(trained)) as old:
        job, ever = old.codec().job, old.facts.read().job
    told = adopt(trained, device=DEVICE, task="shoes")
    assert segments(trained / "samples")
    assert content(trained) == ([], [])
    with closing(opened(trained)) as new:
        assert (new.codec().residual, new.codec().personal) == (None, None)
        assert new.codec().job > job, "a result that lies about is of another task"
        assert new.facts.read() == OutboxFacts(job=ever + 1)
    for name in ("active.json", "slot-a.json", "slot-b.json", "jobs", "artifacts", "codec"):
        assert not (trained / name).exists()
    assert "dropped: releases and what was learned of task blobs, 3 updates of it" in told


def test_an_adopted_device_learns_on_and_is_folded_under_its_new_id(
    device: Device, server: Server
) -> None:
    server.publish(Files(1))
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    directory = ended(device)
    before = device.status.installation
    adopt(directory, device="board-9", task=TASK)
    found = read_installation(directory)
    assert found is not None
    # The little server answers to one name only; to its owner the directory is that device's.
    adopt(directory, device=DEVICE, task=TASK)
    device.boot()
    server.publish(Files(2))
    assert device.run(120, until=lambda: device.status.updates_folded == 1)
    assert device.status.installation != before
    assert device.status.updates_made == 1


def test_nothing_to_do_is_no_mistake(trained: Path) -> None:
    before = content(trained)
    assert "nothing to do" in adopt(trained, device=DEVICE, task=TASK)
    assert content(trained) == before


def test_a_running_agent_is_left_alone(trained: Path) -> None:
    lock = hold(trained)
    with pytest.raises(UsageError, match="another agent runs on"):
        adopt(trained, device="board-9", task=TASK)
    os.close(lock)


def test_where_no_agent_was_there_is_nothing_to_adopt(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to adopt"):
        adopt(tmp_path, device="board-9", task=TASK)


def test_a_damaged_outbox_does_not_stand_in_the_way(trained: Path) -> None:
    for path in trained.glob("outbox.db-*"):
        path.unlink()
    (trained / "outbox.db").write_bytes(b"no database at all, " * 500)
    told = adopt(trained, device="board-9", task=TASK)
    assert "\nlost: outbox.db was damaged and is put aside" in told
    assert "kept: what was learned" not in told
    assert (trained / "damaged-outbox.db").exists()
    found = read_installation(trained)
    assert found is not None
    assert found.device == "board-9"


def killed_at(directory: Path, line: int, *, task: str) -> bool:
    """Adopt in a child that is killed before its ``line``-th line; return whether it was."""
    child = os.fork()
    if child == 0:
        left = line
        files = {module.__file__ for module in MODULES}

        def trace(frame: object, event: str, argument: object) -> object:
            nonlocal left
            if frame.f_code.co_filename not in files:  # type: ignore[attr-defined]
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os._exit(77)
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            adopt(directory, device="board-9", task=task)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 77)
    return code == 77


@pytest.mark.slow
@pytest.mark.parametrize("task", [TASK, "shoes"])
def test_killed_between_any_two_lines_nothing_is_lost_and_nothing_is_twice(
    trained: Path, tmp_path: Path, task: str
) -> None:
    """After a kill nothing has changed for the old owner, or the command is given again."""
    refunds = [b"queued"] if task == TASK else []
    samples = [segment.samples for segment in segments(trained / "samples")]
    line, is_killed = 0, True
    while is_killed:
        line += 1
        copy = tmp_path / "copy"
        shutil.copytree(trained, copy)
        is_killed = killed_at(copy, line, task=task)
        found = read_installation(copy)
        assert found is not None
        kept, states = content(copy)
        if found.device == DEVICE:
            before = kept, states
            assert before in (([], ["queued", "sending", "stored"]), (refunds, []))
            adopt(copy, device="board-9", task=task)
        assert content(copy) == (refunds, [])
        found = read_installation(copy)
        assert found is not None
        assert (found.device, found.task) == ("board-9", task)
        assert (copy / "active.json").exists() == (task == TASK)
        assert [segment.samples for segment in segments(copy / "samples")] == samples
        shutil.rmtree(copy)
    assert line > 50


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it for another user")
def test_what_root_adopts_stays_with_the_service(trained: Path) -> None:
    for path in (trained, *trained.rglob("*")):
        os.chown(path, 64477, 64477)
    code = (
        "import os, pathlib; from edge_agent.commands.adoption import adopt; os.umask(0o077);"
        f"adopt(pathlib.Path({str(trained)!r}), device='b', task='t')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert {path for path in trained.rglob("*") if path.stat().st_uid != 64477} == set()
    assert msgspec.json.decode((trained / "installation.json").read_bytes())["device"] == "b"
