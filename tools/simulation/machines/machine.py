"""One machine of a simulated fleet: boots, runs, crashes at any operation, comes back."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from models.errors import TransientError
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_disk import Crash, VirtualDisk
from tools.simulation.machines.virtual_network import Line, VirtualBroker, VirtualLink

__all__ = ["EPOCH", "Clock", "Machine", "Observer", "Place"]

EPOCH = 2_000_000_000.0  # Unix seconds at the start, by a right clock: May 2033
RESTART_S = 10.0  # systemd's pause before it starts a service again
NEVER_S = 20 * 86400.0  # who sleeps for so long waits for an event


class Observer(Protocol):
    """Whoever watches a fleet for broken promises."""

    def say(self, machine: str, what: str) -> None:
        """Note an event for the trace."""

    def broken(self, machine: str, what: str) -> None:
        """Note a broken invariant."""

    def looked_at(self, machine: "Machine") -> None:
        """A machine has made a step, or has started."""


class Clock:
    """A board's two clocks: one counts from its boot, the other tells a date, if a wrong one."""

    def __init__(self, timeline: Timeline) -> None:
        self.skew_s = 0.0  # of the wall clock
        self._timeline = timeline
        self._booted_at = 0.0

    def boot(self, ago_s: float) -> None:
        """The board started ``ago_s`` before now."""
        self._booted_at = self._timeline.now - ago_s

    def monotonic(self) -> float:
        return self._timeline.now - self._booted_at

    def wall(self) -> float:
        return EPOCH + self._timeline.now + self.skew_s


class Place(NamedTuple):
    """Where a machine stands: what it has, and who is around it."""

    name: str
    timeline: Timeline
    disk: VirtualDisk
    line: Line
    network: VirtualBroker
    observer: Observer
    mean_down_s: float  # after a crash
    pause_s: float = 0.0  # what comes within it is handled together


class Machine(ABC):
    """A board or server with its disk, clock and line; one process of ours runs on it."""

    def __init__(self, place: Place) -> None:
        self.name, self.timeline = place.name, place.timeline
        self.disk, self.line = place.disk, place.line
        self.observer = place.observer
        self.place = place
        self.rng = self.timeline.generator(f"machine/{self.name}")
        self.clock = Clock(self.timeline)
        self.is_running = False
        self.is_down_until = 0.0
        self.crashes = 0
        self.link: VirtualLink | None = None
        self._fuse: tuple[int, bool] | None = None  # operations left, power cut
        self._wake_at = -1.0
        self._life = 0  # the number of the process
        self.disk.before_io = self.before_io
        self.disk.fault_rng = self.timeline.generator(f"disk/{self.name}")

    # -- what the world does to it

    def boot(self) -> None:
        """Start the process; if that fails for a disk in trouble, try again, as systemd does."""
        if self.is_running or self.timeline.now < self.is_down_until:
            return
        self._life += 1
        self.clock.boot(self.rng.uniform(5, 60))
        try:
            self._build()
        except Crash:
            self._come_back()
            return
        except (OSError, TransientError) as error:
            if self.disk_is_fine and not self.disk_was_bad:
                self.observer.broken(self.name, f"does not start: {error}")
            self._abandon()
            self.timeline.after(RESTART_S, self.boot)
            return
        except Exception as error:
            self.observer.broken(self.name, f"does not start: {error}")
            raise
        self.is_running = True
        self.observer.say(self.name, "boots")
        self.observer.looked_at(self)
        self.wake()

    def crash_soon(self, *, power_cut: bool) -> None:
        """Crash at one of the next operations on disk or network."""
        if self.is_running and self._fuse is None:
            self._fuse = (self.rng.randrange(1, 60), power_cut)

    def stop_now(self) -> None:
        """Kill the process; it stays down until `boot`."""
        self._fuse = None
        self.disk.reboot(self.rng, power_cut=False)
        self._abandon()

    def stay_down_until(self, moment: float) -> None:
        self.is_down_until = max(self.is_down_until, moment)

    @property
    def disk_is_fine(self) -> bool:
        return self.disk.faults.are_none

    @property
    def disk_was_bad(self) -> bool:
        """Whether the process may still believe that its disk is in trouble."""
        return self.timeline.now < self.disk.faults.ended_s + 60.0

    def inside(self, what: str) -> str:
        """Return ``what`` without the directory that the simulation lies in."""
        return what.replace(f"{self.disk.at}/", "")

    def wake(self) -> None:
        """There is something to do."""
        self._wake_by(self.timeline.now + self.place.pause_s)

    def wake_now(self) -> None:
        """There is something to do that others wait for."""
        self._wake_by(self.timeline.now)

    # -- how it runs

    def _wake_by(self, moment: float) -> None:
        if not self.is_running:  # `boot` does it
            return
        if self._wake_at >= 0 and self._wake_at <= moment:
            return
        self._wake_at = moment
        if moment - self.timeline.now > NEVER_S:
            return
        life = self._life
        self.timeline.at(moment, lambda: self._step(moment, life))

    def _step(self, moment: float, life: int) -> None:
        if life != self._life or not self.is_running or moment != self._wake_at:
            return
        self._wake_at = -1.0
        try:
            delay_s = self._run_once()
        except Crash:
            self._come_back()
            return
        except Exception as error:  # whatever it is, the real process would have died of it
            self.observer.broken(self.name, f"{type(error).__name__}: {error}")
            raise
        self.observer.looked_at(self)
        self._wake_by(self.timeline.now + max(delay_s, 0.001))

    def _come_back(self) -> None:
        """After a crash: reboot the disk, and start again some time later."""
        power_cut = self._fuse is not None and self._fuse[1]
        self._fuse = None
        self.crashes += 1
        self.disk.reboot(self.rng, power_cut=power_cut)
        self._abandon()
        self.observer.looked_at(self)
        down_s = self.rng.expovariate(1 / self.place.mean_down_s)
        start = max(self.timeline.now + down_s, self.is_down_until)
        self.timeline.at(start, self.boot)

    def _abandon(self) -> None:
        self.is_running = False
        self._life += 1
        self._wake_at = -1.0
        if self.link is not None:
            self.link.vanish()
            self.link = None

    def before_io(self, what: str) -> None:
        """Something is about to be done to the disk or the network: here a crash may come."""
        if self._fuse is None:
            return
        left, power_cut = self._fuse
        if left > 0:
            self._fuse = (left - 1, power_cut)
            return
        self.disk.dead = True
        self.observer.say(
            self.name, f"{'power cut' if power_cut else 'killed'} before: {self.inside(what)}"
        )
        raise Crash

    @abstractmethod
    def _build(self) -> None:
        """Start the process: put the parts together, connect."""

    @abstractmethod
    def _run_once(self) -> float:
        """Pass on what has come, let the time pass; return the seconds until the next time."""
