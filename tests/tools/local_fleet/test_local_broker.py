"""The broker for demos and tests comes up, dies with us, and says what is wrong."""

import inspect
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.errors import UsageError
from models.transport.link import Connected
from models.transport.mqtt import MqttLink
from tools.local_fleet import local_broker
from tools.local_fleet.local_broker import LocalBroker

ROOT = Path(__file__).parents[3]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def answers(broker: LocalBroker) -> bool:
    link = MqttLink(
        broker.host,
        broker.port,
        client_id="probe",
        will=None,
        username=broker.username,
        password=broker.password,
    )
    link.start()
    events = link.poll(3.0)
    link.close()
    return any(isinstance(event, Connected) for event in events)


@pytest.mark.slow
def test_it_answers_when_started_and_keeps_its_port_over_a_crash(any_broker: LocalBroker) -> None:
    assert answers(any_broker)
    before = any_broker.port, any_broker.process.pid
    any_broker.kill()
    assert not answers(any_broker)
    any_broker.start()
    assert answers(any_broker)
    assert any_broker.port == before[0]
    assert any_broker.process.pid != before[1]
    any_broker.start()  # does nothing when it runs
    assert any_broker.url == f"mqtt://127.0.0.1:{any_broker.port}"


@pytest.mark.slow
def test_it_ends_with_its_program_even_if_that_is_killed(
    any_broker: LocalBroker, tmp_path: Path
) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tools.local_fleet.local_broker import LocalBroker\n"
        f"broker = LocalBroker({any_broker.kind!r}, directory=Path({str(tmp_path)!r}))\n"
        "broker.start(); print(broker.process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_mosquitto_auto_takes_the_embedded_broker_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_broker, "find_mosquitto", lambda: None)
    broker = LocalBroker("auto", directory=tmp_path)
    assert broker.kind == "embedded"
    assert broker.why is not None
    assert "mosquitto" in broker.why
    assert "\n" not in broker.why
    with pytest.raises(UsageError, match="apt install mosquitto"):
        LocalBroker("mosquitto", directory=tmp_path)


def test_what_the_embedded_broker_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps nothing"):
        LocalBroker("embedded", directory=tmp_path, persistence=True)


@pytest.mark.slow
def test_a_port_that_is_taken_is_a_sentence_with_what_the_broker_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = LocalBroker("mosquitto", directory=tmp_path, port=port)
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}.*in use"):
            broker.start()
    assert broker.process is None


@pytest.mark.slow
def test_a_person_can_run_it_and_end_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.local_fleet.local_broker", "--port", "0"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        command[-1] = str(probe.getsockname()[1])
    running = subprocess.Popen(
        [*command, "--kind", "embedded", "--directory", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    line = running.stdout.readline()
    assert f"embedded on mqtt://127.0.0.1:{command[-1]} username edgefold password " in line
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0


def test_the_python_broker_has_the_inner_methods_that_ours_overrides() -> None:
    pytest.importorskip("amqtt")
    from tools.local_fleet.embedded_broker import FaithfulHandler, QuietBroker

    for ours, names in (
        (FaithfulHandler, ["_handle_qos1_message_flow"]),
        (QuietBroker, ["_handle_disconnect", "_publish_retained_messages_for_subscription"]),
    ):
        (theirs,) = ours.__bases__
        for name in names:
            given = inspect.signature(getattr(theirs, name)).parameters
            assert len(given) == len(inspect.signature(getattr(ours, name)).parameters)
