"""The bundle on disk, checked; weights out of its ONNX file, and released weights back into one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.errors import PayloadError, UsageError
from models.protocol.manifest import MAX_ARTIFACT_BYTES
from models.task.onnx_weights import read_weights, replace_weights
from models.task.params import Vector, flatten, unflatten
from models.task.spec import TaskSpec, decode_spec

__all__ = ["Bundle", "initial_parameters", "read_bundle", "with_parameters"]


class Bundle(NamedTuple):
    """What makes a task run and learn, as bytes."""

    spec: TaskSpec
    infer: bytes
    train: bytes
    spec_json: bytes


def read_bundle(directory: Path) -> Bundle:
    """Read ``infer.onnx``, ``train.onnx`` and ``spec.json``.

    Raises:
        UsageError: a file is missing, too large, or no spec.
    """
    contents = []
    for name in ("infer.onnx", "train.onnx", "spec.json"):
        path = directory / name
        try:
            if path.stat().st_size > MAX_ARTIFACT_BYTES:
                raise UsageError(f"{path} is larger than {MAX_ARTIFACT_BYTES >> 20} MiB")
            contents.append(path.read_bytes())
        except OSError as error:
            raise UsageError(
                f"bundle {directory}: cannot read {name} ({error.strerror}); "
                f"`edgefold task create` makes a bundle"
            ) from None
    infer, train, spec_json = contents
    try:
        return Bundle(decode_spec(spec_json), infer, train, spec_json)
    except PayloadError as error:
        raise UsageError(f"bundle {directory}: {error}") from None


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
