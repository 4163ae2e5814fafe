"""Which model a device runs: the release, or what it tuned itself. Pure, and without numpy.

Both are scored on the same samples of the device's own hold-out, which nobody trained on. With b
samples that tuned answers right and the release wrong, and c the reverse, McNemar's test
(Psychometrika 12, 1947) says how sure the difference is: z = (b - c) / sqrt(b + c). For metrics
that are no counts it is z = sum d / sqrt(sum d^2) over the differences d of the samples, which for
hits and misses is the same number, and for squared errors the paired z without its mean taken off.
"""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

__all__ = [
    "DECIDES",
    "LEAST",
    "SURE",
    "Comparison",
    "Serve",
    "Serves",
    "comparison",
    "decides",
    "serve_of",
    "serves_after",
    "why",
]

Serve = Literal["auto", "released"]  # what may run
Serves = Literal["released", "tuned"]  # what runs
SURE = 1.0  # sigma: a wrong choice costs little, and is made again after the next training
LEAST = 10  # samples that decide: fewer change nothing
DECIDES = 0  # a sample whose number leaves this rest by 2; the others report


class Comparison(msgspec.Struct, frozen=True):
    """How tuned fared against the release, sample by sample, on those that decide."""

    samples: int
    better: int  # where tuned was better: b
    worse: int  # c
    z: float  # positive: tuned is better


def decides(number: int) -> bool:
    """Whether the hold-out's sample of this ``number``, counted since the first one, decides.

    It does so for ever: no accuracy is told of a sample that a model was chosen by.
    """
    return number % 2 == DECIDES


def comparison(gains: Iterable[float]) -> Comparison:
    """Return what ``gains`` say: of each sample, by how much tuned is better than the release."""
    found = [gain for gain in gains if math.isfinite(gain)]
    noise = math.sqrt(sum(gain * gain for gain in found))
    return Comparison(
        samples=len(found),
        better=sum(gain > 0 for gain in found),
        worse=sum(gain < 0 for gain in found),
        z=sum(found) / noise if noise > 0 else 0.0,
    )


def serves_after(found: Comparison | None, before: Serves) -> Serves:
    """Return what runs after a comparison; within one sigma, or with few samples, what ran before.

    ``found``: None where there was none.
    """
    if found is None or found.samples < LEAST:
        return before
    if found.z > SURE:
        return "tuned"
    if found.z < -SURE:
        return "released"
    return before


def serve_of(owner: Serve | None, plan: Literal["released"] | None) -> Serve:
    """Return what may run: as the device's ``owner`` says, else as the task's ``plan`` does."""
    return owner or plan or "auto"


def why(serve: Serve, serves: Serves, found: Comparison | None) -> str:
    """Return, for people, why ``serves`` is what runs."""
    if serve == "released":
        return "as the settings say"
    if found is None:
        return "nothing was tuned and compared yet"
    if found.samples < LEAST:
        return f"{found.samples} hold-out samples decide, {LEAST} are needed"
    compared = (
        f"of {found.samples} hold-out samples the tuned model was better on {found.better}, the "
        f"release on {found.worse}"
    )
    if abs(found.z) <= SURE:
        return f"{compared}: too close, so {serves} stays"
    if found.z > SURE and serves == "released":
        return f"{compared}; but its file is lost, until the next training"
    return compared
