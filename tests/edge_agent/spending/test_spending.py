"""A device with a budget trains as that allows, and says so; a restart forgives nothing."""

import errno
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from tiny_fleet import Clock, Device, Files, Server, launch_here

from edge_agent.board.children import Child
from edge_agent.spending.allowance import DailyLimits, Spent
from edge_agent.spending.spending_book import SpendingBook
from edge_agent.training.governor import USED_UP
from edge_agent.training.training_job import TRAINER
from edge_agent.updates.outbox import Outbox
from tools.simulation.fleet_world import simulate
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.scenario.fleet_settings import Settings, Usage

HOUR = 3600.0
DAY = 24 * HOUR
WEEK = Settings(
    devices=2,
    hours=7 * 24,
    size=2000,
    fold_updates=2,
    fold_seconds=1800,
    min_minutes=10,
    sample_every_s=HOUR,
    is_planning=True,
    settles=False,
    max_staleness=0,
)
PER_BYTE = 5e-5
FIRST_RELEASE = 20_000  # bytes: what a new device fetches, parameters and average; it is free
BUDGETS = {
    "minutes": ((("minutes_per_day", 1.0),), 60.0),
    "megabytes": ((("megabytes_per_day", 0.05),), 0.05e6),
    "joules": ((("joules_per_day", 100.0), ("joules_per_byte", PER_BYTE)), 100.0),
}


def outbox_at(path: Path) -> Outbox:
    return Outbox(path / "outbox.db", max_bytes=10**6, max_waiting=4, installation="0" * 8)


def spent_of(name: str, usage: Usage) -> float:
    seconds, moved = usage.training_s, usage.bytes_up + usage.bytes_down
    return {
        "minutes": seconds,
        "megabytes": float(moved),
        "joules": 2.0 * seconds + PER_BYTE * moved,
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_is_never_exceeded_by_more_than_one_training_in_a_week(name: str) -> None:
    training, daily = BUDGETS[name]
    outcome = simulate(3, WEEK._replace(training=training))
    assert outcome.violations == ()
    for usage in outcome.usage:
        total = spent_of(name, usage)
        one = 1.5 * total / usage.trainings  # trainings differ a little
        print(f"{name}: {total:.0f} of {7 * daily:.0f} in {usage.trainings} trainings")
        free = 0 if name == "minutes" else spent_of(name, Usage(0, FIRST_RELEASE, 0, 0, 0))
        assert total <= 7 * daily + one + free
        assert total >= 0.5 * 7 * daily, "the budget is there to be used"


@pytest.fixture
def frugal(tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server) -> Device:
    """A device with little network a day that has made its first update."""
    device = Device(
        tmp_path,
        broker,
        clock,
        server=server,
        training__check_seconds=30,
        training__megabytes_per_day=0.1,
    )
    server.release = 2
    server.publish(release(1))
    device.add_samples(64)
    assert device.run(HOUR, until=lambda: device.status.updates_folded == 1)
    return device


def release(number: int) -> Files:
    files = Files(number)
    files.manifest = msgspec.structs.replace(files.manifest, folded=number * 5)
    return files


def test_the_first_release_is_free_and_then_a_device_waits_for_its_budget(
    frugal: Device, server: Server
) -> None:
    server.publish(release(2))
    assert frugal.run(HOUR, until=lambda: frugal.status.release == 2)
    frugal.run(60)
    assert frugal.status.updates_made == 1
    assert frugal.status.state == USED_UP
    verdict = frugal.agent.parts.learner.verdict
    assert verdict.reason.startswith("today's 0.1 MB are used up; about")
    assert frugal.run(30 * DAY, until=lambda: frugal.status.updates_made == 2)


def test_a_restart_forgives_nothing(frugal: Device, server: Server) -> None:
    server.publish(release(2))
    assert frugal.run(HOUR, until=lambda: frugal.status.state == USED_UP)
    frugal.run(60)
    before = frugal.agent.parts.learner.verdict.again_in_s
    frugal.agent.stop()
    noted = frugal.agent.parts.outbox.facts.read().level_bytes
    assert noted is not None
    assert noted < 0
    frugal.clock.now += 2 * HOUR  # it is off
    frugal.restart()
    frugal.run(60)
    assert frugal.status.updates_made == 1
    after = frugal.agent.parts.learner.verdict.again_in_s
    assert before is not None
    assert after is not None
    assert after > before - 300, "the time while it was off refills nothing"


def test_levels_are_written_with_each_training_that_begins_and_once_an_hour(
    tmp_path: Path,
) -> None:
    outbox, moved = outbox_at(tmp_path), [1000]
    book = SpendingBook(DailyLimits(seconds=60, bytes=1e6), outbox.facts, lambda: moved[0])
    assert book.look(0.0) == ("", 0.0)
    book.begins(Spent(seconds=30))
    assert outbox.facts.read().level_seconds == -30, "a power cut in it forgives nothing"
    book.ended(Spent(seconds=20))
    assert book.noted()["level_seconds"] == pytest.approx(-20)
    moved[0] += 500
    for start in (480.0, 1380.0, 3180.0, 6780.0):  # sooner after a start
        book.look(start)
        assert outbox.facts.read().level_bytes == pytest.approx(-500 + 1e6 * start / DAY, rel=0.01)
    changes = outbox.changes
    book.look(6780 + HOUR - 1)
    assert outbox.changes == changes
    now = 6780 + HOUR + 1
    sentence, seconds = book.look(now)
    assert "today's 1 minutes" in sentence
    assert seconds == pytest.approx((20 - 60 * now / DAY) / (60 / DAY))
    noted = outbox.facts.read()
    assert noted.level_seconds == pytest.approx(-20 + 60 * now / DAY)
    assert noted.level_bytes == pytest.approx(-500 + 1e6 * now / DAY, rel=0.01)
    again = SpendingBook(DailyLimits(seconds=60, bytes=1e6), outbox.facts, lambda: 0)
    assert again.look(7.0)[1] == pytest.approx(seconds)
    outbox.close()


def test_bytes_of_a_round_are_those_between_two_beginnings(tmp_path: Path) -> None:
    outbox, moved = outbox_at(tmp_path), [50]
    book = SpendingBook(DailyLimits(), outbox.facts, lambda: moved[0])
    changes = outbox.changes
    for total in (100, 700, 1500):
        moved[0] = total
        book.begins(Spent())
    assert book.noted() == {"round_bytes": 800.0}
    assert outbox.changes == changes, "without a budget nothing is written"
    outbox.close()


def test_what_a_training_that_did_not_begin_was_to_take_is_not_spent(
    tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server=server, training__minutes_per_day=1)
    device.agent.parts.outbox.facts.note(ms_per_step=1000.0, steps=1000)

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module != TRAINER:
            return launch_here(module, arguments, log=log)
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    device.launch = launch
    server.publish(release(1))
    device.add_samples(64)
    assert device.run(HOUR, until=lambda: "could not start" in device.status.problem)
    device.launch = launch_here
    assert device.run(HOUR, until=lambda: device.status.updates_made == 1)


def test_a_board_that_is_never_on_for_an_hour_refills_all_the_same(tmp_path: Path) -> None:
    outbox = outbox_at(tmp_path)
    limits = DailyLimits(seconds=DAY / 4)
    outbox.facts.note(level_seconds=-HOUR)
    starts = 0
    while True:
        book = SpendingBook(limits, outbox.facts, lambda: 0)
        if not max(book.look(now)[1] for now in range(0, 1800, 2)):
            break
        starts += 1  # and its power is cut
        assert starts < 20
    assert starts >= 8
    changes = outbox.changes
    for now in range(0, int(DAY), 60):
        book.look(float(now))
    assert outbox.changes - changes <= 2 * 26, "writes of a card at rest"
    outbox.close()
