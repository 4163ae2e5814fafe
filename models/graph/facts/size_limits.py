"""What a graph may fill with one number: a few bytes of it can ask for terabytes. Pure."""

import math
from collections.abc import Iterable

import onnx
from onnx import helper, numpy_helper

from models.errors import UsageError

__all__ = ["MOST_VALUES", "check_filled", "refuse_huge"]

MOST_VALUES = 1 << 26  # 256 MB of float32: more than a board can train


def refuse_huge(graph: onnx.GraphProto) -> None:
    """Refuse ranges of constant bounds that are longer than `MOST_VALUES`.

    ONNX's own shape inference writes their values down, whatever their number.

    Raises:
        UsageError: there is one; the node is named.
    """
    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    known[node.output[0]] = attribute.t
                elif attribute.name in ("value_int", "value_float"):
                    number = helper.get_attribute_value(attribute)
                    known[node.output[0]] = helper.make_tensor(
                        "", onnx.TensorProto.DOUBLE, [], [number]
                    )
    for node in graph.node:
        if node.op_type == "Range" and all(name in known for name in node.input):
            bounds = [numpy_helper.to_array(known[name]).reshape(-1) for name in node.input]
            if len(bounds) == 3 and all(len(bound) == 1 for bound in bounds):
                start, limit, delta = (float(bound[0]) for bound in bounds)
                if delta and not abs(limit - start) / abs(delta) <= MOST_VALUES:
                    raise UsageError(_too_many(node, f"{abs(limit - start) / abs(delta):.0f}"))


def check_filled(node: onnx.NodeProto, shape: Iterable[int]) -> None:
    """Raise `UsageError` if ``node`` fills a shape that is none, or too large to write down."""
    dims = [int(d) for d in shape]
    if any(d < 0 for d in dims):
        raise UsageError(f"{_named(node)} fills a shape with a negative dimension: {dims[:8]}")
    if math.prod(dims) > MOST_VALUES:
        raise UsageError(_too_many(node, str(math.prod(dims))))


def _too_many(node: onnx.NodeProto, count: str) -> str:
    return (
        f"{_named(node)} makes {count[:40]} values, at most {MOST_VALUES} can be held: export a "
        "smaller one"
    )


def _named(node: onnx.NodeProto) -> str:
    name = node.name or (node.output[0] if node.output else "")
    return f"node {name[:80]!r} ({node.op_type})"
