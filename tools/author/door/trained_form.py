"""What infer.onnx answers while it is trained: batch norms that adapt normalize by their batch.

A second source for the check at the door: written from the definition for samples that all count
the same, and apart from the graphs that train.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.graph.facts.shape_facts import infer_facts
from models.task.spec import TaskSpec

__all__ = ["trained_form"]


def trained_form(infer: bytes, spec: TaskSpec) -> bytes:
    """Return the model with its adaptive norms written out, which no longer read statistics."""
    if not spec.norms_adapt:
        return infer
    model = onnx.load_from_string(infer)
    adaptive = {tensor.name for tensor in spec.trainable if tensor.kind == "statistic"}
    shapes = infer_facts(model).shapes
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input[3] in adaptive:
            nodes += _written_out(node, len(shapes[node.input[0]]), model.graph)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in adaptive]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return bytes(model.SerializeToString())


def _written_out(node: onnx.NodeProto, rank: int, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    stem = f"{node.output[0]}/by_batch"
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    constants = {
        "axes": np.array([0, *range(2, rank)], np.int64),
        "column": np.array([1, -1, *[1] * (rank - 2)], np.int64),
        "epsilon": np.array(epsilon, np.float32),
    }
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, f"{stem}/{name}"))
    steps = [
        ("ReduceMean", [node.input[0], f"{stem}/axes"], "mean"),
        ("Sub", [node.input[0], f"{stem}/mean"], "center"),
        ("Mul", [f"{stem}/center", f"{stem}/center"], "square"),
        ("ReduceMean", [f"{stem}/square", f"{stem}/axes"], "variance"),
        ("Add", [f"{stem}/variance", f"{stem}/epsilon"], "sum"),
        ("Sqrt", [f"{stem}/sum"], "deviation"),
        ("Div", [f"{stem}/center", f"{stem}/deviation"], "normal"),
        ("Reshape", [node.input[1], f"{stem}/column"], "scale"),
        ("Reshape", [node.input[2], f"{stem}/column"], "shift"),
        ("Mul", [f"{stem}/normal", f"{stem}/scale"], "scaled"),
    ]
    made = [helper.make_node(op, inputs, [f"{stem}/{name}"]) for op, inputs, name in steps]
    return [
        *made,
        helper.make_node("Add", [f"{stem}/scaled", f"{stem}/shift"], [node.output[0]], node.name),
    ]
