"""GD-SEC's threshold where its step is too long for what it leaves out: halved, and back. Pure.

kappa is in units of the step size, whose bound nobody knows (`LearningPlan`): far above it the
iteration diverges. So a fold whose loss is clearly above the one before halves the threshold of the
next release, and after many good ones it doubles, up to what the operator wants.
"""

from typing import NamedTuple

__all__ = ["Guard", "guarded"]

WORSE = 1.05  # times the last loss
GOOD_FOLDS = 20  # in a row


class Guard(NamedTuple):
    """What is known after a fold."""

    threshold: float  # kappa of the next release
    loss: float | None = None  # of the last fold; None: there was none
    good: int = 0  # folds since the threshold changed


def guarded(guard: Guard, loss: float | None, *, most: float) -> Guard:
    """Return what is known after a fold whose ``loss`` is this; None: nobody measured it.

    ``most``: the operator's threshold, which may have changed since.
    """
    threshold = min(guard.threshold, most)
    if loss is None:
        return guard._replace(threshold=threshold)
    if guard.loss is not None and not loss <= WORSE * guard.loss:
        return Guard(threshold / 2, loss)
    good = guard.good + 1
    if good < GOOD_FOLDS:
        return Guard(threshold, loss, good)
    return Guard(min(2 * threshold, most), loss)
