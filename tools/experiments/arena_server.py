"""The server of an arena: folds, publishes and remembers, with the product's own functions."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from broker.config import DownlinkPlan, FoldPolicy
from broker.folding.aggregation_rules import FROM_BASE, RULES, Contribution
from broker.folding.aggregator import Offer, fold, rate_of, share_of
from broker.folding.memory_fold import Memory
from broker.folding.server_step import OptimizerPlan, ServerState, moved, with_published
from broker.releases.first_release import initial_parameters
from broker.releases.release_patches import next_step
from models.codec.feedback import Carried
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan, TrainingPlan
from models.protocol.npz import write_vector
from models.task.bundle import Bundle
from models.task.params import Vector

__all__ = ["ArenaServer", "Plans", "Release", "Sent"]

HEADER_BYTES = 150  # of an update: header, topic, MQTT (measured: docs/benchmarks.md)


class Plans(NamedTuple):
    """How a fleet learns."""

    training: TrainingPlan
    learning: LearningPlan = LearningPlan()
    codec: CodecPlan | None = CodecPlan()  # None: 32 bits for each value
    policy: FoldPolicy = FoldPolicy(updates=5)
    downlink: DownlinkPlan = DownlinkPlan()
    has_feedback: bool = True  # False: what a payload leaves out is lost, a baseline


class Release(NamedTuple):
    """What devices know of one release."""

    number: int
    published: Vector  # p
    average: Vector | None
    patch_bytes: int  # from the one before; that of the parameters where there is no patch

    @property
    def runs(self) -> Vector:
        return self.published if self.average is None else self.average


class Sent(NamedTuple):
    """An update on its way."""

    device: int
    base: int
    samples: int
    payload: bytes  # b"" with `Plans.codec` None
    dense: Vector | None
    memory: int  # the digest of the h that it was made against
    after: Carried  # what the device carries once it is folded

    @property
    def size(self) -> int:
        """Its bytes, header and MQTT included."""
        return HEADER_BYTES + (len(self.payload) if self.dense is None else self.dense.nbytes)


class ArenaServer:
    """The server's side: folds, publishes, and remembers."""

    def __init__(self, bundle: Bundle, plans: Plans) -> None:
        first = initial_parameters(bundle)
        self._tensors = bundle.spec.shared
        self._plans = plans
        self.state = ServerState(first, first)
        self.memories: dict[int, Memory] = {}
        self.releases = [Release(1, first, None, first.nbytes)]
        self._last: bytes | None = None  # the patch that led to what is published

    @property
    def newest(self) -> Release:
        return self.releases[-1]

    def release(self, number: int) -> Release:
        return self.releases[number - 1]

    def digest(self) -> str:
        """Return the SHA-256 of the newest parameters, as the file of an artifact has it."""
        return hashlib.sha256(write_vector(self.newest.published)).hexdigest()

    def fold(self, waiting: Sequence[Sent]) -> list[tuple[Sent, bool]]:
        """Make the next release of ``waiting``; return which of them were folded."""
        plans, current = self._plans, self.newest.number
        if plans.codec is None:
            self._publish(self._dense(waiting))
            return [(one, True) for one in waiting]
        offers = [
            Offer(row, one.base, one.samples, plan=plans.learning, memory=one.memory)
            for row, one in enumerate(waiting)
        ]
        memories = dict(self.memories)

        def remember(offer: Offer, memory: Memory) -> None:
            memories[waiting[offer.number].device] = memory

        found = fold(
            self.state,
            offers,
            lambda offer: waiting[offer.number].payload,
            self._tensors,
            plans.policy,
            current=current,
            learning=plans.learning,
            context_of=lambda offer: self._context(offer.base),
            history_of=lambda offer: memories.get(waiting[offer.number].device),
            remember=remember,
            usual=float(np.median([one.samples for one in self.memories.values()] or [0.0])),
            published_of=lambda offer: self.release(offer.base).published,
        )
        folded = {offer.number for offer in found.folded}
        if found.state is not None:
            self.memories = memories
            self._publish(found.state)
        return [(one, row in folded) for row, one in enumerate(waiting)]

    def _dense(self, waiting: Sequence[Sent]) -> ServerState:
        """Fold deltas that were never coded, by the same rule, damping and optimizer."""
        policy, current = self._plans.policy, self.newest.number
        median = float(np.median([one.samples for one in waiting]))
        contributions = [
            Contribution(
                self._moves(one.dense, one.base),
                min(float(one.samples), policy.max_weight * median),
                share_of(policy, current - one.base),
            )
            for one in waiting
            if one.dense is not None
        ]
        rate = rate_of(policy, self._plans.learning, folded=len(waiting), devices=0)
        plan = OptimizerPlan(policy.optimizer, rate, policy.momentum)
        damped = float(np.mean([contribution.damping for contribution in contributions]))
        return moved(self.state, RULES[policy.rule](contributions), plan, damping=damped)

    def _moves(self, delta: Vector, base: int) -> Vector:
        """Return what the rule wants of an update: the delta, or the way to its device's model."""
        if self._plans.policy.rule not in FROM_BASE:
            return delta
        return self.release(base).published + delta - self.state.exact

    def _publish(self, state: ServerState) -> None:
        before = self.state.published
        step = next_step(before, state.exact, self._tensors, self._plans.downlink, self._last)
        self.state = with_published(state, step.published, decay=self._plans.learning.average)
        size = len(step.patch) if step.patch is not None else step.published.nbytes
        if np.array_equal(step.published, before):
            size = 0
        else:
            self._last = step.patch
        number = self.newest.number + 1
        self.releases.append(Release(number, step.published, self.state.average, size))

    def _context(self, number: int) -> Vector | None:
        if number < 2:
            return None
        return self.release(number).published - self.release(number - 1).published
