"""A server asks everybody while releases gain, rests when they do not, and folds at its pace."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from server_world import World, good_direction

from broker.folding import aggregator
from broker.releases.patience import FIRST_PAUSE, NEW_SHARE
from models.protocol.messages import Status
from models.protocol.update import UpdateHeader, encode_update

MakeWorld = Callable[..., World]
HOUR = 3600.0
PACED = "[task.aggregation]\nupdates = 1\nmin_seconds = 600\npatience = 2\n"


def learn(world: World, *, accuracy: float, name: str = "board-1") -> None:
    """Let a device send what it learned on the newest release, which it measured."""
    world.device(name).send_delta(
        good_direction() * 0.01, base=world.manifest().release, accuracy=accuracy
    )
    world.run(601)


def asks(world: World) -> bool:
    return world.manifest().training.repeat


def test_the_first_fold_waits_for_nothing_and_the_others_keep_their_distance(
    make_world: MakeWorld,
) -> None:
    world = make_world(PACED)
    device = world.device()
    device.send_delta(good_direction(), base=1)
    world.run()
    assert world.manifest().release == 2
    device.send_delta(good_direction(), base=2)
    world.run(590)
    assert world.manifest().release == 2
    world.run(11)
    assert world.manifest().release == 3


def test_a_restart_does_not_forget_the_distance(make_world: MakeWorld) -> None:
    world = make_world(PACED)
    world.device().send_delta(good_direction(), base=1)
    world.run()
    world.device().send_delta(good_direction(), base=2)
    world.restart()
    world.run(590)
    assert world.manifest().release == 2
    world.run(11)
    assert world.manifest().release == 3


def test_a_manifest_tells_how_many_updates_are_in_it(make_world: MakeWorld) -> None:
    world = make_world(PACED)
    for expected in (0, 1, 2, 3):
        assert world.manifest().folded == expected
        learn(world, accuracy=0.5 + expected / 10)
    world.restart()
    world.run()
    assert world.manifest().folded == 4


def test_by_what_devices_measure_a_fleet_comes_to_rest_and_is_asked_again(
    make_world: MakeWorld,
) -> None:
    world = make_world(PACED)
    for accuracy in (0.5, 0.7, 0.8):
        learn(world, accuracy=accuracy)
        assert asks(world)
    learn(world, accuracy=0.8)
    assert not asks(world), "a round without a gain"
    before = world.manifest()
    world.run(FIRST_PAUSE * 600 + 601)
    assert asks(world)
    assert world.manifest().artifacts == before.artifacts
    learn(world, accuracy=0.8)
    learn(world, accuracy=0.8)  # only now is it known what came of the round before
    assert not asks(world)
    world.run(48 * HOUR)
    assert not asks(world), "its patience is at an end"


def test_new_samples_wake_a_fleet_at_rest(make_world: MakeWorld) -> None:
    world = make_world(PACED)
    device = world.device()
    device.report(Status(online=True, task=world.spec.task, samples=100, samples_ever=100))
    for accuracy in (0.8, 0.8, 0.8):
        learn(world, accuracy=accuracy)
        world.run(FIRST_PAUSE * 600 + 601)
    world.run(48 * HOUR)
    assert not asks(world)
    enough = int(100 * (1 + NEW_SHARE)) + 1
    device.report(Status(online=True, task=world.spec.task, samples=100, samples_ever=enough))
    world.run(601)
    world.run()
    assert asks(world)


def test_patience_0_in_the_configuration_ends_a_rest(make_world: MakeWorld) -> None:
    world = make_world(PACED)
    for accuracy in (0.8, 0.8):
        learn(world, accuracy=accuracy)
    assert not asks(world)
    task = world.config.task[0]
    policy = msgspec.structs.replace(task.aggregation, patience=0)
    world.restart(aggregation=policy)
    world.run()
    assert asks(world)


@pytest.mark.parametrize("name", ["samples", "samples_ever"])
def test_what_an_old_agent_reports_counts_too(make_world: MakeWorld, name: str) -> None:
    world = make_world(PACED)
    status = {"online": True, "task": world.spec.task, "samples": 70, name: 70}
    world.device().report(msgspec.json.decode(json.dumps(status), type=Status))
    world.run()
    assert world.server.books.devices.samples_reported(world.spec.task) == 70


def test_an_older_registry_has_no_reports_and_goes_on(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    world = make_world(PACED)
    learn(world, accuracy=0.5)
    registry = world.server.books.registry
    registry.execute("DROP TABLE reported")
    registry.execute("ALTER TABLE releases RENAME COLUMN metric TO accuracy")
    for column in ("metric_trained", "step", "age"):
        registry.execute(f"ALTER TABLE releases DROP COLUMN {column}")
    for table in ("server_state", "memories", "extras", "device_reports"):
        registry.execute(f"DROP TABLE {table}")
    registry.execute("PRAGMA user_version = 0")
    world.restart()
    learn(world, accuracy=0.6)
    assert world.manifest().release == 3


def test_a_refused_update_of_no_samples_measures_nothing(make_world: MakeWorld) -> None:
    world = make_world(PACED)
    device = world.device()
    device.send(*device.update(good_direction(), base=1, accuracy=None))
    world.run()
    digest = hashlib.sha256(b"abc").hexdigest()
    header = UpdateHeader(world.spec.task, 2, 0, 1, 1.0, 1.0, None, 3, digest)
    device.send("a0a0a0a0-99", encode_update(header, b"abc"))
    device.send(*device.update(good_direction(), base=1, accuracy=None))
    world.run(601)
    assert device.state("a0a0a0a0-99") == "refused"
    assert world.manifest().release == 3


def test_a_round_by_a_clock_that_was_years_ahead_is_not_waited_for(make_world: MakeWorld) -> None:
    world = make_world(PACED.replace("patience = 2", "patience = 9"))
    for accuracy in (0.5, 0.8):
        learn(world, accuracy=accuracy)
    world.skew += 1e8
    learn(world, accuracy=0.8)
    learn(world, accuracy=0.8)
    assert not asks(world)
    world.skew -= 1e8
    world.run(601)
    assert asks(world)


def test_what_waits_does_not_wait_for_a_clock_that_was_ahead_when_everybody_was_asked_again(
    make_world: MakeWorld,
) -> None:
    text = "[task.aggregation]\nupdates = 1\nseconds = 3600\nmin_seconds = 600\npatience = 9\n"
    world = make_world(text)
    for accuracy in (0.8, 0.8):
        learn(world, accuracy=accuracy)
    assert not asks(world)
    world.skew += 1e8
    world.run(601)
    assert asks(world)
    world.skew -= 1e8
    line = world.server.lanes[world.spec.task].line
    policy = msgspec.structs.replace(world.config.task[0].aggregation, updates=10)
    line.config = msgspec.structs.replace(line.config, aggregation=policy)
    before = world.manifest().release
    learn(world, accuracy=0.8)
    world.run(3601)
    world.run(3601)
    assert world.manifest().release == before + 1


def test_devices_that_are_forgotten_take_their_samples_with_them(make_world: MakeWorld) -> None:
    world = make_world(PACED)

    def report(name: str, samples: int) -> None:
        world.device(name).report(
            Status(online=True, task=world.spec.task, samples=samples, samples_ever=samples)
        )

    report("board-1", 100)
    report("board-2", 10_000)
    for _ in range(3):
        learn(world, accuracy=0.8)
        world.run(FIRST_PAUSE * 600 + 601)
    world.run(48 * HOUR)
    assert not asks(world)
    world.server.books.devices.ask_to_forget(["board-2"], world.wall)
    world.run(10)
    report("board-1", 120)
    learn(world, accuracy=0.8)
    world.run(48 * HOUR)
    assert not asks(world)
    report("board-1", 200)
    world.run(601)
    world.run(601)
    assert asks(world)


def test_training_that_is_closed_is_asked_of_nobody(make_world: MakeWorld) -> None:
    world = make_world("releases = 3\n" + PACED.replace("patience = 2", "patience = 9"))
    for accuracy in (0.8, 0.8):
        learn(world, accuracy=accuracy)
    assert not asks(world)
    for _ in range(20):
        world.run(HOUR)
    assert world.manifest().release == 3


def test_what_a_fold_could_not_take_does_not_wait_for_the_pace(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(PACED + "rule = 'trimmed_mean'\n")
    monkeypatch.setattr(aggregator, "MEMORY_FLOATS", 4 * world.spec.shared_size)
    learn(world, accuracy=0.5)
    for _ in range(10):
        world.device().send_delta(good_direction() * 0.01, base=2, accuracy=0.6)
    world.run(601)
    assert world.report().tasks[0].waiting == 0


def test_with_personal_tensors_what_devices_measure_counts(
    make_world: MakeWorld, hold_out: Path
) -> None:
    """The hold-out here knows their initial values only: it may not see what is learned at all."""
    world = make_world(f"{PACED}[task.evaluation]\ndata = '{hold_out}'\n")
    still = np.zeros(world.spec.shared_size, np.float32)
    for accuracy in (0.5, 0.6, 0.7, 0.8, 0.9):
        world.device().send_delta(still, base=world.manifest().release, accuracy=accuracy)
        world.run(601)
        assert asks(world)
    assert world.manifest().release == 6
