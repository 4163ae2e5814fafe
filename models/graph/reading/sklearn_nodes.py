"""What scikit-learn's converter writes beside a net, in standard operators. Pure.

A scaler in front is two operators; a map of class to probability holds a tensor that is learned.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError

__all__ = ["LEARNING_DOMAIN", "without_maps", "without_scalers"]

LEARNING_DOMAIN = "ai.onnx.ml"


def without_maps(graph: onnx.GraphProto) -> None:
    """Let outputs that are maps (ZipMap) be the tensors that they are made of, in place."""
    for node in graph.node:
        if (node.domain, node.op_type) != (LEARNING_DOMAIN, "ZipMap"):
            continue
        identity = helper.make_node("Identity", node.input, node.output, node.name)
        node.CopyFrom(identity)
        for value in graph.output:
            if value.name == node.output[0]:
                tensor = helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None)
                value.CopyFrom(tensor)


def without_scalers(graph: onnx.GraphProto) -> None:
    """Replace, in place, Scaler by Cast, Sub and Mul.

    Raises:
        UsageError: one has no numbers.
    """
    kept: list[onnx.NodeProto] = []
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        is_scaler = (node.domain, node.op_type) == (LEARNING_DOMAIN, "Scaler")
        kept += _scaled(node, graph, taken) if is_scaler else [node]
    del graph.node[:]
    graph.node.extend(kept)


def _scaled(node: onnx.NodeProto, graph: onnx.GraphProto, taken: set[str]) -> list[onnx.NodeProto]:
    """Return (x - offset) * scale, as onnx.ml defines it; the result is float32."""
    values = {a.name: np.array(a.floats, np.float32) for a in node.attribute}

    def named(wish: str) -> str:
        name = f"{node.output[0]}/{wish}"
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    cast = named("float")
    nodes = [helper.make_node("Cast", node.input, [cast], cast, to=TensorProto.FLOAT)]
    for op, attribute in (("Sub", "offset"), ("Mul", "scale")):
        value = values.get(attribute, np.zeros(0, np.float32))
        if not value.size:
            raise UsageError(
                f"the model is not valid ONNX: node {node.name or node.output[0]!r} (Scaler) has "
                f"no {attribute}"
            )
        constant = named(attribute)
        graph.initializer.append(numpy_helper.from_array(value, constant))
        out = node.output[0] if op == "Mul" else named("centered")
        nodes.append(helper.make_node(op, [nodes[-1].output[0], constant], [out], named(op)))
    return nodes
