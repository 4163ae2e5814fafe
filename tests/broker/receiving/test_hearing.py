"""What counts as heard now."""

from collections.abc import Callable

import pytest
from server_world import World, good_direction

from broker.receiving.hearing import CATCH_UP_S, NOTE_S, Heard, Hearing
from broker.receiving.incoming import Incoming, parsed
from models.protocol.messages import Request, Status, encode_message
from models.protocol.topics import Topics
from models.transport.link import Received

TOPICS = Topics("fleet")
HERE = encode_message(Status(online=True, task="leaves"))
GONE = encode_message(Status(online=False))
STILL_HERE = encode_message(Request())


@pytest.fixture
def hearing() -> Hearing:
    """Connected at 0 to a session that the broker had kept."""
    hearing = Hearing()
    hearing.connected(0.0, session_present=True)
    return hearing


def message(topic: str, payload: bytes, *, retained: bool = False) -> Incoming:
    return parsed(TOPICS, Received(topic, payload, retained, 1))


def test_what_was_queued_and_what_is_retained_is_not_heard(hearing: Hearing) -> None:
    hearing.take(message(TOPICS.status("dev-1"), HERE), 1.0, 1.0)  # queued
    hearing.take(message(TOPICS.release("leaves"), b"{}", retained=True), 2.0, 2.0)
    hearing.take(message(TOPICS.status("dev-2"), HERE, retained=True), 3.0, 3.0)
    assert hearing.unnoted() == {}
    hearing.take(message(TOPICS.status("dev-3"), HERE), 4.0, 4.0)
    assert hearing.unnoted() == {"dev-3": Heard(4.0, is_here=True)}


def test_without_a_session_nothing_was_queued() -> None:
    hearing = Hearing()
    hearing.connected(0.0, session_present=False)
    hearing.take(message(TOPICS.request("dev-1"), STILL_HERE), 1.0, 1.0)
    assert hearing.unnoted() == {"dev-1": Heard(1.0, is_here=True)}


def test_without_a_retained_release_it_listens_after_a_while(hearing: Hearing) -> None:
    assert not hearing.is_listening(CATCH_UP_S - 1)
    assert hearing.is_listening(CATCH_UP_S)
    hearing.disconnected()
    assert not hearing.is_listening(CATCH_UP_S)


def test_the_last_word_counts_and_nonsense_does_not(hearing: Hearing) -> None:
    hearing.take(message(TOPICS.release("leaves"), b"{}", retained=True), 0.0, 0.0)
    hearing.take(message(TOPICS.update("dev-1", "00000001-1", 0), b"chunk"), 1.0, 1.0)
    hearing.take(message(TOPICS.status("dev-1"), GONE), 2.0, 2.0)
    hearing.take(message(TOPICS.status("dev-2"), b"\xff"), 3.0, 3.0)
    hearing.take(message(TOPICS.status("dev-3"), b""), 3.0, 3.0)  # somebody cleared it
    hearing.take(message("edgefold/1/other/device/dev-4/status", HERE), 3.0, 3.0)
    assert hearing.unnoted() == {"dev-1": Heard(2.0, is_here=False)}


def test_it_is_noted_within_half_a_minute(hearing: Hearing) -> None:
    hearing.take(message(TOPICS.release("leaves"), b"{}", retained=True), 0.0, 0.0)
    assert not hearing.due(1e9)
    hearing.take(message(TOPICS.request("dev-1"), STILL_HERE), 100.0, 100.0)
    assert not hearing.due(100.0 + NOTE_S - 1)
    assert hearing.due(100.0 + NOTE_S)
    hearing.noted()
    hearing.take(message(TOPICS.request("dev-1"), STILL_HERE), 200.0, 50.0)  # it was set back
    assert not hearing.due(200.0 + NOTE_S - 1)
    assert hearing.due(200.0 + NOTE_S)
    hearing.noted()
    assert not hearing.due(1e9)


# In a fleet


def test_a_restart_of_the_server_hears_nobody(make_world: Callable[..., World]) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    away, there = world.device("away"), world.device("there")
    for device in (away, there):
        device.report(Status(online=True, task="leaves", release=1))
    away.report(Status(online=False, task="leaves"))
    world.run()
    heard = world.wall
    assert presences(world) == {"away": ("away", heard), "there": ("online", heard)}
    world.run(7200)
    world.restart()
    world.run(1)
    assert {name: at for name, (_, at) in presences(world).items()} == dict.fromkeys(
        ("away", "there"), heard
    )
    there.send_delta(good_direction())
    world.run()
    assert presences(world) == {"away": ("away", heard), "there": ("online", world.wall)}


def test_what_came_while_the_server_was_away_is_not_heard_when_it_is_back(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    device = world.device("dev-1")
    device.report(Status(online=True, task="leaves", release=1))
    world.run()
    heard = world.wall
    world.broker.drop_link("edgefold-broker", "killed")
    world.now += 600
    device.report(Status(online=True, task="leaves", release=1, problem="hot"))
    world.now += 7200
    world.start()
    world.run(1)
    (row,) = world.report().devices
    assert row.status is not None
    assert (row.status.problem, row.heard, row.presence) == ("hot", heard, "unconfirmed")
    device.request(Request())
    world.run(NOTE_S)
    world.run()
    (row,) = world.report().devices
    assert (row.heard, row.presence) == (world.wall - NOTE_S, "online")


def test_a_word_that_says_nothing_else_is_noted_and_brings_back_a_device_whose_will_came(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    device = world.device("dev-1")
    device.report(Status(online=True, task="leaves", release=1))
    device.report(Status(online=False))
    world.run()
    assert presences(world)["dev-1"][0] == "away"
    device.request(Request())
    world.run(NOTE_S)
    world.run()
    assert presences(world)["dev-1"][0] == "online"


def presences(world: World) -> dict[str, tuple[str, float]]:
    return {row.device: (row.presence, row.heard) for row in world.report().devices}
