"""What the agent leaves for `edgefold-agent status`: one sentence, and no write without need."""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import DEVICE, Device, Files, Server

from edge_agent.build import build, status_path
from edge_agent.client.edgefold_client import Answer
from edge_agent.commands.infer_file import print_answer
from edge_agent.config import parse_config
from edge_agent.reports.status_file import LocalStatus, read_local_status, write_local_status
from models.protocol.messages import ServerStatus, encode_message
from models.protocol.topics import Topics
from tools.simulation.machines.memory_broker import MemoryBroker


def left(device: Device) -> LocalStatus:
    found = read_local_status(status_path(device.config))
    assert found is not None
    return found


def test_it_is_kept_up_to_date_without_a_connection(device: Device, broker: MemoryBroker) -> None:
    broker.set_reachable(DEVICE, False)
    device.run(45)
    found = left(device)
    assert found.summary == "not connected: cannot reach the broker"
    assert not found.connected
    assert [problem.part for problem in found.problems] == ["broker"]
    broker.set_reachable(DEVICE, True)
    device.run(10)
    assert left(device).connected
    assert left(device).problems == ()


def test_it_says_what_the_device_waits_for(
    device: Device, server: Server, broker: MemoryBroker
) -> None:
    device.run(10)
    assert left(device).summary == "waits for the first release of task blobs"
    server.publish(Files(1))
    device.run(30)
    assert left(device).summary == "all is well: runs release 1 of task blobs"
    assert left(device).waits_for == "0 samples, training needs 16"
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    device.run(30)
    assert left(device).heard_at is not None


def test_what_a_full_disk_did_not_take_is_not_left_as_it_was_and_is_written_later(
    device: Device, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.run(30)
    path = status_path(device.config)
    draft = path.with_name("status.json.draft")
    draft.mkdir()  # it cannot be opened to write
    server.publish(Files(1))
    device.run(60)
    assert not path.exists()  # it said that there is no release
    draft.rmdir()
    device.run(60)
    assert left(device).summary == "all is well: runs release 1 of task blobs"


def test_an_idle_device_writes_nothing(
    device: Device, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(Files(1))
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    device.run(60)
    path = status_path(device.config)
    before = path.stat().st_mtime_ns
    for load in range(60):  # numbers that change all the time are not worth it
        device.vitals = device.vitals._replace(load=0.01 * load, rss_mb=30 + load)
        device.run(60)
    assert path.stat().st_mtime_ns == before


def test_a_link_that_comes_and_goes_does_not_wear_out_the_card(
    device: Device, broker: MemoryBroker
) -> None:
    device.run(60)
    for _ in range(5):
        broker.drop_link(DEVICE)
        device.run(4)
    device.run(6)
    before = status_path(device.config).stat().st_mtime_ns
    for _ in range(50):
        broker.drop_link(DEVICE)
        device.run(4)
    assert "no connection lasts" in device.status.problem
    assert status_path(device.config).stat().st_mtime_ns == before


def test_a_server_that_goes_away_is_said_and_forgotten(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    def serve(*, online: bool) -> None:
        status = ServerStatus(online=online, tasks=("blobs",))
        broker.accept(topics.server_status, encode_message(status), retain=True)

    Files(1).publish(broker, topics)
    serve(online=True)
    device.run(60)
    assert device.status.problem == ""
    serve(online=False)
    device.run(44)
    assert device.status.problem == ""
    device.run(2)
    assert device.status.problem.startswith("the server of fleet orchard is away")
    serve(online=True)
    device.run(1)
    assert device.status.problem == ""


def test_a_damaged_one_is_none(tmp_path: Path, device: Device) -> None:
    device.run(1)
    path = tmp_path / "status.json"
    write_local_status(path, left(device))
    assert read_local_status(path) == left(device)
    path.write_bytes(path.read_bytes()[:50])
    assert read_local_status(path) is None
    path.write_bytes(msgspec.json.encode({"online": True}))  # as 0.1.0 left it
    assert read_local_status(path) is None


def test_a_start_does_not_leave_what_the_process_before_said(tmp_path: Path) -> None:
    source = tmp_path / "agent.toml"
    config = parse_config(
        '[device]\nid = "d"\ntask = "blobs"\n[fleet]\nname = "f"\nbroker = "mqtt://127.0.0.1"\n'
        '[storage]\ndirectory = "."\n',
        source=source,
    )
    status_path(config).write_text("all is well, of yesterday")
    built = build(config, source)
    try:
        assert not status_path(config).exists()
    finally:
        os.close(built.lock)


def test_numbers_that_json_has_not_are_null_for_programs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outputs = np.array([[np.nan, np.inf, 1.0]], np.float32)
    print_answer(Answer(3, outputs, [0], None, [np.nan]), as_json=True)
    said = capsys.readouterr().out
    assert json.loads(said, parse_constant=lambda name: pytest.fail(name)) == {
        "release": 3,
        "output": [[None, None, 1.0]],
        "classes": [0],
    }
