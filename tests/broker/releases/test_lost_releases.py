"""A registry from a backup: its fleet has releases that it does not know, or somebody lies."""

from collections.abc import Callable
from pathlib import Path

import pytest
from server_world import World, good_direction

from broker.releases.lost_releases import ALONE_S, MOST_OVERTAKEN, PAUSE_S, LostReleases
from models.protocol.messages import Status
from models.transport.link import Received
from tools.simulation.machines.memory_broker import MemoryBroker

MakeWorld = Callable[..., World]
FOLD_AT_1 = "[task.aggregation]\nupdates = 1\n"
T = 1_000_000.0  # some moment


def yes(device: str) -> bool:
    return True


def no(device: str) -> bool:
    return False


def test_two_devices_are_believed_and_the_highest_counts() -> None:
    lost = LostReleases()
    lost.device_has("dev-1", 27, newest=9)
    assert lost.highest(9, T, no) == 0
    lost.device_has("dev-1", 28, newest=9)
    assert lost.highest(9, T, no) == 0, "the same device twice"
    lost.device_has("dev-2", 29, newest=9)
    assert lost.highest(9, T, no) == 29


def test_one_device_is_believed_if_it_is_alone_or_the_loss_is_proven() -> None:
    lost = LostReleases()
    lost.device_has("dev-1", 29, newest=9)
    assert lost.highest(9, T, no) == 0
    assert lost.highest(9, T + 1, yes) == 0, "whether it is alone is asked rarely"
    assert lost.highest(9, T + 61, yes) == 29
    lost.overtook(29, T + 61)
    lost.device_has("dev-2", 40, newest=30)
    assert lost.highest(30, T + 62, no) == 0, "jumps on the word of devices are apart"
    assert lost.highest(30, T + 61 + PAUSE_S, no) == 40


def test_a_device_that_says_less_again_is_no_witness() -> None:
    lost = LostReleases()
    lost.device_has("dev-1", 29, newest=9)
    lost.device_has("dev-1", 9, newest=9)
    lost.device_has("dev-2", 29, newest=9)
    assert lost.highest(9, T, no) == 0
    assert lost.highest(29, T, yes) == 0, "folds have passed it meanwhile"


def test_absurd_numbers_hide_no_others() -> None:
    lost = LostReleases()
    for device, release in (("dev-1", 1 << 53), ("dev-2", 9 + MOST_OVERTAKEN), ("dev-3", 12)):
        lost.device_has(device, release, newest=9)
    assert not lost.broker_retains(1 << 52, newest=9)
    assert lost.highest(9, T, yes) == 12


def test_a_retained_release_of_the_same_number_is_overtaken_at_once() -> None:
    lost = LostReleases()
    assert lost.broker_retains(9, newest=9)
    assert lost.highest(9, T, no) == 9
    lost.overtook(9, T)
    assert lost.highest(10, T, no) == 0


def test_what_the_session_kept_of_a_predecessor_does_not_hide_what_the_broker_retains(
    make_world: MakeWorld,
) -> None:
    """Two servers have one session after the other; what one did not acknowledge the other gets."""
    world = make_world(FOLD_AT_1)
    world.device().send_delta(good_direction() * 0.1)
    world.run()
    backup = world.back_up()
    world.run()
    for base in (2, 3, 4):
        world.device().send_delta(good_direction() * 0.1, base=base)
        world.run()
    topic = world.topics.release("leaves")
    kept = Received(topic, world.broker.retained[topic], retained=False, handle=0)
    world.restore(backup)
    world.start()
    world.server.handle(kept, world.now, world.wall)
    world.run()
    assert (world.manifest().release, world.manifest().parent) == (6, 2)


@pytest.fixture
def restored(make_world: MakeWorld) -> World:
    """A server at release 2, from a backup, whose devices have release 4; the broker is new."""
    world = make_world(FOLD_AT_1)
    backup: dict[Path, bytes] = {}
    for base in (1, 2, 3):
        world.device().send_delta(good_direction() * 0.1, base=base)
        world.run()
        if base == 1:
            backup = world.back_up()
            world.run()
    assert world.manifest().release == 4
    world.restore(backup)
    world.broker = MemoryBroker(lambda: world.now)
    world.devices.clear()
    world.start()
    world.run()
    assert world.manifest().release == 2
    return world


def report(world: World, name: str, release: int) -> None:
    world.device(name).report(Status(online=True, task="leaves", release=release))
    world.run()


def test_a_restored_server_with_a_new_broker_overtakes_what_its_devices_say(
    restored: World,
) -> None:
    world = restored
    report(world, "dev-1", 4)
    assert (world.manifest().release, world.manifest().parent) == (5, 2)
    device = world.device("dev-1")
    device.installation += 1
    update = device.send_delta(good_direction() * 0.1, base=4)
    world.run()
    assert device.state(update) == "folded"


def test_an_update_made_on_a_lost_release_is_taken_and_not_refused(restored: World) -> None:
    """Its header is the first that is heard of that release."""
    device = restored.device("dev-1")
    device.installation += 1
    update = device.send_delta(good_direction() * 0.1, base=4)
    restored.run()
    assert restored.manifest().release == 6
    assert device.state(update) == "folded"


def test_one_device_of_many_is_not_believed_alone(restored: World) -> None:
    world = restored
    report(world, "dev-2", 2)
    report(world, "dev-3", 70)
    assert world.manifest().release == 2
    liar = world.device("dev-3")
    update = liar.send_delta(good_direction(), base=70)
    world.run()
    assert (world.manifest().release, liar.state(update)) == (2, "refused")
    report(world, "dev-1", 4)
    assert world.manifest().release == 71, "two are ahead: the registry is behind"
    report(world, "dev-3", 10_000)
    assert world.manifest().release == 71
    world.now += ALONE_S + 1
    for _ in range(3):
        report(world, "dev-3", 1 << 52)
    assert world.manifest().release == 71


def test_a_jump_makes_no_work_older(restored: World) -> None:
    """Otherwise it would weigh next to nothing: its weight halves every four releases."""
    world = restored
    report(world, "dev-1", 1000)
    assert world.manifest().release == 1001
    before = world.parameters()
    device = world.device("dev-2")
    device.send_delta(good_direction(), base=2)
    world.run()
    moved = world.parameters() - before
    assert moved.max() == pytest.approx(0.5 ** (1 / 4), abs=1e-5)
