"""450 updates of 20 kB over a line that breaks every 0.15 s: all arrive, each counts once."""

import os
from pathlib import Path

import pytest
from chaos_proxy import ChaosProxy
from hand_over import HandOver

from tools.local_fleet.local_broker import LocalBroker
from tools.simulation.learning.light_codec import light_codec

UPDATES = int(os.environ.get("EDGEFOLD_CUT_UPDATES", "450"))
FEWEST_CUTS = 15  # else the line was no trouble
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_updates_over_a_line_that_is_cut_all_the_time_arrive_once(
    mosquitto: LocalBroker, tmp_path: Path
) -> None:
    target = (mosquitto.host, mosquitto.port)
    with light_codec(), ChaosProxy(target, seed=7, mean_life_s=0.15) as proxy:
        world = HandOver(
            tmp_path,
            device_port=proxy.port,
            server_port=mosquitto.port,
            parameters=31_500,
            fold_at=UPDATES,
        )
        for job in range(1, UPDATES + 1):
            size = world.make(job)
        assert 19_000 < size < 21_000
        world.start()
        try:
            took_s = world.run(lambda: not world.outbox.waiting(), within_s=500)
        finally:
            world.close()
        print(f"{UPDATES} x {size} bytes, {proxy.cuts} cuts, {took_s:.0f} s")
        assert proxy.cuts > FEWEST_CUTS
        assert world.stored() == [(seq, "folded") for seq in range(1, UPDATES + 1)]
        assert world.server.status.startswith("light at release 2")  # one fold, of all of them
