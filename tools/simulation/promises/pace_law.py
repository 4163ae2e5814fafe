"""The law of the pace: nobody trains without a reason, nor sooner than its owner allows.

Kept apart from the product's own books: who folded what is known from the server's transactions,
when a training began from the timeline. What a device believes about either does not count.
"""

from collections import Counter

from edge_agent.training.training_job import Job
from tools.simulation.machines.device_machine import Beginning

__all__ = ["PaceLaw"]

SLACK_S = 1.0  # a machine acts on its next step


class PaceLaw:
    """What all devices of a fleet may train on, and when."""

    def __init__(self, *, min_s: float, min_new: int) -> None:
        self._min_s = min_s
        self._min_new = min_new
        self._folds: dict[int, Counter[str]] = {}  # by release: updates, by device
        self._refused: set[tuple[str, int]] = set()
        self._jobs: dict[tuple[str, int], tuple[Job, Beginning]] = {}
        self._last: dict[str, tuple[Job, Beginning]] = {}  # committed
        self._last_said: dict[str, Job] = {}  # likewise, and an update came of it
        self._owed: set[str] = set()  # devices of which one was refused since

    def settled(self, device: str, sequence: int, state: str, release: int) -> None:
        """An update was folded or refused, and that is committed."""
        if state == "folded":
            self._folds.setdefault(release, Counter())[device] += 1
        else:
            self._refused.add((device, sequence))
            self._owed.add(device)

    def folded_until(self, release: int) -> int:
        """Return how many updates are in ``release``, those of all before it included."""
        return sum(folds.total() for number, folds in self._folds.items() if number <= release)

    def learned(self, device: str, job: Job, beginning: Beginning) -> None:
        """A training was computed; whether it counts shows when it is committed."""
        self._jobs[device, job.number] = job, beginning

    def committed(self, device: str, number: int, *, is_said: bool) -> str:
        """Return which law the training that is committed now has broken; "": none.

        ``is_said``: whether an update came of it. With a memory one that is unanswered lets no
        other be made; what is trained meanwhile is for the device alone.
        """
        known = self._jobs.pop((device, number), None)
        if known is None:
            return ""
        job, last, said = known[0], self._last.get(device), self._last_said.get(device)
        self._last[device] = known
        before = said if job.sends else last[0] if last else None
        broken = self._reason(device, before, job) if before and last else ""
        if is_said:
            self._last_said[device] = job
            self._owed.discard(device)
        return broken or (self._distance(*known, last[1]) if last else "")

    def _reason(self, device: str, last: Job, job: Job) -> str:
        if job.until - last.until >= self._min_new:
            return ""
        if any((device, number) in self._refused for number in job.refund_numbers):
            return ""
        if job.how.feedback != "residual" and device in self._owed:
            return ""
        between = [n for n in self._folds if last.release < n <= job.release]
        own = 1 if job.sends else 0  # alone, it follows its own share too
        if sum(self._folds[n].total() - own * self._folds[n][device] for n in between):
            return ""
        return (
            f"job {job.number} trains on release {job.release} without a reason: since "
            f"{last.release} nobody else has changed it, and {job.until - last.until} samples came"
        )

    def _distance(self, job: Job, beginning: Beginning, before: Beginning) -> str:
        passed_s = beginning.at_s - before.at_s
        if passed_s > self._min_s - SLACK_S:
            return ""
        if beginning.life != before.life and beginning.skew_s != before.skew_s:
            return ""  # a new process knows the time of the last training by a clock that jumped
        return f"job {job.number} begins {passed_s:.0f} s after the last training"
