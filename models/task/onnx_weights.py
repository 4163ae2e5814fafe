"""Weights out of an ONNX file and into one, without the onnx package. Pure; without numpy.

A device has a release as ``infer.onnx`` and a vector of parameters. ``SessionOptions.
add_initializer`` is not the way to bring them together: onnxruntime's optimizer derives new tensors
from the values *in the file* (batch norm folded into convolutions, weights reordered for its
kernels), so the override is silently lost. Here the bytes in the file change, and the session is
made of the result.

Wire format: protobuf.dev/programming-guides/encoding; fields: onnx.proto (ModelProto.graph = 7,
GraphProto.initializer = 5, TensorProto.dims = 1, data_type = 2, float_data = 4, name = 8,
raw_data = 9).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from models.errors import PayloadError
from models.protocol.varint import read_varint
from models.task.spec import TensorSpec

__all__ = ["Weight", "find_weights", "read_weights", "replace_weights"]

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9
_FLOAT = 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types


class Weight(NamedTuple):
    """Where the values of one initializer stand in the file: bytes ``start`` to ``end``."""

    start: int
    end: int
    shape: tuple[int, ...]


class _Field(NamedTuple):
    """One field of a message: bytes ``start`` to ``end``, or the value of a varint."""

    number: int
    start: int  # of the value; for a varint, the value itself
    end: int  # for a varint, -1


def find_weights(model: bytes) -> dict[str, Weight]:
    """Return the float32 initializers that are stored in ``model``, by name.

    Raises:
        PayloadError: no ONNX file, or two initializers of one name.
    """
    graphs = [field for field in _fields(model, 0, len(model)) if field.number == _GRAPH]
    if len(graphs) != 1 or graphs[0].end < 0:
        raise PayloadError("no ONNX file: it has no graph, or several")
    found: dict[str, Weight] = {}
    for field in _fields(model, graphs[0].start, graphs[0].end):
        if field.number == _INITIALIZER and field.end >= 0:
            name, weight = _read_tensor(model, field)
            if weight is not None and found.setdefault(name, weight) is not weight:
                raise PayloadError(f"ONNX model: two initializers are named {name!r}")
    return found


def read_weights(model: bytes, tensors: Iterable[TensorSpec]) -> dict[str, "memoryview[float]"]:
    """Return the values that ``model`` has for ``tensors``, as `replace_weights` takes them.

    Raises:
        PayloadError: no ONNX file, or one that does not have them all as float32 of their shapes.
    """
    places, view = find_weights(model), memoryview(model)
    found = {}
    for tensor in tensors:
        place = _place(places, tensor.name, tensor.shape)
        found[tensor.name] = view[place.start : place.end].cast("f", tensor.shape)
    return found


def replace_weights(model: bytes, values: Mapping[str, memoryview]) -> bytes:
    """Return ``model`` with other values of these initializers.

    ``values`` are views of contiguous float32 arrays: ``array.data`` of numpy's.

    Raises:
        PayloadError: no ONNX file, or it has no such initializer of that shape.
    """
    places = find_weights(model)
    changed = bytearray(model)
    for name, value in values.items():
        if value.format != "f" or not value.c_contiguous:
            raise ValueError(f"{name}: a contiguous float32 array is needed, not {value.format}")
        place = _place(places, name, value.shape or ())
        changed[place.start : place.end] = value.tobytes()
    return bytes(changed)


def _place(places: Mapping[str, Weight], name: str, shape: tuple[int, ...]) -> Weight:
    place = places.get(name)
    if place is None:
        raise PayloadError(f"the ONNX file has no float32 initializer {name!r}")
    if place.shape != shape or place.end - place.start != 4 * math.prod(shape):
        raise PayloadError(f"{name!r} is float32 {place.shape} in the ONNX file, not {shape}")
    return place


def _read_tensor(model: bytes, tensor: _Field) -> tuple[str, Weight | None]:
    name, kind, raw, shape = "", 0, None, []
    for field in _fields(model, tensor.start, tensor.end):
        if field.number == _NAME and field.end >= 0:
            try:
                name = model[field.start : field.end].decode("utf-8")
            except UnicodeDecodeError:
                raise PayloadError("ONNX model: an initializer's name is not UTF-8") from None
        elif field.number == _DATA_TYPE:
            kind = field.start
        elif field.number in (_RAW_DATA, _FLOAT_DATA):  # packed: the same bytes
            raw = field
        elif field.number == _DIMS and field.end < 0:
            shape.append(field.start)
        elif field.number == _DIMS:  # packed
            at = field.start
            while at < field.end:
                side, at = _number(model, at, field.end)
                shape.append(side)
    if kind != _FLOAT or raw is None or raw.end < 0:
        return name, None
    return name, Weight(raw.start, raw.end, tuple(shape))


def _fields(data: bytes, at: int, end: int) -> Iterator[_Field]:
    """Walk over the fields of one message in ``data[at:end]``."""
    while at < end:
        tag, at = _number(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _number(data, at, end)
            yield _Field(number, value, -1)
            continue
        if wire == _LENGTH:
            length, at = _number(data, at, end)
        elif wire == _FIXED64:
            length = 8
        elif wire == _FIXED32:
            length = 4
        else:
            raise PayloadError("no ONNX file: unknown field type")
        if length > end - at:
            raise PayloadError("no ONNX file, or cut off")
        yield _Field(number, at, at + length)
        at += length


def _number(data: bytes, at: int, end: int) -> tuple[int, int]:
    return read_varint(data, at, end, what="no ONNX file", longest=10)
