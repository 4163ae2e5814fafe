"""The fleet and its releases as tables for a terminal: rich where it is installed, else plain."""

import sys
from collections.abc import Sequence

from broker.fleet_report import DeviceReport, FleetReport, ReleaseReport, TaskReport
from models.payload.messages import Status

__all__ = ["duration_text", "show_releases", "show_status", "size_text"]

DEVICE_COLUMNS = (
    "device",
    "online",
    "release",
    "accuracy",
    "made",
    "folded",
    "refused",
    "waiting",
    "received",
    "problem",
)
RELEASE_COLUMNS = ("release", "made", "updates", "devices", "accuracy", "local", "up", "down")


def show_status(report: FleetReport, now: float) -> None:
    """Print the fleet: one line per task, then one row per device."""
    for task in report.tasks:
        print(_headline(task))
    if not report.devices:
        print("No device has been heard of yet.")
        return
    rows = [_device_row(device, now) for device in report.devices]
    _table(f"fleet {report.fleet}", DEVICE_COLUMNS, rows)
    if report.updates_folded_twice:
        print(f"WARNING: {report.updates_folded_twice} updates were folded twice; please report it")


def show_releases(task: TaskReport, now: float) -> None:
    """Print the releases of one task, oldest first."""
    rows = [_release_row(release, now) for release in task.releases]
    _table(f"task {task.task}", RELEASE_COLUMNS, rows)


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""


def duration_text(seconds: float) -> str:
    """Return a duration as people read it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _headline(task: TaskReport) -> str:
    newest = task.releases[-1]
    accuracy = "" if newest.accuracy is None else f", accuracy {newest.accuracy:.4f}"
    state = "" if newest.training_open else ", training closed"
    return f"{task.task}: release {task.current}{accuracy}{state}, {task.waiting} updates waiting"


def _device_row(device: DeviceReport, now: float) -> tuple[str, ...]:
    status = device.status or Status(online=False)
    if device.online:
        online = "yes"
    else:
        online = f"no, {duration_text(now - device.seen)}" if device.seen else "never"
    return (
        device.device,
        online,
        str(status.release or "-"),
        _share(status.accuracy),
        str(status.updates_made),
        str(device.updates_folded),
        str(device.updates_refused),
        str(status.updates_waiting),
        size_text(device.bytes_received),
        "two boards have this identity" if device.is_double else _one_line(status.problem, 40),
    )


def _release_row(release: ReleaseReport, now: float) -> tuple[str, ...]:
    return (
        str(release.number),
        f"{duration_text(now - release.created)} ago",
        str(release.updates),
        str(release.devices),
        _share(release.accuracy) if release.accuracy is not None else _number(release.metric),
        _share(release.local_accuracy),
        size_text(release.bytes_up),
        size_text(release.bytes_down),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _one_line(text: str, width: int) -> str:
    """Return text from a device so that it cannot play with the terminal."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= width else clean[: width - 1] + "…"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not sys.stdout.isatty():  # one line per row, however narrow
        _plain_table(columns, rows)
        return
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _plain_table(columns, rows)
        return
    table = Table(
        title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True
    )
    for column in columns:
        is_text = column in ("device", "online", "problem")
        table.add_column(
            column, justify="left" if is_text else "right", no_wrap=column != "problem"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
