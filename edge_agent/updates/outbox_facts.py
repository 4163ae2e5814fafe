"""The facts in the outbox: counters, and what was measured last."""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict, Unpack

from edge_agent.updates.outbox_file import OutboxFile, Question, Rows

__all__ = ["FACTS", "OF_UPDATES", "FactTable", "Noted", "OutboxFacts"]

_PUT = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = "
_SET = f"{_PUT} excluded.value"
_ADD = f"{_PUT} value + excluded.value"


class OutboxFacts(NamedTuple):
    """What stands there, by name. ``None``: not yet. The file holds floats for all of them."""

    job: int = 0  # the last number that was given to a job
    made: int = 0  # updates, like the next six
    folded: int = 0
    refused: int = 0
    refused_running: int = 0  # since the last that was folded
    merged_back: int = 0  # before they had left, for want of room
    replaced: int = 0  # before they had left, by one made against the same memory
    refunds_lost: int = 0  # refunds that could not be read
    owed: int = 0  # 1: a refused update came back since the last training
    evaluated_release: int = 0
    trained_release: int = 0  # the last that was trained on for an update, like the next three
    trained_until: int = 0  # samples ever, then
    trained_folded: int | None = None  # updates in it
    trained_asked: int | None = None  # digest of what it asked of a training
    tuned_release: int = 0  # the last that was trained on, whether or not an update came of it,
    tuned_until: int = 0  # and samples ever, then
    tuned_folded: int | None = None  # updates in it
    training_began: float | None = None  # Unix seconds, by the board's clock
    ms_per_step: float = 0.0  # 0: not known
    codec_step: float | None = None  # of the last payload: where the codec looks first
    steps_ever: int = 0  # of all trainings
    serves_tuned: int = 0  # 1: this device runs what it tuned itself
    compared: int | None = None  # hold-out samples that decided so, last,
    compared_better: int = 0  # those where tuned was better,
    compared_worse: int = 0  # those where the release was,
    compared_z: float = 0.0  # and how sure that is: `edge_agent.personal.model_choice`
    alone_job: int = 0  # the last that trained a model on this device's data alone,
    alone_steps: int = 0  # and how many steps that model has made; its file has the job's number
    accuracy: float | None = None  # of what runs on the hold-out
    accuracy_shared: float | None = None  # of the release without what is this device's own
    accuracy_after: float | None = None  # of what came of the last training
    accuracy_alone: float | None = None
    accuracy_first: float | None = None  # of the first one
    trainer_peak_rss_mb: float | None = None
    steps: int = 0  # of the last training, like the next two
    round_seconds: float = 0.0  # that it took beside its steps
    round_bytes: float = 0.0  # over the network, both ways, between the beginnings of two trainings
    level_seconds: float | None = None  # what may be spent, like the next two (`allowance`)
    level_bytes: float | None = None
    level_joules: float | None = None


class Noted(TypedDict, total=False):
    """What a training or an evaluation tells of itself: see `OutboxFacts`."""

    evaluated_release: int
    trained_release: int
    trained_until: int
    trained_folded: int
    trained_asked: int
    tuned_release: int
    tuned_until: int
    tuned_folded: int
    training_began: float
    ms_per_step: float
    codec_step: float
    steps_ever: int
    serves_tuned: int
    compared: int
    compared_better: int
    compared_worse: int
    compared_z: float
    alone_job: int
    alone_steps: int
    accuracy: float
    accuracy_shared: float
    accuracy_after: float
    accuracy_alone: float
    accuracy_first: float
    trainer_peak_rss_mb: float
    steps: int
    round_seconds: float
    round_bytes: float
    level_seconds: float
    level_bytes: float
    level_joules: float


# What a training does not change that taught the fleet nothing: it is still due.
OF_UPDATES = {"trained_release", "trained_until", "trained_folded", "trained_asked", "codec_step"}
_FLOATS = {
    "training_began",
    "ms_per_step",
    "codec_step",
    "compared_z",
    "accuracy",
    "accuracy_shared",
    "accuracy_after",
    "accuracy_alone",
    "accuracy_first",
    "trainer_peak_rss_mb",
    "round_seconds",
    "round_bytes",
    "level_seconds",
    "level_bytes",
    "level_joules",
}


def _facts(rows: Rows) -> OutboxFacts:
    known = {name: value for name, value in rows if name in OutboxFacts._fields}
    return OutboxFacts(**{name: v if name in _FLOATS else int(v) for name, v in known.items()})


FACTS = Question("facts", "SELECT name, value FROM facts", _facts)


class FactTable:
    """The table of the facts."""

    def __init__(self, file: OutboxFile) -> None:
        self._file = file

    def read(self) -> OutboxFacts:
        return self._file.answer(FACTS)

    def note(self, **measured: Unpack[Noted]) -> None:
        """Store measurements."""
        with self._file.transaction("facts"):
            self.put(measured)

    def next_job(self) -> int:
        """Return a job number that was never returned before, by this or an earlier process."""
        with self._file.transaction("facts"):
            return self.count_job()

    # -- parts of a transaction

    def count_job(self) -> int:
        return self._file.one(f"{_ADD} RETURNING value", "job", 1)

    def put(self, facts: Mapping[str, object]) -> None:
        self._file.repeat(_SET, facts.items())

    def add(self, **counts: int) -> None:
        self._file.repeat(_ADD, counts.items())

    def drop(self, *names: str) -> None:
        """Forget these facts."""
        for name in names:
            self._file.rows("DELETE FROM facts WHERE name = ?", name)

    def drop_all(self) -> None:
        """Forget all but how many jobs there were: their numbers never come back."""
        self._file.rows("DELETE FROM facts WHERE name != 'job'")
