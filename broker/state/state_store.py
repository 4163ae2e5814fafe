"""The server's state of one task on disk: vectors as artifacts, their names and scalars in a row.

Nothing that is lost here stops a task: moments begin at zero, memories of devices are computed anew
from their rows, and the average begins anew where devices are. Each is said in one line.
"""

import logging
from typing import NamedTuple

import msgspec
import numpy as np

from broker.folding.divergence_guard import Guard
from broker.folding.server_step import Doubles, ServerState
from broker.folding.step_estimates import StepEstimates
from broker.records.state_records import EstimatesRow, GuardRow, StateRecords, StateRow
from broker.state.artifact_store import ArtifactStore
from models.errors import DigestMismatchError, PayloadError, TransientError
from models.host.files import patiently
from models.protocol.learning import Feedback, StepsPlan
from models.protocol.manifest import Artifact, Manifest
from models.protocol.npz import read_arrays, read_vector, write_array, write_vector
from models.task.params import Vector

__all__ = ["Scalars", "StateStore", "artifact_read"]

log = logging.getLogger(__name__)

SUM = "remembered"  # the member of S's npz
ALLOWANCE = 4096  # bytes of an npz beside its values


class Scalars(NamedTuple):
    """What the server knows beside its vectors."""

    auto_average: float = 0.0  # what ``average = "auto"`` stands for
    feedback: Feedback = "residual"  # that the memories are of
    optimizer: str = "sgd"  # that the moments are of
    memory_room: int = 0  # bytes that the memories of all devices may take
    folds: int = 0  # since S was computed from the rows
    guard: Guard | None = None  # of gd-sec's threshold; None: as the operator says
    estimates: StepEstimates | None = None  # for choosing local steps; None: nobody asked
    steps: StepsPlan | None = None  # what a release says of them


class StateStore:
    """Reads and writes the state of one task."""

    def __init__(
        self, task: str, size: int, records: StateRecords, artifacts: ArtifactStore
    ) -> None:
        self._task = task
        self._size = size
        self._records = records
        self._artifacts = artifacts

    def load(
        self, manifest: Manifest, exact: Vector, published: Vector
    ) -> tuple[ServerState, Scalars]:
        """Return the state behind the release of ``manifest``.

        Raises:
            TransientError: the disk does not give it now.
        """
        state = ServerState(exact, published)
        if manifest.averaged:
            average = self._vector(manifest.artifacts["average"], "average", "it begins anew")
            if average is not None:  # else devices run p until it is moved for the first time
                state = state._replace(average=average, averaged=manifest.averaged)
        row = self._records.get(self._task)
        if row is None:
            if self._records.is_lost(self._task):
                log.error(
                    "state lost, its row is damaged: moments begin at zero task=%s", self._task
                )
            plan = manifest.plan  # memories say themselves what they are
            return state, Scalars(auto_average=plan.average, feedback=plan.feedback)
        if row.release != manifest.release:  # made by a version that knew of no state
            log.warning("state of another release is left alone task=%s", self._task)
            row = StateRow(row.release, auto_average=row.auto_average)
        anew = "it begins at zero"
        state = state._replace(
            velocity=self._vector(row.velocity, "velocity", anew),
            second=self._vector(row.second, "second moments", anew),
            remembered=self._doubles(row.remembered),
            weight=row.weight,
            devices=row.devices,
        )
        return state, _scalars(row)

    def saved(self, state: ServerState, scalars: Scalars, release: int) -> StateRow:
        """Write the vectors of ``state``; return the row that names them, for a transaction.

        Raises:
            OSError: the disk is full or failing.
        """

        def kept(vector: Vector | None) -> Artifact | None:
            return None if vector is None else self._artifacts.put(write_vector(vector))

        total = state.remembered
        guard, known = scalars.guard, scalars.estimates
        return StateRow(
            release=release,
            auto_average=scalars.auto_average,
            feedback=scalars.feedback,
            optimizer=scalars.optimizer,
            velocity=kept(state.velocity),
            second=kept(state.second),
            remembered=None if total is None else self._artifacts.put(write_array(SUM, total)),
            weight=state.weight,
            devices=state.devices,
            memory_room=scalars.memory_room,
            folds=scalars.folds,
            guard=None if guard is None else GuardRow(*guard),
            estimates=None if known is None else EstimatesRow(*known),
            steps=scalars.steps,
        )

    def put(self, row: StateRow) -> None:
        """Record ``row``, within the transaction that makes its release."""
        self._records.put(self._task, row)

    def _vector(self, artifact: Artifact | None, what: str, then: str) -> Vector | None:
        if artifact is None:
            return None
        data = artifact_read(self._artifacts, artifact, self._task)
        try:
            return read_vector(data or b"", size=self._size)
        except PayloadError:
            log.error("%s lost, the file is missing or damaged: %s task=%s", what, then, self._task)
            return None

    def _doubles(self, artifact: Artifact | None) -> Doubles | None:
        if artifact is None:
            return None
        data = artifact_read(self._artifacts, artifact, self._task)
        try:
            found = read_arrays(data or b"", max_bytes=8 * self._size + ALLOWANCE)[SUM]
            if found.shape != (self._size,) or found.dtype != np.float64:
                raise PayloadError(f"{SUM}: {found.dtype} {found.shape}")
            return found.copy()
        except (PayloadError, KeyError):
            log.warning(
                "sum of memories lost, the file is missing or damaged: it is computed anew task=%s",
                self._task,
            )
            return None


def artifact_read(artifacts: ArtifactStore, artifact: Artifact, task: str) -> bytes | None:
    """Return an artifact; None if it is missing or damaged.

    Raises:
        TransientError: the disk does not give it now, which says nothing of what it holds.
    """
    try:
        return patiently(lambda: artifacts.get(artifact))
    except (FileNotFoundError, DigestMismatchError):
        return None
    except OSError as error:
        raise TransientError(
            f"task {task}: artifacts/{artifact.sha256} cannot be read: "
            f"{error.strerror}; if it stays so, restore [storage] directory from a backup"
        ) from None


def _scalars(row: StateRow) -> Scalars:
    guard, known = row.guard, row.estimates
    return Scalars(
        auto_average=row.auto_average,
        feedback=row.feedback,
        optimizer=row.optimizer,
        memory_room=row.memory_room,
        folds=row.folds,
        guard=None if guard is None else Guard(guard.share, guard.loss, guard.good),
        estimates=None if known is None else StepEstimates(*msgspec.structs.astuple(known)),
        steps=row.steps,
    )
