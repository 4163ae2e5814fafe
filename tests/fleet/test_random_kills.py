"""kill -9 of agents, their children and the server at random moments of full rounds.

Real processes, real Mosquitto, real disks. EDGEFOLD_KILLS=1000 (`make kills`) for a long run.
"""

import os
import random
import re
import time
from typing import TYPE_CHECKING

import pytest

from tools.local_fleet.local_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.conftest import SmallFleet

    StartFleet = Callable[..., SmallFleet]

KILLS = int(os.environ.get("EDGEFOLD_KILLS", "70"))
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


def test_nothing_is_lost_or_folded_twice_by_kills_at_random(start_fleet: "StartFleet") -> None:
    fleet = start_fleet("mosquitto", releases=1_000_000)
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
    rng = random.Random(int(os.environ.get("EDGEFOLD_SEED", "7")))
    trainers = 0
    for number in range(KILLS):
        time.sleep(rng.uniform(0.1, 1.2))
        victim = rng.choice([fleet.server, *fleet.devices])
        if victim in fleet.devices and rng.random() < 0.2 and (child := victim.trainer()):
            child.kill()  # the agent must live with that
            trainers += 1
            continue
        victim.kill()
        victim.start()
        if number % 15 == 14:
            for device in fleet.devices:
                device.deliver()
    before = fleet.newest(fleet.watch.look())
    print(f"{KILLS} kills, {trainers} of them of trainers; {before} releases meanwhile")
    fleet.wait_until(lambda seen: fleet.newest(seen) > max(before, 2), within_s=100)  # it goes on
    close_training(fleet)
    fleet.check(fleet.wait_until(fleet.has_settled, within_s=100))
    account = fleet.watch.account()
    print(account)
    assert account.folded >= 3
