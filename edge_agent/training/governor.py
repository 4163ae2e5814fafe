"""Whether to train now: by what there is to learn, and by what the board can bear. Pure."""

from typing import Literal, NamedTuple

__all__ = [
    "COOL_BY",
    "MARGIN",
    "NOTHING_NEW",
    "USED_UP",
    "Situation",
    "TrainingLimits",
    "Verdict",
    "Vitals",
    "strain",
    "wish",
]

NOTHING_NEW = "nothing new to learn"
USED_UP = "today's budget is used up"
COOL_BY = 10.0  # degrees below the limit before a hot board trains again
MARGIN = 1.2  # times the memory that the last training took must be free for another


class Vitals(NamedTuple):
    """How the board is; None where it cannot tell."""

    celsius: float | None
    throttled: bool  # under-voltage or thermal throttling, now
    free_mb: float  # memory that programs can have without swapping
    load: float  # runnable processes per core, mean of a minute
    rss_mb: float  # of the resident agent
    peak_rss_mb: float


class TrainingLimits(NamedTuple):
    """What the owner allows (``[training]`` in agent.toml)."""

    enabled: bool
    min_samples: int
    min_new_samples: int
    max_celsius: float
    min_free_mb: float
    max_load: float


class Situation(NamedTuple):
    """What there is to learn."""

    release: int  # installed, 0 for none
    is_open: bool  # whether the server wants training on it
    repeats: bool  # also on samples that were trained on before
    is_changed: bool  # by others, or in what the server asks, since it was trained on
    samples: int  # to train on
    new_samples: int  # not yet trained on
    is_owed: bool  # whether the server refused what it has learned, since it trained
    holdout: int
    trained_release: int  # the last one that was trained on
    evaluated_release: int  # the last one that was measured on the hold-out
    has_room: bool  # the outbox takes another update
    rest_s: float  # until the pace allows another training
    short_of: str = ""  # what it has used up, as a sentence (`edge_agent.spending`); "": nothing
    short_s: float = 0.0  # for so long
    alone_owed: int = 0  # steps that a model of this device alone is behind, if one is wanted


class Verdict(NamedTuple):
    """What to do, and for people why."""

    do: Literal["train", "evaluate", "alone", "wait"]
    reason: str
    state: str = ""  # while it waits, for the status; "": nothing special
    again_in_s: float | None = None  # when the answer changes by itself; None: it does not


def wish(now: Situation, limits: TrainingLimits) -> Verdict:
    """Say what there is to do, whatever the board's condition."""
    if now.release == 0:
        return Verdict("wait", "no release installed yet")
    unmeasured = now.holdout > 0 and now.evaluated_release != now.release and not now.short_of
    state, again_in_s = "", None
    if not limits.enabled:
        reason = "training is switched off on this device"
    elif not now.is_open:
        reason = f"release {now.release} is not open for training"
    elif now.samples < limits.min_samples:
        reason = f"{now.samples} samples, training needs {limits.min_samples}"
    elif not now.has_room:
        reason = "the server has not answered for the updates it has"
    elif nothing_new := _nothing_new(now, limits):
        reason, state = nothing_new, NOTHING_NEW
    elif now.short_of and now.short_s >= now.rest_s:
        reason, state, again_in_s = now.short_of, USED_UP, now.short_s
    elif now.rest_s > 0:
        reason, again_in_s = f"trains again in {now.rest_s / 60:.0f} minutes", now.rest_s
    else:
        return Verdict("train", f"release {now.release}, {now.samples} samples")
    # Training measures the release as well; where there is none, it is measured by itself.
    if unmeasured:
        return Verdict("evaluate", reason, state, again_in_s)
    may = limits.enabled and not now.short_of and now.holdout > 0 and now.samples > 0
    if may and now.alone_owed > 0:
        return Verdict("alone", f"{now.alone_owed} steps on this device's data alone")
    return Verdict("wait", reason, state, again_in_s)


def _nothing_new(now: Situation, limits: TrainingLimits) -> str:
    """Return why another training would teach the fleet nothing; "": it may."""
    if now.trained_release == 0 or now.new_samples >= limits.min_new_samples or now.is_owed:
        return ""
    if now.is_changed and now.repeats:
        return ""
    since = f"{now.new_samples} new samples since the last training, {limits.min_new_samples} count"
    if not now.is_changed:
        return f"nobody else has changed release {now.trained_release}; {since}"
    return f"the releases no longer gain; {since}"


def strain(
    vitals: Vitals, limits: TrainingLimits, *, was_hot: bool, took_mb: float = 0.0
) -> tuple[str, bool]:
    """Return why the board cannot bear a training now ("" if it can), and whether it is hot.

    ``was_hot`` is the answer of the last time: a hot board must cool down by `COOL_BY`.
    ``took_mb``: the most memory that the last training took; 0: not known. A ``min_free_mb`` of 0
    leaves memory out.
    """
    if vitals.celsius is not None:
        limit = limits.max_celsius - (COOL_BY if was_hot else 0)
        if vitals.celsius >= limit:
            return f"{vitals.celsius:.0f} °C, training waits for less than {limit:.0f}", True
    if vitals.throttled:
        return "the board is throttled: check its power supply and cooling", False
    if vitals.free_mb < limits.min_free_mb:
        return f"{vitals.free_mb:.0f} MB of memory free, training needs {limits.min_free_mb}", False
    if limits.min_free_mb and vitals.free_mb < (needed := MARGIN * took_mb):
        return (
            f"{vitals.free_mb:.0f} MB of memory free, training needs {needed:.0f}: the last one "
            f"took {took_mb:.0f}; lower training.max_batch"
        ), False
    if vitals.load > limits.max_load:
        return f"load {vitals.load:.1f} per core, the limit is {limits.max_load:.1f}", False
    return "", False
