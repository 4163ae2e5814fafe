"""What this device has spent on training, and what it may still spend: levels that survive.

They are facts of the outbox, written with each commit, with each training that begins (then with
what it will take, as far as is known: a board that loses its power in every training spends all the
same), once an hour, sooner after a start (a board that is never on for an hour refills all the
same), and at a stop. Only the monotonic clock counts: a board needs no other, and
while it is off nothing is refilled.
"""

import contextlib
from collections.abc import Callable

from edge_agent.spending.allowance import (
    HOUR_S,
    Allowance,
    DailyLimits,
    Resource,
    Spent,
    opened,
    refilled,
    short_of,
    spent,
)
from edge_agent.updates.outbox_facts import FactTable, Noted, OutboxFacts
from models.errors import TransientError

__all__ = ["SpendingBook", "as_noted"]

FIRST_NOTE_S = 450.0  # after a start; doubles, up to an hour


def as_noted(limits: DailyLimits, known: OutboxFacts) -> dict[Resource, Allowance]:
    """Return the buckets as they were written last."""
    return opened(
        limits,
        {
            "seconds": known.level_seconds,
            "bytes": known.level_bytes,
            "joules": known.level_joules,
        },
    )


class SpendingBook:
    """``traffic`` tells the bytes over the network, both ways, since the process began."""

    def __init__(self, limits: DailyLimits, facts: FactTable, traffic: Callable[[], int]) -> None:
        known = facts.read()
        self.limits = limits
        self._facts = facts
        self._traffic = traffic
        self._allowances = as_noted(limits, known)
        self._is_new = not any((known.level_seconds, known.level_bytes, known.level_joules))
        self._now: float | None = None  # when it was looked at last
        self._noted_at = 0.0
        self._note_after_s = FIRST_NOTE_S
        self._bytes = traffic()  # accounted for
        self._round_began: int | None = None  # bytes, when the last training did
        self._round_bytes = known.round_bytes
        self._ahead = Spent()  # accounted for before it was spent

    def look(self, now: float) -> tuple[str, float]:
        """Account for the time and the bytes since the last look; say what it is short of, and for
        how long: see `short_of`.

        Of a new device the first look is free: to have a release at all is not training.
        """
        total = self._traffic()
        if self._now is None:
            self._now = self._noted_at = now
            if self._is_new:
                self._bytes = total
        for resource, allowance in self._allowances.items():
            self._allowances[resource] = refilled(allowance, now - self._now)
        self._now = now
        self._spend(Spent(bytes=total - self._bytes))
        self._bytes = total
        if now >= self._noted_at + self._note_after_s:
            self._noted_at = now
            self._note_after_s = min(2 * self._note_after_s, HOUR_S)
            self.write()
        return short_of(self._allowances)

    def write(self) -> None:
        """Write the levels, if there are any and the disk takes them."""
        if self._allowances:
            with contextlib.suppress(TransientError):  # said by those who need the disk
                self._facts.note(**self.noted())

    def begins(self, expected: Spent) -> None:
        """Note that a training begins, which will take about ``expected``.

        Raises:
            TransientError: the disk is full or failing.
        """
        total = self._traffic()
        if self._round_began is not None:
            self._round_bytes = total - self._round_began
        self._round_began = total
        if self._allowances:
            self.ended(Spent())
            self._spend(expected)
            self._ahead = expected
            self._facts.note(**self.noted())

    def ended(self, found: Spent) -> None:
        """Note what the training that began last took; nothing: it did not begin."""
        self._spend(Spent(found.seconds - self._ahead.seconds, found.bytes - self._ahead.bytes))
        self._ahead = Spent()

    def noted(self) -> Noted:
        """Return the facts that must survive."""
        levels: Noted = {"round_bytes": float(self._round_bytes)}
        for resource, allowance in self._allowances.items():
            if resource == "seconds":
                levels["level_seconds"] = allowance.level
            elif resource == "bytes":
                levels["level_bytes"] = allowance.level
            else:
                levels["level_joules"] = allowance.level
        return levels

    def _spend(self, what: Spent) -> None:
        for resource, allowance in self._allowances.items():
            self._allowances[resource] = spent(allowance, what.of(resource, self.limits))
