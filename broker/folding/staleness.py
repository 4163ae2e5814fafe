"""Weight of an update by its age in releases: the forms that an operator can choose. Pure.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv:1903.03934, section 5.2, where
s(t - tau) is constant, polynomial or a hinge, with their parameters as defaults. Ours, and the
default, is exponential: one number with a unit describes it.
"""

from collections.abc import Callable

from broker.config import FoldPolicy

__all__ = ["FORMS", "damping"]

LEAST = 5e-324  # the smallest positive number: 0 would discard work without saying so


def damping(age: int, policy: FoldPolicy) -> float:
    """Return the factor in (0, 1] by which an update computed ``age`` releases ago counts.

    Raises:
        ValueError: an age below 0.
    """
    if age < 0:
        raise ValueError(f"age {age}")
    return max(FORMS[policy.staleness](age, policy), LEAST)


def half_life(age: int, policy: FoldPolicy) -> float:
    """Return ``0.5 ** (age / half_life)``."""
    return float(0.5 ** (age / policy.half_life))


def polynomial(age: int, policy: FoldPolicy) -> float:
    """Return ``(1 + age) ** -exponent``; with 0.5 as in FedBuff, arXiv:2106.06639."""
    return float((1 + age) ** -policy.staleness_exponent)


def hinge(age: int, policy: FoldPolicy) -> float:
    """Return 1 up to the age ``after``, and ``1 / (slope * (age - after) + 1)`` beyond it."""
    late = max(0, age - policy.staleness_after)
    return 1.0 / (policy.staleness_slope * late + 1.0)


def constant(age: int, policy: FoldPolicy) -> float:
    """Return 1: old or new, an update is an update."""
    return 1.0


FORMS: dict[str, Callable[[int, FoldPolicy], float]] = {
    "half_life": half_life,
    "polynomial": polynomial,
    "hinge": hinge,
    "constant": constant,
}
