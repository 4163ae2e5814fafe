"""The server as a real process beside a real Mosquitto: killed, wiped, asked."""

import contextlib
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

from broker.reports.device_report import DeviceReport
from broker.reports.fleet_report import FleetReport, read_report
from models.errors import EdgefoldError
from models.protocol.manifest import decode_manifest
from models.protocol.messages import Receipts, Request, Status, decode_message
from models.protocol.topics import DeviceTopic, Topics
from models.transport.link import WINDOW, Connected, Received
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker

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
        text = CONFIG.replace('name = "test"', f'name = "{fleet}"\nclient_id = "{fleet}-server"')
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
        self.broker = broker
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


# What `edgefold-broker status` and `forget` say of it


def seen_in(server: ServerProcess) -> FleetReport:
    return read_report(server.directory / "server")


def device_in(server: ServerProcess, name: str) -> DeviceReport | None:
    with contextlib.suppress(EdgefoldError):  # the server is just being started
        return {row.device: row for row in seen_in(server).devices}.get(name)
    return None


def problem_in(server: ServerProcess, name: str) -> str:
    row = device_in(server, name)
    return row.status.problem if row is not None and row.status is not None else ""


def is_up(server: ServerProcess) -> bool:
    with contextlib.suppress(EdgefoldError):
        return seen_in(server).server.connected
    return False


def test_a_restart_of_the_server_hears_nobody_by_itself(
    make_server: Callable[[str], ServerProcess], make_device: Callable[[str], MqttDevice]
) -> None:
    """Neither who is away nor who is there, nor what the broker queued meanwhile."""
    server = make_server("")
    there, away = make_device("there"), make_device("away")
    wait_until(lambda: there.manifests and away.manifests, there, away)
    for device in (there, away):
        device.report(Status(online=True, task="leaves", release=1, problem="before"))
    away.report(Status(online=False, task="leaves"))
    wait_until(lambda: problem_in(server, "there") == "before", there, away)
    wait_until(lambda: (row := device_in(server, "away")) and row.presence == "away", there, away)
    before = {row.device: row.heard for row in seen_in(server).devices}
    assert all(before.values())

    server.kill()
    there.report(Status(online=True, task="leaves", release=1, problem="meanwhile"))
    wait_until(lambda: there.link.window() == WINDOW, there)
    time.sleep(2.0)
    server.start()
    wait_until(lambda: problem_in(server, "there") == "meanwhile", there)
    wait_until(lambda: is_up(server), there)
    assert {row.device: row.heard for row in seen_in(server).devices} == before

    there.report(Status(online=True, task="leaves", release=1, problem="afterwards"))
    wait_until(lambda: problem_in(server, "there") == "afterwards", there)
    after = {row.device: row.heard for row in seen_in(server).devices}
    assert after["there"] > before["there"] + 2.0
    assert after["away"] == before["away"]


class AgentProcess:
    """A real agent of the server's fleet that has no data."""

    def __init__(self, server: ServerProcess, broker: LocalBroker, fleet: str, task: str) -> None:
        directory = server.directory / "agent"
        directory.mkdir()
        (directory / "agent.toml").write_text(
            f'[device]\nid = "cam-1"\ntask = "{task}"\n[fleet]\nname = "{fleet}"\n'
            f'broker = "{broker.url}"\n[storage]\ndirectory = "{directory / "state"}"\n'
            "[inference]\nenabled = false\n"
        )
        command = [sys.executable, "-m", "edge_agent", "run", "--config"]
        with open(directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                [*command, str(directory / "agent.toml")], cwd=ROOT, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def make_agent(
    mosquitto: LocalBroker, request: pytest.FixtureRequest
) -> Iterator[Callable[[ServerProcess, str], AgentProcess]]:
    agents: list[AgentProcess] = []

    def make(server: ServerProcess, task: str) -> AgentProcess:
        fleet = f"fleet-{abs(hash(request.node.nodeid)) % 10**9}"
        agents.append(AgentProcess(server, mosquitto, fleet, task))
        return agents[-1]

    yield make
    for agent in agents:
        agent.kill()


def test_an_agent_that_is_killed_is_away(
    make_server: Callable[[str], ServerProcess],
    make_agent: Callable[[ServerProcess, str], AgentProcess],
) -> None:
    server = make_server("")
    agent = make_agent(server, "leaves")
    wait_until(lambda: (row := device_in(server, "cam-1")) and row.is_newest)
    row = device_in(server, "cam-1")
    assert row is not None
    assert (row.presence, row.problems) == ("online", ())
    agent.kill()
    wait_until(lambda: (row := device_in(server, "cam-1")) and row.presence == "away")
    assert "1 away" in server.command("status").stdout


def test_a_task_that_nobody_serves_is_said_once_in_the_log_and_in_the_status(
    make_server: Callable[[str], ServerProcess],
    make_agent: Callable[[ServerProcess, str], AgentProcess],
) -> None:
    server = make_server("")
    make_agent(server, "leavez")
    wait_until(lambda: device_in(server, "cam-1"))
    wait_until(lambda: is_up(server))
    said = "cam-1 asks for task leavez, which is not served here (served: leaves)"
    assert said in server.command("status").stdout
    report = json.loads(server.command("status", "--json").stdout)
    assert report["unserved"] == [{"task": "leavez", "devices": ["cam-1"]}]
    assert "asks for task leavez" in report["devices"][0]["problems"][0]
    assert server.log.count("device asks for a task that is not served here") == 1


def test_the_status_says_how_the_server_itself_is(
    make_server: Callable[[str], ServerProcess], mosquitto: LocalBroker
) -> None:
    server = make_server("")
    wait_until(lambda: is_up(server))
    assert server.command("status").stdout.startswith("the server runs, since ")
    mosquitto.kill()
    try:
        wait_until(lambda: not is_up(server))
        said = server.command("status").stdout.splitlines()[0]
        assert "has not been connected to the MQTT broker for" in said
        wait_until(lambda: "nothing listens on" in seen_in(server).server.reason)
    finally:
        mosquitto.start()
    wait_until(lambda: is_up(server))
    server.kill()
    said = server.command("status").stdout.splitlines()[0]
    assert said.startswith("the server is not running (last seen ")
    assert said.endswith("start it with systemctl start edge-broker")
    report = json.loads(server.command("status", "--json").stdout)
    assert (report["server"]["running"], report["server"]["connected"]) == (False, False)


def retained_status(device: MqttDevice, name: str) -> bool:
    """Whether the broker retains a status of ``name``; ``device`` asks it on a line of its own."""
    link = MqttLink(
        device.broker.host,
        device.broker.port,
        client_id=f"{device.topics.fleet}-onlooker-{random.randrange(2**32)}",
        will=None,
    )
    link.start()
    link.subscribe([device.topics.all_statuses])
    found = set()
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        found |= {e.topic for e in link.poll(0.2) if isinstance(e, Received) and e.retained}
    link.close()
    return device.topics.status(name) in found


def test_a_device_is_forgotten_by_a_running_server(
    make_server: Callable[[str], ServerProcess], make_device: Callable[[str], MqttDevice]
) -> None:
    server = make_server("[task.aggregation]\nupdates = 1\n")
    device = make_device("dev-1")
    wait_until(lambda: device.manifests, device)
    device.report(Status(online=True, task="leaves", release=1))
    update_id, data = device.update(good_direction())
    device.outbox[update_id] = data
    device.send(update_id, data)
    wait_until(lambda: not device.outbox, device)
    assert retained_status(device, "dev-1")
    done = server.command("forget", "dev-1")
    assert (done.returncode, done.stdout) == (0, "forgot dev-1\n")
    assert device_in(server, "dev-1") is None
    wait_until(lambda: "device forgotten" in server.log)
    wait_until(lambda: not retained_status(device, "dev-1"), device)
    device.told.clear()
    device.send(update_id, data)  # it comes back with an update that was folded
    wait_until(lambda: device.told, device)
    # What it was told may be of before, when it comes late: the row is of what it sent now.
    wait_until(lambda: device_in(server, "dev-1") is not None, device)
    assert device.state(update_id) == "folded"
    assert seen_in(server).updates_folded_twice == 0
    done = server.command("forget", "dev-2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no device 'dev-2' here; did you mean dev-1?" in done.stderr


def test_a_device_is_forgotten_by_the_next_start_however_often_it_is_killed(
    make_server: Callable[[str], ServerProcess], make_device: Callable[[str], MqttDevice]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    server = make_server("")
    device = make_device("dev-1")
    wait_until(lambda: device.manifests, device)
    device.report(Status(online=True, task="leaves", release=1))
    wait_until(lambda: device_in(server, "dev-1"), device)
    server.kill()
    device.report(Status(online=False, task="leaves"))  # which the broker queues
    done = server.command("forget", "dev-1")
    assert done.stdout == "the server is not running: it will forget dev-1 when it is started\n"
    report = seen_in(server).devices[0]
    assert report.is_being_forgotten
    for _ in range(5):
        server.start()
        time.sleep(generator.uniform(0.5, 3.0))
        server.kill()
    server.start()
    wait_until(lambda: is_up(server) and device_in(server, "dev-1") is None, device)
    wait_until(lambda: not retained_status(device, "dev-1"), device)
    assert device_in(server, "dev-1") is None
    device.report(Status(online=True, task="leaves", release=1))
    wait_until(lambda: (row := device_in(server, "dev-1")) and row.online, device)
