"""How good infer.onnx is on labeled samples, with any values of its tensors. Reads no files.

Devices, server and author measure by this one function. It imports onnxruntime: a process that may
never measure imports it when it does.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from models.errors import PayloadError, UsageError
from models.learning.onnx_session import Array, open_session, run_session
from models.learning.scoring import Doubles, Score, mean_score, score, score_each
from models.samples.sample_check import samples_of
from models.task.onnx_weights import replace_weights
from models.task.params import Tensor
from models.task.spec import TaskSpec, TensorSpec

__all__ = ["checked_tensor", "evaluate", "evaluate_each"]


def evaluate(
    infer_model: bytes,
    spec: TaskSpec,
    tensors: Mapping[str, Tensor],
    x: Array,
    y: Array,
    *,
    batch: int = 64,
    threads: int = 1,
    on_progress: Callable[[], None] = lambda: None,
) -> Score:
    """Return how good ``infer_model`` is, with ``tensors`` in place of its own of these names.

    ``on_progress`` is called after each batch.

    Raises:
        UsageError: no samples, samples that do not fit, or answers of another shape than the spec.
        PayloadError: the model or the tensors do not fit the spec, or it does not run.
    """
    parts = []
    for outputs, labels in _answers(infer_model, spec, tensors, x, y, batch, threads):
        parts.append(score(spec, outputs, labels))
        on_progress()
    return mean_score(parts)


def evaluate_each(
    infer_model: bytes,
    spec: TaskSpec,
    tensors: Mapping[str, Tensor],
    x: Array,
    y: Array,
    *,
    batch: int = 64,
    threads: int = 1,
) -> Doubles:
    """Return the metric of each sample, shape (n,): `evaluate` returns the mean of these.

    Raises:
        UsageError, PayloadError: as `evaluate`.
    """
    answers = _answers(infer_model, spec, tensors, x, y, batch, threads)
    return np.concatenate([score_each(spec, outputs, labels)[0] for outputs, labels in answers])


def _answers(
    infer_model: bytes,
    spec: TaskSpec,
    tensors: Mapping[str, Tensor],
    x: Array,
    y: Array,
    batch: int,
    threads: int,
) -> Iterator[tuple[Array, Array]]:
    """Return outputs and labels, batch by batch."""
    x, y = samples_of(spec, x, y)
    if not len(x):
        raise UsageError("no samples to evaluate on")
    known = {tensor.name: tensor for tensor in spec.tensors}
    if unknown := tensors.keys() - known.keys():
        raise PayloadError(f"spec.json has no tensor {min(unknown)}")
    values = {name: checked_tensor(tensors, known[name]).data for name in tensors}
    # Not add_initializer: onnxruntime's optimizer would go on with the values in the file.
    session = open_session(replace_weights(infer_model, values), threads=threads)
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        feeds = {spec.infer_input: np.ascontiguousarray(x[rows])}
        (outputs,) = run_session(session, [spec.infer_output], feeds)
        yield outputs, y[rows]


def checked_tensor(tensors: Mapping[str, Tensor], spec: TensorSpec) -> Tensor:
    """Return a contiguous copy of the tensor of ``spec``.

    Raises:
        PayloadError: it is missing, or of another dtype or shape.
    """
    if spec.name not in tensors:
        raise PayloadError(f"tensor {spec.name} is missing")
    value = tensors[spec.name]
    if value.shape != spec.shape or value.dtype != np.float32:
        raise PayloadError(
            f"tensor {spec.name} is {value.dtype} {value.shape}, not float32 {spec.shape}"
        )
    return value.copy(order="C")
