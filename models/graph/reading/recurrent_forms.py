"""RNN, GRU and LSTM in the one form that onnxruntime runs and that fits any batch. Pure."""

from collections.abc import Mapping

import onnx
from onnx import helper, numpy_helper

__all__ = ["time_first", "without_zero_states"]

# The initial states among the inputs, and the outputs [.., directions, samples, hidden].
STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
# What zeros remain zeros under.
KEEPING = {
    *("Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
}


def without_zero_states(graph: onnx.GraphProto) -> None:
    """Leave out, in place, initial states that an exporter fills with zeros: it means the same.

    Exporters write them for one batch size, or as a constant that looks like a weight. A tensor
    that the author may have made, an initializer of more than one number, stays.
    """
    producers = {name: node for node in graph.node for name in node.output}
    single = {
        tensor.name: tensor for tensor in graph.initializer if all(d == 1 for d in tensor.dims)
    }
    for node in graph.node:
        for i in STATES.get(node.op_type, ()):
            if len(node.input) > i and _is_zero(node.input[i], producers, single):
                node.input[i] = ""


def _is_zero(
    name: str, producers: Mapping[str, onnx.NodeProto], single: Mapping[str, onnx.TensorProto]
) -> bool:
    if name in single:
        return not numpy_helper.to_array(single[name]).any()
    node = producers.get(name)
    if node is None:
        return False
    if node.op_type in ("Constant", "ConstantOfShape"):
        values = [helper.get_attribute_value(attribute) for attribute in node.attribute]
        tensors = [value for value in values if isinstance(value, onnx.TensorProto)]
        only_tensors = len(tensors) == len(values)  # none at all: ConstantOfShape makes zeros
        return only_tensors and not any(numpy_helper.to_array(value).any() for value in tensors)
    if node.op_type == "Concat":
        return all(_is_zero(part, producers, single) for part in node.input)
    return node.op_type in KEEPING and _is_zero(node.input[0], producers, single)


def time_first(graph: onnx.GraphProto) -> None:
    """Put transpositions, in place, around nodes whose first axis is the batch (layout 1)."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        layout = next((a for a in node.attribute if a.name == "layout"), None)
        if node.op_type not in STATES or layout is None or not layout.i:
            nodes.append(node)
            continue
        layout.i = 0
        after = []
        for i in (0, *STATES[node.op_type]):
            if len(node.input) > i and node.input[i]:
                turned = f"{next(filter(None, node.output))}/turned_{i}"
                nodes.append(
                    helper.make_node("Transpose", [node.input[i]], [turned], perm=[1, 0, 2])
                )
                node.input[i] = turned
        for i, name in enumerate(node.output):
            if name:
                node.output[i] = f"{name}/time_first"
                perm = [1, 0, 2] if i else [2, 0, 1, 3]
                after.append(helper.make_node("Transpose", [node.output[i]], [name], perm=perm))
        nodes += [node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
