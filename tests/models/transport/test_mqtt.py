"""What only happens on real connections: versions, refusals, broken and hostile brokers."""

import gc
import os
import random
import resource
import socket
import threading
import time
from pathlib import Path

import pytest
from bad_link import BadLink
from fake_broker import CONNACK_5, CONNACK_311, FakeBroker, until_closed
from link_worlds import connected, disconnected, poll_until, published, received

from models.errors import UsageError
from models.transport import mqtt_connection, reconnection
from models.transport.link import Connected
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker


@pytest.mark.slow
def test_mqtt_5_is_spoken_where_the_broker_has_it_and_3_1_1_where_not(
    any_broker: LocalBroker, closing: list[MqttLink]
) -> None:
    for number in range(2):
        link = MqttLink(
            any_broker.host,
            any_broker.port,
            client_id=f"version-{number}",
            will=("status", b"gone"),
            username=any_broker.username,
            password=any_broker.password,
        )
        closing.append(link)
        link.start()
        poll_until(link, connected, timeout_s=5.0)
        assert link.protocol == ("5" if any_broker.kind == "mosquitto" else "3.1.1")


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["silence", "hanging up"])
def test_a_broker_that_does_not_answer_mqtt_5_is_asked_in_3_1_1(
    manner: str, closing: list[MqttLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnection, "PROBE_TIMEOUT_S", 0.5)

    def answer(connection: socket.socket, level: int) -> None:
        if level == 4:
            connection.sendall(CONNACK_311)
            until_closed(connection)
        elif manner == "silence":
            until_closed(connection)

    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, seed=1)
        closing.append(link)
        link.start()
        poll_until(link, connected)
        assert link.protocol == "3.1.1"
        assert broker.levels[0] == 5
        assert broker.levels[-1] == 4


@pytest.mark.slow
def test_traffic_is_what_goes_over_the_wire_to_the_byte(
    mosquitto: LocalBroker, closing: list[MqttLink]
) -> None:
    with BadLink((mosquitto.host, mosquitto.port)) as wire:
        link = MqttLink(wire.host, wire.port, client_id="counted", will=("w", b"x"), keepalive_s=1)
        closing.append(link)
        link.start()
        poll_until(link, connected)
        link.subscribe(["counted/#"])
        link.publish("counted/a", bytes(5000))
        for message in received(poll_until(link, received)):
            link.acknowledge(message)
        link.poll(2.2)  # two pings
        # Something may be under way, on a busy machine for longer.
        poll_until(link, lambda _: link.traffic() == (wire.bytes_up, wire.bytes_down))
        poll_until(link, lambda _: link.silence_s() < 2.0)


@pytest.mark.slow
def test_messages_leave_nothing_behind_for_the_garbage_collector(
    mosquitto: LocalBroker, closing: list[MqttLink]
) -> None:
    link = MqttLink(mosquitto.host, mosquitto.port, client_id="tidy", will=None)
    closing.append(link)
    link.start()
    poll_until(link, connected)
    link.subscribe(["tidy/#"])
    gc.collect()
    gc.disable()
    try:
        for number in range(50):
            link.publish("tidy/a", str(number).encode())
            for message in received(poll_until(link, received)):
                link.acknowledge(message)
            poll_until(link, lambda _: link.window() > 0)
        assert gc.collect() < 50
    finally:
        gc.enable()


@pytest.mark.slow
def test_silence_grows_while_the_broker_is_gone(
    mosquitto: LocalBroker, closing: list[MqttLink]
) -> None:
    with BadLink((mosquitto.host, mosquitto.port)) as wire:
        link = MqttLink(wire.host, wire.port, client_id="lonely", will=None)
        closing.append(link)
        link.start()
        poll_until(link, connected)
        wire.close()
        poll_until(link, disconnected)
        deadline = time.monotonic() + 10
        while link.silence_s() < 1.0:
            assert time.monotonic() < deadline
            link.poll(0.2)


@pytest.mark.slow
def test_queued_and_retained_messages_survive_a_restart_of_a_persistent_broker(
    tmp_path: Path, closing: list[MqttLink]
) -> None:
    with LocalBroker("mosquitto", directory=tmp_path, persistence=True) as broker:

        def link(name: str) -> MqttLink:
            made = MqttLink(broker.host, broker.port, client_id=name, will=None, seed=3)
            closing.append(made)
            made.start()
            return made

        reader = link("reader")
        poll_until(reader, connected)
        reader.subscribe(["a/#"])
        reader.poll(0.3)
        reader.close()
        writer = link("writer")
        poll_until(writer, connected)
        for number in range(8):
            writer.publish(f"a/{number}", b"x", retain=True)
        poll_until(writer, lambda events: len(published(events)) == 8)
        broker.stop()
        poll_until(writer, disconnected)
        broker.start()
        assert connected(poll_until(writer, connected)) == [Connected(session_present=True)]
        again = link("reader")
        events = poll_until(again, lambda events: len(received(events)) == 8)
        assert connected(events) == [Connected(session_present=True)]


@pytest.mark.slow
def test_a_message_over_the_limit_is_dropped_and_not_sent_again(
    mosquitto: LocalBroker, closing: list[MqttLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 3.1.1 the broker does not know our limit."""
    reader = MqttLink(
        mosquitto.host, mosquitto.port, client_id="small", will=None, protocol="3.1.1", seed=1
    )
    writer = MqttLink(mosquitto.host, mosquitto.port, client_id="big", will=None)
    closing += [reader, writer]
    for link in (reader, writer):
        link.start()
        poll_until(link, connected)
    reader.subscribe(["size"])
    reader.poll(0.3)
    monkeypatch.setattr(mqtt_connection, "MAX_PACKET", 10_000)
    for payload in (bytes(9_000), bytes(200_000), b"after"):
        writer.publish("size", payload)
        poll_until(writer, published)
    events = poll_until(reader, lambda events: len(received(events)) == 2)
    assert [len(message.payload) for message in received(events)] == [9_000, 5]


@pytest.mark.slow
def test_a_publication_over_the_brokers_limit_is_refused_with_advice(
    tmp_path: Path, closing: list[MqttLink]
) -> None:
    with LocalBroker("mosquitto", directory=tmp_path, settings=["max_packet_size 2000"]) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None)
        closing.append(link)
        link.start()
        poll_until(link, connected)
        with pytest.raises(UsageError, match="max_packet_size"):
            link.publish("a", bytes(2000))
        link.publish("a", bytes(1900))
        poll_until(link, published)


@pytest.mark.slow
def test_garbage_from_a_broker_costs_a_connection_and_never_the_link(
    closing: list[MqttLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random packets of every type, valid in length or not; then it behaves, and we are there."""
    generator = random.Random(1)
    monkeypatch.setattr(reconnection, "reconnect_delay", lambda attempt, uniform: 0.001)
    rounds = 150

    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5)
        if len(broker.levels) >= rounds:
            until_closed(connection)
            return
        for _ in range(generator.randrange(1, 6)):
            body = generator.randbytes(generator.randrange(0, 40))
            length = len(body) if generator.random() < 0.8 else generator.randrange(128)
            connection.sendall(bytes([generator.randrange(16, 256), length]) + body)

    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, protocol="5")
        closing.append(link)
        link.start()
        poll_until(link, lambda events: len(broker.levels) >= rounds, timeout_s=30.0)
        poll_until(link, lambda events: link.window() > 0)
        link.publish("still", b"here")


@pytest.mark.slow
def test_an_absurd_packet_is_not_even_read(closing: list[MqttLink]) -> None:
    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5)
        if len(broker.levels) == 1:
            connection.sendall(b"\x32\xff\xff\xff\x7f" + bytes(1 << 16))  # 256 MiB to come
        until_closed(connection)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, protocol="5", seed=1)
        closing.append(link)
        link.start()
        poll_until(link, lambda events: len(connected(events)) == 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.slow
def test_nobody_polling_bounds_what_is_held(
    closing: list[MqttLink], mosquitto: LocalBroker
) -> None:
    """8 unacknowledged on MQTT 5; a flood of QoS 0 is dropped above the limit."""
    events = mqtt_connection.MAX_WAITING + 50

    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5 + events * b"\x30\x06\x00\x01a\x00xx")
        until_closed(connection)

    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, protocol="5")
        closing.append(link)
        link.start()
        poll_until(link, received)
        got = 1
        while more := link.poll(0.3):
            got += len(received(more))
        assert got <= events
        assert link.window() > 0


@pytest.mark.slow
def test_300_messages_over_a_link_that_is_cut_all_the_time_arrive(
    mosquitto: LocalBroker, closing: list[MqttLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean life of a connection 0.4 s, both sides behind it; paho alone lost 60 % with QoS 2."""
    count = 300
    monkeypatch.setattr(reconnection, "reconnect_delay", lambda attempt, uniform: 0.05)
    target = (mosquitto.host, mosquitto.port)
    with (
        BadLink(target, mean_life_s=0.4, seed=7, rate=1.5e6) as up,
        BadLink(target, mean_life_s=0.4, seed=8, rate=1.5e6) as down,
    ):
        writer = MqttLink(up.host, up.port, client_id="chaos-writer", will=None)
        reader = MqttLink(down.host, down.port, client_id="chaos-reader", will=None)
        closing += [writer, reader]
        reader.start()
        poll_until(reader, connected)
        reader.subscribe(["chaos"])
        writer.start()
        got: dict[int, int] = {}
        tokens: list[int] = []
        sent = 0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            tokens += [event.token for event in published(writer.poll(0.002))]
            if sent < count and writer.window():
                writer.publish("chaos", sent.to_bytes(4, "big") + os.urandom(19_996))
                sent += 1
                assert sent - len(tokens) <= 8
            for event in reader.poll(0.002):
                if isinstance(event, Connected) and not event.session_present:
                    reader.subscribe(["chaos"])
                if message := received([event]):
                    number = int.from_bytes(message[0].payload[:4], "big")
                    assert len(message[0].payload) == 20_000
                    got[number] = got.get(number, 0) + 1
                    reader.acknowledge(message[0])
            if len(got) == count and len(tokens) == count:
                break
    assert len(tokens) == len(set(tokens)) == count
    assert sorted(got) == list(range(count))
    assert up.cuts + down.cuts >= 10


@pytest.mark.slow
def test_a_link_slower_than_its_keepalive_moves_big_chunks_without_one_disconnect(
    mosquitto: LocalBroker, closing: list[MqttLink]
) -> None:
    """6 chunks of 64 KiB at 80 kB/s take 5 s, with a keepalive of 2 s; first up, then down."""
    chunk = bytes(64 * 1024)
    topics = [f"slow/{number}" for number in range(6)]
    with BadLink((mosquitto.host, mosquitto.port), rate=80_000) as slow:
        link = MqttLink(slow.host, slow.port, client_id="slow", will=None, keepalive_s=2)
        closing.append(link)
        link.start()
        events = poll_until(link, connected)
        for topic in topics:
            while link.window() == 0:
                events += link.poll(0.1)
            link.publish(topic, chunk, retain=True)
        while len(published(events)) < len(topics):
            events += link.poll(0.1)
        link.subscribe(topics)
        while len(received(events)) < len(topics):
            new = link.poll(0.1)
            for message in received(new):
                link.acknowledge(message)
            events += new
    assert disconnected(events) == []
    assert sorted(message.topic for message in received(events)) == topics


@pytest.mark.slow
def test_a_link_that_allows_it_is_sent_many_messages_ahead(
    mosquitto: LocalBroker, closing: list[MqttLink]
) -> None:
    """As many as the broker's own limit has it, which is 20 by default."""
    reader = MqttLink(mosquitto.host, mosquitto.port, client_id="eager", will=None, ahead=64)
    writer = MqttLink(mosquitto.host, mosquitto.port, client_id="many", will=None)
    closing += [reader, writer]
    for link in (reader, writer):
        link.start()
        poll_until(link, connected)
    reader.subscribe(["many"])
    reader.poll(0.3)
    for number in range(40):
        while writer.window() == 0:
            writer.poll(0.05)
        writer.publish("many", bytes([number]))
    ahead = received(poll_until(reader, lambda events: len(received(events)) >= 20))
    for message in ahead:
        reader.acknowledge(message)
    rest = poll_until(reader, lambda events: len(received(events)) >= 40 - len(ahead))
    assert [m.payload[0] for m in (*ahead, *received(rest))] == list(range(40))


def test_another_thread_can_end_a_poll() -> None:
    """Before, in the middle of it, and with no connection at all."""
    link = MqttLink("127.0.0.1", 1, client_id="a", will=None)
    began = time.monotonic()
    link.wake()
    assert link.poll(30.0) == []
    threading.Timer(0.1, link.wake).start()
    assert link.poll(30.0) == []
    assert time.monotonic() - began < 20.0
    assert link.poll(0.0) == []
