"""Which machines of a simulated fleet have a network when, and for how long they had one."""

from tools.simulation.happenings import Happenings
from tools.simulation.machines.machine import Machine, Observer
from tools.simulation.scenario.fleet_settings import Settings

__all__ = ["Connectivity"]


class Connectivity:
    """Lets devices come and go; every change of a line's state goes through it."""

    def __init__(self, happenings: Happenings, observer: Observer, settings: Settings) -> None:
        self._happenings = happenings
        self._observer = observer
        self._share = settings.online
        self._stays_s = settings.session_s
        self._up_since: dict[str, float] = {}  # by name
        self._online_s: dict[str, float] = {}  # likewise, until the line was last cut

    def begin(self, device: Machine) -> None:
        """From now on ``device`` has a network for its share of the time."""
        self._up_since[device.name] = self._happenings.timeline.now
        if self._share >= 1:
            return
        device.line.up = False
        is_online = self._happenings.rng.random() < self._share
        (self._come if is_online else self._go)(device)

    def set_line(self, machine: Machine, *, up: bool) -> None:
        now, line, name = self._happenings.timeline.now, machine.line, machine.name
        if up and not line.up:
            self._up_since[name] = now
        elif line.up and not up:
            self._online_s[name] = self.online_s(machine)
        line.up = up
        self._observer.say(name, "line up" if up else "line down")
        if machine.link is not None:
            machine.link.line_is_up() if up else machine.link.cut()

    def online_s(self, machine: Machine) -> float:
        """Return for how long ``machine`` has had a network so far."""
        past_s = self._online_s.get(machine.name, 0.0)
        if not machine.line.up:
            return past_s
        now = self._happenings.timeline.now
        return past_s + (now - self._up_since.get(machine.name, now))

    def _come(self, device: Machine) -> None:
        self.set_line(device, up=True)
        self._happenings.after(self._stays_s, lambda: self._go(device))

    def _go(self, device: Machine) -> None:
        self.set_line(device, up=False)
        gap_s = self._stays_s * (1 - self._share) / max(self._share, 1e-6)
        self._happenings.after(gap_s, lambda: self._come(device))
