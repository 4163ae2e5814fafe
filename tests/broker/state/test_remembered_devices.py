"""A server that remembers its devices: agreement, sums, and what comes of every kind of loss."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import pytest
from remembered_device import RememberedDevice, some_delta
from server_fuse import Fuse, PowerCutError
from server_world import CLASSES, FEATURES, World, good_direction, linear_spec

from broker.assembly import read_tasks
from broker.commands.release_export import export_release
from broker.records.memory_records import MemoryRow
from broker.records.state_records import StateRecords
from broker.releases import release_line
from broker.releases.first_release import initial_parameters
from broker.reports.fleet_table import show_releases, show_status
from models.codec.average import averaged
from models.codec.feedback import history_digest
from models.codec.payload import decompress
from models.protocol.manifest import Manifest
from models.protocol.messages import Request
from models.protocol.npz import read_vector
from models.protocol.update import Extras, decode_update, encode_update
from models.task.bundle import read_bundle
from models.task.params import Vector
from models.task.spec import Role

MakeWorld = Callable[..., World]
MEMORY = """
[task.aggregation]
updates = 2
seconds = 60
optimizer = "momentum"
learning_rate = 0.5
[task.learning]
feedback = "memory"
"""
GD_SEC = MEMORY.replace('"memory"', '"gd-sec"\nbeta = 0.25')


def remembered(world: World, name: str, beta: float = 1.0) -> RememberedDevice:
    device = world.device(name)
    device.installation += int(name[-1])
    return RememberedDevice(device, beta)


def rows(world: World) -> dict[str, MemoryRow]:
    line = world.server.lanes[world.spec.task].line
    return {row.device: row for row in line.memory.records.rows(line.task)}


def agree(world: World, *devices: RememberedDevice) -> None:
    """L1 and L3: both sides hold the same bits, and S is the sum over the rows."""
    line = world.server.lanes[world.spec.task].line
    held, total, weight = line.vectors.held, np.zeros(world.spec.shared_size), 0.0
    found = rows(world)
    for device in devices:
        row = found[device.device.name]
        assert device.history is not None
        assert np.array_equal(line.memory.get(row).history, device.history)
        assert row.digest == history_digest(device.history)
    for row in found.values():
        total += row.samples * line.memory.get(row).history.astype(np.float64)
        weight += row.samples
    assert (held.weight, held.devices) == (weight, len(found))
    if found:
        assert held.remembered is not None
        np.testing.assert_allclose(held.remembered, total, rtol=1e-9, atol=1e-9)
    else:
        assert held.remembered is None


def vectors_of(world: World, manifest: Manifest, kind: str) -> Vector:
    data = world.server.books.artifacts.get(manifest.artifacts[kind])  # type: ignore[index]
    return read_vector(data, size=world.spec.shared_size)


def check_averages(world: World) -> None:
    """L7: each average is made from the parameters of its release alone."""
    average, count = None, 0
    for row in world.server.books.releases.history(world.spec.task):
        manifest = row.manifest
        published = vectors_of(world, manifest, "parameters")
        if row.number > 1 and manifest.averaged != count:
            count += 1
            average = averaged(average, published, count, decay=0.9)
        assert manifest.averaged == count
        assert manifest.runs == ("average" if count else "parameters")
        if average is not None:
            assert np.array_equal(vectors_of(world, manifest, "average"), average)


@pytest.mark.parametrize(("task", "beta"), [(MEMORY, 1.0), (GD_SEC, 0.25)])
def test_both_sides_hold_the_same_bits_over_rounds_and_restarts(
    make_world: MakeWorld, task: str, beta: float
) -> None:
    world = make_world(task)
    devices = [remembered(world, f"dev-{n}", beta) for n in (1, 2, 3)]
    for turn in range(4):
        for number, device in enumerate(devices):
            if turn != 1 or number:  # one is away for a turn
                device.learn(some_delta(10 * turn + number, world.spec.shared_size))
                device.send()
        for device in devices:
            if device.waiting:
                assert device.until_settled(world).state == "folded"
        agree(world, *devices)
        if turn == 2:
            world.restart()
            world.run()
            agree(world, *devices)
    assert world.manifest().plan.feedback == ("memory" if beta == 1 else "gd-sec")
    assert [device.resets for device in devices] == [0, 0, 0]
    check_averages(world)


def test_a_restored_backup_resets_each_device_once(make_world: MakeWorld) -> None:
    world = make_world(MEMORY)
    devices = [remembered(world, f"dev-{n}") for n in (1, 2)]
    backup = world.back_up()
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed, world.spec.shared_size))
        device.send()
    for device in devices:
        assert device.until_settled(world).state == "folded"
    world.restore(backup)
    world.start()
    world.run()
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed + 5, world.spec.shared_size))
        receipt = device.until_settled(world)
        assert (receipt.state, receipt.reset) == ("refused", True)
        assert receipt.reason == "its memory is not the one here"
        device.learn(some_delta(seed + 7, world.spec.shared_size))
        assert device.until_settled(world).state == "folded"
    agree(world, *devices)
    assert [device.resets for device in devices] == [1, 1]


def test_a_reset_is_told_again_after_a_crash_and_to_nobody_of_version_1(
    make_world: MakeWorld,
) -> None:
    world = make_world(MEMORY)
    device = remembered(world, "dev-1")
    device.learn(some_delta(1, world.spec.shared_size))
    device.send()
    device.until_settled(world)
    device.history = some_delta(2, world.spec.shared_size)  # of another card
    device.learn(some_delta(3, world.spec.shared_size))
    device.send()
    world.run(61.0)
    assert world.device("dev-1").receipts[device.waiting].reset
    device.device.receipts.clear()
    world.restart()
    device.device.request(Request(receipts=(device.waiting,)))
    world.run(61.0)
    assert device.settle() is not None
    assert device.resets == 1
    # Who speaks version 1 began with nothing, and is not told what it would not understand.
    old = world.device("dev-2")
    first = old.send_delta(some_delta(4, world.spec.shared_size))
    world.run(61.0)
    assert old.receipts[first].state == "folded"
    assert not old.receipts[first].reset


def test_a_device_that_an_operator_forgets_begins_anew(make_world: MakeWorld) -> None:
    world = make_world(MEMORY)
    devices = [remembered(world, f"dev-{n}") for n in (1, 2)]
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed, world.spec.shared_size))
        device.send()
    for device in devices:
        device.until_settled(world)
    world.server.books.devices.ask_to_forget(["dev-1"], world.wall)
    world.run(10.0)
    assert set(rows(world)) == {"dev-2"}
    devices[1].learn(some_delta(5, world.spec.shared_size))
    assert devices[1].until_settled(world).state == "folded"
    agree(world, devices[1])
    devices[0].learn(some_delta(6, world.spec.shared_size))
    assert devices[0].until_settled(world).reset
    devices[0].learn(some_delta(7, world.spec.shared_size))
    assert devices[0].until_settled(world).state == "folded"
    agree(world, *devices)


def test_who_is_not_heard_for_long_is_forgotten_and_so_is_the_longest_beyond_the_bound(
    make_world: MakeWorld,
) -> None:
    world = make_world(MEMORY + "forget_after = 3\n")
    away, here = remembered(world, "dev-1"), remembered(world, "dev-2")
    for seed, device in enumerate((away, here)):
        device.learn(some_delta(seed, world.spec.shared_size))
        device.send()
    for device in (away, here):
        device.until_settled(world)
    for seed in range(4):
        assert set(rows(world)) == {"dev-1", "dev-2"}, "of release 2, one of three before the next"
        here.learn(some_delta(seed + 5, world.spec.shared_size))
        here.until_settled(world)
    assert set(rows(world)) == {"dev-2"}
    agree(world, here)
    # One megabyte is room for all of these, so the bound is lowered by hand.
    line = world.server.lanes[world.spec.task].line
    away.history = None
    away.learn(some_delta(20, world.spec.shared_size))
    away.until_settled(world)
    kept = line.memory.bounded(
        line.vectors.held, {}, oldest=0, most=rows(world)["dev-1"].artifact.size
    )
    assert kept.devices == ("dev-2",)
    assert kept.state.devices == 1


@pytest.mark.parametrize("what", ["memory", "sum", "velocity", "average"])
def test_a_lost_file_never_stops_a_task(
    make_world: MakeWorld, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(MEMORY)
    devices = [remembered(world, f"dev-{n}") for n in (1, 2)]
    for turn in range(2):
        for seed, device in enumerate(devices):
            device.learn(some_delta(seed + 10 * turn, world.spec.shared_size))
            device.send()
        for device in devices:
            device.until_settled(world)
    line = world.server.lanes[world.spec.task].line
    row = StateRecords(world.server.books.registry).get(line.task)
    assert row is not None
    named = {
        "memory": rows(world)["dev-1"].artifact,
        "sum": row.remembered,
        "velocity": row.velocity,
        "average": world.manifest().artifacts["average"],
    }[what]
    assert named is not None
    (world.directory / "server" / "artifacts" / named.sha256).write_bytes(b"damaged")
    before = world.manifest()
    world.restart()
    world.run()
    assert sum("lost" in record.message for record in caplog.records) == 1
    if what == "average":
        assert world.manifest().release == before.release + 1
        assert world.manifest().averaged == 0
        assert world.manifest().runs == "parameters"
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed + 30, world.spec.shared_size))
        receipt = device.until_settled(world)
        if receipt.reset:
            assert (what, device.device.name) == ("memory", "dev-1")
            device.learn(some_delta(seed + 40, world.spec.shared_size))
            assert device.until_settled(world).state == "folded"
    agree(world, *devices)
    assert devices[0].resets == (what == "memory")
    if what == "average":
        assert world.manifest().averaged == 2


@pytest.mark.parametrize("damaged", [b"\x00\xff", b'{"release":3,"feedback":"memry"}', 7])
def test_a_damaged_row_costs_the_moments_and_no_memory(
    make_world: MakeWorld, damaged: object, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(MEMORY)
    device = remembered(world, "dev-1")
    for seed in range(2):
        device.learn(some_delta(seed, world.spec.shared_size))
        device.until_settled(world)
    average = world.manifest().averaged
    registry = world.server.books.registry
    registry.execute("UPDATE server_state SET state = ?", damaged)
    assert world.report().tasks[0].learning.remembered == 1, "who looks is told what there is"
    world.restart()
    world.run()
    assert sum("state lost" in record.message for record in caplog.records) == 1
    device.learn(some_delta(9, world.spec.shared_size))
    assert device.until_settled(world).state == "folded"
    agree(world, device)
    assert (device.resets, world.manifest().averaged) == (0, average + 1)


def test_a_memory_that_is_lost_while_the_server_runs_is_forgotten_at_the_next_fold(
    make_world: MakeWorld,
) -> None:
    world = make_world(MEMORY)
    devices = [remembered(world, f"dev-{n}") for n in (1, 2)]
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed, world.spec.shared_size))
        device.send()
    for device in devices:
        device.until_settled(world)
    sha256 = rows(world)["dev-1"].artifact.sha256
    (world.directory / "server" / "artifacts" / sha256).unlink()
    devices[0].learn(some_delta(5, world.spec.shared_size))
    assert devices[0].until_settled(world).reset
    devices[0].learn(some_delta(6, world.spec.shared_size))
    assert devices[0].until_settled(world).state == "folded"
    agree(world, *devices)


def test_another_method_drops_what_was_remembered_for_the_old_one(make_world: MakeWorld) -> None:
    world = make_world(MEMORY)
    device = remembered(world, "dev-1")
    device.learn(some_delta(1, world.spec.shared_size))
    device.until_settled(world)
    late = remembered(world, "dev-2")
    late.learn(some_delta(2, world.spec.shared_size))
    plain = msgspec.structs.replace(world.config.task[0].learning, feedback="residual")
    world.restart(learning=plain)
    world.run()
    assert rows(world) == {}
    assert world.manifest().plan.feedback == "residual"
    late.send()
    receipt = late.until_settled(world)
    assert (receipt.state, receipt.reset) == ("refused", False)
    assert receipt.reason == "made for feedback = memory, now it is residual"
    update = device.device.send_delta(good_direction(), base=world.manifest().release)
    world.run(61.0)
    assert device.device.receipts[update].state == "folded"


def test_a_fold_of_all_waits_for_every_device_that_is_there(make_world: MakeWorld) -> None:
    task = MEMORY.replace("updates = 2", 'updates = "all"').replace("seconds = 60", "seconds = 600")
    world = make_world(task)
    devices = [remembered(world, f"dev-{n}") for n in (1, 2, 3)]
    size = world.spec.shared_size
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed, size))
        device.send()
    world.run(61.0)
    assert world.manifest().release == 1, "nobody is remembered yet: all that come in time"
    world.run(600.0)
    assert world.manifest().release == 2
    for device in devices:
        assert device.until_settled(world).state == "folded"
        device.device.request(Request())  # it is still there
    world.run(1.0)
    for seed, device in enumerate(devices):
        device.learn(some_delta(seed + 5, size))
        device.send()
        world.run(1.0)
        assert world.manifest().release == (3 if seed == 2 else 2)
    for device in devices:
        device.until_settled(world)
    world.run(700.0)  # dev-3 is not heard of any more
    for seed, device in enumerate(devices[:2]):
        device.learn(some_delta(seed + 8, size))
        device.send()
        world.run(1.0)
    assert world.manifest().release == 4
    agree(world, devices[2])


@pytest.mark.slow
def test_a_crash_before_any_write_breaks_no_agreement(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second round of two devices, cut at every single step of it."""
    fuse = Fuse(monkeypatch)
    steps = None
    cut_at = 0
    while steps is None or cut_at < steps:
        cut_at += 1
        with monkeypatch.context() as here:
            world = make_world(MEMORY, spec=linear_spec(features=20))
            here.chdir(world.directory)
            _rounds(world, fuse, cut_at if steps else None)
            if steps is None:
                steps, cut_at = fuse.count, 0
            world.server.close()
            server = world.directory / "server"
            for path in [*server.glob("artifacts/*"), *server.glob("registry*")]:
                path.unlink()
    assert steps > 40


def _rounds(world: World, fuse: Fuse, cut_at: int | None) -> None:
    devices = [remembered(world, f"dev-{n}") for n in (1, 2)]
    by_name = {device.device.name: device for device in devices}
    size = world.spec.shared_size
    first = world.parameters()
    said: dict[tuple[str, str], Vector] = {}
    for turn in range(2):
        for number, device in enumerate(devices):
            update = device.learn(some_delta(10 * turn + number, size), samples=5 + number)
            said[device.device.name, update] = decompress(
                decode_update(device.data)[1], world.spec.shared
            )
        if turn == 1:
            fuse.count, fuse.left = 0, cut_at
        try:
            for device in devices:
                device.send()
                world.run(20.0)
            world.run(61.0)
        except PowerCutError:
            world.restart()
        fuse.left = None
        for device in devices:
            assert device.until_settled(world).state == "folded", f"cut before step {cut_at}"
    assert [device.resets for device in devices] == [0, 0]
    agree(world, *devices)
    check_averages(world)
    # L5: the parameters are what the formulas make of what was folded, release by release.
    folded = world.server.books.registry.query(
        "SELECT release, device, samples, printf('%08x-%d', installation, sequence) "
        "FROM updates WHERE state = 'folded' ORDER BY release, id"
    )
    exact, velocity = first.astype(np.float64), np.zeros(size)
    histories: dict[str, np.ndarray] = {}
    weights: dict[str, float] = {}
    for _, together in groupby(folded, key=lambda row: row[0]):
        for _, name, samples, update in together:
            histories[name] = histories.get(name, np.zeros(size)) + said[name, update]
            weights[name] = samples
        step = sum(weights[n] * h for n, h in histories.items()) / sum(weights.values())
        velocity = 0.5 * velocity + step
        exact = exact + 0.5 * velocity
    assert set(by_name) == set(histories)
    np.testing.assert_allclose(world.parameters(), exact, rtol=1e-5, atol=1e-6)


def test_people_are_told_how_a_task_learns(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(MEMORY + "max_memory_mb = 3000\n")
    devices = [remembered(world, f"dev-{n}") for n in (1, 2)]
    for turn in range(3):
        for seed, device in enumerate(devices):
            device.learn(some_delta(seed + 10 * turn, world.spec.shared_size))
            device.send()
        for device in devices:
            device.until_settled(world)
    devices[0].history = some_delta(77, world.spec.shared_size)
    devices[0].learn(some_delta(78, world.spec.shared_size))
    devices[0].until_settled(world)
    report = world.report()
    show_status(report, world.wall)
    text = capsys.readouterr().out
    assert (
        "learning: memory, average 0.9, optimizer momentum, steps epochs, memory 2 devices, "
        "554 B of 3.0 GB, resets 1 in a day"
    ) in text
    (task,) = report.tasks
    assert [release.step is None for release in task.releases] == [True, False, False, False]
    assert task.releases[-1].age == 2, "they train on release 1, and on it alone"
    show_releases(task, world.wall)
    header, *_ = capsys.readouterr().out.splitlines()
    assert {"step", "age"} < set(header.split())


def test_what_runs_is_what_is_measured_gated_and_exported(
    make_world: MakeWorld, tmp_path: Path, hold_out: Path
) -> None:
    task = (
        "[task.aggregation]\nupdates = 1\n"
        '[task.evaluation]\ndata = "holdout.npz"\n[task.learning]\naverage = 0.5\n'
    )
    world = make_world(task, spec=linear_spec(own=Role.SHARED))
    device = world.device()
    delta = np.zeros(world.spec.shared_size, np.float32)
    weight = delta[: FEATURES * CLASSES].reshape(FEATURES, CLASSES)
    weight[np.arange(CLASSES), np.arange(CLASSES)] = 1
    for sign in (1, 1, -4):  # the last one ruins p, and the average less so
        device.send_delta(np.float32(sign) * delta, base=world.manifest().release)
        world.run(61.0)
    newest = world.server.books.releases.current(world.spec.task)
    assert newest is not None
    assert newest.metric is not None
    assert newest.metric_trained is not None
    assert newest.manifest.averaged == 3
    evaluate = read_tasks(world.config)[0].evaluate
    assert evaluate is not None
    average = vectors_of(world, newest.manifest, "average")
    published = vectors_of(world, newest.manifest, "parameters")
    assert newest.metric == evaluate(average).metric == newest.manifest.accuracy
    assert newest.metric_trained == evaluate(published).metric
    export_release(tmp_path / "server", world.spec.task, newest.number, tmp_path / "out.onnx")
    bundle = read_bundle(tmp_path / "bundle")
    exported = initial_parameters(bundle._replace(infer=(tmp_path / "out.onnx").read_bytes()))
    assert np.array_equal(exported, average)


def test_an_update_says_more_in_version_2_and_the_newest_of_it_is_kept(
    make_world: MakeWorld,
) -> None:
    world = make_world()
    device = world.device()
    for shared in (0.25, 0.5):
        extras = Extras(accuracy_shared=shared, seconds=3.0)
        update_id, data = device.update(good_direction(), extras=extras)
        device.send(update_id, data)
        world.run()
    headers = world.server.books.updates.headers
    assert headers.reports("leaves")["dev-1"].extras.accuracy_shared == 0.5
    waiting = world.server.books.updates.waiting("leaves", 10)
    assert [u.extras and u.extras.accuracy_shared for u in waiting] == [0.25, 0.5]


def test_a_damaged_row_of_extras_costs_one_round_trip(make_world: MakeWorld) -> None:
    world = make_world(MEMORY)
    device = remembered(world, "dev-1")
    device.learn(some_delta(1, world.spec.shared_size))
    device.send()
    world.run()
    world.server.books.registry.execute("UPDATE extras SET extras = x'c1'")
    assert device.until_settled(world).reset
    device.learn(some_delta(2, world.spec.shared_size))
    assert device.until_settled(world).state == "folded"
    agree(world, device)


def test_the_sum_is_computed_anew_now_and_then(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_line, "ANEW_EVERY", 2)
    world = make_world(MEMORY)
    line = world.server.lanes[world.spec.task].line
    device = remembered(world, "dev-1")
    for seed, folds in enumerate((1, 2, 1, 2)):
        device.learn(some_delta(seed, world.spec.shared_size))
        device.until_settled(world)
        assert line.vectors.scalars.folds == folds
        agree(world, device)


def test_who_changes_the_threshold_need_not_wait_for_the_guard(make_world: MakeWorld) -> None:
    world = make_world(GD_SEC.replace("updates = 2", "updates = 1"))
    device = remembered(world, "dev-1", 0.25)
    device.learn(some_delta(1, world.spec.shared_size))
    assert device.until_settled(world).state == "folded"
    assert world.manifest().plan.threshold == 1.0
    learning = world.config.task[0].learning
    world.restart(learning=msgspec.structs.replace(learning, threshold=3.0))
    world.run()
    assert world.manifest().plan.threshold == 3.0


def test_no_single_device_says_how_large_the_loss_is(make_world: MakeWorld) -> None:
    """It could halve the threshold again and again, and all would send all they have."""
    world = make_world(GD_SEC.replace("updates = 2", "updates = 3"))
    devices = [remembered(world, f"dev-{n}", 0.25) for n in (1, 2, 3)]
    for turn in range(3):
        for number, device in enumerate(devices):
            samples = 1 << 50 if turn and not number else 10
            device.learn(some_delta(10 * turn + number, world.spec.shared_size), samples=samples)
            if samples > 10:  # and a loss of 1e30
                header, payload = decode_update(device.data)
                loud = header._replace(loss_first=1e30 * turn)
                device.data = encode_update(loud, payload)
            device.send()
        for device in devices:
            assert device.until_settled(world).state == "folded"
    assert world.manifest().plan.threshold == 1.0


def test_an_average_is_switched_off_and_on_again(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    device = world.device()

    def learn() -> None:
        device.send_delta(good_direction(), base=world.manifest().release)
        world.run()

    def restart(average: float | str) -> Manifest:
        learning = msgspec.structs.replace(world.config.task[0].learning, average=average)
        world.restart(learning=learning)
        world.run()
        return world.manifest()

    learn()
    assert world.manifest().averaged == 1
    manifest = restart(0.0)
    assert (manifest.release, manifest.averaged, manifest.runs) == (3, 0, "parameters")
    assert "average" not in manifest.artifacts
    learn()
    assert world.manifest().averaged == 0
    manifest = restart("auto")
    assert (manifest.release, manifest.plan.average, manifest.averaged) == (5, 0.9, 0)
    learn()
    assert world.manifest().averaged == 1


def test_whoever_came_first_does_not_weigh_what_it_claims_for_ever(make_world: MakeWorld) -> None:
    """Alone in its fold there was nobody to compare it with, and then it stays away."""
    world = make_world(MEMORY.replace("updates = 2", "updates = 1"))
    loud, *honest = (remembered(world, f"dev-{n}") for n in range(5))
    loud.learn(some_delta(1, world.spec.shared_size), samples=1 << 50)
    assert loud.until_settled(world).state == "folded"
    for seed, device in enumerate(honest):
        device.learn(some_delta(seed + 5, world.spec.shared_size), samples=10 + seed)
        assert device.until_settled(world).state == "folded"
    assert set(rows(world)) == {device.device.name for device in honest}
    agree(world, *honest)
    loud.learn(some_delta(9, world.spec.shared_size), samples=1 << 50)
    assert loud.until_settled(world).reset
    loud.learn(some_delta(9, world.spec.shared_size), samples=1 << 50)
    assert loud.until_settled(world).state == "folded"
    assert rows(world)["dev-0"].samples == 10 * 11.5
