"""Crashes between any two writes, full disks, and messages from somebody who means ill."""

import errno
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from server_fuse import Fuse, PowerCutError
from server_world import FakeDevice, World, good_direction, linear_spec

from broker.records.registry import Registry
from broker.state import artifact_store
from models.errors import TransientError, UsageError
from models.protocol.manifest import Manifest, encode_manifest
from models.protocol.messages import Request, Status
from models.protocol.update import UpdateHeader, encode_update

MakeWorld = Callable[..., World]
FOLD_AT_2 = "[task.aggregation]\nupdates = 2\nseconds = 60\n"


def _finish(world: World, updates: dict[str, tuple[FakeDevice, bytes]]) -> None:
    """Let devices ask and send again until every update has its last receipt."""
    for _ in range(6):
        world.run(61.0)
        for update_id, (device, data) in updates.items():
            if device.state(update_id) in ("nothing", "unknown", "partial"):
                device.send(update_id, data, chunk_size=1200)
            device.request(Request(receipts=(update_id,)))
        world.run(61.0)


@pytest.mark.slow
def test_a_crash_before_any_write_loses_nothing_and_folds_nothing_twice(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three updates, one of two chunks, in two releases: cut at every single step of it."""
    fuse = Fuse(monkeypatch)
    steps = None
    cut_at = 0
    while steps is None or cut_at < steps:
        cut_at += 1
        with monkeypatch.context() as here:
            world = make_world(FOLD_AT_2, spec=linear_spec(features=150))
            here.chdir(world.directory)
            _scenario(world, fuse, cut_at if steps else None)
            if steps is None:
                steps, cut_at = fuse.count, 0
            _wipe(world)
    assert steps > 60


def _scenario(world: World, fuse: Fuse, cut_at: int | None) -> None:
    generator = np.random.default_rng(7)
    size = world.spec.shared_size
    deltas = [generator.integers(-2, 3, size).astype(np.float32) / 4 for _ in range(3)]
    before = world.parameters()
    devices = [world.device(name) for name in ("dev-1", "dev-2", "dev-3")]
    updates = {}
    for device, delta in zip(devices, deltas, strict=True):
        device.installation += int(device.name[-1])
        update_id, data = device.update(delta)
        updates[update_id] = (device, data)
    fuse.count, fuse.left = 0, cut_at
    try:
        for update_id, (device, data) in updates.items():
            device.send(update_id, data, chunk_size=1200)
            world.run(20.0)
        world.run(61.0)
    except PowerCutError:
        world.restart()
    fuse.left = None
    _finish(world, updates)
    states = {device.receipts[update_id].state for update_id, (device, _) in updates.items()}
    assert states == {"folded"}, f"cut before step {cut_at}"
    report = world.report()
    assert (report.updates_folded, report.updates_folded_twice) == (3, 0), f"step {cut_at}"
    folded = world.server.books.registry.query(
        "SELECT release, installation FROM updates WHERE state = 'folded'"
    )
    expected = before.copy()
    for number in sorted({release for release, _ in folded}):
        together = [
            delta
            for device, delta in zip(devices, deltas, strict=True)
            if (number, device.installation) in folded
        ]
        expected += np.mean(together, axis=0) * 0.5 ** ((number - 2) / 4)
    np.testing.assert_allclose(world.parameters(), expected, atol=1e-5)


def _wipe(world: World) -> None:
    world.server.close()
    server = world.directory / "server"
    for path in [*server.glob("artifacts/*"), *server.glob("registry*")]:
        path.unlink()


@pytest.fixture
def small_disk(make_world: MakeWorld) -> Iterator[World]:
    """A world whose registry has room for little more than it holds."""
    world = make_world(FOLD_AT_2, spec=linear_spec(features=3000))
    registry = world.server.books.registry
    ((pages,),) = registry.query("PRAGMA page_count")
    registry.execute(f"PRAGMA max_page_count = {pages + 3}")
    yield world
    world.server.close()


def test_a_full_disk_stops_nothing_but_new_updates(small_disk: World) -> None:
    world = small_disk
    devices = [world.device(f"dev-{n}") for n in range(12)]
    delta = np.random.default_rng(2).integers(-99, 99, world.spec.shared_size).astype(np.float32)
    delta *= 0.01
    sent = []
    for device in devices:
        update_id, data = device.update(delta)
        sent.append((device, update_id, data))
        device.send(update_id, data)
    world.run()
    assert "registry" in world.server.status
    assert "full" in world.server.status
    stored = [device.state(update_id) for device, update_id, _ in sent].count("stored")
    assert stored == 0, "nothing is promised that is not on disk"

    wanted = world.manifest().artifacts["spec"].sha256
    topic = world.topics.blob(wanted, 0)
    world.broker.retained.pop(topic)
    devices[0].request(Request(blobs={wanted: (0,)}, receipts=(sent[0][1],)))
    world.run()
    assert topic in world.broker.retained, "requests are answered"
    assert devices[0].state(sent[0][1]) == "unknown"

    world.server.books.registry.execute("PRAGMA max_page_count = 1000000")
    world.run(6.0)
    assert "full" not in world.server.status
    for device, update_id, data in sent:
        if device.state(update_id) in ("nothing", "unknown"):
            device.send(update_id, data)
            world.run()
    world.run(61.0)
    assert {device.state(update_id) for device, update_id, _ in sent} == {"folded"}
    assert world.report().updates_folded_twice == 0


def test_a_release_that_cannot_be_written_is_made_later(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(FOLD_AT_2)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as here:
        here.setattr(artifact_store, "atomic_write", full)
        updates = [world.device(f"dev-{n}").send_delta(good_direction()) for n in (1, 2)]
        world.run(30.0)
        assert world.manifest().release == 1
        assert "No space left" in world.server.status
        third = world.device("dev-3").send_delta(good_direction())
        world.run(30.0)
        assert world.device("dev-3").state(third) == "stored", "updates are still taken"
    world.run(30.0)
    assert world.manifest().release == 2
    assert [world.device(f"dev-{n}").state(updates[n - 1]) for n in (1, 2)] == ["folded"] * 2


def test_a_failing_disk_during_publishing_is_made_good_later(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    plan = world.server.publisher.plan
    failures = iter([True, True])

    def failing_plan() -> None:
        if next(failures, False):
            raise TransientError("disk I/O error")
        plan()

    monkeypatch.setattr(world.server.publisher, "plan", failing_plan)
    update = world.device().send_delta(good_direction())
    for _ in range(4):
        world.run(6.0)
    assert world.manifest().release == 2
    assert world.device().state(update) == "folded"


def test_a_waiting_room_that_is_full_takes_no_more(make_world: MakeWorld) -> None:
    world = make_world(
        "[task.aggregation]\nupdates = 100\nseconds = 1000\n",
        storage="max_waiting_mb = 1",
        spec=linear_spec(features=30_000),
    )
    delta = np.random.default_rng(0).integers(-99, 99, world.spec.shared_size).astype(np.float32)
    delta *= 0.01
    sent = []
    for n in range(14):
        device = world.device(f"dev-{n}")
        update_id, data = device.update(delta)
        sent.append((device, update_id, data))
        device.send(update_id, data)
        world.run()
    states = [device.state(update_id) for device, update_id, _ in sent]
    assert 9 <= states.count("stored") <= 12
    world.run(1001.0)
    for device, update_id, data in sent:
        if device.state(update_id) == "nothing":
            device.send(update_id, data)
            world.run()
    world.run(1001.0)
    assert {device.state(update_id) for device, update_id, _ in sent} == {"folded"}


HOSTILE_TOPICS = (
    "device/dev-1/update/a0a0a0a0-1/-1",
    "device/dev-1/update/a0a0a0a0-1/1048576",
    "device/dev-1/update/a0a0a0a0-1/99999999999999999999",
    "device/dev-1/update/a0a0a0a0-1/1.5",
    "device/dev-1/update/a0a0a0a0-01/0",
    "device/dev-1/update/a0a0a0a0-0/0",
    "device/dev-1/update/../0",
    "device/DEV/update/a0a0a0a0-1/0",
    "device/dev-1/update/a0a0a0a0-999999999999999999/0",
    f"device/{'x' * 65}/status",
    "device//status",
    "device/dev-1/request",
    "device/dev-1/status",
)


def test_hostile_topics_and_bytes_harm_nobody(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()
    generator = random.Random(4)
    _, good = device.update(good_direction())
    bodies = [
        b"",
        b"\x00",
        b"EU\x01",
        good[:20],
        b"{" * 20_000,
        b'{"online": true, "task": "' + b"x" * 100 + b'"}',
        b'{"receipts": ["../../etc/passwd"]}',
        b'{"blobs": {"' + b"0" * 64 + b'": [0, 1, 9007199254740993]}}',
        b"\xff" * 130_000,
        generator.randbytes(3000),
    ]
    for topic in HOSTILE_TOPICS:
        for body in bodies:
            device.publish(world.topics.prefix + topic, body)
            world.run()
    update = device.send_delta(good_direction())
    world.run(61.0)
    assert device.state(update) == "folded"
    (row,) = [row for row in world.report().devices if row.device == "dev-1"]
    assert row.garbage > 0
    assert world.manifest().release == 2


def test_refusals_are_logged_the_first_second_fourth_time(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(FOLD_AT_2)
    for _ in range(100):
        update_id, _ = world.device().update(good_direction())
        world.device().send(update_id, b"?")
        world.run()
    assert sum("update refused" in message for message in caplog.messages) == 7


@pytest.mark.parametrize("seed", range(3))
def test_mutated_updates_are_refused_or_folded_but_never_harm(
    make_world: MakeWorld, seed: int
) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    device = world.device()
    generator = random.Random(seed)
    for _ in range(60):
        update_id, data = device.update(good_direction())
        mutated = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(mutated))
            choice = generator.random()
            if choice < 0.6:
                mutated[at] ^= 1 << generator.randrange(8)
            elif choice < 0.8:
                del mutated[at]
            else:
                mutated.insert(at, generator.randrange(256))
        device.send(update_id, bytes(mutated))
        world.run()
        assert device.state(update_id) in ("refused", "unknown", "folded", "nothing")
    assert np.isfinite(world.parameters()).all()
    before = world.manifest().release
    device.send_delta(good_direction())
    world.run()
    assert world.manifest().release == before + 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "another-task"}, "not served here"),
        ({"base": 1 << 40}, "the newest here is 1"),
        ({"base": 0}, "trained on release 0"),
        ({"samples": 0}, "no samples"),
    ],
)
def test_headers_that_cannot_be_right_are_refused_for_good(
    make_world: MakeWorld, changes: dict[str, object], reason: str
) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()
    update_id, data = device.update(good_direction(), **changes)
    device.send(update_id, data)
    world.run()
    assert device.receipts[update_id].state == "refused"
    assert reason in device.receipts[update_id].reason
    world.restart()
    device.receipts.clear()
    device.send(update_id, data)
    world.run()
    assert device.state(update_id) == "refused", "remembered over a restart"


def test_an_update_larger_than_its_spec_allows_is_refused_at_its_first_chunk(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()
    update_id, _ = device.update(good_direction())
    payload = bytes(200_000)
    header = UpdateHeader(
        "leaves", 1, 5, 5, 1.0, 1.0, None, len(payload), hashlib.sha256(payload).hexdigest()
    )
    device.send(update_id, encode_update(header, payload), chunk_size=2000)
    world.run()
    assert device.state(update_id) == "refused"
    assert "at most" in device.receipts[update_id].reason
    assert world.server.books.updates.partials.partial_bytes() == 0


def test_unfinished_updates_take_bounded_room_per_device(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2, spec=linear_spec(features=3000))
    device = world.device()
    delta = np.random.default_rng(0).integers(-99, 99, world.spec.shared_size).astype(np.float32)
    for _ in range(40):
        update_id, data = device.update(delta)
        device.publish(device.topics.update(device.name, update_id, 0), data[:5000])
        device.publish(device.topics.update(device.name, update_id, 5), bytes(3000))
        world.run()
    updates = world.server.books.updates
    assert len(updates.partials.partials_of(device.name)) <= 8
    assert updates.partials.partial_bytes(device.name) <= 8 * 8000
    device.request(Request(receipts=("a0a0a0a0-1", update_id)))
    world.run()
    assert device.state("a0a0a0a0-1") == "unknown"
    assert device.state(update_id) == "partial"


def test_there_is_room_for_so_many_devices_only(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2, storage="max_devices = 5")
    known = [world.device(f"dev-{n}").send_delta(good_direction()) for n in range(5)]
    world.run()
    stranger = world.device("dev-9").send_delta(good_direction())
    world.device("dev-9").report(Status(online=True))
    world.run()
    assert world.device("dev-9").state(stranger) == "nothing"
    assert len(world.report().devices) == 5
    world.run(61.0)
    assert world.device("dev-0").state(known[0]) == "folded"


def test_a_registry_from_a_backup_overtakes_what_devices_have(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    backup: dict[Path, bytes] = {}
    for base in (1, 2, 3):
        world.device().send_delta(good_direction() * 0.1, base=base)
        world.run()
        if base == 1:
            backup = world.back_up()
            world.run()
    assert world.manifest().release == 4
    world.restore(backup)
    world.start()
    world.run()
    assert (world.manifest().release, world.manifest().parent) == (5, 2)
    for artifact in world.manifest().artifacts.values():  # what it knows of the broker is as old
        assert hashlib.sha256(world.blob(artifact.sha256)).hexdigest() == artifact.sha256
    update = world.device().send_delta(good_direction() * 0.1, base=4)
    world.run()
    assert world.device().state(update) == "folded"


def test_a_server_that_was_put_back_overtakes_what_a_newer_one_published(
    make_world: MakeWorld,
) -> None:
    """It cannot read these manifests, and devices take no lower number."""
    world = make_world("[task.aggregation]\nupdates = 1\n")
    topic = world.topics.release("leaves")
    newer = json.loads(world.broker.retained[topic]) | {"release": 7, "parent": 6, "pruning": {}}
    world.broker.accept(topic, json.dumps(newer).encode(), retain=True)
    world.restart()
    world.run()
    assert (world.manifest().release, world.manifest().parent) == (8, 1)
    for absurd in (1 << 60, -3, "9", None, [9]):
        world.broker.accept(topic, json.dumps(newer | {"release": absurd}).encode(), retain=True)
        world.restart()
        world.run()
        assert world.server.lanes["leaves"].line.newest == 8


def test_an_absurd_release_number_is_not_overtaken(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    manifest: Manifest = world.manifest()
    forged = msgspec.structs.replace(manifest, release=1 << 52)
    world.device().publish(world.topics.release("leaves"), encode_manifest(forged), retain=True)
    world.run()
    assert world.server.lanes["leaves"].line.newest == 1


def test_another_bundle_for_the_same_task_is_refused(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    world.server.close()
    with pytest.raises(UsageError, match="another task name"):
        make_world(FOLD_AT_2, spec=linear_spec(features=9))


def test_a_registry_of_another_fleet_is_refused(tmp_path: Path) -> None:
    Registry(tmp_path / "r.db", "one").close()
    with pytest.raises(UsageError, match="belongs to fleet one"):
        Registry(tmp_path / "r.db", "two")


def test_a_damaged_registry_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "r.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UsageError, match="restore a backup"):
        Registry(tmp_path / "r.db", "one")


def test_a_message_that_hits_a_bug_is_dropped_and_the_others_are_taken(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(FOLD_AT_2)
    take = world.server.reception.inbox.take_chunk

    def buggy(chunk: object, *rest: object) -> object:
        if getattr(chunk, "device", "") == "dev-2":
            raise ZeroDivisionError
        return take(chunk, *rest)

    monkeypatch.setattr(world.server.reception.inbox, "take_chunk", buggy)
    first = world.device("dev-1").send_delta(good_direction())
    world.device("dev-2").send_delta(good_direction())
    for event in world.link.poll(0.0):
        world.server.handle(event, world.now, world.wall)
    with pytest.raises(ZeroDivisionError):
        world.server.tick(world.now, world.wall)
    world.server.drop_suspect()
    world.run()
    assert world.device("dev-1").state(first) == "stored"
