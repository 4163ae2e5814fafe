"""A device's disk fills up or turns read-only under a running fleet; then there is space again."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from loop_disk import SmallDisk, why_no_mount

from edge_agent.inference.inference_client import call
from edge_agent.updates.outbox_contents import read_only
from tools.local_fleet.local_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.conftest import SmallFleet

    StartFleet = Callable[..., SmallFleet]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif(bool(why_no_mount()), reason=why_no_mount()),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
TROUBLE_S = 5.0
RECOVERS_WITHIN_S = 60.0


KINDS = ["full", "read-only"] if os.environ.get("EDGEFOLD_FAULTS") == "full" else ["full"]


@pytest.mark.parametrize("kind", KINDS)
def test_inference_goes_on_and_learning_recovers(
    kind: str, start_fleet: "StartFleet", tmp_path: Path
) -> None:
    state = tmp_path / "device-1" / "state"
    state.mkdir(parents=True)
    with SmallDisk(state, kilobytes=40_000) as disk:
        fleet = start_fleet("mosquitto", releases=5)
        fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
        if kind == "full":
            disk.fill()
        else:
            disk.set_read_only(True)
        for device in fleet.devices:
            device.deliver()
        until = time.monotonic() + TROUBLE_S
        while time.monotonic() < until:
            answer, _ = call(state / "inference.sock", {"do": "ping"}, timeout_s=2.0)
            assert answer["ok"]
            time.sleep(0.2)
        if kind == "full":
            disk.drain()
        else:
            disk.set_read_only(False)
        made = read_only(state / "outbox.db").facts.made
        began = time.monotonic()
        while time.monotonic() < began + RECOVERS_WITHIN_S:
            now_made = read_only(state / "outbox.db").facts.made
            if now_made > made or fleet.has_settled(fleet.watch.look()):
                break
            time.sleep(0.5)
        else:
            pytest.fail("no new update within 60 s of space")
        fleet.check(fleet.wait_until(fleet.has_settled, within_s=120))
