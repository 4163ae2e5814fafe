"""Reads float32 initializers from an ONNX file without the onnx package. Pure, bounded.

Protocol buffers' wire format is enough: ModelProto.graph is field 7, GraphProto.initializer 5,
TensorProto has dims 1, data_type 2, float_data 4, name 8, raw_data 9 (onnx/onnx.proto).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from models.errors import PayloadError
from models.params import Tensor
from models.spec import TensorSpec

__all__ = ["read_initializers"]

FLOAT = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_initializers(model: bytes, tensors: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """Return the values that ``model`` has for ``tensors``, as copies.

    Raises:
        PayloadError: no ONNX file, or one that does not hold them all as float32.
    """
    wanted = {tensor.name: tensor for tensor in tensors}
    found: dict[str, Tensor] = {}
    for number, graph in _fields(memoryview(model)):
        if number != 7 or not isinstance(graph, memoryview):
            continue
        for inner, tensor in _fields(graph):
            if inner == 5 and isinstance(tensor, memoryview):
                _take(tensor, wanted, found)
    if missing := [name for name in wanted if name not in found]:
        raise PayloadError(f"the model has no float32 initializer {missing[0]!r} of its shape")
    return found


def _take(tensor: memoryview, wanted: dict[str, TensorSpec], found: dict[str, Tensor]) -> None:
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in _fields(tensor):
        match number, value:
            case 2, int():
                kind = value
            case 8, memoryview():
                name = bytes(value).decode("utf-8", "replace")
            case ((4 | 9), memoryview()):  # float_data is packed: the same bytes as raw_data
                raw = value
    spec = wanted.get(name)
    if spec is None or kind != FLOAT or len(raw) != 4 * spec.size:
        return
    found[name] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(spec.shape)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise PayloadError(f"not an ONNX file: wire type {kind}")
        if length > len(data) - at:
            raise PayloadError("not an ONNX file, or cut off")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise PayloadError("not an ONNX file, or cut off")
