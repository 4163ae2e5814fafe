"""How good a release is on the server's own hold-out data. Runs infer.onnx on onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import PayloadError, UsageError
from models.label_forms import labels_of
from models.npz_layouts import about_missing
from models.params import Vector, unflatten
from models.payload.npz import array_names, read_arrays
from models.payload.onnx_weights import replace_weights
from models.spec import ArraySpec, TaskSpec

__all__ = ["Evaluator", "HoldOut", "Score", "load_hold_out", "score_of"]

MAX_DATA_BYTES = 4 << 30  # of the operator's own file, unpacked

Array = npt.NDArray[Any]


class HoldOut(NamedTuple):
    """Labeled samples that no device trains on."""

    x: Array
    y: Array


class Score(NamedTuple):
    """``metric`` is accuracy in [0, 1], or the mean squared error if that is the task's metric."""

    metric: float
    loss: float
    samples: int


def load_hold_out(path: Path, spec: TaskSpec) -> HoldOut:
    """Read ``x`` and ``y`` of an npz; where it has ``test``, only the rows with test > 0.

    It may be the author's own file, with names of classes and more in it: they are not looked at.

    Raises:
        UsageError: no such file, not an npz, or not samples of this task.
    """
    try:
        data = path.read_bytes()
        arrays = read_arrays(data, max_bytes=MAX_DATA_BYTES, only=("x", "y", "test"), texts=("y",))
    except OSError as error:
        raise UsageError(f"cannot read evaluation data {path}: {error.strerror}") from None
    except PayloadError as error:
        raise UsageError(f"evaluation data {path}: {error}") from None
    for name in ("x", "y"):
        if name not in arrays:
            raise UsageError(f"evaluation data {path}: {about_missing(array_names(data))}")
    x, y = arrays["x"], arrays["y"]
    if "test" in arrays and len(arrays["test"]) == len(x) == len(y):
        chosen = arrays["test"] > 0
        x, y = x[chosen], y[chosen]
    if len(x) != len(y) or not len(x):
        raise UsageError(f"evaluation data {path}: {len(x)} samples and {len(y)} labels")
    try:
        y = labels_of(y, spec)
    except UsageError as error:
        raise UsageError(f"evaluation data {path}: {error}") from None
    hold_out = HoldOut(_fit(x, spec.x, "x", path), _fit(y, spec.y, "y", path))
    if spec.classes and spec.loss == "cross_entropy":
        low, high = int(hold_out.y.min()), int(hold_out.y.max())
        if low < 0 or high >= spec.classes:
            raise UsageError(
                f"evaluation data {path}: labels from {low} to {high}, "
                f"task {spec.task} has classes 0 to {spec.classes - 1}"
            )
    return hold_out


def _fit(array: Array, spec: ArraySpec, name: str, path: Path) -> Array:
    if array.shape[1:] != spec.shape:
        raise UsageError(
            f"evaluation data {path}: one {name} has shape {array.shape[1:]}, "
            f"this task has {spec.shape}"
        )
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind == "f" and wanted.kind in "iu":
        raise UsageError(f"evaluation data {path}: {name} is {array.dtype}, not {wanted}")
    return np.ascontiguousarray(array, wanted)


class Evaluator:
    """Holds the graph and the data; answers for any parameters."""

    def __init__(
        self,
        infer: bytes,
        spec: TaskSpec,
        hold_out: HoldOut,
        *,
        batch: int = 64,
        threads: int = 1,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._infer = infer
        self._spec = spec
        self._hold_out = hold_out
        self._batch = batch
        self._threads = threads
        self._on_progress = on_progress

    def __call__(self, parameters: Vector) -> Score:
        """Return the score of ``parameters`` over all hold-out samples.

        Raises:
            UsageError: onnxruntime cannot run infer.onnx, or it answers in another shape.
        """
        outputs = self._run(parameters)
        return score_of(outputs, self._hold_out.y, self._spec)

    def _run(self, parameters: Vector) -> Array:
        import onnxruntime  # the first evaluation pays for it, a server without data never does

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Not add_initializer: onnxruntime's optimizer would go on with the values in the file.
        values = {
            name: np.ascontiguousarray(tensor).data
            for name, tensor in unflatten(parameters, self._spec.shared).items()
        }
        x = self._hold_out.x
        try:
            infer = replace_weights(self._infer, values)
            session = onnxruntime.InferenceSession(
                infer, options, providers=["CPUExecutionProvider"]
            )
            parts = []
            for start in range(0, len(x), self._batch):
                batch = {self._spec.infer_input: x[start : start + self._batch]}
                parts.append(session.run([self._spec.infer_output], batch)[0])
                self._on_progress()
        except Exception as error:  # onnxruntime's errors have no common class
            raise UsageError(f"task {self._spec.task}: infer.onnx does not run: {error}") from None
        return np.concatenate(parts)


def score_of(outputs: Array, y: Array, spec: TaskSpec) -> Score:
    """Return mean loss and metric of ``outputs`` against ``y``, both of shape (n, ...).

    Cross-entropy takes logits (n, classes) or (n, classes, ...) and integer labels; binary
    cross-entropy takes logits, and counts them as right on the side of 0 that the label says.

    Raises:
        UsageError: the shapes do not belong together.
    """
    values = outputs.astype(np.float64)
    if spec.loss == "cross_entropy":
        if values.ndim < 2 or values.shape[:1] + values.shape[2:] != y.shape:
            raise UsageError(f"task {spec.task}: outputs {outputs.shape} for labels {y.shape}")
        shifted = values - values.max(axis=1, keepdims=True)
        log_share = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        picked = np.take_along_axis(log_share, np.expand_dims(y.astype(np.int64), 1), axis=1)
        right = values.argmax(axis=1) == y
        return Score(float(right.mean()), float(-picked.mean()), len(y))
    if values.size != y.size:
        raise UsageError(f"task {spec.task}: outputs {outputs.shape} for targets {y.shape}")
    target = y.astype(np.float64).reshape(values.shape)
    if spec.loss == "bce":
        loss = np.maximum(values, 0) - values * target + np.log1p(np.exp(-np.abs(values)))
        metric = float(((values > 0) == (target > 0.5)).mean())
    else:
        loss = (values - target) ** 2
        metric = float(loss.mean())
    if spec.metric == "mse":
        metric = float(((values - target) ** 2).mean())
    return Score(metric, float(loss.mean()), len(y))
