"""Other weights for an ONNX file, in place, without the onnx package. Pure; without numpy.

A device has a release as ``infer.onnx`` and a vector of parameters. ``SessionOptions.
add_initializer`` is not the way to bring them together: onnxruntime's optimizer derives new tensors
from the values *in the file* (batch norm folded into convolutions, weights reordered for its
kernels), so the override is silently lost. Here the bytes in the file change, and the session is
made of the result.

Wire format: protobuf.dev/programming-guides/encoding; fields: onnx.proto (ModelProto.graph = 7,
GraphProto.initializer = 5, TensorProto.data_type = 2, name = 8, raw_data = 9).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from models.errors import PayloadError

__all__ = ["find_weights", "replace_weights"]

_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _NAME, _RAW_DATA = 2, 8, 9
_FLOAT = 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types


class _Field(NamedTuple):
    number: int
    start: int  # of the value; for a varint, its value
    end: int


def find_weights(model: bytes) -> dict[str, range]:
    """Return where the values of each float32 initializer stand in ``model``, by name.

    Initializers that are stored otherwise than as raw data are left out.

    Raises:
        PayloadError: not an ONNX file, or two initializers of one name.
    """
    graphs = [field for field in _fields(model, 0, len(model)) if field.number == _GRAPH]
    if len(graphs) != 1:
        raise PayloadError("not an ONNX model: it has no graph, or several")
    found: dict[str, range] = {}
    for tensor in _fields(model, graphs[0].start, graphs[0].end):
        if tensor.number != _INITIALIZER:
            continue
        name, kind, raw = "", 0, None
        for field in _fields(model, tensor.start, tensor.end):
            if field.number == _NAME:
                try:
                    name = model[field.start : field.end].decode("utf-8")
                except UnicodeDecodeError:
                    raise PayloadError("ONNX model: an initializer's name is not UTF-8") from None
            elif field.number == _DATA_TYPE:
                kind = field.start
            elif field.number == _RAW_DATA:
                raw = range(field.start, field.end)
        if kind == _FLOAT and raw is not None:
            if name in found:
                raise PayloadError(f"ONNX model: two initializers are named {name!r}")
            found[name] = raw
    return found


def replace_weights(model: bytes, values: Mapping[str, bytes | memoryview]) -> bytes:
    """Return ``model`` with other values, little-endian float32, of these initializers.

    Raises:
        PayloadError: not an ONNX file, or it has no such initializer of that size.
    """
    places = find_weights(model)
    changed = bytearray(model)
    for name, value in values.items():
        place, size = places.get(name), memoryview(value).nbytes
        if place is None:
            raise PayloadError(f"the ONNX model has no float32 initializer {name!r} in raw form")
        if len(place) != size:
            raise PayloadError(
                f"initializer {name!r} of the ONNX model has {len(place)} bytes, not {size}"
            )
        changed[place.start : place.stop] = value
    return bytes(changed)


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    """Walk over the fields of one message in ``data[at:end]``."""
    while at < end:
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield _Field(number, value, value)
            continue
        if wire == _LENGTH:
            length, at = _varint(data, at, end)
        elif wire == _FIXED64:
            length = 8
        elif wire == _FIXED32:
            length = 4
        else:
            raise PayloadError("not an ONNX model: unknown field type")
        if length > end - at:
            raise PayloadError("not an ONNX model, or cut off")
        yield _Field(number, at, at + length)
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise PayloadError("not an ONNX model, or cut off")
