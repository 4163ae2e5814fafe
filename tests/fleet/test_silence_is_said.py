"""A table of what may be wrong between a device and its server: each is said on both sides.

A fleet of one server and one device runs; one thing is broken; within a minute (what the device
waits before it speaks is in docs/agent.md) ``status`` of both sides says what is wrong. Real
Mosquitto with passwords, real agents and servers.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models.task.bundle import Bundle
from tools.author.bundle.bundle_directory import write_bundle
from tools.local_fleet.local_broker import LocalBroker
from tools.local_fleet.process import Process
from tools.local_fleet.toml_text import to_toml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
START_S = 90.0  # for a fleet to get going on a busy machine
SAID_S = 60.0  # the bar
SLACK_S = 30.0  # for a busy machine: processes start, and ``status`` takes seconds
DEVICE, SERVER = "cam-1", "hub"  # their user names, too

Report = dict[str, Any]


class Node(Process):
    """An agent or a server with its configuration; ``status --json`` of it."""

    def __init__(self, program: str, directory: Path, sections: dict[str, Any]) -> None:
        self.directory = directory
        self.program = program
        self.sections = sections
        self.config = directory / "config.toml"
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(program, [program, "run", "--config", str(self.config)], directory / "log")
        self.configure()

    def configure(self, **fleet: Any) -> None:
        """Write the configuration with some keys of ``[fleet]`` changed."""
        self.sections["fleet"] |= fleet
        self.config.write_text(to_toml(self.sections))

    def restart(self, **fleet: Any) -> None:
        self.signal(signal.SIGTERM)
        self.wait()
        self.configure(**fleet)
        self.start()

    def status(self) -> Report:
        """What it says, or nothing yet."""
        answer = subprocess.run(
            [sys.executable, "-m", self.program, "status", "--config", str(self.config), "--json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        found: Report = json.loads(answer.stdout) if answer.returncode == 0 else {}
        return found


class Site:
    """One MQTT broker, and what runs on it."""

    def __init__(self, directory: Path, bundle: Bundle) -> None:
        self.directory = directory
        self._passwords = directory / "passwords"
        for user in (DEVICE, SERVER):
            self.set_password(user, f"{user}-secret")
        self.broker = LocalBroker(
            "mosquitto",
            directory=directory / "mqtt",
            settings=["allow_anonymous false", f"password_file {self._passwords}"],
        )
        write_bundle(bundle, directory / "bundle")
        self.nodes: list[Node] = []

    def set_password(self, user: str, password: str) -> None:
        """Let ``user`` in with it, once the broker has read its files."""
        create = [] if self._passwords.exists() else ["-c"]
        subprocess.run(
            ["mosquitto_passwd", *create, "-b", str(self._passwords), user, password], check=True
        )
        self._passwords.chmod(0o644)  # mosquitto reads it as another user

    def start(self) -> None:
        self.broker.start()
        self.server = self.add_server("server")
        self.device = self.add_device("device")
        self.server.start()
        self.device.start()
        self.wait_until(
            lambda: (
                self.device.status().get("release") == 1
                and bool(self.server.status().get("devices"))
            ),
            within_s=START_S,
        )

    def access(self, user: str) -> dict[str, Any]:
        return {
            "name": "farm",
            "broker": self.broker.url,
            "username": user,
            "password": f"{user}-secret",
        }

    def add_server(self, where: str, **fleet: Any) -> Node:
        directory = self.directory / where
        sections = {
            "fleet": self.access(SERVER) | fleet,
            "storage": {"directory": str(directory / "state")},
            "task": [{"bundle": str(self.directory / "bundle")}],
        }
        self.nodes.append(Node("broker", directory, sections))
        return self.nodes[-1]

    def add_device(self, where: str, task: str = "tiny", **fleet: Any) -> Node:
        directory = self.directory / where
        sections = {
            "device": {"id": DEVICE, "task": task},
            "fleet": self.access(DEVICE) | fleet,
            "storage": {"directory": str(directory / "state")},
            "inference": {"enabled": False},
        }
        self.nodes.append(Node("edge_agent", directory, sections))
        return self.nodes[-1]

    def wait_until(self, claim: Callable[[], bool], *, within_s: float) -> float:
        began = time.monotonic()
        while not claim():
            assert time.monotonic() - began < within_s, self.last_words()
            time.sleep(0.5)
        return time.monotonic() - began

    def last_words(self) -> str:
        said = [
            f"{node.directory.name}: {node.last_words()}\n{node.status()}" for node in self.nodes
        ]
        return "\n".join(said)

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        self.broker.kill()


@pytest.fixture
def site(tmp_path: Path, bundle: Bundle) -> Iterator[Site]:
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto_passwd is not installed")
    made = Site(tmp_path, bundle)
    try:
        made.start()
        yield made
    finally:
        made.close()


# What is broken


def wrong_password(site: Site) -> None:
    site.device.restart(password="wrong")


def unreachable_host(site: Site) -> None:
    site.device.restart(broker="mqtt://127.0.0.1:1")


def wrong_fleet(site: Site) -> None:
    site.device.restart(name="ranch")


def wrong_task(site: Site) -> None:
    site.device.kill()
    site.device = site.add_device("retyped", task="clothez")
    site.device.start()


def stopped_server(site: Site) -> None:
    site.server.signal(signal.SIGTERM)
    site.server.wait()


def killed_server(site: Site) -> None:
    site.server.kill()


def kicked_device(site: Site) -> None:
    """Its password is changed on the broker, which then closes its connection."""
    site.set_password(DEVICE, "another")
    assert site.broker.process is not None
    site.broker.process.send_signal(signal.SIGHUP)


def two_servers(site: Site) -> None:
    """The second one from a copy of the first one's directory, as when it is moved."""
    second = site.add_server("second")
    shutil.copytree(site.server.directory / "state", second.directory / "state")
    second.start()
    site.server = second


def two_fleets_with_one_client_id(site: Site) -> None:
    site.server.restart(client_id="aggregator")
    other = site.add_server("other", name="ranch", client_id="aggregator")
    other.start()


# What must be said: patterns of what a person reads first


def device_says(pattern: str) -> Callable[[Report], bool]:
    return lambda status: bool(re.search(pattern, str(status.get("summary"))))


def device_is_away(report: Report) -> bool:
    return [row["presence"] for row in report.get("devices", [])] == ["away"]


def device_is_not_known_to_be_gone(report: Report) -> bool:
    """Mosquitto 2.0.11 sends no will for a device that it throws out, so a server cannot know.

    It says when it last heard it, and calls it silent after an hour and five minutes.
    """
    (row,) = report["devices"]
    return row["presence"] in ("online", "unconfirmed", "away")


def asks_for_another_task(report: Report) -> bool:
    (row,) = report.get("devices", [{}])
    return [unserved["task"] for unserved in report.get("unserved", [])] == ["clothez"] and any(
        "asks for task clothez, which is not served here" in text for text in row["problems"]
    )


def does_not_run(report: Report) -> bool:
    return report.get("server", {}).get("running") is False


def server_says(key: str, pattern: str) -> Callable[[Report], bool]:
    return lambda report: bool(re.search(pattern, str(report.get("server", {}).get(key))))


class Row(NamedTuple):
    """One line of the table."""

    broken: Callable[[Site], None]
    device: Callable[[Report], bool]
    server: Callable[[Report], bool]


TABLE = (
    Row(
        wrong_password,
        device_says("not connected: the broker refuses our user name or password"),
        device_is_away,
    ),
    Row(unreachable_host, device_says("not connected: nothing listens on"), device_is_away),
    Row(wrong_fleet, device_says("nobody serves fleet ranch on this broker"), device_is_away),
    Row(
        wrong_task,
        device_says("task clothez is not served in fleet farm; it serves tiny"),
        asks_for_another_task,
    ),
    Row(stopped_server, device_says("the server of fleet farm is away"), does_not_run),
    Row(killed_server, device_says("the server of fleet farm is away"), does_not_run),
    Row(
        kicked_device,
        device_says("not connected: the broker refuses our user name or password"),
        device_is_not_known_to_be_gone,
    ),
    Row(  # the device has its server: nothing is wrong there
        two_servers,
        device_says("all is well"),
        server_says("stands_by", r"another server \(host .*\) serves fleet farm"),
    ),
    Row(
        two_fleets_with_one_client_id,
        device_says("all is well|the server of fleet farm is away"),  # in turn
        server_says("problem", "use client id aggregator too: give each fleet its own"),
    ),
)


@pytest.mark.parametrize("row", TABLE, ids=[row.broken.__name__ for row in TABLE])
def test_what_is_broken_is_said_on_both_sides_within_a_minute(site: Site, row: Row) -> None:
    row.broken(site)
    began, said = time.monotonic(), dict[str, float]()

    def is_said() -> bool:
        sides = {"device": (row.device, site.device), "server": (row.server, site.server)}
        for side, (claim, node) in sides.items():
            if side not in said and claim(node.status()):
                said[side] = time.monotonic() - began
        return said.keys() == sides.keys()

    site.wait_until(is_said, within_s=SAID_S + SLACK_S)
    print({side: f"{seconds:.0f} s" for side, seconds in said.items()})


def test_two_fleets_on_one_broker_have_nothing_to_say(site: Site) -> None:
    """With default settings."""
    other = site.add_server("other", name="ranch")
    neighbor = site.add_device("neighbor", name="ranch")
    neighbor.sections["device"]["id"] = "cam-2"
    neighbor.configure()
    other.start()
    neighbor.start()
    is_well = device_says("all is well")
    for device in (site.device, neighbor):
        site.wait_until(lambda device=device: is_well(device.status()), within_s=START_S)  # type: ignore[misc]
    for server in (site.server, other):
        assert "dropped" not in server.log.read_text()
        assert "disconnected" not in server.log.read_text()
        assert server.status()["server"]["problem"] == ""
        assert len(server.status()["devices"]) == 1
