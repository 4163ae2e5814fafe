"""Fixtures for the agent's tests; what they are made of is in tiny_fleet.py."""

from pathlib import Path

import pytest
from tiny_fleet import FLEET, Clock, Device, Server

from models.protocol.topics import Topics
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink


@pytest.fixture
def topics() -> Topics:
    return Topics(FLEET)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(clock: Clock) -> MemoryBroker:
    return MemoryBroker(clock)


@pytest.fixture
def device(tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server) -> Device:
    return Device(tmp_path, broker, clock, server=server)


@pytest.fixture
def server(broker: MemoryBroker, topics: Topics) -> Server:
    return Server(MemoryLink(broker, client_id="server"), topics)
