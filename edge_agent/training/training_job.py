"""What the learner and the trainer child say to each other: two small JSON files. Numpy-free."""

import hashlib
import zlib
from typing import Literal

import msgspec

from edge_agent.personal.own_scores import Scores
from edge_agent.releases.model_slots import Slots
from models.errors import PayloadError
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan, Manifest, TrainingPlan
from models.protocol.update import Extras, UpdateHeader, encode_header

__all__ = [
    "ALONE",
    "CONTEXT",
    "JOB",
    "PAYLOAD",
    "RESULT",
    "TRAINER",
    "TUNED",
    "Do",
    "Job",
    "Result",
    "decode_job",
    "decode_result",
    "describe",
    "digest_of",
    "update_header",
]

TRAINER = "edge_agent.training.trainer"  # the child program
JOB = "job.json"
MAX_SAMPLE_BYTES = 16_000_000  # in the trainer's memory at a time
LARGEST_LOSS = 3e38  # a header carries float32
Do = Literal["train", "evaluate", "alone"]
RESULT = "result.json"  # written last: it promises that everything it names is whole and durable
PAYLOAD = "payload.bin"
TUNED = "tuned-{}.npz"  # by the job's number: this device's own model,
ALONE = "alone-{}.npz"  # and one of its data alone
CONTEXT = "context-{:08x}.npz"  # by its digest; stays while a payload needs it to be decoded


class Job(msgspec.Struct, frozen=True):
    """One training or evaluation. Paths are absolute; the result lies beside the job."""

    do: Do
    number: int
    release: int
    spec: str
    train_model: str
    infer_model: str
    parameters: str
    samples: tuple[str, ...]  # segments
    holdout: tuple[str, ...]
    plan: TrainingPlan
    codec: CodecPlan
    max_sample_bytes: int  # of samples in memory at a time
    seed: int
    threads: int = 1
    residual: str | None = None  # to start from
    personal: str | None = None
    after: int = 0  # the job whose residual this one starts from
    until: int = 0  # samples ever, when this job began
    began: float = 0.0  # Unix seconds, by the board's clock
    folded: int = 0  # `Manifest.folded` of ``release``
    asked: int = 0  # `digest_of` what the release asks of a training
    refunds: tuple[str, ...] = ()  # payloads to add to the residual
    refund_numbers: tuple[int, ...] = ()  # of the outbox, in the same order
    new_residual: str = ""  # where to write what the payload leaves out
    new_personal: str = ""
    evaluate_after: bool = False
    previous: str | None = None  # parameters of the parent of ``release``: the codec's context
    contexts: str = ""  # directory of the contexts of payloads that may come back
    learning: LearningPlan | None = None  # None: nothing but defaults, and no extras in the header
    sends: bool = True  # False: no payload is made, since an answer must come before it
    history: str | None = None  # h to start from, with a memory; None: zeros
    new_history: str = ""  # where to write what is remembered and owed once the server has folded
    new_owed: str = ""
    moved_from: str | None = None  # parameters of the release before, for gd-sec; None: the same
    hint: float | None = None  # the codec's step of the last payload
    released: str | None = None  # what runs of the release; None: ``parameters``
    chooses: bool = False  # some of the hold-out decide whether the release runs, or tuned
    tuned: str | None = None  # this device's own model, from before
    new_tuned: str = ""
    alone: str | None = None  # a model of this device's data alone, to go on from
    new_alone: str = ""

    @property
    def how(self) -> LearningPlan:
        """How the release is learned from."""
        return self.learning or LearningPlan()


class Result(msgspec.Struct, frozen=True):
    """What came of it."""

    number: int
    release: int
    samples: int = 0
    steps: int = 0
    loss_first: float = 0.0
    loss_last: float = 0.0
    metric_name: str = "accuracy"
    metric: float | None = None  # of the release on the hold-out, with the personal values
    metric_after: float | None = None  # of the locally trained model, if asked for
    holdout: int = 0
    payload_size: int = 0
    payload_sha256: str = ""
    dense_size: int = 0  # bytes that the delta would take uncompressed
    refunds_lost: int = 0  # payloads that could not be read
    residual_lost: bool = False  # the residual file could not be read
    has_personal: bool = False
    has_payload: bool = True
    has_residual: bool = True  # `Job.new_residual` was written
    has_next: bool = False  # likewise `Job.new_history`
    has_next_owed: bool = False  # likewise `Job.new_owed`
    history_lost: bool = False  # the history could not be read: this one is made against zeros
    codec_step: float | None = None  # the hint for the next payload
    extras: Extras | None = None  # of the update's header; None: the header has none
    scores: Scores | None = None  # None: no hold-out
    has_tuned: bool = False  # `Job.new_tuned` was written
    begins_anew: bool = False  # the model of this device alone: there was none, or it is lost
    ms_per_step: float = 0.0
    peak_rss_mb: float = 0.0
    seconds: float = 0.0


def digest_of(manifest: Manifest) -> int:
    """Return a number that changes when the server asks for another kind of training.

    Numbers that it moves from release to release, such as estimates, are no other kind.
    """
    asked = msgspec.structs.replace(manifest.training, open=True, repeat=True)
    about: tuple[object, ...] = (asked, manifest.artifacts["train"].sha256)
    if manifest.plan.feedback != "residual":
        about = (*about, manifest.plan.feedback, manifest.plan.gradient)
    return zlib.crc32(msgspec.json.encode(about))


def decode_job(data: bytes) -> Job:
    """Read a job.

    Raises:
        PayloadError: the file is damaged.
    """
    try:
        return msgspec.json.decode(data, type=Job)
    except msgspec.MsgspecError as error:
        raise PayloadError(f"job of a training: {error}") from None


def decode_result(data: bytes) -> Result:
    """Read a result.

    Raises:
        PayloadError: the file is damaged.
    """
    try:
        return msgspec.json.decode(data, type=Result)
    except msgspec.MsgspecError as error:
        raise PayloadError(f"result of a training: {error}") from None


def describe(
    do: Do,
    manifest: Manifest,
    slots: Slots,
    *,
    samples: tuple[str, ...],
    holdout: tuple[str, ...],
    number: int,
    plan: TrainingPlan,
    seed: int,
) -> Job:
    """Return a job on ``manifest`` and these segments, without a codec state."""
    parent = slots.passive
    follows = parent is not None and parent.release == manifest.parent
    is_gd_sec = manifest.plan.feedback == "gd-sec"
    return Job(
        do=do,
        number=number,
        release=manifest.release,
        spec=slots.path(manifest, "spec"),
        train_model=slots.path(manifest, "train"),
        infer_model=slots.path(manifest, "infer"),
        parameters=slots.path(manifest, "parameters"),
        samples=samples,
        holdout=holdout,
        plan=plan,
        folded=manifest.folded,
        asked=digest_of(manifest),
        codec=manifest.codec,
        max_sample_bytes=MAX_SAMPLE_BYTES,
        seed=seed,
        previous=slots.path(parent, "parameters") if parent and follows else None,
        learning=manifest.learning,
        released=slots.path(manifest, manifest.runs),
        moved_from=slots.path(parent, "parameters") if parent and is_gd_sec else None,
    )


def update_header(result: Result, payload: bytes, task: str) -> bytes:
    """Return the encoded header that describes ``payload``.

    Raises:
        PayloadError: it is not the payload that ``result`` promises.
    """
    found = hashlib.sha256(payload).hexdigest()
    if (len(payload), found) != (result.payload_size, result.payload_sha256):
        raise PayloadError("the payload of a training is damaged")
    is_accuracy = result.metric_name == "accuracy" and result.metric is not None
    header = UpdateHeader(
        task=task,
        base=result.release,
        samples=result.samples,
        steps=result.steps,
        loss_first=min(result.loss_first, LARGEST_LOSS),
        loss_last=min(result.loss_last, LARGEST_LOSS),
        accuracy=result.metric if is_accuracy else None,
        payload_size=len(payload),
        payload_sha256=found,
        extras=_extras(result),
    )
    return encode_header(header)


def _extras(result: Result) -> Extras | None:
    if result.extras is None:
        return None
    return msgspec.structs.replace(
        result.extras,
        seconds=round(result.seconds, 3),
        ms_per_step=round(result.ms_per_step, 3),
    )
