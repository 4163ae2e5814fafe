"""GroupNormalization as InstanceNormalization of groups, whose shapes can be inferred. Pure."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from models.errors import UsageError

__all__ = ["without_group_norms"]

PER_CHANNEL = 21  # from this opset on scale and bias have one number per channel, not per group


def without_group_norms(model: onnx.ModelProto) -> None:
    """Write out every GroupNormalization, in place.

    Opsets 18 to 20 have it with one scale per group, which ONNX has since called a mistake and no
    longer takes as valid; ours has it, but shape inference does not know it.

    Raises:
        UsageError: the scale is computed, so that nothing says how many channels there are.
    """
    graph = model.graph
    standard = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    version = max(standard, default=0)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            sizes[node.output[0]] = int(np.prod(node.attribute[0].t.dims))
        elif node.op_type == "Identity" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
        if node.op_type != "GroupNormalization":
            nodes.append(node)
            continue
        groups = next(a.i for a in node.attribute if a.name == "num_groups")
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        parts = groups if version < PER_CHANNEL else sizes.get(node.input[1])
        if parts is None:
            raise UsageError(
                f"node {node.name or node.output[0]!r} (GroupNormalization): its scale "
                f"{node.input[1]!r} must be a constant; export the model with constant weights"
            )
        nodes += _written_out(graph, node, groups, parts, epsilon)
    del graph.node[:]
    graph.node.extend(nodes)


def _written_out(
    graph: onnx.GraphProto, node: onnx.NodeProto, groups: int, parts: int, epsilon: float
) -> list[onnx.NodeProto]:
    x, scale, bias = node.input
    (y,) = node.output

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{y}/{name}"))
        return f"{y}/{name}"

    made: list[onnx.NodeProto] = []

    def add(op: str, name: str, *inputs: str, **attributes: float) -> str:
        made.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    column = constant("column", np.array([-1, 1]))
    grouped = add("Reshape", f"{y}/grouped", x, constant("groups", np.array([0, groups, -1])))
    ones = constant("ones", np.ones(groups, np.float32))
    zeros = constant("zeros", np.zeros(groups, np.float32))
    normal = add("InstanceNormalization", f"{y}/normal", grouped, ones, zeros, epsilon=epsilon)
    rows = add("Reshape", f"{y}/rows", normal, constant("parts", np.array([0, parts, -1])))
    scaled = add("Mul", f"{y}/scaled", rows, add("Reshape", f"{y}/scale", scale, column))
    moved = add("Add", f"{y}/moved", scaled, add("Reshape", f"{y}/bias", bias, column))
    made.append(helper.make_node("Shape", [x], [f"{y}/shape_of"]))
    made.append(helper.make_node("Reshape", [moved, f"{y}/shape_of"], [y], node.name))
    return made
