"""Training and evaluation of a task by stock onnxruntime. Needs numpy and onnxruntime only.

Runs in short-lived processes (the trainer child, ``edgefold task train``), never in the resident
agent. Reads no files and keeps no state: models come as bytes, tensors as arrays.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.errors import PayloadError, UsageError
from models.params import Tensor
from models.payload.manifest import TrainingPlan
from models.payload.onnx_weights import replace_weights
from models.spec import ArraySpec, TaskSpec, TensorSpec

__all__ = [
    "Evaluation",
    "Stepper",
    "TrainingResult",
    "check_samples",
    "evaluate",
    "open_session",
    "train",
]

Array = npt.NDArray[Any]  # samples: float32, uint8, int32 or int64
_TINY = 1e-12  # keeps log() away from 0


class TrainingResult(NamedTuple):
    """What training gave: all trainable tensors (shared and personal), by name."""

    tensors: dict[str, Tensor]
    steps: int
    loss_first: float  # weighted mean over the first tenth of the steps, at least one
    loss_last: float  # and over the last tenth
    ms_per_step: float  # median wall time


class Evaluation(NamedTuple):
    """How good a model is on ``count`` samples."""

    metric: float  # accuracy in 0..1, or mean squared error
    loss: float
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody misses


def train(
    train_model: bytes,
    spec: TaskSpec,
    tensors: Mapping[str, Tensor],
    x: Array,
    y: Array,
    plan: TrainingPlan,
    *,
    sample_weight: npt.NDArray[np.float32] | None = None,
    seed: int,
    threads: int = 1,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Train from ``tensors`` (each shared and personal one) as ``plan`` says.

    ``x`` and ``y`` hold samples of the spec's dtype and shape; ``sample_weight`` (>= 0, default 1)
    has one value for each, which is multiplied by the spec's ``class_weights``. Epochs are shuffled
    by ``seed``; a fraction of an epoch is a fraction of its steps, at least one step in all. The
    last short batch is padded with weight 0. With ``plan.mu`` > 0 the proximal term pulls towards
    ``tensors``. ``on_epoch(number, loss)`` is called after each epoch, from 1.

    Raises:
        UsageError: no samples, samples that do not fit, or the loss became NaN or infinite.
        PayloadError: ``train_model`` or ``tensors`` do not fit the spec.
    """
    check_samples(spec, x, y)
    if not len(x):
        raise UsageError("no samples to train on")
    if plan.mu > 0 and not spec.proximal:
        raise UsageError("mu > 0 needs a task that was created with --proximal")
    weights = np.ones(len(x), np.float32) if sample_weight is None else sample_weight
    if spec.class_weights:
        weights = weights * np.array(spec.class_weights, np.float32)[y]
    if weights.shape != (len(x),) or not (weights >= 0).all() or not weights.any():
        raise UsageError("sample_weight: one number >= 0 for each sample is needed, not all 0")
    counted = np.flatnonzero(weights)  # the others can teach nothing
    batch = min(plan.batch, len(counted))  # mostly padding would cost time for nothing
    stepper = Stepper(open_session(train_model, threads=threads), spec, tensors, batch, plan)
    shuffle = np.random.default_rng(seed)
    per_epoch = math.ceil(len(counted) / batch)
    steps = max(1, min(plan.max_steps, round(plan.epochs * per_epoch)))
    durations: list[float] = []
    first, last = _Mean(), _Mean()
    tenth = max(1, steps // 10)
    done = 0
    while done < steps:
        order = shuffle.permutation(counted)
        epoch = _Mean()
        for start in range(0, min(per_epoch, steps - done) * batch, batch):
            rows = order[start : start + batch]
            began = time.perf_counter()
            step_loss = stepper.step(x[rows], y[rows], weights[rows])
            durations.append(time.perf_counter() - began)
            done += 1
            if not math.isfinite(step_loss):
                raise UsageError(
                    f"training diverged at step {done} (loss {step_loss}): lower the learning rate "
                    f"(now {plan.learning_rate:g})"
                )
            share = float(weights[rows].sum())
            epoch.add(step_loss, share)
            if done <= tenth:
                first.add(step_loss, share)
            if done > steps - tenth:
                last.add(step_loss, share)
        if on_epoch:
            on_epoch(math.ceil(done / per_epoch), epoch.value)
    result = stepper.tensors()
    if bad := [name for name, value in result.items() if not np.isfinite(value).all()]:
        raise UsageError(f"training diverged: {bad[0]} is not finite: lower the learning rate")
    return TrainingResult(result, done, first.value, last.value, float(np.median(durations)) * 1e3)


class _Mean:
    """A weighted mean that grows."""

    def __init__(self) -> None:
        self._total = self._mass = 0.0

    def add(self, value: float, weight: float) -> None:
        self._total, self._mass = self._total + weight * value, self._mass + weight

    @property
    def value(self) -> float:
        return self._total / self._mass


class Stepper:
    """One training step after the other, without copying the parameters.

    Tensors and optimizer slots live twice; each step reads one side and writes the other, through
    two prepared bindings. The batch, the loss and all else have fixed places in memory too.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: TaskSpec,
        tensors: Mapping[str, Tensor],
        batch: int,
        plan: TrainingPlan,
    ) -> None:
        self._session, self._spec = session, spec
        shapes = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
        state: dict[str, Tensor] = {t.name: _tensor(tensors, t) for t in spec.trainable}
        for slot in spec.slots:
            if any(not isinstance(side, int) for side in shapes.get(slot, (None,))):
                raise PayloadError(f"train.onnx has no input {slot} of a fixed shape")
            state[slot] = np.zeros(shapes[slot], np.float32)
        fixed: dict[str, Tensor] = {"lr": np.array(plan.learning_rate, np.float32)}
        if spec.proximal:
            fixed["mu"] = np.array(plan.mu, np.float32)
            fixed |= {f"anchor/{t.name}": state[t.name].copy() for t in spec.trainable}
        self._x = np.zeros((batch, *spec.x.shape), spec.x.dtype)
        self._y = np.zeros((batch, *spec.y.shape), spec.y.dtype)
        self._weight = np.zeros(batch, np.float32)
        self._loss = np.zeros((), np.float32)
        self._norm = np.zeros((), np.float32)
        self._sides = [state, {name: np.empty_like(value) for name, value in state.items()}]
        feeds: dict[str, Array] = {"x": self._x, "y": self._y, "sample_weight": self._weight}
        self._bound = feeds | fixed  # bindings hold addresses, not arrays: these must stay alive
        outputs = {entry.name for entry in session.get_outputs()}
        self._bindings = []
        for read, write in (self._sides, self._sides[::-1]):
            inputs = self._bound | read
            results = {f"new/{name}": value for name, value in write.items()}
            results |= {"loss": self._loss, "grad_norm": self._norm}
            if strange := (inputs.keys() ^ shapes.keys()) | (results.keys() - outputs):
                raise PayloadError(f"train.onnx and spec.json do not agree on {min(strange)}")
            binding = session.io_binding()
            for name, value in inputs.items():
                binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            for name, value in results.items():
                binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            self._bindings.append(binding)

    def step(self, x: Array, y: Array, weight: npt.NDArray[np.float32]) -> float:
        """Make one step on at most a batch of samples and return its loss."""
        count = len(x)
        self._x[:count], self._y[:count], self._weight[:count] = x, y, weight
        self._weight[count:] = 0  # what is left there of the batch before is padding now
        self._session.run_with_iobinding(self._bindings[0])
        self._bindings.reverse()
        self._sides.reverse()
        return float(self._loss)

    def tensors(self) -> dict[str, Tensor]:
        """Return all trainable tensors as they are now."""
        return {t.name: self._sides[0][t.name] for t in self._spec.trainable}


def evaluate(
    infer_model: bytes,
    spec: TaskSpec,
    tensors: Mapping[str, Tensor],
    x: Array,
    y: Array,
    *,
    batch: int = 64,
    threads: int = 1,
) -> Evaluation:
    """Return how good ``infer_model`` is, with ``tensors`` in place of its own of these names.

    Raises:
        UsageError: no samples, or samples that do not fit.
        PayloadError: the model or the tensors do not fit the spec.
    """
    check_samples(spec, x, y)
    if not len(x):
        raise UsageError("no samples to evaluate on")
    known = {tensor.name: tensor for tensor in spec.tensors}
    if unknown := tensors.keys() - known.keys():
        raise PayloadError(f"spec.json has no tensor {min(unknown)}")
    values = {name: _tensor(tensors, known[name]).data for name in tensors}
    session = open_session(replace_weights(infer_model, values), threads=threads)
    metric = loss = 0.0
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        output = session.run(
            [spec.infer_output], {spec.infer_input: np.ascontiguousarray(x[rows], spec.x.dtype)}
        )
        batch_metric, batch_loss = _score(spec, output[0], y[rows])
        metric, loss = metric + batch_metric, loss + batch_loss
    return Evaluation(metric / len(x), loss / len(x), len(x))


def open_session(model: bytes, *, threads: int = 1) -> ort.InferenceSession:
    """Return a session that costs little memory.

    Raises:
        PayloadError: onnxruntime does not take the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A planned memory pattern adds one large block to what the first run took anyway: without it
    # the peak is 82 MB instead of 93 (cnn, batch 32), 126 instead of 183 (ds_cnn), in the same
    # time. The arena stays: without it the peak is higher.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # warnings about graphs are the author's business
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base but this one
        raise PayloadError(f"onnxruntime refuses the model: {str(error)[:300]}") from None


def check_samples(spec: TaskSpec, x: Array, y: Array) -> None:
    """Check that ``x`` and ``y`` are samples of this task.

    Raises:
        UsageError: another dtype or shape, or labels out of range; says which and where.
    """
    if len(x) != len(y):
        raise UsageError(f"x has {len(x)} samples, y has {len(y)}")
    for name, array, expected in (("x", x, spec.x), ("y", y, spec.y)):
        _check_array(spec, name, array, expected)
    if spec.loss == "cross_entropy" and len(y):
        bad = (y < 0) | (y >= spec.classes)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            raise UsageError(
                f"y: label {y[bad].flat[0]} in row {row}, task {spec.task} knows the classes "
                f"0 to {spec.classes - 1}"
            )
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise UsageError(f"{name}: row {row} has a value that is not finite")


def _check_array(spec: TaskSpec, name: str, array: Array, expected: ArraySpec) -> None:
    if not _fits(array.dtype, np.dtype(expected.dtype), labels=name == "y" and spec.classes > 0):
        raise UsageError(
            f"{name} is {array.dtype}, task {spec.task} takes {expected.dtype}: convert it"
        )
    if array.shape[1:] != expected.shape:
        raise UsageError(
            f"{name}: samples of shape {array.shape[1:]}, task {spec.task} takes {expected.shape}"
        )


def _fits(found: np.dtype[Any], expected: np.dtype[Any], *, labels: bool) -> bool:
    """Return whether values of one dtype mean the same in the other; labels are range-checked.

    Bytes do not pass for floats: pixels of 0..255 would miss the conversion to 0..1.
    """
    if found.kind == "f" or expected.kind == "f":
        return found.kind == expected.kind
    return labels or np.can_cast(found, expected)


def _score(spec: TaskSpec, output: Array, y: Array) -> tuple[float, float]:
    """Return the sums over samples of metric and loss."""
    flat = output.reshape(len(y), -1).astype(np.float64)
    if spec.loss == "cross_entropy":
        scores = output.astype(np.float64).reshape(y.size, -1, order="C")
        scores = scores[:, : spec.classes]
        labels = y.reshape(-1)
        hits = scores.argmax(axis=1) == labels
        chosen = _log_probabilities(scores)[np.arange(len(labels)), labels]
        share = len(y) / len(labels)
        return float(hits.sum()) * share, float(-chosen.sum()) * share
    target = y.reshape(len(y), -1).astype(np.float64)
    if spec.loss == "bce":  # the model's output is a probability (docs/bundle.md)
        flat = flat.clip(_TINY, 1 - _TINY)
        losses = -(target * np.log(flat) + (1 - target) * np.log(1 - flat))
        right = (flat > 0.5) == (target > 0.5)
        return float(right.mean(axis=1).sum()), float(losses.mean(axis=1).sum())
    error = float(np.square(flat - target).mean(axis=1).sum())
    return error, error


def _log_probabilities(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithms of the classes' probabilities, from logits or probabilities.

    A model that ends in a softmax keeps it in ``infer.onnx``; its rows are >= 0 and sum to 1.
    """
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        logs = np.log(scores.clip(_TINY))
    else:
        shifted = scores - scores.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(logs, np.float64)


def _tensor(tensors: Mapping[str, Tensor], spec: TensorSpec) -> Tensor:
    """Return a contiguous copy of the tensor of ``spec``."""
    if spec.name not in tensors:
        raise PayloadError(f"tensor {spec.name} is missing")
    value = tensors[spec.name]
    if value.shape != spec.shape or value.dtype != np.float32:
        raise PayloadError(
            f"tensor {spec.name} is {value.dtype} {value.shape}, not float32 {spec.shape}"
        )
    return value.copy(order="C")
