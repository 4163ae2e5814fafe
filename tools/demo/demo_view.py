"""What a person sees of a running demo: a live picture on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tools.demo.demo_layout import Event, device_lines, event_lines, lay_out, release_lines
from tools.local_fleet.fleet_facts import (
    FleetView,
    ReleaseView,
    counted,
    kilobytes,
    minutes,
    percent,
)

__all__ = ["View"]

REFRESH_HZ = 4
FETCH_SAID_S = 5.0  # between two lines about a transfer that takes long


class View:
    """Shows a fleet and tells its story. ``quiet`` shows nothing; ``last`` is the last release."""

    def __init__(self, console: Console, *, quiet: bool = False, last: int = 0) -> None:
        self._console = console
        self._quiet = quiet
        self._last = last
        self._live: Live | None = None
        self._begin = time.monotonic()
        self._events: list[Event] = []
        self._printed = 0  # events that are on the terminal to stay
        self._fleet = FleetView((), ())
        self._fetch_said_at = 0.0  # 0: nobody fetches

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Keep the picture alive within; outside of it, lines are printed as they come.

        However it ends, the whole story stays on the terminal afterwards.
        """
        if self._quiet or not self._console.is_terminal:
            yield
            return
        try:
            with Live(
                console=self._console,
                refresh_per_second=REFRESH_HZ,
                get_renderable=self._picture,
                transient=True,  # the story takes its place
            ) as self._live:
                yield
        finally:
            self._live = None
            self._print_events()

    def tell(self, text: str, style: str = "", *, in_table: bool = False) -> None:
        """Add one line to the story."""
        self._events.append(Event(self.elapsed_s, text, style, in_table))
        if self._live is None:
            self._print_events()

    def show(self, fleet: FleetView) -> None:
        """Update the picture, and tell of every release that is new."""
        known = {release.number for release in self._fleet.releases}
        for release in fleet.releases:
            if release.number not in known:
                self.tell(_announcement(release), "green", in_table=True)
        before = {device.id: device.problem for device in self._fleet.devices}
        for device in fleet.devices:
            if device.problem and device.problem != before.get(device.id):
                self.tell(f"{device.id} says: {device.problem}", "yellow")
        self._fleet = fleet
        if self._live is None:
            self._say_transfers(fleet)

    def summary(self, fleet: FleetView) -> None:
        """Print both tables."""
        if self._quiet:
            return
        width = self._console.width
        self._print(
            [
                *device_lines(fleet.devices, width=width),
                Text(),
                *release_lines(fleet.releases, width=width),
            ]
        )

    def last_words(self, why: str) -> None:
        """Say how far it had come when it was ended early."""
        if self._quiet:
            return
        newest = self._fleet.releases[-1] if self._fleet.releases else None
        self._print(device_lines(self._fleet.devices, width=self._console.width))
        got = (
            f"release {newest.number} of {self._last}, accuracy {percent(newest.accuracy)}"
            if newest
            else "no release yet"
        )
        self._console.print(
            f"\n{why} after {minutes(self.elapsed_s)} min: {got}. The processes of the fleet are "
            "ended now; no report was written.",
            soft_wrap=not self._console.is_terminal,
        )

    def _say_transfers(self, fleet: FleetView) -> None:
        """Without a live picture: every few seconds, who has fetched how much."""
        fetching = [device for device in fleet.devices if device.fetching]
        now = time.monotonic()
        if not fetching:
            self._fetch_said_at = 0.0
        elif not self._fetch_said_at:
            self._fetch_said_at = now  # most transfers are over before anybody wonders
        elif now - self._fetch_said_at >= FETCH_SAID_S:
            self._fetch_said_at = now
            newest = fleet.releases[-1].number if fleet.releases else 0
            shares = [
                f"{device.id} {kilobytes(done)} of {kilobytes(whole)}"
                for device in fetching[:4]
                for done, whole in [device.fetching or (0, 0)]
            ]
            if others := len(fetching) - len(shares):
                shares.append(f"and {counted(others, 'more device')}")
            self.tell(f"fetching release {newest}: {', '.join(shares)}", in_table=True)

    def _picture(self) -> Group:
        size = self._console.size
        return Group(
            *lay_out(
                self._fleet,
                self._events[self._printed :],
                width=size.width,
                height=size.height - 1,  # of the last line the cursor needs the end
                now_s=self.elapsed_s,
                last=self._last,
            )
        )

    def _print_events(self) -> None:
        fresh, self._printed = self._events[self._printed :], len(self._events)
        if self._quiet:
            return
        # Elsewhere than on a terminal, one event is one line however long.
        width = self._console.width if self._console.is_terminal else 10_000
        self._print([line for event in fresh for line in event_lines(event, width=width)])

    def _print(self, lines: list[Text]) -> None:
        for line in lines:
            self._console.print(line, soft_wrap=True)


def _announcement(release: ReleaseView) -> str:
    text = f"release {release.number}: accuracy {percent(release.accuracy)}"
    if release.updates:
        text += (
            f" from {counted(release.updates, 'update')} of "
            f"{kilobytes(release.payload_bytes / release.updates)} "
            f"(float32: {kilobytes(release.dense_bytes / release.updates)})"
        )
    return text + f"; {kilobytes(release.bytes_down)} to fetch"
