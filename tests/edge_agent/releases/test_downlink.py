"""Releases over the air: fetched in pieces, resumed, checked, and refused for a reason."""

import errno
import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import DEVICE, TASK, Clock, Device, Files, Server, tiny_spec

from models.protocol.manifest import encode_manifest
from models.protocol.topics import Topics
from models.task.spec import Role, TensorSpec
from tools.simulation.machines.memory_broker import MemoryBroker


def announce(broker: MemoryBroker, topics: Topics, files: Files) -> None:
    broker.accept(topics.release(TASK), encode_manifest(files.manifest), retain=True)


def blob_topics(device: Device) -> list[str]:
    session = device.broker.sessions.get(DEVICE)
    return [topic for topic in session.exact if "/blob/" in topic] if session else []


def test_a_release_is_fetched_installed_and_no_topic_stays_subscribed(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 1)
    assert blob_topics(device) == []
    assert list((device.config.storage.directory / "downloads").iterdir()) == []


def test_what_a_broker_hid_in_silence_is_asked_for_again(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    """As from Mosquitto, which says nothing of what its ACL hides, nor when that is mended."""
    files = Files(1)
    device.run(3000.0)
    asked = device.link.traffic().bytes_up
    broker.retained |= {
        **files.chunks(topics),
        topics.release(TASK): encode_manifest(files.manifest),
    }
    assert device.run(3600.0, until=lambda: device.status.release == 1)
    assert asked < 2000  # seldom


def test_at_most_eight_chunks_are_on_their_way(
    tmp_path: Path, device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    files.replace("train", bytes(100_000))
    most = 0
    accept = broker.subscribe

    def counted(link: object, pattern: str) -> None:
        nonlocal most
        accept(link, pattern)  # type: ignore[arg-type]
        most = max(most, len(blob_topics(device)))

    broker.subscribe = counted  # type: ignore[method-assign]
    files.publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 1)
    assert most == 8


def test_a_restart_goes_on_with_the_chunks_on_disk(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    chunks = files.chunks(topics)
    absent = max(t for t in chunks if t.startswith(_prefix(files, topics, "train")))
    for topic, data in chunks.items():
        if topic != absent:
            broker.accept(topic, data, retain=True)
    announce(broker, topics, files)
    device.run(5)
    assert device.status.release == 0
    device.restart()
    received = device.link.traffic().bytes_down
    broker.accept(absent, chunks[absent], retain=True)
    assert device.run(10, until=lambda: device.status.release == 1)
    again = device.link.traffic().bytes_down - received
    manifest = len(encode_manifest(files.manifest))
    # The old session still had the topic, so the chunk may come once more.
    assert again < 2 * len(chunks[absent]) + manifest + 500


def test_chunks_that_do_not_come_are_asked_for_with_growing_patience(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    announce(broker, topics, files)
    device.run(3600)
    asked = [request for request in server.requests if request.blobs]
    assert 4 <= len(asked) <= 12
    spec = files.manifest.artifacts["spec"].sha256
    assert set(asked[0].blobs) == {spec}  # the rest is worth nothing if this one refuses it
    files.publish(broker, topics)  # the server puts them back
    assert device.run(60, until=lambda: device.status.release == 1)


def test_a_wiped_broker_costs_only_what_was_not_yet_on_disk(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    chunks = files.chunks(topics)
    for topic in list(chunks)[::2]:
        broker.accept(topic, chunks[topic], retain=True)
    announce(broker, topics, files)
    device.run(2)
    broker.lose_all_state()
    device.run(2)
    files.publish(broker, topics)
    assert device.run(60, until=lambda: device.status.release == 1)


def test_a_damaged_artifact_is_refused_said_and_fetched_again(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    files.publish(broker, topics)
    topic = topics.blob(files.manifest.artifacts["train"].sha256, 0)
    broker.retained[topic] = b"?" * len(broker.retained[topic])
    device.run(30)
    assert device.status.release == 0
    assert "damaged" in device.status.problem
    assert any(files.manifest.artifacts["train"].sha256 in r.blobs for r in server.requests)
    files.publish(broker, topics)
    assert device.run(900, until=lambda: device.status.release == 1)
    assert device.status.problem == ""


def test_a_release_of_which_nothing_arrives_is_said_until_something_does(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    announce(broker, topics, files)
    device.run(15)
    assert device.status.problem == ""
    device.run(135)
    assert device.status.problem.startswith("release 1 is announced, but nothing of it arrives: ")
    assert "blob/#" in device.status.problem
    files.publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 1)
    assert device.status.problem == ""


def test_a_file_that_keeps_arriving_damaged_is_fetched_ever_more_rarely_and_asked_for_in_turn(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    """A retained chunk is damaged; which one of 300 nobody can tell, a request names 256."""
    files = Files(1, chunk_size=1024)
    files.replace("train", random.Random(1).randbytes(300 * 1024))
    files.publish(broker, topics)
    sha256 = files.manifest.artifacts["train"].sha256
    topic = topics.blob(sha256, 290)
    broker.retained[topic] = b"?" * 1024
    device.run(4 * 3600)
    assert device.status.release == 0
    assert device.link.traffic().bytes_down < 20 * 300 * 1024  # 14,000 times if every second
    asked = {index for request in server.requests for index in request.blobs.get(sha256, ())}
    assert asked == set(range(300))
    files.publish(broker, topics)
    assert device.run(3 * 3600, until=lambda: device.status.release == 1)
    assert device.status.problem == ""


def test_a_disk_that_is_full_for_weeks_costs_few_bytes_and_no_restart(
    device: Device, broker: MemoryBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk that it refuses is a failure: more of them than a float has doublings."""

    def refuse(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    files = Files(1, chunk_size=1024)
    device.run(5)
    before = device.link.traffic().bytes_down
    with monkeypatch.context() as full:
        full.setattr("edge_agent.releases.chunks_on_disk.atomic_write", refuse)
        files.publish(broker, topics)
        device.run(86_400)
        device.agent.parts.downlink.fetcher.rest.failures = 5000
        device.run(3600)
        assert "No space left" in device.status.problem
    assert device.link.traffic().bytes_down - before < 100_000
    assert device.run(60, until=lambda: device.status.release == 1)


def test_what_a_trial_of_the_disk_left_goes_with_the_downloads(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    """A power cut, or a disk that takes no deletion, between the two halves of the trial."""
    downloads = device.config.storage.directory / "downloads"
    for name in ("attempt", "attempt.draft"):
        (downloads / name).write_bytes(bytes(1024))
    Files(1).publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 1)
    assert list(downloads.iterdir()) == []


def test_a_late_copy_of_an_older_announcement_does_not_end_a_download(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    for number in (1, 2):
        Files(number).publish(broker, topics)
    three = Files(3)
    announce(broker, topics, three)  # its files come later
    device.run(30)
    late = encode_manifest(Files(2).manifest)
    downlink = device.agent.parts.downlink
    downlink.on_manifest(late, device.clock.now)
    assert downlink.state == "downloading"
    device.run(5)
    three.publish(broker, topics)
    assert device.run(60, until=lambda: device.status.release == 3)


def test_a_server_that_was_restored_and_announces_an_older_release_is_followed(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.run(30)
    announce(broker, topics, Files(3))
    device.run(30)
    Files(2).publish(broker, topics)
    assert device.run(60, until=lambda: device.status.release == 2)


def test_a_chunk_of_the_wrong_length_is_dropped_and_asked_for(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    files.publish(broker, topics)
    topic = topics.blob(files.manifest.artifacts["infer"].sha256, 0)
    broker.retained[topic] = b"short"
    device.run(5)
    assert device.status.release == 0
    assert any(r.blobs for r in server.requests)
    files.publish(broker, topics)
    assert device.run(900, until=lambda: device.status.release == 1)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format":1}', b"null", b"x" * 40_000]
)
def test_a_broken_manifest_is_ignored_and_the_release_stays(
    device: Device, broker: MemoryBroker, topics: Topics, payload: bytes
) -> None:
    Files(1).publish(broker, topics)
    device.run(10)
    broker.accept(topics.release(TASK), payload, retain=True)
    device.run(10)
    assert device.status.release == 1
    assert ("manifest" in device.status.problem) == (payload != b"")
    Files(2).publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 2)


def test_an_older_release_is_refused_as_a_rollback(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(2).publish(broker, topics)
    device.run(10)
    Files(1).publish(broker, topics)
    device.run(10)
    assert device.status.release == 2
    assert "no rollback" in device.status.problem


def test_the_same_number_with_other_files_is_refused(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.run(10)
    other = np.ones(tiny_spec().shared_size, np.float32)
    Files(1, parameters=other).publish(broker, topics)
    device.run(10)
    assert "published twice" in device.status.problem


def test_the_same_files_with_another_plan_are_taken(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.run(10)
    received = device.status.bytes_down
    Files(1, is_open=False).publish(broker, topics)
    device.run(10)
    active = device.agent.parts.slots.active
    assert active is not None
    assert not active.training.open
    assert device.status.bytes_down - received < 2000


def test_a_release_of_another_task_is_refused(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    manifest = msgspec.structs.replace(files.manifest, task="other")
    broker.accept(topics.release(TASK), encode_manifest(manifest), retain=True)
    device.run(10)
    assert device.status.release == 0
    assert "task other" in device.status.problem


def test_a_file_over_the_limit_is_refused_before_a_byte_is_fetched(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1)
    huge = msgspec.structs.replace(files.manifest.artifacts["infer"], size=300_000_000)
    files.manifest = msgspec.structs.replace(
        files.manifest, artifacts=files.manifest.artifacts | {"infer": huge}
    )
    announce(broker, topics, files)
    device.run(10)
    assert "limits.max_artifact_mb" in device.status.problem
    assert blob_topics(device) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"tensors": (TensorSpec("W", (4, 3), Role.SHARED),)},
        {
            "tensors": (
                TensorSpec("W", (4, 3), Role.SHARED),
                TensorSpec("b", (3,), Role.PERSONAL),
            )
        },
        {"classes": 4},
    ],
)
def test_a_spec_that_changes_what_is_learned_is_refused(
    device: Device, broker: MemoryBroker, topics: Topics, changes: dict[str, object]
) -> None:
    Files(1).publish(broker, topics)
    device.run(10)
    Files(2, spec=tiny_spec(**changes)).publish(broker, topics)
    device.run(10)
    assert device.status.release == 1
    assert "release 2" in device.status.problem
    assert "refused" in device.status.problem


def test_a_spec_that_refuses_costs_none_of_the_other_files(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(1, spec=tiny_spec(task="other"))
    files.manifest = msgspec.structs.replace(files.manifest, task=TASK)
    for topic, data in files.chunks(topics).items():
        if topic.startswith(_prefix(files, topics, "spec")):
            broker.accept(topic, data, retain=True)
    announce(broker, topics, files)
    device.run(10)
    assert "its spec is of task other" in device.status.problem
    assert blob_topics(device) == []


def test_a_newer_release_takes_over_in_the_middle_of_a_download(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    one = Files(1)
    for topic, data in one.chunks(topics).items():
        if not topic.startswith(_prefix(one, topics, "parameters")):
            broker.accept(topic, data, retain=True)
    announce(broker, topics, one)
    device.run(5)
    Files(2).publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 2)
    device.run(1)
    assert blob_topics(device) == []


def test_what_a_job_still_read_goes_when_the_release_is_announced_again(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    old = Files(1).manifest.artifacts["parameters"]
    device.agent.parts.learner.pinned = lambda: frozenset({old.sha256})  # type: ignore[method-assign]
    for number in (1, 2, 3):
        Files(number).publish(broker, topics)
        assert device.run(20, until=lambda n=number: device.status.release == n)  # type: ignore[misc]
    slots = device.agent.parts.slots
    assert slots.has(old)
    device.agent.parts.learner.pinned = frozenset  # type: ignore[method-assign]
    device.run(30)  # it looks now and then
    announce(broker, topics, Files(3))
    device.run(1)
    assert not slots.has(old)
    litter = Path(slots.file(old))
    litter.write_bytes(b"")
    announce(broker, topics, Files(3))  # nothing to tidy is known of: no look at the disk
    device.run(1)
    assert litter.exists()


def test_a_restart_at_any_moment_of_a_download_ends_with_the_release(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock
) -> None:
    """Crash after every single event; the release is installed in the end."""
    Files(1).publish(broker, topics)
    device = Device(tmp_path, broker, clock)
    for _ in range(200):
        for event in device.link.poll(0)[:1]:
            device.agent.handle(event, clock.now)
        device.agent.tick(clock.now)
        clock.now += 1
        if device.status.release == 1:
            break
        device.agent.tick(clock.now)
        device.restart()
        for _ in range(3):
            events = device.link.poll(0)
            for event in events:
                device.agent.handle(event, clock.now)
            device.agent.tick(clock.now)
    assert device.status.release == 1


def _prefix(files: Files, topics: Topics, kind: str) -> str:
    return topics.blob(files.manifest.artifacts[kind].sha256, 0)[:-1]  # type: ignore[index]
