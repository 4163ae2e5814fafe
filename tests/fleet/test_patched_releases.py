"""Releases as patches, with real processes: few bytes, also for who was away or killed."""

import time
from typing import TYPE_CHECKING

import psutil
import pytest

from edge_agent.releases.patching import PATCHER
from tools.local_fleet.fleet_processes import Device

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.conftest import SmallFleet, StartFleet
    from tools.local_fleet.fleet_facts import FleetView

pytestmark = pytest.mark.slow

DENSE = 4 * 17_226


def _wait(
    fleet: "SmallFleet", claim: "Callable[[FleetView], bool]", within_s: float, *, feeding: Device
) -> "FleetView":
    """Wait as `SmallFleet.wait_until` does, while a device is meant to be dead.

    The other one, ``feeding``, gets new samples with each update: nobody else gives it work.
    """
    deadline = time.monotonic() + within_s
    made = -1
    while not claim(seen := fleet.watch.look()):
        assert time.monotonic() < deadline, seen
        if fleet.watch.made(feeding) > made:
            made = fleet.watch.made(feeding)
            feeding.deliver()
        time.sleep(0.2)
    return seen


def test_devices_follow_by_patches_also_after_being_away_or_killed_while_one_is_applied(
    start_fleet: "StartFleet",
) -> None:
    fleet = start_fleet("auto", releases=9)
    near, far = fleet.devices
    fleet.wait_until(lambda seen: all(d.release >= 1 for d in seen.devices), within_s=60)
    time.sleep(3)  # until the server has heard of it: patches reach back to who is known
    far.kill()
    seen = _wait(fleet, lambda seen: fleet.newest(seen) >= 2, 60, feeding=near)
    down = {d.id: d.bytes_down for d in seen.devices}
    first = fleet.newest(seen)

    deadline = time.monotonic() + 60
    made = -1
    while (child := near.child(PATCHER)) is None:
        if fleet.watch.made(near) > made:
            made = fleet.watch.made(near)
            near.deliver()
        assert time.monotonic() < deadline, "no patch is ever applied"
        time.sleep(0.02)
    near.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running(), "the child dies with its agent"
    near.start()

    _wait(fleet, lambda seen: fleet.newest(seen) >= 5, 90, feeding=near)
    far.start()
    for device in fleet.devices:
        device.deliver()
    seen = fleet.wait_until(fleet.has_settled, within_s=120)
    fleet.check(seen)
    for device in seen.devices:
        spent = device.bytes_down - down[device.id]
        assert 0 < spent < DENSE, f"{device.id}: {spent} bytes for releases {first} to 9"
    for device in fleet.devices:
        assert "release patched" in device.log.read_text()
    for release in seen.releases[1:]:
        assert release.bytes_down < DENSE / 10
