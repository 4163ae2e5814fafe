"""Broker, server and agents as processes: trouble delays learning and loses nothing of it."""

import json
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.cli import main
from tools.local_fleet.local_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.conftest import SmallFleet

    StartFleet = Callable[..., SmallFleet]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
BROKERS = [
    pytest.param(
        "mosquitto",
        marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    ),
    "embedded",
]


@pytest.mark.parametrize("broker", BROKERS)
def test_a_small_demo_succeeds_and_its_report_says_how(broker: str, tmp_path: Path) -> None:
    report_file, picture = tmp_path / "report.json", tmp_path / "picture.png"
    arguments = ["--devices", "2", "--rounds", "2", "--epochs", "4", "--broker", broker]
    arguments += ["--report", str(report_file), "--picture", str(picture)]
    assert main(["demo", "--quiet", *arguments]) == 0
    report = json.loads(report_file.read_text())
    assert (report["broker"], report["net"]) == (broker, "mlp")
    assert report["parameters"] == 17_226  # 64*128+128 + 128*64+64 + 64*10+10
    assert report["updates_lost"] == report["updates_folded_twice"] == 0
    assert [device["id"] for device in report["devices"]] == ["device-1", "device-2"]
    last = report["releases"][-1]
    assert last["number"] == 3, "two rounds after the first release"
    assert last["accuracy"] > report["releases"][0]["accuracy"]
    sent = sum(device["updates_sent"] for device in report["devices"])
    folded = sum(device["updates_folded"] for device in report["devices"])
    assert folded + report["updates_waiting"] == sent == report["updates_made"]
    assert sum(release["updates"] for release in report["releases"]) == folded
    dense = report["dense_float32"]
    assert [release["number"] for release in dense["releases"]] == [1, 2, 3]
    assert sum(release["bytes_up"] for release in dense["releases"]) > folded * 4 * 17_226
    assert dense["releases"][-1]["accuracy"] > dense["releases"][0]["accuracy"]
    assert report["bytes_up_dense_float32"] == sent * 4 * 17_226
    assert 0 < report["bytes_up"] < report["bytes_up_dense_float32"] / 5
    for device in report["devices"]:
        assert device["release"] == last["number"]
        assert 10 < device["peak_rss_mb_agent"] < 100
        if device["updates_sent"]:  # on a busy machine one may have come too late for any
            assert 40 < device["peak_rss_mb_trainer"] < 200
    assert picture.stat().st_size > 1000
    assert "dense float32" in picture.with_suffix(".svg").read_text()


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_a_demo_without_troubles_and_holdouts_is_plain_federated_averaging(tmp_path: Path) -> None:
    report_file, keep = tmp_path / "report.json", tmp_path / "fleet"
    arguments = "--devices 2 --rounds 2 --batch 16 --server-rate 1 --holdout 0 --all-samples"
    files = [
        "--report",
        str(report_file),
        "--picture",
        str(tmp_path / "p.png"),
        "--keep",
        str(keep),
    ]
    words = [*arguments.split(), "--no-troubles", "--no-dense", *files]
    assert main(["demo", "--quiet", *words]) == 0
    report = json.loads(report_file.read_text())
    assert [release["updates"] for release in report["releases"]] == [0, 2, 2], "all, each time"
    assert report["timeline"]["troubles"] == []
    assert sum(device["samples"] for device in report["devices"]) == 1438, "all of the digits"
    task = tomllib.loads((keep / "broker.toml").read_text())["task"][0]
    assert task["training"]["batch"] == 16
    assert task["aggregation"]["learning_rate"] == 1.0


def test_a_killed_server_goes_on_where_it_was(start_fleet: "StartFleet") -> None:
    fleet = start_fleet("auto", releases=4)
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
    fleet.server.kill()
    for device in fleet.devices:
        device.deliver()
    time.sleep(2)  # the devices go on meanwhile, and get no answer
    fleet.server.start()
    fleet.check(fleet.wait_until(fleet.has_settled, within_s=90))


@pytest.mark.parametrize("broker", BROKERS)
def test_a_broker_that_forgot_everything_is_filled_again(
    broker: str, start_fleet: "StartFleet"
) -> None:
    """Retained releases, sessions and queued messages are gone; server and devices carry on."""
    fleet = start_fleet(broker, releases=4)
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
    fleet.broker.wipe()
    for device in fleet.devices:
        device.deliver()
    fleet.broker.start()
    fleet.check(fleet.wait_until(fleet.has_settled, within_s=120))
