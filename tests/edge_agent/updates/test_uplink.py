"""Updates: sent in pieces, believed only on receipt, and never lost or doubled."""

import hashlib
from pathlib import Path

import pytest
from tiny_fleet import DEVICE, Clock, Device, Files, Server

from edge_agent.updates.outbox_contents import Trained
from models.protocol.messages import Receipt, Receipts, ServerStatus, encode_message
from models.protocol.topics import Topics
from models.protocol.update import UpdateHeader, encode_header
from models.transport.link import BrokerLimits
from models.transport.refusals import TOO_LARGE
from tools.simulation.machines.memory_broker import MemoryBroker


@pytest.fixture
def ready(device: Device, broker: MemoryBroker, topics: Topics) -> Device:
    """A device that has a release and samples."""
    Files(1).publish(broker, topics)
    device.add_samples(64)
    return device


def test_an_acknowledged_chunk_is_not_a_delivered_update(ready: Device, server: Server) -> None:
    server.is_deaf = True
    assert ready.run(60, until=lambda: ready.status.updates_made == 1)
    ready.run(60)
    assert ready.status.updates_waiting == 1
    assert ready.agent.parts.outbox.waiting()[0].state == "sent"


def test_what_the_server_never_got_is_sent_again(ready: Device, server: Server) -> None:
    server.is_deaf = True
    ready.run(60)
    server.is_deaf = False  # it has lost everything that came so far
    assert ready.run(600, until=lambda: ready.status.updates_folded == 1)
    assert len(server.updates) == 1


def test_a_server_that_came_back_is_asked_at_once_for_what_it_may_not_have_got(
    ready: Device, server: Server, topics: Topics
) -> None:
    """A wiped broker acknowledges chunks before the server has subscribed again."""
    server.is_deaf = True
    assert ready.run(60, until=lambda: ready.status.updates_made == 1)
    assert ready.run(20, until=lambda: ready.agent.parts.outbox.waiting()[0].state == "sent")
    server.is_deaf = False
    online = encode_message(ServerStatus(online=True, tasks=("blobs",)))
    server.link.publish(topics.server_status, online, retain=True)
    assert ready.run(17, until=lambda: ready.status.updates_folded == 1)
    asked = len(server.requests)
    server.link.publish(topics.server_status, online, retain=True)  # no news: nothing is asked
    ready.run(20)
    assert len(server.requests) == asked


def test_a_silent_server_is_asked_ever_more_rarely(ready: Device, server: Server) -> None:
    server.is_deaf = True
    ready.run(60)
    before = ready.link.traffic().bytes_up
    ready.run(3600)
    assert ready.status.updates_waiting == 1
    assert ready.link.traffic().bytes_up - before < 9 * 150


def test_only_the_missing_chunks_are_sent_again(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server, limits__chunk_kib=8)
    seq = queue_big_update(device, 50_000)
    server.verdict = "stored"
    lost = {2, 5}
    take = server.take

    def lossy(event: object) -> None:
        number = int(event.topic.rsplit("/", 1)[1]) if "/update/" in event.topic else -1  # type: ignore[attr-defined]
        if number in lost:
            lost.remove(number)
        else:
            take(event)  # type: ignore[arg-type]

    server.take = lossy  # type: ignore[method-assign,assignment]
    assert device.run(600, until=lambda: bool(server.updates))
    numbers = [number for _, number in server.arrivals]
    assert sorted(numbers) == list(range(7))
    assert device.run(1, until=lambda: device.agent.parts.outbox.waiting()[0].state == "stored")
    assert device.agent.parts.outbox.waiting()[0].seq == seq


def queue_big_update(device: Device, size: int) -> int:
    """Queue an update of several chunks, as a training would."""
    payload = bytes(size)
    header = UpdateHeader(
        "blobs", 1, 10, 5, 1.0, 0.5, None, size, hashlib.sha256(payload).hexdigest()
    )
    head = encode_header(header)
    trained = Trained(1, 1, head, payload, None, None, (), 0)
    return device.agent.parts.outbox.commit(trained, chunk_size=8192, facts={})[0]


def test_a_broken_connection_in_the_middle_of_an_update_costs_nothing(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 100_000)
    for _ in range(3):
        device.run(0.01)
        broker.drop_link(DEVICE)
    assert device.run(600, until=lambda: device.status.updates_folded == 1)


@pytest.mark.parametrize("events", range(12))
def test_a_crash_at_any_moment_of_sending_loses_and_doubles_nothing(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server, events: int
) -> None:
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 60_000)
    for _ in range(events):
        for event in device.link.poll(0)[:2]:
            device.agent.handle(event, clock.now)
        device.agent.tick(clock.now)
        server.step()
    device.restart()
    assert device.run(900, until=lambda: device.status.updates_folded == 1)
    assert len(server.updates) == 1
    assert device.status.updates_waiting == 0


def test_receipts_of_others_and_hostile_ones_change_nothing(
    ready: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    server.verdict = "stored"
    ready.run(60)
    topic = topics.receipt(DEVICE)
    identity = ready.status.installation
    for payload in (
        b"",
        b"{",
        b'{"receipts": [{"update": "x", "state": "folded"}]}',
        encode_message(Receipts((Receipt("00000000-1", "folded"),))),
        encode_message(Receipts((Receipt(f"{identity}-99", "refused"),))),
        encode_message(Receipts((Receipt(f"{identity}-999999999999999999", "folded"),))),
        encode_message(Receipts((Receipt(f"{identity}-1", "partial", missing=(10**9,)),))),
    ):
        broker.accept(topic, payload, retain=False)
    ready.run(30)
    assert ready.status.updates_waiting == 1
    assert ready.status.updates_folded == 0


def test_a_refused_update_is_learned_again_with_the_next_one(
    ready: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    server.verdict = "refused"
    assert ready.run(60, until=lambda: ready.status.updates_refused == 1)
    assert ready.agent.parts.outbox.carried.refunds() == [1]
    server.verdict = "folded"
    Files(2).publish(broker, topics)
    assert ready.run(60, until=lambda: ready.status.updates_folded == 1)
    assert ready.agent.parts.outbox.carried.refunds() == []


def test_without_a_broker_the_device_goes_on_learning(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock, server: Server
) -> None:
    """Invariant 8; and invariant 7: updates that never left are merged back when there are many."""
    device = Device(tmp_path, broker, clock, server, training__max_waiting=2)
    Files(1).publish(broker, topics)
    device.run(10, until=lambda: device.status.release == 1)
    broker.set_reachable(DEVICE, False)
    for round_number in range(5):
        device.add_samples(32, seed=10 + round_number)
        device.run(60)
    assert device.status.updates_made == 5
    assert device.status.updates_waiting == 2
    assert device.status.problem.startswith("not connected")
    broker.set_reachable(DEVICE, True)
    assert device.run(600, until=lambda: device.status.updates_folded == 2)


@pytest.mark.parametrize("max_packet", [1500, 4096, 20_000])
def test_an_update_is_cut_into_chunks_that_the_broker_takes(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server, max_packet: int
) -> None:
    broker.limits = BrokerLimits(max_packet=max_packet)
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 100_000)
    assert device.run(600, until=lambda: device.status.updates_folded == 1)
    assert not device.status.problem


def test_an_update_under_way_is_cut_anew_where_the_next_broker_takes_less(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 500_000)
    device.run(0.01)
    broker.limits = BrokerLimits(max_packet=3000)
    broker.drop_link(DEVICE)
    assert device.run(600, until=lambda: device.status.updates_folded == 1)


@pytest.mark.parametrize("above", [1100, 3000, 10_000])
def test_chunks_that_a_broker_refuses_as_too_large_get_smaller(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server, above: int
) -> None:
    broker.refuses = lambda topic, size: TOO_LARGE if size > above else ""
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 100_000)
    assert device.run(600, until=lambda: device.status.updates_folded == 1)
    assert not device.status.problem


@pytest.mark.parametrize("window", [1, 2, 3])
def test_one_message_at_a_time_is_enough_for_an_update(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server, window: int
) -> None:
    broker.limits = BrokerLimits(window=window)
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 100_000)
    assert device.run(600, until=lambda: device.status.updates_folded == 1)


def test_a_refused_update_is_said_with_what_is_to_be_done(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server
) -> None:
    broker.refuses = lambda topic, size: "Quota exceeded" if "/update/" in topic else ""
    device = Device(tmp_path, broker, clock, server)
    queue_big_update(device, 1000)
    device.run(30)
    (problem,) = [p for p in device.agent.parts.problems.all() if p.part == "sending"]
    assert "write device/board-1/update/#: its quota" in problem.text
    assert problem.text.endswith("(Quota exceeded)")
