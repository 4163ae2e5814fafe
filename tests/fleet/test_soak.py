"""Hours of a small fleet with trouble: memory and file descriptors stay flat.

EDGEFOLD_SOAK_MINUTES=120 (`make soak`); skipped without it.
"""

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tools.local_fleet.local_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.conftest import SmallFleet

    StartFleet = Callable[..., SmallFleet]

MINUTES = float(os.environ.get("EDGEFOLD_SOAK_MINUTES", "0"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600 + 120 * MINUTES),
    pytest.mark.skipif(not MINUTES, reason="a soak takes hours: make soak"),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
UNITS = Path(__file__).parents[2] / "systemd"
SAMPLE_S = 5.0
WARM_UP = 0.4  # of the time: allocators settle, caches fill


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def unit_environment() -> dict[str, str]:
    """Return what the agent's systemd unit sets; the server's sets the same."""
    found = []
    for unit in ("edge-agent.service", "edge-broker.service"):
        lines = (UNITS / unit).read_text().splitlines()
        settings = [line.partition("=")[2] for line in lines if line.startswith("Environment=")]
        found.append(dict(pair.split("=") for pair in " ".join(settings).split()))
    agent, server = found
    assert agent == server
    return agent


def test_memory_and_descriptors_stay_flat(
    start_fleet: "StartFleet", monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in unit_environment().items():
        monkeypatch.setenv(name, value)
    fleet = start_fleet("mosquitto", releases=1_000_000)
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)
    processes = [fleet.server, *fleet.devices]
    rng = random.Random(1)
    times: list[float] = []
    memory: dict[str, list[int]] = {process.name: [] for process in processes}
    open_files: dict[str, list[int]] = {process.name: [] for process in processes}
    began = time.monotonic()
    while (passed := time.monotonic() - began) < 60 * MINUTES:
        device = rng.choice(fleet.devices)
        device.relay.cut()
        time.sleep(rng.uniform(0.1, 2.0))
        device.relay.restore()
        time.sleep(SAMPLE_S)
        times.append(passed)
        for process in processes:
            assert process.pid, f"{process.name} ended: {process.last_words()}"
            memory[process.name].append(resident_kib(process.pid))
            open_files[process.name].append(descriptors(process.pid))
    warm = int(WARM_UP * len(times))
    mib_per_day = {
        name: np.polyfit(times[warm:], sizes[warm:], 1)[0] * 86400 / 1024
        for name, sizes in memory.items()
    }
    for name, slope in mib_per_day.items():
        files = open_files[name][warm:]
        print(f"{name}: {slope:+.2f} MiB/day, {min(files)}-{max(files)} descriptors")
    if MINUTES >= 60:  # shorter, and a page or two look like megabytes a day
        assert max(mib_per_day.values()) < 1.0
    for files in open_files.values():
        assert max(files[warm:]) - min(files[warm:]) <= 8
