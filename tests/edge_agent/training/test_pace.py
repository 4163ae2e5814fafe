"""A device trains when there is something to learn, and no more often than its owner wants."""

from pathlib import Path

import msgspec
import pytest
from tiny_fleet import Clock, Device, Files, Server

from edge_agent.training.governor import NOTHING_NEW
from tools.simulation.machines.memory_broker import MemoryBroker

HOUR = 3600.0
PACE = {"training__min_minutes": 60, "training__check_seconds": 30}
LOOK = 90.0  # more than an agent takes to notice, to train and to send


def release(number: int, *, folded: int, repeat: bool = True, epochs: float = 2) -> Files:
    """Return a release with ``folded`` updates in it, those of all before included."""
    files = Files(number)
    plan = msgspec.structs.replace(files.manifest.training, repeat=repeat, epochs=epochs)
    files.manifest = msgspec.structs.replace(files.manifest, folded=folded, training=plan)
    return files


@pytest.fixture
def paced(tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server) -> Device:
    """A device at a pace of an hour that has trained on release 1; its update is in release 2."""
    device = Device(tmp_path, broker, clock, server=server, **PACE)
    server.release = 2
    server.publish(release(1, folded=5))
    device.add_samples(64)
    assert device.run(LOOK, until=lambda: trainings(device) == 1)
    assert device.run(LOOK, until=lambda: device.status.updates_folded == 1)
    return device


def trainings(device: Device) -> int:
    return device.status.updates_made


def test_a_release_that_only_this_device_changed_is_nothing_new(
    paced: Device, server: Server
) -> None:
    server.publish(release(2, folded=6))
    paced.run(24 * HOUR)
    assert (trainings(paced), paced.status.release) == (1, 2)
    assert paced.status.state == NOTHING_NEW


def test_a_release_that_others_changed_is_trained_once_the_pace_allows(
    paced: Device, server: Server
) -> None:
    server.publish(release(2, folded=7))
    paced.run(HOUR - 2 * LOOK)
    assert trainings(paced) == 1
    assert paced.status.state == "waiting"
    paced.run(4 * LOOK)
    assert trainings(paced) == 2
    paced.run(24 * HOUR)
    assert trainings(paced) == 2


def test_a_server_that_does_not_tell_counts_as_changed_by_others(
    paced: Device, server: Server
) -> None:
    server.publish(release(2, folded=0))
    paced.run(2 * HOUR)
    assert trainings(paced) == 2


def test_new_samples_are_trained_once_the_pace_allows(paced: Device) -> None:
    paced.add_samples(64, seed=2)
    paced.run(HOUR - 2 * LOOK)
    assert trainings(paced) == 1
    paced.run(4 * LOOK)
    assert trainings(paced) == 2


def test_a_fleet_at_rest_trains_on_new_samples_only(paced: Device, server: Server) -> None:
    server.publish(release(2, folded=90, repeat=False))
    paced.run(2 * HOUR)
    assert (trainings(paced), paced.status.state) == (1, NOTHING_NEW)
    paced.add_samples(64, seed=2)
    paced.run(LOOK)
    assert trainings(paced) == 2


def test_who_asks_for_another_kind_of_training_gets_it(paced: Device, server: Server) -> None:
    server.publish(release(2, folded=6, epochs=3))
    paced.run(2 * HOUR)
    assert trainings(paced) == 2


def test_a_restart_does_not_forget_the_pace(paced: Device, server: Server) -> None:
    server.publish(release(2, folded=7))
    for _ in range(6):
        paced.run(HOUR / 8)
        paced.restart()
    assert trainings(paced) == 1
    paced.run(HOUR / 4 + 2 * LOOK)
    assert trainings(paced) == 2


@pytest.mark.parametrize("jump_s", [-30 * 86400.0, -1000.0], ids=["a month back", "minutes back"])
def test_a_clock_that_was_set_back_costs_one_pace_and_is_said(
    paced: Device, server: Server, jump_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    paced.skew_s = jump_s
    paced.restart()
    server.publish(release(2, folded=7))
    paced.run(HOUR - 2 * LOOK)
    assert trainings(paced) == 1
    paced.run(4 * LOOK)
    assert trainings(paced) == 2
    assert "clock was set back" in caplog.text


def test_a_board_that_learns_the_time_after_its_start_does_not_rest_anew(
    paced: Device, server: Server
) -> None:
    """It has no clock of its own, and may not be on for a whole pace."""
    server.publish(release(2, folded=7))
    for after_s, expected in ((HOUR / 2, 1), (HOUR, 2)):
        paced.skew_s = -30 * 86400.0
        paced.restart()
        paced.run(LOOK)
        paced.skew_s = after_s
        paced.run(2 * LOOK)
        assert trainings(paced) == expected


def test_a_clock_that_jumps_while_it_runs_changes_nothing(paced: Device, server: Server) -> None:
    server.publish(release(2, folded=7))
    paced.skew_s = 30 * 86400.0
    paced.run(HOUR - 2 * LOOK)
    assert trainings(paced) == 1
    paced.skew_s = -30 * 86400.0
    paced.run(4 * LOOK)
    assert trainings(paced) == 2


def test_refused_work_is_learned_again_ever_more_slowly(paced: Device, server: Server) -> None:
    server.verdict = "refused"
    paced.add_samples(64, seed=2)
    paced.run(4 * 86400.0)
    refused = paced.status.updates_refused
    assert 6 <= refused <= 9, "after 1, 2, 4, 8, 16 hours, then daily"
    server.verdict = "folded"
    paced.run(86400.0 + LOOK)
    assert paced.status.state == NOTHING_NEW
    assert paced.status.updates_refused == refused


def test_updates_that_never_left_are_no_reason_to_train(
    paced: Device, broker: MemoryBroker
) -> None:
    """They are merged back when the outbox is full; each training would only push out another."""
    broker.set_reachable("board-1", False)
    for seed in range(2, 9):
        paced.add_samples(64, seed=seed)
        paced.run(HOUR + LOOK)
    made = trainings(paced)
    assert made == 8
    paced.run(12 * HOUR)
    assert trainings(paced) == made


def test_a_late_receipt_of_an_older_release_hides_nobody(paced: Device, server: Server) -> None:
    """Own updates are counted by release: one that was in the trained one is not in the next."""
    outbox = paced.agent.parts.outbox
    server.publish(release(3, folded=8))
    paced.run(2 * HOUR)
    assert trainings(paced) == 2
    assert outbox.folds.count(after=3, until=9) == 0
    server.release = 4
    server.publish(release(4, folded=9))
    paced.run(2 * HOUR)
    assert trainings(paced) == 3, "release 4 has one more, and ours was in release 2"


def test_until_its_receipt_comes_an_own_update_counts_for_nobody_else(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server=server, training__check_seconds=30)
    server.publish(release(1, folded=5))
    server.verdict = "stored"
    device.add_samples(64)
    assert device.run(LOOK, until=lambda: trainings(device) == 1)
    device.run(LOOK)
    server.publish(release(2, folded=6))
    device.run(HOUR)
    assert trainings(device) == 1
    server.verdict, server.release = "folded", 2
    device.run(6 * HOUR)
    assert (trainings(device), device.status.updates_folded) == (1, 1)


def test_a_late_receipt_that_names_a_later_release_is_no_news(
    paced: Device, server: Server
) -> None:
    """A server that knows an update from a range of them names the newest release of the range."""
    file = paced.agent.parts.outbox.file
    with file.transaction("folds"):
        file.rows("UPDATE folds SET count = count + 1")
    server.publish(release(2, folded=6))
    paced.run(24 * HOUR)
    assert trainings(paced) == 1


def test_a_server_that_was_set_back_counts_as_changed(paced: Device, server: Server) -> None:
    server.publish(release(7, folded=2))
    paced.run(2 * HOUR)
    assert trainings(paced) == 2
