"""docs/mosquitto.md, run as it stands: its files, its commands, a real Mosquitto, server and agent.

What differs from a reader's machine, and nothing else: directories lie below one of ours, the
address is 127.0.0.1, ports are free ones and listen there only, Mosquitto stays the user that runs
the test, and the two TOML files get sections below the page's own that make it quick.
``sudo``, ``chown``, ``ufw`` and ``systemctl`` are small scripts of ours.
"""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from fresh_module import fresh_module

from broker.reports.fleet_report import read_report
from edge_agent.samples.sample_store import add_samples
from models.access.credentials import Login
from models.access.tls_files import TlsFiles
from models.errors import EdgefoldError
from models.transport.link import Connected, Disconnected, Event, Published, Received
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import find_mosquitto, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mosquitto.md"
PATIENCE_S = 150.0  # a refused device tries again within a minute
FLEET = "edgefold/1/farm"
BY_HAND = "Try it by hand"  # with mosquitto-clients, which Mosquitto does not bring along
QUICK = {
    "agent.toml": (
        '[storage]\ndirectory = "/var/lib/edge-agent"\n[inference]\nenabled = false\n'
        "[training]\nmax_load = 1000.0\nmin_free_mb = 0\ncheck_seconds = 0.2\nmin_minutes = 0\n"
    ),
    "broker.toml": "[task.aggregation]\nupdates = 1\nseconds = 1\nmin_seconds = 0\npatience = 0\n",
}
SYSTEMCTL = """#!/bin/bash
pid=$(cat {root}/run/$2.pid 2>/dev/null)
if [ "$1" = reload ]; then kill -HUP $pid; exit; fi
if [ -n "$pid" ]; then
    kill $pid
    while kill -0 $pid 2>/dev/null; do sleep 0.05; done
fi
setsid bash {root}/units/$2 </dev/null >>{root}/$2.log 2>&1 &
echo $! >{root}/run/$2.pid
[ $2 != mosquitto ] && exit
for port in $(sed -n 's/^listener \\([0-9]*\\).*/\\1/p' {root}/etc/mosquitto/conf.d/*.conf); do
    for _ in $(seq 200); do
        (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null && break
        sleep 0.05
    done
done
"""


class Step(NamedTuple):
    """A file to write, or commands when ``path`` is empty."""

    section: str
    path: str
    text: str


def read_page() -> list[Step]:
    steps = []
    section = path = ""
    for part in re.split(r"^(```\w+\n.*?^```\n)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        if not part.startswith("```"):
            headings = re.findall(r"^#+ (.*)$", part, flags=re.MULTILINE)
            section = headings[-1] if headings else section
            last = part.strip().splitlines()[-1] if part.strip() else ""
            named = re.match(r"`(/etc/[^`]+)`", last)
            path = named[1] if named else ""
            continue
        language, _, text = part.removeprefix("```").removesuffix("```\n").partition("\n")
        assert (language == "sh") == (not path), f"{section}: a file without a name, {text[:60]}"
        steps.append(Step(section, path, text))
    return steps


class Farm:
    """A machine with what the page has told so far."""

    def __init__(self, root: Path, tiny: ModuleType) -> None:
        self.root = root
        self.tiny = tiny
        self.ports = {port: free_port() for port in ("1883", "1884", "8883")}
        self.steps = read_page()
        self.samples = 0
        for name in ("run", "units", "stubs", "home", "var/lib/mosquitto", "var/log/mosquitto"):
            (root / name).mkdir(parents=True)
        (root / "etc/mosquitto/certs").mkdir(parents=True)
        (root / "etc/mosquitto/conf.d").mkdir()
        bundle = root / "srv/edgefold/birds"
        bundle.mkdir(parents=True)
        (bundle / "infer.onnx").write_bytes(tiny.infer_model())
        (bundle / "train.onnx").write_bytes(tiny.train_model())
        (bundle / "spec.json").write_bytes(tiny.encode_spec(tiny.tiny_spec(task="birds")))
        self.stub("sudo", '#!/bin/sh\nexec "$@"\n')
        self.stub("chown", "#!/bin/sh\n")
        self.stub("ufw", "#!/bin/sh\n")
        self.stub("systemctl", SYSTEMCTL.format(root=root))
        self.unit("mosquitto", f"{find_mosquitto()} -c {root}/etc/mosquitto/mosquitto.conf")
        for unit, module in (("edge-agent", "edge_agent"), ("edge-broker", "broker")):
            config = root / "etc/edgefold" / f"{unit.removeprefix('edge-')}.toml"
            self.unit(unit, f"{sys.executable} -m {module} run --config {config}")

    def stub(self, name: str, text: str) -> None:
        (self.root / "stubs" / name).write_text(text)
        (self.root / "stubs" / name).chmod(0o755)

    def unit(self, name: str, command: str) -> None:
        (self.root / "units" / name).write_text(f"cd {ROOT}\nexec {command}\n")

    def here(self, text: str) -> str:
        """Return the page's ``text`` for this machine."""
        text = re.sub(r"(?<![\w.])/(etc|var|srv)/", rf"{self.root}/\1/", text)
        text = text.replace("192.0.2.10", "127.0.0.1")
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        return re.sub(r"^(listener \d+)$", r"\1 127.0.0.1", text, flags=re.MULTILINE)

    def upto(self, section: str) -> None:
        """Do what the page says up to the end of ``section``, as far as it is not done yet."""
        while any(step.section == section for step in self.steps):
            step = self.steps.pop(0)
            if step.section == BY_HAND and shutil.which("mosquitto_sub") is None:
                continue
            if step.path:
                self.write(Path(self.here(step.path)), step.text)
            else:
                self.run(step.text)

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text += QUICK.get(path.name, "")
        if path.name == "mosquitto.conf" and os.geteuid() == 0:
            text += f"user {pwd.getpwuid(0).pw_name}\n"
        path.write_text(self.here(text))

    def run(self, text: str) -> str:
        environment = {**os.environ, "PATH": f"{self.root}/stubs:{os.environ['PATH']}:/usr/sbin"}
        done = subprocess.run(
            ["bash", "-euc", self.here(text)],
            cwd=self.root / "home",
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr

    def log(self, unit: str) -> str:
        path = self.root / f"{unit}.log"
        return path.read_text() if path.exists() else ""

    def logs(self) -> str:
        mosquitto = self.root / "var/log/mosquitto/mosquitto.log"
        said = mosquitto.read_text() if mosquitto.exists() else ""
        return "\n".join([*map(self.log, ("edge-broker", "edge-agent", "mosquitto")), said[-2000:]])

    def folded(self) -> int:
        with contextlib.suppress(EdgefoldError):
            report = read_report(self.root / "var/lib/edge-broker")
            assert report.updates_folded_twice == 0
            return sum(row.updates_folded for row in report.devices)
        return 0

    def learn(self) -> None:
        """Give the board samples, and wait until what it learned is folded."""
        before = self.folded()
        self.samples += 1
        inbox = self.root / "var/lib/edge-agent/inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        add_samples(inbox, *self.tiny.blobs(60, self.samples))
        self.wait(lambda: self.folded() > before, "no update was folded")

    def wait(self, claim: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not claim():
            assert time.monotonic() < deadline, f"{what}\n{self.logs()}"
            time.sleep(0.1)

    def password(self, account: str) -> str:
        return (self.root / "home" / f"{account}.password").read_text().strip()

    def link(self, login: Login, *, client_id: str, port: str = "1883") -> MqttLink:
        return MqttLink(
            "127.0.0.1", self.ports[port], client_id=client_id, will=None, login=login, protocol="5"
        )

    def stop(self) -> None:
        for path in (self.root / "run").glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    """The agent's tiny task."""
    return fresh_module("tiny_fleet")


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("farm"), tiny)
    yield farm
    farm.stop()


def poll_until(link: MqttLink, claim: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 30
    while not claim(events):
        assert time.monotonic() < deadline, events
        new = link.poll(0.2)
        for event in new:
            if isinstance(event, Received):
                link.acknowledge(event)
        events += new
    return events


def first_word(link: MqttLink) -> Event:
    """Return whether the broker lets ``link`` in."""
    link.start()
    try:
        return poll_until(link, bool)[0]
    finally:
        link.close()


def test_a_reader_comes_to_a_folded_update(farm: Farm) -> None:
    farm.upto("A board")
    farm.learn()
    for unit in ("edge-agent", "edge-broker"):
        assert "everyone on this machine" not in farm.log(unit)


def test_mosquitto_warns_of_nothing_but_the_patterns_for_all(farm: Farm) -> None:
    farm.upto("A board")
    path = farm.root / "var/log/mosquitto/mosquitto.log"
    farm.wait(lambda: " running" in path.read_text(), "Mosquitto's log")
    lines = path.read_text().splitlines()
    warnings = [line for line in lines if "Warning" in line or "Error" in line]
    expected = ("does not contain '%c' or '%u'", "should not be run as root")
    assert [line for line in warnings if not any(part in line for part in expected)] == []


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="no mosquitto-clients")
def test_the_commands_for_trying_by_hand_do_what_the_page_says(farm: Farm) -> None:
    farm.upto(BY_HAND)
    assert json.loads((farm.root / "home/manifest.json").read_bytes())["task"] == "birds"
    said = farm.run(
        'mosquitto_pub -h 127.0.0.1 -p 1883 -V mqttv5 -u barn-camera-2 -P "$(cat '
        f'barn-camera-2.password)" -q 1 -t {FLEET}/device/barn-camera-1/status -m x'
    )
    assert "Not authorized" in said


def test_a_board_writes_below_its_own_name_only(farm: Farm) -> None:
    farm.upto("A board")
    link = farm.link(Login("barn-camera-2", farm.password("barn-camera-2")), client_id="x")
    link.start()
    mine = f"{FLEET}/device/barn-camera-2"
    forbidden = [
        f"{FLEET}/device/barn-camera-1/status",
        f"{FLEET}/device/barn-camera-1/update/a1b2c3d4-1/0",
        f"{FLEET}/device/barn-camera-1/request",
        f"{FLEET}/device/barn-camera-1/receipt",
        f"{mine}/receipt",
        f"{FLEET}/task/birds/release",
        f"{FLEET}/blob/{'0' * 64}/0",
        f"{FLEET}/server/status",
        "edgefold/1/orchard/device/barn-camera-2/status",
        "elsewhere",
    ]
    allowed = [f"{mine}/status", f"{mine}/request", f"{mine}/update/a1b2c3d4-1/0"]
    poll_until(link, lambda events: any(isinstance(event, Connected) for event in events))
    refused = {}
    for topic in forbidden + allowed:
        token = link.publish(topic, b"", retain=False)
        events = poll_until(
            link, lambda events: any(isinstance(event, Published) for event in events)
        )
        (answer,) = [event for event in events if isinstance(event, Published)]
        assert answer.token == token
        refused[topic] = answer.refused
    link.close()
    assert {topic for topic, why in refused.items() if why == "Not authorized"} == set(forbidden)
    assert {topic for topic, why in refused.items() if not why} == set(allowed)


def test_a_board_hears_releases_and_nothing_of_others(farm: Farm) -> None:
    """It may subscribe to everything: what counts is what comes while another board is at work."""
    farm.upto("A board")
    link = farm.link(Login("barn-camera-2", farm.password("barn-camera-2")), client_id="x")
    link.start()
    link.subscribe([f"{FLEET}/#", "$SYS/#"])

    def has_release(events: list[Event]) -> bool:
        return any(isinstance(e, Received) and e.topic.endswith("/release") for e in events)

    events = poll_until(link, has_release)
    farm.learn()
    events += poll_until(link, has_release)
    link.close()
    heard = {event.topic for event in events if isinstance(event, Received)}
    assert {topic for topic in heard if "/device/" in topic or topic.startswith("$SYS")} == set()
    assert any("/blob/" in topic for topic in heard)


def test_nobody_gets_in_without_an_account_or_in_the_place_of_another(farm: Farm) -> None:
    farm.upto("A board")
    farm.learn()
    anonymous = first_word(farm.link(Login(), client_id="stranger"))
    wrong = first_word(farm.link(Login("barn-camera-1", "guess"), client_id="barn-camera-1"))
    for event in (anonymous, wrong):
        assert isinstance(event, Disconnected)
        assert event.reason.endswith("(Not authorized)")
        assert event.needs_help
    assert isinstance(anonymous, Disconnected)
    assert "lets nobody in without a password" in anonymous.reason
    before = farm.log("edge-agent").count("disconnected")
    login = Login("barn-camera-2", farm.password("barn-camera-2"))
    assert isinstance(first_word(farm.link(login, client_id="barn-camera-1")), Connected)
    farm.learn()
    assert farm.log("edge-agent").count("disconnected") == before


def test_a_new_password_takes_nothing_but_the_commands_of_the_page(farm: Farm) -> None:
    farm.upto("A board")
    farm.learn()
    starts = farm.log("edge-agent").count("agent starts")
    old = farm.password("barn-camera-1")
    farm.upto("New passwords")
    farm.learn()
    assert farm.log("edge-agent").count("agent starts") == starts
    refused = first_word(farm.link(Login("barn-camera-1", old), client_id="x"))
    assert isinstance(refused, Disconnected)
    assert old not in farm.logs()
    assert farm.password("barn-camera-1") not in farm.logs()


def test_tls_as_the_page_sets_it_up(farm: Farm) -> None:
    farm.upto("TLS")
    assert "mqtts://" in (farm.root / "etc/edgefold/agent.toml").read_text()
    farm.learn()
    login = Login("barn-camera-2", farm.password("barn-camera-2"), tls=TlsFiles())
    stranger = first_word(farm.link(login, client_id="x", port="8883"))
    assert isinstance(stranger, Disconnected)
    assert "is of no authority that we trust" in stranger.reason


def test_certificates_in_the_place_of_passwords(farm: Farm) -> None:
    farm.upto("Certificates instead of passwords")
    settings = (farm.root / "etc/edgefold/agent.toml").read_text()
    assert "password" not in settings
    assert 'key = "agent.key"' in settings
    farm.learn()
    ca = farm.root / "etc/edgefold/farm-ca.crt"
    login = Login("barn-camera-2", farm.password("barn-camera-2"), tls=TlsFiles(ca))
    assert isinstance(first_word(farm.link(login, client_id="x", port="8883")), Disconnected)


def test_everything_on_the_page_was_run(farm: Farm) -> None:
    farm.upto("Certificates instead of passwords")
    assert farm.steps == []
