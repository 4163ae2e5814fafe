"""The child program that trains: `python -m edge_agent.training.trainer JOB.json`.

Reads a release and samples, measures the release on the hold-out, trains, and writes what shall be
sent and what is left over. It has no network; whatever it writes counts only once the agent has
committed it, so it may be killed at any moment.
"""

import hashlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.board.children import DISK_FAILED, peak_rss_mb, settle_in
from edge_agent.board.problems import sentence_of
from edge_agent.training.local_update import local_update
from edge_agent.training.training_job import (
    CONTEXT,
    PAYLOAD,
    RESULT,
    Job,
    Result,
    decode_job,
)
from models.codec.feedback import Carried, taken_back
from models.codec.payload import decompress
from models.errors import EdgefoldError, PayloadError, UsageError
from models.host.durable import atomic_write
from models.host.files import content_of, patiently
from models.learning.measurement import evaluate
from models.learning.training_loop import TrainingResult, train
from models.protocol.learning import LearningPlan
from models.protocol.npz import read_arrays, read_vector, write_vector
from models.protocol.update import context_in
from models.task.onnx_weights import read_weights
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import Role, TaskSpec, decode_spec

__all__ = ["carry_out", "main", "read_samples"]

Array = npt.NDArray[Any]

EVALUATION_BATCH = 32  # bounds the memory of activations


def main(arguments: list[str] | None = None) -> int:
    (job_file,) = arguments or sys.argv[1:]
    settle_in()
    path = Path(job_file)
    try:
        job = decode_job(path.read_bytes())
        result = carry_out(job, path.parent)
        atomic_write(path.parent / RESULT, msgspec.json.encode(result))
    except (OSError, EdgefoldError) as error:
        print(sentence_of(error), file=sys.stderr)
        return DISK_FAILED if isinstance(error, OSError) else 1
    return 0


def carry_out(job: Job, folder: Path) -> Result:
    """Do what ``job`` says; write payload and codec state where it says, durably.

    Raises:
        UsageError, PayloadError: the samples or the release do not fit, or training diverged.
        OSError: the disk is full or failing.
    """
    began = time.monotonic()
    spec = decode_spec(Path(job.spec).read_bytes())
    base = read_vector(Path(job.parameters).read_bytes(), size=spec.shared_size)
    tensors = unflatten(base, spec.shared) | _personal(job, spec)
    result = Result(
        number=job.number,
        release=job.release,
        dense_size=4 * spec.shared_size,
        metric_name=spec.metric,
    )
    holdout = read_samples(job.holdout, spec, max_bytes=job.max_sample_bytes)
    result = _measured(result, "metric", job, spec, tensors, holdout)
    if job.do == "train":
        x, y = read_samples(job.samples, spec, max_bytes=job.max_sample_bytes)
        if not len(x):
            raise UsageError("no samples to train on")
        trained = train(
            Path(job.train_model).read_bytes(),
            spec,
            tensors,
            x,
            y,
            job.plan,
            seed=job.seed,
            threads=job.threads,
        )
        result = msgspec.structs.replace(
            result,
            samples=len(x),
            steps=trained.steps,
            loss_first=trained.loss_first,
            loss_last=trained.loss_last,
            ms_per_step=trained.ms_per_step,
        )
        del x, y
        if job.evaluate_after:
            result = _measured(result, "metric_after", job, spec, trained.tensors, holdout)
        result = _packed(result, job, spec, base, trained, folder)
    return msgspec.structs.replace(
        result,
        seconds=time.monotonic() - began,
        peak_rss_mb=peak_rss_mb(),
    )


def _measured(
    result: Result,
    field: str,
    job: Job,
    spec: TaskSpec,
    tensors: dict[str, Tensor],
    holdout: tuple[Array, Array],
) -> Result:
    if not len(holdout[0]):
        return result
    model = Path(job.infer_model).read_bytes()
    found = evaluate(model, spec, tensors, *holdout, batch=EVALUATION_BATCH, threads=job.threads)
    return msgspec.structs.replace(result, holdout=found.samples, **{field: found.metric})


def _packed(
    result: Result, job: Job, spec: TaskSpec, base: Vector, trained: TrainingResult, folder: Path
) -> Result:
    """Compress what was learned and is owed; write payload, residual and personal values."""
    delta = flatten(trained.tensors, spec.shared) - base
    residual, residual_lost = _residual(job, spec)
    carried, lost = Carried(residual), 0
    for refund in job.refunds:
        try:
            carried = taken_back(_refunded(Path(refund).read_bytes(), job, spec), carried)
        except (PayloadError, FileNotFoundError):
            lost += 1
    context = _context(job, spec, base)
    made = local_update(
        delta, carried, tensors=spec.shared, plan=LearningPlan(), codec=job.codec, context=context
    )
    payload = made.payload
    if context is not None and (digest := context_in(payload)) is not None:
        kept = Path(job.contexts) / CONTEXT.format(digest)
        atomic_write(kept, write_vector(context, "context"))
    if made.carried.owed is not None:
        atomic_write(Path(job.new_residual), write_vector(made.carried.owed, "residual"))
    personal = spec.with_role(Role.PERSONAL)
    if personal:
        values = flatten(trained.tensors, personal)
        atomic_write(Path(job.new_personal), write_vector(values, "personal"))
    atomic_write(folder / PAYLOAD, payload)
    return msgspec.structs.replace(
        result,
        payload_size=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        refunds_lost=lost,
        residual_lost=residual_lost,
        has_personal=bool(personal),
    )


def _context(job: Job, spec: TaskSpec, base: Vector) -> Vector | None:
    """Return what the last release changed, which the server holds too; None: do without."""
    if job.previous is None or not job.contexts or job.codec.context == "none":
        return None
    try:
        before = read_vector(_content(job.previous), size=spec.shared_size)
    except (FileNotFoundError, PayloadError):  # a newer release took its place meanwhile
        return None
    context: Vector = base - before
    return context if context.any() and np.isfinite(context).all() else None


def _refunded(payload: bytes, job: Job, spec: TaskSpec) -> Vector:
    """Return what a payload that came back says, in the context that it was made in."""
    context = None
    if (digest := context_in(payload)) is not None:
        data = _content(f"{job.contexts}/{CONTEXT.format(digest)}")
        context = read_vector(data, size=spec.shared_size, name="context")
    return decompress(payload, spec.shared, context=context)


def _residual(job: Job, spec: TaskSpec) -> tuple[Vector | None, bool]:
    """Return what is owed from before, and whether it was there but could not be read."""
    if job.residual is None:
        return None, False
    try:
        data = _content(job.residual)
        return read_vector(data, size=spec.shared_size, name="residual"), False
    except (FileNotFoundError, PayloadError):
        return None, True


def _personal(job: Job, spec: TaskSpec) -> dict[str, Tensor]:
    """Return this device's own tensors: as trained last, else as the model has them."""
    tensors = spec.with_role(Role.PERSONAL)
    if not tensors:
        return {}
    if job.personal is not None:
        try:
            size = sum(tensor.size for tensor in tensors)
            data = _content(job.personal)
            return unflatten(read_vector(data, size=size, name="personal"), tensors)
        except (FileNotFoundError, PayloadError) as error:
            print(f"personal values start anew: {sentence_of(error)}", file=sys.stderr)
    values = read_weights(Path(job.infer_model).read_bytes(), tensors)
    return {name: np.array(value) for name, value in values.items()}


def read_samples(paths: Sequence[str], spec: TaskSpec, *, max_bytes: int) -> tuple[Array, Array]:
    """Return the newest samples of these segments that fit into ``max_bytes``, oldest first.

    A segment that is damaged, gone, or of another shape is left out.
    """
    parts: list[tuple[Array, Array]] = []
    size = 0
    for path in reversed(paths):
        try:
            arrays = read_arrays(_content(path), max_bytes=max_bytes)
            x, y = arrays["x"], arrays["y"]
        except (FileNotFoundError, PayloadError, KeyError):
            print(f"segment left out: {Path(path).name} is damaged", file=sys.stderr)
            continue
        if (x.dtype, x.shape[1:]) != (np.dtype(spec.x.dtype), spec.x.shape) or len(x) != len(y):
            continue
        size += x.nbytes + y.nbytes
        if parts and size > max_bytes:
            break
        parts.append((x, y))
    if not parts:
        return np.zeros((0, *spec.x.shape), spec.x.dtype), np.zeros(
            (0, *spec.y.shape), spec.y.dtype
        )
    parts.reverse()
    return _joined(x for x, _ in parts), _joined(y for _, y in parts)


def _content(path: str) -> bytes:
    """Return what a file of this device holds; on a bad sector it is as good as damaged.

    Raises:
        FileNotFoundError: there is none.
        PayloadError: it cannot be read, now and a little later.
    """
    try:
        return patiently(lambda: content_of(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PayloadError(f"{path}: {sentence_of(error)}") from None


def _joined(arrays: Iterable[Array]) -> Array:
    return np.concatenate(list(arrays))


if __name__ == "__main__":
    raise SystemExit(main())
