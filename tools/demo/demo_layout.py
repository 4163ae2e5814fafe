"""What of a running demo fits on the screen: fleet, events and size in, lines out. Pure.

The newest events and every device's name stay visible down to small terminals; columns go before
rows do, and old releases before new ones.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from tools.local_fleet.fleet_facts import (
    DeviceView,
    FleetView,
    ReleaseView,
    counted,
    kilobytes,
    minutes,
    percent,
)

__all__ = ["Event", "device_lines", "event_lines", "lay_out", "release_lines"]

EVENTS = 6  # lines that are kept for the newest ones
RELEASES = 5  # the last ones, where not all fit
MOST_EVENTS = 12  # before older releases are worth more
INDENT = 9  # where the second line of an event begins, under its first word
STYLES = {"off line": "red", "killed": "bold red", "training": "yellow", "fetching": "cyan"}


class Event(NamedTuple):
    """Something that happened."""

    at_s: float
    text: str
    style: str = ""
    in_table: bool = False  # the table of releases says it too


class _Column(NamedTuple):
    name: str
    worth: int  # the least goes first
    least: int = 0  # characters, so that columns do not jump as states change
    left: bool = False


def lay_out(
    fleet: FleetView,
    events: Sequence[Event],
    *,
    width: int,
    height: int,
    now_s: float = 0.0,
    last: int = 0,
) -> list[Text]:
    """Return at most ``height`` lines of at most ``width`` columns; ``last`` is the last release.

    Newest events are at the end. What the table of releases says is not said again as an event.
    """
    told = [
        line for event in events if not event.in_table for line in event_lines(event, width=width)
    ]
    headline = _cut(Text(_headline(fleet, now_s, last), "bold"), width)
    room = height - 1
    # By worth: some events, a device or more, the last releases, then more of each.
    kept = min(len(told), EVENTS, max(1, room // 3))
    room -= kept
    rows = 0
    if room >= 2 and fleet.devices:
        spare = min(len(fleet.releases), RELEASES) + 1 if fleet.releases and room >= 6 else 0
        rows = min(len(fleet.devices), max(1, room - 1 - spare))
        room -= rows + 1
    shown = 0
    if room >= 2 and fleet.releases:
        shown = min(len(fleet.releases), RELEASES, room - 1)
        room -= shown + 1
    gaps = min(2, room) if room > 2 else 0
    room -= gaps
    more = max(0, min(room, min(len(told), MOST_EVENTS) - kept))
    kept, room = kept + more, room - more
    more = max(0, min(room, len(fleet.releases) - shown)) if shown else 0
    shown, room = shown + more, room - more
    kept = min(len(told), kept + room)

    lines = [headline]
    if rows:
        lines += device_lines(fleet.devices, width=width, rows=rows)
    if shown:
        lines += [Text()] if gaps else []
        lines += release_lines(fleet.releases, width=width, rows=shown)
    lines += [Text()] if gaps == 2 else []
    return (lines + told[len(told) - kept :])[:height]


def event_lines(event: Event, *, width: int) -> list[Text]:
    """Return the line of an event, wrapped at words with its time in front."""
    room = max(10, width - INDENT)
    words = event.text.split()
    rows = [""]
    for word in words:
        if rows[-1] and len(rows[-1]) + 1 + len(word) > room:
            rows.append(word)
        else:
            rows[-1] = f"{rows[-1]} {word}".strip()
    time = f"{event.at_s:5.1f} s  "
    return [
        _cut(Text.assemble((time if not row else " " * INDENT, "dim"), (text, event.style)), width)
        for row, text in enumerate(rows)
    ]


def device_lines(
    devices: Sequence[DeviceView], *, width: int, rows: int | None = None
) -> list[Text]:
    """Return a table of at most ``rows`` lines and its head; who is in trouble is in it."""
    columns = (
        _Column("device", 9, left=True),
        _Column("state", 8, 13, left=True),
        _Column("release", 6),
        _Column("samples", 1),
        _Column("accuracy", 7, 14),
        _Column("folded", 5, 8),
        _Column("up", 4, 8),
        _Column("down", 3, 8),
    )
    shown = _chosen(devices, len(devices) if rows is None else rows)
    cells = [
        {
            "device": device.id,
            "state": state_of(device),
            "release": str(device.release or "-"),
            "samples": str(device.samples),
            "accuracy": _course(device),
            "folded": f"{device.folded} of {device.made}",
            "up": kilobytes(device.bytes_up),
            "down": kilobytes(device.bytes_down),
        }
        for device in shown
    ]
    styles = [STYLES.get("fetching" if device.fetching else device.state, "") for device in shown]
    lines = _table(columns, cells, width=width, styled="state", styles=styles)
    if missing := [device for device in devices if device not in shown]:
        states = Counter(device.state or "starting" for device in missing)
        words = ", ".join(f"{count} {state}" for state, count in states.most_common())
        lines.append(_cut(Text(f"… and {counted(len(missing), 'more device')}: {words}"), width))
    return lines


def release_lines(
    releases: Sequence[ReleaseView], *, width: int, rows: int | None = None
) -> list[Text]:
    """Return a table of the last ``rows`` releases, with its head."""
    columns = (
        _Column("release", 9),
        _Column("accuracy", 8),
        _Column("updates", 6),
        _Column("up", 7),
        _Column("as float32", 5),
        _Column("for a device to fetch", 4),
    )
    shown = releases if rows is None else releases[max(0, len(releases) - rows) :]
    cells = [
        {
            "release": str(release.number),
            "accuracy": percent(release.accuracy),
            "updates": str(release.updates),
            "up": kilobytes(release.payload_bytes),
            "as float32": kilobytes(release.dense_bytes),
            "for a device to fetch": kilobytes(release.bytes_down),
        }
        for release in shown
    ]
    return _table(columns, cells, width=width)


def state_of(device: DeviceView) -> str:
    """Return what a device does, in few words; of a transfer, how far it is."""
    if device.fetching is None:
        return device.state
    done, whole = device.fetching
    return f"fetching {min(99, 100 * done // max(1, whole))} %"


def _headline(fleet: FleetView, now_s: float, last: int) -> str:
    if not fleet.releases:
        return f"{minutes(now_s)}  no release yet"
    newest = fleet.releases[-1]
    of = f" of {last}" if last else ""
    return f"{minutes(now_s)}  release {newest.number}{of}, accuracy {percent(newest.accuracy)}"


def _course(device: DeviceView) -> str:
    if device.accuracy is None:
        return percent(None)
    first = percent(device.accuracy_first).removesuffix(" %")
    return f"{first} -> {percent(device.accuracy)}"


def _chosen(devices: Sequence[DeviceView], rows: int) -> list[DeviceView]:
    """Return ``rows`` devices (one fewer, where a line must speak of the rest), in their order."""
    if len(devices) <= rows:
        return list(devices)
    order = sorted(
        range(len(devices)), key=lambda n: (devices[n].state not in ("off line", "killed"), n)
    )
    return [devices[n] for n in sorted(order[: max(0, rows - 1)])]


def _table(
    columns: Sequence[_Column],
    cells: Sequence[dict[str, str]],
    *,
    width: int,
    styled: str = "",
    styles: Sequence[str] = (),
) -> list[Text]:
    """Return head and rows; the columns of least worth go until the rest fits."""
    widths = {
        c.name: max(len(c.name), c.least, *(len(row[c.name]) for row in cells)) for c in columns
    }
    first = columns[0].name
    kept = list(columns)

    def needed() -> int:
        return sum(widths[column.name] + 2 for column in kept) - 2

    while needed() > width and len(kept) > 4:
        kept.remove(min(kept, key=lambda column: column.worth))
    if needed() > width:  # the first column holds names, whose ends tell them apart
        widths[first] = max(8, widths[first] - (needed() - width))
    lines = [Text("  ".join(_padded(c.name, widths[c.name], c) for c in kept), "bold")]
    for number, row in enumerate(cells):
        line = Text()
        for place, column in enumerate(kept):
            text = _padded(
                _tail(row[column.name], widths[column.name]), widths[column.name], column
            )
            style = styles[number] if column.name == styled and styles else ""
            line.append(("  " if place else "") + text, style)
        lines.append(line)
    return [_cut(line, width) for line in lines]


def _padded(text: str, width: int, column: _Column) -> str:
    return text.ljust(width) if column.left else text.rjust(width)


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line
