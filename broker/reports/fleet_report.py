"""What the registry says about the fleet: read-only, beside a running server.

``read_report(directory)`` is what ``edgefold-broker status --json`` prints, and what programs use.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.devices.presence import Presence, presence
from broker.devices.remarks import Task, remarks
from broker.lease.server_state import ServerState, is_running, read_state
from broker.records.device_records import DeviceRecords, DeviceRow
from broker.records.registry import Registry, open_to_read
from broker.records.release_records import ReleaseRecords, ReleaseRow
from broker.records.update_records import UpdateRecords
from broker.releases.artifact_store import ARTIFACTS, ArtifactStore
from models.errors import DigestMismatchError, UsageError
from models.host.permission import why
from models.protocol.manifest import Manifest
from models.protocol.messages import Status
from models.task.spec import decode_spec

__all__ = [
    "DeviceReport",
    "FleetReport",
    "FleetSummary",
    "ReleaseReport",
    "ServerReport",
    "TaskReport",
    "UnservedTask",
    "in_counting_order",
    "read_report",
]

DAY_S = 86_400.0  # an identity seen double is reported for so long
SERVER_STUCK_S = 1800.0  # it writes every ten minutes where it can


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
    parameters: int  # that travel; 0: the file that says it is missing or damaged
    current: int  # release
    waiting: int  # updates that are stored and not folded yet
    releases: tuple[ReleaseReport, ...]
    served: bool  # by the server that runs, or ran last
    devices_newest: int  # of all that ask for it: on the current release
    devices_older: int  # on another one
    devices_without: int


class DeviceReport(msgspec.Struct, frozen=True):
    """One device: what it says of itself, and what the server counted."""

    device: str
    presence: Presence  # at `FleetReport.as_of`
    online: bool  # presence is "online"
    heard: float  # Unix seconds of its last live word, or of its will; 0: never
    seen: float  # Unix seconds of its last status, retained ones too; 0: none yet
    status: Status | None
    is_newest: bool  # it runs the current release of its task
    problems: tuple[str, ...]  # what the server has to say of it, then what it says itself
    updates_stored: int  # whole and safe, not folded yet
    updates_folded: int
    updates_refused: int
    updates_missing: int  # made, but neither here nor waiting at the device (its last status)
    last_update: float  # Unix seconds when its last one was whole; 0: none, or long ago
    bytes_received: int  # of update messages, repeats included
    duplicates: int  # chunks that came again
    garbage: int  # messages that were none of ours
    is_double: bool  # two boards speak by this name, such as after an SD card was cloned
    is_being_forgotten: bool  # asked for, and not done yet

    @property
    def is_there(self) -> bool:
        """Whether it is on line as far as is known."""
        return self.presence in ("online", "unconfirmed")

    def is_quiet(self, now: float) -> bool:
        """Whether nothing was heard of it for a day."""
        return self.presence != "online" and not 0 <= now - self.heard < DAY_S


class UnservedTask(msgspec.Struct, frozen=True):
    """A task that devices ask for, and that is not served here."""

    task: str
    devices: tuple[str, ...]


class FleetSummary(msgspec.Struct, frozen=True):
    """How many devices there are, by what they are."""

    devices: int
    online: int
    unconfirmed: int
    silent: int
    away: int
    never: int
    newest: int  # on the newest release of their task
    problems: int  # with a problem
    quiet_day: int  # not heard for a day or more


class ServerReport(msgspec.Struct, frozen=True):
    """The server itself: whether it runs, and what it said last. Times are Unix seconds."""

    running: bool
    connected: bool  # to the MQTT broker, as the server of the fleet
    since: float  # it is connected, or is not; 0: it never said anything
    reason: str  # why it is not
    stands_by: str  # which other server serves the fleet instead
    started: float
    seen: float  # the last sign of it
    problem: str
    tasks: tuple[str, ...]  # that it serves
    version: str


class FleetReport(msgspec.Struct, frozen=True):
    """Everything, as it was committed at one moment."""

    fleet: str
    server: ServerReport
    as_of: float  # Unix seconds: who is there was known then, and is not known since
    summary: FleetSummary
    unserved: tuple[UnservedTask, ...]
    tasks: tuple[TaskReport, ...]
    devices: tuple[DeviceReport, ...]  # in the order in which people count
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


def read_report(directory: Path, now: float | None = None) -> FleetReport:
    """Read the registry in ``directory``; a server may be running on it.

    ``now`` in Unix seconds; None: the clock's.

    Raises:
        UsageError: there is no registry, it is damaged, or we may not look at it.
        TransientError: it cannot be read now.
    """
    now = time.time() if now is None else now
    registry = open_to_read(directory)
    try:
        state, running = read_state(directory), _is_running(directory)
        with registry.snapshot():
            return _report(registry, ArtifactStore(directory / ARTIFACTS), state, running, now)
    finally:
        registry.close()


def _is_running(directory: Path) -> bool:
    try:
        return is_running(directory)
    except OSError as error:
        raise UsageError(f"{directory}: {why(error)}") from None


def in_counting_order(name: str) -> tuple[tuple[str, int], ...]:
    """Return a key that sorts names as people count: device-2 before device-10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return tuple((text, int(digits or -1)) for text, digits in parts)


def _report(
    registry: Registry,
    artifacts: ArtifactStore,
    state: ServerState | None,
    running: bool,
    now: float,
) -> FleetReport:
    known = DeviceRecords(registry)
    updates, releases = UpdateRecords(registry), ReleaseRecords(registry)
    histories = {name: releases.history(name) for name in sorted(releases.tasks())}
    rows = sorted(known.rows(), key=lambda row: in_counting_order(row.device))
    server = _server(state, running, rows, histories, now)
    view = _View(
        as_of=_as_of(server, rows, now),
        listening_since=(state.listening_since if state else 0.0) or None,
        served=server.tasks,
        tasks={
            name: Task(history[-1].number, frozenset(row.number for row in history))
            for name, history in histories.items()
        },
        settled=updates.settled_counts(),
        stored=updates.waiting_counts(),
        last=updates.last_received(),
        leaving=frozenset(known.to_be_forgotten()),
    )
    devices = tuple(_device(row, view) for row in rows)
    folded = sum(folded for folded, _ in view.settled.values())
    return FleetReport(
        fleet=registry.fleet,
        server=server,
        as_of=view.as_of,
        summary=_summary(devices, now),
        unserved=_unserved(devices, server.tasks),
        tasks=tuple(
            _task(name, history, devices, updates, artifacts, served=name in server.tasks)
            for name, history in histories.items()
        ),
        devices=devices,
        updates_folded=folded,
        updates_folded_twice=releases.updates_in_releases() - folded,
        updates_missing=sum(device.updates_missing for device in devices),
    )


def _server(
    state: ServerState | None,
    running: bool,
    rows: Sequence[DeviceRow],
    tasks: Iterable[str],
    now: float,
) -> ServerReport:
    if state is None:
        return ServerReport(running, False, 0.0, "", "", 0.0, 0.0, "", tuple(tasks), "")
    problem = state.problem
    # It writes rarely when nothing changes, and notes whom it hears more often.
    seen = max([state.seen, *_heard(rows, now)])
    if running and now - seen > SERVER_STUCK_S and not problem:
        problem = f"it has written nothing for {now - seen:.0f} s"
    return ServerReport(
        running=running,
        connected=state.is_connected and running,
        since=state.since if running else seen,
        reason=state.reason,
        stands_by=state.stands_by if running else "",
        started=state.started,
        seen=seen,
        problem=problem,
        tasks=state.tasks,
        version=state.version,
    )


def _as_of(server: ServerReport, rows: Sequence[DeviceRow], now: float) -> float:
    """Return until when the server knew who is there."""
    if not server.seen or (server.running and server.connected):
        return now
    return max([server.since, *_heard(rows, now)])


def _heard(rows: Sequence[DeviceRow], now: float) -> Iterator[float]:
    """Return when devices were heard, but not after ``now``: that was another clock."""
    return (row.heard for row in rows if row.heard <= now)


class _View(NamedTuple):
    """What the report of a device is made of, beside its row."""

    as_of: float
    listening_since: float | None
    served: tuple[str, ...]
    tasks: dict[str, Task]
    settled: dict[str, tuple[int, int]]
    stored: dict[str, int]
    last: dict[str, float]
    leaving: frozenset[str]


def _device(row: DeviceRow, view: _View) -> DeviceReport:
    folded, refused = view.settled.get(row.device, (0, 0))
    stored = view.stored.get(row.device, 0)
    status = row.status
    missing = 0
    if status is not None:
        arrived = folded + refused + stored
        missing = max(0, status.updates_made - status.updates_waiting - arrived)
    task = view.tasks.get(status.task) if status else None
    there = presence(
        says_online=row.online if row.seen else None,
        heard=row.heard,
        listening_since=view.listening_since,
        now=view.as_of,
    )
    is_double = row.doubled > 0 and row.seen < row.doubled + DAY_S
    return DeviceReport(
        device=row.device,
        presence=there,
        online=there == "online",
        heard=row.heard,
        seen=row.seen,
        status=status,
        is_newest=bool(status and task and status.release == task.newest),
        problems=_problems(row, view, is_there=there == "online", is_double=is_double),
        updates_stored=stored,
        updates_folded=folded,
        updates_refused=refused,
        updates_missing=missing,
        last_update=view.last.get(row.device, 0.0),
        bytes_received=row.bytes_received,
        duplicates=row.duplicates,
        garbage=row.garbage,
        is_double=is_double,
        is_being_forgotten=row.device in view.leaving,
    )


def _problems(row: DeviceRow, view: _View, *, is_there: bool, is_double: bool) -> tuple[str, ...]:
    found = ["two boards have this identity: was an SD card cloned?"] if is_double else []
    found += remarks(
        row.status,
        is_there=is_there,
        said_s=view.as_of - row.seen,
        tasks=view.tasks,
        served=view.served,
    )
    own = row.status.problem if row.status else ""
    return (*found, own) if own else tuple(found)


def _summary(devices: Sequence[DeviceReport], now: float) -> FleetSummary:
    there = Counter(device.presence for device in devices)
    return FleetSummary(
        devices=len(devices),
        online=there["online"],
        unconfirmed=there["unconfirmed"],
        silent=there["silent"],
        away=there["away"],
        never=there["never"],
        newest=sum(device.is_newest for device in devices),
        problems=sum(bool(device.problems) for device in devices),
        quiet_day=sum(device.is_quiet(now) for device in devices),
    )


def _unserved(devices: Sequence[DeviceReport], served: Sequence[str]) -> tuple[UnservedTask, ...]:
    found: dict[str, list[str]] = {}
    for device in devices:
        if device.status and device.status.task and device.status.task not in served:
            found.setdefault(device.status.task, []).append(device.device)
    return tuple(UnservedTask(task, tuple(names)) for task, names in sorted(found.items()))


def _task(
    name: str,
    history: Sequence[ReleaseRow],
    devices: Sequence[DeviceReport],
    updates: UpdateRecords,
    artifacts: ArtifactStore,
    *,
    served: bool,
) -> TaskReport:
    local = updates.local_accuracies(name)
    current = history[-1].manifest
    statuses = [device.status for device in devices if device.status and device.status.task == name]
    newest = sum(status.release == current.release for status in statuses)
    without = sum(not status.release for status in statuses)
    return TaskReport(
        task=name,
        parameters=_parameters(artifacts, current),
        current=current.release,
        waiting=updates.waiting_summary(name)[0],
        releases=tuple(_release(row, local.get(row.number, (None, 0))) for row in history),
        served=served,
        devices_newest=newest,
        devices_older=len(statuses) - newest - without,
        devices_without=without,
    )


def _parameters(artifacts: ArtifactStore, manifest: Manifest) -> int:
    try:
        return decode_spec(artifacts.get(manifest.artifacts["spec"])).shared_size
    except (FileNotFoundError, DigestMismatchError):
        return 0  # all that the registry knows is to be seen yet


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
