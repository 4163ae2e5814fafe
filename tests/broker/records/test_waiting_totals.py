"""What waits and what is unfinished is counted as it changes, and always as if counted anew."""

import contextlib
import random
from pathlib import Path

import pytest

from broker.records.device_records import DeviceRecords
from broker.records.partial_records import Partial, PartialRecords
from broker.records.registry import Registry
from broker.records.update_records import UpdateKey, UpdateRecords
from models.protocol.messages import Status
from models.protocol.update import UpdateHeader
from models.protocol.update_life import ReceiptEvent

HEADER = UpdateHeader("digits", 1, 10, 1, 1.0, 1.0, None, 5, "0" * 64)


class PowerError(Exception):
    """Ends a transaction in the middle."""


@pytest.mark.parametrize("seed", range(5))
def test_totals_follow_stores_settlements_and_rollbacks(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    registry = Registry(tmp_path / "registry.db", "fleet")
    owner, onlooker = UpdateRecords(registry, is_owner=True), UpdateRecords(registry)
    for number in range(1, 80):
        try:
            with registry.transaction():
                key = UpdateKey("device-1", 7, number)
                size = rng.randrange(10, 99)
                owner.store(key, HEADER, bytes(size), now=rng.uniform(0, 100))
                for update in rng.sample(owner.waiting("digits", 100), k=rng.randrange(2)):
                    owner.settle(update, ReceiptEvent.FOLDED, release=2)
                if rng.random() < 0.2:
                    raise PowerError
        except PowerError:
            pass
        assert owner.waiting_summary("digits") == onlooker.waiting_summary("digits")
        assert owner.waiting_bytes() == onlooker.waiting_bytes()
    again = UpdateRecords(registry, is_owner=True)
    assert again.waiting_summary("digits") == onlooker.waiting_summary("digits")


@pytest.mark.parametrize("seed", range(5))
def test_what_is_held_of_unfinished_updates_follows_every_change(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    registry = Registry(tmp_path / "registry.db", "fleet")
    owner, onlooker = PartialRecords(registry, is_owner=True), PartialRecords(registry)
    keys = [UpdateKey(f"device-{n % 3}", 7, n) for n in range(6)]
    for _ in range(120):
        key = rng.choice(keys)
        try:
            with registry.transaction():
                owner.keep_partial(key, Partial(0, 0), rng.uniform(0, 100))
                for _ in range(rng.randrange(4)):  # some of them for the second time
                    owner.keep_chunk(key, rng.randrange(5), bytes(rng.randrange(1, 2000)))
                owner.drop_chunk(key, rng.randrange(5))
                if rng.random() < 0.1:
                    owner.drop_partial(rng.choice(keys), ReceiptEvent.DAMAGED)
                if rng.random() < 0.2:
                    raise PowerError
        except PowerError:
            pass
        assert [owner.held(key) for key in keys] == [onlooker.held(key) for key in keys]
        for device in (None, "device-0", "device-1", "device-2"):
            assert owner.partial_bytes(device) == onlooker.partial_bytes(device)
        sizes = owner.chunk_sizes(key)
        assert (owner.short_chunk(key) is None) == all(size >= 1024 for size in sizes.values())
    again = PartialRecords(registry, is_owner=True)
    assert [again.held(key) for key in keys] == [onlooker.held(key) for key in keys]
    assert again.partial_bytes() == onlooker.partial_bytes()


def test_devices_are_counted_right_after_a_rollback(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db", "fleet")
    known = DeviceRecords(registry)
    for name in ("a", "b", "a"):
        with registry.transaction():
            if not known.count(name, garbage=1):
                known.introduce(name)
        assert known.how_many() == len(known.rows())
    with contextlib.suppress(PowerError), registry.transaction():
        known.introduce("c")
        assert known.how_many() == 3
        raise PowerError
    assert known.how_many() == 2
    assert known.note_status("c", Status(online=True, task="digits"), 1.0) is None
    known.introduce("c")
    assert known.note_status("c", Status(online=True, task="digits"), 1.0) is False
    known.note_status("c", Status(online=False, task="digits"), 2.0)
    assert known.how_many() == 3
    device = known.rows()[-1]
    assert (device.seen, device.online) == (2.0, False)
    assert device.status == Status(online=True, task="digits")  # of one that is gone, the last
