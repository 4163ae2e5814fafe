"""What can be known of a model's shapes ahead of time, whatever the batch. Pure.

Shapes are inferred for two batch sizes: a dimension that comes out equal is fixed, one that does
not follows the batch. The same trick folds shape arithmetic: what has the same value for both batch
sizes is a constant.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from models.errors import UsageError
from models.graph.graph_builder import OPSET, Shape

BATCH = "batch"
BATCH_SIZES = (7, 11)  # unlikely as sizes of anything else, and not multiples of each other
SMALL = 1024  # elements; larger constants are data, not shape arithmetic
# What shape arithmetic is made of; nothing here makes much out of little.
FOLDED = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater"),
    *("Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "ReduceMax"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub"),
    *("Transpose", "Unsqueeze", "Where"),
}
ROUNDS = 16  # each round of folding may reveal shapes for the next

Array = npt.NDArray[Any]


class Facts(NamedTuple):
    """By value name; a value of unknown rank is missing."""

    shapes: dict[str, Shape]
    dtypes: dict[str, int]  # TensorProto.DataType


def batch_input(graph: onnx.GraphProto) -> Any:
    """Return the batch dimension of the one input, to read or to write."""
    return graph.input[0].type.tensor_type.shape.dim[0]


def infer_facts(model: onnx.ModelProto) -> Facts:
    """Infer the shapes and dtypes of all values of a model with one input.

    Raises:
        UsageError: the model contradicts itself.
    """
    first, second = (_shapes_at(model, batch) for batch in BATCH_SIZES)
    shapes: dict[str, Shape] = {}
    for name, (dims, _) in first.items():
        other = second.get(name, ((), 0))[0]
        if dims is not None and other is not None and len(dims) == len(other):
            shapes[name] = tuple(d if d == o else None for d, o in zip(dims, other, strict=True))
    return Facts(shapes, {name: dtype for name, (_, dtype) in first.items()})


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace, in place, arithmetic on small constants alone by its result."""
    values = _values_of(model, {}, from_shapes=False)
    _replace(model.graph, values)


def fold_shapes(model: onnx.ModelProto) -> None:
    """Replace, in place, shape arithmetic whose result does not depend on the batch by constants.

    A Reshape to a shape with one dimension that does depend on it gets -1 there.
    """
    for _ in range(ROUNDS):
        if not any(node.op_type in ("Shape", "Size") for node in model.graph.node):
            return
        first, second = (
            _values_of(model, _shapes_at(model, batch), from_shapes=True) for batch in BATCH_SIZES
        )
        equal = {
            name: value
            for name, value in first.items()
            if name in second and _equal(value, second[name])
        }
        _replace(model.graph, equal)
        if not _fix_reshapes(model) and not equal:
            return


def _replace(graph: onnx.GraphProto, values: dict[str, Array]) -> None:
    """Put constants in the place of the nodes that compute them."""
    kept = [node for node in graph.node if node.output[0] not in values]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())


def _fix_reshapes(model: onnx.ModelProto) -> bool:
    """Give every Reshape whose result has one open dimension at most a constant shape."""
    facts = infer_facts(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    changed = False
    for node in model.graph.node:
        shape = facts.shapes.get(node.output[0], (None, None))
        if node.op_type == "Reshape" and node.input[1] not in constants and shape.count(None) <= 1:
            target = np.array([-1 if d is None else d for d in shape], np.int64)
            node.input[1] = f"{node.output[0]}/shape"
            model.graph.initializer.append(numpy_helper.from_array(target, node.input[1]))
            changed = True
    return changed


def _equal(left: Array, right: Array) -> bool:
    return left.dtype == right.dtype and np.array_equal(left, right)


def _shapes_at(
    model: onnx.ModelProto, batch: int
) -> dict[str, tuple[tuple[int | None, ...] | None, int]]:
    """Return dimensions (None where unknown) and dtype of every value for one batch size."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    batch_input(graph).dim_value = batch
    for output in model.graph.output:  # without the declared shape, which may be wrong
        dtype = output.type.tensor_type.elem_type
        graph.output.append(helper.make_tensor_value_info(output.name, dtype, None))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            graph.initializer.append(tensor)
    try:
        inferred = shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    except (shape_inference.InferenceError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n")[-1]
        raise UsageError(f"the model's shapes do not fit together: {reason}") from None
    found: dict[str, tuple[tuple[int | None, ...] | None, int]] = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        dims = None
        if tensor.HasField("shape"):
            dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[value.name] = (dims, tensor.elem_type)
    for tensor in graph.initializer:
        found[tensor.name] = (tuple(tensor.dims), tensor.data_type)
    return {
        name: (dims if dims is not None and None not in dims else None, dtype)
        for name, (dims, dtype) in found.items()
    }


def _values_of(
    model: onnx.ModelProto,
    shapes: dict[str, tuple[tuple[int | None, ...] | None, int]],
    *,
    from_shapes: bool,
) -> dict[str, Array]:
    """Return what is computed from small constants, and from shapes too if asked for."""
    known: dict[str, Array] = {"": np.zeros(0)}
    for tensor in model.graph.initializer:
        size = np.prod(tensor.dims)
        if size <= (1 if tensor.data_type == TensorProto.FLOAT else SMALL):
            known[tensor.name] = numpy_helper.to_array(tensor)
    computed: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type in ("Shape", "Size") and from_shapes:
            dims = shapes.get(node.input[0], (None, 0))[0]
            if dims is None:
                continue
            value = _shape_of(node, [d for d in dims if d is not None])
        elif len(node.output) == 1 and all(name in known for name in node.input):
            evaluated = _evaluate(node, known)
            if evaluated is None:
                continue
            value = evaluated
        else:
            continue
        known[node.output[0]] = computed[node.output[0]] = value
    return computed


def _shape_of(node: onnx.NodeProto, dims: list[int]) -> Array:
    if node.op_type == "Size":
        return np.array(np.prod(dims), np.int64)
    limits = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(dims[limits.get("start", 0) : limits.get("end", len(dims))], np.int64)


def _evaluate(node: onnx.NodeProto, known: dict[str, Array]) -> Array | None:
    """Run one node of shape arithmetic on known inputs; None when it makes more than that."""
    if node.op_type not in FOLDED:
        return None
    names = [name for name in dict.fromkeys(node.input) if name]
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(known[name].dtype), known[name].shape
            )
            for name in names
        ],
        [helper.make_empty_tensor_value_info(node.output[0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    (value,) = ReferenceEvaluator(model).run(None, {name: known[name] for name in names})
    return np.asarray(value) if np.size(value) <= SMALL else None
