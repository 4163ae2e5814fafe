"""Runs trainings in a child process and commits what comes of them, exactly once.

A job is a directory: job.json goes in, result.json comes out last. A result is committed by its
job's number, so that a job found after a crash is either finished or thrown away, and never counts
twice.
"""

import logging
import math
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent.board.children import DISK_FAILED, Child, Launch, last_line
from edge_agent.board.problems import Problems, told
from edge_agent.releases.model_slots import Slots
from edge_agent.samples.sample_store import Samples
from edge_agent.training.governor import Limits, Situation, Verdict, Vitals, strain, wish
from edge_agent.training.local_steps import within_budget
from edge_agent.training.training_job import (
    CONTEXT,
    JOB,
    PAYLOAD,
    RESULT,
    TRAINER,
    Job,
    Result,
    decode_job,
    decode_result,
    describe,
    digest_of,
    update_header,
)
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Trained
from edge_agent.updates.outbox_facts import Noted
from models.errors import PayloadError, TransientError
from models.host.backoff import doubled
from models.host.durable import atomic_write
from models.host.files import content_of, delete
from models.protocol.manifest import Manifest

__all__ = ["Learner"]

log = logging.getLogger("edge_agent")

POLL_S = 0.25
FIRST_REST_S = 30.0  # after a training that failed; doubles
LONGEST_REST_S = 3600.0
LONGEST_PACE_S = 86_400.0  # where the server refuses one update after the other
LOG = "log.txt"


class Learner:
    """Trains when the governor lets it; its owner passes on the time."""

    def __init__(
        self,
        *,
        directory: Path,
        task: str,
        slots: Slots,
        samples: Samples,
        outbox: Outbox,
        launch: Launch,
        vitals: Callable[[], Vitals],
        problems: Problems,
        rng: random.Random,
        wall_clock: Callable[[], float],
        limits: Limits,
        min_seconds: float,
        max_batch: int,
        max_seconds: float,
        check_seconds: float,
        chunk_size: int,
    ) -> None:
        self._task = task
        self._jobs = directory / "jobs"
        self._codec = directory / "codec"
        self._slots = slots
        self._samples = samples
        self._outbox = outbox
        self._launch = launch
        self._vitals = vitals
        self._problems = problems
        self._rng = rng
        self._wall_clock = wall_clock
        self._min_seconds = min_seconds  # between the beginnings of two trainings
        self._limits = limits
        self._max_batch = max_batch
        self._max_seconds = max_seconds
        self._check_seconds = check_seconds
        self._chunk_size = chunk_size
        self._child: Child | None = None
        self._job: Job | None = None
        self._manifest: Manifest | None = None
        self._finished: list[str] = []  # folders of jobs to commit
        self._began: float | None = None  # the last training that succeeded; None: look it up
        self._behind_since: float | None = None  # the board's clock, behind that training
        self._starts = 0.0  # the running job
        self._deadline = 0.0
        self._look_at = 0.0
        self._failures = 0
        self._hot = False
        self.verdict = Verdict("wait", "starting")
        for folder in (self._jobs, self._codec):
            folder.mkdir(parents=True, exist_ok=True)
        self._find_what_a_crash_left()

    @property
    def state(self) -> str:
        if self._job is None:
            return ""
        return "training" if self._job.do == "train" else "evaluating"

    @property
    def rest(self) -> str:
        """Why it does nothing, where that is worth a word in the status; else empty."""
        return self.verdict.state

    @property
    def personal(self) -> Path | None:
        """This device's own values, as last committed."""
        name = self._outbox.codec().personal
        return self._codec / name if name else None

    def pinned(self) -> frozenset[str]:
        """Return the digests of the files that the running job reads."""
        if self._manifest is None:
            return frozenset()
        return frozenset(a.sha256 for a in self._manifest.artifacts.values())

    # -- time passes

    def tick(self, now: float) -> float:
        """Collect a finished job, or start one if it is time; return when to look again."""
        if self._child is not None:
            code = self._child.poll()
            if code is None and now < self._deadline:
                return now + POLL_S
            if code is None:
                self._child.kill()
            self._end(code, now)
        if now < self._look_at:
            return self._look_at
        self._look_at = now + self._check_seconds
        if self._finished:
            self._commit_finished(now)
        elif (manifest := self._slots.active) is not None:
            verdict = wish(self._situation(manifest, now), self._limits)
            if verdict.do != "wait":
                reason, self._hot = strain(self._vitals(), self._limits, was_hot=self._hot)
                if reason:
                    verdict = Verdict("wait", reason)
            self.verdict = verdict
            if verdict.do != "wait":
                return self._start(verdict.do, manifest, now)
        return self._look_at

    def stop(self) -> None:
        """End the child; its job is thrown away at the next start."""
        if self._child is not None:
            self._child.kill()
            self._child = self._job = self._manifest = None

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
        return Situation(
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
        )

    # -- a job begins

    def _start(self, do: Literal["train", "evaluate"], manifest: Manifest, now: float) -> float:
        folder = None
        try:
            number = self._outbox.facts.next_job()
            folder = self._folder(number)
            os.mkdir(folder)
            job = self._described(do, manifest, number, folder)
            path = f"{folder}/{JOB}"
            atomic_write(path, msgspec.json.encode(job))
            self._child = self._launch(TRAINER, [path], log=f"{folder}/{LOG}")
        except (OSError, TransientError) as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self._fail(f"training could not start: {told(error)}", now, is_disk=True)
            return self._look_at
        self._job, self._manifest = job, manifest
        self._starts = now
        self._deadline = now + self._max_seconds
        log.info("%s begins release=%d job=%d", self.state, manifest.release, number)
        return now + POLL_S

    def _described(
        self, do: Literal["train", "evaluate"], manifest: Manifest, number: int, folder: str
    ) -> Job:
        counts = self._samples.counts()
        codec = self._outbox.codec()
        refunds = tuple(self._outbox.refunds()) if do == "train" else ()
        for seq in refunds:
            with open(_refund(folder, seq), "wb") as file:
                file.write(self._outbox.refund(seq))
        plan = within_budget(
            manifest.training,
            samples=max(1, counts.train),
            max_batch=self._max_batch,
            max_seconds=self._max_seconds,
            ms_per_step=self._outbox.facts.read().ms_per_step,
        )
        train, holdout = self._samples.paths()
        job = describe(
            do,
            manifest,
            self._slots,
            samples=train,
            holdout=holdout,
            number=number,
            plan=plan,
            seed=self._rng.getrandbits(32),
        )
        return msgspec.structs.replace(
            job,
            residual=f"{self._codec}/{codec.residual}" if codec.residual else None,
            personal=f"{self._codec}/{codec.personal}" if codec.personal else None,
            after=codec.job,
            until=counts.ever,
            began=self._wall_clock(),
            refunds=tuple(_refund(folder, seq) for seq in refunds),
            refund_numbers=refunds,
            new_residual=f"{self._codec}/residual-{number}.npz",
            new_personal=f"{self._codec}/personal-{number}.npz",
            contexts=str(self._codec),
        )

    # -- a job ends

    def _end(self, code: int | None, now: float) -> None:
        job, self._child, self._job, self._manifest = self._job, None, None, None
        assert job is not None  # it lives as long as its child
        folder = self._folder(job.number)
        if code == 0:
            if job.do == "train":
                self._began = self._starts
            self._finished.append(folder)
            self._look_at = now
            return
        if code is None:
            reason = f"it was stopped after {self._max_seconds / 60:.0f} minutes"
            if job.do == "train":
                self._note_slowness(job)
        elif code == -signal.SIGKILL:
            reason = "the system ended it: not enough memory; lower training.max_batch"
        else:
            reason = last_line(f"{folder}/{LOG}") or f"exit code {code}"
        shutil.rmtree(folder, ignore_errors=True)
        self._fail(
            f"{job.do} of release {job.release} failed: {reason}", now, is_disk=code == DISK_FAILED
        )

    def _note_slowness(self, job: Job) -> None:
        """Take from a training that did not finish how long a step is here: the next has half."""
        with self._problems.contained("storage"):
            self._outbox.facts.note(ms_per_step=1000.0 * self._max_seconds / job.plan.max_steps)

    def _fail(self, reason: str, now: float, *, is_disk: bool = False) -> None:
        """Rest: ever longer, except where only the disk was full or failing."""
        rest_s = FIRST_REST_S
        if not is_disk:
            rest_s = doubled(FIRST_REST_S, self._failures, LONGEST_REST_S)
            self._failures += 1
        self._look_at = now + rest_s * self._rng.uniform(0.5, 1.0)
        self._problems.say("training", f"{reason}; next attempt in {rest_s:.0f} s")

    def _commit_finished(self, now: float) -> None:
        """Commit what children have finished; a full disk only delays it."""
        while self._finished:
            folder = self._finished[0]
            try:
                self._commit(folder)
            except TransientError as error:
                self._fail(f"the result waits: {error}", now, is_disk=True)
                return
            except (OSError, PayloadError) as error:
                self._problems.say("training", f"a result was lost: {told(error)}")
            else:
                self._failures = 0
                self._problems.clear("training")
            self._finished.pop(0)
            shutil.rmtree(folder, ignore_errors=True)
        self._tidy()

    def _commit(self, folder: str) -> None:
        job = decode_job(content_of(f"{folder}/{JOB}"))
        result = decode_result(content_of(f"{folder}/{RESULT}"))
        facts: Noted = {}
        before = self._outbox.facts.read()
        if job.do == "evaluate" or result.metric is not None:
            facts["evaluated_release"] = job.release
        if result.metric is not None:
            facts["accuracy"] = result.metric
            if before.accuracy_first is None:
                facts["accuracy_first"] = result.metric
        facts["trainer_peak_rss_mb"] = max(result.peak_rss_mb, before.trainer_peak_rss_mb or 0.0)
        if job.do == "evaluate":
            self._outbox.facts.note(**facts)
            log.info("release evaluated number=%d %s", job.release, _measured(result))
            return
        if self._outbox.codec().job != job.after:
            return  # it was committed before a crash, or began from what is no longer so
        facts |= {
            "ms_per_step": result.ms_per_step,
            "trained_release": job.release,
            "trained_until": job.until,
            "trained_folded": job.folded,
            "trained_asked": job.asked,
            "training_began": job.began,
        }
        payload = content_of(f"{folder}/{PAYLOAD}")
        trained = Trained(
            job=job.number,
            base=job.release,
            header=update_header(result, payload, self._task),
            payload=payload,
            residual=os.path.basename(job.new_residual),
            personal=os.path.basename(job.new_personal) if result.has_personal else None,
            merged=job.refund_numbers,
            lost=result.refunds_lost,
        )
        seq, merged_back = self._outbox.commit(trained, chunk_size=self._chunk_size, facts=facts)
        log.info(
            "update queued seq=%d release=%d samples=%d steps=%d bytes=%d loss=%.4f->%.4f %s",
            seq,
            job.release,
            result.samples,
            result.steps,
            len(payload),
            result.loss_first,
            result.loss_last,
            _measured(result),
        )
        if merged_back:
            log.warning("outbox full, oldest updates merged back count=%d", merged_back)
        if result.residual_lost or result.refunds_lost:
            log.error("part of the residual was damaged on disk and is lost")

    def _find_what_a_crash_left(self) -> None:
        """Keep finished jobs to commit them; throw the others away."""
        for number in sorted(os.listdir(self._jobs), key=lambda name: name.zfill(20)):
            folder = self._folder(number)
            if os.path.exists(f"{folder}/{RESULT}") and os.path.exists(f"{folder}/{JOB}"):
                self._finished.append(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if not self._finished:
            self._tidy()

    def _folder(self, number: int | str) -> str:
        """Where a job is; no `Path`, see `models.host.files`."""
        return f"{self._jobs}/{number}"

    def _tidy(self) -> None:
        """Delete the codec's files that no transaction names; no job is running."""
        codec = self._outbox.codec()
        named = {codec.residual, codec.personal}
        with os.scandir(self._codec) as entries:
            loose = {entry.name: entry.path for entry in entries if entry.name not in named}
        if not loose:
            return
        owed = {CONTEXT.format(digest) for digest in self._outbox.contexts()}
        for name in sorted(loose.keys() - owed):
            delete(loose[name])


def _refund(folder: str, seq: int) -> str:
    return f"{folder}/refund-{seq}.bin"


def _measured(result: Result) -> str:
    if result.metric is None:
        return "holdout=0"
    return f"{result.metric_name}={result.metric:.4f} holdout={result.holdout}"
