"""kill -9 of agents, their children and the server at random moments of full rounds.

Real processes, real Mosquitto, real disks. EDGEFOLD_KILLS=1000 (`make kills`) for a long run.
"""

import os
import random
import re
import time
from typing import TYPE_CHECKING

import pytest

from edge_agent.board.warm_children import WARM
from models.protocol.npz import read_arrays, write_vector
from tools.local_fleet.both_memories import compare_memories
from tools.local_fleet.local_broker import find_mosquitto
from tools.local_fleet.process import stop_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil

    from tests.fleet.conftest import SmallFleet
    from tools.local_fleet.fleet_processes import Device

    StartFleet = Callable[..., SmallFleet]

ASKED = os.environ.get("EDGEFOLD_KILLS", "")
KILLS = int(ASKED or "70")
WITH_MEMORY = int(ASKED or "12")
SEED = int(os.environ.get("EDGEFOLD_SEED", "7"))
TASK = "tiny"
PACE = {"updates": 2, "seconds": 2.0, "min_seconds": 0, "patience": 0}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120 + 4 * KILLS),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def close_training(fleet: "SmallFleet") -> int:
    """Change the server's settings so that training ends with the next release."""
    config = fleet.server.directory.parent / "broker.toml"
    fleet.releases = fleet.newest(fleet.watch.look()) + 2
    text, count = re.subn(
        r"(?m)^releases = \d+", f"releases = {fleet.releases}", config.read_text()
    )
    assert count == 1
    config.write_text(text)
    fleet.server.kill()
    fleet.server.start()
    return fleet.releases


def child_of(device: "Device") -> "psutil.Process | None":
    return device.trainer() or device.child(WARM)


def kill_at_random(fleet: "SmallFleet", kills: int) -> int:
    """Kill somebody again and again; return the newest release then."""
    rng = random.Random(SEED)
    trainers = 0
    for number in range(kills):
        time.sleep(rng.uniform(0.1, 1.2))
        victim = rng.choice([fleet.server, *fleet.devices])
        if victim in fleet.devices and rng.random() < 0.3 and (child := child_of(victim)):
            child.kill()  # the agent must live with that
            trainers += 1
            continue
        victim.kill()
        victim.start()
        if number % 15 == 14:
            for device in fleet.devices:
                device.deliver()
    newest = fleet.newest(fleet.watch.look())
    print(f"seed {SEED}: {kills} kills, {trainers} of children; {newest} releases meanwhile")
    return newest


def test_nothing_is_lost_or_folded_twice_by_kills_at_random(start_fleet: "StartFleet") -> None:
    fleet = start_fleet("mosquitto", releases=1_000_000)
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
    before = kill_at_random(fleet, KILLS)
    fleet.wait_until(lambda seen: fleet.newest(seen) > max(before, 2), within_s=100)  # it goes on
    close_training(fleet)
    fleet.check(fleet.wait_until(fleet.has_settled, within_s=100))
    account = fleet.watch.account()
    print(account)
    assert account.folded >= 3


SETTINGS: dict[str, dict[str, object]] = {  # the first one is of the suite
    "memory": {"learning": {"feedback": "memory", "average": 0.9}},
    "gd-sec": {"learning": {"feedback": "gd-sec", "average": 0.9}},
    "own context": {
        "learning": {"feedback": "memory", "steps": "auto"},
        "codec": {"bytes": 2000, "context": "own"},
        "aggregation": PACE | {"optimizer": "momentum"},
    },
    "gradient": {
        "learning": {"feedback": "gd-sec", "gradient": True, "serve": "released"},
        "aggregation": PACE | {"updates": "all"},
        "training": {"epochs": 3.0, "batch": 8, "learning_rate": 1.0},
    },
}


@pytest.mark.parametrize("name", list(SETTINGS)[: None if ASKED else 1])
def test_both_sides_remember_the_same_after_kills_at_random(
    start_fleet: "StartFleet", name: str
) -> None:
    fleet = start_fleet("mosquitto", releases=1_000_000, sections=SETTINGS[name])
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
    before = kill_at_random(fleet, WITH_MEMORY)
    fleet.wait_until(lambda seen: fleet.newest(seen) > max(before, 2), within_s=100)  # it goes on
    close_training(fleet)
    fleet.check(fleet.wait_until(fleet.has_settled, within_s=100))
    stop_all([*fleet.devices, fleet.server])
    account = fleet.watch.account()
    print(account)
    assert account.folded >= 3
    both = compare_memories(fleet.server.directory, fleet.devices, TASK)
    print(both)
    assert both.complaints == []
    assert all(one.is_answered and one.at_server > 0 for one in both.devices)
    assert both.strangers == ()
    spoil_one_bit(fleet.devices[0].state / "codec")
    complaints = compare_memories(fleet.server.directory, fleet.devices, TASK).complaints
    assert complaints == ["device-1 and the server do not remember the same of it"]


def spoil_one_bit(codec: "Path") -> None:
    for file in codec.glob("history-*.npz"):  # one that no row names any more may still be there
        history = read_arrays(file.read_bytes(), max_bytes=1 << 30)["history"].copy()
        history.view("u4")[len(history) // 2] ^= 1
        file.write_bytes(write_vector(history, "history"))
