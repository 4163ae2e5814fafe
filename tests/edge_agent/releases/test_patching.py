"""Releases as patches: fetched instead of the parameters, applied, checked, or given up."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_fleet import TASK, Clock, Device, Files, launch_here, tiny_spec

from edge_agent.releases.apply_patches import apply_patches
from edge_agent.releases.patching import PATCHER
from models.codec.budget import Budget
from models.codec.payload import compress
from models.codec.release_patch import patched
from models.errors import PayloadError
from models.protocol.manifest import encode_manifest
from models.protocol.npz import read_vector, write_vector
from models.protocol.topics import Topics
from models.task.params import Vector
from models.task.spec import encode_spec
from tools.simulation.machines.memory_broker import MemoryBroker

SHARED = tiny_spec().shared
SIZE = tiny_spec().shared_size


def line_of_releases(count: int) -> tuple[list[Vector], dict[int, bytes]]:
    """Return the parameters of releases 1 to ``count``, and the patch from each to the next."""
    rng = np.random.default_rng(3)
    parameters = [np.full(SIZE, 0.01, np.float32)]
    patches = {}
    for number in range(1, count):
        wanted = rng.standard_normal(SIZE).astype(np.float32)
        patches[number] = compress(wanted, SHARED, Budget(nmse=0.2))
        parameters.append(patched(parameters[-1], patches[number], SHARED))
    return parameters, patches


PARAMETERS, PATCHES = line_of_releases(4)


def release(number: int, first: int = 1) -> Files:
    """Return release ``number`` with its chain of patches from release ``first`` on."""
    files = Files(number, parameters=PARAMETERS[number - 1])
    files.offer({n: patch for n, patch in PATCHES.items() if first <= n < number})
    return files


def publish_without_parameters(files: Files, broker: MemoryBroker, topics: Topics) -> None:
    """Publish all but the parameters: whoever installs it has made them out of patches."""
    parameters = topics.blob(files.manifest.artifacts["parameters"].sha256, 0)
    for topic, data in files.chunks(topics).items():
        if topic != parameters:
            broker.accept(topic, data, retain=True)
    broker.accept(topics.release(TASK), encode_manifest(files.manifest), retain=True)


def installed(device: Device) -> Vector:
    slots = device.agent.parts.slots
    assert slots.active is not None
    return read_vector(Path(slots.path(slots.active, "parameters")).read_bytes(), size=SIZE)


@pytest.fixture
def one(device: Device, broker: MemoryBroker, topics: Topics) -> Device:
    """A device that has release 1."""
    release(1).publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 1)
    device.run(1)
    return device


def test_a_release_is_made_out_of_the_installed_one_and_a_patch(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    before = one.status.bytes_down
    files = release(2)
    publish_without_parameters(files, broker, topics)
    assert one.run(10, until=lambda: one.status.release == 2)
    np.testing.assert_array_equal(installed(one), PARAMETERS[1])
    size = len(PATCHES[1]) + len(encode_manifest(files.manifest))
    assert one.status.bytes_down - before < size + 300  # topics
    one.run(10)
    assert one.status.problem == ""
    state = one.config.storage.directory
    patch = files.manifest.patches[1]
    assert not (state / "artifacts" / patch.sha256).exists()
    assert not (state / "patching").exists()


def test_a_device_that_was_away_applies_the_whole_chain(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    publish_without_parameters(release(4), broker, topics)
    assert one.run(10, until=lambda: one.status.release == 4)
    np.testing.assert_array_equal(installed(one), PARAMETERS[3])


def test_a_device_from_before_the_chain_fetches_the_parameters(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = release(4, first=3)
    for topic, data in files.chunks(topics).items():
        if data not in files.patches:
            broker.accept(topic, data, retain=True)
    broker.accept(topics.release(TASK), encode_manifest(files.manifest), retain=True)
    assert one.run(10, until=lambda: one.status.release == 4)
    assert one.status.problem == ""


def test_a_newcomer_fetches_the_parameters(
    device: Device, broker: MemoryBroker, topics: Topics
) -> None:
    release(3).publish(broker, topics)
    assert device.run(10, until=lambda: device.status.release == 3)
    assert device.status.problem == ""


def test_patches_that_are_longer_than_the_parameters_are_not_fetched(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = Files(2, parameters=PARAMETERS[1])
    files.offer({1: PATCHES[1] + bytes(5000)})
    files.publish(broker, topics)
    before = one.status.bytes_down
    assert one.run(10, until=lambda: one.status.release == 2)
    assert one.status.bytes_down - before < 4000


@pytest.mark.parametrize("wrong", [PATCHES[2], b"\x00", b"no patch at all", b"PK\x03\x04"])
def test_patches_that_do_not_lead_there_are_given_up_for_the_parameters(
    one: Device, broker: MemoryBroker, topics: Topics, wrong: bytes
) -> None:
    files = Files(2, parameters=PARAMETERS[1])
    files.offer({1: wrong})
    publish_without_parameters(files, broker, topics)
    one.run(10)
    assert one.status.release == 1
    assert "fetched whole" in one.status.problem
    files.publish(broker, topics)
    assert one.run(120, until=lambda: one.status.release == 2)
    np.testing.assert_array_equal(installed(one), PARAMETERS[1])
    one.run(1)
    assert one.status.problem == ""


def test_a_patch_that_is_damaged_in_the_broker_is_given_up_for_the_parameters(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    files = release(2)
    topic = topics.blob(files.manifest.patches[1].sha256, 0)
    for name, data in files.chunks(topics).items():
        broker.accept(name, data if name != topic else b"?" * len(data), retain=True)
    broker.accept(topics.release(TASK), encode_manifest(files.manifest), retain=True)
    assert one.run(60, until=lambda: one.status.release == 2)
    np.testing.assert_array_equal(installed(one), PARAMETERS[1])


class _Stuck:
    """A child that does not end by itself."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9


@pytest.mark.parametrize("code", [1, -9, -11, None])
def test_a_child_that_fails_dies_or_hangs_does_not_keep_a_device_from_the_release(
    one: Device, broker: MemoryBroker, topics: Topics, code: int | None
) -> None:
    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> object:
        if module == PATCHER:
            return _Stuck(code)
        return launch_here(module, arguments, log=log)

    one.launch = launch  # type: ignore[assignment]
    release(2).publish(broker, topics)
    assert one.run(700, until=lambda: one.status.release == 2)
    np.testing.assert_array_equal(installed(one), PARAMETERS[1])


def test_a_child_that_the_system_ended_for_want_of_memory_costs_no_download(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    codes = [-9, -9]

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> object:
        if module == PATCHER and codes:
            return _Stuck(codes.pop())
        return launch_here(module, arguments, log=log)

    one.launch = launch  # type: ignore[assignment]
    publish_without_parameters(release(2), broker, topics)
    assert one.run(60, until=lambda: one.status.release == 2)
    np.testing.assert_array_equal(installed(one), PARAMETERS[1])
    assert codes == []


def test_an_agent_that_is_killed_while_a_patch_is_applied_applies_it_again(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    begun = []

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> object:
        begun.append(module)
        (Path(arguments[5]) / "parameters.npz").write_bytes(b"half of a res")
        return _Stuck()

    one.launch = launch  # type: ignore[assignment]
    publish_without_parameters(release(2), broker, topics)
    one.run(5)
    assert begun == [PATCHER]
    assert one.status.release == 1
    one.launch = launch_here
    one.restart()
    assert one.run(10, until=lambda: one.status.release == 2)
    np.testing.assert_array_equal(installed(one), PARAMETERS[1])


def test_a_newer_release_takes_over_while_a_patch_is_applied(
    one: Device, broker: MemoryBroker, topics: Topics
) -> None:
    stuck = _Stuck()

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> object:
        return stuck

    one.launch = launch  # type: ignore[assignment]
    publish_without_parameters(release(2), broker, topics)
    one.run(5)
    one.launch = launch_here
    publish_without_parameters(release(3), broker, topics)
    assert one.run(10, until=lambda: one.status.release == 3)
    assert stuck.code == -9


def test_a_restart_at_any_moment_ends_with_the_release(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock
) -> None:
    """Crash after every single event; the patched release is installed in the end."""
    release(1).publish(broker, topics)
    device = Device(tmp_path, broker, clock)
    assert device.run(10, until=lambda: device.status.release == 1)
    publish_without_parameters(release(4), broker, topics)
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
    np.testing.assert_array_equal(installed(device), PARAMETERS[3])


def test_the_child_refuses_what_leads_to_values_that_are_not_finite(tmp_path: Path) -> None:
    huge = np.full(SIZE, 3e38, np.float32)
    (tmp_path / "spec").write_bytes(encode_spec(tiny_spec()))
    (tmp_path / "base").write_bytes(write_vector(huge))
    (tmp_path / "patch").write_bytes(compress(huge, SHARED, Budget(nmse=0.01)))
    names: Callable[[str], str] = lambda name: str(tmp_path / name)  # noqa: E731
    with pytest.raises(PayloadError, match="not finite"):
        apply_patches(
            [names("spec"), names("base"), "-", "0", "0.0", str(tmp_path), names("patch")]
        )
    assert not (tmp_path / "parameters.npz").exists()


def test_an_empty_patch_is_none(one: Device, broker: MemoryBroker, topics: Topics) -> None:
    files = release(2)
    files.offer({1: b""})
    files.publish(broker, topics)
    assert one.run(60, until=lambda: one.status.release == 2)
