"""Fixtures for the agent's tests; what they are made of is in tiny_fleet.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

from models.protocol.topics import Topics
from models.transport.memory import MemoryBroker, MemoryLink


def _make_importable(name: str) -> None:
    """Make NAME.py beside this file importable as NAME."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_make_importable("tiny_fleet")
_make_importable("asking")

from tiny_fleet import FLEET, Clock, Device, Server  # noqa: E402


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
