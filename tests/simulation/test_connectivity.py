"""Devices come and go for their share of the time, and what repeats ends with the repair."""

from pathlib import Path

import pytest

from tools.simulation.connectivity import Connectivity
from tools.simulation.happenings import Happenings
from tools.simulation.machines.machine import Machine, Place
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_disk import VirtualDisk
from tools.simulation.machines.virtual_network import Line, VirtualBroker
from tools.simulation.promises.trace import Trace
from tools.simulation.scenario.fleet_settings import Settings

HOUR = 3600.0
DAY = 24 * HOUR


class Watching(Trace):
    """An `Observer` that only takes note."""

    def looked_at(self, machine: Machine) -> None:
        pass


class Bare(Machine):
    """A machine without a process."""

    def _build(self) -> None:
        pytest.fail("there is nothing to start")

    def _run_once(self) -> float:
        pytest.fail("there is nothing to run")


@pytest.fixture
def timeline() -> Timeline:
    return Timeline(5)


@pytest.fixture
def machine(timeline: Timeline, tmp_path: Path) -> Machine:
    disk, network = VirtualDisk(tmp_path / "disk"), VirtualBroker(timeline)
    watching = Watching(timeline, is_kept=True)
    return Bare(Place("device-0", timeline, disk, Line(), network, watching, mean_down_s=60.0))


def connectivity(timeline: Timeline, **settings: float) -> tuple[Connectivity, Happenings]:
    happenings = Happenings(timeline)
    watching = Watching(timeline, is_kept=False)
    return Connectivity(happenings, watching, Settings()._replace(**settings)), happenings


def test_a_device_is_online_for_its_share_of_the_time(timeline: Timeline, machine: Machine) -> None:
    lines, _ = connectivity(timeline, online=0.3, session_s=HOUR)
    lines.begin(machine)
    timeline.run(400 * DAY)
    assert lines.online_s(machine) == pytest.approx(0.3 * 400 * DAY, rel=0.05)


def test_time_online_is_counted_to_this_moment(timeline: Timeline, machine: Machine) -> None:
    lines, _ = connectivity(timeline)
    lines.begin(machine)
    timeline.run(HOUR)
    lines.set_line(machine, up=False)
    lines.set_line(machine, up=False)
    timeline.run(2 * HOUR)
    lines.set_line(machine, up=True)
    timeline.run(2.5 * HOUR)
    assert lines.online_s(machine) == 1.5 * HOUR


@pytest.mark.parametrize("is_repaired", [False, True])
def test_what_happens_again_and_again_ends_with_the_repair(
    timeline: Timeline, machine: Machine, *, is_repaired: bool
) -> None:
    lines, happenings = connectivity(timeline, online=0.5, session_s=HOUR)
    happened: list[float] = []
    never: list[float] = []
    happenings.repeat(HOUR, lambda: happened.append(timeline.now))
    happenings.repeat(0.0, lambda: never.append(timeline.now))
    lines.begin(machine)
    timeline.run(100 * HOUR)
    assert never == []
    assert 70 < len(happened) < 130, "once an hour"
    happenings.are_over = is_repaired
    events, before = timeline.events, len(happened)
    timeline.run(200 * HOUR)
    assert (len(happened) == before) == is_repaired
    assert (timeline.events <= events + 2) == is_repaired, "what was planned still passes"
