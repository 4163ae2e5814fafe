"""The server as a real process beside a real Mosquitto: killed, wiped, asked."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from loop_disk import SmallDisk
from server_world import CONFIG, FakeDevice, good_direction, linear_spec, write_bundle

from broker.fleet_report import read_report
from models.payload.manifest import decode_manifest
from models.payload.messages import Receipts, Request, Status, decode_message
from models.transport.link import Connected, Received
from models.transport.mqtt import MqttLink
from models.transport.topics import DeviceTopic, Topics
from tools.local_broker import LocalBroker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


def _hasty(task: str) -> str:
    """Let releases follow each other at once."""
    return task.replace(
        "[task.aggregation]\n", "[task.aggregation]\nmin_seconds = 0\npatience = 0\n"
    )


class ServerProcess:
    """``python -m broker run`` in a directory of its own."""

    def __init__(self, directory: Path, broker: LocalBroker, fleet: str, task: str) -> None:
        self.directory = directory
        self.config = directory / "broker.toml"
        write_bundle(directory / "bundle", linear_spec())
        text = CONFIG.replace('name = "test"', f'name = "{fleet}"')
        self.config.write_text(text.replace("mqtt://localhost", broker.url) + _hasty(task))
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

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "broker", *arguments, "--config", str(self.config)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def log(self) -> str:
        return (self.directory / "server.log").read_text()


class MqttDevice(FakeDevice):
    """A `FakeDevice` over MQTT that asks for receipts as an agent does."""

    def __init__(self, name: str, topics: Topics, broker: LocalBroker) -> None:
        link = MqttLink(broker.host, broker.port, client_id=f"{topics.fleet}-{name}", will=None)
        super().__init__(name, topics, link, linear_spec())
        self.outbox: dict[str, bytes] = {}
        self.manifests: list[int] = []
        self.asked_at = time.monotonic()
        link.start()

    def listen(self, timeout_s: float = 0.0) -> None:
        for event in self.link.poll(timeout_s):
            if isinstance(event, Connected):
                self.link.subscribe([self.topics.receipt(self.name), self.topics.release("leaves")])
                if self.outbox:
                    self.asked_at = 0.0
            elif isinstance(event, Received):
                self.take(event)
        if self.outbox and time.monotonic() - self.asked_at > 1.0 and self.link.window():
            self.asked_at = time.monotonic()
            self.request(Request(receipts=tuple(self.outbox)[:64]))

    def take(self, event: Received) -> None:
        self.link.acknowledge(event)
        if self.topics.parse(event.topic) == "leaves":
            self.manifests.append(decode_manifest(event.payload).release)
        elif self.topics.parse(event.topic) == DeviceTopic(self.name, "receipt"):
            for receipt in decode_message(event.payload, Receipts).receipts:
                self.told.append(receipt)
                self.receipts[receipt.update] = receipt
                if receipt.state in ("folded", "refused"):
                    self.outbox.pop(receipt.update, None)
                elif receipt.state == "unknown" and receipt.update in self.outbox:
                    self.send(receipt.update, self.outbox[receipt.update])

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.link.window():
            for event in self.link.poll(0.1):
                if isinstance(event, Received):
                    self.take(event)
            assert time.monotonic() < deadline
        self.link.publish(topic, payload, retain=retain)

    def queue(self, delta: "np.ndarray", *, base: int = 1) -> str:
        update_id, data = self.update(delta, base=base)
        self.outbox[update_id] = data
        self.send(update_id, data)
        return update_id


def wait_until(condition: Callable[[], object], *devices: MqttDevice) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        for device in devices:
            device.listen(0.05)
        if not devices:
            time.sleep(0.05)
        assert time.monotonic() < deadline, "nothing happened any more"


@pytest.fixture
def make_server(
    tmp_path: Path, mosquitto: LocalBroker, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], ServerProcess]]:
    servers = []

    def make(task: str) -> ServerProcess:
        fleet = f"fleet-{abs(hash(request.node.nodeid)) % 10**9}"
        server = ServerProcess(tmp_path, mosquitto, fleet, task)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        if server.process is not None and server.process.poll() is None:
            server.kill()


@pytest.fixture
def make_device(
    mosquitto: LocalBroker, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], MqttDevice]]:
    devices: list[MqttDevice] = []

    def make(name: str) -> MqttDevice:
        fleet = f"fleet-{abs(hash(request.node.nodeid)) % 10**9}"
        devices.append(MqttDevice(name, Topics(fleet), mosquitto))
        wait_until(lambda: devices[-1].link.window(), devices[-1])
        return devices[-1]

    yield make
    for device in devices:
        device.link.close()


def test_the_whole_loop_runs_over_mosquitto(
    make_server: Callable[[str], ServerProcess], make_device: Callable[[str], MqttDevice]
) -> None:
    server = make_server("[task.aggregation]\nupdates = 2\n")
    devices = [make_device("dev-1"), make_device("dev-2")]
    wait_until(lambda: all(device.manifests for device in devices), *devices)
    for device in devices:
        device.report(Status(online=True, task="leaves", release=1, updates_made=1))
        device.queue(good_direction())
    wait_until(lambda: all(device.manifests[-1] == 2 for device in devices), *devices)
    wait_until(lambda: not any(device.outbox for device in devices), *devices)

    status = server.command("status", "--json")
    report = json.loads(status.stdout)
    assert [row["device"] for row in report["devices"]] == ["dev-1", "dev-2"]
    assert [row["updates_folded"] for row in report["devices"]] == [1, 1]
    assert report["updates_folded_twice"] == 0
    assert "dev-1" in server.command("status").stdout
    assert "2 " in server.command("releases").stdout

    target = server.directory / "two.onnx"
    assert server.command("releases", "--export", "2", str(target)).returncode == 0
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
    first = onnx.load(server.directory / "bundle" / "infer.onnx").graph.initializer
    before = {t.name: onnx.numpy_helper.to_array(t) for t in first}
    step = good_direction()[:18].reshape(6, 3)
    np.testing.assert_allclose(weights["weight"], before["weight"] + step, atol=1e-6)
    np.testing.assert_array_equal(weights["own_bias"], before["own_bias"])

    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert "Traceback" not in server.log


def test_a_broker_that_lost_everything_gets_it_back(
    make_server: Callable[[str], ServerProcess],
    make_device: Callable[[str], MqttDevice],
    mosquitto: LocalBroker,
) -> None:
    make_server("[task.aggregation]\nupdates = 1\n")
    device = make_device("dev-1")
    wait_until(lambda: device.manifests, device)
    device.queue(good_direction())
    wait_until(lambda: device.manifests[-1] == 2, device)
    mosquitto.kill()
    mosquitto.wipe()
    mosquitto.start()
    device.manifests.clear()
    wait_until(lambda: device.manifests, device)
    assert device.manifests[-1] == 2
    device.queue(good_direction(), base=2)
    wait_until(lambda: device.manifests[-1] == 3 and not device.outbox, device)


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path], SmallDisk]) -> SmallDisk:
    """A disk where the server keeps its state."""
    return mount_small_disk(tmp_path / "server")


def test_a_start_on_a_full_disk_is_a_start(
    small_disk: SmallDisk,
    make_server: Callable[[str], ServerProcess],
    make_device: Callable[[str], MqttDevice],
) -> None:
    """After a stop in good order, which leaves a database without its log."""
    server = make_server("[task.aggregation]\nupdates = 1\n")
    device = make_device("dev-1")
    wait_until(lambda: device.manifests, device)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    small_disk.fill()
    server.start()
    time.sleep(3.0)
    assert server.process.poll() is None, server.log
    device.queue(good_direction())  # which may even find room in what the ballast left
    device.listen(2.0)
    assert server.process.poll() is None, server.log
    small_disk.drain()
    wait_until(lambda: device.manifests[-1] == 2 and not device.outbox, device)


def test_a_killed_server_loses_nothing_and_folds_nothing_twice(
    make_server: Callable[[str], ServerProcess],
    make_device: Callable[[str], MqttDevice],
) -> None:
    """Ten SIGKILLs at random moments, while two devices send sixty updates."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    server = make_server("[task.aggregation]\nupdates = 3\nseconds = 1\n")
    devices = [make_device("dev-1"), make_device("dev-2")]
    wait_until(lambda: all(device.manifests for device in devices), *devices)
    sent = 0
    for _ in range(10):
        deadline = time.monotonic() + generator.uniform(0.02, 1.2)
        while time.monotonic() < deadline:
            if sent < 60:
                device = devices[sent % 2]
                device.queue(good_direction() * 0.01, base=device.manifests[-1])
                sent += 1
            for device in devices:
                device.listen(0.01)
        server.kill()
        server.start()
    while sent < 60:
        devices[sent % 2].queue(good_direction() * 0.01, base=devices[sent % 2].manifests[-1])
        sent += 1
    wait_until(lambda: not any(device.outbox for device in devices), *devices)
    report = read_report(server.directory / "server")
    assert [device.updates_folded for device in report.devices] == [30, 30]
    assert (report.updates_folded, report.updates_folded_twice) == (60, 0)
    assert sum(release.updates for release in report.tasks[0].releases) == 60
    assert "Traceback" not in server.log
