"""What simulated devices see of their network is what real ones see."""

from collections.abc import Iterator

import pytest

from tools.simulation.fleet_world import FleetWorld, prepared
from tools.simulation.scenario.fleet_settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def world() -> Iterator[FleetWorld]:
    """One device and its server, on a day without faults."""
    with prepared(1, Settings(devices=1, hours=1.0)) as world:
        yield world


def summary_after(world: FleetWorld, seconds: float) -> str:
    """Let time pass and return what the device says of itself."""
    world.timeline.run(world.timeline.now + seconds)
    agent = world.fleet.devices[0].agent
    assert agent is not None
    return agent.summary


def test_a_device_that_never_reached_its_broker_says_why(world: FleetWorld) -> None:
    world.fleet.network.up = False
    world.fleet.devices[0].boot()
    assert "not connected: nothing listens on broker:1883" in summary_after(world, 400)


def test_a_device_that_lost_its_network_says_so_until_it_is_back(world: FleetWorld) -> None:
    world.live()
    world.connectivity.set_line(world.fleet.devices[0], up=False)
    assert "not connected: no network" in summary_after(world, 400)
    world.connectivity.set_line(world.fleet.devices[0], up=True)
    assert "not connected" not in summary_after(world, 400)
