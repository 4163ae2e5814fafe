"""Branches whose condition is known ahead of time are no branches. Pure.

torch's exporters write an If for a squeeze, or for a shape that they cannot be sure of; for any
batch the condition is the same.
"""

import onnx

from models.errors import UsageError
from models.graph.facts.shape_facts import BATCH_SIZES
from models.graph.facts.shape_trace import ShapeTrace
from models.graph.reading.needed_part import reads

__all__ = ["fold_branches"]


def fold_branches(graph: onnx.GraphProto, opset: int) -> None:
    """Put, in place, the branch that is always taken in the place of every such If.

    Nodes are sorted. What cannot be told stays as it is.
    """
    while any(node.op_type == "If" for node in graph.node):
        at = _first_known(graph, opset)
        if at is None:
            return
        i, taken = at
        _splice(graph, i, "then_branch" if taken else "else_branch")


def _first_known(graph: onnx.GraphProto, opset: int) -> tuple[int, bool] | None:
    """Return the number of an If whose condition is known, and the condition."""
    traces = [ShapeTrace(graph, batch, opset) for batch in BATCH_SIZES]
    for i, node in enumerate(graph.node):
        if node.op_type == "If":
            conditions = [trace.values.get(node.input[0]) for trace in traces if node.input]
            truths = {bool(value.all()) for value in conditions if value is not None}
            if len(truths) == 1 and not any(value is None for value in conditions):
                return i, truths.pop()
            continue
        try:
            for trace in traces:
                trace.step(node)
        except UsageError:
            continue  # for another to say; here it is merely unknown
    return None


def _splice(graph: onnx.GraphProto, at: int, which: str) -> None:
    node = graph.node[at]
    branch = next((a.g for a in node.attribute if a.name == which), None)
    if branch is None or len(branch.output) != len(node.output):
        raise UsageError(f"the model is not valid ONNX: node {node.name!r} (If) has no {which}")
    taken = {name for other in graph.node for name in (*reads(other), *other.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    new = {}
    for name in (*(n for inner in branch.node for n in inner.output), *_names(branch)):
        fresh = name
        while fresh in taken:
            fresh += "_"
        new[name] = fresh
        taken.add(fresh)
    nodes = []
    for inner in branch.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(inner)
        _rename(copy, new)
        nodes.append(copy)
    for tensor in branch.initializer:
        copied = graph.initializer.add()
        copied.CopyFrom(tensor)
        copied.name = new[tensor.name]
    nodes += [
        onnx.helper.make_node("Identity", [new.get(value.name, value.name)], [name])
        for value, name in zip(branch.output, node.output, strict=True)
    ]
    kept = [*graph.node[:at], *nodes, *graph.node[at + 1 :]]
    del graph.node[:]
    graph.node.extend(kept)


def _names(branch: onnx.GraphProto) -> list[str]:
    return [tensor.name for tensor in branch.initializer]


def _rename(node: onnx.NodeProto, new: dict[str, str]) -> None:
    """Rename what a node reads and makes, in its subgraphs too (which only read)."""
    node.input[:] = [new.get(name, name) for name in node.input]
    node.output[:] = [new.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                _rename(inner, new)
            for value in graph.output:
                value.name = new.get(value.name, value.name)
