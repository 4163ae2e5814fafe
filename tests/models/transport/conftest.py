"""The worlds that the contract of a link is tested in."""

from collections.abc import Iterator

import pytest
from link_worlds import MemoryWorld, MqttWorld, VirtualWorld, World

from models.transport.mqtt import MqttLink


@pytest.fixture(
    params=[
        "memory",
        "virtual",
        pytest.param("mosquitto", marks=pytest.mark.slow),
        pytest.param("embedded_broker", marks=pytest.mark.slow),
    ]
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The broker in memory, the simulated one, mosquitto, and the Python broker, in turn."""
    found: World
    if request.param == "memory":
        found = MemoryWorld()
    elif request.param == "virtual":
        found = VirtualWorld()
    else:
        found = MqttWorld(request.getfixturevalue(request.param))
    yield found
    found.close()


@pytest.fixture
def closing() -> Iterator[list[MqttLink]]:
    """Links put in here are closed at the end."""
    links: list[MqttLink] = []
    yield links
    for link in links:
        link.close()
