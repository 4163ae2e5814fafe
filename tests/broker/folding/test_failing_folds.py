"""A fold that fails holds up neither other tasks nor the intake, and a bad block no task."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from server_world import World, good_direction, linear_spec, write_bundle

from broker.folding.payload_reader import MOST_TRIES
from broker.records.registry import Registry
from broker.retry import LONGEST_RETRY_S
from broker.state import artifact_store
from models.errors import TransientError
from models.protocol.messages import Request

MakeWorld = Callable[..., World]
FOLD_AT_2 = "[task.aggregation]\nupdates = 2\nseconds = 60\n"
APPLES = f'[[task]]\nbundle = "apples"\n{FOLD_AT_2}'


@pytest.fixture
def world(make_world: MakeWorld, tmp_path: Path) -> World:
    """A server of two tasks, leaves and apples."""
    write_bundle(tmp_path / "apples", linear_spec("apples"))
    return make_world(FOLD_AT_2 + APPLES)


def send(world: World, name: str, task: str) -> str:
    device = world.device(name)
    update_id, data = device.update(good_direction() * 0.01, task=task)
    device.send(update_id, data)
    return update_id


def test_a_release_that_finds_no_room_costs_no_update_its_receipt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    sent = []
    with monkeypatch.context() as here:
        here.setattr(artifact_store, "atomic_write", full)
        for _ in range(12):
            sent += [(name, send(world, name, "leaves")) for name in ("dev-1", "dev-2", "dev-3")]
            world.run(1.0)
        assert {world.device(name).state(update) for name, update in sent} == {"stored"}
        assert "No space left" in world.server.status
    world.run(LONGEST_RETRY_S + 1)
    assert {world.device(name).state(update) for name, update in sent} == {"folded"}
    assert "No space left" not in world.server.status


def bad_block(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    """From now on nothing that needs the payload in ``row`` works, as SQLite would have it."""
    execute, query = Registry.execute, Registry.query

    def failing_query(self: Registry, statement: str, *values: object) -> list[tuple[object, ...]]:
        if statement.startswith("SELECT payload") and values == (row,):
            raise TransientError(f"registry {self.path}: disk I/O error")
        return query(self, statement, *values)

    def failing_execute(self: Registry, statement: str, *values: object) -> int:
        if statement.startswith("UPDATE updates") and values[-1] == row:
            raise TransientError(f"registry {self.path}: disk I/O error")
        return execute(self, statement, *values)

    monkeypatch.setattr(Registry, "query", failing_query)
    monkeypatch.setattr(Registry, "execute", failing_execute)


def test_a_bad_block_holds_up_neither_its_own_task_for_long_nor_another_at_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = send(world, "dev-1", "leaves")
    world.run()
    bad_block(monkeypatch, 1)
    good = send(world, "dev-2", "leaves")
    others = [(name, send(world, name, "apples")) for name in ("dev-3", "dev-4")]
    world.run()
    assert {world.device(name).state(update) for name, update in others} == {"folded"}
    assert world.device("dev-2").state(good) == "stored"
    for _ in range(MOST_TRIES):
        world.run(LONGEST_RETRY_S + 1)
    assert world.device("dev-2").state(good) == "folded"
    receipt = world.device("dev-1").receipts[bad]
    assert (receipt.state, "cannot read" in receipt.reason) == ("refused", True)
    assert "I/O" not in world.server.status

    world.restart()
    world.device("dev-1").receipts.clear()
    world.device("dev-1").request(Request(receipts=(bad,)))
    world.run(61.0)
    assert world.device("dev-1").state(bad) == "refused", "remembered over a restart"
    assert world.server.books.updates.waiting("leaves", 10) == []
    assert world.server.books.updates.waiting_summary("leaves") == (0, 0.0)
    assert world.server.books.updates.waiting_bytes() == 0


def test_a_payload_that_can_be_read_again_is_folded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = send(world, "dev-1", "leaves")
    world.run()
    with monkeypatch.context() as here:
        bad_block(here, 1)
        send(world, "dev-2", "leaves")
        for _ in range(MOST_TRIES - 2):
            world.run(LONGEST_RETRY_S + 1)
    world.run(LONGEST_RETRY_S + 1)
    assert world.device("dev-1").state(first) == "folded"
