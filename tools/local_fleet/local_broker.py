"""An MQTT broker on this machine, for demos, tests and trying things: mosquitto, or one in Python.

It listens on 127.0.0.1 only and dies with the program that started it. It is no broker for a
fleet: there is no TLS and, with mosquitto, no password.
"""

import argparse
import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from models.errors import UsageError
from models.host.extras import how_to_install
from models.host.service import stop_on_signals
from tools.child_environment import child_environment
from tools.local_fleet.process import end_with_parent

__all__ = [
    "PASSWORD_VARIABLE",
    "LocalBroker",
    "answers_mqtt",
    "find_mosquitto",
    "free_port",
    "main",
]

Kind = Literal["mosquitto", "embedded"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0  # the Python broker needs a few seconds on a busy Raspberry Pi
PASSWORD_VARIABLE = "EDGEFOLD_EMBEDDED_BROKER_PASSWORD"


class LocalBroker:
    """A broker process of our own; use it in a ``with`` statement, or call start and stop.

    ``kind`` "auto" takes mosquitto when it is installed, else the embedded one, and ``why`` says
    so in one line. ``embedded`` speaks MQTT 3.1.1 only, keeps nothing over a restart, and demands
    ``username`` and ``password`` (it forgets the sessions of clients without). ``directory`` takes
    its configuration, its log and, with ``persistence``, its state. ``settings`` are more lines
    for mosquitto.conf, and win. The port stays the same over `kill` and `start`.
    """

    def __init__(
        self,
        kind: Literal["auto", "mosquitto", "embedded"] = "auto",
        *,
        directory: Path,
        port: int | None = None,
        persistence: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        """Choose a broker; nothing is started yet.

        Raises:
            UsageError: it is not installed, or cannot do what is asked.
        """
        self.why: str | None = None
        program = find_mosquitto()
        if kind == "auto":
            kind = "mosquitto" if program else "embedded"
            if kind == "embedded":
                self.why = "mosquitto is not installed: using the embedded Python broker"
        if kind == "mosquitto" and program is None:
            raise UsageError("mosquitto is missing: apt install mosquitto, or take 'embedded'")
        if kind == "embedded" and importlib.util.find_spec("amqtt") is None:
            raise UsageError(f"the embedded broker needs amqtt; {how_to_install('amqtt')}")
        if kind == "embedded" and persistence:
            raise UsageError("the embedded broker keeps nothing on disk: take 'mosquitto' for that")
        self.kind: Kind = kind
        self.host = HOST
        self.port = port if port is not None else free_port()
        self.username = "edgefold" if kind == "embedded" else None
        self.password = secrets.token_urlsafe(18) if kind == "embedded" else None
        self.process: subprocess.Popen[bytes] | None = None
        self._program = program
        self._directory = directory
        self._persistence = persistence
        self._settings = tuple(settings)

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    @property
    def log_file(self) -> Path:
        return self._directory / "broker.log"

    def start(self) -> None:
        """Start it, and return when it accepts MQTT connections.

        Raises:
            UsageError: it does not come up; the message ends with what it said last.
        """
        if self.process is not None and self.process.poll() is None:
            return
        self._state.mkdir(parents=True, exist_ok=True)
        environment = child_environment()
        if self.kind == "mosquitto":
            command = [str(self._program), "-c", str(self._write_configuration())]
        else:
            command = [
                sys.executable,
                "-m",
                "tools.local_fleet.embedded_broker",
                self.host,
                str(self.port),
            ]
            environment[PASSWORD_VARIABLE] = self.password or ""
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=partial(end_with_parent, signal.SIGKILL),
            )
        self._wait_until_it_answers(self.process)

    def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut of its machine would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order (SIGTERM); what it persists is written first."""
        self._end(signal.SIGTERM)

    def wipe(self) -> None:
        """Kill it and forget everything that it stored; `start` begins with an empty broker."""
        self.kill()
        shutil.rmtree(self._state, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _state(self) -> Path:
        return self._directory / "broker-state"

    def _write_configuration(self) -> Path:
        lines = [
            f"listener {self.port} {self.host}",
            "allow_anonymous true",
            "set_tcp_nodelay true",
            "max_packet_size 262144",
            "max_queued_messages 5000",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            f"persistence {'true' if self._persistence else 'false'}",
        ]
        if self._persistence:
            lines += [
                f"persistence_location {self._state.resolve()}/",
                "autosave_on_changes true",
                "autosave_interval 1",
            ]
        if os.geteuid() == 0:  # else mosquitto becomes a user who may not write here
            lines.append(f"user {pwd.getpwuid(0).pw_name}")
        names = {setting.split()[0] for setting in self._settings} - {"listener"}
        lines = [line for line in lines if line.split()[0] not in names]
        lines += self._settings
        path = self._directory / "mosquitto.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if answers_mqtt(self.host, self.port, self.username, self.password):
                return
            time.sleep(0.05)
        self.kill()
        said = self.log_file.read_text(errors="replace").strip().splitlines()[-3:]
        raise UsageError(
            f"the {self.kind} broker does not come up on {self.host}:{self.port}; "
            f"it said: {' | '.join(said) or 'nothing'}"
        )

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def find_mosquitto() -> Path | None:
    """Return the mosquitto program; Debian keeps it where only root's PATH looks."""
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which("mosquitto", path=f"{path}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def free_port() -> int:
    """Return a TCP port that nobody has now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def answers_mqtt(host: str, port: int, username: str | None, password: str | None) -> bool:
    """Whether a broker answers, be it with a refusal: one CONNECT and CONNACK of MQTT 3.1.1."""

    def field(text: str) -> bytes:
        return len(text).to_bytes(2, "big") + text.encode()

    flags, fields = 0x02, field("edgefold-probe")  # 0x02: a clean session
    if username is not None and password is not None:
        flags, fields = flags | 0xC0, fields + field(username) + field(password)
    body = field("MQTT") + bytes([4, flags, 0, 10]) + fields
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2.0) as link:
        link.sendall(bytes([0x10, len(body)]) + body)
        answer = link.recv(4)
        link.sendall(b"\xe0\x00")  # DISCONNECT
        return answer[:2] == b"\x20\x02"
    return False


def main(arguments: list[str] | None = None) -> int:
    """Run a broker until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.local_fleet.local_broker", description=__doc__
    )
    parser.add_argument("--kind", choices=["auto", "mosquitto", "embedded"], default="auto")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--directory", type=Path, default=Path("local-broker"))
    parser.add_argument("--persistence", action="store_true", help="keep state (mosquitto only)")
    options = parser.parse_args(arguments)
    stop = stop_on_signals()
    try:
        with LocalBroker(
            options.kind,
            directory=options.directory,
            port=options.port,
            persistence=options.persistence,
        ) as broker:
            if broker.why:
                print(broker.why)
            secret = f" password {broker.password}" if broker.password else ""
            user = f" username {broker.username}" if broker.username else ""
            print(f"{broker.kind} on {broker.url}{user}{secret}; Ctrl-C ends it", flush=True)
            while not stop.wait(0.5):
                if broker.process is None or broker.process.poll() is not None:
                    raise UsageError(f"the broker ended; see {broker.log_file}")
    except UsageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
