"""How much to send: a number of bytes, an error, or what has proved good. Pure.

One Lagrangian governs all tensors and stages: the price of a bit is a fixed share of a squared
step, so the step alone decides, and finding the operating point is a search in one dimension. A
sender's deltas are alike: from the step of its last frame, 1 to 4 drafts do instead of 5 to 19.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from models.codec.transform.frame import PRICE, Draft, Preparation, draft_frame
from models.codec.transform.quantize import step_of

__all__ = ["Budget", "Framed", "frame_within"]

AUTO_NMSE = 0.3  # with the rest left to error feedback, learning loses about a point (bench codec)

_TRIALS = 7
_LAST_TRIALS = 5
_HALVINGS = 5
_FAR = 0.2  # in logarithms: a fifth of the budget unused, and the secant has not got there
_CLOSE = 0.03  # within three percent of the budget is near enough
_FIRST_STEP = 4.0  # times the root mean square
_STEPS = 2.0**-6, 2.0**9  # likewise: the range of the search
_HINTED_TRIALS = 4
_HINTED_REACH = 0.7  # in logarithms: how far one of them may move the step


class Budget(NamedTuple):
    """Exactly one may be given; neither means ``nmse=AUTO_NMSE``.

    ``bytes``: the payload is never longer. ``nmse``: squared error over squared length.
    """

    bytes: int | None = None
    nmse: float | None = None


class Framed(NamedTuple):
    """A frame, and the hint for this sender's next one."""

    frame: bytes
    step: float  # its own, corrected by what came out; in units of the delta's values


class _Hinted(NamedTuple):
    """With which miss a draft at a hinted step will do."""

    low: float
    middle: float
    high: float
    last: float  # in place of ``low`` after the last trial
    slope: float  # near such a step: where little is said, rows come and go, and it is steep


class _Aim(NamedTuple):
    """What a draft shall have. Its miss is the logarithm of what it has over the budget."""

    miss: Callable[[Draft], float]  # the budget is kept where it is not above zero
    slope: float  # of the miss over the logarithm of the step, until two trials tell
    hinted: _Hinted
    most: int | None = None  # bytes


def frame_within(delta: Preparation, budget: Budget, *, hint: float | None = None) -> Framed | None:
    """Return the frame with the least error within ``budget``; None: not even a step fits.

    ``hint``: the step that came with this sender's last frame. It is tried, then corrected by
    what came out. A frame that leaves no more than a quarter of the bytes (two fifths, after the
    last trial), or whose NMSE is within a tenth of the budget on either side, will do; only else
    the step is searched.

    Raises:
        ValueError: the budget or the hint makes no sense.
    """
    if budget.bytes is not None and budget.nmse is not None:
        raise ValueError("a budget of bytes or of error, not of both")
    if hint is not None and not 0 < hint < math.inf:
        raise ValueError(f"a hint of {hint}: a step is positive and finite")
    if delta.energy == 0:
        return None
    aim = _aim_at(budget)
    found = None if hint is None else _near(delta, aim, hint)
    if found is not None:
        return found
    step, draft = _search(delta, aim)
    if aim.most is not None:
        return _within_bytes(delta, aim, step, draft)
    return None if draft is None else _framed(draft, draft.finish(), aim)


def _aim_at(budget: Budget) -> _Aim:
    if (most := budget.bytes) is not None:
        hinted = _Hinted(math.log(0.75), math.log(0.9), 0.0, math.log(0.6), slope=-3.0)
        return _Aim(lambda draft: math.log(draft.bytes_expected / most), -1.5, hinted, most)
    wanted = AUTO_NMSE if budget.nmse is None else budget.nmse
    if not 0 < wanted <= 1:
        raise ValueError(f"an NMSE of {wanted}: it lies between 0 and 1")
    hinted = _Hinted(math.log(0.9), 0.0, math.log(1.1), math.log(0.9), slope=1.0)
    return _Aim(lambda draft: math.log(max(draft.error, 1e-12) / wanted), 1.0, hinted)


def _near(delta: Preparation, aim: _Aim, hint: float) -> Framed | None:
    """Return a frame at a step near ``hint``; None: none of those tried will do."""
    unit = _root_mean_square(delta)
    place = math.log(hint) - math.log(unit)
    lowest, highest = (math.log(end) for end in _STEPS)
    best: Draft | None = None
    draft, slope = None, aim.hinted.slope
    before: tuple[float, float] | None = None
    for trial in range(1, _HINTED_TRIALS + 1):
        place = min(max(place, lowest), highest)
        draft = draft_frame(delta, unit * math.exp(place), near=draft)
        missed = aim.miss(draft)
        if missed <= aim.hinted.high and (best is None or missed > aim.miss(best)):
            best = draft
        if best is not None:
            low = aim.hinted.low if trial < _HINTED_TRIALS else aim.hinted.last
            if aim.miss(best) >= low or place == lowest:
                frame = best.finish()
                if aim.most is None or len(frame) <= aim.most:
                    return _framed(best, frame, aim)
                best = None
        if before is not None and place != before[0]:
            found = (missed - before[1]) / (place - before[0])
            slope = found if found * slope > 0 else slope
        before = place, missed
        move = (aim.hinted.middle - missed) / slope
        place += min(max(move, -_HINTED_REACH), _HINTED_REACH)
    return None


def _framed(draft: Draft, frame: bytes, aim: _Aim) -> Framed:
    off = (aim.hinted.middle - aim.miss(draft)) / aim.hinted.slope
    off = min(max(off, -_HINTED_REACH), _HINTED_REACH)
    return Framed(frame, step_of(draft.code) * math.exp(off))


def _within_bytes(delta: Preparation, aim: _Aim, step: float, draft: Draft | None) -> Framed | None:
    assert aim.most is not None
    if draft is not None and aim.miss(draft) < -_CLOSE:
        draft = _fuller(delta, draft, step, aim)
    for _ in range(_LAST_TRIALS):  # the estimate is good to a few bytes
        if draft is None:
            return None
        frame = draft.finish()
        if len(frame) <= aim.most:
            return _framed(draft, frame, aim)
        step *= max(1.005, len(frame) / aim.most)
        draft = draft_frame(delta, step)
    return None


def _fuller(delta: Preparation, draft: Draft, step: float, aim: _Aim) -> Draft:
    """Return a draft of less error that still fits: where whole rows come and go with the step,
    other prices of a bit, at this step and finer ones, reach in between.
    """
    best = draft
    for finer in (1.0, 0.85):
        for price in (0.7, 1.4):
            other = draft_frame(delta, step * finer, PRICE * price)
            if aim.miss(other) <= 0 and other.error < best.error:
                best = other
    return best


def _search(delta: Preparation, aim: _Aim) -> tuple[float, Draft | None]:
    """Return the draft (and its step) whose miss is least below zero, or about that.

    The miss changes with the logarithm of the step; the search is a secant between the last
    draft that was good and the last that was not.
    """
    unit = _root_mean_square(delta)
    place = math.log(_FIRST_STEP)
    low, high = (math.log(end) for end in _STEPS)
    good: tuple[float, float, Draft] | None = None
    bad: tuple[float, float] | None = None
    draft = None
    for _ in range(_TRIALS):
        draft = draft_frame(delta, unit * math.exp(place), near=draft)
        missed = aim.miss(draft)
        if missed <= 0:
            good = (place, missed, draft)
            if missed >= -_CLOSE:
                break
        else:
            bad = (place, missed)
        if good is not None and bad is not None:
            share = (-_CLOSE / 2 - good[1]) / (bad[1] - good[1])
            following = good[0] + min(max(share, 0.1), 0.9) * (bad[0] - good[0])
        else:
            following = place + min(max((-_CLOSE / 2 - missed) / aim.slope, -2.0), 2.0)
        following = min(max(following, low), high)
        if abs(following - place) < 1e-3:
            break
        place = following
    for _ in range(_HALVINGS):  # a secant may hang on one end, as where nearly all is zero there
        if good is None or bad is None or good[1] >= -_FAR:
            break
        place = (good[0] + bad[0]) / 2
        draft = draft_frame(delta, unit * math.exp(place), near=draft)
        missed = aim.miss(draft)
        if missed <= 0:
            good = (place, missed, draft)
        else:
            bad = (place, missed)
    if good is None:
        return 0.0, None
    return unit * math.exp(good[0]), good[2]


def _root_mean_square(delta: Preparation) -> float:
    return math.sqrt(delta.energy / delta.size) * delta.unit
