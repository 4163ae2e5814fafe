"""What the registry says about the fleet: read-only, beside a running server.

``read_report(directory)`` is what ``edgefold-broker status --json`` prints, and what programs use.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker.artifact_store import ARTIFACTS, ArtifactStore
from broker.registry import DATABASE, DeviceRow, Registry
from broker.release_records import ReleaseRecords, ReleaseRow
from broker.update_records import UpdateRecords
from models.errors import UsageError
from models.payload.messages import Status
from models.spec import decode_spec

__all__ = ["DeviceReport", "FleetReport", "ReleaseReport", "TaskReport", "read_report"]

DOUBLE_SAID_S = 86_400.0  # an identity seen double is reported for a day


class ReleaseReport(msgspec.Struct, frozen=True):
    """One release."""

    number: int
    parent: int
    created: float  # Unix seconds
    training_open: bool
    accuracy: float | None  # on the server's hold-out data; None: no such data, or another metric
    metric: float | None  # the task's metric, whatever it is
    loss: float | None
    evaluated: int  # hold-out samples
    local_accuracy: float | None  # what devices measured of it on their own hold-outs, by samples
    local_reports: int  # and how many did
    updates: int  # that were folded into it
    devices: int  # that these came from
    bytes_up: int  # of these updates: header and payload
    bytes_down: int  # what a device downloads that has its parent
    parameters_sha256: str


class TaskReport(msgspec.Struct, frozen=True):
    """One task."""

    task: str
    parameters: int  # that travel
    current: int  # release
    waiting: int  # updates that are stored and not folded yet
    releases: tuple[ReleaseReport, ...]


class DeviceReport(msgspec.Struct, frozen=True):
    """One device: what it says of itself, and what the server counted."""

    device: str
    online: bool
    seen: float  # Unix seconds of its last status; 0: none yet
    status: Status | None
    updates_stored: int  # whole and safe, not folded yet
    updates_folded: int
    updates_refused: int
    updates_missing: int  # made, but neither here nor waiting at the device (its last status)
    bytes_received: int  # of update messages, repeats included
    duplicates: int  # chunks that came again
    garbage: int  # messages that were none of ours
    is_double: bool  # two boards speak by this name, such as after an SD card was cloned


class FleetReport(msgspec.Struct, frozen=True):
    """Everything, as it was committed at one moment."""

    fleet: str
    tasks: tuple[TaskReport, ...]
    devices: tuple[DeviceReport, ...]
    updates_folded: int  # distinct ids
    updates_folded_twice: int  # contributions in all releases beyond these: must be 0
    updates_missing: int  # of all devices together; see there

    def task(self, name: str) -> TaskReport:
        """Return the report of one task.

        Raises:
            UsageError: there is none of that name.
        """
        for task in self.tasks:
            if task.task == name:
                return task
        known = ", ".join(task.task for task in self.tasks) or "none"
        raise UsageError(f"no task {name!r} here, only: {known}")


def read_report(directory: Path) -> FleetReport:
    """Read the registry in ``directory``; a server may be running on it.

    Raises:
        UsageError: there is no registry, or it is damaged.
        TransientError: it cannot be read now.
    """
    path = directory / DATABASE
    if not path.exists():
        raise UsageError(f"no {DATABASE} in {directory}: did the server ever start there?")
    registry = Registry(path, "", read_only=True)
    try:
        with registry.snapshot():
            return _report(registry, ArtifactStore(directory / ARTIFACTS))
    finally:
        registry.close()


def _report(registry: Registry, artifacts: ArtifactStore) -> FleetReport:
    updates, releases = UpdateRecords(registry), ReleaseRecords(registry)
    settled, stored = updates.settled_counts(), updates.waiting_counts()
    devices = tuple(
        _device(row, settled.get(row.device, (0, 0)), stored.get(row.device, 0))
        for row in registry.devices()
    )
    folded = sum(folded for folded, _ in settled.values())
    return FleetReport(
        fleet=registry.fleet,
        tasks=tuple(
            _task(name, releases.history(name), updates, artifacts)
            for name in sorted(releases.tasks())
        ),
        devices=devices,
        updates_folded=folded,
        updates_folded_twice=releases.updates_in_releases() - folded,
        updates_missing=sum(device.updates_missing for device in devices),
    )


def _device(row: DeviceRow, settled: tuple[int, int], stored: int) -> DeviceReport:
    folded, refused = settled
    missing = 0
    if row.status is not None:
        arrived = folded + refused + stored
        missing = max(0, row.status.updates_made - row.status.updates_waiting - arrived)
    return DeviceReport(
        device=row.device,
        online=row.online,
        seen=row.seen,
        status=row.status,
        updates_stored=stored,
        updates_folded=folded,
        updates_refused=refused,
        updates_missing=missing,
        bytes_received=row.bytes_received,
        duplicates=row.duplicates,
        garbage=row.garbage,
        is_double=row.doubled > 0 and row.seen < row.doubled + DOUBLE_SAID_S,
    )


def _task(
    name: str, history: Sequence[ReleaseRow], updates: UpdateRecords, artifacts: ArtifactStore
) -> TaskReport:
    local = updates.local_accuracies(name)
    current = history[-1].manifest
    spec = decode_spec(artifacts.get(current.artifacts["spec"]))
    return TaskReport(
        task=name,
        parameters=spec.shared_size,
        current=current.release,
        waiting=updates.waiting_summary(name)[0],
        releases=tuple(_release(row, local.get(row.number, (None, 0))) for row in history),
    )


def _release(row: ReleaseRow, local: tuple[float | None, int]) -> ReleaseReport:
    manifest = row.manifest
    return ReleaseReport(
        number=row.number,
        parent=manifest.parent,
        created=row.created,
        training_open=manifest.training.open,
        accuracy=manifest.accuracy,
        metric=row.metric,
        loss=row.loss,
        evaluated=row.evaluated,
        local_accuracy=local[0],
        local_reports=local[1],
        updates=row.updates,
        devices=row.devices,
        bytes_up=row.bytes_received,
        bytes_down=row.bytes_down,
        parameters_sha256=manifest.artifacts["parameters"].sha256,
    )
