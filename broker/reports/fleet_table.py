"""The fleet and its releases for people: how it stands in a few lines, then one row per device."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence

from broker.reports.device_report import DeviceReport
from broker.reports.fleet_report import FleetReport, FleetSummary, ServerReport
from broker.reports.learning_report import learning_line
from broker.reports.task_report import ReleaseReport, TaskReport
from broker.reports.text_table import bytes_text, one_line, table_lines
from models.protocol.messages import Status

__all__ = ["ONLY", "SORTED_BY", "duration_text", "show_releases", "show_status"]

DEVICE_COLUMNS = (
    "device",
    "online",
    "heard",
    "release",
    "version",
    "samples",
    "trained",
    "accuracy",
    "made",
    "folded",
    "refused",
    "waiting",
    "received",
    "problem",
)
DISPENSABLE = (  # the first goes first where a terminal is too narrow
    "received",
    "made",
    "refused",
    "folded",
    "waiting",
    "version",
    "accuracy",
    "trained",
    "samples",
)
RELEASE_COLUMNS = (
    "release",
    "made",
    "updates",
    "devices",
    "accuracy",
    "of p",
    "local",
    "step",
    "age",
    "up",
    "down",
)
SELDOM = ("of p", "step", "age")  # left out where no release has any
PRESENCE = {
    "online": "yes",
    "unconfirmed": "says yes",
    "silent": "silent",
    "away": "no",
    "never": "never",
}
ONLY: dict[str, Callable[[DeviceReport], bool]] = {  # what ``status --only`` takes
    "problems": lambda device: bool(device.problems),
    "silent": lambda device: device.presence == "silent",
    "away": lambda device: device.presence in ("away", "never"),
    "online": lambda device: device.is_there,
    "old": lambda device: not device.is_newest,
}
SORTED_BY: dict[str, Callable[[DeviceReport], object]] = {  # what ``status --sort`` takes
    "device": lambda device: 0,  # as they come
    "heard": lambda device: -device.heard,
    "release": lambda device: device.status.release if device.status else -1,
    "samples": lambda device: -(device.status.samples if device.status else -1),
    "trained": lambda device: -device.last_update,
    "problem": lambda device: not device.problems,
    "version": lambda device: device.status.version if device.status else "",
}


def show_status(
    report: FleetReport,
    now: float,
    *,
    only: Sequence[str] = (),
    sort: str = "device",
    width: int | None = None,
) -> None:
    """Print the server, the fleet and its tasks in a line each, then one row per device.

    ``only``: devices of which all of these hold, see `ONLY`; ``sort``: see `SORTED_BY`. ``width``
    of the terminal; None: nothing is cut.
    """
    for line in _server_lines(report.server, now):
        print(line)
    print(_fleet_line(report))
    for task in report.tasks:
        print(_headline(task, now))
        if task.devices_unable:
            print(_unable_line(task))
        if line := learning_line(task.learning, is_share=task.releases[-1].accuracy is not None):
            print(line)
    for line in _unserved_lines(report):
        print(line)
    if report.updates_folded_twice:
        print(f"WARNING: {report.updates_folded_twice} updates were folded twice; please report it")
    if not report.devices:
        print("No device has been heard of yet.")
        return
    devices = [device for device in report.devices if all(ONLY[name](device) for name in only)]
    if not devices:
        print(f"No device is left by --only {' --only '.join(only)}.")
        return
    devices.sort(key=SORTED_BY[sort])  # type: ignore[arg-type]
    print()
    if report.as_of < now - 1.0:
        print(f"As of {_moment(report.as_of, now)}:")
    rows = [_device_row(device, now) for device in devices]
    for line in table_lines(
        DEVICE_COLUMNS,
        rows,
        width=width,
        dispensable=DISPENSABLE,
        left=("device", "online", "version", "problem"),
    ):
        print(line)


def terminal_width() -> int | None:
    """Return the characters of a line of the terminal that we print on; None: it is none."""
    return shutil.get_terminal_size().columns if os.isatty(sys.stdout.fileno()) else None


def show_releases(task: TaskReport, now: float) -> None:
    """Print the releases of one task, oldest first."""
    whole = [_release_row(release, now) for release in task.releases]
    shown = [
        number
        for number, name in enumerate(RELEASE_COLUMNS)
        if name not in SELDOM or any(row[number] != "-" for row in whole)
    ]
    rows = [tuple(row[number] for number in shown) for row in whole]
    if sys.stdout.isatty():
        print(f"task {task.task}")
    names = [RELEASE_COLUMNS[number] for number in shown]
    columns = [_measure(task) if name == "accuracy" else name for name in names]
    for line in table_lines(columns, rows):
        print(line)


def duration_text(seconds: float) -> str:
    """Return a duration as people read it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _server_lines(server: ServerReport, now: float) -> list[str]:
    if not server.running:
        seen = f"last seen {_moment(server.seen, now)}" if server.seen else "never seen"
        return [f"the server is not running ({seen}): start it with systemctl start edge-broker"]
    if not server.seen:
        return ["the server is running, and has not said how it is"]
    runs = f"the server runs, since {duration_text(now - server.started)}"
    about = f", version {server.version}" if server.version else ""
    if server.stands_by:
        lines = [f"{runs}: {one_line(server.stands_by)}"]
    elif server.connected:
        lines = [f"{runs}, connected since {duration_text(now - server.since)}{about}"]
    else:
        lines = [
            f"{runs}, but has not been connected to the MQTT broker for "
            f"{duration_text(now - server.since)}: {one_line(server.reason)}"
        ]
    if server.problem:
        lines.append(f"the server has a problem: {one_line(server.problem)}")
    return lines


def _fleet_line(report: FleetReport) -> str:
    summary: FleetSummary = report.summary
    parts = [f"{summary.online} online"]
    parts += [
        f"{count} {what}"
        for count, what in (
            (summary.unconfirmed, "unconfirmed"),
            (summary.silent, "silent"),
            (summary.away, "away"),
            (summary.never, "that said nothing yet"),
        )
        if count
    ]
    parts += [f"{summary.newest} on the newest release", f"{summary.problems} with a problem"]
    if summary.quiet_day:
        parts.append(f"{summary.quiet_day} not heard for a day")
    return f"fleet {report.fleet}: {_counted(summary.devices, 'device')}: {', '.join(parts)}"


def _headline(task: TaskReport, now: float) -> str:
    newest = task.releases[-1]
    accuracy = "" if newest.accuracy is None else f", {_measure(task)} {newest.accuracy:.4f}"
    state = "" if newest.training_open else ", training closed"
    served = "" if task.served else ", not served any more"
    devices = f"{_counted(task.devices_newest, 'device')} on it, {task.devices_older} on others"
    if task.devices_without:
        devices += f", {task.devices_without} without any"
    return (
        f"{task.task}: release {task.current} of {duration_text(now - newest.created)} ago"
        f"{accuracy}{state}{served}, {_counted(task.waiting, 'update')} waiting; {devices}"
    )


def _unable_line(task: TaskReport) -> str:
    versions = " or ".join(one_line(version) or "?" for version in task.versions_unable[:5])
    is_one = task.devices_unable == 1
    return (
        f"{task.task}: {_counted(task.devices_unable, 'device')} {'runs' if is_one else 'run'} "
        f"{versions}, which cannot follow this release: update {'it' if is_one else 'them'}"
    )


def _measure(task: TaskReport) -> str:
    """Return what the server's accuracy is of: it knows no device's own tensors."""
    return "accuracy (without personal parts)" if task.personal else "accuracy"


def _unserved_lines(report: FleetReport) -> list[str]:
    lines = []
    for task in report.unserved:
        names = ", ".join(task.devices[:5])
        if len(task.devices) > 5:
            names += f" and {len(task.devices) - 5} more"
        ask = "asks" if len(task.devices) == 1 else "ask"
        lines.append(
            f"{names} {ask} for task {one_line(task.task)}, which is not served here "
            f"(served: {', '.join(report.server.tasks) or 'none'})"
        )
    return lines


def _device_row(device: DeviceReport, now: float) -> tuple[str, ...]:
    status = device.status or Status(online=False)
    problems = list(device.problems)
    if device.presence == "silent":
        since = f"for {duration_text(now - device.heard)}" if device.heard else "since the start"
        problems.insert(0, f"says online, not heard {since}")
    if device.is_being_forgotten:
        problems.insert(0, "is forgotten as soon as the server runs")
    return (
        device.device,
        PRESENCE[device.presence],
        _ago(device.heard, now),
        str(status.release or "-"),
        one_line(status.version) or "-",
        str(status.samples) if device.status else "-",
        _ago(device.last_update, now),
        _share(status.accuracy),
        str(status.updates_made),
        str(device.updates_folded),
        str(device.updates_refused),
        str(status.updates_waiting),
        bytes_text(device.bytes_received),
        one_line("; ".join(problems)),
    )


def _ago(moment: float, now: float) -> str:
    return duration_text(now - moment) if moment else "-"


def _moment(moment: float, now: float) -> str:
    """Return a time of day, with its date if that is another."""
    there, here = time.localtime(moment), time.localtime(now)
    is_today = there[:3] == here[:3]
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", there)


def _release_row(release: ReleaseReport, now: float) -> tuple[str, ...]:
    return (
        str(release.number),
        f"{duration_text(now - release.created)} ago",
        str(release.updates),
        str(release.devices),
        _metric(release, release.metric),
        _metric(release, release.metric_trained),
        _share(release.local_accuracy),
        _number(release.step),
        "-" if release.age is None else f"{release.age:.1f}",
        bytes_text(release.bytes_up),
        bytes_text(release.bytes_down),
    )


def _metric(release: ReleaseReport, value: float | None) -> str:
    return _share(value) if release.accuracy is not None else _number(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
