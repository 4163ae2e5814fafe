"""What the registry holds of a task's server beyond the exact sum: scalars, names of vectors."""

from typing import Annotated

import msgspec

from broker.records.registry import Registry
from models.protocol.learning import Feedback, StepsPlan
from models.protocol.manifest import Artifact

__all__ = ["EstimatesRow", "GuardRow", "StateRecords", "StateRow"]

Whole = Annotated[int, msgspec.Meta(ge=0)]


class GuardRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of `broker.folding.divergence_guard`."""

    share: float = 1.0
    loss: float | None = None
    good: Whole = 0


class EstimatesRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of `broker.folding.step_estimates`."""

    rho: float = 0.0
    beta: float = 0.0
    delta2: float = 0.0
    reference: float = 0.0
    heard: Whole = 0
    spread: Whole = 0
    counted: Whole = 0


class StateRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state as of a release. Unknown fields are ignored.

    The average is an artifact of the release itself.
    """

    release: Whole
    auto_average: float = 0.0  # what ``average = "auto"`` stands for
    feedback: Feedback = "residual"  # that the memories are of
    optimizer: str = "sgd"  # that the moments are of
    velocity: Artifact | None = None
    second: Artifact | None = None
    remembered: Artifact | None = None  # S; the rows in `memories` say it too
    weight: float = 0.0
    devices: Whole = 0
    memory_room: Whole = 0  # bytes that the memories of all devices may take
    folds: Whole = 0  # since S was computed from the rows
    guard: GuardRow | None = None
    estimates: EstimatesRow | None = None
    steps: StepsPlan | None = None  # that the release has, made of them


class StateRecords:
    """The table server_state of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def get(self, task: str) -> StateRow | None:
        """Return the state of ``task``; None: there is none (as of old), or `is_lost`."""
        state = self._state(task)
        return _row(state) if state is not None else None

    def is_lost(self, task: str) -> bool:
        """Whether there is a state of ``task`` that cannot be read: the file is damaged there."""
        state = self._state(task)
        return state is not None and _row(state) is None

    def _state(self, task: str) -> bytes | None:
        rows = self._registry.query("SELECT state FROM server_state WHERE task = ?", task)
        return rows[0][0] if rows else None

    def put(self, task: str, row: StateRow) -> None:
        """Record the state of ``task``, within the transaction that makes its release."""
        self._registry.execute(
            "INSERT OR REPLACE INTO server_state VALUES (?, ?, ?)",
            task,
            row.release,
            msgspec.json.encode(row),
        )

    def artifacts(self) -> set[str]:
        """Return the digests of all vectors that the states name."""
        tasks = [task for (task,) in self._registry.query("SELECT task FROM server_state")]
        rows = [row for task in tasks if (row := self.get(task))]
        named = [file for row in rows for file in (row.velocity, row.second, row.remembered)]
        return {file.sha256 for file in named if file is not None}


def _row(state: bytes) -> StateRow | None:
    try:
        return msgspec.json.decode(state, type=StateRow)
    except (msgspec.MsgspecError, TypeError):
        return None
