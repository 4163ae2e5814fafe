"""Training of a task by stock onnxruntime. Needs numpy and onnxruntime only.

Runs in short-lived processes (the trainer child, ``edgefold task train``), never in the resident
agent. Reads no files and keeps no state: models come as bytes, tensors as arrays.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import PayloadError, UsageError
from models.learning.measurement import checked_tensor
from models.learning.onnx_session import Session, open_session
from models.learning.onnxruntime_errors import runtime_sentence
from models.protocol.manifest import TrainingPlan
from models.samples.sample_check import samples_of
from models.task.params import Tensor
from models.task.spec import TaskSpec

__all__ = ["Stepper", "TrainingResult", "train"]

Array = npt.NDArray[Any]  # samples: float32, uint8, int32 or int64
_OTHERS = 8  # samples to compare with where a batch is a single one
_GROWN = 100  # times the first losses: such a loss is not that of one odd sample


class TrainingResult(NamedTuple):
    """What training gave: all trainable tensors (shared and personal), by name."""

    tensors: dict[str, Tensor]
    steps: int
    loss_first: float  # weighted mean over the first tenth of the steps, at least one
    loss_last: float  # and over the last tenth
    ms_per_step: float  # median wall time


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
    numbers: Sequence[int] | None = None,
) -> TrainingResult:
    """Train from ``tensors`` (each shared and personal one) as ``plan`` says.

    ``x`` and ``y`` hold samples of the spec's dtype and shape; ``sample_weight`` (>= 0, default 1)
    has one value for each, which is multiplied by the spec's ``class_weights``. Epochs are shuffled
    by ``seed``; a fraction of an epoch is a fraction of its steps, at least one step in all. The
    last short batch is padded with weight 0. With ``plan.mu`` > 0 the proximal term pulls towards
    ``tensors``. ``on_epoch(number, loss)`` is called after each epoch, from 1. ``numbers`` are the
    rows by which the caller knows the samples, by default their places in ``x``.

    Raises:
        UsageError: no samples, samples that do not fit, or loss or gradient became NaN or infinite:
            by one sample, which is named, or by a learning rate that is too high.
        PayloadError: ``train_model`` or ``tensors`` do not fit the spec.
    """
    x, y = samples_of(spec, x, y)
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
    done, calm = 0, True
    while done < steps:
        order = shuffle.permutation(counted)
        epoch = _Mean()
        for start in range(0, min(per_epoch, steps - done) * batch, batch):
            rows = order[start : start + batch]
            began = time.perf_counter()
            step_loss = stepper.step(x[rows], y[rows], weights[rows])
            durations.append(time.perf_counter() - began)
            done += 1
            if not (math.isfinite(step_loss) and math.isfinite(stepper.grad_norm)):
                probed = rows if len(rows) > 1 else [*rows, *counted[:_OTHERS]]
                bad = [row for row in probed if stepper.breaks(x[row], y[row])]
                # What most samples suffer from, or came after losses that grew, is the rate.
                if bad and (done == 1 or (calm and 2 * len(bad) <= len(probed))):
                    raise UsageError(_broken_by(bad, numbers, done))
                raise UsageError(
                    f"training diverged at step {done} (loss {step_loss}): lower the learning rate "
                    f"(now {plan.learning_rate:g})"
                )
            calm = done == 1 or step_loss <= _GROWN * max(first.value, 1.0)
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


def _broken_by(bad: Sequence[int], numbers: Sequence[int] | None, step: int) -> str:
    """Say which samples of a step break it."""
    rows = sorted({int(row) if numbers is None else int(numbers[row]) for row in bad})
    more = f" (and those in {len(rows) - 1} more rows)" if len(rows) > 1 else ""
    return (
        f"the sample in row {rows[0]}{more} broke the training at step {step}: its own loss or "
        "gradient is not finite, whatever the learning rate: mend it or leave it out"
    )


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
        session: Session,
        spec: TaskSpec,
        tensors: Mapping[str, Tensor],
        batch: int,
        plan: TrainingPlan,
    ) -> None:
        self._session, self._spec = session, spec
        shapes = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
        state: dict[str, Tensor] = {t.name: checked_tensor(tensors, t) for t in spec.trainable}
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
        """Make one step on at most a batch of samples and return its loss.

        Raises:
            PayloadError: the graph does not run, with onnxruntime's reason and the node.
        """
        count = len(x)
        self._x[:count], self._y[:count], self._weight[:count] = x, y, weight
        self._weight[count:] = 0  # what is left there of the batch before is padding now
        try:
            self._session.run_with_iobinding(self._bindings[0])
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's own exceptions have no common base but this one
            raise PayloadError(f"train.onnx does not run: {runtime_sentence(error)}") from None
        self._bindings.reverse()
        self._sides.reverse()
        return float(self._loss)

    @property
    def grad_norm(self) -> float:
        """The length of the last step's gradient."""
        return float(self._norm)

    def breaks(self, x: Array, y: Array) -> bool:
        """Return whether one sample alone has a loss or gradient that is not finite.

        At the weights before the last step, whose result is lost.
        """
        self._x[:], self._y[:], self._weight[:] = x, y, 0  # no other sample, not even as padding
        self._weight[0] = 1
        self._session.run_with_iobinding(self._bindings[1])
        return not (math.isfinite(self._loss) and math.isfinite(self._norm))

    def tensors(self) -> dict[str, Tensor]:
        """Return all trainable tensors as they are now."""
        return {t.name: self._sides[0][t.name] for t in self._spec.trainable}
