"""What can be known of a model's shapes ahead of time, whatever the batch. Pure.

Shapes are worked out for two batch sizes: a dimension that comes out equal is fixed, one that does
not follows the batch. The same trick folds shape arithmetic: what has the same value for both batch
sizes is a constant.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.graph.facts.shape_trace import ShapeTrace
from models.graph.graph_builder import Array, Shape

__all__ = ["BATCH", "BATCH_SIZES", "Facts", "batch_input", "fold_shapes", "infer_facts"]

BATCH = "batch"
BATCH_SIZES = (7, 11)  # unlikely as sizes of anything else, and not multiples of each other


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
    return _facts_of(*_traces(model))


def fold_shapes(model: onnx.ModelProto) -> None:
    """Replace, in place, shape arithmetic whose result does not depend on the batch by constants.

    A Reshape to a shape with one dimension that does depend on it gets -1 there.
    """
    first, second = _traces(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    factors = _read_as_factors(model.graph)
    equal = {
        name: value
        for name, value in first.values.items()
        if name not in constants
        and _equal(value, second.values.get(name))
        and (value.dtype != np.float32 or value.size == 1 or name in factors)
    }
    _replace(model.graph, equal)
    _drop_casts(model.graph, first)
    _fix_squeezes(model, _facts_of(first, second))
    _fix_reshapes(model, _facts_of(first, second))


def _traces(model: onnx.ModelProto) -> list[ShapeTrace]:
    traces = [ShapeTrace(model.graph, batch) for batch in BATCH_SIZES]
    for trace in traces:
        for node in model.graph.node:
            trace.step(node)
    return traces


def _facts_of(first: ShapeTrace, second: ShapeTrace) -> Facts:
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, int] = {}
    for name in first.names():
        dtypes[name] = first.dtype(name) or TensorProto.UNDEFINED
        dims, other = first.shape(name), second.shape(name)
        if dims is not None and other is not None and len(dims) == len(other):
            shapes[name] = tuple(d if d == o else None for d, o in zip(dims, other, strict=True))
    return Facts(shapes, dtypes)


def _read_as_factors(graph: onnx.GraphProto) -> set[str]:
    """Return the values that only ever say by how much something is resized."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, set()).add(node.op_type if place else "")
    return {name for name, ops in readers.items() if ops <= {"Resize", "Upsample"}}


def _replace(graph: onnx.GraphProto, values: dict[str, Array]) -> None:
    """Put constants in the place of the nodes that compute them."""
    kept = [node for node in graph.node if any(name not in values for name in node.output if name)]
    made = {name for node in kept for name in node.output}
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in values.items() if name not in made
    )


def _drop_casts(graph: onnx.GraphProto, trace: ShapeTrace) -> None:
    """Bypass casts to the type that a value has already."""
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        is_idle = node.op_type == "Cast" and trace.dtype(node.input[0]) == trace.dtype(
            node.output[0]
        )
        if is_idle and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _fix_squeezes(model: onnx.ModelProto, facts: Facts) -> None:
    """Write out which axes are squeezed: a batch of one sample is no axis to drop."""
    taken = _names(model.graph)
    for node in model.graph.node:
        shape = facts.shapes.get(node.input[0]) if node.op_type == "Squeeze" else None
        if shape is not None and not any(node.input[1:]):
            axes = np.array([axis for axis, d in enumerate(shape) if d == 1], np.int64)
            if not axes.size:  # which a runtime takes for all axes of one
                node.op_type = "Identity"
                del node.input[1:]
                continue
            name = _free_name(f"{node.output[0]}/axes", taken)
            node.input[:] = [node.input[0], name]
            model.graph.initializer.append(numpy_helper.from_array(axes, name))


def _fix_reshapes(model: onnx.ModelProto, facts: Facts) -> None:
    """Give every Reshape whose result has one open dimension at most a constant shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    taken = _names(model.graph)
    for node in model.graph.node:
        shape = facts.shapes.get(node.output[0], (None, None))
        if node.op_type == "Reshape" and node.input[1] not in constants and shape.count(None) <= 1:
            target = np.array([-1 if d is None else d for d in shape], np.int64)
            node.input[1] = _free_name(f"{node.output[0]}/shape", taken)
            model.graph.initializer.append(numpy_helper.from_array(target, node.input[1]))


def _names(graph: onnx.GraphProto) -> set[str]:
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    return taken | {tensor.name for tensor in graph.initializer}


def _free_name(wish: str, taken: set[str]) -> str:
    while wish in taken:
        wish += "_"
    taken.add(wish)
    return wish


def _equal(left: Array, right: Array | None) -> bool:
    return right is not None and left.dtype == right.dtype and np.array_equal(left, right)
