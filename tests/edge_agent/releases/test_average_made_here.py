"""The average that devices run: made from the patches that move the parameters, or fetched."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import TASK, Clock, Device, Files, tiny_spec

from edge_agent.releases.admission import ReleaseLimits, refusal
from edge_agent.releases.vectors_to_make import ToMake, to_make
from models.codec.average import averaged
from models.codec.budget import Budget
from models.codec.payload import compress
from models.codec.release_patch import patched
from models.protocol.learning import LearningPlan
from models.protocol.manifest import Artifact, Manifest, encode_manifest
from models.protocol.npz import read_vector, write_vector
from models.protocol.topics import Topics
from models.task.params import Vector
from tools.simulation.machines.memory_broker import MemoryBroker

SHARED = tiny_spec().shared
SIZE = tiny_spec().shared_size
DECAY = 0.9
COUNT = 6


def line() -> tuple[list[Vector], dict[int, bytes]]:
    """Return the parameters of releases 1 to `COUNT`, and the patch from each to the next."""
    rng = np.random.default_rng(5)
    parameters = [rng.standard_normal(SIZE).astype(np.float32)]
    patches = {}
    for number in range(1, COUNT):
        wanted = rng.standard_normal(SIZE).astype(np.float32)
        patches[number] = compress(wanted, SHARED, Budget(nmse=0.2))
        parameters.append(patched(parameters[-1], patches[number], SHARED))
    return parameters, patches


PARAMETERS, PATCHES = line()


def averages(begun: int) -> dict[int, tuple[int, Vector]]:
    """Return number and average of each release; release ``begun`` is the first that has one."""
    found: dict[int, tuple[int, Vector]] = {}
    before = None
    for release in range(begun, COUNT + 1):
        number = release - begun + 1
        before = averaged(before, PARAMETERS[release - 1], number, decay=DECAY)
        found[release] = number, before
    return found


def release(number: int, *, begun: int = 1, first: int = 1, wrong: bool = False) -> Files:
    """Return release ``number`` with patches from ``first`` on, and an average since ``begun``."""
    files = Files(number, parameters=PARAMETERS[number - 1])
    files.offer({n: patch for n, patch in PATCHES.items() if first <= n < number})
    if number >= begun:
        times, average = averages(begun)[number]
        manifest = files.manifest
        data = write_vector(average + np.float32(1) if wrong else average)
        files.manifest = msgspec.structs.replace(manifest, learning=LearningPlan(average=DECAY))
        files.files["average"] = data
        _number(files, data, times)
    return files


def _number(files: Files, data: bytes, times: int) -> None:
    artifact = Artifact(hashlib.sha256(data).hexdigest(), len(data))
    files.manifest = msgspec.structs.replace(
        files.manifest,
        artifacts={**files.manifest.artifacts, "average": artifact},
        averaged=times,
    )


def publish(
    files: Files, broker: MemoryBroker, topics: Topics, *, without: Collection[str] = ()
) -> None:
    """Publish ``files``, all but some kinds: whoever installs it has made those."""
    left_out = {
        topics.blob(files.manifest.artifacts[kind].sha256, 0)  # type: ignore[index]
        for kind in without
    }
    for topic, data in files.chunks(topics).items():
        if topic not in left_out:
            broker.accept(topic, data, retain=True)
    broker.accept(topics.release(TASK), encode_manifest(files.manifest), retain=True)


def runs(device: Device) -> Vector:
    """Return the vector that ``device`` answers with."""
    slots = device.agent.parts.slots
    assert slots.active is not None
    return read_vector(Path(slots.path(slots.active, slots.active.runs)).read_bytes(), size=SIZE)


BOTH = ("parameters", "average")


def installed(device: Device, broker: MemoryBroker, topics: Topics, files: Files) -> None:
    publish(files, broker, topics)
    number = files.manifest.release
    assert device.run(10, until=lambda: device.status.release == number)
    device.run(1)


def test_the_average_is_made_from_the_same_patches_and_costs_no_bytes(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    installed(device, broker, topics, release(1))
    for number in (2, 3):
        before = device.status.bytes_down
        files = release(number, first=number - 1)
        publish(files, broker, topics, without=BOTH)
        assert device.run(10, until=lambda n=number: device.status.release == n)  # type: ignore[misc]
        np.testing.assert_array_equal(runs(device), averages(1)[number][1])
        assert not np.array_equal(runs(device), PARAMETERS[number - 1])
        size = len(PATCHES[number - 1]) + len(encode_manifest(files.manifest))
        assert device.status.bytes_down - before < size + 300  # topics
        device.run(1)
    assert device.status.problem == ""


@pytest.mark.parametrize(
    ("begun", "wanted"),
    [
        pytest.param(1, 6, id="from the installed average, five moves"),
        pytest.param(2, 4, id="begun by the first patch"),
        pytest.param(4, 6, id="begun within the chain"),
        pytest.param(3, 3, id="begun by the last patch"),
    ],
)
def test_a_device_that_was_away_makes_it_along_the_chain(
    device: Device, broker: MemoryBroker, topics: Topics, begun: int, wanted: int
) -> None:
    installed(device, broker, topics, release(1, begun=begun))
    publish(release(wanted, begun=begun), broker, topics, without=BOTH)
    assert device.run(20, until=lambda: device.status.release == wanted)
    np.testing.assert_array_equal(runs(device), averages(begun)[wanted][1])
    assert device.status.problem == ""


def test_of_parameters_that_came_whole_the_next_average_is_made(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    installed(device, broker, topics, release(3))
    publish(release(4, first=4), broker, topics, without=["average"])
    assert device.run(20, until=lambda: device.status.release == 4)
    np.testing.assert_array_equal(runs(device), averages(1)[4][1])


def test_without_the_average_before_it_is_fetched(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    """A newcomer, and a device whose chain is broken; the parameters may be patched anyway."""
    installed(device, broker, topics, release(3))
    np.testing.assert_array_equal(runs(device), averages(1)[3][1])
    installed(device, broker, topics, release(5, first=5))
    np.testing.assert_array_equal(runs(device), averages(1)[5][1])
    publish(release(6, begun=2), broker, topics, without=["parameters"])  # number 5: not 5 + 1
    assert device.run(20, until=lambda: device.status.release == 6)
    np.testing.assert_array_equal(runs(device), averages(2)[6][1])
    assert device.status.problem == ""


def test_an_average_that_is_not_the_promised_one_is_fetched_whole_and_said_once(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    installed(device, broker, topics, release(1))
    files = release(2, wrong=True)
    publish(files, broker, topics, without=BOTH)
    device.run(10)
    assert device.status.release == 1
    assert "the average of release 2 could not be made here" in device.status.problem
    assert "fetched whole" in device.status.problem
    publish(files, broker, topics, without=["parameters"])
    assert device.run(120, until=lambda: device.status.release == 2)
    np.testing.assert_array_equal(runs(device), averages(1)[2][1] + np.float32(1))
    device.run(1)
    assert device.status.problem == ""


def test_a_release_of_settings_needs_neither(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    installed(device, broker, topics, release(2))
    files = release(2)
    files.manifest = msgspec.structs.replace(files.manifest, release=3, patches={})
    files.patches = ()
    before = device.status.bytes_down
    publish(files, broker, topics, without=BOTH)
    assert device.run(10, until=lambda: device.status.release == 3)
    np.testing.assert_array_equal(runs(device), averages(1)[2][1])
    assert device.status.bytes_down - before < len(encode_manifest(files.manifest)) + 100


def test_a_restart_at_any_moment_ends_with_the_average(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock
) -> None:
    publish(release(1), broker, topics)
    device = Device(tmp_path, broker, clock)
    assert device.run(10, until=lambda: device.status.release == 1)
    publish(release(4), broker, topics, without=BOTH)
    for _ in range(100):
        for event in device.link.poll(0)[:1]:
            device.agent.handle(event, clock.now)
        device.agent.tick(clock.now)
        clock.now += 1
        if device.status.release == 4:
            break
        device.agent.tick(clock.now)
        device.restart()
        for _ in range(3):
            for event in device.link.poll(0):
                device.agent.handle(event, clock.now)
            device.agent.tick(clock.now)
    assert device.status.release == 4
    np.testing.assert_array_equal(runs(device), averages(1)[4][1])


def _has(*kinds: tuple[Files, str]) -> Collection[str]:
    return {files.manifest.artifacts[kind].sha256 for files, kind in kinds}  # type: ignore[index]


def _plan(wanted: Files, before: Files | None, here: Collection[str], **flags: bool) -> ToMake:
    installed = before.manifest if before else None
    return to_make(wanted.manifest, installed, has=lambda a: a.sha256 in here, **flags)


def test_with_the_average_made_first_a_crash_between_the_two_costs_nothing() -> None:
    """As `Patching` stores them: then the patches are applied again, for the parameters alone."""
    before, wanted = release(1), release(3)
    here = _has((before, "parameters"), (before, "average"), (wanted, "average"))
    assert _plan(wanted, before, here) == ToMake(tuple(wanted.manifest.patches.values()))


def test_a_first_average_is_the_file_of_the_parameters() -> None:
    first = release(1)
    assert first.manifest.artifacts["average"] == first.manifest.artifacts["parameters"]
    assert not _plan(first, None, ())


def test_what_did_not_lead_there_is_not_tried_again() -> None:
    before, wanted = release(1), release(2)
    here = _has((before, "parameters"), (before, "average"))
    both = ToMake(
        tuple(wanted.manifest.patches.values()), True, before.manifest.artifacts["average"]
    )
    assert _plan(wanted, before, here) == both
    assert _plan(wanted, before, here, no_average=True) == ToMake(both.patches)
    assert _plan(wanted, before, here, no_patches=True) == both._replace(patches=())
    assert not _plan(wanted, before, here, no_patches=True, no_average=True)


def _refused(manifest: Manifest, max_release: int) -> str:
    limits = ReleaseLimits(max_artifact=10_000_000, max_release=max_release)
    return refusal(manifest, task=TASK, active=None, limits=limits)


def test_a_release_that_is_too_large_with_two_vectors_says_what_halves_it() -> None:
    with_two, with_one = release(3).manifest, release(3, begun=4).manifest
    size = sum(artifact.size for artifact in with_two.artifacts.values())
    assert not _refused(with_two, size)
    assert "average = 0 in the task's [task.learning] halves it" in _refused(with_two, size - 1)
    assert not _refused(with_one, size - 1)
    assert "average" not in _refused(with_one, 10)
