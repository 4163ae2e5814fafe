"""The inner names of paho that our client overrides or reads: a version without them shows here."""

import inspect
from collections import OrderedDict
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.matcher import MQTTMatcher
from paho.mqtt.reasoncodes import ReasonCode

from models.transport.counting_client import V5, CountingClient, Meter

OVERRIDDEN = ("_packet_handle", "_sock_recv", "_sock_send")


@pytest.fixture
def plain() -> paho.Client:
    return paho.Client(CallbackAPIVersion.VERSION2, protocol=V5)


@pytest.fixture
def client() -> CountingClient:
    return CountingClient(Meter(), CallbackAPIVersion.VERSION2, protocol=V5)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_there_with_its_parameters(name: str) -> None:
    theirs = inspect.signature(getattr(paho.Client, name))
    ours = inspect.signature(getattr(CountingClient, name))
    assert list(ours.parameters) == list(theirs.parameters)


def test_nothing_else_of_theirs_is_overridden() -> None:
    """As it might be by a name of ours that a later version of paho takes for itself."""
    ours = {*vars(CountingClient), *vars(CountingClient(Meter(), CallbackAPIVersion.VERSION2))}
    theirs = {*dir(paho.Client), *vars(paho.Client(CallbackAPIVersion.VERSION2))}
    own = {"meter", "begin", "first_byte", "socket_error", "was_closed", "_odd_codes"}
    own |= {"oldest_unacknowledged", "words", "log_in_with", "hang_up"}
    assert own <= ours
    assert own & theirs == set()


def test_what_we_read_of_it_is_as_we_read_it(plain: Any) -> None:
    assert isinstance(plain._out_messages, OrderedDict)
    with plain._out_message_mutex:
        pass
    assert plain._protocol is V5
    assert {"command", "packet"} <= plain._in_packet.keys()
    assert plain._ssl_context is None
    assert isinstance(plain._on_message_filtered, MQTTMatcher)
    assert list(inspect.signature(MQTTMatcher.iter_match).parameters) == ["self", "topic"]
    kinds = ReasonCode.names[0]
    assert all(isinstance(name, str) and isinstance(types, list) for name, types in kinds.items())


def test_the_messages_that_wait_are_in_the_order_in_which_they_came(client: CountingClient) -> None:
    for topic in ("first", "second"):
        client.publish(topic, b"123", qos=1)
    waiting = client.oldest_unacknowledged
    assert waiting is not None
    assert waiting[1:] == ("first", 3)


def test_the_matcher_in_the_place_of_theirs_is_asked_for_each_message(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    mine = client._on_message_filtered
    monkeypatch.setattr(mine, "iter_match", lambda topic: asked.append(topic) or iter(()))
    client._handle_on_message(MQTTMessage(topic=b"some/topic"))
    assert asked == ["some/topic"]


def test_every_byte_goes_through_what_is_overridden(client: Any) -> None:
    """The methods that paho reads and writes with call these, and nothing else the socket."""
    for name in ("_sock_recv", "_sock_send", "_packet_handle"):
        callers = [
            method
            for method in ("_packet_read", "_packet_write")
            if f"self.{name}(" in inspect.getsource(getattr(paho.Client, method))
        ]
        assert callers, name
