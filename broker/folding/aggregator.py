"""When to fold and what comes out: waiting updates and an exact sum in, a new sum out. Pure."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from statistics import median
from typing import NamedTuple

import numpy as np

from broker.config import FoldPolicy
from broker.folding.aggregation_rules import RULES, STREAMING, Contribution, norm
from broker.folding.staleness import damping
from models.codec.payload import decompress
from models.errors import PayloadError
from models.protocol.update import context_in
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["Fold", "Offer", "due_at", "fold", "most_at_once"]

MEMORY_FLOATS = 1 << 25  # 128 MiB of deltas for the rules that need all of them together
AT_REST = 24  # times min_seconds: by default a day
MOST_STREAMED = 10_000  # updates in one fold of a streaming rule: bounds its time, not its memory


class Offer(NamedTuple):
    """A waiting update, as far as a fold needs to know it."""

    number: int  # names it to the caller
    base: int  # the release that it was trained on
    samples: int
    skipped: int = 0  # numbers above ``base`` that no release got: they are no age


class Fold(NamedTuple):
    """What became of the offers. Every offer is in ``folded`` or in ``refused``."""

    exact: Vector | None  # the new sum; None: nothing could be folded
    folded: tuple[Offer, ...]
    refused: tuple[tuple[Offer, str], ...]  # with the reason, for the device's operator


def due_at(
    policy: FoldPolicy,
    *,
    waiting: int,
    first_at: float | None,
    now: float,
    folded_at: float | None = None,
    is_resting: bool = False,
) -> float | None:
    """Return when to fold, in the seconds of ``now``; None while nothing waits.

    While only devices with new samples train (``is_resting``), updates come one by one, and a few
    of them would draw the model toward their devices: what comes in a day (`AT_REST` times
    ``min_seconds``) is folded together.

    ``first_at`` is when the first that waits came, ``folded_at`` when the last fold was made; None:
    there was none, or nobody knows. What waited already at that fold was more than it could take
    (`most_at_once`): it follows at once, or it would never end.
    """
    if not waiting:
        return None
    if first_at is None:
        due = now
    elif is_resting:
        due = first_at + max(policy.seconds, AT_REST * policy.min_seconds)
    else:
        due = now if waiting >= policy.updates else first_at + policy.seconds
    if folded_at is None:
        return due
    if first_at is not None and first_at < folded_at:
        return now
    return max(due, folded_at + policy.min_seconds)


def most_at_once(policy: FoldPolicy, size: int) -> int:
    """Return how many updates of ``size`` parameters one fold may take; at least ``updates``.

    More than ``updates`` can wait after an outage. They go in together as far as memory allows,
    because every release costs each device a download.
    """
    if policy.rule in STREAMING:
        return max(policy.updates, MOST_STREAMED)
    return max(policy.updates, MEMORY_FLOATS // max(size, 1))


def fold(
    exact: Vector,
    offers: Sequence[Offer],
    payload_of: Callable[[Offer], bytes],
    tensors: Sequence[TensorSpec],
    policy: FoldPolicy,
    *,
    current: int,
    context_of: Callable[[Offer], Vector | None] = lambda offer: None,
) -> Fold:
    """Return the exact sum behind the release after ``current``, made from ``offers``.

    ``exact`` is the one behind release ``current``, shape (d,); ``tensors`` the shared ones.
    ``payload_of`` is called once per offer, and a rule that streams holds one delta at a time.
    ``context_of`` is called for payloads that need a context: release ``base`` minus its parent.
    Refused is an update that does not decode, is older than the policy allows, or is longer than
    ``max_norm`` times that sum (or their square root of d, while they are near zero): no
    honest training moves a model by ten times its own length, and one such update ruins a mean.
    """
    folded: list[Offer] = []
    refused: list[tuple[Offer, str]] = []
    longest = policy.max_norm * max(norm(exact), float(np.sqrt(exact.size)))
    heaviest = policy.max_weight * median([offer.samples for offer in offers] or [1])

    def contributions() -> Iterator[Contribution]:
        for offer in offers:
            age = current - offer.base - offer.skipped
            try:
                _check_age(age, offer, policy, current)
                payload = payload_of(offer)
                context = None if context_in(payload) is None else context_of(offer)
                delta = decompress(payload, tensors, context=context)
                _check_length(delta, longest)
            except PayloadError as error:
                refused.append((offer, str(error)))
                continue
            folded.append(offer)
            yield Contribution(
                delta,
                weight=min(float(offer.samples), heaviest),
                damping=damping(age, half_life=policy.half_life),
            )

    stream = contributions()
    first = next(stream, None)
    if first is None:
        return Fold(None, (), tuple(refused))
    step = RULES[policy.rule](chain((first,), stream))
    with np.errstate(over="ignore"):  # the next line looks
        moved: Vector = exact + np.float32(policy.learning_rate) * step
    if not np.isfinite(moved).all():
        because = "folded together with others it gave values that are not finite"
        return Fold(None, (), (*refused, *((offer, because) for offer in folded)))
    return Fold(moved, tuple(folded), tuple(refused))


def _check_age(age: int, offer: Offer, policy: FoldPolicy, current: int) -> None:
    if age < 0:
        raise PayloadError(f"trained on release {offer.base}, the newest here is {current}")
    if policy.max_staleness and age > policy.max_staleness:
        raise PayloadError(f"{age} releases old, at most {policy.max_staleness} are folded here")


def _check_length(delta: Vector, longest: float) -> None:
    length = norm(delta)
    if not np.isfinite(length):
        raise PayloadError("the update has values that are not finite")
    if length > longest:
        raise PayloadError(f"the update is {length:.3g} long, at most {longest:.3g} is plausible")
