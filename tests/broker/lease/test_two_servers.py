"""Server processes beside a real Mosquitto: two on one fleet, and two fleets on one broker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_world import CONFIG, FakeDevice, good_direction, linear_spec, write_bundle

from broker.reports.fleet_report import read_report
from models.errors import PayloadError
from models.protocol.manifest import decode_manifest
from models.protocol.messages import (
    Receipts,
    Request,
    ServerStatus,
    Status,
    decode_message,
)
from models.protocol.topics import DeviceTopic, ServerTopic, Topics
from models.transport.link import Connected, Received
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
FOLD_AT_1 = "[task.aggregation]\nupdates = 1\nmin_seconds = 0\npatience = 0\n"


class ServerProcess:
    """``python -m broker run`` in a directory of its own; ``fleet`` is the text of its section."""

    def __init__(self, directory: Path, broker: LocalBroker, name: str, fleet: str = "") -> None:
        self.directory = directory
        self.config = directory / "broker.toml"
        write_bundle(directory / "bundle", linear_spec())
        text = CONFIG.replace('name = "test"', f'name = "{name}"\n{fleet}')
        self.config.write_text(text.replace("mqtt://localhost", broker.url) + FOLD_AT_1)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.directory / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "broker", "run", "--config", str(self.config)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def end(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)

    def copy_to(self, directory: Path) -> None:
        """Copy all of the state, as an operator does who moves a server."""
        shutil.copytree(self.directory / "server", directory / "server", dirs_exist_ok=True)

    @property
    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    @property
    def newest(self) -> int:
        return read_report(self.directory / "server").tasks[0].current


class Watcher(FakeDevice):
    """A device that also hears who serves, as every device may."""

    def __init__(self, name: str, fleet: str, broker: LocalBroker) -> None:
        link = MqttLink(broker.host, broker.port, client_id=f"{fleet}-{name}", will=None)
        super().__init__(name, Topics(fleet), link, linear_spec())
        self.outbox: dict[str, bytes] = {}
        self.release = 0
        self.servers: list[ServerStatus] = []
        self._asked_at = 0.0
        link.start()
        self.wait_until(lambda: link.window() > 0)

    def listen(self, timeout_s: float = 0.0) -> None:
        for event in self.link.poll(timeout_s):
            if isinstance(event, Connected):
                topics = self.topics
                own = [topics.receipt(self.name), topics.release("leaves"), topics.server_status]
                self.link.subscribe(own)
            elif isinstance(event, Received):
                self.link.acknowledge(event)
                self._take(event)
        if self.outbox and time.monotonic() - self._asked_at > 1.0 and self.link.window():
            self._asked_at = time.monotonic()
            self.request(Request(receipts=tuple(self.outbox)[:64]))

    def _take(self, event: Received) -> None:
        place = self.topics.parse(event.topic)
        if place == "leaves":
            self.release = decode_manifest(event.payload).release
        elif place == ServerTopic("status") and event.payload:
            self.servers.append(decode_message(event.payload, ServerStatus))
        elif place == DeviceTopic(self.name, "receipt"):
            for receipt in decode_message(event.payload, Receipts).receipts:
                self.receipts[receipt.update] = receipt
                if receipt.state in ("folded", "refused"):
                    self.outbox.pop(receipt.update, None)
                elif receipt.state == "unknown" and receipt.update in self.outbox:
                    self.send(receipt.update, self.outbox[receipt.update])

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.wait_until(lambda: self.link.window() > 0)
        self.link.publish(topic, payload, retain=retain)

    def queue(self) -> str:
        """Send an update that was made on the release that we have."""
        update_id, data = self.update(good_direction() * 0.1, base=self.release)
        self.outbox[update_id] = data
        self.send(update_id, data)
        return update_id

    def learn(self, times: int) -> None:
        for _ in range(times):
            before = self.release
            self.queue()
            self.wait_until(lambda before=before: self.release > before and not self.outbox)  # type: ignore[misc]

    def wait_until(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
        """Return the seconds that it took."""
        began = time.monotonic()
        while not condition():
            self.listen(0.05)
            assert time.monotonic() - began < patience_s, "nothing happened any more"
        return time.monotonic() - began

    @property
    def serving(self) -> str:
        """The instance that serves now, "" for none."""
        return self.servers[-1].instance if self.servers and self.servers[-1].online else ""


class Bench:
    """Makes servers and devices, and ends them."""

    def __init__(self, directory: Path) -> None:
        self.broker = LocalBroker(
            "mosquitto", directory=directory / "mqtt", settings=["log_type all"]
        )
        self.broker.start()
        self._directory = directory
        self._servers: list[ServerProcess] = []
        self._watchers: list[Watcher] = []

    def server(self, where: str, fleet: str = "farm", settings: str = "") -> ServerProcess:
        server = ServerProcess(self._directory / where, self.broker, fleet, settings)
        self._servers.append(server)
        return server

    def watcher(self, fleet: str = "farm", name: str = "dev-1") -> Watcher:
        self._watchers.append(Watcher(name, fleet, self.broker))
        return self._watchers[-1]

    @property
    def pushes(self) -> int:
        """How often one client pushed out another one."""
        return self.broker.log_file.read_text().count("already connected, closing old connection")

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.link.close()
        for server in self._servers:
            if server.process is not None and server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
                server.end()
        self.broker.kill()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrongly_copied_server_stands_by_and_catches_up_when_the_other_one_goes(
    bench: Bench, tmp_path: Path, protocol: str
) -> None:
    """As it happens when a server is moved and the old one left running."""
    old = bench.server("old", settings=f'protocol = "{protocol}"')
    new = bench.server("new", settings=f'protocol = "{protocol}"')
    old.start()
    device = bench.watcher()
    device.wait_until(lambda: device.release == 1)
    device.learn(2)
    old.copy_to(new.directory)
    device.learn(3)
    assert device.release == 6
    new.start()
    device.wait_until(lambda: "stands by and takes over when that one goes" in new.log)
    device.learn(2)
    first = device.serving
    assert bench.pushes == 0
    assert new.newest == 3, "it folds nothing"

    old.end(signal.SIGTERM)
    device.wait_until(lambda: device.serving not in ("", first))
    device.wait_until(lambda: device.release == 9)
    assert "registry is behind its fleet task=leaves newest=3 published=8" in new.log
    device.learn(1)
    assert (device.release, device.outbox) == (10, {})
    assert device.receipts[next(reversed(device.receipts))].state == "folded"
    assert "update refused" not in new.log

    old.start()  # and the mistake once more
    device.wait_until(lambda: old.log.count("another server (host") == 1)
    device.learn(1)
    assert device.release == 11
    assert bench.pushes == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_server_that_was_frozen_finds_that_another_one_serves(
    bench: Bench, protocol: str
) -> None:
    """The broker does not know yet that it is gone, so only its silence tells."""
    servers = [bench.server(name, settings=f'protocol = "{protocol}"') for name in ("one", "two")]
    one, two = servers
    device = bench.watcher()
    one.start()
    device.wait_until(lambda: device.release == 1)
    two.start()
    device.wait_until(lambda: "stands by" in two.log)
    first = device.serving
    assert one.process is not None
    one.process.send_signal(signal.SIGSTOP)
    took_s = device.wait_until(lambda: device.serving not in ("", first))
    print(f"taken over after {took_s:.1f} s")
    device.learn(1)
    one.process.send_signal(signal.SIGCONT)
    device.wait_until(lambda: "another server (host" in one.log)
    assert "session taken over: another server (host" in one.log
    device.learn(1)
    assert bench.pushes == 1
    assert [server.online for server in device.servers].count(True) == 2, "nothing flaps"


def test_a_killed_server_serves_again_within_seconds(bench: Bench) -> None:
    server = bench.server("one")
    server.start()
    device = bench.watcher()
    device.wait_until(lambda: device.serving)
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = device.serving
        server.end(number)
        device.wait_until(lambda: not device.serving)
        server.start()
        took_s = device.wait_until(lambda before=before: device.serving not in ("", before))  # type: ignore[misc]
        print(f"serves again after {took_s:.1f} s")
    assert "stands by" not in server.log
    assert bench.pushes == 0


def test_two_fleets_on_one_broker_do_not_hear_of_each_other(bench: Bench) -> None:
    """With nothing but their names in the configuration."""
    fleets = ("birds", "trf")
    servers = {fleet: bench.server(fleet, fleet) for fleet in fleets}
    devices = {fleet: bench.watcher(fleet) for fleet in fleets}
    for server in servers.values():
        server.start()
    for fleet, device in devices.items():
        device.wait_until(lambda device=device: device.release == 1)  # type: ignore[misc]
        device.report(Status(online=True, task="leaves", release=1))
        device.learn(2)
        assert device.servers[-1].tasks == ("leaves",)
        (row,) = read_report(servers[fleet].directory / "server").devices
        assert row.device == "dev-1"
    assert bench.pushes == 0
    for server in servers.values():
        assert "dropped" not in server.log
        assert "disconnected" not in server.log


def test_two_fleets_with_one_client_id_are_told_what_is_wrong(bench: Bench) -> None:
    servers = [bench.server(fleet, fleet, 'client_id = "aggregator"') for fleet in ("birds", "trf")]
    device = bench.watcher("birds")
    servers[0].start()
    device.wait_until(lambda: device.serving)
    servers[1].start()
    device.wait_until(
        lambda: all("give each fleet its own [fleet] client_id" in server.log for server in servers)
    )
    other = bench.watcher("trf")
    for _ in range(5):
        for watcher in (device, other):
            watcher.report(Status(online=True, task="leaves"))
    meaning = r"message dropped: no topic of fleet \w+: '[^']+'; the server of another fleet uses"
    device.wait_until(lambda: any(re.search(meaning, server.log) for server in servers))


def test_what_a_session_of_an_older_version_holds_is_sent_again(bench: Bench) -> None:
    """Its client id was ``edgefold-broker`` for every fleet."""
    server = bench.server("one", settings='client_id = "edgefold-broker"')
    server.start()
    device = bench.watcher()
    device.wait_until(lambda: device.release == 1)
    server.end(signal.SIGTERM)
    device.queue()
    device.listen(1.0)
    server.config.write_text(server.config.read_text().replace('client_id = "edgefold-broker"', ""))
    server.start()
    device.wait_until(lambda: device.release == 2 and not device.outbox)
    assert read_report(server.directory / "server").updates_folded_twice == 0


def test_the_broker_keeps_no_session_for_a_server_that_only_looked(bench: Bench) -> None:
    server = bench.server("one")
    device = bench.watcher()
    for _ in range(3):
        server.start()
        device.wait_until(lambda: device.serving)
        server.end(signal.SIGTERM)
        device.wait_until(lambda: not device.serving)
    names = set(re.findall(r"as (edgefold-broker-farm\S*) ", bench.broker.log_file.read_text()))
    assert len(names) == 4, "one of the fleet, and one for each start"
    passing = re.findall(
        r"as edgefold-broker-farm-\w+ \(p\d, (c\d)", bench.broker.log_file.read_text()
    )
    assert set(passing) == {"c1"}


def test_a_stopped_server_is_seen_by_whoever_reads_its_topic(bench: Bench) -> None:
    server = bench.server("one")
    server.start()
    device = bench.watcher()
    device.wait_until(lambda: device.serving)
    status = device.servers[-1]
    assert status.tasks == ("leaves",)
    assert abs(time.time() - status.since) < PATIENCE_S
    for number in (signal.SIGKILL, signal.SIGTERM):
        server.end(number)
        device.wait_until(lambda: not device.servers[-1].online)
        server.start()
        device.wait_until(lambda: device.serving)


def test_nobody_but_servers_hears_the_questions_of_one_that_stands_by(bench: Bench) -> None:
    one, two = bench.server("one"), bench.server("two")
    one.start()
    device = bench.watcher()
    device.wait_until(lambda: device.serving)
    two.start()
    device.wait_until(lambda: "stands by" in two.log)
    heard = len(device.servers)
    before = device.link.traffic()
    ends_at = time.monotonic() + 25.0
    device.wait_until(lambda: time.monotonic() > ends_at)
    assert len(device.servers) == heard
    assert device.link.traffic().bytes_down - before.bytes_down <= 4, "a PINGRESP or two"


def test_a_word_about_who_serves_cannot_forge_a_log_line(bench: Bench) -> None:
    one = bench.server("one")
    device = bench.watcher()
    forged = ServerStatus(online=True, instance="ff", host="hub\n2026 ERROR forged", since=1.0)
    answer = json.dumps(
        {"online": True, "instance": forged.instance, "host": forged.host, "since": forged.since}
    ).encode()
    one.start()
    device.wait_until(lambda: device.serving)
    one.end()
    with pytest.raises(PayloadError):
        device.topics.parse("edgefold/1/farm/server/other")
    device.publish(device.topics.server_status, answer, retain=True)
    one.start()

    def answered() -> bool:
        if device.link.window() > 0:
            device.link.publish(device.topics.server_ask, answer)
        device.listen(0.5)
        return "stands by" in one.log

    device.wait_until(answered)
    assert "host hub?2026 ERROR forged, since 1 Jan" in one.log
