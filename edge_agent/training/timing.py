"""When this device trains: gathers what the governor decides by, and starts nothing."""

import logging
import math
from collections.abc import Callable

from edge_agent.personal.model_choice import Serve
from edge_agent.samples.sample_store import Samples
from edge_agent.spending.allowance import Spent
from edge_agent.spending.spending_book import SpendingBook
from edge_agent.training.governor import Situation, TrainingLimits, Verdict, Vitals, strain, wish
from edge_agent.training.training_job import digest_of
from edge_agent.updates.outbox import Outbox
from models.host.backoff import doubled
from models.protocol.manifest import Manifest

__all__ = ["Timing"]

log = logging.getLogger("edge_agent")

LONGEST_PACE_S = 86_400.0  # where the server refuses one update after the other


class Timing:
    """Whether to train on a release now; ``min_seconds`` lie between two trainings' beginnings."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        samples: Samples,
        vitals: Callable[[], Vitals],
        wall_clock: Callable[[], float],
        limits: TrainingLimits,
        min_seconds: float,
        spending: SpendingBook,
        serve: Callable[[Manifest], Serve],
    ) -> None:
        self._outbox = outbox
        self._samples = samples
        self._vitals = vitals
        self._wall_clock = wall_clock
        self._limits = limits
        self._min_seconds = min_seconds
        self.spending = spending
        self._serve = serve
        self.took_mb = 0.0  # of memory, the last training in this process; 0: there was none
        self._began: float | None = None  # the last training that succeeded; None: look it up
        self._behind_since: float | None = None  # the board's clock, behind that training
        self._hot = False

    def verdict(self, manifest: Manifest, now: float) -> Verdict:
        """Return what to do about the active release, by what there is and the board can bear."""
        verdict = wish(self._situation(manifest, now), self._limits)
        if verdict.do != "wait":
            reason, self._hot = strain(
                self._vitals(), self._limits, was_hot=self._hot, took_mb=self.took_mb
            )
            if reason:
                return Verdict("wait", reason, again_in_s=0.0)  # nobody says when it is over
        return verdict

    def begins(self) -> None:
        """Take note of a training that begins.

        Raises:
            TransientError: the disk is full or failing.
        """
        facts = self._outbox.facts.read()
        expected_s = facts.round_seconds + facts.steps * facts.ms_per_step / 1000
        self.spending.begins(Spent(seconds=expected_s))

    def ended(self, seconds: float) -> None:
        """Take note of how long a training or evaluation took, whatever came of it."""
        self.spending.ended(Spent(seconds=seconds))

    def trained(self, began: float) -> None:
        """Take note of a training that succeeded."""
        self._began = began

    def is_answered(self) -> bool:
        """Whether the server has answered for every update that it has."""
        return not any(entry.has_left for entry in self._outbox.waiting())

    def what_counts(self) -> tuple[object, ...]:
        """Return what, beside the release, changes the verdict when it changes."""
        return self._samples.counts(), self._outbox.changes

    def _rest_s(self, now: float) -> float:
        """Return for how long the pace still wants a rest.

        In a process the monotonic clock tells. A new process has only what the last one noted by
        the board's clock, and rests for one pace at most, whatever that clock has done since. A
        board without a clock of its own may learn the time only later.
        Updates that are refused one after the other make the pace slower.
        """
        facts = self._outbox.facts.read()
        since = self._began
        if since is None:
            began = facts.training_began
            passed_s = math.inf if began is None else self._wall_clock() - began
            if passed_s < 0 and self._behind_since is None:
                log.warning("the last training began in the future: the clock was set back")
                self._behind_since = now
            since = min(now - passed_s, now if self._behind_since is None else self._behind_since)
            if passed_s >= 0:
                self._began = since
        longest_s = max(self._min_seconds, LONGEST_PACE_S)
        pace_s = doubled(self._min_seconds, facts.refused_running, longest_s)
        return max(0.0, since + pace_s - now)

    def _is_changed(self, manifest: Manifest) -> bool:
        """Whether anybody but this device changed the model, or the task, since its training."""
        facts = self._outbox.facts.read()
        if manifest.release == facts.trained_release:
            return False
        if not manifest.folded or facts.trained_folded is None:
            return True
        if facts.trained_asked != digest_of(manifest):
            return True
        added = manifest.folded - facts.trained_folded
        own = self._outbox.folds.count(after=facts.trained_release, until=manifest.release)
        # Of these the receipt may be late: until it comes, nobody knows whose updates those are.
        unsure = sum(entry.has_left for entry in self._outbox.waiting())
        # More of ours than came in all: a late receipt may name a later release. Fewer than there
        # were: the server was restored, and nobody knows.
        return added < 0 or added > own + unsure

    def _situation(self, manifest: Manifest, now: float) -> Situation:
        facts = self._outbox.facts.read()
        counts = self._samples.counts()
        short_of, short_s = self.spending.look(now)
        now_is = Situation(
            release=manifest.release,
            is_open=manifest.training.open,
            repeats=manifest.training.repeat,
            is_changed=self._is_changed(manifest),
            samples=counts.train,
            new_samples=counts.ever - facts.trained_until,
            is_owed=facts.owed > 0,
            holdout=counts.holdout,
            trained_release=facts.trained_release,
            evaluated_release=facts.evaluated_release,
            has_room=self._outbox.has_room(),
            rest_s=self._rest_s(now),
            alone_owed=facts.steps_ever - facts.alone_steps if manifest.plan.alone else 0,
            short_of=short_of,
            short_s=short_s,
        )
        if not self._outbox.must_wait(manifest.plan.feedback):
            return now_is
        return now_is._replace(  # of a training that is for this device alone
            is_changed=manifest.release != facts.tuned_release
            and (not manifest.folded or manifest.folded != facts.tuned_folded),
            new_samples=counts.ever - facts.tuned_until,
            is_owed=False,
            trained_release=facts.tuned_release,
            has_room=self._keeps_what_it_learns(manifest),
        )

    def _keeps_what_it_learns(self, manifest: Manifest) -> bool:
        """Whether a training is worth it that teaches nobody but this device."""
        return self._outbox.codec().personal is not None or self._serve(manifest) == "auto"
