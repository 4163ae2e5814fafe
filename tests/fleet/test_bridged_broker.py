"""Devices at a site's broker, which a bridge joins to the broker of the center."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.local_fleet.local_broker import LocalBroker, find_mosquitto

if TYPE_CHECKING:
    from tests.fleet.conftest import MakeFleet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="bridges are Mosquitto's"),
]

BRIDGE = (
    "connection center",
    "topic edgefold/# both 1",
    "cleansession false",
    "restart_timeout 1 2",
)


def test_what_devices_learn_while_the_center_is_away_passes_the_bridge_once(
    tmp_path: Path, make_fleet: "MakeFleet"
) -> None:
    with ExitStack() as stack:
        center = stack.enter_context(
            LocalBroker("mosquitto", directory=tmp_path / "center", persistence=True)
        )
        site = stack.enter_context(
            LocalBroker(
                "mosquitto",
                directory=tmp_path / "site",
                settings=(*BRIDGE, f"address {center.host}:{center.port}"),
            )
        )
        fleet = make_fleet(center, releases=4, site=site)
        fleet.start(stack)
        seen = fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
        before = sum(device.made for device in seen.devices)
        center.kill()
        for device in fleet.devices:
            device.deliver()
        seen = fleet.wait_until(
            lambda seen: sum(device.made for device in seen.devices) > before, within_s=60
        )
        time.sleep(1)
        center.start()
        fleet.check(fleet.wait_until(fleet.has_settled, within_s=90))
