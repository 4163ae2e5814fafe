"""SIGHUP: what is taken over, what needs a restart, and what a mistake in the file costs."""

import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.config import Config, read_config
from models.access.reload import Reload, changed_settings
from models.transport.mqtt import MqttLink

SETTINGS = """
[device]
id = "board-1"
task = "leaves"
[fleet]
name = "orchard"
broker = "mqtt://127.0.0.1:9"
username = "board-1"
password = "tulips-in-may"
"""


class Running:
    """What `edgefold-agent run` has of its settings, without an agent."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "agent.toml"
        config = read_config(self.path)
        self.link = MqttLink(
            "127.0.0.1", 9, client_id="a", will=None, login=config.fleet.login(self.path)
        )
        self.asked = threading.Event()
        self.reload: Reload[Config] = Reload(
            config,
            self.link.credentials,
            self.asked,
            read=lambda: read_config(self.path),
            login=lambda settings: settings.fleet.login(self.path),
        )
        self.link.credentials.read()

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.path.chmod(0o600)

    def hang_up(self) -> str:
        self.asked.set()
        return self.reload.tick()

    @property
    def password(self) -> str | None:
        return self.link.credentials.read().password


@pytest.fixture
def running(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Running:
    caplog.set_level(logging.INFO)
    (tmp_path / "agent.toml").write_text(SETTINGS)
    (tmp_path / "agent.toml").chmod(0o600)
    return Running(tmp_path)


def test_a_new_password_is_taken_over_and_never_shown(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    assert running.reload.tick() == ""
    running.write(SETTINGS.replace("tulips-in-may", "roses-in-june"))
    assert running.password == "tulips-in-may"
    assert running.hang_up() == ""
    assert running.password == "roses-in-june"
    assert "settings read again changed=fleet.password" in caplog.text
    assert "restart" not in caplog.text
    assert "roses" not in caplog.text
    assert "tulips" not in caplog.text


def test_other_settings_are_named_as_in_need_of_a_restart(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    text = SETTINGS.replace("tulips-in-may", "roses-in-june").replace("leaves", "birds")
    running.write(text + "[samples]\nmax_count = 9\n")
    assert running.hang_up() == ""
    assert running.password == "roses-in-june"
    assert "need a restart: device.task, samples.max_count" in caplog.text


def test_another_broker_does_not_hear_the_new_password_of_the_old_one(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    text = SETTINGS.replace("tulips-in-may", "roses-in-june").replace("mqtt://127", "mqtts://127")
    running.write(text)
    assert running.hang_up() == ""
    assert running.password == "tulips-in-may"
    assert "need a restart: fleet.broker, fleet.password" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[device", "is not TOML"),
        (SETTINGS + 'password_file = "x"\n', "both password and password_file"),
        (SETTINGS.replace('username = "board-1"\n', ""), "no username"),
        (SETTINGS + "[sampels]\n", "did you mean 'samples'"),
    ],
)
def test_a_mistake_in_the_file_is_a_problem_until_it_is_mended(
    running: Running, text: str, said: str
) -> None:
    running.write(text)
    problem = running.hang_up()
    assert said in problem
    assert problem.endswith("; the settings from before stay in force")
    assert running.reload.tick() == problem, "until the next SIGHUP"
    assert running.password == "tulips-in-may"
    running.write(SETTINGS)
    assert running.hang_up() == ""


def test_a_file_that_vanished_is_a_problem(running: Running, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("roses")
    running.write(SETTINGS.replace('password = "tulips-in-may"', 'password_file = "password"'))
    assert running.hang_up() == ""
    secret.unlink()
    assert "No such file or directory; what was read before" in running.hang_up()
    assert running.password == "roses"
    running.path.unlink()
    assert "No such file or directory" in running.hang_up()


def test_a_secret_open_to_everyone_is_said_once(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.path.chmod(0o644)
    for _ in range(3):
        running.hang_up()
    assert caplog.text.count("everyone on this machine may read the password in") == 1


def test_a_copy_that_is_out_of_date_asks_for_a_new_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_another_user: Callable[[Path, Callable[[], object]], str],
) -> None:
    """systemd hands out copies of root's files at a start only."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "copies")
    (tmp_path / "copies").mkdir()
    tmp_path.chmod(0o777)

    def write(text: str) -> None:
        Path("draft").write_text(text)
        Path("draft").chmod(0)
        Path("draft").replace("agent.toml")

    def looks() -> list[object]:
        Path("copies/agent.toml").write_text(SETTINGS)
        write(SETTINGS)
        running = Running(Path())
        seen: list[object] = [running.hang_up(), running.reload.wants_start]
        write(SETTINGS.replace("tulips-in-may", "roses-in-june"))
        seen += [running.reload.tick(), running.reload.wants_start]
        return [*seen, running.hang_up(), running.reload.wants_start]

    (tmp_path / "copies").chmod(0o777)
    assert as_another_user(tmp_path, looks) == repr(["", False, "", False, "", True])


class Part(msgspec.Struct, frozen=True):
    size: int = 1
    secret: str = "a"


class All(msgspec.Struct, frozen=True):
    part: Part = Part()
    tasks: tuple[Part, ...] = (Part(), Part())


def test_changed_settings_are_names_without_values() -> None:
    assert changed_settings(All(), All()) == []
    assert changed_settings(All(), All(part=Part(2, "b"))) == ["part.size", "part.secret"]
    assert changed_settings(All(), All(tasks=(Part(2), Part(3)))) == ["tasks.size"]
    assert changed_settings(All(), All(tasks=(Part(),))) == ["tasks"]


PROGRAM = """
import sys, threading
from models.host.service import reload_on_hangup
stop = threading.Event()
asked = reload_on_hangup(stop)
print("ready", flush=True)
while not stop.wait(0.05):
    if asked.is_set():
        asked.clear()
        open(sys.argv[1], "a").write("asked ")
open(sys.argv[1], "a").write("stopped")
"""


def start(notes: Path, **options: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PROGRAM, str(notes)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], **options)


def wait_for(notes: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not notes.exists() or text not in notes.read_text():
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


@pytest.mark.slow
def test_a_hang_up_asks_to_reload_but_ends_what_has_lost_its_terminal(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    process = start(tmp_path / "notes", stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert b"ready" in os.read(main, 100)
    process.send_signal(signal.SIGHUP)
    wait_for(tmp_path / "notes", "asked")
    os.close(main)  # the window is closed
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    assert (tmp_path / "notes").read_text() == "asked stopped"


INTERRUPTED = """
import signal, sys
from models.host.service import reload_on_hangup, stop_on_signals
stop = stop_on_signals()
asked = reload_on_hangup(stop)
left = 50

def interrupt(frame, event, argument):
    global left
    if left and frame.f_code.co_name in ("set", "clear", "is_set"):
        left -= 1
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    return interrupt

sys.settrace(interrupt)
for event in (asked, stop):
    event.set()
    event.clear()
    event.set()
sys.settrace(None)
print(asked.is_set(), stop.is_set())
"""


def test_a_signal_in_the_middle_of_handling_another_does_not_hang_the_process() -> None:
    """At each line of the event's own code, where a storm of signals hits it only sometimes."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "True True\n", done.stderr
