"""What is known of the values of a graph at one batch size, node by node. Pure.

ONNX's own shape inference, one operator at a time, with what it does not do itself: arithmetic on
shapes is computed, whatever it is made of, and its results are there when the next node reads them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from models.errors import UsageError
from models.graph.graph_builder import IR_VERSION, OPSET, Array

__all__ = ["RECURRENT", "ShapeTrace", "evaluate", "node_name"]

SMALL = 1024  # elements; larger constants are data, not shape arithmetic
FACTORS = 16  # elements of a float constant that may be read as the factors of a Resize
# What shape arithmetic is made of.
COMPUTED = {
    *("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div"),
    *("Equal", "Expand", "Floor", "Gather", "GatherElements", "GatherND", "Greater"),
    *("GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg"),
    *("NonZero", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
    *("Reshape", "Round", "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt"),
    *("Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
}
RECURRENT = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}  # and their initial states
POOLS = {"AveragePool", "LpPool", "MaxPool"}
LIKE_THEIR_INPUT = {"GroupNormalization", "RMSNormalization"}  # not inferred by the library

Dims = tuple[int | None, ...]


class ShapeTrace:
    """Types, shapes and small values of a graph with one input, for one size of the batch."""

    def __init__(self, graph: onnx.GraphProto, batch: int, opset: int = OPSET) -> None:
        self._opset = opset
        self.values: dict[str, Array] = {}  # of what is computed from shapes and small constants
        self._types: dict[str, onnx.TypeProto] = {}
        self._factors: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            self.add_constant(tensor)
        for value in graph.input:
            kind = onnx.TypeProto()
            kind.CopyFrom(value.type)
            if kind.tensor_type.shape.dim:
                kind.tensor_type.shape.dim[0].dim_value = batch
            self._types[value.name] = kind

    def add_constant(self, tensor: onnx.TensorProto) -> None:
        """Take a constant; small whole numbers and single floats are known by value."""
        self._types[tensor.name] = helper.make_tensor_type_proto(
            tensor.data_type, list(tensor.dims)
        )
        size = int(np.prod(tensor.dims, dtype=np.float64))
        is_float = tensor.data_type == TensorProto.FLOAT
        if size <= (1 if is_float else SMALL) and tensor.data_type != TensorProto.STRING:
            self.values[tensor.name] = numpy_helper.to_array(tensor)
        elif is_float and size <= FACTORS:
            self._factors[tensor.name] = tensor

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a value, None where a part of it is unknown."""
        dims = self._dims(name)
        known = [d for d in dims or () if d is not None]
        return None if dims is None or len(known) < len(dims) else tuple(known)

    def dtype(self, name: str) -> int | None:
        """Return the TensorProto.DataType of a value, None where it is unknown."""
        return self._types[name].tensor_type.elem_type if name in self._types else None

    def names(self) -> list[str]:
        return list(self._types)

    def step(self, node: onnx.NodeProto) -> None:
        """Work out what ``node`` makes.

        Raises:
            UsageError: its inputs do not fit it, or each other.
        """
        if any(name and name not in self._types for name in node.input):
            return  # behind something of which nothing is known
        try:
            found = self._inferred(node)
        except Exception as error:  # the library raises several kinds, some of its own
            raise UsageError(_misfit(node, str(error))) from None
        outputs = {name: kind for name, kind in found.items() if kind.HasField("tensor_type")}
        if node.op_type in POOLS:
            self._cut(node, outputs)
        self._types.update(outputs)
        self._check(node)
        self._compute(node)

    def _dims(self, name: str) -> Dims | None:
        kind = self._types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim
        )

    def _inferred(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        schema = defs.get_schema(node.op_type, self._opset, "")
        types = {name: self._types[name] for name in node.input if name}
        data = {}
        for name in types:
            if name in self.values:
                data[name] = numpy_helper.from_array(self.values[name], name)
            elif name in self._factors:
                data[name] = self._factors[name]
        opset = helper.make_opsetid("", self._opset)
        found = shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[opset], ir_version=IR_VERSION
        )
        if schema.has_context_dependent_function or schema.has_function:
            shapeless = [n for n in node.output if n and not _has_shape(found.get(n))]
            if shapeless:
                found.update(_by_whole_model(node, types, opset))
        if node.op_type in LIKE_THEIR_INPUT and not _has_shape(found.get(node.output[0])):
            found[node.output[0]] = types[node.input[0]]
        return dict(found)

    def _cut(self, node: onnx.NodeProto, outputs: Mapping[str, onnx.TypeProto]) -> None:
        """Leave out windows that would begin in the padding at the end, as ONNX says.

        The library's inference counts them where it rounds up (ceil_mode).
        """
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        size = self._dims(node.input[0])
        if not settings.get("ceil_mode", 0) or size is None:
            return
        strides = settings.get("strides", [1] * (len(size) - 2))
        pads = settings.get("pads", [0] * 2 * (len(size) - 2))
        for kind in outputs.values():
            for d, n, stride, pad in zip(
                kind.tensor_type.shape.dim[2:], size[2:], strides, pads, strict=False
            ):
                if n is not None and d.dim_value > 1 and (d.dim_value - 1) * stride >= n + pad:
                    d.dim_value -= 1

    def _check(self, node: onnx.NodeProto) -> None:
        """Refuse what the library's inference lets pass."""
        if node.op_type == "Reshape":
            before, after = self.shape(node.input[0]), self.shape(node.output[0])
            if before is not None and after is not None and np.prod(before) != np.prod(after):
                raise UsageError(
                    _misfit(node, f"{list(before)} cannot be reshaped to {list(after)}")
                )
        if node.op_type in RECURRENT:
            x = self.shape(node.input[0])
            layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
            for i in RECURRENT[node.op_type]:
                state = self.shape(node.input[i]) if i < len(node.input) and node.input[i] else None
                if x is None or state is None:
                    continue
                if len(x) != 3 or len(state) != 3 or state[1 - layout] != x[1 - layout]:
                    raise UsageError(_misfit(node, f"an initial state {list(state)} for {list(x)}"))

    def _compute(self, node: onnx.NodeProto) -> None:
        """Keep the value of the node if it is shape arithmetic on what is known."""
        if node.op_type in ("Shape", "Size"):
            dims = self.shape(node.input[0])
            if dims is not None:
                self.values[node.output[0]] = _shape_of(node, dims)
            return
        inputs = {name: self._known(node, name) for name in node.input if name}
        known = {name: value for name, value in inputs.items() if value is not None}
        if node.op_type not in COMPUTED or len(known) < len(inputs):
            return
        for name in node.output:
            shape = self.shape(name)
            if shape is None and node.op_type != "NonZero":
                return
            if shape is not None and np.prod(shape, dtype=np.float64) > SMALL:
                return
        for name, value in zip(
            node.output, evaluate([node], known, node.output, self._opset), strict=False
        ):
            self.values[name] = value
            self._types[name] = helper.make_tensor_type_proto(
                helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
            )

    def _known(self, node: onnx.NodeProto, name: str) -> Array | None:
        if name in self._factors and node.op_type == "Concat":
            value: Array = numpy_helper.to_array(self._factors[name])
            return value
        return self.values.get(name)


def evaluate(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    opset: int = OPSET,
) -> list[Array]:
    """Run a few nodes on known inputs; nothing where they cannot be run."""
    names = list(outputs)
    graph = helper.make_graph(
        list(nodes),
        "part",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(names, dict(inputs))
    except Exception:  # numpy's errors and the evaluator's own: then the value stays unknown
        return []
    return [np.asarray(value) for value in found]


def node_name(node: onnx.NodeProto) -> str:
    """Return how a node is called in a sentence: its name, or that of what it makes."""
    return f"{node.name or next(iter(node.output), '')!r} ({node.op_type})"


def _misfit(node: onnx.NodeProto, reason: str) -> str:
    words = (reason.strip().split("\n") or [""])[-1].split("] ", 1)[-1].strip()
    return f"node {node_name(node)}: the model's shapes do not fit together: {words}"


def _has_shape(kind: onnx.TypeProto | None) -> bool:
    return kind is not None and kind.tensor_type.HasField("shape")


def _by_whole_model(
    node: onnx.NodeProto, types: dict[str, onnx.TypeProto], opset: onnx.OperatorSetIdProto
) -> dict[str, onnx.TypeProto]:
    """Infer an operator that is a function of others, such as GroupNormalization."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_value_info(name, kind) for name, kind in types.items()],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    return {
        value.name: value.type for value in (*inferred.value_info, *inferred.output)
        if _has_shape(value.type)
    }  # fmt: skip


def _shape_of(node: onnx.NodeProto, dims: tuple[int, ...]) -> Array:
    if node.op_type == "Size":
        return np.array(np.prod(dims), np.int64)
    limits = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(dims[limits.get("start", 0) : limits.get("end", len(dims))], np.int64)
