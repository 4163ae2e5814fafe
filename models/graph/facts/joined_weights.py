"""Weights that an exporter cuts and joins in the graph, as an operator wants them. Pure."""

from collections.abc import Collection

import onnx

__all__ = ["JOINING_OPERATORS", "joined_into"]

JOINING_OPERATORS = {"Concat", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def joined_into(names: Collection[str], graph: onnx.GraphProto) -> set[str]:
    """Return the initializers of which alone some of ``names`` are made, by cutting and joining.

    So an exporter that folds no constants sorts the gates of a recurrent net.
    """
    sources = {tensor.name: {tensor.name} for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in JOINING_OPERATORS:
            parts = node.input if node.op_type == "Concat" else node.input[:1]
            if all(name in sources for name in parts):
                found = set().union(*(sources[name] for name in parts))
                sources.update(dict.fromkeys(node.output, found))
    return set().union(*(sources.get(name, set()) for name in names))
