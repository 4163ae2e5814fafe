"""What a broker says that it takes, cannot do or refuses, in answers that few brokers give."""

import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from fake_broker import CONNACK_5, FakeBroker
from link_worlds import connected, disconnected, poll_until, published

from models.transport.broker_limits import LEAST_PACKET, lacking, limits
from models.transport.disconnection import Client
from models.transport.link import MAX_PACKET, WINDOW, BrokerLimits, Connected, Event, Subscribed
from models.transport.mqtt import MqttLink
from models.transport.refusals import TOO_LARGE, Refusals, remedy

US = Client("farm.example", 1883, "board-1", has_tls=False, has_password=False)


def connack(properties: bytes, code: int = 0) -> bytes:
    return bytes([0x20, 3 + len(properties), 0, code, len(properties)]) + properties


def link_to(broker: FakeBroker, closing: list[MqttLink]) -> MqttLink:
    link = MqttLink(broker.host, broker.port, client_id="board-1", will=None, protocol="5")
    closing.append(link)
    link.start()
    return link


def says(answer: bytes) -> Callable[[socket.socket, int], None]:
    def serve(connection: socket.socket, level: int) -> None:
        connection.sendall(answer)
        while connection.recv(4096):
            pass

    return serve


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, BrokerLimits(WINDOW, MAX_PACKET)),
        ({"ReceiveMaximum": 1}, BrokerLimits(1, MAX_PACKET)),
        ({"ReceiveMaximum": 65_535}, BrokerLimits(WINDOW, MAX_PACKET)),
        ({"MaximumPacketSize": 4096}, BrokerLimits(WINDOW, 4096)),
        ({"MaximumPacketSize": 1 << 28}, BrokerLimits(WINDOW, MAX_PACKET)),
    ],
)
def test_limits_are_the_brokers_where_they_are_lower_than_ours(
    told: dict[str, int], expected: BrokerLimits
) -> None:
    assert limits(SimpleNamespace(**told)) == expected
    assert limits(None) == BrokerLimits()


@pytest.mark.parametrize("size", [1280, 1500, 4096, 8192, 20_000, 131_072, MAX_PACKET])
def test_the_largest_chunk_fits_with_topic_and_headers_and_is_one_of_the_protocol(
    size: int,
) -> None:
    chunk = BrokerLimits(max_packet=size).max_chunk
    assert chunk % 1024 == 0
    assert chunk >= 1024
    assert chunk + 200 < size
    assert chunk + 1024 + 256 > size


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"RetainAvailable": 0}, "keeps no retained messages"),
        ({"MaximumQoS": 0}, "QoS 0 only"),
        ({"MaximumPacketSize": LEAST_PACKET - 1}, "packets of at most 1279 bytes"),
        ({"RetainAvailable": 1, "MaximumQoS": 1, "MaximumPacketSize": LEAST_PACKET}, None),
        ({"WildcardSubscriptionAvailable": 0}, None),  # a device needs none
    ],
)
def test_what_a_fleet_cannot_be_without_is_said(told: dict[str, int], said: str | None) -> None:
    why = lacking(SimpleNamespace(**told), US)
    assert (why is None) == (said is None)
    if why is not None and said is not None:
        assert said in why.text
        assert why.needs_help


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (connack(b"\x25\x00"), "the broker keeps no retained messages"),
        (connack(b"\x24\x00"), "the broker takes messages of QoS 0 only"),
        (connack(b"\x27\x00\x00\x01\x00"), "packets of at most 256 bytes"),
        (connack(b"", 0x9A), "the broker keeps no retained messages"),
        (connack(b"", 0x9B), "the broker takes messages of QoS 0 only"),
        (connack(b"", 0x84), "set fleet.protocol"),
        (connack(b"", 0x8A), "has banned board-1"),
        (connack(b"", 0x90), "does not take the will of board-1"),
        (connack(b"", 0x97), "limits do not let board-1 in"),
        (connack(b"", 0x9C), "sends us to another one: correct fleet.broker (Use another server)"),
        (connack(b"\x1c\x00\x05other", 0x9D), "sends us to another one (other): correct"),
        (connack(b"", 0xA2), "refuses us: look at its log (Wildcard subscription not supported)"),
        (connack(b"", 0xF0), "refuses us: look at its log (reason code 0xF0)"),
        (CONNACK_5 + b"\xe0\x02\x97\x00", "its limits are reached; raise them (Quota exceeded)"),
        (CONNACK_5 + b"\xe0\x0a\x9d\x08\x1c\x00\x05other", "sends us to other; write that in"),
        (CONNACK_5 + b"\xe0\x02\x95\x00", "raise its max_packet_size (Packet too large)"),
        (CONNACK_5 + b"\xe0\x02\x9a\x00", "keeps no retained messages"),
        (CONNACK_5 + b"\xe0\x02\xa2\x00", "no subscriptions with + in them"),
        (CONNACK_5 + b"\xe0\x02\x98\x00", "its administrator did"),
        (CONNACK_5 + b"\xe0\x02\xf1\x00", "look at its log (reason code 0xF1)"),
    ],
)
def test_a_broker_that_says_why_is_understood(
    answer: bytes, said: str, closing: list[MqttLink]
) -> None:
    with FakeBroker(says(answer)) as broker:
        (gone, *_) = disconnected(poll_until(link_to(broker, closing), disconnected))
    assert said in gone.reason


def test_limits_come_with_the_connection(closing: list[MqttLink]) -> None:
    with FakeBroker(says(connack(b"\x21\x00\x01\x27\x00\x00\x10\x00"))) as broker:
        link = link_to(broker, closing)
        assert connected(poll_until(link, connected)) == [Connected(False, BrokerLimits(1, 4096))]
        assert link.window() == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x95, TOO_LARGE),  # Mosquitto's message_size_limit; MQTT 5 has it for CONNACK only
        (0x97, "Quota exceeded"),
        (0x87, "Not authorized"),
        (0x9A, "Retain not supported"),
        (0xF3, "reason code 0xF3"),
    ],
)
def test_a_refused_publication_ends_no_connection_whatever_the_code(
    code: int, words: str, closing: list[MqttLink]
) -> None:
    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5)
        while packet := connection.recv(4096):
            if packet[0] >> 4 == 3:
                connection.sendall(b"\x40\x04" + packet[7:9] + bytes([code, 0]))

    with FakeBroker(answer) as broker:
        link = link_to(broker, closing)
        poll_until(link, connected)
        link.publish("top", b"x")
        events = poll_until(link, published)
    assert [event.refused for event in published(events)] == [words]
    assert not disconnected(events)


@pytest.mark.parametrize(
    ("code", "words"),
    [(0xA2, "Wildcard subscription not supported"), (0x95, TOO_LARGE), (0xF3, "reason code 0xF3")],
)
def test_a_refused_subscription_ends_no_connection_whatever_the_code(
    code: int, words: str, closing: list[MqttLink]
) -> None:
    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5)
        while packet := connection.recv(4096):
            if packet[0] >> 4 == 8:
                connection.sendall(b"\x90\x05" + packet[2:4] + bytes([0, 1, code]))

    def refused(events: list[Event]) -> list[Event]:
        return [event for event in events if isinstance(event, Subscribed)]

    with FakeBroker(answer) as broker:
        link = link_to(broker, closing)
        poll_until(link, connected)
        link.subscribe(["one", "device/+/status"])
        assert refused(poll_until(link, refused)) == [Subscribed(("device/+/status",), words)]


def test_refusals_are_one_sentence_with_what_to_do_about_each() -> None:
    refusals = Refusals()
    assert refusals.sentence("this server", "it") == ""
    refusals.may_read("device/+/status", "Wildcard subscription not supported")
    refusals.may_write("task/#", "Quota exceeded")
    said = refusals.sentence("this server", "it")
    assert said.startswith(
        "the broker refuses to let this server read device/+/status and write task/#: "
    )
    assert "its quota, often of retained messages, is used up" in said
    assert "it must allow subscriptions with + in them" in said
    refusals.may_read("device/+/status", "")
    refusals.may_write("task/#", "")
    assert refusals.sentence("this server", "it") == ""


@pytest.mark.parametrize("words", ["Unspecified error", "reason code 0xF3", "", "Not authorized"])
def test_every_refusal_has_a_remedy(words: str) -> None:
    assert "its ACL must allow that to board-1" in remedy(words, "board-1")
