"""Whether devices and server carry the same memories and averages: read from the files of both.

For fleets at rest: while processes run, one side may be a moment ahead of the other.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from broker.folding.memory_fold import Doubles
from broker.records.memory_records import MemoryRecords
from broker.records.registry import DATABASE, Registry
from broker.records.release_records import ReleaseRecords
from broker.records.state_records import StateRecords, StateRow
from broker.state.artifact_store import ARTIFACTS, ArtifactStore
from edge_agent.releases.model_slots import Slots
from edge_agent.updates.outbox_contents import CODEC, ENTRIES
from edge_agent.updates.outbox_file import Question, Rows, ask_beside
from models.protocol.manifest import Artifact, Manifest
from models.protocol.npz import read_arrays
from models.task.params import Vector
from tools.local_fleet.fleet_facts import counted
from tools.local_fleet.fleet_processes import Device

__all__ = ["BothMemories", "OneMemory", "compare_memories"]

SUM = "remembered"  # member of its npz
MOST_ERROR = 1e-9  # of the sum of all memories, which is float64


class OneMemory(NamedTuple):
    """One device, as it is seen from both sides; the lengths are Euclidean."""

    device: str
    is_agreed: bool  # bit for bit; with an update unanswered, with what it leaves or before it
    is_answered: bool  # nothing of it waits for a receipt
    on_device: float
    at_server: float


class BothMemories(NamedTuple):
    """A fleet's memories."""

    devices: tuple[OneMemory, ...]
    strangers: tuple[str, ...]  # that the server remembers, and that are not of this fleet
    sum_error: float  # of S, in units of sum |n h|; 0 without a memory
    odd_averages: tuple[str, ...]  # in sentences: on devices, and not those of their releases

    @property
    def complaints(self) -> list[str]:
        """What is not as it must be, in sentences; strangers are for the caller to judge."""
        found = [
            f"{one.device} and the server do not remember the same of it"
            for one in self.devices
            if not one.is_agreed
        ]
        if self.sum_error > MOST_ERROR:
            found.append(f"the sum of all memories is wrong by {self.sum_error:.1g} of it")
        return [*found, *self.odd_averages]

    @property
    def words(self) -> str:
        """A sentence for people; "" where nobody is remembered, or not the same."""
        remembered = sum(one.at_server > 0 for one in self.devices)
        if not remembered or self.complaints:
            return ""
        return (
            f"The server remembers {counted(remembered, 'device')}: bit for bit what is on "
            f"{'it' if remembered == 1 else 'them'}."
        )

    @property
    def report(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "agree": not self.complaints,
            "devices": [one._asdict() for one in self.devices],
            "sum_error": self.sum_error,
            "odd_averages": list(self.odd_averages),
        }


def compare_memories(server: Path, devices: Sequence[Device], task: str) -> BothMemories:
    """Compare what the server in the directory ``server`` remembers with what its devices carry.

    Raises:
        UsageError, TransientError, OSError: files that cannot be read.
    """
    registry = Registry(server / DATABASE, "", read_only=True)
    try:
        state = StateRecords(registry).get(task)
        rows = {row.device: row for row in MemoryRecords(registry).rows(task)}
        made = {row.number: row.manifest for row in ReleaseRecords(registry).history(task)}
    finally:
        registry.close()
    store = ArtifactStore(server / ARTIFACTS)
    kept = {name: _vector(store.get(row.artifact)) for name, row in rows.items()}
    feedback = state.feedback if state else "residual"
    compared = tuple(_compare(device, feedback, kept.get(device.id)) for device in devices)
    weighted = [np.float64(rows[name].samples) * kept[name].astype(np.float64) for name in rows]
    return BothMemories(
        compared,
        tuple(sorted(rows.keys() - {device.id for device in devices})),
        _error(store, state, weighted),
        tuple(_odd_averages(made, devices)),
    )


def _odd_averages(made: Mapping[int, Manifest], devices: Iterable[Device]) -> Iterator[str]:
    for device in devices:
        slots = Slots(device.state, is_owner=False)
        if (active := slots.active) is None:
            yield f"{device.id} has no release"
            continue
        promised = made[active.release].artifacts.get("average") if active.release in made else None
        if promised is None:
            if "average" in active.artifacts:
                yield f"{device.id} has an average that release {active.release} has not"
            continue
        if _digest(slots, promised) != promised.sha256:
            yield f"{device.id} has another average than that of release {active.release}"


def _digest(slots: Slots, artifact: Artifact) -> str:
    try:
        return hashlib.sha256(Path(slots.file(artifact)).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _compare(device: Device, feedback: str, at_server: Vector | None) -> OneMemory:
    def names(rows: Rows) -> list[str]:
        return [name for (name,) in rows]

    following = Question("updates", "SELECT next_history FROM updates", names)
    codec, waiting, after = ask_beside(device.state / "outbox.db", (CODEC, ENTRIES, following))
    assert codec is not None  # the schema puts it there
    here = _on_device(device, codec.history_for(feedback))
    possible = [here] + [_on_device(device, name) for name in after if name is not None]
    return OneMemory(
        device.id,
        is_agreed=any(_is_same(one, at_server) for one in possible),
        is_answered=not any(entry.has_left for entry in waiting),
        on_device=_length(here),
        at_server=_length(at_server),
    )


def _on_device(device: Device, name: str | None) -> Vector | None:
    return None if name is None else _vector((device.state / "codec" / name).read_bytes())


def _vector(data: bytes) -> Vector:
    (vector,) = read_arrays(data, max_bytes=1 << 32).values()
    return vector


def _is_same(one: Vector | None, other: Vector | None) -> bool:
    if one is None or other is None:  # zeros
        return not _length(one) and not _length(other)
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _length(vector: Vector | None) -> float:
    return 0.0 if vector is None else float(np.linalg.norm(vector))


def _error(store: ArtifactStore, state: StateRow | None, weighted: Sequence[Doubles]) -> float:
    said = state.remembered if state else None
    total = None if said is None else read_arrays(store.get(said), max_bytes=1 << 32)[SUM]
    if total is None:
        return 0.0 if not weighted else 1.0
    size = sum(float(np.abs(one).sum()) for one in weighted) or 1.0
    return float(np.abs(total - sum(weighted, np.zeros_like(total))).sum()) / size
