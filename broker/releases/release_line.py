"""One task's line of releases: begins it, folds what waits into the next one, gates it.

The decisions are pure (`aggregator.py`, `gate.py`, `release_patches.py`); here they meet the
vectors (`release_vectors.py`) and what makes them durable (`release_maker.py`).
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.config import TaskConfig
from broker.folding import aggregator
from broker.folding.aggregation_rules import rule_for
from broker.folding.aggregator import Offer, due_at, most_at_once
from broker.folding.payload_reader import PayloadReader
from broker.folding.server_step import ServerState
from broker.records.release_records import ReleaseRow
from broker.records.update_records import WaitingUpdate
from broker.releases.asking import Asking
from broker.releases.first_release import initial_parameters
from broker.releases.gate import Candidate, Gate, gated
from broker.releases.release_maker import Books, Change, ReleaseMaker
from broker.releases.release_patches import Step, next_step
from broker.releases.release_vectors import ReleaseVectors
from broker.two_clocks import moment_of
from models.learning.scoring import Score
from models.protocol.manifest import Manifest
from models.task.bundle import Bundle
from models.task.params import Vector
from models.task.spec import TaskSpec

__all__ = ["Evaluate", "ReleaseLine"]

log = logging.getLogger(__name__)

Evaluate = Callable[[Vector], Score]

MOST_SUSPECTS = 200  # updates in one fold with a gate, which may try each of them alone
ASKS_EVERY_S = 600.0  # between two looks at whether everybody is to be asked again


class _Waiting(NamedTuple):
    """What waits for a fold."""

    updates: int
    first_at: float | None  # in seconds that nobody sets; None: by a clock that was wrong
    is_counted: bool = True  # and nothing came since


_NOT_COUNTED = _Waiting(0, None, is_counted=False)


class ReleaseLine:
    """The releases of one task. Only one server may work on them."""

    def __init__(
        self,
        bundle: Bundle,
        config: TaskConfig,
        books: Books,
        *,
        chunk_size: int,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.task = bundle.spec.task
        self.spec: TaskSpec = bundle.spec
        self.config = config
        self.vectors = ReleaseVectors(bundle.spec, books.releases, books.artifacts)
        self._bundle = bundle
        self._books = books
        self._evaluate = evaluate
        self._payloads = PayloadReader(books.updates)
        self._maker = ReleaseMaker(bundle, config, books, self._payloads, chunk_size=chunk_size)
        self._asking = Asking(
            self.spec,
            config.aggregation,
            books.devices,
            books.updates,
            books.releases,
            has_evaluation=evaluate is not None,
        )
        self._current: ReleaseRow | None = None
        self._waiting = _NOT_COUNTED
        self._folded_at: float | None = None  # when the last fold was made a release
        self._round_at = -math.inf  # when everybody was asked again, in this run
        self._asked_at = -math.inf  # when we looked whether everybody is to be asked again

    @property
    def current(self) -> ReleaseRow:
        """The newest release.

        Raises:
            ValueError: before `open`.
        """
        if self._current is None:
            raise ValueError(f"task {self.task} is not open")
        return self._current

    @property
    def newest(self) -> int:
        """The number of the newest release; 0 before `open`."""
        return self._current.number if self._current else 0

    @property
    def published(self) -> Vector:
        """What devices hold that have the newest release."""
        return self.vectors.held.published

    @property
    def exact(self) -> Vector:
        """The exact sum of all that was folded."""
        return self.vectors.held.exact

    def open(self, now: float, wall: float) -> None:
        """Go on where the registry stands, or make release 1 out of the bundle's own weights.

        A changed graph or changed settings make a new release of the same weights, because a
        release never changes.

        Raises:
            UsageError: the bundle does not fit what was learned, or its files do.
            TransientError, OSError: the disk is full or failing.
        """
        self._current = self._books.releases.current(self.task)
        if (folded_at := self._books.releases.folded_at(self.task)) is not None:
            self._folded_at = moment_of(folded_at, now=now, wall=wall)
        if self._current is None:
            first = initial_parameters(self._bundle)
            self._publish(Change(Step(first, first), "begins"), wall)
            return
        self.vectors.open(self._current.manifest)
        if self._maker.is_outdated(self._current.manifest):
            self._publish(Change(self.vectors.held, "has new settings"), wall)

    def made(self, manifest: Manifest) -> bool:
        """Whether ``manifest`` may be one of ours: the newest, or a number below it."""
        return manifest.release < self.newest or self.current.manifest.is_same_as(manifest)

    def overtake(self, release: int, wall: float) -> None:
        """Go on above ``release``, which devices have and this registry does not know.

        So it is after the registry was restored from a backup, or lost: devices do not go back to
        a lower number nor take another release of the same, and what they learned on a higher one
        would be refused for ever.

        Raises:
            TransientError, OSError: the disk is full or failing; nothing was changed.
        """
        log.warning(
            "registry is behind its fleet task=%s newest=%d published=%d; was it restored?",
            *(self.task, self.newest, release),
        )
        self._publish(Change(self.vectors.held, "overtakes", release + 1), wall)

    # Folding

    def changed(self) -> None:
        """An update was stored: look again what waits."""
        self._waiting = self._waiting._replace(is_counted=False)

    def due_at(self, now: float, wall: float) -> float | None:
        """Return when to fold next, in the seconds of ``now``; None while nothing waits."""
        if not self._waiting.is_counted:
            count, came = self._books.updates.waiting_summary(self.task)
            first_at = self._waiting.first_at  # whoever came first is the first until a fold
            if not self._waiting.updates:
                first_at = moment_of(came, now=now, wall=wall)
            self._waiting = _Waiting(count, first_at)
        waiting, first_at, _ = self._waiting
        if first_at is not None:
            first_at = max(first_at, self._round_at)  # what waited goes with the round
        return due_at(
            self.config.aggregation,
            waiting=waiting,
            first_at=first_at,
            now=now,
            folded_at=self._folded_at,
            is_resting=self.is_resting,
        )

    @property
    def is_resting(self) -> bool:
        """Whether only devices with new samples are asked to train."""
        return self._current is not None and not self._current.manifest.training.repeat

    def ask_again(self, now: float, wall: float) -> None:
        """Ask everybody to train again if it is time for that, or there are many new samples.

        Raises:
            TransientError, OSError: the disk is full or failing; nothing was changed.
        """
        if not self.is_resting or now - self._asked_at < ASKS_EVERY_S:
            return
        if not self.current.manifest.training.open:
            return
        self._asked_at = now
        if self._asking.next_release(None, wall, is_folded=False).everybody:
            self._publish(Change(self.vectors.held, "asks everybody again"), wall)
            self._round_at = now

    def fold(self, now: float, wall: float) -> list[WaitingUpdate]:
        """Fold what waits into the next release; return the updates that are settled now.

        Raises:
            TransientError, OSError: the disk is full or failing; everything waits as before.
        """
        gate = self._gate
        policy = self.config.aggregation
        most = most_at_once(policy, self.spec.shared_size)
        if gate.is_closed:
            most = min(most, max(policy.at_once, MOST_SUSPECTS))
        waiting = self._books.updates.waiting(self.task, most)
        by_row = {update.row: update for update in waiting}
        skipped = {base: self._skipped(base) for base in {update.base for update in waiting}}
        offers = [
            Offer(update.row, update.base, update.samples, skipped[update.base])
            for update in waiting
        ]
        result, step, score = gated(offers, self._candidate, gate)
        refused = [(by_row[offer.number], reason) for offer, reason, _ in result.refused]
        for update, reason in refused:
            log.warning(
                "update refused device=%s id=%s reason=%s",
                update.key.device,
                update.key.update_id,
                reason,
            )
        if step is None:
            self._maker.refuse(refused)
        else:
            folded = [by_row[offer.number] for offer in result.folded]
            if (rule := rule_for(policy.rule, len(folded))) != policy.rule:
                log.info(
                    "too few updates for the rule task=%s updates=%d rule=%s folded_by=%s",
                    *(self.task, len(folded), policy.rule, rule),
                )
            change = Change(step, "folded", folded=folded, refused=refused, score=score)
            self._publish(change, wall)
            self._folded_at = now
        self._waiting = _NOT_COUNTED
        return waiting

    def _skipped(self, base: int) -> int:
        """Return how many numbers above ``base`` no release got, because `overtake` jumped."""
        after = self._books.releases.count_after(self.task, base)
        return max(0, self.newest - base - after)

    def _candidate(self, offers: Sequence[Offer]) -> Candidate:
        """Fold ``offers``, and measure what devices would get for it."""

        def payload_of(offer: Offer) -> bytes:
            self._books.on_progress()
            return self._payloads.read(offer.number)

        result = aggregator.fold(
            ServerState(self.exact, self.published),
            offers,
            payload_of,
            self.spec.shared,
            self.config.aggregation,
            current=self.newest,
            context_of=lambda offer: self.vectors.context(offer.base),
            published_of=lambda offer: self.vectors.published_of(offer.base),
        )
        if result.exact is None:
            return Candidate(result, None, None)
        self._books.on_progress()
        step = next_step(self.published, result.exact, self.spec.shared, self.config.downlink)
        score = self._evaluate(step.published) if self._evaluate is not None else None
        return Candidate(result, step, score)

    @property
    def _gate(self) -> Gate:
        """Return what the next release must not fall short of."""
        policy = self.config.evaluation if self._evaluate is not None else None
        return Gate(self.spec.metric, self.current.metric, policy.max_drop if policy else None)

    def _publish(self, change: Change, wall: float) -> None:
        """Make ``change`` the newest release."""
        if change.score is None and self._evaluate is not None:
            change = change._replace(score=self._evaluate(change.step.published))
        metric = change.score.metric if change.score else None
        ask = self._asking.next_release(metric, wall, is_folded=bool(change.folded))
        was_resting, since = self.is_resting, self.vectors.since
        self._current, since = self._maker.make(change, self._current, since, ask, wall)
        self.vectors.became(change.step, since)
        if ask.everybody is was_resting:
            whom = "everybody" if ask.everybody else "only devices with new samples"
            log.info("training asks %s task=%s release=%d", whom, self.task, self.newest)
        self._maker.tidy()
