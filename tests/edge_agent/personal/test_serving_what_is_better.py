"""A device that runs what it tuned, from its training to the applications, and back."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import CLASSES, FEATURES, Clock, Device, Files, launch_here, tiny_spec

from edge_agent.board.children import Child
from edge_agent.training.job_results import JobResults
from edge_agent.training.training_job import JOB
from edge_agent.updates.outbox_contents import read_only
from models.errors import TransientError
from models.protocol.learning import LearningPlan
from models.protocol.npz import read_vector
from models.protocol.topics import Topics
from models.task.params import Vector
from tools.simulation.machines.memory_broker import MemoryBroker

SPEC = tiny_spec()
SIZE = SPEC.shared_size


def good() -> Vector:
    """Return parameters that tell the blobs apart about as well as can be."""
    weights = np.zeros((FEATURES, CLASSES), np.float32)
    weights[:CLASSES] = 8 * np.eye(CLASSES)
    return np.concatenate([weights.ravel(), np.zeros(CLASSES, np.float32)])


def release(number: int, parameters: Vector, **plan: object) -> Files:
    files = Files(number, parameters=parameters)
    learning = LearningPlan(**plan) if plan else None  # type: ignore[arg-type]
    files.manifest = msgspec.structs.replace(files.manifest, learning=learning)
    return files


@pytest.fixture
def device(tmp_path: Path, broker: MemoryBroker, clock: Clock) -> Device:
    return Device(tmp_path, broker, clock, **{"samples.holdout_share": 0.5})


def values(device: Device) -> tuple[str, Path | None]:
    parts = device.agent.parts
    assert parts.slots.active is not None
    own = parts.learner.own
    return own.serves(parts.slots.active), own.values(parts.slots.active).tuned


def trained(device: Device, broker: MemoryBroker, topics: Topics, files: Files) -> None:
    files.publish(broker, topics)
    device.add_samples(200)
    assert device.run(200, until=lambda: device.status.updates_made == 1)
    device.run(40)


BAD = np.zeros(SIZE, np.float32)
BAD[-1] = 9.0  # one answer, whatever the sample


def test_what_is_tuned_runs_where_it_is_better_until_a_release_is(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    trained(device, broker, topics, release(1, BAD))
    serves, tuned = values(device)
    assert (serves, device.status.serves) == ("tuned", "tuned")
    assert tuned is not None
    assert read_vector(tuned.read_bytes(), size=SIZE).shape == (SIZE,)
    said = device.status
    assert said.accuracy == pytest.approx(said.accuracy_after, abs=1e-4)
    assert said.accuracy_shared is not None
    assert said.accuracy is not None
    assert said.accuracy > said.accuracy_shared + 0.3
    # A better release is measured against it, and only then takes over.
    files = release(2, good())
    files.manifest = msgspec.structs.replace(
        files.manifest, training=msgspec.structs.replace(files.manifest.training, open=False)
    )
    files.publish(broker, topics)
    seen: list[tuple[int, str]] = []
    for _ in range(60):
        device.run(1)
        seen.append((device.agent.parts.slots.release, values(device)[0]))
        if seen[-1][1] == "released":
            break
    assert seen[-1] == (2, "released")
    assert (2, "tuned") in seen
    assert device.agent.parts.outbox.codec().tuned is not None  # kept: the next one may be worse


def test_a_device_of_an_owner_who_wants_the_release_runs_that(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock
) -> None:
    device = Device(
        tmp_path,
        broker,
        clock,
        **{"samples.holdout_share": 0.5, "inference.serve": '"released"'},
    )
    trained(device, broker, topics, release(1, BAD))
    assert values(device) == ("released", None)
    assert device.agent.parts.outbox.codec().tuned is None
    assert not list((device.config.storage.directory / "codec").glob("tuned-*"))


def test_a_task_that_wants_the_release_is_followed_at_once(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    trained(device, broker, topics, release(1, BAD))
    assert values(device)[0] == "tuned"
    release(2, BAD, serve="released").publish(broker, topics)
    assert device.run(100, until=lambda: device.status.release == 2)
    assert values(device) == ("released", None)


def test_a_hold_out_that_is_too_small_changes_nothing(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    release(1, BAD).publish(broker, topics)
    device.add_samples(32)
    assert device.run(200, until=lambda: device.status.updates_made == 1)
    device.run(40)
    assert values(device) == ("released", None)
    assert device.status.accuracy_after is not None


def test_killed_around_the_commit_the_model_that_runs_is_there_and_the_same(
    device: Device, broker: MemoryBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable before the transaction that names it; what no transaction names is deleted."""
    release(1, BAD).publish(broker, topics)
    device.add_samples(200)
    crashed = []
    commit = JobResults.commit_first

    def dies(self: JobResults) -> None:
        crashed.append(self.waiting[0])
        raise TransientError("not now")

    monkeypatch.setattr(JobResults, "commit_first", dies)
    device.run(100, until=lambda: bool(crashed))
    folder = device.config.storage.directory
    (left,) = (folder / "codec").glob("tuned-*")
    before = left.read_bytes()
    assert read_only(folder / "outbox.db").codec.tuned is None
    monkeypatch.setattr(JobResults, "commit_first", commit)
    device.restart()
    assert device.run(100, until=lambda: device.status.updates_made == 1)
    device.restart()
    device.run(5)
    serves, tuned = values(device)
    assert serves == "tuned"
    assert tuned is not None
    assert tuned.read_bytes() == before


def test_a_model_of_this_device_alone_is_trained_when_the_task_asks_for_it(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    jobs: list[str] = []

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module.endswith("trainer"):
            jobs.append(msgspec.json.decode(Path(arguments[0]).read_bytes())["do"])
        return launch_here(module, arguments, log=log)

    device.launch = launch
    trained(device, broker, topics, release(1, BAD, alone=True))
    assert device.run(60, until=lambda: device.status.accuracy_alone is not None)
    facts = device.agent.parts.outbox.facts.read()
    assert facts.alone_steps == facts.steps_ever > 0
    assert jobs.count("alone") == 1
    (kept,) = (device.config.storage.directory / "codec").glob("alone-*")
    assert read_vector(kept.read_bytes(), size=SIZE, name="alone").any()
    device.run(60)
    assert jobs.count("alone") == 1


def closed(number: int, parameters: Vector) -> Files:
    files = release(number, parameters)
    plan = msgspec.structs.replace(files.manifest.training, open=False)
    files.manifest = msgspec.structs.replace(files.manifest, training=plan)
    return files


@pytest.mark.parametrize("data", [None, b"PK not an npz"])
def test_a_tuned_model_that_is_lost_gives_way_to_the_next_release(
    device: Device, broker: MemoryBroker, topics: Topics, data: bytes | None
) -> None:
    trained(device, broker, topics, release(1, BAD))
    assert values(device)[0] == "tuned"
    (lost,) = (device.config.storage.directory / "codec").glob("tuned-*")
    lost.unlink() if data is None else lost.write_bytes(data)
    closed(2, good()).publish(broker, topics)
    assert device.run(100, until=lambda: device.status.release == 2)
    assert device.run(100, until=lambda: device.status.serves == "released")
    assert device.status.problem == ""
    parts = device.agent.parts
    assert parts.slots.active is not None
    assert "its file is lost" in parts.learner.own.why(parts.slots.active)


@pytest.mark.parametrize("data", [None, b"PK not an npz"])
def test_a_lost_model_of_this_device_alone_begins_anew_and_catches_up(
    device: Device, broker: MemoryBroker, topics: Topics, data: bytes | None
) -> None:
    trained(device, broker, topics, release(1, BAD, alone=True))
    assert device.run(60, until=lambda: device.status.accuracy_alone is not None)
    (lost,) = (device.config.storage.directory / "codec").glob("alone-*")
    lost.unlink() if data is None else lost.write_bytes(data)
    device.add_samples(64, seed=7)
    assert device.run(300, until=lambda: device.status.updates_made == 2)
    device.run(300)
    facts = device.agent.parts.outbox.facts.read()
    assert facts.alone_steps == facts.steps_ever
    assert device.status.problem == ""


def test_a_model_alone_that_a_crash_commits_twice_has_its_steps_once(
    device: Device, broker: MemoryBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = JobResults.drop_first
    crashed = []

    def dies(self: JobResults) -> None:
        if msgspec.json.decode((Path(self.waiting[0]) / JOB).read_bytes())["do"] == "alone":
            crashed.append(self.waiting[0])
            raise TransientError("the power is cut")
        drop(self)

    monkeypatch.setattr(JobResults, "drop_first", dies)
    release(1, BAD, alone=True).publish(broker, topics)
    device.add_samples(200)
    assert device.run(200, until=lambda: bool(crashed))
    before = device.agent.parts.outbox.facts.read()
    assert before.alone_steps == before.steps_ever > 0
    monkeypatch.setattr(JobResults, "drop_first", drop)
    device.restart()
    device.run(60)
    after = device.agent.parts.outbox.facts.read()
    assert after.steps_ever == before.steps_ever
    assert (after.alone_job, after.alone_steps) == (before.alone_job, before.alone_steps)
    assert not list((device.config.storage.directory / "jobs").iterdir())
