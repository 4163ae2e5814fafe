"""Pieces of a value that an exporter takes out of a sequence, as slices of it. Pure."""

import onnx
from onnx import helper, numpy_helper

__all__ = ["without_sequences"]


def without_sequences(graph: onnx.GraphProto) -> None:
    """Write SplitToSequence with SequenceAt of known places as Slice, in place."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    splits = {n.output[0]: n for n in graph.node if n.op_type == "SplitToSequence" and n.output}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | set(values)

    def numbers(name: str) -> list[int] | None:
        if name not in values:
            return None
        return [int(value) for value in numpy_helper.to_array(values[name]).reshape(-1)]

    def constant(wish: str, value: int) -> str:
        while wish in taken:
            wish += "_"
        taken.add(wish)
        tensor = helper.make_tensor(wish, onnx.TensorProto.INT64, [1], [value])
        graph.initializer.append(tensor)
        return wish

    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        split = splits.get(node.input[0]) if node.op_type == "SequenceAt" else None
        at = numbers(node.input[1]) if split is not None else None
        sizes = numbers(split.input[1]) if split is not None and split.input[1:] else None
        if split is None or not at or at[0] < 0 or not sizes:
            kept.append(node)
            continue
        is_one_size = not values[split.input[1]].dims
        if not is_one_size and at[0] >= len(sizes):
            kept.append(node)
            continue
        start = at[0] * sizes[0] if is_one_size else sum(sizes[: at[0]])
        end = start + (sizes[0] if is_one_size else sizes[at[0]])
        axis = next((a.i for a in split.attribute if a.name == "axis"), 0)
        out = node.output[0]
        bounds = [
            constant(f"{out}/{what}", value)
            for what, value in (("start", start), ("end", end), ("axis", axis))
        ]
        kept.append(helper.make_node("Slice", [split.input[0], *bounds], [out], node.name))
    del graph.node[:]
    graph.node.extend(kept)
