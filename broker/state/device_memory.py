"""What the server remembers of each device of one task: rows in the registry, vectors as artifacts.

A memory that is lost makes its device begin anew, and nothing else: the sum is computed from those
that are there. So whoever drops rows (an operator, `broker.devices.forgetting`) need not know of
the sum; before each fold it is compared with the rows, and computed anew where they differ.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from broker.folding.memory_fold import Memory, summed, without
from broker.folding.server_step import ServerState
from broker.records.memory_records import MemoryRecords, MemoryRow
from broker.records.registry import Registry
from broker.records.update_key import UpdateKey
from broker.state.artifact_store import ArtifactStore
from broker.state.state_store import artifact_read
from models.codec.feedback import history_digest
from models.errors import PayloadError, TransientError
from models.protocol.manifest import Artifact
from models.protocol.npz import read_vector, write_vector
from models.task.params import Vector

__all__ = ["ANEW_EVERY", "DeviceMemory", "Forgotten", "MemoryChange", "MemoryTry"]

log = logging.getLogger(__name__)

ANEW_EVERY = 10_000  # folds: float64 drifts by 1e-16 in each
MOST_AT_START = 1 << 31  # values that are read at a start; beyond it the sum on disk is believed


class Forgotten(NamedTuple):
    """The state after some devices were forgotten, and which."""

    state: ServerState
    devices: tuple[str, ...]


class MemoryChange(NamedTuple):
    """What a release changes of the memories."""

    rows: Sequence[MemoryRow] = ()
    forgotten: Sequence[str] = ()  # devices
    drops_all: bool = False  # before the rows are put


class MemoryTry:
    """The memories as one try of a fold leaves them; nothing of it holds until it is committed."""

    def __init__(self, memory: "DeviceMemory") -> None:
        self._memory = memory
        self.rows: dict[str, MemoryRow] = {}  # by device

    def get(self, key: UpdateKey) -> Memory | None:
        """Return what is remembered of the device of ``key``.

        Raises:
            TransientError: it cannot be read now.
        """
        row = self.rows.get(key.device) or self._memory.row(key.device)
        return self._memory.get(row) if row else None

    def keep(self, key: UpdateKey, memory: Memory, release: int) -> None:
        """Write what is to be remembered, if ``release`` is made.

        Raises:
            OSError: the disk is full or failing.
        """
        self.rows[key.device] = MemoryRow(
            device=key.device,
            installation=key.installation,
            digest=history_digest(memory.history),
            artifact=self._memory.write(memory.history),
            samples=memory.samples,
            release=release,
        )


class DeviceMemory:
    """The memories of one task."""

    def __init__(
        self,
        task: str,
        size: int,
        registry: Registry,
        artifacts: ArtifactStore,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.records = MemoryRecords(registry)
        self._task = task
        self._size = size
        self._artifacts = artifacts
        self._registry = registry
        self._on_progress = on_progress

    # Before a fold

    def opened(self, state: ServerState) -> ServerState:
        """Return ``state`` as of a start: its sum is computed anew, unless that takes too long."""
        total = self.records.total(self._task)
        if total.devices * self._size <= MOST_AT_START:
            return self.anew(state)
        return self.agreed(state)

    def agreed(self, state: ServerState) -> ServerState:
        """Return ``state`` with a sum of the memories that there are, whoever dropped some.

        Raises:
            TransientError: one cannot be read now.
        """
        total = self.records.total(self._task)
        is_whole = total.devices == state.devices and (
            not total.devices
            or (state.remembered is not None and math.isclose(total.weight, state.weight))
        )
        return state if is_whole else self.anew(state)

    def anew(self, state: ServerState) -> ServerState:
        """Return ``state`` with the sum computed from the rows; those without a file are dropped.

        Raises:
            TransientError: one cannot be read now, or the disk is full or failing.
        """
        lost: list[str] = []
        found = summed(state, self._readable(self.records.rows(self._task), lost))
        if lost:
            self._drop(lost)
        return found

    def _readable(self, rows: Iterable[MemoryRow], lost: list[str]) -> Iterator[Memory]:
        for row in rows:
            self._on_progress()
            memory = self._read(row)
            if memory is None:
                lost.append(row.device)
            else:
                yield memory

    def _drop(self, lost: Sequence[str]) -> None:
        with self._registry.transaction():
            for device in lost:
                self.records.drop(self._task, device)
        log.error(
            "memories lost, their files are missing or damaged: these devices begin anew "
            "task=%s devices=%s",
            *(self._task, ", ".join(lost[:20])),
        )

    # Within a fold

    def get(self, row: MemoryRow) -> Memory:
        """Return the memory of ``row``.

        Raises:
            TransientError: it cannot be read now; or it is lost and was forgotten, so that the next
                try does without.
        """
        memory = self._read(row)
        if memory is None:
            self._drop([row.device])
            raise TransientError(f"task {self._task}: the memory of {row.device} is lost")
        return memory

    def _read(self, row: MemoryRow) -> Memory | None:
        data = artifact_read(self._artifacts, row.artifact, self._task)
        try:
            return Memory(read_vector(data or b"", size=self._size), row.samples)
        except PayloadError:
            return None

    def row(self, device: str) -> MemoryRow | None:
        return self.records.get(self._task, device)

    def write(self, history: Vector) -> Artifact:
        return self._artifacts.put(write_vector(history))

    # After it

    def bounded(
        self,
        state: ServerState,
        tried: Mapping[str, MemoryRow],
        *,
        oldest: int,
        most: int,
        heaviest: float = math.inf,
    ) -> Forgotten:
        """Forget devices of which nothing was folded since release ``oldest``, and beyond ``most``
        bytes those longest unheard; ``tried`` are the rows that come with the next release.

        Likewise those of which nothing comes that weigh more than ``heaviest`` times the usual: who
        came first had nobody to be compared with, and would be the model as long as it stays away.

        Raises:
            TransientError: a memory cannot be read now.
        """
        gone: dict[str, MemoryRow] = {}
        size = self.records.total(self._task).size
        for device, row in tried.items():
            before = self.row(device)
            size += row.artifact.size - (before.artifact.size if before else 0)
        others = (r for r in self.records.longest_unheard(self._task) if r.device not in tried)
        for row in chain(others, tried.values()):
            if row.release >= oldest and size <= most:
                break
            gone[row.device] = row
            size -= row.artifact.size
        usual = self.records.usual(self._task, tried, also=[row.samples for row in tried.values()])
        heavy = self.records.heavier(self._task, heaviest * usual)
        gone |= {row.device: row for row in heavy if row.device not in tried}
        for row in gone.values():
            memory = None if heavy else self._read(row)
            if memory is None:  # lost, or so heavy that subtracting it would leave little of S
                left = (r for r in self._with(tried) if r.device not in gone)
                return Forgotten(summed(state, self._readable(left, [])), tuple(gone))
            state = without(state, memory)
        return Forgotten(state, tuple(gone))

    def _with(self, tried: Mapping[str, MemoryRow]) -> Iterator[MemoryRow]:
        yield from tried.values()
        yield from (row for row in self.records.rows(self._task) if row.device not in tried)

    def commit(self, change: MemoryChange) -> None:
        """Record ``change``, within the transaction that makes its release."""
        if change.drops_all:
            self.records.drop_all(self._task)
        for row in change.rows:
            self.records.put(self._task, row)
        for device in change.forgotten:
            self.records.drop(self._task, device)
