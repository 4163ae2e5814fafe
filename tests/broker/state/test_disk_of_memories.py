"""What memories and moments take on the server's disk: nothing that no row names stays there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from remembered_device import RememberedDevice, some_delta
from server_world import World, good_direction, linear_spec

from broker.releases import release_line
from broker.state.device_memory import DeviceMemory, MemoryChange
from models.protocol.manifest import Artifact
from models.task.params import Vector
from models.task.spec import Role

MakeWorld = Callable[..., World]
MEMORY = """
[task.aggregation]
updates = 1
seconds = 60
optimizer = "adam"
learning_rate = {rate}
[task.learning]
feedback = "memory"
"""


def remembered(world: World, number: int) -> RememberedDevice:
    device = world.device(f"dev-{number}")
    device.installation += number
    return RememberedDevice(device)


def stray(world: World) -> set[str]:
    """Return the artifacts that nothing names."""
    books = world.server.books
    there = {path.name for path in (world.directory / "server/artifacts").iterdir()}
    return there - set(books.releases.artifacts_wanted(books.keep_releases))


@pytest.mark.parametrize("kept", [0, 100])
def test_memories_of_before_go_also_where_all_releases_stay(
    make_world: MakeWorld, kept: int
) -> None:
    world = make_world(MEMORY.format(rate=0.1), storage=f"keep_releases = {kept}")
    device = remembered(world, 1)
    for turn in range(4):
        device.learn(some_delta(turn, world.spec.shared_size))
        assert device.until_settled(world).state == "folded"
    assert not stray(world)
    history = world.server.books.releases.history(world.spec.task)
    assert len(history) == 5
    has = world.server.books.artifacts.has
    assert all(has(file) for row in history for file in row.manifest.files)


def test_folds_that_the_gate_refuses_leave_no_memories_behind(
    make_world: MakeWorld, hold_out: Path
) -> None:
    gate = f'[task.evaluation]\ndata = "{hold_out}"\nmax_drop = 0.05\n'
    text = MEMORY.format(rate=1.0).replace('"adam"', '"sgd"') + gate
    world = make_world(text, spec=linear_spec(own=Role.FROZEN))
    device = remembered(world, 1)
    device.learn(good_direction())
    assert device.until_settled(world).state == "folded"
    for turn in range(3):
        device.learn(-(3 + turn) * good_direction())
        assert device.until_settled(world).state == "refused"
        assert not stray(world)


def test_no_fold_writes_more_memories_than_there_is_room_for(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of updates after an outage, say: all of them are folded, a few at a time."""
    monkeypatch.setattr(release_line, "MB", 1)
    text = MEMORY.format(rate=0.1).replace("updates = 1", "updates = 9")
    spec, room = linear_spec(features=200), 3
    bound = (4 * spec.shared_size + 300) * room  # bytes; an npz has a few more than its values
    world = make_world(text + f"max_memory_mb = {bound}\n", storage="keep_releases = 2", spec=spec)
    write, commit, written, most = DeviceMemory.write, DeviceMemory.commit, set[Artifact](), []

    def noted(self: DeviceMemory, history: Vector) -> Artifact:
        found = write(self, history)
        written.add(found)
        return found

    def counted(self: DeviceMemory, change: MemoryChange) -> None:
        commit(self, change)
        most.append(len(written))
        written.clear()

    monkeypatch.setattr(DeviceMemory, "write", noted)
    monkeypatch.setattr(DeviceMemory, "commit", counted)
    devices = [remembered(world, number) for number in range(18)]
    for number, device in enumerate(devices):
        device.learn(some_delta(number, world.spec.shared_size))
        device.send()
    assert {device.until_settled(world).state for device in devices} == {"folded"}
    assert max(most) == room
    assert world.report().tasks[0].learning.memory_bytes <= bound
    assert not stray(world)
