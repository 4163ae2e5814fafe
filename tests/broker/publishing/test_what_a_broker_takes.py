"""A server at brokers that take little, refuse something, or keep to limits of their own."""

from collections.abc import Callable

import numpy as np
import pytest
from server_world import World, linear_spec

from broker.lease.server_state import ServerState
from models.protocol.messages import Request
from models.transport.link import WINDOW, BrokerLimits


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A server whose parameters are several chunks."""
    return make_world(spec=linear_spec(features=2000))


def again(world: World) -> None:
    """Connect again to the broker as it is now, which has forgotten everything."""
    world.broker.lose_all_state()
    world.run()


def state(world: World) -> ServerState:
    return world.server.state(world.now, world.now)


def fold(world: World) -> None:
    before = world.manifest().release
    world.device().send_delta(np.full(world.spec.shared_size, 0.1, np.float32), base=before)
    world.run(3600.0)
    assert world.manifest().release == before + 1


@pytest.mark.parametrize("window", range(1, WINDOW + 1))
def test_releases_and_receipts_go_out_whatever_the_receive_maximum(
    world: World, window: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.broker.limits = BrokerLimits(window=window)
    again(world)
    assert world.parameters().size == world.spec.shared_size
    fold(world)
    again(world)
    said = [r for r in caplog.records if "takes few messages at a time" in r.message]
    assert len(said) == (window < 3)  # once
    assert state(world).problem == ""


def test_receipts_have_room_beside_a_release_where_the_window_has(world: World) -> None:
    left: list[int] = []
    publish = world.link.publish

    def watched(topic: str, payload: bytes, *, retain: bool = False) -> int:
        left.append(world.link.window())
        return publish(topic, payload, retain=retain)

    world.link.publish = watched  # type: ignore[method-assign]
    again(world)
    assert min(left) > 2


@pytest.mark.parametrize("max_packet", [1280, 1500, 4096, 6000])
def test_releases_are_cut_into_chunks_that_fit(world: World, max_packet: int) -> None:
    before = world.manifest()
    world.broker.limits = BrokerLimits(max_packet=max_packet)
    again(world)
    sizes = [len(p) for topic, p in world.broker.retained.items() if "/blob/" in topic]
    assert max(sizes) <= BrokerLimits(max_packet=max_packet).max_chunk
    assert world.manifest().chunk_size < before.chunk_size
    assert world.manifest().artifacts == before.artifacts
    assert world.parameters().size == world.spec.shared_size
    fold(world)
    assert state(world).problem == ""


def test_a_restart_at_such_a_broker_publishes_nothing_again(world: World) -> None:
    world.broker.limits = BrokerLimits(max_packet=1500)
    again(world)
    cut = world.manifest().chunk_size
    published: list[str] = []
    world.broker.refuses = lambda topic, size: published.append(topic) or ""  # type: ignore[func-returns-value]
    world.restart()
    world.run(60.0)
    assert published == []
    assert world.manifest().chunk_size == cut


def test_chunks_are_large_again_with_the_release_after_a_limit_was_raised(world: World) -> None:
    world.broker.limits = BrokerLimits(max_packet=1500)
    again(world)
    world.broker.limits = BrokerLimits()
    again(world)
    assert world.manifest().chunk_size == 8192
    assert world.parameters().size == world.spec.shared_size
    fold(world)


def too_large(above: int) -> object:
    return lambda topic, size: "Packet too large" if size > above else ""


@pytest.mark.parametrize("above", [1100, 2000, 5000])
def test_what_a_broker_refuses_as_too_large_is_cut_smaller(world: World, above: int) -> None:
    world.broker.refuses = too_large(above)  # type: ignore[assignment]
    again(world)
    world.run(60.0)
    assert world.manifest().chunk_size <= above
    assert world.parameters().size == world.spec.shared_size
    fold(world)
    world.broker.drop_link("edgefold-broker")
    world.run(60.0)
    assert world.manifest().chunk_size <= above
    assert state(world).problem == ""


def test_what_does_not_fit_at_all_is_a_problem_until_it_does(world: World) -> None:
    world.broker.limits = BrokerLimits(max_packet=400)
    again(world)
    assert "no device gets what belongs on" in state(world).problem
    assert "at most 400 bytes" in world.server.status
    world.broker.limits = BrokerLimits()
    again(world)
    assert state(world).problem == ""
    assert world.parameters().size == world.spec.shared_size


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("Not authorized", "its ACL must allow that to it (Not authorized)"),
        ("Quota exceeded", "its quota, often of retained messages, is used up"),
        ("reason code 0xF3", "its log says why"),
    ],
)
def test_a_refused_release_is_a_problem_of_the_server_until_it_is_taken(
    world: World, refused: str, said: str
) -> None:
    world.broker.refuses = lambda topic, size: refused if "/blob/" in topic else ""
    again(world)
    problem = state(world).problem
    assert problem.startswith("the broker refuses to let this server write blob/#: ")
    assert said in problem
    assert problem in world.server.status
    world.broker.refuses = lambda topic, size: ""
    world.run(60.0)
    assert state(world).problem == ""
    assert world.parameters().size == world.spec.shared_size


def test_a_refused_subscription_is_a_problem_of_the_server(world: World) -> None:
    def denies(pattern: str) -> str:
        return "Wildcard subscription not supported" if "+" in pattern else ""

    world.broker.denies = denies
    world.restart()
    again(world)
    assert state(world).problem == (
        "the broker refuses to let this server read device/+/request, device/+/status, "
        "device/+/update/+/+: it must allow subscriptions with + in them "
        "(Wildcard subscription not supported)"
    )


def test_refused_receipts_are_a_problem_of_the_server(world: World) -> None:
    world.broker.refuses = lambda topic, size: "Not authorized" if "/receipt" in topic else ""
    device = world.device()
    device.send_delta(np.full(world.spec.shared_size, 0.1, np.float32))
    world.run()
    assert "write device/+/receipt: its ACL must allow" in state(world).problem


def test_chunks_that_a_broker_takes_and_drops_are_a_problem_of_the_server(world: World) -> None:
    """As one of MQTT 3.1.1 does with what is too large for it; one answer lost is no news."""
    sha256 = world.manifest().artifacts["parameters"].sha256
    for asked in range(6):
        world.device().request(Request(blobs={sha256: (0, 1)}))
        world.run(10.0)
        assert ("ask again and again for a chunk of 8192 bytes" in state(world).problem) == (
            asked >= 3
        )
    again(world)
    assert state(world).problem == ""


@pytest.mark.parametrize("hidden", ["/task/", "/"])
def test_what_a_broker_drops_without_a_word_is_said_and_published_when_that_is_mended(
    world: World, hidden: str
) -> None:
    """As by MQTT 3.1.1, or by an ACL that hides what it forbids to read."""
    accept = world.broker.accept
    before = dict(world.broker.retained)

    def dropping(topic: str, payload: bytes, *, retain: bool) -> None:
        if hidden not in topic:
            accept(topic, payload, retain=retain)

    world.broker.accept = dropping  # type: ignore[method-assign]
    again(world)
    assert state(world).problem == ""
    for _ in range(10):
        world.run(15.0)
    said = state(world).problem
    assert "does not come back from the broker" in said
    assert "its ACL must let the server read and write edgefold/1/" in said
    world.broker.accept = accept  # type: ignore[method-assign]
    for _ in range(20):
        world.run(15.0)
    assert state(world).problem == ""
    assert world.broker.retained == before
    fold(world)


def test_one_announcement_that_is_lost_is_no_news(world: World) -> None:
    accept = world.broker.accept
    seen: list[str] = []

    def forgetful(topic: str, payload: bytes, *, retain: bool) -> None:
        is_first = topic.endswith("/release") and topic not in seen
        seen.append(topic)
        if is_first:  # it is retained, but did not fit into our queue
            world.broker.retained[topic] = payload
        else:
            accept(topic, payload, retain=retain)

    world.broker.accept = forgetful  # type: ignore[method-assign]
    again(world)
    for _ in range(40):
        world.run(15.0)
        assert state(world).problem == ""
    assert len([topic for topic in seen if topic.endswith("/release")]) == 2
