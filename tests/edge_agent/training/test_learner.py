"""Learning: a result counts exactly once, whatever dies when, and nothing learned is lost."""

import errno
import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import COOL, DEVICE, Clock, Device, Files, Server, launch_here, tiny_spec

from edge_agent.board.children import Child
from edge_agent.board.pace import Pace
from edge_agent.samples.sample_store import Samples
from edge_agent.samples.segment_reading import read_samples
from edge_agent.training.training_job import TRAINER, decode_job
from models.codec.payload import decompress
from models.codec.transform.shared_basis import context_digest
from models.learning.training_loop import train
from models.protocol.npz import read_vector
from models.protocol.topics import Topics
from models.protocol.update import context_in, decode_update
from models.task.params import Vector, flatten, unflatten
from models.task.spec import Role
from tools.simulation.machines.memory_broker import MemoryBroker

SPEC = tiny_spec()


@pytest.fixture
def ready(device: Device, broker: MemoryBroker, topics: Topics) -> Device:
    Files(1).publish(broker, topics)
    device.add_samples(64)
    return device


class Failing:
    """A child that ends with ``code`` and leaves ``said`` behind."""

    def __init__(self, code: int | None, said: str = "") -> None:
        self.code = code
        self.said = said
        self.starts = 0
        self.killed = False

    def __call__(self, module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module != TRAINER:
            return launch_here(module, arguments, log=log)
        self.starts += 1
        assert log is not None
        Path(log).write_text(f"Traceback\n{self.said}\n")
        return self

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.killed = True


def residual(device: Device) -> Vector:
    name = device.agent.parts.outbox.codec().residual
    if name is None:
        return np.zeros(SPEC.shared_size, np.float32)
    data = (device.config.storage.directory / "codec" / name).read_bytes()
    return read_vector(data, size=SPEC.shared_size, name="residual")


def test_a_failed_training_is_said_and_tried_again_ever_more_rarely(ready: Device) -> None:
    ready.launch = failing = Failing(1, "training diverged at step 3")
    ready.run(20)
    assert "diverged" in ready.status.problem
    ready.run(3600)
    assert 4 <= failing.starts <= 12
    ready.launch = launch_here
    assert ready.run(3600, until=lambda: ready.status.updates_folded == 1)
    assert ready.status.problem == ""


def test_a_trainer_without_memory_is_named_as_that(ready: Device) -> None:
    ready.launch = Failing(-9)
    ready.run(20)
    assert "memory" in ready.status.problem


def test_a_trainer_that_hangs_is_ended(ready: Device) -> None:
    ready.launch = failing = Failing(None)
    ready.run(31 * 60)
    assert failing.killed
    assert "stopped after 30 minutes" in ready.status.problem


def test_a_board_that_is_too_slow_for_the_plan_does_less_of_it(
    ready: Device, server: Server
) -> None:
    """Ten seconds a step, half an hour, and a plan of more steps than that."""
    tried = []

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module != TRAINER:
            return launch_here(module, arguments, log=log)
        steps = decode_job(Path(arguments[0]).read_bytes()).plan.max_steps
        tried.append(steps)
        if steps < 180:
            return launch_here(module, arguments, log=log)
        return Failing(None)

    ready.launch = launch
    files = Files(2)
    plan = msgspec.structs.replace(files.manifest.training, epochs=100.0)
    files.manifest = msgspec.structs.replace(files.manifest, training=plan)
    server.publish(files)
    assert ready.run(6 * 3600, until=lambda: ready.status.updates_made > 0 and len(tried) > 1)
    assert tried[0] > 180
    assert tried[-1] < 180
    assert all(after <= before // 2 for before, after in itertools.pairwise(tried))


def test_a_trainer_that_never_succeeds_is_borne_for_ever(ready: Device) -> None:
    ready.launch = Failing(1, "no")
    ready.run(20)
    ready.agent.parts.learner.backoff.failures = 5000
    ready.run(2 * 3600)
    assert "no; next attempt in 3600 s" in ready.status.problem


def test_a_hot_board_waits(ready: Device) -> None:
    ready.vitals = COOL._replace(celsius=85.0)
    ready.run(60)
    assert ready.status.updates_made == 0
    assert "°C" in ready.agent.parts.learner.verdict.reason
    ready.vitals = COOL
    assert ready.run(60, until=lambda: ready.status.updates_made == 1)


def test_a_patient_learner_looks_again_when_something_changes(ready: Device) -> None:
    ready.pace = Pace(idle_s=30 * 86400.0)
    ready.restart()
    assert ready.run(60, until=lambda: ready.status.updates_folded == 1)
    ready.run(60)
    verdict = ready.agent.parts.learner.verdict
    ready.run(3600)
    assert ready.agent.parts.learner.verdict is verdict
    ready.add_samples(64, seed=9)
    assert ready.run(60, until=lambda: ready.status.updates_made == 2)


def test_a_patient_learner_looks_whether_a_hot_board_has_cooled_down(ready: Device) -> None:
    ready.pace = Pace(idle_s=30 * 86400.0)
    ready.vitals = COOL._replace(celsius=85.0)
    ready.restart()
    ready.run(60)
    assert "°C" in ready.agent.parts.learner.verdict.reason
    ready.vitals = COOL
    assert ready.run(60, until=lambda: ready.status.updates_made == 1)


def test_a_patient_learner_sleeps_until_its_first_release(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    """It looked every ``check_seconds``: a planned fleet woke up twice as often as it had to."""
    device.pace = Pace(idle_s=30 * 86400.0)
    device.restart()
    device.add_samples(64)
    device.run(60)
    now = device.clock.now
    assert device.agent.parts.learner.tick(now) > now + 20 * 86400.0
    Files(1).publish(broker, topics)
    assert device.run(60, until=lambda: device.status.updates_made == 1)


def test_new_samples_train_the_same_release_again(ready: Device) -> None:
    assert ready.run(60, until=lambda: ready.status.updates_folded == 1)
    ready.run(600)
    assert ready.status.updates_made == 1
    ready.add_samples(64, seed=2)
    assert ready.run(60, until=lambda: ready.status.updates_made == 2)


def test_a_closed_release_is_measured_once_and_not_trained(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1, is_open=False).publish(broker, topics)
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.accuracy is not None)
    device.run(600)
    assert device.status.updates_made == 0
    assert device.agent.parts.outbox.facts.read().job == 1


def test_personal_values_start_from_the_model_and_stay_on_the_device(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock, server: Server
) -> None:
    device = Device(tmp_path, broker, clock, server)
    Files(1, spec=tiny_spec(Role.PERSONAL)).publish(broker, topics)
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    (payload,) = server.updates.values()
    assert decompress(payload, tiny_spec(Role.PERSONAL).shared).shape == (12,)
    active = device.agent.parts.slots.active
    assert active is not None
    path = device.agent.parts.learner.own.values(active).personal
    assert path is not None
    values = read_vector(path.read_bytes(), size=3, name="personal")
    # infer.onnx has b = (1, 2, 3); two epochs move it, but not far.
    assert 0 < np.abs(values - [1, 2, 3]).max() < 1


def delta_of(job_file: Path) -> Vector:
    """Train as the job says, by the training loop alone."""
    job = decode_job(job_file.read_bytes())
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    x, y = read_samples(job.samples, SPEC, max_bytes=job.max_sample_bytes)
    model = Path(job.train_model).read_bytes()
    trained = train(model, SPEC, unflatten(base, SPEC.shared), x, y, job.plan, seed=job.seed)
    return flatten(trained.tensors, SPEC.shared) - base


def said(payload: bytes) -> Vector:
    """Return what a payload says, in the context of whichever release it was made on."""
    values = [np.full(SPEC.shared_size, number / 100, np.float32) for number in range(14)]
    contexts = {context_digest(b - a): b - a for a, b in itertools.pairwise(values)}
    digest = context_in(payload)
    return decompress(payload, SPEC.shared, context=contexts[digest] if digest else None)


def test_residual_refunds_waiting_and_folded_are_everything_learned(
    ready: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    """Invariant 3, over refusals, an outbox that overflows, and restarts."""
    learned = np.zeros(SPEC.shared_size, np.float32)
    folded = np.zeros(SPEC.shared_size, np.float32)

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        nonlocal learned
        if module == TRAINER:
            learned = learned + delta_of(Path(arguments[0]))
        return launch_here(module, arguments, log=log)

    ready.launch = launch
    taken: set[str] = set()
    for number in range(1, 13):
        server.verdict = ("folded", "refused", "stored")[number % 3]
        broker.set_reachable(DEVICE, True)
        Files(number).publish(broker, topics)
        assert ready.run(600, until=lambda n=number: ready.status.release == n)  # type: ignore[misc]
        broker.set_reachable(DEVICE, number % 4 != 0)
        ready.run(30)
        if number % 5 == 0:
            ready.restart()
        outbox = ready.agent.parts.outbox
        held = residual(ready)
        for seq in outbox.carried.refunds():
            held = held + said(outbox.carried.refund(seq))
        waiting = {f"{ready.status.installation}-{e.seq}": e for e in outbox.waiting()}
        for entry in waiting.values():
            payload = decode_update(outbox.read(entry.seq, 0, entry.size))[1]
            held = held + said(payload)
        for update, payload in server.updates.items():
            is_final = update not in waiting and update not in taken
            taken |= {update} if is_final else set()
            if is_final and int(update.split("-")[1]) not in outbox.carried.refunds():
                folded = folded + said(payload) * (server.verdict == "folded")
        np.testing.assert_allclose(held + folded, learned, rtol=2e-6, atol=1e-5)
    assert ready.status.updates_folded > 1
    assert ready.status.updates_refused > 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_around_the_commit_counts_the_result_once(
    ready: Device, server: Server, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class CrashError(BaseException):
        pass

    outbox = ready.agent.parts.outbox
    commit = outbox.commit

    def crash(*arguments: object, **more: object) -> object:
        if moment == "after":
            commit(*arguments, **more)  # type: ignore[arg-type]
        raise CrashError

    monkeypatch.setattr(outbox, "commit", crash)
    with pytest.raises(CrashError):
        ready.run(60)
    ready.restart()
    assert ready.run(600, until=lambda: ready.status.updates_folded == 1)
    ready.run(60)
    assert ready.status.updates_made == 1
    assert len(server.updates) == 1
    jobs = ready.config.storage.directory / "jobs"
    assert list(jobs.iterdir()) == []


def test_a_result_is_committed_though_the_samples_cannot_be_read_any_more(
    ready: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was learned from them before: a start on a card that fails must not hold it up."""

    class CrashError(BaseException):
        pass

    def crash(*_: object, **__: object) -> object:
        raise CrashError

    def fails(_: Samples) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ready.agent.parts.outbox, "commit", crash)
    with pytest.raises(CrashError):
        ready.run(60)
    monkeypatch.setattr(Samples, "refresh", fails)
    ready.restart()
    ready.run(60)
    assert ready.agent.parts.outbox.facts.read().folded == 1


def test_a_job_that_a_crash_ended_is_thrown_away_and_its_number_never_comes_back(
    ready: Device,
) -> None:
    ready.launch = Failing(None)
    ready.run(20)
    assert ready.status.state == "training"
    ready.restart()
    jobs = ready.config.storage.directory / "jobs"
    assert list(jobs.iterdir()) == []
    ready.run(20)
    assert [path.name for path in jobs.iterdir()] == ["2"]


def test_a_damaged_result_is_dropped_and_the_training_repeated(ready: Device) -> None:
    def damaging(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        child = launch_here(module, arguments, log=log)
        if module == TRAINER:
            (Path(arguments[0]).parent / "payload.bin").write_bytes(b"?")
        return child

    ready.launch = damaging
    ready.run(20)
    assert "damaged" in ready.status.problem
    ready.launch = launch_here
    assert ready.run(600, until=lambda: ready.status.updates_folded == 1)


def test_codec_files_that_nothing_names_are_deleted(ready: Device, broker: MemoryBroker) -> None:
    codec = ready.config.storage.directory / "codec"
    broker.set_reachable(DEVICE, True)
    assert ready.run(60, until=lambda: ready.status.updates_folded == 1)
    (codec / "residual-99.npz").write_bytes(b"")
    ready.restart()
    assert [path.name for path in codec.iterdir()] == ["residual-1.npz"]


def test_a_training_that_fails_at_its_end_leaves_nothing_behind(ready: Device) -> None:
    """It had written its files already, under its number: each attempt would leave new ones."""
    codec = ready.config.storage.directory / "codec"
    failing = Failing(-9)

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module == TRAINER:
            job = decode_job(Path(arguments[0]).read_bytes())
            for path in (job.new_tuned, job.new_personal):
                Path(path).write_bytes(b"a model")
        return failing(module, arguments, log=log)

    ready.launch = launch
    ready.run(3600)
    assert failing.starts > 3
    assert list(codec.iterdir()) == []
