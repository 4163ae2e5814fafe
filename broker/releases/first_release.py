"""The bundle on disk, checked; weights out of its ONNX file, and released weights back into one.

The only server module that knows the onnx package, and it imports it only when it is needed: for
the first release of a task and for ``edgefold-broker releases --export``.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.errors import PayloadError, UsageError
from models.host.extras import how_to_install
from models.protocol.manifest import MAX_ARTIFACT_BYTES
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
        UsageError: the file and the spec do not belong together, or onnx is not installed.
    """
    onnx = _onnx()
    model = _load(onnx, bundle.infer)
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors = {}
    for spec in bundle.spec.shared:
        if spec.name not in found:
            raise UsageError(
                f"task {bundle.spec.task}: infer.onnx has no initializer {spec.name!r}, "
                f"which spec.json calls shared; make the bundle again"
            )
        values = onnx.numpy_helper.to_array(found[spec.name])
        if values.shape != spec.shape or values.dtype != np.float32:
            raise UsageError(
                f"task {bundle.spec.task}: {spec.name!r} is {values.dtype} {values.shape} in "
                f"infer.onnx and float32 {spec.shape} in spec.json; make the bundle again"
            )
        tensors[spec.name] = values
    vector = flatten(tensors, bundle.spec.shared)
    if not np.isfinite(vector).all():
        raise UsageError(f"task {bundle.spec.task}: infer.onnx has weights that are not finite")
    return vector


def with_parameters(infer: bytes, spec: TaskSpec, parameters: Vector) -> bytes:
    """Return ``infer`` with ``parameters`` in the place of its shared tensors.

    Raises:
        UsageError: the file and the spec do not belong together, or onnx is not installed.
    """
    onnx = _onnx()
    model = _load(onnx, infer)
    wanted = unflatten(parameters, spec.shared)
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            tensor.CopyFrom(onnx.numpy_helper.from_array(wanted.pop(tensor.name), tensor.name))
    if wanted:
        raise UsageError(f"task {spec.task}: infer.onnx has no initializer {min(wanted)!r}")
    return bytes(model.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise UsageError(
            "the onnx package is missing, which a server needs for the first release of a task "
            f"and for --export; {how_to_install('onnx')}"
        ) from None
    return onnx


def _load(onnx: Any, data: bytes) -> Any:
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own errors have no common class
        raise UsageError(f"infer.onnx is no ONNX file: {error}") from None
