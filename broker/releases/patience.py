"""Whom a release asks to train: everybody, or only devices with new samples. Pure.

While releases get better, everybody is asked to train on each new one. A round that brought no
gain costs the whole fleet energy and bytes for nothing, so the next one waits, twice as long each
time, and after ``patience`` of them there is none: then only who has new samples trains. What
begins it anew is a release of these few that is better than any before, or clearly worse, which
all together can mend; many new samples; and a release whose parameters devices run, after one of
which they ran the average: its score is no worse than others, it is of something else.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LOOK_BACK", "NEW_SHARE", "Measured", "next_round_at", "score_of"]

LOOK_BACK = 200  # releases that are looked at
FIRST_PAUSE = 4.0
LOSS = 2.0  # gains: a release that few devices made and that is so much worse begins it anew
NEW_SHARE = 0.5  # of all samples: so many new ones begin it anew
NEVER = math.inf


class Measured(NamedTuple):
    """A release, as far as this decision needs to know it."""

    score: float | None  # larger is better; None: not measured (yet)
    is_folded: bool  # from updates; else it has the weights of the one before
    asks_everybody: bool
    samples: int  # that the fleet had reported when it was made
    created: float  # seconds
    is_average: bool = False  # the score is of the average; the first of these is its parameters


def score_of(metric: str, value: float) -> float:
    """Return ``value`` of ``metric`` as a score: larger is better, and a difference is a gain.

    An accuracy is its own score. Of an error or a loss a gain is relative: minus its logarithm.
    """
    if not math.isfinite(value):
        return -math.inf
    return value if metric == "accuracy" else -math.log(max(value, 1e-30))


def next_round_at(
    releases: Sequence[Measured], *, patience: int, min_gain: float, pause_s: float
) -> float:
    """Return when everybody is asked to train again, in the seconds of ``created``.

    ``releases`` are all until now, oldest first; the last one may be what is about to be made, and
    its own ``asks_everybody`` does not count. A moment in the past, such as -inf, is now; `NEVER`
    is after ``patience`` rounds in a row without a gain of ``min_gain`` (0: any number). The pause
    after the first of them is `FIRST_PAUSE` times ``pause_s``, and doubles.
    """
    if not patience:
        return -math.inf
    best, fruitless, samples, ended = -math.inf, 0, 0, -math.inf
    was_round = was_average = False
    for release in releases:
        has_more = fruitless and release.samples > (1 + NEW_SHARE) * samples
        if has_more or (was_average and not release.is_average):
            best, fruitless = -math.inf, 0
        was_average = release.is_average
        samples = min(samples, release.samples)  # devices with theirs may be forgotten
        if release.score is not None:
            is_worse = fruitless and not was_round and release.score < best - LOSS * min_gain
            if is_worse or release.score >= best + min_gain:
                best, fruitless = release.score, 0
            elif release.is_folded and was_round:
                fruitless, ended = fruitless + 1, release.created
                samples = release.samples if fruitless == 1 else samples
        was_round = release.asks_everybody
    if not fruitless:
        return -math.inf
    return (
        NEVER if fruitless >= patience else ended + FIRST_PAUSE * pause_s * 2.0 ** (fruitless - 1)
    )
