"""Reads float32 initializers from an ONNX file without the onnx package. Pure, bounded.

`models.task.onnx_weights` walks the wire format: ModelProto.graph is field 7,
GraphProto.initializer 5, TensorProto has dims 1, data_type 2, float_data 4, name 8, raw_data 9
(onnx/onnx.proto).
"""

from collections.abc import Sequence

import numpy as np

from models.errors import PayloadError
from models.task.onnx_weights import Field, fields
from models.task.params import Tensor
from models.task.spec import TensorSpec

__all__ = ["read_initializers"]

FLOAT = 1


def read_initializers(model: bytes, tensors: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """Return the values that ``model`` has for ``tensors``, as copies.

    Raises:
        PayloadError: no ONNX file, or one that does not hold them all as float32.
    """
    wanted = {tensor.name: tensor for tensor in tensors}
    found: dict[str, Tensor] = {}
    for graph in fields(model, 0, len(model)):
        if graph.number != 7 or graph.end < 0:
            continue
        for tensor in fields(model, graph.start, graph.end):
            if tensor.number == 5 and tensor.end >= 0:
                _take(model, tensor, wanted, found)
    if missing := [name for name in wanted if name not in found]:
        raise PayloadError(f"the model has no float32 initializer {missing[0]!r} of its shape")
    return found


def _take(
    model: bytes, tensor: Field, wanted: dict[str, TensorSpec], found: dict[str, Tensor]
) -> None:
    name, kind, raw = "", 0, memoryview(b"")
    for number, start, end in fields(model, tensor.start, tensor.end):
        if number == 2 and end < 0:
            kind = start
        elif number == 8 and end >= 0:
            name = model[start:end].decode("utf-8", "replace")
        elif number in (4, 9) and end >= 0:  # float_data is packed: the same bytes as raw_data
            raw = memoryview(model)[start:end]
    spec = wanted.get(name)
    if spec is None or kind != FLOAT or len(raw) != 4 * spec.size:
        return
    found[name] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(spec.shape)
