"""Weights of other types than float32: widened where that is all to do, else named. Pure."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.errors import UsageError

__all__ = ["refuse_quantized", "widen_floats"]

# What becomes float32, and what people call it.
WIDENED = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
QUANTIZED = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.FLOAT8E4M3FN: "float8",
    TensorProto.FLOAT8E4M3FNUZ: "float8",
    TensorProto.FLOAT8E5M2: "float8",
    TensorProto.FLOAT8E5M2FNUZ: "float8",
}
INTEGER_OPERATORS = {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger"}
OTHER_QUANTIZED = {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulNBits", "QAttention"}
TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}


def refuse_quantized(graph: onnx.GraphProto) -> None:
    """Refuse a model whose weights are whole numbers of a few bits.

    Raises:
        UsageError: it has such; the node, the weight and the type are named.
    """
    tensors = {tensor.name: tensor for tensor in _constants(graph)}
    for node in graph.node:
        op = node.op_type
        is_integer = op in INTEGER_OPERATORS | OTHER_QUANTIZED or op.startswith("QLinear")
        if not is_integer and op != "DequantizeLinear":
            continue
        weights = [
            tensors[name]
            for name in node.input
            if name in tensors
            and tensors[name].data_type in QUANTIZED
            and np.prod(tensors[name].dims) > 1
        ]
        if is_integer or weights:
            kind = QUANTIZED[weights[0].data_type] if weights else "int8"
            which = f" ({weights[0].name!r}, read by " if weights else " ("
            raise UsageError(
                f"the weights are {kind}{which}node {node.name or node.output[0]!r}, {op}): a "
                "quantized model cannot be trained; give the float32 file from before its "
                "quantization"
            )


def widen_floats(model: onnx.ModelProto, on_note: Callable[[str], None]) -> None:
    """Make float16, bfloat16 and float64 weights float32, in place, and all that is made of them.

    ``on_note`` is told. A model that has such types only in single numbers stays as it is.
    """
    graph = model.graph
    found: dict[int, int] = {}
    for tensor in _constants(graph):
        if tensor.data_type in WIDENED and np.prod(tensor.dims) > 1:
            found[tensor.data_type] = found.get(tensor.data_type, 0) + 1
    count = sum(found.values())
    names = [WIDENED[kind] for kind in found]
    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        if kind in WIDENED:
            found.setdefault(kind, 0)
    if not found:
        return
    for tensor in _constants(graph):
        if tensor.data_type in found:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in TYPE_ATTRIBUTES and attribute.i in found:
                attribute.i = TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in found:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    if count:
        on_note(f"{count} weights of the file are {' and '.join(names)}: they are made float32")


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.name = attribute.t.name or (node.output[0] if node.output else "")
                yield attribute.t
