"""How much to send: a number of bytes, an error, or what has proved good. Pure.

One Lagrangian governs all tensors and stages: the price of a bit is a fixed share of a squared
step, so the step alone decides, and finding the operating point is a search in one dimension.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from models.codec.transform.frame import PRICE, Draft, Preparation, draft_frame

__all__ = ["Budget", "frame_within"]

AUTO_NMSE = 0.3  # with the rest left to error feedback, learning loses about a point (bench codec)

_TRIALS = 7
_LAST_TRIALS = 5
_HALVINGS = 5
_FAR = 0.2  # in logarithms: a fifth of the budget unused, and the secant has not got there
_CLOSE = 0.03  # within three percent of the budget is near enough
_BYTES_SLOPE = -1.5  # of log bytes over log step, until two trials tell
_ERROR_SLOPE = 1.0  # likewise of log NMSE
_FIRST_STEP = 4.0  # times the root mean square
_STEPS = 2.0**-6, 2.0**9  # likewise: the range of the search


class Budget(NamedTuple):
    """Exactly one may be given; neither means ``nmse=AUTO_NMSE``.

    ``bytes``: the payload is never longer. ``nmse``: squared error over squared length.
    """

    bytes: int | None = None
    nmse: float | None = None


def frame_within(delta: Preparation, budget: Budget) -> bytes | None:
    """Return the frame with the least error within ``budget``; None: not even a step fits.

    Raises:
        ValueError: the budget makes no sense.
    """
    if budget.bytes is not None and budget.nmse is not None:
        raise ValueError("a budget of bytes or of error, not of both")
    if delta.energy == 0:
        return None
    if budget.bytes is not None:
        return _within_bytes(delta, budget.bytes)
    wanted = AUTO_NMSE if budget.nmse is None else budget.nmse
    if not 0 < wanted <= 1:
        raise ValueError(f"an NMSE of {wanted}: it lies between 0 and 1")
    return _within_error(delta, wanted)


def _within_bytes(delta: Preparation, most: int) -> bytes | None:
    def miss(draft: Draft) -> float:
        return math.log(draft.bytes_expected / most)

    step, draft = _search(delta, miss, slope=_BYTES_SLOPE, close=_CLOSE)
    if draft is not None and miss(draft) < -_CLOSE:
        draft = _fuller(delta, draft, step, miss)
    for _ in range(_LAST_TRIALS):  # the estimate is good to a few bytes
        if draft is None:
            return None
        frame = draft.finish()
        if len(frame) <= most:
            return frame
        step *= max(1.005, len(frame) / most)
        draft = draft_frame(delta, step)
    return None


def _within_error(delta: Preparation, most: float) -> bytes | None:
    def miss(draft: Draft) -> float:
        return math.log(max(draft.error, 1e-12) / most)

    _, draft = _search(delta, miss, slope=_ERROR_SLOPE, close=_CLOSE)
    return None if draft is None else draft.finish()


def _fuller(delta: Preparation, draft: Draft, step: float, miss: Callable[[Draft], float]) -> Draft:
    """Return a draft of less error that still fits: where whole rows come and go with the step,
    other prices of a bit, at this step and finer ones, reach in between.
    """
    best = draft
    for finer in (1.0, 0.85):
        for price in (0.7, 1.4):
            other = draft_frame(delta, step * finer, PRICE * price)
            if miss(other) <= 0 and other.error < best.error:
                best = other
    return best


def _search(
    delta: Preparation, miss: Callable[[Draft], float], *, slope: float, close: float
) -> tuple[float, Draft | None]:
    """Return the draft (and its step) whose ``miss`` is least below zero, or about that.

    ``miss`` changes with the logarithm of the step, about by ``slope``; the search is a secant
    between the last draft that was good and the last that was not.
    """
    unit = math.sqrt(delta.energy / delta.size) * delta.unit
    place = math.log(_FIRST_STEP)
    low, high = (math.log(end) for end in _STEPS)
    good: tuple[float, float, Draft] | None = None
    bad: tuple[float, float] | None = None
    draft = None
    for _ in range(_TRIALS):
        draft = draft_frame(delta, unit * math.exp(place), near=draft)
        missed = miss(draft)
        if missed <= 0:
            good = (place, missed, draft)
            if missed >= -close:
                break
        else:
            bad = (place, missed)
        aim = -close / 2 - missed
        if good is not None and bad is not None:
            share = (-close / 2 - good[1]) / (bad[1] - good[1])
            following = good[0] + min(max(share, 0.1), 0.9) * (bad[0] - good[0])
        else:
            following = place + min(max(aim / slope, -2.0), 2.0)
        following = min(max(following, low), high)
        if abs(following - place) < 1e-3:
            break
        place = following
    for _ in range(_HALVINGS):  # a secant may hang on one end, as where nearly all is zero there
        if good is None or bad is None or good[1] >= -_FAR:
            break
        place = (good[0] + bad[0]) / 2
        draft = draft_frame(delta, unit * math.exp(place), near=draft)
        missed = miss(draft)
        if missed <= 0:
            good = (place, missed, draft)
        else:
            bad = (place, missed)
    if good is None:
        return 0.0, None
    return unit * math.exp(good[0]), good[2]
