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
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import TaskSpec

__all__ = [
    "Stepper",
    "TrainingResult",
    "TrainingRows",
    "train",
    "train_by",
    "training_rows",
]

Array = npt.NDArray[Any]  # samples: float32, uint8, int32 or int64
_OTHERS = 8  # samples to compare with where a batch is a single one
_LINE = 16  # float32 numbers of a cache line
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
    last short batch is padded with weight 0; where batch norm adapts, one of fewer than
    max(2, batch / 2) samples is left out unless it is the only one. With ``plan.mu`` > 0 the
    proximal term pulls towards ``tensors``. ``on_epoch(number, loss)`` is called after each epoch,
    from 1. ``numbers`` are the rows by which the caller knows the samples, by default their places
    in ``x``.

    Raises:
        UsageError: no samples, samples that do not fit, or loss or gradient became NaN or infinite:
            by one sample, which is named, or by a learning rate that is too high.
        PayloadError: ``train_model`` or ``tensors`` do not fit the spec.
    """
    rows = training_rows(spec, x, y, plan, sample_weight=sample_weight)
    session = open_session(train_model, threads=threads)
    stepper = Stepper(session, spec, tensors, rows.batch, plan)
    return train_by(stepper, rows, plan, seed=seed, on_epoch=on_epoch, numbers=numbers)


class TrainingRows(NamedTuple):
    """Samples that were checked, for one device's training."""

    x: Array
    y: Array
    weights: npt.NDArray[np.float32]  # of samples and classes together
    counted: npt.NDArray[np.intp]  # those of weight > 0: the others can teach nothing
    batch: int  # of a `Stepper` for them: mostly padding would cost time for nothing
    per_epoch: int  # steps


def training_rows(
    spec: TaskSpec,
    x: Array,
    y: Array,
    plan: TrainingPlan,
    *,
    sample_weight: npt.NDArray[np.float32] | None = None,
) -> TrainingRows:
    """Return the samples of a training; `train` says of what kind they are.

    Raises:
        UsageError: none, or such that do not fit the task.
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
    counted = np.flatnonzero(weights)
    batch = min(plan.batch, len(counted))
    if spec.norms_adapt and batch < 2:
        raise UsageError(_about_one_sample(spec, plan))
    per_epoch, rest = divmod(len(counted), batch)
    # Statistics of a few samples are no statistics: those wait for the next epoch's order.
    if rest and not (spec.norms_adapt and rest < max(2, batch / 2)):
        per_epoch += 1
    return TrainingRows(x, y, weights, counted, batch, per_epoch)


def _about_one_sample(spec: TaskSpec, plan: TrainingPlan) -> str:
    what = (
        "a batch of 1 (training.batch)" if plan.batch < 2 else "a single sample (of weight above 0)"
    )
    return (
        f"task {spec.task} has batch norm that adapts (--norms personal), and {what} has no "
        "variance: at least 2 samples are needed for a step"
    )


def train_by(
    stepper: "Stepper",
    rows: TrainingRows,
    plan: TrainingPlan,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    numbers: Sequence[int] | None = None,
) -> TrainingResult:
    """Train from where ``stepper`` stands, as `train` does; the result are views into it.

    One stepper of ``rows.batch`` serves many trainings of a plan: `Stepper.reset` before each.

    Raises:
        UsageError: loss or gradient became NaN or infinite, as `train` says.
        PayloadError: the graph does not run.
    """
    x, y, weights, counted, batch, per_epoch = rows
    shuffle = np.random.default_rng(seed)
    steps = max(1, min(plan.max_steps, round(plan.epochs * per_epoch)))
    durations: list[float] = []
    first, last = _Mean(), _Mean()
    tenth = max(1, steps // 10)
    done, calm = 0, True
    while done < steps:
        order = shuffle.permutation(counted)
        epoch = _Mean()
        for start in range(0, min(per_epoch, steps - done) * batch, batch):
            chosen = order[start : start + batch]
            began = time.perf_counter()
            step_loss = stepper.step(x[chosen], y[chosen], weights[chosen])
            durations.append(time.perf_counter() - began)
            done += 1
            if not (math.isfinite(step_loss) and math.isfinite(stepper.grad_norm)):
                probed = chosen if len(chosen) > 1 else [*chosen, *counted[:_OTHERS]]
                bad = [row for row in probed if stepper.breaks(x[row], y[row])]
                # What most samples suffer from, or came after losses that grew, is the rate.
                if bad and (done == 1 or (calm and 2 * len(bad) <= len(probed))):
                    raise UsageError(_broken_by(bad, numbers, done))
                raise UsageError(
                    f"training diverged at step {done} (loss {step_loss}): lower the learning rate "
                    f"(now {plan.learning_rate:g})"
                )
            calm = done == 1 or step_loss <= _GROWN * max(first.value, 1.0)
            share = float(weights[chosen].sum())
            epoch.add(step_loss, share)
            if done <= tenth:
                first.add(step_loss, share)
            if done > steps - tenth:
                last.add(step_loss, share)
        if on_epoch:
            on_epoch(math.ceil(done / per_epoch), epoch.value)
    result = stepper.tensors()
    if bad := [name for name, value in result.items() if not np.isfinite(value).all()]:
        if set(bad) <= stepper.statistics:
            largest = counted[np.abs(x[counted].reshape(len(counted), -1)).max(axis=1).argmax()]
            raise UsageError(_broken_by([largest], numbers, done))
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

    Tensors live twice, each side in one vector, and so do optimizer slots; each step reads one
    side and writes the other, through two prepared bindings. The batch, the loss and all else have
    fixed places in memory too: `reset` starts over from other parameters in the same session.
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
        for slot in spec.slots:
            if any(not isinstance(side, int) for side in shapes.get(slot, (None,))):
                raise PayloadError(f"train.onnx has no input {slot} of a fixed shape")
        tensors = {t.name: checked_tensor(tensors, t) for t in spec.trainable}
        layout = {t.name: t.shape for t in spec.trainable}
        learned = {t.name: t.shape for t in spec.learned}
        self._sides = [_places(layout) for _ in range(2)]
        self._slots = [_places({slot: shapes[slot] for slot in spec.slots}) for _ in range(2)]
        self._anchors = _places(learned if spec.proximal else {})
        fixed: dict[str, Tensor] = {"lr": np.array(plan.learning_rate, np.float32)}
        if spec.proximal:
            fixed["mu"] = np.array(plan.mu, np.float32)
            fixed |= {f"anchor/{name}": value for name, value in self._anchors.items()}
        self._x = np.zeros((batch, *spec.x.shape), spec.x.dtype)
        self._y = np.zeros((batch, *spec.y.shape), spec.y.dtype)
        self._weight = np.zeros(batch, np.float32)
        self._loss = np.zeros((), np.float32)
        self._norm = np.zeros((), np.float32)
        feeds: dict[str, Array] = {"x": self._x, "y": self._y, "sample_weight": self._weight}
        self._bound = feeds | fixed  # bindings hold addresses, not arrays: these must stay alive
        self._start(tensors)
        outputs = {entry.name for entry in session.get_outputs()}
        states = [side | slots for side, slots in zip(self._sides, self._slots, strict=True)]
        self._bindings = []
        for read, write in (states, states[::-1]):
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

    def _start(self, tensors: Mapping[str, Tensor]) -> None:
        """Stand at ``tensors``, with the optimizer's slots at zero and anchored there."""
        for name, value in tensors.items():
            self._sides[0][name][...] = value
        for slot in self._slots[0].values():
            slot[...] = 0
        for name, anchor in self._anchors.items():
            anchor[...] = tensors[name]

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
        self._slots.reverse()
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

    @property
    def statistics(self) -> set[str]:
        """The tensors that follow what batches show, and no gradient."""
        return {t.name for t in self._spec.trainable} - {t.name for t in self._spec.learned}

    @property
    def batch(self) -> int:
        """How many samples a step takes at most."""
        return len(self._weight)

    def tensors(self) -> dict[str, Tensor]:
        """Return all trainable tensors as they are now: views, until the next step or `reset`."""
        return dict(self._sides[0])

    def flat(self) -> Vector:
        """Return a copy of all trainable tensors as they are now, in the order of the spec."""
        return flatten(self._sides[0], self._spec.trainable)

    def reset(self, flat: Vector) -> None:
        """Start over from ``flat`` (`flat()` of it is the same), as a new Stepper would.

        Raises:
            PayloadError: it is not as long as the spec says.
        """
        self._start(unflatten(flat, self._spec.trainable))


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return views of these shapes into one vector of zeros, by name.

    Each begins where a cache line does, as onnxruntime allocates: in what order a kernel adds
    depends on where its operands stand, and the same training must give the same bits.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    lengths = {name: -(-size // _LINE) * _LINE for name, size in sizes.items()}
    whole = np.zeros(sum(lengths.values()) + _LINE, np.float32)
    start = -(whole.ctypes.data // whole.itemsize) % _LINE
    views = {}
    for name, shape in shapes.items():
        views[name] = whole[start : start + sizes[name]].reshape(shape)
        start += lengths[name]
    return views
