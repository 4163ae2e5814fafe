"""One server with many devices: how fast it takes in and folds, how fast it is back.

EDGEFOLD_SCALE=full (`make scale`): 100,000 devices and a million past updates.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import writer_programs
from hand_over import FLEET, HandOver

from broker.records.registry import DATABASE, Registry
from broker.records.update_records import UpdateKey, UpdateRecords
from tools.bench.server_load import INSTALLATION, fill_registry
from tools.local_fleet.local_broker import LocalBroker
from tools.simulation.learning.light_codec import light_codec

FULL = os.environ.get("EDGEFOLD_SCALE") == "full"
DEVICES, PAST = (100_000, 1_000_000) if FULL else (2_000, 20_000)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


OPEN = """
import resource, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from broker.records.registry import Registry
from broker.records.update_records import UpdateKey, UpdateRecords
began = time.perf_counter()
registry = Registry(Path({path!r}), {fleet!r})
updates = UpdateRecords(registry)
updates.untold(100_000)
opened = time.perf_counter() - began
began = time.perf_counter()
for number in range(0, {devices}, max(1, {devices} // 1000)):
    updates.receipt(UpdateKey(f"device-{{number}}", {installation}, 3))
asked = (time.perf_counter() - began) / 1000
print(opened, asked, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_a_registry_of_many_devices_opens_fast_and_small(tmp_path: Path) -> None:
    path = tmp_path / DATABASE
    registry = Registry(path, FLEET)
    fill_registry(registry, devices=DEVICES, past=PAST)
    key = UpdateKey("device-0", INSTALLATION, PAST // DEVICES + 1)
    assert UpdateRecords(registry).receipt(key).state == "unknown"
    registry.close()
    root = str(Path(writer_programs.__file__).parents[3])
    code = OPEN.format(
        root=root, path=str(path), fleet=FLEET, devices=DEVICES, installation=INSTALLATION
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    opened_s, receipt_s, rss_mb = map(float, done.stdout.split())
    on_disk = path.stat().st_size / DEVICES
    print(
        f"{DEVICES} devices, {PAST} past updates: open {opened_s * 1000:.0f} ms, "
        f"receipt {receipt_s * 1e6:.0f} us, {rss_mb:.0f} MiB, {on_disk:.0f} bytes a device on disk"
    )
    assert opened_s < 5.0
    assert receipt_s < 0.005
    assert on_disk < 1000


def test_updates_taken_in_and_folded_per_second(mosquitto: LocalBroker, tmp_path: Path) -> None:
    count = 2000 if FULL else 150
    with light_codec():
        world = HandOver(
            tmp_path,
            device_port=mosquitto.port,
            server_port=mosquitto.port,
            parameters=4096,
            fold_at=count,
            max_waiting=2 * count,
        )
        for job in range(1, count + 1):
            world.make(job)
        world.start()
        try:
            began = time.perf_counter()
            world.run(lambda: not world.outbox.waiting(), within_s=300)
            rate = count / (time.perf_counter() - began)
            states = [state for _, state in world.stored()]
        finally:
            world.close()
    print(f"{rate:.0f} updates per second from outbox to fold, over MQTT, one device, one thread")
    assert states == ["folded"] * count
