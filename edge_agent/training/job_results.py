"""What trainings leave: finished jobs, each committed once, also those that a crash left."""

import logging
import os
import shutil

from edge_agent.personal.own_models import DIGITS, noted_of
from edge_agent.spending.spending_book import SpendingBook
from edge_agent.training.job_folders import JobFolders
from edge_agent.training.training_job import (
    ALONE,
    CONTEXT,
    JOB,
    PAYLOAD,
    RESULT,
    Job,
    Result,
    decode_job,
    decode_result,
    update_header,
)
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Trained
from edge_agent.updates.outbox_facts import Noted
from models.host.files import content_of, delete

__all__ = ["JobResults"]

log = logging.getLogger("edge_agent")


class JobResults:
    """The finished jobs whose results are not committed yet, oldest first."""

    def __init__(
        self,
        folders: JobFolders,
        outbox: Outbox,
        spending: SpendingBook,
        *,
        task: str,
        chunk_size: int,
    ) -> None:
        self._folders = folders
        self._outbox = outbox
        self._spending = spending
        self._task = task
        self._chunk_size = chunk_size
        self.waiting: list[str] = []  # folders
        self.took_mb = 0.0  # of memory, the last training committed by this process
        self._find_what_a_crash_left()

    def commit_first(self) -> None:
        """Commit the first of those that wait, unless that was done before.

        Raises:
            TransientError: the disk is full or failing: tried again later.
            PayloadError, OSError: it is damaged or gone.
        """
        folder = self.waiting[0]
        job = decode_job(content_of(f"{folder}/{JOB}"))
        result = decode_result(content_of(f"{folder}/{RESULT}"))
        facts = self._spending.noted()
        before = self._outbox.facts.read()
        if job.do == "alone" and job.number <= before.alone_job:
            return  # it was committed before a crash: its steps count once
        if job.do == "evaluate" or result.metric is not None:
            facts["evaluated_release"] = job.release
        if result.metric is not None:
            facts["accuracy"] = result.metric
            if before.accuracy_first is None:
                facts["accuracy_first"] = result.metric
        facts |= self._scored(job, result)
        facts["trainer_peak_rss_mb"] = max(result.peak_rss_mb, before.trainer_peak_rss_mb or 0.0)
        if job.do == "alone":
            self._outbox.facts.note(**facts)
            log.info(
                "trained alone steps=%d accuracy=%s", result.steps, facts.get("accuracy_alone")
            )
            return
        if job.do == "evaluate":
            self._outbox.facts.note(**facts)
            log.info("release evaluated number=%d %s", job.release, _measured(result))
            return
        if self._outbox.codec().job != job.after:
            return  # it was committed before a crash, or began from what is no longer so
        facts |= _learned(job, result)
        facts["steps_ever"] = before.steps_ever + result.steps
        payload = content_of(f"{folder}/{PAYLOAD}") if result.has_payload else b""
        trained = self._trained(job, result, payload)
        self.took_mb = result.peak_rss_mb
        made = self._outbox.commit(trained, chunk_size=self._chunk_size, facts=facts)
        log.info(
            "%s seq=%d release=%d samples=%d steps=%d bytes=%d loss=%.4f->%.4f %s",
            "update queued" if made.seq else "trained without an update",
            made.seq,
            job.release,
            result.samples,
            result.steps,
            len(payload) if made.seq else 0,
            result.loss_first,
            result.loss_last,
            _measured(result),
        )
        if made.merged_back:
            log.warning("outbox full, oldest updates merged back count=%d", made.merged_back)
        if made.replaced:
            log.info("updates that had not left replaced count=%d", made.replaced)
        if result.residual_lost or result.refunds_lost:
            log.error("part of the residual was damaged on disk and is lost")
        if result.history_lost:
            log.error("the memory shared with the server was damaged on disk; it begins anew")

    def _trained(self, job: Job, result: Result, payload: bytes) -> Trained:
        if result.has_residual:
            residual: str | None = job.new_residual
        else:
            residual = None if result.residual_lost else job.residual
        return Trained(
            job=job.number,
            base=job.release,
            header=update_header(result, payload, self._task) if payload else b"",
            payload=payload,
            residual=_name(residual),
            personal=_name(job.new_personal) if result.has_personal else None,
            merged=job.refund_numbers,
            lost=result.refunds_lost,
            feedback=job.how.feedback,
            history=_name(job.history),
            next_history=_name(job.new_history) if result.has_next else None,
            next_owed=_name(job.new_owed) if result.has_next_owed else None,
            tuned=_name(job.new_tuned) if result.has_tuned else None,
        )

    def _scored(self, job: Job, result: Result) -> Noted:
        """Return what is noted of how good the models are, and of which one runs."""
        before, facts = self._outbox.facts.read(), Noted()
        if job.do == "alone":
            facts["alone_job"] = job.number
            gone_before = 0 if result.begins_anew else before.alone_steps
            facts["alone_steps"] = gone_before + result.steps
            if result.scores is not None and result.scores.alone is not None:
                facts["accuracy_alone"] = round(result.scores.alone, DIGITS)
        elif result.scores is not None:
            has_trained = job.do == "train"
            is_here = job.tuned is not None and result.scores.tuned is not None  # not damaged
            kept = result.has_tuned if has_trained else is_here
            facts = noted_of(
                result.scores, before, may_choose=job.chooses and kept, has_trained=has_trained
            )
        return facts

    def drop_first(self) -> None:
        """Delete the first of those that wait."""
        shutil.rmtree(self.waiting.pop(0), ignore_errors=True)

    def tidy(self) -> None:
        """Delete the codec's files that no transaction names; no job is running.

        Those of finished jobs are still to be named: while one waits, all stay.
        """
        if self.waiting:
            return
        codec = self._outbox.codec()
        alone = ALONE.format(self._outbox.facts.read().alone_job)
        named = {codec.residual, codec.personal, codec.history, codec.tuned, alone}
        with os.scandir(self._folders.codec) as entries:
            loose = {entry.name: entry.path for entry in entries if entry.name not in named}
        if not loose:
            return
        carried = self._outbox.carried
        owed = {CONTEXT.format(digest) for digest in carried.contexts()} | carried.next_files()
        for name in sorted(loose.keys() - owed):
            delete(loose[name])

    def _find_what_a_crash_left(self) -> None:
        """Keep finished jobs to commit them; throw the others away."""
        for number in sorted(os.listdir(self._folders.jobs), key=lambda name: name.zfill(20)):
            folder = self._folders.folder(number)
            if os.path.exists(f"{folder}/{RESULT}") and os.path.exists(f"{folder}/{JOB}"):
                self.waiting.append(folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        self.tidy()


def _learned(job: Job, result: Result) -> Noted:
    facts: Noted = {
        "ms_per_step": result.ms_per_step,
        "steps": result.steps,
        "round_seconds": max(0.0, result.seconds - result.steps * result.ms_per_step / 1000),
        "trained_release": job.release,
        "trained_until": job.until,
        "trained_folded": job.folded,
        "trained_asked": job.asked,
        "tuned_release": job.release,
        "tuned_until": job.until,
        "tuned_folded": job.folded,
        "training_began": job.began,
    }
    if result.codec_step is not None:
        facts["codec_step"] = result.codec_step
    return facts


def _name(path: str | None) -> str | None:
    return os.path.basename(path) if path else None


def _measured(result: Result) -> str:
    if result.metric is None:
        return "holdout=0"
    return f"{result.metric_name}={result.metric:.4f} holdout={result.holdout}"
