"""What a device may spend on training in a day, as buckets that fill while time passes. Pure.

A training may begin while no bucket is below zero, and is not cut off when one gets there: what it
takes too much is made up by waiting. What is not used is kept for at most a day. So within any time
from the first start on no more is spent than the time's allowance and one training.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = [
    "DAY_S",
    "HOUR_S",
    "RESOURCES",
    "Allowance",
    "DailyLimits",
    "Resource",
    "Spent",
    "left",
    "opened",
    "refilled",
    "short_of",
    "spent",
    "wait_s",
]

DAY_S = 86_400.0
HOUR_S = 3600.0
Resource = Literal["seconds", "bytes", "joules"]
RESOURCES: tuple[Resource, ...] = ("seconds", "bytes", "joules")


class DailyLimits(NamedTuple):
    """What the owner allows in a day; 0: no limit."""

    seconds: float = 0.0  # of training
    bytes: float = 0.0  # over the network, both ways
    joules: float = 0.0
    watts: float = 2.0  # that training takes
    joules_per_byte: float = 0.0

    def of(self, resource: Resource) -> float:
        return {"seconds": self.seconds, "bytes": self.bytes, "joules": self.joules}[resource]


class Spent(NamedTuple):
    """What was spent on something."""

    seconds: float = 0.0
    bytes: float = 0.0

    def of(self, resource: Resource, limits: DailyLimits) -> float:
        """Return how much of ``resource`` that is."""
        if resource == "joules":
            return limits.watts * self.seconds + limits.joules_per_byte * self.bytes
        return self.seconds if resource == "seconds" else self.bytes


class Allowance(NamedTuple):
    """One bucket."""

    level: float  # what may be spent now; below zero: what was spent too much
    capacity: float  # one day's worth

    @property
    def per_second(self) -> float:
        return self.capacity / DAY_S


def opened(
    limits: DailyLimits, levels: Mapping[Resource, float | None]
) -> dict[Resource, Allowance]:
    """Return a bucket for each limited resource, at ``levels``; None: empty, as a new one is."""
    return {
        resource: Allowance(min(levels[resource] or 0.0, limits.of(resource)), limits.of(resource))
        for resource in RESOURCES
        if limits.of(resource) > 0
    }


def refilled(allowance: Allowance, seconds: float) -> Allowance:
    """Return it after ``seconds`` >= 0."""
    level = allowance.level + max(seconds, 0.0) * allowance.per_second
    return allowance._replace(level=min(level, allowance.capacity))


def spent(allowance: Allowance, amount: float) -> Allowance:
    """Return it after ``amount`` was spent, whether it was there or not."""
    return allowance._replace(level=allowance.level - amount)


def wait_s(allowance: Allowance) -> float:
    """Return the seconds until a training may begin; 0: now."""
    return max(0.0, -allowance.level / allowance.per_second)


def short_of(allowances: Mapping[Resource, Allowance]) -> tuple[str, float]:
    """Return as a sentence what is used up, and for how many seconds; ("", 0): nothing.

    Of several the one that takes longest.
    """
    if not allowances:
        return "", 0.0
    resource = max(allowances, key=lambda name: wait_s(allowances[name]))
    seconds = wait_s(allowances[resource])
    if not seconds:
        return "", 0.0
    return (
        f"today's {_amount(resource, allowances[resource].capacity)} are used up; about "
        f"{_duration(seconds)} until the next training",
        seconds,
    )


def left(allowances: Mapping[Resource, Allowance]) -> str:
    """Return what may still be spent of each, for people; "": there is no limit."""
    return ", ".join(
        f"{_number(resource, max(allowance.level, 0.0))} of {_amount(resource, allowance.capacity)}"
        for resource, allowance in allowances.items()
    )


def _number(resource: Resource, amount: float) -> str:
    return _amount(resource, amount).partition(" ")[0]


def _amount(resource: Resource, amount: float) -> str:
    if resource == "bytes":
        return f"{amount / 1e6:.1f} MB"
    return f"{amount / 60:.3g} minutes" if resource == "seconds" else f"{amount:.4g} J"


def _duration(seconds: float) -> str:
    if seconds < HOUR_S:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / HOUR_S:.0f} h"
