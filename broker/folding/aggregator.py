"""When to fold and what comes out: waiting updates and the server's state in, its next one out.

Pure: payloads, contexts and memories come and go by callbacks.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from broker.config import MOST_COMPARED, FoldPolicy
from broker.folding.aggregation_rules import (
    FROM_BASE,
    RULES,
    STREAMING,
    Contribution,
    norm,
)
from broker.folding.memory_fold import Memory, MemoryFold, OtherMemoryError, agreed
from broker.folding.server_step import OptimizerPlan, ServerState, moved
from broker.folding.staleness import damping
from models.codec.feedback import recursion_of
from models.codec.payload import decompress
from models.codec.transform.shared_basis import Held
from models.errors import PayloadError
from models.protocol.learning import LearningPlan
from models.protocol.update import context_in
from models.task.params import Vector
from models.task.spec import TensorSpec

__all__ = ["Fold", "Offer", "Refusal", "due_at", "fold", "most_at_once", "rate_of", "share_of"]

MEMORY_FLOATS = 1 << 25  # 128 MiB of deltas for the rules that need all of them together
AT_REST = 24  # times min_seconds: by default a day
SWEEPS = 3.0  # of all devices, that the steps of a memory may add up to (see `rate_of`)
ADAPTIVE_RATE = 0.01  # of adam and yogi
MIXED_SHARE = 0.6  # alpha of FedAsync, as in its paper
LARGEST = 1e9  # samples of a memory: S is exact to 1e-16 of the largest share it ever had
MOST_STREAMED = 10_000  # updates in one fold of a streaming rule: bounds its time, not its memory

_PLAIN = LearningPlan()


class Offer(NamedTuple):
    """A waiting update, as far as a fold needs to know it."""

    number: int  # names it to the caller
    base: int  # the release that it was trained on
    samples: int
    skipped: int = 0  # numbers above ``base`` that no release got: they are no age
    plan: LearningPlan = _PLAIN  # of ``base``, by which its device worked
    memory: int = 0  # the digest of the memory that it was made against (`Extras.memory`)


class Refusal(NamedTuple):
    """An update that will never be folded."""

    offer: Offer
    reason: str  # for the device's operator
    reset: bool = False  # the device's memory is not the one here: it begins anew


class Fold(NamedTuple):
    """What became of the offers. Every offer is in ``folded`` or in ``refused``."""

    state: ServerState | None  # after it, p and a as before; None: nothing could be folded
    folded: tuple[Offer, ...]
    refused: tuple[Refusal, ...]
    step: float = 0.0  # Euclidean length of what it moved the exact sum by
    age: float = 0.0  # releases; the mean one of what was folded

    @property
    def exact(self) -> Vector | None:
        """The new exact sum; None: nothing could be folded."""
        return self.state.exact if self.state else None


def due_at(
    policy: FoldPolicy,
    *,
    waiting: int,
    first_at: float | None,
    now: float,
    folded_at: float | None = None,
    is_resting: bool = False,
    is_everybody_here: bool = False,
) -> float | None:
    """Return when to fold, in the seconds of ``now``; None while nothing waits.

    While only devices with new samples train (``is_resting``), updates come one by one, and a few
    of them would draw the model toward their devices: what comes in a day (`AT_REST` times
    ``min_seconds``) is folded together.

    ``is_everybody_here``: with ``updates = "all"``, one of each that there is to wait for.

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
        is_enough = is_everybody_here if policy.updates == "all" else waiting >= policy.updates
        due = now if is_enough else first_at + policy.seconds
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
        return max(policy.at_once, MOST_STREAMED)
    most = max(policy.at_once, MEMORY_FLOATS // max(size, 1))
    return min(most, MOST_COMPARED) if policy.rule == "multi_krum" else most


def rate_of(policy: FoldPolicy, learning: LearningPlan, *, folded: int, devices: int) -> float:
    """Return the server's rate for a fold of ``folded`` updates.

    With a memory each fold moves by the whole mean of ``devices`` remembered ones, so K folds of
    few would move by it K times: ``auto`` is min(1, 3 K / N), and 1 where all are waited for. The
    step bound of SAG (Schmidt, Le Roux, Bach, arXiv:1309.2388) is of the same kind. Of rules in
    `FROM_BASE` it is 1: theirs is in each update's share (`share_of`).
    """
    if policy.rule in FROM_BASE:
        return 1.0
    if policy.learning_rate != "auto":
        return policy.learning_rate
    if policy.optimizer in ("adam", "yogi"):
        return ADAPTIVE_RATE
    if not recursion_of(learning).has_memory or policy.updates == "all":
        return 1.0
    return min(1.0, SWEEPS * folded / max(devices, 1))


def share_of(policy: FoldPolicy, age: int) -> float:
    """Return how far an update ``age`` releases old counts, in (0, 1].

    By its age alone; with rules in `FROM_BASE` times alpha, which is ``learning_rate``. That is
    alpha_t of FedAsync, recomputed from alpha each time.
    """
    if policy.rule not in FROM_BASE:
        return damping(age, policy)
    alpha = MIXED_SHARE if policy.learning_rate == "auto" else policy.learning_rate
    return alpha * damping(age, policy)


def fold(
    state: ServerState,
    offers: Sequence[Offer],
    payload_of: Callable[[Offer], bytes],
    tensors: Sequence[TensorSpec],
    policy: FoldPolicy,
    *,
    current: int,
    learning: LearningPlan = _PLAIN,
    context_of: Callable[[Offer], Held] = lambda offer: None,
    history_of: Callable[[Offer], Memory | None] = lambda offer: None,
    remember: Callable[[Offer, Memory], None] = lambda offer, memory: None,
    published_of: Callable[[Offer], Vector | None] = lambda offer: None,
    usual: float = 0.0,
    seen: Callable[[Offer, Vector, float], None] = lambda offer, delta, weight: None,
) -> Fold:
    """Return the state behind the release after ``current``, made from ``offers``.

    ``state`` is the one behind release ``current``, its vectors of shape (d,); ``tensors`` the
    shared ones, ``learning`` the plan of the releases now. ``payload_of`` is called once per offer,
    and a rule that streams holds one delta at a time. ``context_of`` is called for payloads that
    need a context: release ``base`` minus its parent, or the device's memory; ``published_of`` by
    rules in `FROM_BASE`: the parameters of ``base``.

    With a memory (`learning.feedback`), ``history_of`` returns what is remembered of the device of
    an offer, and ``remember`` takes what is to be from then on; a second update of the same device
    must find what the first one left. Nothing of it holds if the fold is not used, so the caller
    begins anew with each try. ``usual`` is the median weight of all devices that are remembered, so
    that none weighs much more, nor two that take turns; 0: nobody is.

    ``seen`` gets what each folded update's device learned, as far as it is known here, and its
    weight by samples; of gd-sec nothing.

    Refused is an update that does not decode, is older than the policy allows, was made for another
    feedback, against a memory that is not the one here (``reset``), or is longer than ``max_norm``
    times the exact sum (or their square root of d, while they are near zero): no honest training
    moves a model by ten times its own length, and one such update ruins a mean.
    """
    reading = _Reading(
        state,
        offers,
        payload_of,
        tensors,
        policy,
        current,
        learning,
        context_of,
        published_of,
    )
    if recursion_of(learning).has_memory:
        memories = reading.remembered(history_of, remember, usual, seen)
        state, step = memories.state(), memories.step() if reading.folded else None
    else:
        step = reading.ruled(seen)
    refused = tuple(reading.refused)
    if step is None:
        return Fold(None, (), refused)
    rate = rate_of(policy, learning, folded=len(reading.folded), devices=state.devices)
    plan = OptimizerPlan(policy.optimizer, rate, policy.momentum)
    with np.errstate(over="ignore", invalid="ignore"):  # the next line looks
        after = moved(state, step, plan, damping=fmean(reading.dampings))
    if not np.isfinite(after.exact).all():
        because = "folded together with others it gave values that are not finite"
        refused += tuple(Refusal(offer, because) for offer in reading.folded)
        return Fold(None, (), refused)
    return Fold(
        after,
        tuple(reading.folded),
        refused,
        step=norm(after.exact - state.exact),
        age=fmean(reading.ages),
    )


class _Reading:
    """Reads the offers of one fold, one after the other, and notes what becomes of each."""

    def __init__(
        self,
        state: ServerState,
        offers: Sequence[Offer],
        payload_of: Callable[[Offer], bytes],
        tensors: Sequence[TensorSpec],
        policy: FoldPolicy,
        current: int,
        learning: LearningPlan,
        context_of: Callable[[Offer], Held],
        published_of: Callable[[Offer], Vector | None],
    ) -> None:
        self.folded: list[Offer] = []
        self.ages: list[int] = []
        self.dampings: list[float] = []
        self.refused: list[Refusal] = []
        self._offers, self._state, self._tensors = offers, state, tensors
        self._policy, self._learning, self._current = policy, learning, current
        self._payload_of, self._context_of = payload_of, context_of
        self._published_of = published_of
        size = max(norm(state.exact), float(np.sqrt(state.exact.size)))
        self._longest = policy.max_norm * size
        self._median = median([offer.samples for offer in offers] or [1])

    def ruled(self, seen: Callable[[Offer, Vector, float], None]) -> Vector | None:
        """Return the step by the policy's rule; None: nothing could be read."""
        stream = self._contributions(seen)
        first = next(stream, None)
        if first is None:
            return None
        return RULES[self._policy.rule](chain((first,), stream))

    def _contributions(
        self, seen: Callable[[Offer, Vector, float], None]
    ) -> Iterator[Contribution]:
        heaviest = self._policy.max_weight * self._median
        for offer in self._offers:
            try:
                delta, age = self._read(offer)
            except PayloadError as error:
                self.refused.append(Refusal(offer, str(error)))
                continue
            share = share_of(self._policy, age)
            self._take(offer, age, share)
            weight = min(float(offer.samples), heaviest)
            seen(offer, delta, weight)
            yield Contribution(delta, weight, share)

    def remembered(
        self,
        history_of: Callable[[Offer], Memory | None],
        remember: Callable[[Offer, Memory], None],
        usual: float,
        seen: Callable[[Offer, Vector, float], None],
    ) -> MemoryFold:
        """Return the memories after all offers that name the one here."""
        memories = MemoryFold(self._state)
        heaviest = self._policy.max_weight * (usual or self._median)
        for offer in self._offers:
            try:
                memory = history_of(offer)
                # First: what was coded in another memory cannot be read, and would not say why.
                said, age = self._read(offer, own=agreed(memory, offer.memory))
                after = memories.take(
                    said,
                    memory,
                    made_against=offer.memory,
                    samples=min(float(offer.samples), heaviest, LARGEST),
                    recursion=recursion_of(offer.plan),
                    longest=self._longest,
                )
            except PayloadError as error:
                is_other = isinstance(error, OtherMemoryError)
                self.refused.append(Refusal(offer, str(error), reset=is_other))
                continue
            remember(offer, after)
            if recursion_of(offer.plan).beta == 1:  # then h' is what was learned, but for the codec
                seen(offer, after.history, after.samples)
            self._take(offer, age, 1.0)
        return memories

    def _take(self, offer: Offer, age: int, damped: float) -> None:
        self.folded.append(offer)
        self.ages.append(age)
        self.dampings.append(damped)

    def _read(self, offer: Offer, own: Vector | None = None) -> tuple[Vector, int]:
        """Return the delta of ``offer``, as decoded, and its age in releases.

        ``own``: the memory that it was made against, which may be what it was coded in.

        Raises:
            PayloadError: it cannot be folded, and why.
        """
        if offer.plan.feedback != self._learning.feedback:
            raise PayloadError(
                f"made for feedback = {offer.plan.feedback}, now it is {self._learning.feedback}"
            )
        age = self._current - offer.base - offer.skipped
        _check_age(age, offer, self._policy, self._current)
        payload = self._payload_of(offer)
        digest, context = context_in(payload), None
        if digest is not None:
            context = own if digest == offer.memory else self._context_of(offer)
        delta = decompress(payload, self._tensors, context=context)
        if self._policy.rule in FROM_BASE:
            published = self._published_of(offer)
            if published is None:
                raise PayloadError(f"release {offer.base}, which it was trained on, is not kept")
            delta = published + delta - self._state.exact
        _check_length(delta, self._longest)
        return delta, age


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
