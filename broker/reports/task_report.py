"""What the server knows of one task: its releases, and how far its devices are with them."""

from collections.abc import Sequence

import msgspec

from broker.records.release_records import ReleaseRow
from broker.records.update_records import UpdateRecords
from broker.reports.device_report import DeviceReport
from broker.reports.learning_report import LearningReport
from broker.state.artifact_store import ArtifactStore
from models.errors import DigestMismatchError
from models.protocol.manifest import Manifest
from models.task.spec import Role, TaskSpec, decode_spec

__all__ = ["ReleaseReport", "TaskReport", "task_report"]


class ReleaseReport(msgspec.Struct, frozen=True):
    """One release."""

    number: int
    parent: int
    created: float  # Unix seconds
    training_open: bool
    # On the server's hold-out data, of personal tensors with the bundle's own values; None: no such
    # data, or another metric.
    accuracy: float | None
    metric: float | None  # the task's metric, whatever it is
    loss: float | None
    evaluated: int  # hold-out samples
    local_accuracy: float | None  # what devices measured of it on their own hold-outs, by samples
    local_reports: int  # and how many did
    metric_trained: float | None  # of the parameters, where devices run their average
    step: float | None  # length of what the exact sum moved by; None: nothing was folded
    age: float | None  # releases; the mean one of what was folded
    updates: int  # that were folded into it
    devices: int  # that these came from
    bytes_up: int  # of these updates: header and payload
    bytes_down: int  # what a device downloads that has its parent
    parameters_sha256: str


class TaskReport(msgspec.Struct, frozen=True):
    """One task."""

    task: str
    parameters: int  # that travel; 0: the file that says it is missing or damaged
    metric: str  # "accuracy", or "mse": the lower the better
    personal: int  # that stay on each device
    current: int  # release
    waiting: int  # updates that are stored and not folded yet
    releases: tuple[ReleaseReport, ...]
    learning: LearningReport
    served: bool  # by the server that runs, or ran last
    devices_newest: int  # of all that ask for it: on the current release
    devices_older: int  # on another one
    devices_without: int
    devices_unable: int  # to follow the current release, whatever they run
    versions_unable: tuple[str, ...]  # of these


def task_report(
    name: str,
    history: Sequence[ReleaseRow],
    devices: Sequence[DeviceReport],
    updates: UpdateRecords,
    artifacts: ArtifactStore,
    learning: LearningReport,
    *,
    served: bool,
) -> TaskReport:
    local = updates.headers.local_accuracies(name)
    current = history[-1].manifest
    statuses = [device.status for device in devices if device.status and device.status.task == name]
    newest = sum(status.release == current.release for status in statuses)
    without = sum(not status.release for status in statuses)
    unable = [status.version for status in statuses if status.follows < current.needs]
    spec = _spec(artifacts, current)
    return TaskReport(
        task=name,
        parameters=spec.shared_size if spec else 0,
        metric=spec.metric if spec else "accuracy",
        personal=sum(t.size for t in spec.with_role(Role.PERSONAL)) if spec else 0,
        current=current.release,
        waiting=updates.waiting_summary(name)[0],
        releases=tuple(_release(row, local.get(row.number, (None, 0))) for row in history),
        learning=learning,
        served=served,
        devices_newest=newest,
        devices_older=len(statuses) - newest - without,
        devices_without=without,
        devices_unable=len(unable),
        versions_unable=tuple(sorted(set(unable))),
    )


def _spec(artifacts: ArtifactStore, manifest: Manifest) -> TaskSpec | None:
    try:
        return decode_spec(artifacts.get(manifest.artifacts["spec"]))
    except (FileNotFoundError, DigestMismatchError):
        return None  # all that the registry knows is to be seen yet


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
        metric_trained=row.metric_trained,
        step=row.step,
        age=row.age,
        updates=row.updates,
        devices=row.devices,
        bytes_up=row.bytes_received,
        bytes_down=row.bytes_down,
        parameters_sha256=manifest.artifacts["parameters"].sha256,
    )
