"""A release down and an update up over 128 and 9.6 kbit/s, in the kernel or through the proxy.

EDGEFOLD_SLOW=full (`make slow-links`) moves 1 MiB each way, as the bar says; it takes 35 minutes.
In CI the transfers are short, and their fixed cost (connecting, manifest, receipts) is allowed for.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import line_programs
import pytest
from chaos_proxy import ChaosProxy
from slow_link import SlowLink, why_no_namespaces

from tools.local_fleet.local_broker import find_mosquitto

FULL = os.environ.get("EDGEFOLD_SLOW") == "full"
MIB = 1 << 20
# bits per second, bytes, keepalive, seconds of fixed cost that are allowed
CASES = [
    pytest.param(128_000, MIB if FULL else 96 * 1024, 60, 0.0 if FULL else 2.0, id="128k"),
    pytest.param(9_600, MIB if FULL else 12 * 1024, 60, 0.0 if FULL else 8.0, id="9.6k"),
]
if FULL:
    CASES.insert(1, pytest.param(128_000, MIB, 10, 0.0, id="128k-10s"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600 if FULL else 200),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@contextmanager
def programs(*commands: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            time.sleep(0.5)
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def mosquitto_at(address: str, directory: Path) -> list[str]:
    config = directory / "mosquitto.conf"
    config.write_text(
        f"listener 18899 {address}\nallow_anonymous true\npersistence false\nuser root\n"
    )
    return [str(find_mosquitto()), "-c", str(config)]


@pytest.mark.parametrize(("bits_per_s", "size", "keepalive_s", "allowance_s"), CASES)
def test_a_slow_line_is_used_to_the_full_and_never_dropped(
    bits_per_s: int, size: int, keepalive_s: int, allowance_s: float, tmp_path: Path
) -> None:
    python = [sys.executable, line_programs.__file__]
    with ExitStack() as stack:
        if why_no_namespaces():
            proxy = stack.enter_context(
                ChaosProxy(("127.0.0.1", 18899), seed=1, bits_per_s=bits_per_s)
            )
            near, far, address, there = (), (), "127.0.0.1", ("127.0.0.1", proxy.port)
        else:
            link = stack.enter_context(SlowLink(bits_per_s))
            near, far = link.at(link.near), link.at(link.far)
            address, there = link.address, (link.address, 18899)
        server = [*python, "server", str(tmp_path / "server"), address, "18899", str(size)]
        (tmp_path / "server").mkdir()
        device = [*python, "device", str(tmp_path / "device"), there[0], str(there[1]), str(size)]
        with programs([*near, *mosquitto_at(address, tmp_path)], [*near, *server]) as running:
            assert running[1].stdout is not None
            assert json.loads(running[1].stdout.readline()) == {"ready": True}
            time.sleep(1.0)  # until all is retained
            done = subprocess.run(
                [*far, *device, str(keepalive_s)], capture_output=True, text=True, check=False
            )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(bits_per_s, size, found)
    assert found["drops"] == 0
    for way in ("download", "upload"):
        carried = found["bytes_down" if way == "download" else "bytes_up"]
        ideal_s = carried * 8 / bits_per_s
        assert 0.9 * size < carried < 1.1 * size + 6000  # nothing is sent twice
        assert found[f"{way}_s"] <= 1.15 * ideal_s + allowance_s, way
