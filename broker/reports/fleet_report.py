"""What the registry says about the fleet: read-only, beside a running server.

``read_report(directory)`` is what ``edgefold-broker status --json`` prints, and what programs use.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from broker.devices.remarks import Task
from broker.lease.server_state import ServerState, is_running, read_state
from broker.records.device_records import DeviceRecords, DeviceRow
from broker.records.registry import Registry, open_to_read
from broker.records.release_records import ReleaseRecords
from broker.records.update_records import UpdateRecords
from broker.reports.device_report import DeviceReport, View, device_report, in_counting_order
from broker.reports.learning_report import learning_report
from broker.reports.task_report import TaskReport, task_report
from broker.state.artifact_store import ARTIFACTS, ArtifactStore
from models.errors import CommandLineError
from models.host.sentences import unusable

__all__ = ["FleetReport", "FleetSummary", "ServerReport", "UnservedTask", "read_report"]

SERVER_STUCK_S = 1800.0  # it writes every ten minutes where it can


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
            CommandLineError: there is none of that name.
        """
        for task in self.tasks:
            if task.task == name:
                return task
        known = ", ".join(task.task for task in self.tasks) or "none"
        raise CommandLineError(f"no task {name!r} here, only: {known}")


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
        raise unusable(directory, error) from None


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
    view = View(
        as_of=_as_of(server, rows, now),
        listening_since=(state.listening_since if state else 0.0) or None,
        served=server.tasks,
        tasks={
            name: Task(
                history[-1].number,
                frozenset(row.number for row in history),
                history[-1].manifest.needs,
            )
            for name, history in histories.items()
        },
        settled=updates.settled.settled_counts(),
        stored=updates.waiting_counts(),
        last=updates.headers.last_received(),
        leaving=frozenset(known.to_be_forgotten()),
    )
    devices = tuple(device_report(row, view) for row in rows)
    folded = sum(folded for folded, _ in view.settled.values())
    return FleetReport(
        fleet=registry.fleet,
        server=server,
        as_of=view.as_of,
        summary=_summary(devices, now),
        unserved=_unserved(devices, server.tasks),
        tasks=tuple(
            task_report(
                name,
                history,
                devices,
                updates,
                artifacts,
                learning_report(registry, name, history[-1], now),
                served=name in server.tasks,
            )
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
