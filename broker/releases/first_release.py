"""Weights out of a bundle's ONNX file for the first release, and released weights back into one."""

import numpy as np

from models.errors import PayloadError, UsageError
from models.task.bundle import Bundle
from models.task.onnx_weights import read_weights, replace_weights
from models.task.params import Vector, flatten, unflatten
from models.task.spec import TaskSpec

__all__ = ["initial_parameters", "with_parameters"]


def initial_parameters(bundle: Bundle) -> Vector:
    """Return the shared tensors of ``infer.onnx`` as one vector, float32 of shape (d,).

    Raises:
        UsageError: the file and the spec do not belong together.
    """
    task, shared = bundle.spec.task, bundle.spec.shared
    try:
        values = read_weights(bundle.infer, shared)
    except PayloadError as error:
        raise UsageError(
            f"task {task}: infer.onnx is not that of spec.json ({error}); make the bundle again"
        ) from None
    vector = flatten({name: np.asarray(value) for name, value in values.items()}, shared)
    if not np.isfinite(vector).all():
        raise UsageError(f"task {task}: infer.onnx has weights that are not finite")
    return vector


def with_parameters(infer: bytes, spec: TaskSpec, parameters: Vector) -> bytes:
    """Return ``infer`` with ``parameters`` in the place of its shared tensors.

    Raises:
        UsageError: the file and the spec do not belong together.
    """
    tensors = unflatten(parameters, spec.shared)
    try:
        return replace_weights(infer, {name: value.data for name, value in tensors.items()})
    except PayloadError as error:
        raise UsageError(
            f"task {spec.task}: infer.onnx is not that of spec.json: {error}"
        ) from None
