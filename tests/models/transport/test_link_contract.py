"""The contract of a link: of `MemoryLink`, of `VirtualLink`, of `MqttLink` on two real brokers."""

import pytest
from link_worlds import World, poll_until, received

from models.errors import TransientError
from models.transport.link import WINDOW, Connected, Disconnected, Event, Link, Published, Received


def connected(events: list[Event]) -> list[Connected]:
    return [event for event in events if isinstance(event, Connected)]


def disconnected(events: list[Event]) -> list[Disconnected]:
    return [event for event in events if isinstance(event, Disconnected)]


def tokens(events: list[Event]) -> list[int]:
    return [event.token for event in events if isinstance(event, Published)]


def payloads(events: list[Event]) -> list[bytes]:
    return [message.payload for message in received(events)]


def started(world: World, name: str, *, will: tuple[str, bytes] | None = None) -> Link:
    link = world.link(name, will=will)
    link.start()
    poll_until(link, connected)
    return link


def subscribed(world: World, name: str, pattern: str) -> Link:
    """Return a link whose subscription the broker has for sure: a message came through it."""
    link = started(world, name)
    link.subscribe([pattern, world.topic(f"probe/{name}")])
    probes: list[bytes] = []
    while b"probe" not in probes:
        link.publish(world.topic(f"probe/{name}"), b"probe")
        events = poll_until(link, tokens)
        events += link.poll(0.3)
        for message in received(events):
            link.acknowledge(message)
        probes += payloads(events)
    return link


def test_a_link_tells_whether_the_broker_remembers_it(world: World) -> None:
    link = world.link("device")
    link.start()
    assert connected(poll_until(link, connected)) == [Connected(session_present=False)]
    link.close()
    again = world.link("device")
    again.start()
    assert connected(poll_until(again, connected)) == [Connected(session_present=True)]


def test_a_publication_arrives_and_its_token_comes_back(world: World) -> None:
    reader = subscribed(world, "reader", world.topic("a"))
    writer = started(world, "writer")
    token = writer.publish(world.topic("a"), b"\x00payload\xff")
    assert tokens(poll_until(writer, tokens)) == [token]
    (message,) = received(poll_until(reader, received))
    assert message == Received(world.topic("a"), b"\x00payload\xff", False, message.handle)


def test_the_window_closes_after_eight_and_opens_with_polling(world: World) -> None:
    writer = world.link("writer")
    assert writer.window() == 0
    with pytest.raises(TransientError):
        writer.publish(world.topic("a"), b"too early")
    writer.start()
    poll_until(writer, connected)
    sent = [writer.publish(world.topic("a"), b"x") for _ in range(WINDOW)]
    assert writer.window() == 0
    with pytest.raises(TransientError):
        writer.publish(world.topic("a"), b"one too many")
    events = poll_until(writer, lambda events: len(tokens(events)) == WINDOW)
    assert sorted(tokens(events)) == sent
    assert writer.window() == WINDOW


def test_a_retained_message_is_there_for_who_comes_later_until_it_is_cleared(world: World) -> None:
    writer = started(world, "writer")
    writer.publish(world.topic("a"), b"old", retain=True)
    writer.publish(world.topic("a"), b"new", retain=True)
    poll_until(writer, lambda events: len(tokens(events)) == 2)
    reader = started(world, "reader")
    reader.subscribe([world.topic("a")])
    (message,) = received(poll_until(reader, received))
    assert (message.payload, message.retained) == (b"new", True)
    reader.acknowledge(message)
    writer.publish(world.topic("a"), b"", retain=True)
    poll_until(writer, tokens)
    late = subscribed(world, "late", world.topic("a"))
    assert received(late.poll(0.2)) == []


def test_wildcards_cover_one_level_or_all_the_rest(world: World) -> None:
    plus = subscribed(world, "plus", world.topic("device/+/status"))
    rest = subscribed(world, "rest", world.topic("device/#"))
    writer = started(world, "writer")
    for name in ("device/one/status", "device/two/update/3", "other", "device"):
        writer.publish(world.topic(name), name.encode())
    poll_until(writer, lambda events: len(tokens(events)) == 4)
    assert payloads(poll_until(plus, received)) == [b"device/one/status"]
    events = poll_until(rest, lambda events: len(received(events)) >= 3)
    assert set(payloads(events)) == {b"device/one/status", b"device/two/update/3", b"device"}


def test_messages_wait_for_a_client_that_is_away(world: World) -> None:
    subscribed(world, "reader", world.topic("a")).close()
    writer = started(world, "writer")
    for number in range(20):
        if writer.window() == 0:
            poll_until(writer, tokens)
        writer.publish(world.topic("a"), bytes([number]))
    again = world.link("reader")
    again.start()
    got: list[bytes] = []
    while len(set(got)) < 20:
        for message in received(poll_until(again, received)):
            again.acknowledge(message)
            got.append(message.payload)
    assert sorted(set(got)) == [bytes([number]) for number in range(20)]


def test_a_message_is_repeated_until_it_is_acknowledged(world: World) -> None:
    reader = subscribed(world, "reader", world.topic("a"))
    writer = started(world, "writer")
    writer.publish(world.topic("a"), b"one")
    writer.publish(world.topic("a"), b"two")
    first = received(poll_until(reader, lambda events: len(received(events)) == 2))
    reader.acknowledge(first[0])
    reader.poll(0.2)
    world.cut("reader")
    events = poll_until(reader, received)
    assert connected(events) == [Connected(session_present=True)]
    assert payloads(events) == [b"two"]
    # An acknowledgement from before the cut means nothing now.
    reader.acknowledge(first[1])
    reader.poll(0.2)
    world.cut("reader")
    (message,) = received(poll_until(reader, received))
    assert message.payload == b"two"
    reader.acknowledge(message)
    reader.poll(0.2)
    world.cut("reader")
    assert received(poll_until(reader, connected) + reader.poll(0.3)) == []


def test_the_will_is_published_when_a_client_vanishes_and_not_when_it_leaves(world: World) -> None:
    watcher = subscribed(world, "watcher", world.topic("status"))
    device = started(world, "device", will=(world.topic("status"), b"offline"))
    device.close()
    assert received(watcher.poll(0.3)) == []
    device = started(world, "device", will=(world.topic("status"), b"offline"))
    world.set_reachable("device", False)
    assert payloads(poll_until(watcher, received)) == [b"offline"]
    late = started(world, "late")
    late.subscribe([world.topic("status")])
    (message,) = received(poll_until(late, received))
    assert (message.payload, message.retained) == (b"offline", True)


def test_a_link_comes_back_by_itself_and_says_why_it_was_gone(world: World) -> None:
    link = world.link("device")
    world_events: list[Event] = []
    world.set_reachable("device", False)
    link.start()
    world_events += poll_until(link, lambda events: events)
    assert isinstance(world_events[0], Disconnected)
    assert world_events[0].reason
    assert link.window() == 0
    world.set_reachable("device", True)
    poll_until(link, connected)
    assert link.window() == WINDOW


def test_a_broker_that_lost_everything_is_noticed(world: World) -> None:
    link = subscribed(world, "device", world.topic("a"))
    world.lose_all_state()
    events = poll_until(link, connected)
    assert connected(events) == [Connected(session_present=False)]
    link.subscribe([world.topic("a")])
    writer = started(world, "writer")
    writer.publish(world.topic("a"), b"again", retain=True)
    assert payloads(poll_until(link, received)) == [b"again"]


def test_what_was_asked_for_while_away_is_asked_for_on_return(world: World) -> None:
    link = started(world, "device")
    world.set_reachable("device", False)
    poll_until(link, lambda events: events)
    link.subscribe([world.topic("a")])
    world.set_reachable("device", True)
    poll_until(link, connected)
    writer = started(world, "writer")
    writer.publish(world.topic("a"), b"x", retain=True)
    assert set(payloads(poll_until(link, received))) == {b"x"}


def test_what_was_asked_for_just_before_a_cut_is_asked_for_again(world: World) -> None:
    link = started(world, "device")
    link.subscribe([world.topic("a")])
    world.cut("device")
    poll_until(link, connected)
    writer = started(world, "writer")
    writer.publish(world.topic("a"), b"x", retain=True)
    assert set(payloads(poll_until(link, received))) == {b"x"}


def test_an_unsubscribed_topic_is_silent(world: World) -> None:
    link = subscribed(world, "device", world.topic("a"))
    link.unsubscribe([world.topic("a")])
    link.poll(0.3)
    link.publish(world.topic("a"), b"x")
    assert received(poll_until(link, tokens) + link.poll(0.3)) == []


def test_publications_survive_a_cut_and_each_token_comes_once(world: World) -> None:
    reader = subscribed(world, "reader", world.topic("a"))
    writer = started(world, "writer")
    sent = [writer.publish(world.topic("a"), bytes([number])) for number in range(WINDOW)]
    world.cut("writer")
    events = poll_until(writer, lambda events: len(tokens(events)) >= WINDOW)
    events += writer.poll(0.3)
    assert sorted(tokens(events)) == sent
    assert writer.window() == WINDOW
    got: set[bytes] = set()
    while len(got) < WINDOW:
        for message in received(poll_until(reader, received)):
            reader.acknowledge(message)
            got.add(message.payload)


def test_a_broker_that_lost_everything_still_gets_what_was_on_its_way(world: World) -> None:
    writer = started(world, "writer")
    world.set_reachable("writer", False)
    sent = [writer.publish(world.topic("a"), bytes([number]), retain=True) for number in range(4)]
    world.lose_all_state()
    world.set_reachable("writer", True)
    events = poll_until(writer, lambda events: len(tokens(events)) == 4)
    assert sorted(tokens(events)) == sent
    reader = started(world, "reader")
    reader.subscribe([world.topic("a")])
    assert payloads(poll_until(reader, received)) == [b"\x03"]


def test_a_link_that_waits_comes_back_when_it_is_told_to(world: World) -> None:
    """What it had handed over goes out then."""
    link = world.link("server", waits=True)
    link.start()
    poll_until(link, connected)
    world.cut("server")
    poll_until(link, disconnected)
    assert connected(link.poll(1.5)) == []
    link.resume()
    poll_until(link, connected)
    world.set_reachable("server", False)
    poll_until(link, disconnected)
    link.resume()  # before it can: it tries until it is through
    world.set_reachable("server", True)
    poll_until(link, connected)
    token = link.publish(world.topic("a"), b"x")
    assert tokens(poll_until(link, tokens)) == [token]


def test_a_link_that_waits_can_be_closed(world: World) -> None:
    link = world.link("server", waits=True)
    link.start()
    poll_until(link, connected)
    world.cut("server")
    poll_until(link, disconnected)
    link.close()
    again = started(world, "server")
    assert again.window() == WINDOW


def test_the_broker_keeps_nothing_for_a_passing_link(world: World) -> None:
    passing = world.link("scout", is_passing=True)
    passing.start()
    poll_until(passing, connected)
    passing.subscribe([world.topic("a")])
    passing.poll(0.3)
    passing.close()
    again = world.link("scout", is_passing=True)
    again.start()
    assert connected(poll_until(again, connected)) == [Connected(session_present=False)]
    again.close()
    lasting = world.link("scout")
    lasting.start()
    events = poll_until(lasting, connected)
    if getattr(lasting, "protocol", "5") == "5":  # amqtt keeps a session of everybody
        assert connected(events) == [Connected(session_present=False)]


def test_eight_messages_at_most_wait_for_acknowledgement(world: World) -> None:
    """On MQTT 3.1.1 the broker decides; mosquitto allows 20, and amqtt has no limit."""
    reader = subscribed(world, "reader", world.topic("a"))
    if getattr(reader, "protocol", "5") != "5":
        pytest.skip("no receive maximum in MQTT 3.1.1")
    writer = started(world, "writer")
    for number in range(2 * WINDOW):
        if writer.window() == 0:
            poll_until(writer, tokens)
        writer.publish(world.topic("a"), bytes([number]))
    messages = received(poll_until(reader, lambda events: len(received(events)) == WINDOW))
    assert received(reader.poll(0.3)) == []
    for message in messages:
        reader.acknowledge(message)
    poll_until(reader, lambda events: len(received(events)) == WINDOW)


def test_traffic_grows_with_what_is_sent_and_silence_ends_with_an_answer(world: World) -> None:
    link = started(world, "device")
    before = link.traffic()
    link.publish(world.topic("a"), bytes(10_000))
    poll_until(link, tokens)
    after = link.traffic()
    assert 10_000 <= after.bytes_up - before.bytes_up <= 10_100
    assert before.bytes_down <= after.bytes_down <= before.bytes_down + 20
    assert 0 <= link.silence_s() < 1
