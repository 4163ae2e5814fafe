"""How good a release is on the server's own hold-out data. Runs infer.onnx on onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from models.errors import PayloadError, UsageError
from models.learning.scoring import Score
from models.protocol.npz import array_names, read_arrays
from models.samples.npz_layouts import about_missing
from models.samples.sample_check import samples_of
from models.task.params import Vector, unflatten
from models.task.spec import TaskSpec

__all__ = ["Evaluator", "HoldOut", "load_hold_out"]

MAX_DATA_BYTES = 4 << 30  # of the operator's own file, unpacked

Array = npt.NDArray[Any]


class HoldOut(NamedTuple):
    """Labeled samples that no device trains on."""

    x: Array
    y: Array


def load_hold_out(path: Path, spec: TaskSpec) -> HoldOut:
    """Read ``x`` and ``y`` of an npz; where it has ``test``, only the rows with test > 0.

    It may be the author's own file: where it and the task name their classes, labels go by these
    names. What else is in it is not looked at.

    Raises:
        UsageError: no such file, not an npz, or not samples of this task.
    """
    try:
        data = path.read_bytes()
        arrays = read_arrays(
            data,
            max_bytes=MAX_DATA_BYTES,
            only=("x", "y", "test", *(["classes"] if spec.class_names else [])),
            texts=("y", "classes"),
        )
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
    if not len(x):
        raise UsageError(f"evaluation data {path}: 0 samples and {len(y)} labels")
    try:
        return HoldOut(*samples_of(spec, x, y, arrays.get("classes")))
    except UsageError as error:
        raise UsageError(f"evaluation data {path}: {error}") from None


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
        # The first evaluation pays for onnxruntime, a server without data never does.
        from models.learning.measurement import evaluate

        x, y = self._hold_out
        try:
            return evaluate(
                self._infer,
                self._spec,
                unflatten(parameters, self._spec.shared),
                x,
                y,
                batch=self._batch,
                threads=self._threads,
                on_progress=self._on_progress,
            )
        except PayloadError as error:
            raise UsageError(f"task {self._spec.task}: infer.onnx: {error}") from None
