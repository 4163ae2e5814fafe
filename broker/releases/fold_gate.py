"""Folds what waits into what devices would get next, measures that, and lets the gate judge."""

from collections.abc import Mapping, Sequence

from broker.config import TaskConfig
from broker.folding import aggregator
from broker.folding.aggregator import Offer, most_at_once
from broker.folding.memory_fold import Memory
from broker.folding.payload_reader import PayloadReader
from broker.folding.server_step import ServerState, with_published
from broker.folding.step_estimates import Spread
from broker.records.release_records import ReleaseRow
from broker.records.update_records import WaitingUpdate
from broker.releases.gate import Candidate, Evaluate, Gate, Made, gated
from broker.releases.release_maker import Books
from broker.releases.release_patches import next_step
from broker.releases.release_vectors import ReleaseVectors
from broker.state.device_memory import DeviceMemory, MemoryTry
from models.learning.scoring import Score
from models.protocol.learning import LearningPlan
from models.protocol.update import Extras
from models.task.params import Vector
from models.task.spec import TaskSpec

__all__ = ["FoldGate"]

MOST_SUSPECTS = 200  # updates in one fold with a gate, which may try each of them alone


class FoldGate:
    """The folds of one task; it changes nothing."""

    def __init__(
        self,
        spec: TaskSpec,
        config: TaskConfig,
        books: Books,
        vectors: ReleaseVectors,
        memory: DeviceMemory,
        payloads: PayloadReader,
        evaluate: Evaluate | None,
    ) -> None:
        self._spec = spec
        self._config = config
        self._books = books
        self._vectors = vectors
        self._memory = memory
        self._payloads = payloads
        self._evaluate = evaluate

    def gate(self, newest: ReleaseRow) -> Gate:
        """Return what the release after ``newest`` must not fall short of."""
        policy = self._config.evaluation if self._evaluate is not None else None
        trained = newest.metric if newest.metric_trained is None else newest.metric_trained
        return Gate(self._spec.metric, newest.metric, policy.max_drop if policy else None, trained)

    def most(self, gate: Gate) -> int:
        """Return how many updates one fold may take.

        With memories never more than there is room for: they are written before the fold holds,
        beside those that there are.
        """
        policy = self._config.aggregation
        most = most_at_once(policy, self._spec.shared_size)
        if room := self._vectors.scalars.memory_room:
            most = max(1, min(most, room // (4 * self._spec.shared_size)))
        return min(most, max(policy.at_once, MOST_SUSPECTS)) if gate.is_closed else most

    def measured(self, state: ServerState) -> tuple[Score | None, Score | None]:
        """Return how good ``state`` is: what devices run, and where that is the average, p."""
        if self._evaluate is None:
            return None, None
        trained = self._evaluate(state.published)
        if state.average is None:
            return trained, None
        # The first average is p itself.
        return trained if state.averaged == 1 else self._evaluate(state.average), trained

    def fold(self, waiting: Sequence[WaitingUpdate], newest: ReleaseRow) -> Candidate:
        """Return what becomes of ``waiting`` in the release after ``newest``.

        Raises:
            TransientError, OSError: the disk is full or failing.
        """
        plans = {base: self._plan(base, newest) for base in {update.base for update in waiting}}
        skipped = {base: self._skipped(base, newest.number) for base in plans}
        offers = [
            Offer(
                update.row,
                update.base,
                update.samples,
                skipped[update.base],
                plan=plans[update.base],
                memory=(update.extras or Extras()).memory,
            )
            for update in waiting
        ]
        by_row = {update.row: update for update in waiting}
        usual = self._usual()
        return gated(
            offers, lambda some: self._candidate(some, by_row, newest, usual), self.gate(newest)
        )

    def _plan(self, base: int, newest: ReleaseRow) -> LearningPlan:
        """Return by which plan release ``base`` is learned from; of one not known here, as now."""
        found = self._books.releases.get(self._spec.task, base)
        return (found or newest).manifest.plan

    def _skipped(self, base: int, newest: int) -> int:
        """Return how many numbers above ``base`` no release got, because `overtake` jumped."""
        after = self._books.releases.count_after(self._spec.task, base)
        return max(0, newest - base - after)

    def _usual(self) -> float:
        """Return what a device that is remembered weighs; 0: nobody is."""
        has_memory = self._config.learning.has_memory
        return self._memory.records.usual(self._spec.task) if has_memory else 0.0

    def _candidate(
        self,
        offers: Sequence[Offer],
        by_row: Mapping[int, WaitingUpdate],
        newest: ReleaseRow,
        usual: float,
    ) -> Candidate:
        """Fold ``offers``, and measure what devices would get for it."""
        held, plan = self._vectors.held, newest.manifest.plan
        memories = MemoryTry(self._memory)

        def payload_of(offer: Offer) -> bytes:
            self._books.on_progress()
            return self._payloads.read(offer.number)

        def remember(offer: Offer, memory: Memory) -> None:
            memories.keep(by_row[offer.number].key, memory, newest.number + 1)

        spread = Spread()
        eta = newest.manifest.training.learning_rate

        def seen(offer: Offer, delta: Vector, weight: float) -> None:
            if plan.steps is None:
                return
            scaled_to = offer.plan.steps.reference if offer.plan.steps else 0.0
            extras = by_row[offer.number].extras
            steps = scaled_to or (extras.effective if extras else 0.0)
            spread.add(delta, weight=weight, eta=eta, steps=steps)

        result = aggregator.fold(
            held,
            offers,
            payload_of,
            self._spec.shared,
            self._config.aggregation,
            current=newest.number,
            learning=plan,
            context_of=lambda offer: self._vectors.context(offer.base),
            history_of=lambda offer: memories.get(by_row[offer.number].key),
            remember=remember,
            usual=usual,
            published_of=lambda offer: self._vectors.published_of(offer.base),
            seen=seen,
        )
        if result.state is None:
            return Candidate(result, None, None)
        self._books.on_progress()
        last = self._vectors.last_patch(newest.manifest)
        step = next_step(
            held.published, result.state.exact, self._spec.shared, self._config.downlink, last
        )
        state = with_published(result.state, step.published, decay=plan.average)
        score, trained = self.measured(state)
        made = Made(state, step.patch, trained, memories.rows, spread.delta2)
        return Candidate(result, made, score)
