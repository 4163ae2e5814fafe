"""A device is forgotten, and nothing that a promise rests on."""

from collections.abc import Callable

import pytest
from server_world import World, good_direction

from broker.records.device_records import DeviceRecords
from broker.records.registry import DATABASE, Registry
from models.protocol.messages import Request, Status
from models.transport.link import Published

MakeWorld = Callable[..., World]
FOLD_AT_2 = "[task.aggregation]\nupdates = 2\n"


def ask(world: World, *devices: str) -> None:
    """Ask as another process does."""
    registry = Registry(world.directory / "server" / DATABASE, "test")
    DeviceRecords(registry).ask_to_forget(devices, world.wall)
    registry.close()


def names(world: World) -> list[str]:
    return [row.device for row in world.report().devices]


def report_both(world: World) -> None:
    for name in ("dev-1", "dev-2"):
        world.device(name).report(Status(online=True, task="leaves", release=1, updates_made=1))
    world.run()


def test_a_device_is_forgotten_here_and_at_the_broker(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    report_both(world)
    ask(world, "dev-1")
    assert [row.is_being_forgotten for row in world.report().devices] == [True, False]
    world.run(10)
    assert names(world) == ["dev-2"]
    assert world.topics.status("dev-1") not in world.broker.retained
    assert world.topics.status("dev-2") in world.broker.retained
    world.restart()
    world.run(10)
    assert names(world) == ["dev-2"]


def test_its_updates_are_still_folded_once(make_world: MakeWorld) -> None:
    """What is stored goes into the next release; what is folded is not folded again."""
    world = make_world(FOLD_AT_2)
    device = world.device("dev-1")
    folded = [device.update(good_direction()) for _ in range(2)]
    for update in folded:
        device.send(*update)
    world.run()
    stored, data = device.update(good_direction(), base=2)
    device.send(stored, data)
    world.run()
    ask(world, "dev-1")
    world.run(10)
    assert names(world) == []
    assert (world.report().updates_folded, world.report().tasks[0].waiting) == (2, 1)
    for update in folded:  # it comes back, and its outbox was restored from somewhere
        device.send(*update)
    world.run()
    assert [device.state(update_id) for update_id, _ in folded] == ["folded", "folded"]
    world.device("dev-2").send_delta(good_direction(), base=2)
    world.run()
    report = world.report()
    assert (report.updates_folded, report.updates_folded_twice) == (4, 0)
    assert [release.updates for release in report.tasks[0].releases] == [0, 2, 2]
    assert device.state(stored) == "folded"


def test_its_unfinished_update_is_sent_again_when_it_comes_back(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    device = world.device("dev-1")
    update_id, data = device.update(good_direction())
    device.publish(world.topics.update("dev-1", update_id, 1), data[:1024])
    world.run()
    ask(world, "dev-1")
    world.run(10)
    assert world.server.books.updates.partials.partial_bytes() == 0
    device.request(Request(receipts=(update_id,)))
    world.run()
    assert device.state(update_id) == "unknown"
    device.send(update_id, data)
    world.run()
    assert device.state(update_id) == "folded"


@pytest.mark.parametrize("word", ["status", "update", "still here"])
def test_any_live_word_brings_it_back(make_world: MakeWorld, word: str) -> None:
    world = make_world(FOLD_AT_2)
    report_both(world)
    ask(world, "dev-1")
    world.run(10)
    assert names(world) == ["dev-2"]
    device = world.device("dev-1")
    match word:
        case "status":
            device.report(Status(online=True, task="leaves", release=1))
        case "update":
            device.send_delta(good_direction())
        case _:
            device.request(Request())
    world.run(40)
    world.run()
    assert names(world) == ["dev-1", "dev-2"]
    assert world.report().devices[0].heard
    ask(world, "dev-1")  # and it can be forgotten again
    world.run(10)
    assert names(world) == ["dev-2"]


def test_what_the_broker_retained_or_queued_does_not_bring_it_back(make_world: MakeWorld) -> None:
    """Forgotten while the server is away, as is the word of its end."""
    world = make_world(FOLD_AT_2)
    report_both(world)
    world.broker.drop_link("edgefold-broker", "killed")
    world.device("dev-1").report(Status(online=False))
    ask(world, "dev-1")
    world.start()
    world.run(10)
    assert names(world) == ["dev-2"]


def test_a_status_that_comes_back_with_the_broker_does_not_bring_it_back(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_2)
    report_both(world)
    ask(world, "dev-1")
    world.run(10)
    world.broker.drop_link("edgefold-broker", "killed")
    world.broker.sessions.clear()
    world.broker.retained[world.topics.status("dev-1")] = b'{"online":true,"task":"leaves"}'
    world.start()
    world.run(10)
    assert names(world) == ["dev-2"]


def test_it_goes_on_where_it_was_killed(make_world: MakeWorld) -> None:
    """Between the rows and the broker's word that it cleared the status."""
    world = make_world(FOLD_AT_2)
    report_both(world)
    world.broker.set_reachable("edgefold-broker", False)
    world.run()
    ask(world, "dev-1")
    world.run(10)
    assert names(world) == ["dev-2"]
    assert world.topics.status("dev-1") in world.broker.retained
    world.restart()
    world.broker.set_reachable("edgefold-broker", True)
    world.run(10)
    assert world.topics.status("dev-1") not in world.broker.retained
    assert names(world) == ["dev-2"]


def test_a_broker_that_refuses_is_named_and_asked_again_at_the_next_start(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(FOLD_AT_2)
    report_both(world)
    ask(world, "dev-1")
    world.server.forgetting.look(world.now + 10)
    world.server.forgetting.pump(world.link)
    (token,) = world.server.forgetting.in_flight
    world.server.handle(Published(token, "Not authorized"), world.now, world.wall)
    assert "let the server write edgefold/1/test/device/+/status" in caplog.text
    world.restart()
    world.run(10)
    assert world.topics.status("dev-1") not in world.broker.retained


def test_many_are_forgotten_at_once(make_world: MakeWorld) -> None:
    world = make_world()
    known = world.server.books.devices
    everyone = [f"dev-{number}" for number in range(250)]
    for name in everyone:
        known.introduce(name)
    ask(world, *everyone, "stranger")
    world.run(10)
    assert names(world) == []
    assert known.to_be_forgotten() == []
    assert known.how_many() == 0
