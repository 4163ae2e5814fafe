"""What a training is given: a folder for each job, with its description and all that it reads."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.personal.model_choice import Serve
from edge_agent.personal.own_models import OwnModels
from edge_agent.releases.model_slots import Slots
from edge_agent.samples.sample_store import Samples
from edge_agent.spending.allowance import DailyLimits
from edge_agent.training.local_steps import all_by_itself, chosen_steps, costs_of, within_budget
from edge_agent.training.training_job import ALONE, JOB, TUNED, Do, Job, describe
from edge_agent.updates.outbox import Outbox
from models.host.durable import atomic_write
from models.protocol.manifest import Manifest

__all__ = ["JobFolders"]


class JobFolders:
    """Below ``directory``: the folders of the jobs, and what the codec keeps from one to the next.

    A job may take a batch of ``max_batch`` and ``max_seconds``. Folders are texts, not `Path`: see
    `models.host.files`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        slots: Slots,
        samples: Samples,
        outbox: Outbox,
        rng: random.Random,
        wall_clock: Callable[[], float],
        max_batch: int,
        max_seconds: float,
        limits: DailyLimits,
        serve: Serve | None = None,
    ) -> None:
        self.jobs = f"{directory}/jobs"
        self.codec = f"{directory}/codec"
        self.max_seconds = max_seconds
        self._slots = slots
        self._samples = samples
        self._outbox = outbox
        self._rng = rng
        self._wall_clock = wall_clock
        self._max_batch = max_batch
        self.own: Final = OwnModels(
            lambda: (outbox.codec(), outbox.facts.read()), self.codec, owner=serve
        )
        self._limits = limits
        for folder in (self.jobs, self.codec):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def next_number(self) -> int:
        """Return the number of the next job, which is never used again.

        Raises:
            TransientError: the disk is full or failing.
        """
        return self._outbox.facts.next_job()

    def folder(self, number: int | str) -> str:
        """Return where a job is."""
        return f"{self.jobs}/{number}"

    def describe(self, do: Do, manifest: Manifest, number: int) -> tuple[Job, str]:
        """Write a job on ``manifest`` into its folder; return it, and the path of its file.

        Raises:
            TransientError, OSError: the disk is full or failing.
        """
        folder = self.folder(number)
        counts = self._samples.counts()
        feedback = manifest.plan.feedback
        sends = do == "train" and not self._outbox.must_wait(feedback)
        if sends:
            self._outbox.take_back(feedback)
        codec = self._outbox.codec()
        refunds = tuple(self._outbox.carried.refunds()) if sends else ()
        for seq in refunds:
            with open(_refund(folder, seq), "wb") as file:
                file.write(self._outbox.carried.refund(seq))
        facts = self._outbox.facts.read()
        plan = within_budget(
            chosen_steps(
                manifest.training,
                manifest.plan.steps,
                costs_of(facts, self._limits),
                previous=facts.steps,
            ),
            samples=max(1, counts.train),
            max_batch=self._max_batch,
            max_seconds=self.max_seconds,
            ms_per_step=facts.ms_per_step,
        )
        if do == "alone":
            plan = all_by_itself(plan, steps=facts.steps_ever - facts.alone_steps)
        chooses = self.own.serve(manifest) == "auto"
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
        job = msgspec.structs.replace(
            job,
            sends=sends,
            residual=self._path(codec.residual),
            personal=self._path(codec.personal),
            history=self._path(codec.history_for(feedback)),
            after=codec.job,
            until=counts.ever,
            began=self._wall_clock(),
            refunds=tuple(_refund(folder, seq) for seq in refunds),
            refund_numbers=refunds,
            new_residual=f"{self.codec}/residual-{number}.npz",
            new_personal=f"{self.codec}/personal-{number}.npz",
            new_history=f"{self.codec}/history-{number}.npz",
            new_owed=f"{self.codec}/owed-{number}.npz",
            hint=facts.codec_step,
            contexts=self.codec,
            chooses=chooses,
            tuned=self._path(codec.tuned) if chooses else None,
            new_tuned=f"{self.codec}/{TUNED.format(number)}" if chooses else "",
            alone=self._path(ALONE.format(facts.alone_job)) if facts.alone_job else None,
            new_alone=f"{self.codec}/{ALONE.format(number)}",
        )
        path = f"{folder}/{JOB}"
        atomic_write(path, msgspec.json.encode(job))
        return job, path

    def _path(self, name: str | None) -> str | None:
        return f"{self.codec}/{name}" if name else None

    def note_slowness(self, job: Job) -> None:
        """Take from a training that did not finish how long a step is here: the next has half."""
        self._outbox.facts.note(ms_per_step=1000.0 * self.max_seconds / job.plan.max_steps)


def _refund(folder: str, seq: int) -> str:
    return f"{folder}/refund-{seq}.bin"
