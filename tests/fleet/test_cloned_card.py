"""Two boards with copies of one SD card: the operator is told, on a broker that tells nobody."""

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from broker.reports.fleet_report import read_report
from tools.local_fleet.process import Process

if TYPE_CHECKING:
    from conftest import StartFleet

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_a_cloned_card_is_reported(broker: str, start_fleet: "StartFleet") -> None:
    fleet = start_fleet(broker, releases=1_000_000)
    original = fleet.devices[0]
    fleet.wait_until(lambda seen: fleet.newest(seen) >= 2, within_s=60)

    def doubles() -> list[str]:
        return [row.device for row in read_report(fleet.server.directory).devices if row.is_double]

    assert doubles() == []
    original.kill()
    copy = original.directory.with_name("copy")
    shutil.copytree(original.directory, copy, ignore=shutil.ignore_patterns("*.sock"))
    config = (copy / "agent.toml").read_text().replace(str(original.directory), str(copy))
    (copy / "agent.toml").write_text(config)
    clone = Process(
        "clone", ["edge_agent", "run", "--config", str(copy / "agent.toml")], copy / "log"
    )
    original.start()
    clone.start()
    try:
        deadline = time.monotonic() + 90
        while not doubles():
            assert time.monotonic() < deadline, clone.last_words()
            time.sleep(0.5)
        assert doubles() == [original.id]
    finally:
        clone.kill()
