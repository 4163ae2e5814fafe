"""GD-SEC's threshold where its step is too long for what it leaves out: halved, and back. Pure.

kappa is in units of the step size, whose bound nobody knows (`LearningPlan`): far above it the
iteration diverges. So a fold whose loss is clearly above the one before halves the threshold of the
next release, and after many good ones it doubles, up to what the operator wants. What is kept is a
share of that: who changes the setting changes the threshold at once.
"""

from typing import NamedTuple

__all__ = ["Guard", "guarded"]

WORSE = 1.05  # times the last loss
GOOD_FOLDS = 20  # in a row
LEAST = 2.0**-10  # of the operator's threshold: all is sent long before, and there is a way back


class Guard(NamedTuple):
    """What is known after a fold."""

    share: float = 1.0  # of the operator's threshold that holds in the next release
    loss: float | None = None  # of the last fold; None: there was none
    good: int = 0  # folds since the share changed


def guarded(guard: Guard, loss: float | None) -> Guard:
    """Return what is known after a fold whose ``loss`` is this; None: nobody measured it."""
    if loss is None:
        return guard
    if guard.loss is not None and not loss <= WORSE * guard.loss:
        return Guard(max(guard.share / 2, LEAST), loss)
    good = guard.good + 1
    if good < GOOD_FOLDS:
        return Guard(guard.share, loss, good)
    return Guard(min(2 * guard.share, 1.0), loss)
