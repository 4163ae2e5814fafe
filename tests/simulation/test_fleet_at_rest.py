"""A fleet whose data stay as they are comes to rest by itself, and wakes up for new samples."""

from collections.abc import Iterator

import pytest

from broker.config import FoldPolicy
from edge_agent.config import Training
from edge_agent.training.governor import NOTHING_NEW
from tools.simulation.fleet_world import FleetWorld, prepared
from tools.simulation.scenario.fleet_settings import Settings
from tools.simulation.simulate import play

pytestmark = pytest.mark.slow
HOUR = 3600.0
DAY = 24 * HOUR
WEEK = Settings(  # README's policy at the product's pace
    devices=10,
    hours=7 * 24.0,
    is_planning=True,
    size=64,
    fold_updates=10,
    fold_seconds=3600.0,
    fold_min_s=FoldPolicy().min_seconds,
    patience=FoldPolicy().patience,
    min_minutes=Training().min_minutes,
    max_staleness=0,
    max_samples=5000,
    sample_every_s=0.0,
    settles=False,
)


def trainings(world: FleetWorld) -> int:
    return world.ledger.counts["trainings"]


def states(world: FleetWorld) -> set[str]:
    return {device.agent.state for device in world.fleet.devices if device.agent is not None}


@pytest.fixture
def week() -> Iterator[FleetWorld]:
    """Ten devices that get 65 samples each in the first hours, and then none."""
    with prepared(1, WEEK) as world:
        for device in world.fleet.devices:
            for number in range(5):
                world.timeline.at(600 + 60 * number, lambda d=device: world.supply.bring(d))
        yield world


def test_a_fleet_with_fixed_data_comes_to_rest_within_days(week: FleetWorld) -> None:
    counted: list[tuple[int, int]] = []
    for day in range(1, 8):
        week.timeline.at(day * DAY - 60, lambda: counted.append((trainings(week), up(week))))
    week.live()
    by_then = dict(enumerate(counted, 1))
    assert by_then[1][0] >= 100, "ten rounds and more on the first day, while it gains"
    assert by_then[7][0] == by_then[4][0], "and none at all in the last three"
    devices = len(week.fleet.devices)
    assert by_then[7][1] - by_then[4][1] <= 3 * 24 * 100 * devices, "but a word an hour"
    assert states(week) == {NOTHING_NEW}
    line = week.fleet.release_line
    assert line is not None
    assert line.current.metric is not None
    assert line.current.metric > 0.99
    assert week.ledger.violations == []


def up(world: FleetWorld) -> int:
    return sum(device.line.bytes_up for device in world.fleet.devices)


def test_new_samples_of_one_device_are_learned_by_it_alone(week: FleetWorld) -> None:
    before: list[list[int]] = []
    one = week.fleet.devices[3]
    week.timeline.at(5 * DAY, lambda: before.append([d.trainings for d in week.fleet.devices]))
    for number in range(2):
        week.timeline.at(5 * DAY + 60 + number, lambda: week.supply.bring(one))
    week.live()
    after = [device.trainings for device in week.fleet.devices]
    more = [now - then for now, then in zip(after, before[0], strict=True)]
    assert more[3] >= 1
    assert week.ledger.violations == []
    line = week.fleet.release_line
    assert line is not None
    assert line.current.manifest.folded == sum(after), "and it is in a release"


def test_many_new_samples_wake_everybody(week: FleetWorld) -> None:
    before: list[int] = []
    week.timeline.at(5 * DAY, lambda: before.append(trainings(week)))
    for device in week.fleet.devices:
        for number in range(4):
            week.timeline.at(5 * DAY + 60 + number, lambda d=device: week.supply.bring(d))
    week.live()
    devices = len(week.fleet.devices)
    assert trainings(week) >= before[0] + 2 * devices, "on the new ones, and in a round"
    assert week.ledger.violations == []


def test_readmes_policy_costs_what_it_says() -> None:
    """It was 132 trainings and 595 kB up a device and day, for 16 new samples."""
    settings = WEEK._replace(devices=40, hours=30.0, sample_every_s=DAY)
    (outcome,) = play(range(1, 2), settings)
    days = settings.hours / 24
    assert outcome.violations == ()
    assert outcome.trainings / settings.devices / days <= 3.0
    assert sum(use.bytes_up for use in outcome.usage) / settings.devices / days <= 20_000
    assert max(point.metric or 0 for point in outcome.milestones) >= 0.97, "it was 0.988"
