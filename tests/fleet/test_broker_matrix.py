"""Brokers as they are found in the field: a round is folded, or both sides say what is refused.

A real server and a real agent over each; a row is a broker's settings and what is expected of them.
Where people look is `edgefold-agent status` and `edgefold-broker status`: what those show is read.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from fresh_module import fresh_module
from other_brokers import find, nats, rabbitmq

from broker.lease.server_state import read_state
from broker.reports.fleet_report import read_report
from edge_agent.reports.status_file import read_local_status
from edge_agent.samples.sample_store import add_samples
from models.errors import EdgefoldError
from tools.local_fleet.local_broker import LocalBroker, find_mosquitto
from tools.local_fleet.process import Process, stop_all

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
SAID_S = 45.0  # an outage is said after half a minute
QUICK = (
    "[inference]\nenabled = false\n[training]\nmax_load = 1000.0\nmax_celsius = 200.0\n"
    "min_free_mb = 0\ncheck_seconds = 0.2\nmin_minutes = 0\n"
)
PLUGIN = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """The agent's tiny task, large enough that releases and updates have several chunks."""
    return fresh_module("tiny_fleet", FEATURES=4000)


class Farm:
    """A server and one device, each a process of its own."""

    def __init__(self, tiny: ModuleType, directory: Path, port: int, fleet: Sequence[str]) -> None:
        self.tiny = tiny
        self.directory = directory
        bundle = directory / "bundle"
        bundle.mkdir()
        (bundle / "infer.onnx").write_bytes(tiny.infer_model())
        (bundle / "train.onnx").write_bytes(tiny.train_model())
        (bundle / "spec.json").write_bytes(tiny.encode_spec(tiny.tiny_spec()))
        section = "\n".join(
            ["[fleet]", 'name = "orchard"', f'broker = "mqtt://127.0.0.1:{port}"', *fleet, ""]
        )
        (directory / "broker.toml").write_text(
            f'{section.replace("{who}", "server")}[storage]\ndirectory = "server"\n'
            '[[task]]\nbundle = "bundle"\n'
            "[task.aggregation]\nupdates = 1\nseconds = 1\nmin_seconds = 0\npatience = 0\n"
            "[task.codec]\nkeep = 1.0\n"
        )
        (directory / "agent.toml").write_text(
            f'[device]\nid = "board-1"\ntask = "{tiny.TASK}"\n{section.replace("{who}", "board-1")}'
            f'[storage]\ndirectory = "device"\n{QUICK}'
        )
        self.server, self.device = (
            Process(
                name,
                [module, "run", "--config", str(directory / f"{config}.toml")],
                directory / f"{name}.log",
            )
            for name, module, config in (
                ("server", "broker", "broker"),
                ("device", "edge_agent", "agent"),
            )
        )

    def start(self, stack: ExitStack) -> None:
        stack.callback(stop_all, [self.device, self.server])
        self.server.start()
        self.device.start()
        self.learn(1)

    def learn(self, seed: int) -> None:
        """Give the device samples that it does not have."""
        inbox = self.directory / "device" / "inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        add_samples(inbox, *self.tiny.blobs(60, seed))

    def folded(self) -> int:
        with contextlib.suppress(EdgefoldError):
            report = read_report(self.directory / "server")
            assert report.updates_folded_twice == 0
            return sum(row.updates_folded for row in report.devices)
        return 0

    def device_says(self) -> str:
        """Return the problems that `edgefold-agent status` shows."""
        told = read_local_status(self.directory / "device" / "status.json")
        return " | ".join(problem.text for problem in told.problems) if told else ""

    def server_says(self) -> str:
        """Return what `edgefold-broker status` shows of the server itself."""
        state = read_state(self.directory / "server")
        return f"{state.reason} | {state.problem}" if state else ""

    def wait(self, claim: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + within_s
        while not claim():
            assert time.monotonic() < deadline, (
                f"device: {self.device_says()}\nserver: {self.server_says()}\n"
                f"{self.server.last_words()}\n{self.device.last_words()}"
            )
            time.sleep(0.1)

    def wait_for_refusal(self, row: "Refusal") -> None:
        """Wait until both sides say what ``row`` expects."""
        self.wait(
            lambda: row.device in self.device_says() and row.server in self.server_says(), SAID_S
        )


StartFarm = Callable[..., Farm]


@pytest.fixture
def start_farm(tiny: ModuleType, tmp_path: Path) -> Iterator[StartFarm]:
    """Return a function that starts a `Farm` at a port."""
    with ExitStack() as stack:

        def start(port: int, fleet: Sequence[str] = ()) -> Farm:
            directory = tmp_path / f"farm-{port}"
            directory.mkdir()
            farm = Farm(tiny, directory, port, fleet)
            farm.start(stack)
            return farm

        yield start


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[Callable[[Sequence[str]], LocalBroker]]:
    """Return a function that starts Mosquitto with more settings."""
    with ExitStack() as stack:

        def start(settings: Sequence[str]) -> LocalBroker:
            directory = tmp_path / f"mqtt-{len(list(tmp_path.glob('mqtt-*')))}"
            return stack.enter_context(
                LocalBroker("mosquitto", directory=directory, settings=settings)
            )

        yield start


class Row(NamedTuple):
    """Settings of Mosquitto with which a fleet works."""

    name: str
    settings: tuple[str, ...]
    fleet: tuple[str, ...] = ()  # of our own section
    is_quick: bool = False  # run with every change


V311 = ('protocol = "3.1.1"',)
WORKING = [
    Row(
        "one small packet at a time", ("max_inflight_messages 1", "max_packet_size 4096"), (), True
    ),
    Row("one at a time, 3.1.1", ("max_inflight_messages 1",), V311),
    Row("messages of 8 KiB", ("message_size_limit 8192",), is_quick=True),
    Row("queue of one", ("max_queued_messages 1", "queue_qos0_messages false")),
    Row(
        "user name is client id",
        ("use_username_as_clientid true",),
        ('username = "{who}"', 'password = ""'),
    ),
    Row("packets of 1500 bytes", ("max_packet_size 1500",)),
    Row(
        "what changes nothing for us",
        (
            "max_keepalive 10",
            "max_qos 1",
            "max_topic_alias 0",
            "allow_zero_length_clientid false",
            "persistent_client_expiration 1h",
            "upgrade_outgoing_qos true",
            "check_retain_source false",
        ),
    ),
]


@needs_mosquitto
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.is_quick else (pytest.mark.slow,))
        for row in WORKING
    ],
)
def test_a_round_is_folded_whatever_mosquitto_is_set_to(
    row: Row,
    start_mosquitto: Callable[[Sequence[str]], LocalBroker],
    start_farm: StartFarm,
) -> None:
    farm = start_farm(start_mosquitto(row.settings).port, row.fleet)
    farm.wait(farm.folded)
    farm.wait(lambda: not farm.device_says() and farm.server_says().strip(" |") == "")


class Refusal(NamedTuple):
    """Settings of Mosquitto with which no fleet works, and what both sides say then."""

    name: str
    settings: tuple[str, ...]
    device: str
    server: str
    fleet: tuple[str, ...] = ()
    is_quick: bool = False


REFUSING = [
    Refusal(
        "no retained messages",
        ("retain_available false",),
        device="the broker keeps no retained messages",
        server="the broker keeps no retained messages",
        is_quick=True,
    ),
    Refusal(
        "QoS 0 only",
        ("max_qos 0",),
        device="the broker takes messages of QoS 0 only",
        server="the broker takes messages of QoS 0 only",
    ),
    Refusal(
        "packets of 500 bytes",
        ("max_packet_size 500",),
        device="the broker takes packets of at most 500 bytes",
        server="the broker takes packets of at most 500 bytes",
    ),
    Refusal(
        "one user name is the client id of all",
        ("use_username_as_clientid true",),
        device="does the broker take the user name for the client id",
        server="does the broker take the user name for the client id",
        fleet=('username = "farm"', 'password = ""'),
    ),
]
# What is known by silence alone takes half a minute: all of them at once.
SILENT = [
    Refusal(
        "no retained messages, 3.1.1",
        ("retain_available false",),
        device="it keeps no retained messages",
        server="it keeps no retained messages",
        fleet=V311,
    ),
    Refusal(
        "packets of 4 KiB, 3.1.1",
        ("max_packet_size 4096",),
        device="",  # it gets no release, and is told nothing
        server="raise its limit of a message's size",
        fleet=V311,
    ),
]


@needs_mosquitto
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.is_quick else (pytest.mark.slow,))
        for row in REFUSING
    ],
)
def test_what_mosquitto_refuses_is_said_on_both_sides(
    row: Refusal,
    start_mosquitto: Callable[[Sequence[str]], LocalBroker],
    start_farm: StartFarm,
) -> None:
    start_farm(start_mosquitto(row.settings).port, row.fleet).wait_for_refusal(row)


@needs_mosquitto
@pytest.mark.slow
def test_what_mosquitto_drops_in_silence_is_said_on_both_sides(
    start_mosquitto: Callable[[Sequence[str]], LocalBroker], start_farm: StartFarm
) -> None:
    farms = [start_farm(start_mosquitto(row.settings).port, row.fleet) for row in SILENT]
    for farm, row in zip(farms, SILENT, strict=True):
        farm.wait_for_refusal(row)


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.skipif(PLUGIN is None, reason="mosquitto's dynamic security plugin is not there")
def test_a_broker_that_forbids_wildcards_is_named_by_the_server(
    tmp_path: Path,
    start_mosquitto: Callable[[Sequence[str]], LocalBroker],
    start_farm: StartFarm,
) -> None:
    forbidden = [
        {"acltype": "subscribeLiteral", "topic": f"edgefold/1/orchard/device/+/{name}"}
        for name in ("status", "request", "update/+/+")
    ]
    rules = {
        "defaultACLAccess": dict.fromkeys(
            ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe"), True
        ),
        "roles": [{"rolename": "all", "acls": [{**acl, "allow": False} for acl in forbidden]}],
        "groups": [{"groupname": "all", "roles": [{"rolename": "all"}]}],
        "anonymousGroup": "all",
    }
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    settings = (f"plugin {PLUGIN}", f"plugin_opt_config_file {tmp_path / 'rules.json'}")
    farm = start_farm(start_mosquitto(settings).port)
    farm.wait(
        lambda: (
            "refuses to let this server read device/+/request, device/+/status, "
            "device/+/update/+/+: its ACL must allow that to it" in farm.server_says()
        )
    )


def check_rounds(farm: Farm) -> None:
    """A round is folded, and another one after the server was away."""
    farm.wait(farm.folded)
    farm.server.kill()
    farm.learn(2)
    farm.server.start()
    farm.wait(lambda: farm.folded() >= 2)
    farm.wait(lambda: not farm.device_says() and farm.server_says().strip(" |") == "")


GUEST = ('username = "guest"', 'password = "guest"')


@pytest.mark.slow
@pytest.mark.skipif(find("nats-server") is None, reason="nats-server is not installed")
def test_a_round_is_folded_over_nats(start_farm: StartFarm, tmp_path: Path) -> None:
    with nats(tmp_path / "nats") as port:
        check_rounds(start_farm(port))


@pytest.mark.slow
@pytest.mark.skipif(find("rabbitmq-server") is None, reason="rabbitmq-server is not installed")
def test_a_round_is_folded_over_rabbitmq(start_farm: StartFarm, tmp_path: Path) -> None:
    with rabbitmq(tmp_path / "rabbit") as port:
        check_rounds(start_farm(port, GUEST))
