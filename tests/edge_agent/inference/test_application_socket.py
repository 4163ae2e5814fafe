"""The applications' socket: whom it lets in, what it never replaces, what is said of mistakes."""

import grp
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from asking import APPLICATION, GROUP, NAMES, STRANGER, Process, as_user, open_folder, running

from edge_agent.client import edgefold_client
from edge_agent.client.edgefold_client import Client, NoPermissionError, add_samples
from edge_agent.inference.application_socket import ApplicationSocket, Settings, default_path
from edge_agent.inference.inference_client import call

STATE = Path("/var/lib/edge-agent")
X = np.eye(3, 4, dtype=np.float32)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users: needs root")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


def made(path: Path, group: str | None = None, mode: int | None = None) -> ApplicationSocket:
    socket_ = ApplicationSocket(Settings(path, group, mode))
    socket_.keep()
    return socket_


def test_an_agent_that_systemd_started_answers_in_its_runtime_directory() -> None:
    environment = {"RUNTIME_DIRECTORY": "/run/edge-agent:/run/more", "SYSTEMD_EXEC_PID": "7"}
    assert default_path(STATE, environment, 7) == Path("/run/edge-agent/inference.sock")


@pytest.mark.parametrize(
    "environment",
    [{}, {"RUNTIME_DIRECTORY": "/run/demo"}, {"RUNTIME_DIRECTORY": "", "SYSTEMD_EXEC_PID": "7"}],
)
def test_any_other_agent_answers_in_its_state_directory(environment: dict[str, str]) -> None:
    """Several agents below one service, as those of a demo, do not share a socket."""
    assert default_path(STATE, environment, 7) == STATE / "inference.sock"
    started_by_a_service = environment | {"SYSTEMD_EXEC_PID": "6"}
    assert default_path(STATE, started_by_a_service, 7) == STATE / "inference.sock"


def test_without_a_group_only_the_agents_own_user_is_let_in(tmp_path: Path) -> None:
    socket_ = made(tmp_path / "inference.sock")
    assert socket_.problem == ""
    assert stat.S_IMODE(socket_.path.stat().st_mode) == 0o600
    socket_.close()
    assert not socket_.path.exists()


@needs_root
def test_a_group_is_let_in_and_the_mode_may_say_everybody(folder: Path) -> None:
    for group, mode in ((GROUP, None), (GROUP, 0o666), (None, 0o666)):
        socket_ = made(folder / "inference.sock", group, mode)
        found = socket_.path.stat()
        assert socket_.problem == ""
        assert stat.S_IMODE(found.st_mode) == (mode or 0o660)
        assert found.st_gid == (grp.getgrnam(GROUP).gr_gid if group else os.getegid())
        socket_.close()


def test_a_socket_that_somebody_deletes_comes_back(tmp_path: Path) -> None:
    socket_ = made(tmp_path / "inference.sock")
    first = socket_.listener
    socket_.keep()
    assert socket_.listener is first
    socket_.path.unlink()
    socket_.keep()
    assert socket_.listener is not first
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_.path))
    socket_.close()


def test_what_a_killed_process_left_gives_way(tmp_path: Path) -> None:
    left = made(tmp_path / "inference.sock")
    assert left.listener is not None
    left.listener.close()
    socket_ = made(tmp_path / "inference.sock")
    assert socket_.problem == ""
    socket_.close()


def _file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("mine")
    return folder / "notes.txt"


def _link(folder: Path) -> Path:
    (folder / "link").symlink_to(_file(folder))
    return folder / "link"


def _nowhere(folder: Path) -> Path:
    return folder / "missing" / "inference.sock"


def _below_a_file(folder: Path) -> Path:
    return _file(folder) / "inference.sock"


def _long_name(folder: Path) -> Path:
    return folder / ("n" * 200)


def _longer_than_any_file(folder: Path) -> Path:
    return folder / ("n" * 300)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (_file, "notes.txt is there already and is no socket"),
        (_link, "link is there already and is no socket"),
        (lambda folder: folder, "is there already and is no socket"),
        (_nowhere, "missing is no directory: make it"),
        (_below_a_file, "notes.txt is no directory"),
        (_long_name, "too long a name for a socket"),
        (_longer_than_any_file, "too long a name for a socket"),
    ],
)
def test_a_path_that_cannot_be_is_said_and_nothing_is_lost(
    tmp_path: Path, place: Callable[[Path], Path], said: str
) -> None:
    path = place(tmp_path)
    socket_ = made(path)
    assert socket_.listener is None
    assert said in socket_.problem
    assert len(socket_.problem.splitlines()) == 1
    socket_.close()
    notes = tmp_path / "notes.txt"
    assert not notes.exists() or notes.read_text() == "mine"


def test_two_agents_at_one_path_are_told_apart(tmp_path: Path) -> None:
    first = made(tmp_path / "inference.sock")
    second = made(tmp_path / "inference.sock")
    assert "another process answers at" in second.problem
    second.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(first.path))
    first.close()
    second.keep()
    assert second.problem == ""
    second.close()


def test_a_group_that_does_not_exist_is_said_until_it_does(tmp_path: Path) -> None:
    socket_ = made(tmp_path / "inference.sock", "no-such-group")
    assert "there is no group 'no-such-group' on this device: groupadd" in socket_.problem
    assert not socket_.path.exists()


@needs_root
def test_a_group_that_the_agent_is_not_in_is_said(folder: Path) -> None:
    folder.chmod(0o777)

    def work() -> str:
        return made(folder / "inference.sock", GROUP).problem

    assert f"cannot be given to the group {GROUP}: the agent is not in it" in as_user(
        APPLICATION, [], work
    )
    assert not (folder / "inference.sock").exists()
    assert as_user(APPLICATION, [grp.getgrnam(GROUP).gr_gid], work) == ""


@needs_root
def test_a_directory_that_the_agent_may_not_write_to_is_said(folder: Path) -> None:
    said = as_user(APPLICATION, [], lambda: made(folder / "inference.sock").problem)
    assert f"the agent may not write in {folder}" in said


@needs_root
def test_a_directory_that_keeps_those_out_whom_the_socket_lets_in_is_said(folder: Path) -> None:
    """As a private state directory does, whatever the socket's own group and mode."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    for group, mode in ((GROUP, None), (None, 0o666)):
        socket_ = made(private / "inference.sock", group, mode)
        assert f"whom {private} keeps out" in socket_.problem
        socket_.close()
    assert made(private / "inference.sock").problem == ""


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.slow
@needs_root
def test_a_member_of_the_group_asks_and_a_stranger_is_told_which_group_to_join(
    folder: Path,
) -> None:
    group = grp.getgrnam(GROUP).gr_gid
    socket_ = folder / "run" / "inference.sock"
    socket_.parent.mkdir(mode=0o750)
    os.chown(socket_.parent, -1, group)
    with running(Process(folder, "--group", GROUP, socket=socket_)) as process:
        process.load(1)

        def work() -> object:
            return Client(socket_).ask(X).names

        assert as_user(APPLICATION, [group], work) == str(list(NAMES))
        for mode in (0o750, 0o755):  # kept out by the directory, or by the socket
            socket_.parent.chmod(mode)
            said = as_user(STRANGER, [], work)
            assert said.startswith("NoPermissionError: ")
            assert f"join the group {GROUP} (sudo usermod -aG {GROUP} {STRANGER})" in said
        os.chown(socket_.parent, -1, 64374)  # as systemd lends one where the unit's is missing
        socket_.parent.chmod(0o750)
        said = as_user(STRANGER, [], work)
        assert f"sudo groupadd --system edgefold; sudo usermod -aG edgefold {STRANGER}" in said
        os.chown(socket_.parent, -1, group)
        # The agent's own socket is nobody else's, and who may ask may not load.
        assert "is for root alone" in as_user(
            APPLICATION, [group], lambda: call(process.control, {"do": "ping"}, timeout_s=5)
        )
        refused = call(
            socket_,
            {"do": "load", "release": 2}
            | dict.fromkeys(("infer", "spec", "parameters"), "/etc/passwd"),
            timeout_s=5,
        )[0]
        assert refused["error"] == "only the agent of this device loads releases"


@pytest.mark.slow
@needs_root
def test_a_private_directory_is_not_taken_for_an_agent_and_nobody_is_sent_into_roots_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the unit is stopped only its state directory is left, which systemd keeps to root."""
    run, state = folder / "run" / "i.sock", folder / "state" / "i.sock"
    monkeypatch.setattr(edgefold_client, "SOCKETS", (str(run), str(state)))
    state.parent.mkdir(mode=0o700)
    with running(Process(folder, socket=state)):
        assert Client().path == state
        said = as_user(STRANGER, [], lambda: Client().ping())
        assert said.startswith("NotRunningError")
        assert str(run) in said
        state.parent.chmod(0o750)
        said = as_user(STRANGER, [], lambda: Client(state).ping())
        assert f"{state.parent} is for root alone" in said


@pytest.mark.slow
@needs_root
def test_a_socket_for_nobody_else_says_whose_it_is(folder: Path) -> None:
    with running(Process(folder)) as process:
        said = as_user(STRANGER, [], lambda: Client(process.socket).ping())
    assert f"{process.socket} is for root alone, unless" in said


@pytest.mark.slow
def test_the_device_goes_on_without_the_socket_until_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with running(Process(tmp_path, socket=tmp_path / "taken")) as process:
        process.load(1)
        assert "is there already and is no socket" in str(process.ping()["problem"])
        (tmp_path / "taken").unlink()
        assert Client(tmp_path / "taken", wait_s=60).ask(X).release == 1
        (tmp_path / "taken").unlink()
        assert Client(tmp_path / "taken", wait_s=60).ask(X).release == 1
        assert process.ping()["problem"] == ""
    assert not (tmp_path / "taken").exists()


@pytest.mark.slow
def test_applications_that_hold_connections_and_say_nothing_keep_nobody_out(
    tmp_path: Path,
) -> None:
    with running(Process(tmp_path)) as process:
        process.load(1)
        faithful = Client(process.socket)
        faithful.ping()
        silent = []
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(10)
            client.connect(str(process.socket))
            silent.append(client)
            assert Client(process.socket).ask(X).names == list(NAMES)
        assert faithful.ask(X).names == list(NAMES)
        assert process.ping()["ok"] is True
        for client in silent:
            client.close()


@needs_root
def test_samples_of_another_user_reach_the_agent_through_a_groups_inbox(folder: Path) -> None:
    group = grp.getgrnam(GROUP).gr_gid
    inbox = folder / "inbox"
    inbox.mkdir()
    os.chown(inbox, -1, group)
    inbox.chmod(0o2770)

    def work() -> Path:
        os.umask(0o077)
        return add_samples(inbox, X, np.arange(3))

    file = Path(as_user(APPLICATION, [group], work))
    found = file.stat()
    assert (found.st_uid, found.st_gid) == (APPLICATION, group)
    assert stat.S_IMODE(found.st_mode) == 0o640
    refused = as_user(STRANGER, [], work)
    assert refused.startswith(NoPermissionError.__name__)
    assert f"join the group {GROUP}" in refused
    assert [path.name for path in inbox.iterdir()] == [file.name]
