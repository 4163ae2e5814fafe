"""Runs trainings in a child process and commits what comes of them, exactly once.

A job is a directory: job.json goes in, result.json comes out last. A result is committed by its
job's number, so that a job found after a crash is either finished or thrown away, and never counts
twice.
"""

import logging
import random
from typing import NamedTuple

from edge_agent.board.child_job import ChildJob, Ended
from edge_agent.board.children import Launch
from edge_agent.board.pace import Pace
from edge_agent.board.problems import Problems, sentence_of
from edge_agent.personal.own_models import OwnModels
from edge_agent.releases.model_slots import Slots
from edge_agent.training.governor import Verdict
from edge_agent.training.job_folders import JobFolders
from edge_agent.training.job_results import JobResults
from edge_agent.training.timing import Timing
from edge_agent.training.training_job import TRAINER, Do, Job
from models.errors import PayloadError, TransientError
from models.host.backoff import Backoff
from models.protocol.doing import Doing
from models.protocol.manifest import Manifest

__all__ = ["Learner"]

log = logging.getLogger("edge_agent")

FIRST_REST_S = 30.0  # after a training that failed; doubles
LONGEST_REST_S = 3600.0


class _Running(NamedTuple):
    child: ChildJob
    job: Job
    manifest: Manifest
    since: float


class _Idle(NamedTuple):
    with_: tuple[object, ...] = ()  # with this there was nothing to do,
    until: float = 0.0  # and will not be, until then


class Learner:
    """Trains when the governor lets it; its owner passes on the time."""

    def __init__(
        self,
        *,
        slots: Slots,
        timing: Timing,
        folders: JobFolders,
        results: JobResults,
        launch: Launch,
        problems: Problems,
        rng: random.Random,
        check_seconds: float,
        pace: Pace,
    ) -> None:
        self._slots = slots
        self._timing = timing
        self._folders = folders
        self._results = results
        self._launch = launch
        self._problems = problems
        self._rng = rng
        self._check_seconds = check_seconds
        self._pace = pace
        self._running: _Running | None = None
        self._look_at = 0.0
        self._looked_at: Manifest | None = None
        self._idle = _Idle()
        self.backoff = Backoff(FIRST_REST_S, LONGEST_REST_S)
        self.verdict = Verdict("wait", "starting")

    @property
    def state(self) -> str:
        if self._running is None:
            return ""
        return Doing.TRAINING if self._running.job.do == "train" else Doing.EVALUATING

    @property
    def rest(self) -> str:
        """Why it does nothing, where that is worth a word in the status; else empty."""
        return self.verdict.state

    @property
    def own(self) -> OwnModels:
        """What is this device's own, as last committed."""
        return self._folders.own

    def pinned(self) -> frozenset[str]:
        """Return the digests of the files that the running job reads."""
        if self._running is None:
            return frozenset()
        return frozenset(a.sha256 for a in self._running.manifest.artifacts.values())

    # -- time passes

    def tick(self, now: float) -> float:
        """Collect a finished job, or start one if it is time; return when to look again."""
        if self._running is not None:
            child = self._running.child
            ended = child.poll(now)
            if ended is None:
                return child.next_look(now, self._pace.training_s)
            self._end(self._running, ended, now)
        if self._results.waiting:
            return self._commit_finished(now)
        active = self._slots.active
        if now < self._look_at and not self._is_awaited(active):
            return self._look_at
        seen = (active, *self._timing.what_counts())
        if seen == self._idle.with_ and now < self._idle.until:
            return self._idle.until
        self._idle, self._looked_at = _Idle(), active
        self._look_at = now + self._check_seconds
        again_in_s = None
        if active is not None:
            self.verdict = verdict = self._timing.verdict(active, now)
            if verdict.do != "wait":
                return self._start(verdict.do, active, now)
            again_in_s = verdict.again_in_s
        idle_s = self._pace.idle_s if again_in_s is None else min(again_in_s, self._pace.idle_s)
        self._idle = _Idle(seen, max(self._look_at, now + idle_s))
        if self._pace.idle_s:  # one who sleeps until something changes looks at it at once
            self._look_at = now
        return self._idle.until

    def _is_awaited(self, active: Manifest | None) -> bool:
        """Whether ``active`` is new and has what was learned here, so that nothing else comes.

        After a failure it is no reason to try again sooner.
        """
        is_new = active is not None and active != self._looked_at
        return is_new and not self.backoff.failures and self._timing.is_answered()

    def stop(self) -> None:
        """End the child; its job is thrown away at the next start."""
        if self._running is not None:
            self._running.child.kill()
            self._running = None
        self._timing.spending.write()

    def _start(self, do: Do, manifest: Manifest, now: float) -> float:
        child = None
        try:
            number = self._folders.next_number()
            child = ChildJob(self._launch, self._folders.folder(number), program=TRAINER)
            child.prepare()
            job, path = self._folders.describe(do, manifest, number)
            if do == "train":
                self._timing.begins()
            child.begin([path], now, self._folders.max_seconds)
        except (OSError, TransientError) as error:
            if child is not None:
                child.clear()
            self._timing.ended(0.0)  # what it was to take was not spent
            self._fail(f"training could not start: {sentence_of(error)}", now, is_disk=True)
            return self._look_at
        self._running = _Running(child, job, manifest, now)
        log.info("%s begins release=%d job=%d", self.state, manifest.release, number)
        return child.next_look(now, self._pace.training_s)

    def _end(self, running: _Running, ended: Ended, now: float) -> None:
        self._running = None
        job = running.job
        self._timing.ended(now - running.since)
        if ended.worked:
            if job.do == "train":
                self._timing.trained(running.since)
            self._results.waiting.append(running.child.folder)
            self._look_at = now
            return
        if ended.is_overdue:
            reason = f"it was stopped after {self._folders.max_seconds / 60:.0f} minutes"
            if job.do == "train":
                with self._problems.contained("storage"):
                    self._folders.note_slowness(job)
        elif ended.is_killed:
            reason = "the system ended it: not enough memory; lower training.max_batch"
        else:
            reason = ended.reason
        running.child.clear()
        with self._problems.contained("storage"):
            self._results.tidy()  # what it had written before it failed
        reason = f"{job.do} of release {job.release} failed: {reason}"
        self._fail(reason, now, is_disk=ended.is_disk)

    def _fail(self, reason: str, now: float, *, is_disk: bool = False) -> None:
        """Rest: ever longer, except where only the disk was full or failing."""
        rest_s = FIRST_REST_S if is_disk else self.backoff.failed(now)
        self._look_at = now + rest_s * self._rng.uniform(0.5, 1.0)
        self._problems.say("training", f"{reason}; next attempt in {rest_s:.0f} s")

    def _commit_finished(self, now: float) -> float:
        """Commit what children have finished, if it is time; return when to look again.

        A full disk only delays it.
        """
        if now < self._look_at:
            return self._look_at
        self._look_at = now + self._check_seconds
        while self._results.waiting:
            try:
                self._results.commit_first()
            except TransientError as error:
                self._fail(f"the result waits: {error}", now, is_disk=True)
                return self._look_at
            except (OSError, PayloadError) as error:
                self._problems.say("training", f"a result was lost: {sentence_of(error)}")
            else:
                self.backoff.worked()
                self._timing.took_mb = self._results.took_mb
                self._problems.clear("training")
            self._results.drop_first()
        self._results.tidy()
        return self._look_at
