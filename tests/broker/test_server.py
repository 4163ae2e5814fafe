"""The whole server over a broker in memory: the life of an update, and what may go wrong in it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from server_world import World, good_direction, linear_spec, write_bundle

from broker.records.update_records import UpdateKey
from models.errors import UsageError
from models.protocol.messages import Request, Status
from models.task.params import Vector
from models.task.spec import Role, TaskSpec, TensorSpec

MakeWorld = Callable[..., World]
FOLD_AT_2 = "[task.aggregation]\nupdates = 2\nseconds = 60\n"


def test_the_first_release_is_the_bundle_itself(make_world: MakeWorld) -> None:
    world = make_world()
    world.run()
    manifest = world.manifest()
    assert (manifest.release, manifest.parent, manifest.training.open) == (1, 0, True)
    bundle = world.directory / "bundle"
    for kind, name in (("infer", "infer.onnx"), ("train", "train.onnx"), ("spec", "spec.json")):
        assert world.blob(manifest.artifacts[kind].sha256) == (bundle / name).read_bytes()
    assert world.parameters().shape == (world.spec.shared_size,)


def test_an_update_is_stored_then_folded_and_its_device_is_told(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    world.run()
    before = world.parameters()
    first = world.device("dev-1").send_delta(good_direction(), samples=30)
    world.run()
    assert world.device("dev-1").state(first) == "stored"
    assert world.manifest().release == 1
    second = world.device("dev-2").send_delta(3 * good_direction(), samples=10)
    world.run()
    receipt = world.device("dev-1").receipts[first]
    assert (receipt.state, receipt.release) == ("folded", 2)
    assert world.device("dev-2").state(second) == "folded"
    expected = before + (30 * good_direction() + 10 * 3 * good_direction()) / 40
    np.testing.assert_allclose(world.parameters(), expected, atol=1e-6)


def test_an_update_that_stays_alone_is_folded_when_its_time_is_up(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    update = world.device().send_delta(good_direction())
    world.run(59.0)
    assert world.manifest().release == 1
    world.run(1.0)
    assert (world.manifest().release, world.device().state(update)) == (2, "folded")
    world.run(1000.0)
    assert world.manifest().release == 2, "nothing waits, nothing is folded"


def test_the_server_says_when_it_wants_to_be_woken(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nseconds = 4\n")
    world.run()
    assert world.server.tick(world.now, world.wall) - world.now == 10.0
    world.device().send_delta(good_direction())
    world.run()
    assert world.server.tick(world.now + 1, world.wall + 1) == world.now + 4


def test_a_clock_that_is_set_back_does_not_hold_up_a_fold(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    update = world.device().send_delta(good_direction())
    world.run()
    world.skew -= 365 * 86400
    world.run(59.0)
    assert world.device().state(update) == "stored", "nor does it bring it forward"
    world.run(1.0)
    assert world.device().state(update) == "folded"


@pytest.mark.parametrize("days", [-365, -1, 1, 365])
def test_a_clock_that_is_set_moves_no_fold_when_more_comes(
    make_world: MakeWorld, days: int
) -> None:
    world = make_world("[task.aggregation]\nupdates = 9\nseconds = 60\nmin_seconds = 200\n")
    for pause_s in (0.0, 199.0):  # before the first fold, and after it
        first = world.device().send_delta(good_direction(), base=world.manifest().release)
        world.run(30.0)
        world.skew += days * 86400
        more = world.device().send_delta(good_direction(), base=world.manifest().release)
        world.run(29.0)
        world.run(max(0.0, pause_s - 59.0))
        assert world.device().state(first) == "stored"
        world.run(1.0)
        assert world.device().state(first) == world.device().state(more) == "folded"


def test_what_waits_from_a_time_that_is_to_come_is_folded_after_a_restart(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_2)
    update = world.device().send_delta(good_direction())
    world.run()
    world.skew -= 365 * 86400
    world.restart()
    world.run()
    assert world.device().state(update) == "folded"


def test_a_clock_that_is_set_forward_brings_no_fold_forward(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    update = world.device().send_delta(good_direction())
    world.run()
    world.skew += 365 * 86400
    world.run(59.0)
    assert world.device().state(update) == "stored"


def test_chunks_in_any_order_with_repeats_make_one_update(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2, spec=_large())
    device = world.device()
    delta = _noise(world)
    update_id, data = device.update(delta)
    chunks = [data[start : start + 2000] for start in range(0, len(data), 2000)]
    assert len(chunks) > 4
    order = [3, 3, 1, len(chunks) - 1, 0, 1, *range(len(chunks))]
    for number in order:
        device.publish(device.topics.update(device.name, update_id, number), chunks[number])
        world.run()
    assert device.state(update_id) == "stored"
    assert [r.state for r in device.told].count("unknown") == 0
    assert world.report().tasks[0].waiting == 1


def test_a_device_may_ask_which_chunks_are_missing_and_send_only_those(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_2, spec=_large())
    device = world.device()
    update_id, data = device.update(_noise(world))
    chunks = [data[start : start + 2000] for start in range(0, len(data), 2000)]
    for number in (0, 2):
        device.publish(device.topics.update(device.name, update_id, number), chunks[number])
    world.run()
    world.restart()
    device.request(Request(receipts=(update_id,)))
    world.run()
    receipt = device.receipts[update_id]
    assert receipt.state == "partial"
    assert receipt.missing == (1, *range(3, len(chunks)))
    for number in receipt.missing:
        device.publish(device.topics.update(device.name, update_id, number), chunks[number])
        world.run()
    assert device.state(update_id) == "stored"


def test_a_damaged_update_is_dropped_and_asked_for_again(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()
    update_id, data = device.update(good_direction())
    device.send(update_id, data[:-1] + bytes([data[-1] ^ 1]))
    world.run()
    assert device.state(update_id) == "unknown"
    device.send(update_id, data)
    world.run()
    assert device.state(update_id) == "stored"


def test_a_device_that_cuts_its_update_anew_is_understood(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2, spec=_large())
    device = world.device()
    update_id, data = device.update(_noise(world))
    for number, size in ((0, 2000), (1, 2000)):
        chunk = data[number * size : (number + 1) * size]
        device.publish(device.topics.update(device.name, update_id, number), chunk)
    world.run()
    device.send(update_id, data, chunk_size=3000)
    world.run()
    assert device.state(update_id) == "stored"


def test_a_repeated_update_is_folded_once_and_answered_again(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()
    update_id, data = device.update(good_direction())
    device.send(update_id, data)
    device.send(update_id, data)
    world.run(60.0)
    assert device.state(update_id) == "folded"
    parameters = world.parameters()
    world.restart()
    device.send(update_id, data)
    world.run(60.0)
    assert device.told[-1].state == "folded"
    np.testing.assert_array_equal(world.parameters(), parameters)
    report = world.report()
    assert (report.updates_folded, report.updates_folded_twice) == (1, 0)


def test_updates_are_known_for_ever_in_little_room(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    device = world.device()
    sent = []
    for _ in range(30):
        sent.append(device.update(good_direction() * 0.01, base=1))
        device.send(*sent[-1])
        world.run()
    records = world.server.books.updates
    with world.server.books.registry.transaction():
        records.forget_old_headers(kept=3)
    assert records.settled.ranges_of(device.name) == 1
    device.request(Request(receipts=(sent[0][0],)))
    device.send(*sent[1])
    world.run()
    assert device.receipts[sent[0][0]].state == "folded"
    assert device.told[-1].update == sent[1][0]
    assert world.report().updates_folded == 30
    assert world.manifest().release == 31


def test_a_late_update_counts_for_less(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\nhalf_life = 2\n")
    for _ in range(2):
        world.device().send_delta(good_direction())
        world.run()
    before = world.parameters()
    world.device().send_delta(good_direction(), base=1)
    world.run()
    np.testing.assert_allclose(world.parameters() - before, good_direction() / 2, atol=1e-6)


def test_what_is_too_old_is_refused_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\nmax_staleness = 1\n")
    for base in (1, 2):
        world.device().send_delta(good_direction(), base=base)
        world.run()
    late = world.device().send_delta(good_direction(), base=1)
    world.run()
    receipt = world.device().receipts[late]
    assert receipt.state == "refused"
    assert "2 releases old" in receipt.reason
    assert world.manifest().release == 3, "a fold of nothing makes no release"


def test_training_closes_with_the_last_release(make_world: MakeWorld) -> None:
    world = make_world("releases = 2\n[task.aggregation]\nupdates = 1\n")
    world.run()
    assert world.manifest().training.open
    world.device().send_delta(good_direction())
    world.run()
    assert (world.manifest().release, world.manifest().training.open) == (2, False)
    late = world.device().send_delta(good_direction())
    world.run()
    assert world.device().state(late) == "folded", "work that was under way is not lost"


def test_new_settings_make_a_new_release_of_the_same_weights(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    world.device().send_delta(good_direction())
    world.run()
    parameters = world.parameters()
    world.restart()
    world.run()
    assert world.manifest().release == 2
    training = msgspec.structs.replace(world.config.task[0].training, epochs=7.0)
    world.restart(training=training)
    world.run()
    assert (world.manifest().release, world.manifest().training.epochs) == (3, 7.0)
    np.testing.assert_array_equal(world.parameters(), parameters)


def test_a_restarted_server_goes_on_where_it_was(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    update = world.device("dev-1").send_delta(good_direction())
    world.run()
    world.restart()
    world.device("dev-2").send_delta(good_direction())
    world.run()
    assert world.device("dev-1").state(update) == "folded"
    assert world.manifest().release == 2


def test_a_receipt_that_the_broker_never_took_is_sent_after_a_restart(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_2)
    update = world.device().send_delta(good_direction())
    for event in world.link.poll(0.0):
        world.server.handle(event, world.now, world.wall)
    world.server.reception.take_in(world.now, world.wall)  # committed and acknowledged, then killed
    world.restart()
    world.run()
    assert world.device().state(update) == "stored"


def test_nothing_is_acknowledged_before_it_is_committed(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker repeats what was not acknowledged, without the device doing anything."""
    world = make_world(FOLD_AT_2)
    update = world.device().send_delta(good_direction())
    for event in world.link.poll(0.0):
        world.server.handle(event, world.now, world.wall)
    with monkeypatch.context() as here:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        here.setattr(world.server.reception.inbox, "take_chunk", killed)
        with pytest.raises(KeyboardInterrupt):
            world.server.tick(world.now, world.wall)
    world.restart()
    world.run()
    assert world.device().state(update) == "stored"


def test_a_wiped_broker_gets_everything_back(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n")
    world.device().send_delta(good_direction())
    world.run()
    retained = dict(world.broker.retained)
    world.broker.lose_all_state()
    assert not world.broker.retained
    world.run()
    current = {artifact.sha256 for artifact in world.manifest().artifacts.values()}
    assert world.manifest().release == 2
    assert all(world.blob(sha256) for sha256 in current)
    for topic in world.broker.retained:
        assert world.broker.retained[topic] == retained[topic]
    device = world.device()
    device.link.subscribe([device.topics.receipt(device.name)])
    update = device.send_delta(good_direction(), base=2)
    world.run()
    assert device.state(update) == "folded", "the server hears devices again"


def test_chunks_that_the_broker_lost_come_again_on_request(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n", spec=_large())
    world.device().send_delta(np.full(world.spec.shared_size, 0.01, np.float32))
    world.run()
    parent = world.server.books.releases.get("leaves", 1)
    assert parent is not None
    topics = world.topics
    wanted = [
        topics.blob(manifest.artifacts["parameters"].sha256, number)
        for manifest in (parent.manifest, world.manifest())
        for number in (0, 1)
    ]
    taken = {topic: world.broker.retained.pop(topic) for topic in wanted}
    taken[topics.release("leaves")] = world.broker.retained.pop(topics.release("leaves"))
    blobs = {topic.split("/")[-2]: (0, 1, 999_999) for topic in wanted} | {"0" * 64: (0,)}
    world.device().request(Request(blobs=blobs, release="leaves"))
    world.run()
    assert {topic: world.broker.retained[topic] for topic in taken} == taken


def test_artifacts_of_old_releases_are_cleared(make_world: MakeWorld) -> None:
    world = make_world("[task.aggregation]\nupdates = 1\n", storage="keep_releases = 2")
    seen = []
    for base in range(1, 5):
        world.run()
        seen.append(world.manifest().artifacts["parameters"].sha256)
        world.device().send_delta(good_direction(), base=base)
        world.run()
    assert world.manifest().release == 5
    assert [bool(world.blob(sha256)) for sha256 in seen] == [False, False, False, True]
    files = {path.name for path in (world.directory / "server" / "artifacts").iterdir()}
    assert files.isdisjoint(seen[:3])
    assert seen[3] in files


def test_the_registry_shows_what_devices_say(make_world: MakeWorld) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()
    device.send_delta(good_direction())
    device.report(Status(online=True, task="leaves", release=1, updates_made=3, updates_waiting=1))
    world.run()
    (row,) = world.report().devices
    assert (row.online, row.updates_stored, row.updates_missing) == (True, 1, 1)
    device.report(Status(online=False, task="leaves"))  # its will
    world.run()
    (row,) = world.report().devices
    assert (row.online, row.status.release) == (False, 1)


def test_a_run_that_speaks_again_after_the_next_one_is_a_second_board(
    make_world: MakeWorld,
) -> None:
    world = make_world(FOLD_AT_2)
    device = world.device()

    def is_double_after(run: str) -> bool:
        device.report(Status(online=True, task="leaves", run=run))
        device.report(Status(online=False, task="leaves"))  # its will
        world.run()
        return world.report().devices[0].is_double

    assert not is_double_after("aaaaaaaa")
    assert not is_double_after("aaaaaaaa")  # it reconnected
    assert not is_double_after("bbbbbbbb")  # it was started again
    assert not is_double_after("cccccccc")
    assert is_double_after("bbbbbbbb")  # so that one still runs
    world.now += 25 * 3600
    assert not is_double_after("dddddddd")  # a day without: somebody has seen to it


def test_hold_out_accuracy_is_in_the_manifest(make_world: MakeWorld, hold_out: Path) -> None:
    evaluation = f'[task.evaluation]\ndata = "{hold_out}"\n'
    world = make_world(f"[task.aggregation]\nupdates = 1\n{evaluation}")
    world.run()
    assert world.manifest().accuracy < 0.7
    world.device().send_delta(good_direction())
    world.run()
    assert world.manifest().accuracy > 0.95
    assert world.report().tasks[0].releases[-1].accuracy == world.manifest().accuracy


def test_the_gate_refuses_the_update_that_does_the_harm(
    make_world: MakeWorld, hold_out: Path
) -> None:
    evaluation = f'[task.evaluation]\ndata = "{hold_out}"\nmax_drop = 0.05\n'
    spec = linear_spec(own=Role.FROZEN)
    world = make_world(f"[task.aggregation]\nupdates = 3\nseconds = 9\n{evaluation}", spec=spec)
    for name in ("dev-1", "dev-2", "dev-3"):
        world.device(name).send_delta(good_direction())
        world.run()
    good = world.manifest().accuracy
    kept = [world.device(n).send_delta(good_direction(), base=2) for n in ("dev-1", "dev-2")]
    harmful = world.device("dev-3").send_delta(-9 * good_direction(), base=2)
    world.run()
    assert world.device("dev-3").receipts[harmful].state == "refused"
    assert "lowers" in world.device("dev-3").receipts[harmful].reason
    assert [world.device(f"dev-{n}").state(kept[n - 1]) for n in (1, 2)] == ["folded", "folded"]
    assert world.manifest().accuracy >= good - 0.05
    assert world.report().tasks[0].releases[-1].updates == 2


def test_no_gate_judges_personal_tensors_by_their_initial_values(
    make_world: MakeWorld, hold_out: Path
) -> None:
    evaluation = f'[task.evaluation]\ndata = "{hold_out}"\n'
    make_world(evaluation)
    with pytest.raises(UsageError, match=r"cannot measure personal .*own_bias.*remove max_drop"):
        make_world(f"{evaluation}max_drop = 0.05\n")


def test_batches_of_one_are_refused_where_batch_norm_adapts(make_world: MakeWorld) -> None:
    spec = linear_spec()
    tensors = [*spec.tensors[:2], TensorSpec("mean", (3,), Role.PERSONAL, "statistic")]
    adaptive = msgspec.structs.replace(spec, tensors=(*tensors, spec.tensors[2]))
    with pytest.raises(UsageError, match=r"batch = 1 .*--norms personal.*at least 2"):
        make_world("[task.training]\nbatch = 1\n", spec=adaptive)
    make_world("[task.training]\nbatch = 1\n")


def test_update_ids_are_read_in_their_shortest_form_only() -> None:
    key = UpdateKey.parse("dev-1", "0000000a-12")
    assert (key.installation, key.sequence, key.update_id) == (10, 12, "0000000a-12")


def _large() -> TaskSpec:
    return linear_spec(features=3000)


def _noise(world: World) -> Vector:
    return np.random.default_rng(3).integers(-99, 99, world.spec.shared_size).astype(np.float32)


def test_what_waits_for_a_task_that_is_not_served_any_more_is_refused_at_the_start(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    """Its device takes the work back, and its share of the waiting room is free again."""
    write_bundle(tmp_path / "apples", linear_spec("apples"))
    world = make_world(FOLD_AT_2 + f'[[task]]\nbundle = "apples"\n{FOLD_AT_2}')
    device = world.device()
    update_id, data = device.update(good_direction(), task="apples")
    device.send(update_id, data)
    kept = world.device("dev-2").send_delta(good_direction())
    world.run()
    world.config = msgspec.structs.replace(world.config, task=world.config.task[:1])
    world.restart()
    world.run()
    receipt = device.receipts[update_id]
    assert (receipt.state, "not served" in receipt.reason) == ("refused", True)
    assert world.device("dev-2").state(kept) == "stored"
    assert world.server.books.updates.waiting_summary("apples") == (0, 0.0)
