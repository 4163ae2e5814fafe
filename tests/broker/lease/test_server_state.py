"""How the server is, for whoever looks from outside."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from broker.assembly import lock_directory
from broker.lease.server_state import (
    SAID_S,
    STATE,
    Connection,
    ServerState,
    StateFile,
    is_running,
    read_state,
)

WELL = ServerState(version="1", started=0.0, seen=100.0, is_connected=True, since=50.0)


def later(seconds: float, **changes: object) -> ServerState:
    return msgspec.structs.replace(WELL, seen=WELL.seen + seconds, **changes)


def test_a_state_is_written_when_it_changes_and_now_and_then(tmp_path: Path) -> None:
    file = StateFile(tmp_path)

    def tell(state: ServerState, now: float | None = None) -> None:
        file.tell(state, state.seen if now is None else now)

    tell(WELL)
    tell(later(60))
    assert read_state(tmp_path) == WELL
    cut = later(120, is_connected=False, since=219.0, reason="connection lost")
    tell(cut)
    assert read_state(tmp_path) == cut
    tell(later(120.5))  # not with every flicker
    assert read_state(tmp_path) == cut
    tell(later(130))
    tell(later(130 + SAID_S - 1))
    assert read_state(tmp_path) == later(130)
    tell(later(130 + SAID_S))
    assert read_state(tmp_path) == later(130 + SAID_S)
    tell(later(-5000), later(130 + 2 * SAID_S).seen)  # the clock was set back
    assert read_state(tmp_path) == later(-5000)


def test_what_cannot_be_written_or_read_is_no_state(tmp_path: Path) -> None:
    StateFile(tmp_path / "nowhere").tell(WELL, 0.0)
    assert read_state(tmp_path / "nowhere") is None
    (tmp_path / STATE).write_bytes(b'{"version": 3')
    assert read_state(tmp_path) is None


def test_a_state_of_a_newer_version_is_read(tmp_path: Path) -> None:
    text = msgspec.json.encode(msgspec.to_builtins(WELL) | {"mood": "fine"})
    (tmp_path / STATE).write_bytes(text)
    assert read_state(tmp_path) == WELL


def test_whoever_holds_the_lock_runs_however_it_ends(tmp_path: Path) -> None:
    assert not is_running(tmp_path)
    hold = (
        "import sys; from pathlib import Path; from broker.assembly import lock_directory\n"
        "lock_directory(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    assert is_running(tmp_path)
    holder.kill()
    holder.wait()
    assert not is_running(tmp_path)


def test_a_look_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    os.close(lock_directory(tmp_path))
    look = (
        "import sys; from pathlib import Path; from broker.lease.server_state import is_running\n"
        "print(flush=True)\nwhile True: is_running(Path(sys.argv[1]))"
    )
    looker = subprocess.Popen(
        [sys.executable, "-c", look, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert looker.stdout is not None
        looker.stdout.readline()
        for _ in range(20):
            os.close(lock_directory(tmp_path))
    finally:
        looker.kill()
        looker.wait()


@pytest.mark.parametrize("was_up", [True, False])
def test_a_connection_that_is_tried_in_vain_is_down_since_it_was_lost(was_up: bool) -> None:
    connection = Connection()
    if was_up:
        connection = connection.made(10.0)
    connection = connection.lost("connection lost", 20.0)
    connection = connection.lost("refused: Not authorized", 30.0)
    assert connection == Connection(False, 20.0, 10.0 if was_up else 0.0, "refused: Not authorized")
    assert connection.made(40.0).listening_since == 40.0
