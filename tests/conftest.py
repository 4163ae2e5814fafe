"""Fixtures that several packages use: real MQTT brokers, and helpers that tests import by name."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.errors import UsageError
from tools.local_broker import LocalBroker, find_mosquitto


def _make_importable(name: str) -> None:
    """Make tests/NAME.py importable as NAME.

    tests/ itself must not be on the path: its folders are called like our packages.
    """
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


_make_importable("power_cut")


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running mosquitto, without persistence; a test may kill it, and must start it again."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with LocalBroker("mosquitto", directory=tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="module")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """The running Python broker, likewise."""
    try:
        broker = LocalBroker("embedded", directory=tmp_path_factory.mktemp("embedded"))
    except UsageError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture(scope="module", params=["mosquitto", "embedded_broker"])
def any_broker(request: pytest.FixtureRequest) -> LocalBroker:
    """Each of the two in turn."""
    broker: LocalBroker = request.getfixturevalue(request.param)
    return broker
