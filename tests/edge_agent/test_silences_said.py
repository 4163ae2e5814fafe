"""One table of what can be wrong around a device, with real agents on real brokers.

Each agent must say its own trouble: as a warning in its log, in its status, and as a sentence that
names the remedy. How soon is tested in virtual time (test_silence.py); here all of them must have
spoken within a limit that a busy machine keeps.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from fake_broker import CONNACK_5, FakeBroker, until_closed
from tiny_fleet import TASK, Files

from models.protocol.manifest import encode_manifest
from models.protocol.messages import ServerStatus, encode_message
from models.protocol.topics import Topics
from models.transport.link import Connected
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker, find_mosquitto

pytestmark = pytest.mark.slow

SPOKEN_WITHIN_S = 150.0  # half a minute each, and two cores for all of them


class Kind(NamedTuple):
    """One silence: where the agent connects, and what it must say."""

    where: str  # a broker of `World`, or a URL
    says: str  # a regular expression; of a problem
    settings: str = ""  # more lines for [fleet]
    fleet: str = "farm"
    task: str = TASK


PASSWORD = 'username = "{id}"\npassword = "right"\n'
KINDS = {
    "wrong-password": Kind(
        "guarded",
        "not connected: the broker refuses our user name or password: .*Not authorized",
        'username = "wrong-password"\npassword = "wrong"\n',
    ),
    "no-password": Kind(
        "guarded", "the broker lets nobody in without a password: set fleet.username"
    ),
    "nothing-listens": Kind("mqtt://127.0.0.1:9", "nothing listens on 127.0.0.1:9: start the bro"),
    "unknown-host": Kind("mqtt://broker.invalid", "the name broker.invalid is not found"),
    "tls-to-plain": Kind("tls-to-plain", "does not answer in TLS: write mqtt://"),
    "plain-to-tls": Kind("plain-to-tls", "(speaks TLS: write mqtts://|it wants TLS)"),
    "not-trusted": Kind("tls", "certificate is of no authority that we trust: .*fleet.ca"),
    "expired": Kind("expired", "has expired by the clock here, .* renew", "ca = '{ca}'\n"),
    "other-name": Kind("other-name", "is made for another name than 127", "ca = '{ca}'\n"),
    "client-id": Kind("client-id", "the broker refuses the client id client-id"),
    "banned": Kind("banned", "the broker has banned banned"),
    "unavailable": Kind("unavailable", "is not available now: look at its log"),
    "closes-at-once": Kind("closes-at-once", "closes the connection without an answer: it refuses"),
    "mute-port": Kind("mute-port", "takes the connection and does not answer"),
    "kicked": Kind("kicked", "(no connection lasts|not connected): .*administrator did"),
    "taken-over": Kind("taken-over", "another client connects as taken-over: was an SD card clon"),
    "pushed-out": Kind("pushed-out", "no connection.*: .*another client connects as pushed-o"),
    "no-subscription": Kind("no-subscription", "let this device read .*task/blobs/release.*ACL"),
    "no-writing": Kind(
        "guarded", "let this device write .*device/no-writing/status: its ACL", PASSWORD
    ),
    "no-reading": Kind("guarded", "does the broker's ACL let it read task/blobs/release", PASSWORD),
    "wrong-fleet": Kind("open", "nobody serves fleet ranch on this broker", fleet="ranch"),
    "wrong-task": Kind(
        "open", "task clothez is not served in fleet farm; it serves blobs, shoes", task="clothez"
    ),
    "server-away": Kind("open", "the server of fleet away is away; what is for it", fleet="away"),
}


def packets(connection: socket.socket) -> Iterator[bytes]:
    """Yield the packets that a client sends; none here is longer than 16 KiB."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
        while len(data) >= 2:
            size, header = data[1] & 0x7F, 2
            if data[1] & 0x80:
                size, header = size | data[2] << 7, 3
            if len(data) < header + size:
                break
            yield data[: header + size]
            data = data[header + size :]


def refusing(code: int) -> Callable[[socket.socket, int], None]:
    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(bytes([0x20, 3, 0, code, 0]))
        until_closed(connection)

    return answer


def ending(code: int) -> Callable[[socket.socket, int], None]:
    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5 + bytes([0xE0, 2, code, 0]))
        until_closed(connection)

    return answer


def never_answering(connection: socket.socket, level: int) -> None:
    connection.settimeout(None)
    until_closed(connection)


def hanging_up(connection: socket.socket, level: int) -> None:
    connection.sendall(CONNACK_5)
    connection.recv(10)
    connection.shutdown(socket.SHUT_WR)
    until_closed(connection)


def refusing_subscriptions(connection: socket.socket, level: int) -> None:
    connection.sendall(CONNACK_5)
    for packet in packets(connection):
        if packet[0] >> 4 == 8:  # SUBSCRIBE with one topic
            connection.sendall(b"\x90\x04" + packet[2:4] + b"\x00\x87")


FAKES: dict[str, Callable[[socket.socket, int], None]] = {
    "client-id": refusing(0x85),
    "banned": refusing(0x8A),
    "unavailable": refusing(0x88),
    "closes-at-once": lambda connection, level: None,
    "mute-port": never_answering,
    "kicked": ending(0x98),
    "taken-over": ending(0x8E),
    "pushed-out": hanging_up,
    "no-subscription": refusing_subscriptions,
}


def certificates(folder: Path) -> None:
    """Make an authority (ca.crt), and brokers that are right, expired and of another name."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    for name, address, days in (
        ("tls", "127.0.0.1", "2"),
        ("expired", "127.0.0.1", "-1"),
        ("other-name", "127.0.0.9", "2"),
    ):
        (folder / "names").write_text(f"subjectAltName=IP:{address}")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", "csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", "csr", *signing, "-out", f"{name}.crt", "-days", days)


def start_brokers(folder: Path, stack: ExitStack) -> dict[str, str]:
    """Start all brokers of the table; return their URLs by name."""
    certificates(folder)
    passwords = folder / "passwords"
    passwords.touch()
    for user in ("wrong-password", "no-writing", "no-reading", "server"):
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, "right"], check=True)
    acl = [
        "user server\ntopic readwrite #",
        "user no-writing\ntopic read #",
        "user no-reading\ntopic readwrite edgefold/1/farm/server/#",
        "topic readwrite edgefold/1/farm/device/no-reading/#",
    ]
    (folder / "acl").write_text("\n".join(acl) + "\n")
    mosquittos: dict[str, list[str]] = {
        "open": [],
        "guarded": [
            "allow_anonymous false",
            f"password_file {passwords}",
            f"acl_file {folder / 'acl'}",
        ],
    }
    urls = {}
    for name, settings in mosquittos.items():
        (folder / name).mkdir()
        broker = stack.enter_context(
            LocalBroker("mosquitto", directory=folder / name, settings=settings)
        )
        urls[name] = broker.url
    for name in ("tls", "expired", "other-name"):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        (folder / name).mkdir()
        settings = [
            f"listener {port} 127.0.0.1",
            f"certfile {folder / name}.crt",
            f"keyfile {folder / name}.key",
        ]
        stack.enter_context(LocalBroker("mosquitto", directory=folder / name, settings=settings))
        urls[name] = f"mqtts://127.0.0.1:{port}"
    urls["plain-to-tls"] = urls["tls"].replace("mqtts", "mqtt")
    urls["tls-to-plain"] = urls["open"].replace("mqtt", "mqtts")
    for name, answer in FAKES.items():
        fake = stack.enter_context(FakeBroker(answer))
        urls[name] = f"mqtt://{fake.host}:{fake.port}"
    return urls


def publish(url: str, retained: dict[str, bytes], *, username: str | None = None) -> None:
    port = int(url.rpartition(":")[2])
    link = MqttLink(
        "127.0.0.1", port, client_id="server", will=None, username=username, password="right"
    )
    link.start()
    deadline = time.monotonic() + 30
    while not any(isinstance(event, Connected) for event in link.poll(0.5)):
        assert time.monotonic() < deadline
    for topic, data in retained.items():
        link.publish(topic, data, retain=True)
    while link.window() < 8:
        assert time.monotonic() < deadline
        link.poll(0.1)
    link.close()


class Device:
    """One agent with its configuration, and what it says."""

    def __init__(self, name: str, kind: Kind, url: str, folder: Path, ca: Path) -> None:
        self.kind = kind
        self.folder = folder / f"device-{name}"
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.config = self.folder / "agent.toml"
        settings = kind.settings.format(id=name, ca=ca)
        self.config.write_text(
            f'[device]\nid = "{name}"\ntask = "{kind.task}"\n[fleet]\nname = "{kind.fleet}"\n'
            f'broker = "{url}"\n{settings}[storage]\ndirectory = "state"\n'
            "[inference]\nenabled = false\n"
        )
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)],
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.spoke_after_s: float | None = None

    def warnings(self) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if " WARNING " in line and " problem part=" in line]

    def has_spoken(self) -> bool:
        return any(re.search(self.kind.says, line) for line in self.warnings())

    def status(self, *options: str) -> str:
        command = [sys.executable, "-m", "edge_agent", "status", "--config", str(self.config)]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Device]]:
    """All devices of the table, started together, after they had the time to speak."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path_factory.mktemp("silences")
    with ExitStack() as stack:
        urls = start_brokers(folder, stack)
        serves = {
            "farm": ServerStatus(online=True, tasks=("blobs", "shoes")),
            "away": ServerStatus(online=False, tasks=("blobs",)),
        }
        for url, username in ((urls["open"], None), (urls["guarded"], "server")):
            retained = {
                Topics(fleet).server_status: encode_message(status)
                for fleet, status in serves.items()
            }
            retained[Topics("farm").release(TASK)] = encode_manifest(Files(1).manifest)
            publish(url, retained, username=username)
        found = {}
        for name, kind in KINDS.items():
            url = urls.get(kind.where, kind.where)
            found[name] = Device(name, kind, url, folder, folder / "ca.crt")
            stack.callback(found[name].end)
        deadline = time.monotonic() + SPOKEN_WITHIN_S
        while time.monotonic() < deadline and not all(d.has_spoken() for d in found.values()):
            time.sleep(0.5)
        time.sleep(12)  # the local status follows the log within seconds
        yield found


@pytest.mark.timeout(420)
@pytest.mark.parametrize("name", KINDS)
def test_what_is_silent_is_said(devices: dict[str, Device], name: str) -> None:
    device = devices[name]
    assert device.has_spoken(), device.log.read_text()
    status = json.loads(device.status("--json"))
    texts = [problem["text"] for problem in status["problems"]]
    assert any(re.search(device.kind.says, text) for text in texts), status
    assert all(problem["since"] for problem in status["problems"])
    assert status["problem"] == texts[0]
    assert status["summary"].startswith(texts[0])
    first, *rest = device.status().splitlines()
    assert first.startswith(texts[0][:20])
    assert any(line.startswith("connected") for line in rest)
    assert len(device.log.read_text().splitlines()) < 40, "the log of a silence is short"
