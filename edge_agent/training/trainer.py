"""The child program that trains: `python -m edge_agent.training.trainer JOB.json`.

Reads a release and samples, measures the release on the hold-out, trains, and writes what shall be
sent and what is left over. It has no network; whatever it writes counts only once the agent has
committed it, so it may be killed at any moment.
"""

import hashlib
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.board.children import peak_rss_mb, settle_in, worked_off
from edge_agent.board.problems import sentence_of
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
from models.host.files import content_of, patiently
from models.learning.measurement import evaluate
from models.learning.onnx_session import open_session
from models.learning.training_loop import TrainingResult, train
from models.protocol.npz import read_arrays, read_vector, write_vector
from models.protocol.update import Extras, context_in
from models.task.onnx_weights import read_weights
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import Role, TaskSpec, decode_spec

__all__ = ["carry_out", "main", "read_samples", "work"]

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
        trained, delta = _learned(job, spec, base, tensors, x, y)
        result = msgspec.structs.replace(
            result,
            samples=len(x),
            steps=trained.steps,
            loss_first=trained.loss_first,
            loss_last=trained.loss_last,
            ms_per_step=trained.ms_per_step,
        )
        seen, delta = _seen(job, spec, tensors, trained, base, delta, x, y)
        del x, y
        if job.evaluate_after:
            result = _measured(result, "metric_after", job, spec, trained.tensors, holdout)
        result = _kept(result, job, spec, trained)
        del trained
        if job.how.steps is not None:
            spent = time.monotonic() - began
            seen = msgspec.structs.replace(seen, seconds=spent, ms_per_step=result.ms_per_step)
        result = _packed(result, job, spec, base, delta, folder, seen)
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


def _kept(result: Result, job: Job, spec: TaskSpec, trained: TrainingResult) -> Result:
    """Write what stays on this device."""
    personal = spec.with_role(Role.PERSONAL)
    if personal:
        values = flatten(trained.tensors, personal)
        atomic_write(Path(job.new_personal), write_vector(values, "personal"))
    return msgspec.structs.replace(result, has_personal=bool(personal))


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
    after = result.metric_after if result.metric_name == "accuracy" else None
    return msgspec.structs.replace(seen, memory=history_digest(history), accuracy_after=after)


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
        before = read_vector(_content(parameters), size=spec.shared_size)
    except (FileNotFoundError, PayloadError):  # a newer release took its place meanwhile
        return None
    since: Vector = base - before
    return since


def _refunded(payload: bytes, job: Job, spec: TaskSpec) -> Vector:
    """Return what a payload that came back says, in the context that it was made in."""
    context = None
    if (digest := context_in(payload)) is not None:
        data = _content(f"{job.contexts}/{CONTEXT.format(digest)}")
        context = read_vector(data, size=spec.shared_size, name="context")
    return decompress(payload, spec.shared, context=context)


def _carried(path: str | None, name: str, size: int) -> tuple[Vector | None, bool]:
    """Return a vector from before, and whether it was there but could not be read."""
    if path is None:
        return None, False
    try:
        return read_vector(_content(path), size=size, name=name), False
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
