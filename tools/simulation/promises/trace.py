"""What happened in a simulated fleet, in order, and which promises were broken. Pure."""

import hashlib
from collections import Counter

from tools.simulation.machines.timeline import Timeline
from tools.simulation.scenario.fleet_settings import Violation

__all__ = ["Trace"]


class Trace:
    """Takes note of everything; ``is_kept`` False: only of what was broken, and of the digest."""

    def __init__(self, timeline: Timeline, *, is_kept: bool) -> None:
        self.violations: list[Violation] = []
        self.lines: list[str] = []
        self.counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._timeline = timeline
        self._is_kept = is_kept

    def say(self, machine: str, what: str) -> None:
        line = f"{_clock(self._timeline.now)} {machine:>12}  {what}"
        self._digest.update(line.encode())
        if self._is_kept:
            self.lines.append(line)

    def broken(self, machine: str, what: str) -> None:
        self.say(machine, f"BROKEN: {what}")
        self.violations.append(Violation(self._timeline.now, machine, what))
        self._timeline.is_over = True  # what follows would only follow from this

    def digest(self) -> str:
        """Return a number for everything that happened, to compare two runs."""
        return self._digest.hexdigest()[:16]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:4d}:{minutes:02d}:{rest:06.3f}"
