"""One task's line of releases: begins it, folds what waits into the next one, gates it.

The decisions are pure (`aggregator.py`, `gate.py`, `release_patches.py`); here they meet the
vectors (`release_vectors.py`) and what makes them durable (`release_maker.py`).
"""

import logging
import math
from statistics import median
from typing import NamedTuple

import numpy as np

from broker.config import TaskConfig
from broker.folding.aggregation_rules import rule_for
from broker.folding.aggregator import due_at
from broker.folding.divergence_guard import Guard, guarded
from broker.folding.payload_reader import PayloadReader
from broker.folding.server_step import ServerState, with_published
from broker.folding.step_estimates import Report, StepEstimates, steps_plan, with_fold
from broker.learning_policy import AVERAGE
from broker.records.release_records import ReleaseRow
from broker.records.state_records import StateRecords
from broker.records.update_records import WaitingUpdate
from broker.releases.asking import Asking
from broker.releases.first_release import initial_parameters
from broker.releases.fold_gate import FoldGate
from broker.releases.gate import Candidate, Evaluate
from broker.releases.release_maker import Books, Change, Refused, ReleaseMaker
from broker.releases.release_vectors import ReleaseVectors
from broker.state.device_memory import ANEW_EVERY, DeviceMemory, MemoryChange
from broker.state.state_store import Scalars, StateStore
from broker.two_clocks import moment_of
from models.protocol.manifest import Manifest
from models.protocol.update import Extras
from models.task.bundle import Bundle
from models.task.params import Vector
from models.task.spec import TaskSpec

__all__ = ["ReleaseLine"]

log = logging.getLogger(__name__)

ASKS_EVERY_S = 600.0  # between two looks at whether everybody is to be asked again
MB = 1_000_000
OUTWEIGHS = 10.0  # times max_weight: less of it comes and goes with the others


class _Waiting(NamedTuple):
    """What waits for a fold."""

    updates: int
    first_at: float | None  # in seconds that nobody sets; None: by a clock that was wrong
    is_counted: bool = True  # and nothing came since
    is_everybody_here: bool = False  # whom a fold of "all" waits for


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
        spec, payloads = bundle.spec, PayloadReader(books.updates)
        self.spec: TaskSpec = spec
        self.config = config
        store = StateStore(
            spec.task, spec.shared_size, StateRecords(books.registry), books.artifacts
        )
        self.vectors = ReleaseVectors(spec, books.releases, books.artifacts, store)
        self.memory = DeviceMemory(
            spec.task, spec.shared_size, books.registry, books.artifacts, books.on_progress
        )
        self._bundle = bundle
        self._books = books
        self._folds = FoldGate(spec, config, books, self.vectors, self.memory, payloads, evaluate)
        self._maker = ReleaseMaker(
            bundle, config, books, payloads, store, self.memory, chunk_size=chunk_size
        )
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
    def task(self) -> str:
        return self.spec.task

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
        policy = self.config
        if self._current is None:
            first = initial_parameters(self._bundle)
            scalars = Scalars(
                AVERAGE, policy.learning.feedback, policy.aggregation.optimizer, self._memory_room
            )
            self._publish(Change(ServerState(first, first), scalars, "begins"), wall)
            return
        manifest = self._current.manifest
        self.vectors.open(manifest)
        state = self.vectors.held
        scalars = self.vectors.scalars._replace(memory_room=self._memory_room)
        if scalars.optimizer != policy.aggregation.optimizer:
            state = state._replace(velocity=None, second=None)
            scalars = scalars._replace(optimizer=policy.aggregation.optimizer)
        has_changed = scalars.feedback != policy.learning.feedback
        if has_changed:
            state = state._replace(remembered=None, weight=0.0, devices=0)
            scalars = scalars._replace(feedback=policy.learning.feedback, guard=None, folds=0)
        elif policy.learning.has_memory:
            state = self.memory.opened(state)
        self.vectors.became(state, scalars, self.vectors.since)
        if has_changed or self._maker.is_outdated(manifest, state, scalars):
            memories = MemoryChange(drops_all=has_changed)
            change = Change(state, scalars, "has new settings", memories=memories)
            self._publish(change, wall)

    @property
    def _memory_room(self) -> int:
        """How many bytes the memories of all devices may take."""
        policy = self.config.learning
        return policy.max_memory_mb * MB if policy.has_memory else 0

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
        self._publish(
            Change(self.vectors.held, self.vectors.scalars, "overtakes")._replace(
                number=release + 1
            ),
            wall,
        )

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
            is_here = self._is_everybody_here(wall) if count else False
            self._waiting = _Waiting(count, first_at, is_everybody_here=is_here)
        waiting, first_at = self._waiting.updates, self._waiting.first_at
        if first_at is not None:
            first_at = max(first_at, self._round_at)  # what waited goes with the round
        return due_at(
            self.config.aggregation,
            waiting=waiting,
            first_at=first_at,
            now=now,
            folded_at=self._folded_at,
            is_resting=self.is_resting,
            is_everybody_here=self._waiting.is_everybody_here,
        )

    def _is_everybody_here(self, wall: float) -> bool:
        """Whether each remembered device that was heard of lately has an update waiting."""
        policy = self.config.aggregation
        if policy.updates != "all":
            return False
        heard, waiting = self.memory.records.heard(self.task, wall - policy.seconds)
        return 0 < heard == waiting

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
        is_average = self.vectors.held.averaged > 0
        if self._asking.next_release(None, wall, is_folded=False, is_average=is_average).everybody:
            self._publish(
                Change(self.vectors.held, self.vectors.scalars, "asks everybody again"), wall
            )
            self._round_at = now

    def fold(self, now: float, wall: float) -> list[WaitingUpdate]:
        """Fold what waits into the next release; return the updates that are settled now.

        Raises:
            TransientError, OSError: the disk is full or failing; everything waits as before.
        """
        self._correct_memories()
        gate = self._folds.gate(self.current)
        waiting = self._books.updates.waiting(self.task, self._folds.most(gate))
        found = self._folds.fold(waiting, self.current)
        by_row = {update.row: update for update in waiting}
        refused = [
            Refused(by_row[offer.number], reason, reset)
            for offer, reason, reset in found.fold.refused
        ]
        for update, reason, _ in refused:
            log.warning(
                "update refused device=%s id=%s reason=%s",
                update.key.device,
                update.key.update_id,
                reason,
            )
        if found.made is None:
            self._maker.refuse(refused)
        else:
            folded = [by_row[offer.number] for offer in found.fold.folded]
            asked = self.config.aggregation.rule
            if (rule := rule_for(asked, len(folded))) != asked:
                log.info(
                    "too few updates for the rule task=%s updates=%d rule=%s folded_by=%s",
                    *(self.task, len(folded), asked, rule),
                )
            self._publish(self._folded(found, folded, refused), wall)
            self._folded_at = now
        self._waiting = _NOT_COUNTED
        return waiting

    def _correct_memories(self) -> None:
        """Let the sum of all memories be that of those that are there."""
        if not self.config.learning.has_memory:
            return
        held, scalars = self.vectors.held, self.vectors.scalars
        if scalars.folds >= ANEW_EVERY:
            state, scalars = self.memory.anew(held), scalars._replace(folds=0)
        else:
            state = self.memory.agreed(held)
        if state is not held:
            self.vectors.became(state, scalars, self.vectors.since)

    def _folded(
        self, found: Candidate, folded: list[WaitingUpdate], refused: list[Refused]
    ) -> Change:
        """Return the change that ``found`` is, memories that go with it included."""
        assert found.made is not None
        state, patch, trained, rows, delta2 = found.made
        scalars, memories = self.vectors.scalars, MemoryChange()
        policy = self.config.learning
        if policy.has_memory:
            oldest = self._books.releases.newest(self.task, policy.forget_after)
            kept = self.memory.bounded(
                state,
                rows,
                oldest=oldest,
                most=scalars.memory_room,
                heaviest=OUTWEIGHS * self.config.aggregation.max_weight,
            )
            if kept.devices:
                log.info(
                    "devices not remembered any more task=%s count=%d", self.task, len(kept.devices)
                )
            state, memories = kept.state, MemoryChange(tuple(rows.values()), kept.devices)
            scalars = scalars._replace(folds=scalars.folds + 1)
        if policy.feedback == "gd-sec":
            measured = trained or found.score  # an average would tell of it too late
            loss = measured.loss if measured else median(update.loss_first for update in folded)
            scalars = scalars._replace(guard=guarded(scalars.guard or Guard(), loss))
        if policy.steps == "auto":
            scalars = self._estimated(scalars, state, folded, delta2)
        return Change(
            state,
            scalars,
            "folded",
            patch=patch,
            fold=found.fold,
            folded=folded,
            refused=refused,
            memories=memories,
            score=found.score,
            trained=trained,
        )

    def _estimated(
        self,
        scalars: Scalars,
        state: ServerState,
        folded: list[WaitingUpdate],
        delta2: float | None,
    ) -> Scalars:
        """Return ``scalars`` with what ``folded`` say about how many steps are worth it."""
        said = [(update.samples, update.extras or Extras()) for update in folded]
        reports = [Report(n, one.rho, one.beta, one.effective) for n, one in said]
        known = with_fold(scalars.estimates or StepEstimates(), reports, delta2)
        moved = state.published.astype(np.float64) - initial_parameters(self._bundle)
        eta = self.config.training.learning_rate
        steps = steps_plan(known, eta=eta, moved2=float(moved @ moved))
        return scalars._replace(estimates=known, steps=steps)

    def _publish(self, change: Change, wall: float) -> None:
        """Make ``change`` the newest release."""
        plan = self._maker.plan(change.scalars)
        state = with_published(
            change.state, change.state.published, decay=plan.average if plan else 0.0
        )
        change = change._replace(state=state)
        if change.score is None:
            score, trained = self._folds.measured(state)
            change = change._replace(score=score, trained=trained)
        trained = change.trained or change.score  # what a round gains shows in p, which is not late
        metric = trained.metric if trained else None
        ask = self._asking.next_release(
            metric, wall, is_folded=bool(change.folded), is_average=state.averaged > 0
        )
        was_resting, since = self.is_resting, self.vectors.since
        self._current, since = self._maker.make(change, self._current, since, ask, wall)
        self.vectors.became(state, change.scalars, since)
        if ask.everybody is was_resting:
            whom = "everybody" if ask.everybody else "only devices with new samples"
            log.info("training asks %s task=%s release=%d", whom, self.task, self.newest)
        self._maker.tidy()
