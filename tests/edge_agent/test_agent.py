"""The whole agent in virtual time: what it learns arrives, what is released runs."""

import numpy as np
from tiny_fleet import DEVICE, TASK, Device, Files, Server, tiny_spec

from models.codec.payload import decompress
from models.protocol.messages import STILL_HERE_S, Request, Status, decode_message
from models.protocol.topics import Topics
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink


def test_an_agent_installs_learns_sends_and_forgets_what_is_folded(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    status = device.status
    assert (status.release, status.updates_made, status.updates_waiting) == (1, 1, 0)
    assert status.task == TASK
    assert 0 <= (status.accuracy or -1) <= 1
    assert status.samples in (51, 52)  # a fifth of 64 is held out
    (payload,) = server.updates.values()
    assert np.any(decompress(payload, tiny_spec().shared))


def test_an_idle_agent_sends_nothing(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    """At most 10 bytes per minute beside MQTT's own pings; here: none."""
    Files(1).publish(broker, topics)
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    device.run(60)
    before = device.link.traffic()
    device.run(1800)
    assert device.link.traffic() == before


def test_the_status_tells_what_the_device_does_and_has(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.add_samples(64)
    device.run(60)
    last = server.statuses[-1]
    assert (last.online, last.release, last.updates_folded) == (True, 1, 1)
    assert last.state == "nothing new to learn"
    assert last.installation == device.status.installation
    assert len(server.statuses) < 10


def test_an_idle_device_says_every_hour_that_it_is_there_and_nothing_else(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.run(600)
    statuses, requests, before = len(server.statuses), len(server.requests), device.link.traffic()
    hours = 10
    device.run(hours * STILL_HERE_S + 60)
    assert len(server.statuses) == statuses
    said = server.requests[requests:]
    assert said == [Request()] * len(said)
    assert hours - 1 <= len(said) <= hours
    sent = device.link.traffic().bytes_up - before.bytes_up
    assert sent <= hours * 75, "beside MQTT's pings, of 4 bytes a minute"


def test_a_device_that_is_off_line_saves_no_words_for_later(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    device.run(60)
    broker.set_reachable(DEVICE, False)
    device.run(5 * STILL_HERE_S)
    broker.set_reachable(DEVICE, True)
    server.requests.clear()
    device.run(60)
    assert Request() not in server.requests


def test_a_status_is_told_again_after_the_broker_lost_it(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    device.run(10)
    broker.lose_all_state()
    device.run(10)
    assert topics.status(DEVICE) in broker.retained


def test_a_clean_stop_says_good_bye(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    device.run(10)
    device.agent.stop()
    last = decode_message(broker.retained[topics.status(DEVICE)], Status)
    assert not last.online


def test_a_long_outage_is_said_and_forgotten_when_it_is_over(
    device: Device, broker: MemoryBroker
) -> None:
    device.run(5)
    broker.set_reachable(DEVICE, False)
    device.run(25)
    assert device.status.problem == ""
    device.run(6)
    assert device.status.problem == "not connected: cannot reach the broker"
    broker.set_reachable(DEVICE, True)
    device.run(5)
    assert device.status.problem == ""


def come_as(device: Device, broker: MemoryBroker) -> None:
    """Connect another client of the device's name for a moment."""
    twin = MemoryLink(broker, client_id=DEVICE)
    twin.start()
    twin.poll(0)
    twin.close()


def test_a_cloned_identity_is_reported_at_once_and_forgotten(
    device: Device, broker: MemoryBroker
) -> None:
    device.run(90)
    come_as(device, broker)
    device.run(1)
    assert "cloned" in device.status.problem
    device.run(700)
    assert "cloned" not in device.status.problem


def test_what_may_be_a_late_attempt_of_our_own_is_reported_when_it_comes_again(
    device: Device, broker: MemoryBroker
) -> None:
    device.run(5)
    come_as(device, broker)
    device.run(1)
    assert device.status.problem == ""
    come_as(device, broker)
    device.run(1)
    assert "cloned" in device.status.problem


def test_messages_that_nobody_asked_for_are_dropped(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    device.run(5)
    for topic in ("other", topics.release("foreign"), topics.receipt("board-2"), "edgefold/1/x"):
        broker.subscribe(device.link, topic)
        broker.accept(topic, b"\xff" * 100, retain=False)
    device.run(5)
    assert broker.sessions[DEVICE].unacknowledged == {}
