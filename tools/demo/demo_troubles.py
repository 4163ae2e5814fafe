"""What goes wrong on purpose in a demo: a line that is cut, a process that is killed."""

import time
from abc import ABC, abstractmethod

from models.protocol.update_life import ReceiptState
from tools.demo.demo_picture import TroubleMark
from tools.demo.demo_view import View
from tools.local_fleet.fleet_facts import counted, listed
from tools.local_fleet.fleet_processes import PORTION, Device
from tools.local_fleet.fleet_watch import Watch

__all__ = ["Killed", "OffLine", "Trouble"]

OFF_LINE_S = 6.0  # at least
OFF_LINE_MOST_S = 40.0
DEAD_S = 2.0


class Trouble(ABC):
    """Something that goes wrong on purpose with one device, once."""

    what = ""  # in few words

    def __init__(self, device: Device, watch: Watch, view: View, *, at: int, last: int) -> None:
        """Begin at release ``at``; ``last`` is the one after which nobody trains any more."""
        self.device = device
        self._watch = watch
        self._view = view
        self._at = at
        self._last = last
        self._since = 0.0  # 0: not begun
        self._made_before = 0
        self._made_after = 0
        self._steps = 0  # that the device had made, of all trainings
        self._trained = 0  # times
        self._mark: TroubleMark | None = None
        self.over = False

    @property
    def mark(self) -> TroubleMark | None:
        """When it was; None before it began."""
        return self._mark

    def tick(self, newest: int, runs: int) -> None:
        """Begin, go on or end; ``runs`` is the release that the device runs, 0 for none."""
        if self.over:
            return
        if self._since:
            self._go_on(newest, time.monotonic() - self._since)
            if self.over and self._mark is not None:
                self._mark = self._mark._replace(until=time.time())
        elif newest >= self._at and self._can_begin(runs) and self._begin(newest):
            self._since = time.monotonic()
            self._mark = TroubleMark(self.device.id, self.what, time.time(), 0.0)

    def _can_begin(self, runs: int) -> bool:
        """Whether the device has a release, and nothing else is done to it."""
        return runs > 0 and not self.device.what_we_did

    @abstractmethod
    def _begin(self, newest: int) -> bool:
        """Return whether the moment was right and it has begun."""

    @abstractmethod
    def _go_on(self, newest: int, elapsed_s: float) -> None:
        """Look whether it is time for it to end, and end it."""

    @abstractmethod
    def conclude(self) -> None:
        """Tell what became of the work that was in danger."""


class OffLine(Trouble):
    """The line of a device is cut; it goes on learning, and sends what it learned afterwards."""

    what = "line cut"

    def _begin(self, newest: int) -> bool:
        facts = self._watch.facts(self.device)
        self._made_before = self._made_after = facts.made
        self._steps, self._trained = facts.steps_ever, 0
        self.device.relay.cut()
        self.device.what_we_did = "off line"
        if self._made_before:  # else it has not trained yet, and will without more
            self.device.deliver(PORTION)
        self._view.tell(f"{self.device.id}: line cut", "red")
        return True

    def _go_on(self, newest: int, elapsed_s: float) -> None:
        facts = self._watch.facts(self.device)
        if facts.steps_ever > self._steps:
            # With a memory a training makes no update while the last one waits for its answer.
            self._trained += max(1, facts.made - self._made_after)
            self._made_after, self._steps = facts.made, facts.steps_ever
            if newest + 1 < self._last:
                self.device.deliver(PORTION)  # something new to learn, and nobody to tell
        is_enough = self._trained or newest >= self._last  # then it hears that it need not learn
        if (is_enough and elapsed_s >= OFF_LINE_S) or elapsed_s >= OFF_LINE_MOST_S:
            self.device.relay.restore()
            self.device.what_we_did = ""
            self._view.tell(
                f"{self.device.id}: line restored after {elapsed_s:.1f} s; "
                f"it trained {counted(self._trained, 'time')} meanwhile",
                "red",
            )
            self.over = True

    def conclude(self) -> None:
        fates = self._watch.fates(self.device, self._made_before + 1, self._made_after)
        folded = [fate for fate in fates if fate.state is ReceiptState.FOLDED]
        into = [str(release) for release in sorted({fate.release for fate in folded})]
        made = self._made_after - self._made_before
        if not made:
            return  # it said so when the line came back
        if folded:
            fate = f"{'was' if made == 1 else 'were'} folded, into release {listed(into)}"
            text = f"{len(folded)} of {counted(made, 'update')} made off line {fate}"
        else:
            text = f"{counted(made, 'update')} made off line, waiting for the next release"
        self._view.tell(f"{self.device.id}: {text}", "green")


class Killed(Trouble):
    """An agent is killed in the middle of a training, and started again."""

    what = "SIGKILL"

    def _begin(self, newest: int) -> bool:
        trains = self.device.trainer() is not None
        if not trains and newest < self._last:
            return False  # a better moment will come
        self._made_before = self._made_after = self._watch.made(self.device)
        pid = self.device.pid
        self.device.what_we_did = "killed"
        self.device.kill()
        self._view.tell(
            f"{self.device.id}: SIGKILL to process {pid}{' while it trains' if trains else ''}",
            "red",
        )
        return True

    def _go_on(self, newest: int, elapsed_s: float) -> None:
        if elapsed_s < DEAD_S:
            return
        self.device.start()
        self.device.what_we_did = ""
        self._view.tell(f"{self.device.id}: started again as process {self.device.pid}", "red")
        self.over = True

    def conclude(self) -> None:
        made = self._watch.made(self.device)
        folded = [
            sum(
                fate.state is ReceiptState.FOLDED
                for fate in self._watch.fates(self.device, first, last)
            )
            for first, last in ((1, self._made_before), (self._made_before + 1, made))
        ]
        after = f", and {folded[1]} of {made - self._made_before} from after it"
        self._view.tell(
            f"{self.device.id}: {folded[0]} of {counted(self._made_before, 'update')} from before "
            f"the kill {'was' if self._made_before == 1 else 'were'} folded"
            + (after if made > self._made_before else ""),
            "green",
        )
