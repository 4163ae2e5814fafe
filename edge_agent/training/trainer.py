"""The child program that trains: `python -m edge_agent.training.trainer JOB.json`.

Reads a release and samples, measures the release on the hold-out, trains, and writes what shall be
sent and what is left over. It has no network; whatever it writes counts only once the agent has
committed it, so it may be killed at any moment.
"""

import hashlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.board.children import peak_rss_mb, settle_in, worked_off
from edge_agent.personal.judging import HoldOut, is_worth_keeping
from edge_agent.personal.own_tensors import bundled_tensors, own_vector, personal_tensors
from edge_agent.samples.segment_reading import content, read_numbered, read_samples
from edge_agent.training.gradient_probe import Probe, looked_back, mean_over
from edge_agent.training.local_update import local_update
from edge_agent.training.training_job import (
    CONTEXT,
    PAYLOAD,
    RESULT,
    TRAINER,
    Job,
    Result,
    decode_job,
)
from models.codec.feedback import Carried, history_digest, recursion_of, taken_back
from models.codec.payload import decompress
from models.errors import PayloadError, UsageError
from models.host.durable import atomic_write
from models.learning.measurement import evaluate_each
from models.learning.onnx_session import open_session
from models.learning.scoring import Doubles
from models.learning.training_loop import TrainingResult, train
from models.protocol.npz import read_vector, write_vector
from models.protocol.update import Extras, context_in
from models.task.onnx_weights import read_weights
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import Role, TaskSpec, decode_spec

__all__ = ["carry_out", "main", "work"]

Array = npt.NDArray[Any]

EVALUATION_BATCH = 32  # bounds the memory of activations


def main() -> int:
    settle_in()
    return worked_off(TRAINER, work, sys.argv[1:])


def work(arguments: Sequence[str]) -> None:
    """Carry out the job in the file that ``arguments`` name; write its result beside it.

    Raises:
        EdgefoldError, OSError: as `carry_out`.
    """
    (job_file,) = arguments
    path = Path(job_file)
    job = decode_job(path.read_bytes())
    result = carry_out(job, path.parent)
    atomic_write(path.parent / RESULT, msgspec.json.encode(result))


def carry_out(job: Job, folder: Path) -> Result:
    """Do what ``job`` says; write payload and codec state where it says, durably.

    Raises:
        UsageError, PayloadError: the samples or the release do not fit, or training diverged.
        OSError: the disk is full or failing.
    """
    began = time.monotonic()
    spec = decode_spec(Path(job.spec).read_bytes())
    result = Result(
        number=job.number,
        release=job.release,
        dense_size=4 * spec.shared_size,
        metric_name=spec.metric,
    )
    samples = read_numbered(job.holdout, spec, job.max_sample_bytes)
    hold_out = HoldOut(spec, *samples, partial(_each, job, spec), chooses=job.chooses)
    if job.do == "alone":
        result = _alone(result, job, spec, hold_out)
    else:
        result = _taught(result, job, spec, hold_out, folder)
    return msgspec.structs.replace(
        result,
        seconds=time.monotonic() - began,
        peak_rss_mb=peak_rss_mb(),
    )


def _learned(
    job: Job, spec: TaskSpec, base: Vector, tensors: dict[str, Tensor], x: Array, y: Array
) -> tuple[TrainingResult, Vector]:
    """Train as the release says; return what came of it, and the delta of the shared tensors."""
    model = Path(job.train_model).read_bytes()
    if job.how.gradient:
        return _one_gradient(job, spec, base, tensors, x, y, model)
    trained = train(model, spec, tensors, x, y, job.plan, seed=job.seed, threads=job.threads)
    return trained, flatten(trained.tensors, spec.shared) - base


def _seen(
    job: Job,
    spec: TaskSpec,
    tensors: dict[str, Tensor],
    trained: TrainingResult,
    base: Vector,
    delta: Vector,
    x: Array,
    y: Array,
) -> tuple[Extras, Vector]:
    """Return what the training saw of the loss, if the fleet chooses its steps by that; and
    ``delta`` as that of as many plain steps as usual (FedNova), or who makes many would count more.
    """
    plan = job.how.steps
    if plan is None or job.how.gradient or not job.sends:
        return Extras(), delta
    session = open_session(Path(job.train_model).read_bytes(), threads=job.threads)
    personal = {tensor.name: tensors[tensor.name] for tensor in spec.with_role(Role.PERSONAL)}
    probe = Probe(session, spec, personal)
    seen = looked_back(probe, base, delta, x, y, steps=trained.steps, seed=job.seed)
    if plan.reference:
        delta = delta * np.float32(plan.reference / seen.effective)
    return seen, delta


def _one_gradient(
    job: Job,
    spec: TaskSpec,
    base: Vector,
    tensors: dict[str, Tensor],
    x: Array,
    y: Array,
    model: bytes,
) -> tuple[TrainingResult, Vector]:
    """Make one plain step on all samples: d = -lr g, gd-sec's synchronous mode as published."""
    began = time.monotonic()
    personal = {tensor.name: tensors[tensor.name] for tensor in spec.with_role(Role.PERSONAL)}
    probe = Probe(open_session(model, threads=job.threads), spec, personal)
    found = mean_over(probe, spec, base, x, y, batch=job.plan.batch)
    if not (math.isfinite(found.loss) and np.isfinite(found.gradient).all()):
        raise UsageError(f"the gradient of the samples is not finite (loss {found.loss})")
    delta: Vector = np.float32(-job.plan.learning_rate) * found.gradient
    passes = math.ceil(len(x) / job.plan.batch)
    trained = TrainingResult(
        tensors=unflatten(base + delta, spec.shared) | personal,
        steps=1,
        loss_first=found.loss,
        loss_last=found.loss,
        ms_per_step=(time.monotonic() - began) * 1e3 / passes,
    )
    return trained, delta


def _each(job: Job, spec: TaskSpec, tensors: Mapping[str, Tensor], x: Array, y: Array) -> Doubles:
    model, size = Path(job.infer_model).read_bytes(), EVALUATION_BATCH
    return evaluate_each(model, spec, tensors, x, y, batch=size, threads=job.threads)


def _taught(result: Result, job: Job, spec: TaskSpec, hold_out: HoldOut, folder: Path) -> Result:
    """Measure the release, train on it if that is asked for, and compare it with what is tuned."""
    began = time.monotonic()
    own = personal_tensors(job.personal, job.infer_model, spec)
    released = before = hold_out.each(_released(job, spec) | own)
    if before is not None:
        result = _with(result, holdout=len(before), metric=float(before.mean()))
    tuned = None
    if job.do == "train":
        base = read_vector(Path(job.parameters).read_bytes(), size=spec.shared_size)
        x, y = _samples(job, spec)
        start = unflatten(base, spec.shared) | own
        found, delta = _learned(job, spec, base, start, x, y)
        seen, delta = _seen(job, spec, start, found, base, delta, x, y)
        result, trained = _told(result, found, len(x)), found.tensors
        del x, y, found, start
        tuned = hold_out.each(trained)
        if own:
            own = {name: trained[name] for name in own}
            released = hold_out.each(_released(job, spec) | own)
        result = _kept(result, job, spec, trained, hold_out)
        del trained
    elif (mine := own_vector(job.tuned, "parameters", size=spec.shared_size)) is not None:
        tuned = hold_out.each(unflatten(mine, spec.shared) | own)
    shared = (
        hold_out.each(_released(job, spec) | bundled_tensors(job.infer_model, spec))
        if own
        else released
    )
    if before is not None:
        result = _with(
            result, scores=hold_out.scores(released=released, tuned=tuned, shared=shared)
        )
    if tuned is not None and job.evaluate_after:
        result = _with(result, metric_after=float(tuned.mean()))
    if job.do != "train":
        return result
    if job.how.steps is not None:
        spent = time.monotonic() - began
        seen = msgspec.structs.replace(seen, seconds=spent, ms_per_step=result.ms_per_step)
    return _packed(result, job, spec, base, delta, folder, seen)


def _alone(result: Result, job: Job, spec: TaskSpec, hold_out: HoldOut) -> Result:
    """Go on training a model that no other device has a part in; it begins as release 1 did."""
    size = sum(tensor.size for tensor in spec.trainable)
    before = own_vector(job.alone, "alone", size=size)
    if before is None:
        values = read_weights(Path(job.infer_model).read_bytes(), spec.trainable)
        tensors = {name: np.array(value) for name, value in values.items()}
    else:
        tensors = unflatten(before, spec.trainable)
    x, y = _samples(job, spec)
    model = Path(job.train_model).read_bytes()
    found = train(model, spec, tensors, x, y, job.plan, seed=job.seed, threads=job.threads)
    result = _with(_told(result, found, len(x)), begins_anew=before is None)
    del x, y
    atomic_write(Path(job.new_alone), write_vector(flatten(found.tensors, spec.trainable), "alone"))
    each = hold_out.each(found.tensors)
    return result if each is None else _with(result, scores=hold_out.scores(alone=each))


def _samples(job: Job, spec: TaskSpec) -> tuple[Array, Array]:
    x, y = read_samples(job.samples, spec, max_bytes=job.max_sample_bytes)
    if not len(x):
        raise UsageError("no samples to train on")
    return x, y


def _told(result: Result, trained: TrainingResult, samples: int) -> Result:
    return _with(
        result,
        samples=samples,
        steps=trained.steps,
        loss_first=trained.loss_first,
        loss_last=trained.loss_last,
        ms_per_step=trained.ms_per_step,
    )


def _with(result: Result, **changes: Any) -> Result:
    return msgspec.structs.replace(result, **changes)


def _released(job: Job, spec: TaskSpec) -> dict[str, Tensor]:
    """Return what runs of the release."""
    data = Path(job.released or job.parameters).read_bytes()
    return unflatten(read_vector(data, size=spec.shared_size), spec.shared)


def _kept(
    result: Result, job: Job, spec: TaskSpec, trained: Mapping[str, Tensor], hold_out: HoldOut
) -> Result:
    """Write what stays on this device."""
    personal = spec.with_role(Role.PERSONAL)
    if personal:
        values = flatten(trained, personal)
        atomic_write(Path(job.new_personal), write_vector(values, "personal"))
    may_run = job.tuned is not None or is_worth_keeping(hold_out.numbers)
    if has_tuned := bool(job.new_tuned) and may_run:
        atomic_write(Path(job.new_tuned), write_vector(flatten(trained, spec.shared)))
    return _with(result, has_personal=bool(personal), has_tuned=has_tuned)


def _packed(
    result: Result,
    job: Job,
    spec: TaskSpec,
    base: Vector,
    delta: Vector,
    folder: Path,
    seen: Extras,
) -> Result:
    """Compress what was learned and is owed; write the payload, and what it leaves."""
    if not job.sends:
        return msgspec.structs.replace(result, has_payload=False)
    size = spec.shared_size
    owed, residual_lost = _carried(job.residual, "residual", size)
    history, history_lost = _carried(job.history, "history", size)
    carried, lost = Carried(owed, history), 0
    for refund in job.refunds:
        try:
            carried = taken_back(_refunded(Path(refund).read_bytes(), job, spec), carried)
        except (PayloadError, FileNotFoundError):
            lost += 1
    context = _context(job, spec, base, history)
    made = local_update(
        delta,
        carried,
        tensors=spec.shared,
        plan=job.how,
        codec=job.codec,
        context=context,
        moved=_moved(job, spec, base),
        hint=job.hint,
    )
    has_memory = recursion_of(job.how).has_memory
    if context is not None and context is not history:
        digest = context_in(made.payload)
        if digest is not None:
            kept = Path(job.contexts) / CONTEXT.format(digest)
            atomic_write(kept, write_vector(context, "context"))
    now, then = (carried, made.carried) if has_memory else (made.carried, Carried())
    is_new = not has_memory or bool(job.refunds)
    written = (
        (job.new_residual, "residual", now.owed if is_new else None),
        (job.new_history, "history", then.history),
        (job.new_owed, "residual", then.owed),
    )
    for path, name, vector in written:
        if vector is not None:
            atomic_write(Path(path), write_vector(vector, name))
    atomic_write(folder / PAYLOAD, made.payload)
    return msgspec.structs.replace(
        result,
        payload_size=len(made.payload),
        payload_sha256=hashlib.sha256(made.payload).hexdigest(),
        refunds_lost=lost,
        residual_lost=residual_lost,
        history_lost=history_lost,
        has_residual=is_new and now.owed is not None,
        has_next=then.history is not None,
        has_next_owed=then.owed is not None,
        codec_step=made.step,
        extras=_extras(result, job, history, seen),
    )


def _extras(result: Result, job: Job, history: Vector | None, seen: Extras) -> Extras | None:
    """Return what the update says beyond its first version; None for a release of before."""
    if job.learning is None:
        return None
    scores = result.scores if result.metric_name == "accuracy" else None
    return msgspec.structs.replace(
        seen,
        memory=history_digest(history),
        accuracy_shared=scores.shared if scores else None,
        accuracy_after=scores.tuned if scores else None,
    )


def _context(job: Job, spec: TaskSpec, base: Vector, history: Vector | None) -> Vector | None:
    """Return what the server holds too, to code in; None: do without."""
    if job.codec.context == "own":
        return history if history is not None and history.any() else None
    if job.previous is None or not job.contexts or job.codec.context == "none":
        return None
    context = _since(job.previous, spec, base)
    if context is None or not context.any() or not np.isfinite(context).all():
        return None
    return context


def _moved(job: Job, spec: TaskSpec, base: Vector) -> Vector | None:
    """Return what the model moved by since the release before, whichever that was."""
    return None if job.moved_from is None else _since(job.moved_from, spec, base)


def _since(parameters: str, spec: TaskSpec, base: Vector) -> Vector | None:
    try:
        before = read_vector(content(parameters), size=spec.shared_size)
    except (FileNotFoundError, PayloadError):  # a newer release took its place meanwhile
        return None
    since: Vector = base - before
    return since


def _refunded(payload: bytes, job: Job, spec: TaskSpec) -> Vector:
    """Return what a payload that came back says, in the context that it was made in."""
    context = None
    if (digest := context_in(payload)) is not None:
        data = content(f"{job.contexts}/{CONTEXT.format(digest)}")
        context = read_vector(data, size=spec.shared_size, name="context")
    return decompress(payload, spec.shared, context=context)


def _carried(path: str | None, name: str, size: int) -> tuple[Vector | None, bool]:
    """Return a vector from before, and whether it was there but could not be read."""
    if path is None:
        return None, False
    try:
        return read_vector(content(path), size=size, name=name), False
    except (FileNotFoundError, PayloadError):
        return None, True


if __name__ == "__main__":
    raise SystemExit(main())
