"""What a person sees of a running demo: a live picture on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["DeviceView", "FleetView", "ReleaseView", "View", "kilobytes", "percent"]

EVENTS = 12  # lines of what happened under the tables
REFRESH_HZ = 4


class DeviceView(NamedTuple):
    """One device, as it stands now."""

    id: str
    state: str  # the agent's word for what it does, or what we did to it
    release: int
    samples: int
    accuracy_first: float | None  # on its own hold-out, of the first release that it installed
    accuracy: float | None  # likewise, of the one installed now
    made: int
    folded: int
    refused: int
    waiting: int
    bytes_up: int
    bytes_down: int


class ReleaseView(NamedTuple):
    """One release, as the server's registry has it."""

    number: int
    accuracy: float | None  # on the held-out data of the task
    updates: int  # folded into it
    payload_bytes: int  # of these updates
    dense_bytes: int  # of the same deltas in float32
    bytes_down: int  # what one device fetches for it


class FleetView(NamedTuple):
    """All of it."""

    devices: tuple[DeviceView, ...]
    releases: tuple[ReleaseView, ...]


class View:
    """Shows a fleet and tells its story. ``quiet`` shows nothing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        self._begin = time.monotonic()
        self._events: list[Text] = []
        self._shown_from = 0  # what came before is on the terminal already
        self._fleet = FleetView((), ())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Keep the picture alive within; outside of it, lines are printed as they come."""
        if self._quiet or not self._console.is_terminal:
            yield
            return
        begin = self._shown_from = len(self._events)
        with Live(
            console=self._console,
            refresh_per_second=REFRESH_HZ,
            get_renderable=self._picture,
            transient=True,  # the whole story is printed afterwards
        ) as self._live:
            try:
                yield
            finally:
                self._live = None
        for event in self._events[begin:]:
            self._console.print(event, soft_wrap=True)

    def tell(self, text: str, style: str = "") -> None:
        """Add one line to the story."""
        line = Text.assemble((f"{time.monotonic() - self._begin:6.1f} s  ", "dim"), (text, style))
        self._events.append(line)
        if not self._quiet and self._live is None:
            self._console.print(line, soft_wrap=True)

    def show(self, fleet: FleetView) -> None:
        """Update the picture, and tell of every release that is new."""
        known = {release.number for release in self._fleet.releases}
        for release in fleet.releases:
            if release.number not in known:
                self.tell(_announcement(release), "green")
        self._fleet = fleet

    def _picture(self) -> Group:
        return Group(
            device_table(self._fleet.devices),
            release_table(self._fleet.releases),
            *self._events[self._shown_from :][-EVENTS:],
        )

    def summary(self, fleet: FleetView) -> None:
        """Print both tables."""
        if not self._quiet:
            self._console.print(device_table(fleet.devices))
            self._console.print(release_table(fleet.releases))


def _announcement(release: ReleaseView) -> str:
    text = f"release {release.number}: accuracy {percent(release.accuracy)}"
    if release.updates:
        text += (
            f" from {release.updates} update{'s' if release.updates > 1 else ''} of "
            f"{kilobytes(release.payload_bytes / release.updates)} "
            f"(float32: {kilobytes(release.dense_bytes / release.updates)})"
        )
    return text + f"; {kilobytes(release.bytes_down)} to fetch"


def device_table(devices: tuple[DeviceView, ...]) -> Table:
    table = _table("devices")
    for name in ("device", "state", "release", "samples", "accuracy", "folded", "up", "down"):
        left = name in ("device", "state")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for device in devices:
        table.add_row(
            device.id,
            Text(device.state, _STYLES.get(device.state, "")),
            str(device.release or "-"),
            str(device.samples),
            f"{percent(device.accuracy_first).removesuffix(' %')} -> {percent(device.accuracy)}",
            f"{device.folded} of {device.made}",
            kilobytes(device.bytes_up),
            kilobytes(device.bytes_down),
        )
    return table


_STYLES = {"off line": "red", "killed": "bold red", "training": "yellow", "downloading": "cyan"}


def release_table(releases: tuple[ReleaseView, ...]) -> Table:
    table = _table("releases")
    for name in ("release", "accuracy", "updates", "up", "dense float32", "for a device to fetch"):
        table.add_column(name, justify="right")
    for release in releases:
        table.add_row(
            str(release.number),
            percent(release.accuracy),
            str(release.updates),
            kilobytes(release.payload_bytes),
            kilobytes(release.dense_bytes),
            kilobytes(release.bytes_down),
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
        box=None,
    )


def percent(share: float | None) -> str:
    """Return ``share`` for people: one decimal, a dash when it is not known."""
    return "-" if share is None else f"{100 * share:.1f} %"


def kilobytes(count: float) -> str:
    """Return ``count`` bytes for people, in units of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
