"""Between which numbers every value of a graph must lie, whatever the input. Pure.

Interval arithmetic over the graph: it tells probabilities, which must lie in [0, 1], from logits,
which may be anything, without running the model. A range may be wider than what can happen, never
narrower; of an operator that is not known here it is everything, and says so.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.graph.graph_builder import Node, read_node

__all__ = ["Range", "value_ranges"]

INF = math.inf


class Range(NamedTuple):
    """From ``low`` to ``high``; ``unknown`` names the node because of which nothing is known."""

    low: float = -INF
    high: float = INF
    unknown: str = ""

    def is_within(self, low: float, high: float) -> bool:
        return low - 1e-6 <= self.low and self.high <= high + 1e-6


# What mixes many values with weights: anything may come out.
UNBOUNDED = {
    *("Attention", "BatchNormalization", "Conv", "ConvTranspose", "Einsum", "Gemm"),
    *("GroupNormalization", "InstanceNormalization", "LayerNormalization", "MatMul"),
    *("MeanVarianceNormalization", "RMSNormalization", "ReduceLogSum", "ReduceLogSumExp"),
}
# Where the values of the first input are moved, chosen or averaged.
KEEPS = {
    *("AveragePool", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements"),
    *("GatherND", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "Reshape", "Resize", "ReverseSequence"),
    *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze"),
    "Upsample",
}
UNION = {"Concat", "Mean"}  # of all inputs
TRUTH = {
    *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not"),
    *("Or", "Xor"),
}
FIXED = {
    "Sigmoid": Range(0, 1),
    "HardSigmoid": Range(0, 1),
    "Softmax": Range(0, 1),
    "Hardmax": Range(0, 1),
    "LogSoftmax": Range(-INF, 0),
    "Tanh": Range(-1, 1),
    "Erf": Range(-1, 1),
    "Softsign": Range(-1, 1),
    "Sin": Range(-1, 1),
    "Cos": Range(-1, 1),
    "LpNormalization": Range(-1, 1),
    "Softplus": Range(0, INF),
    "ReduceL1": Range(0, INF),
    "ReduceL2": Range(0, INF),
    "ReduceSumSquare": Range(0, INF),
    "ArgMax": Range(0, INF),
    "ArgMin": Range(0, INF),
    "Shape": Range(0, INF),
    "Size": Range(0, INF),
}


class _Around(NamedTuple):
    """What a rule may look at."""

    node: Node
    inputs: list[Range]
    producers: Mapping[str, Node]


def value_ranges(forward: onnx.ModelProto) -> dict[str, Range]:
    """Return the range of every value of a normalized model, by name."""
    found = {value.name: Range() for value in forward.graph.input}
    for tensor in forward.graph.initializer:
        if tensor.data_type not in (TensorProto.STRING, TensorProto.BFLOAT16):
            array = numpy_helper.to_array(tensor)
            if array.size and array.dtype.kind in "biuf" and np.isfinite(array).all():
                found[tensor.name] = Range(float(array.min()), float(array.max()))
    producers: dict[str, Node] = {}
    for proto in forward.graph.node:
        node = read_node(proto)
        inputs = [found.get(name, Range()) for name in node.inputs if name]
        of_node = _range_of(_Around(node, inputs, producers))
        for name in node.outputs:
            found[name] = of_node
            producers[name] = node
    return found


def _range_of(at: _Around) -> Range:
    op = at.node.op
    if op in UNBOUNDED:
        return Range()
    if op in FIXED:
        return FIXED[op]
    if op in TRUTH:
        return Range(0, 1)
    rule = RULES.get(op)
    if not at.inputs or (rule is None and op not in KEEPS and op not in UNION):
        return Range(unknown=f"{at.node.name!r} ({op})")
    if op in KEEPS:
        return at.inputs[0]  # what else there is says where to move it
    if unknown := next((r.unknown for r in at.inputs if r.unknown), ""):
        # Through what has a form of its own (Relu, Clip) the bounds still hold.
        low, high, _ = rule(at) if rule else Range()
        return Range(low, high, "" if (low, high) != (-INF, INF) else unknown)
    if rule is not None:
        return rule(at)
    return Range(min(r.low for r in at.inputs), max(r.high for r in at.inputs))


def _add(at: _Around) -> Range:
    left, right = at.inputs[0], at.inputs[-1]
    return Range(left.low + right.low, left.high + right.high)


def _sub(at: _Around) -> Range:
    left, right = at.inputs[0], at.inputs[-1]
    return Range(left.low - right.high, left.high - right.low)


def _sum(at: _Around) -> Range:
    return Range(sum(r.low for r in at.inputs), sum(r.high for r in at.inputs))


def _mul(at: _Around) -> Range:
    low, high = _product(at.inputs[0], at.inputs[-1])
    is_square = at.node.inputs[0] == at.node.inputs[-1]
    return Range(max(low, 0.0), high) if is_square else Range(low, high)


def _product(left: Range, right: Range) -> tuple[float, float]:
    products = [
        0.0 if 0 in (a, b) else a * b
        for a in (left.low, left.high)
        for b in (right.low, right.high)
    ]
    return min(products), max(products)


def _leaky(at: _Around) -> Range:
    """LeakyRelu and PRelu: below 0 by a slope, which may be steep or fall."""
    low, high, _ = at.inputs[0]
    alpha = at.node.attributes.get("alpha", 0.01)
    slope = at.inputs[1] if at.node.op == "PRelu" else Range(alpha, alpha)
    below = _product(Range(min(low, 0.0), min(high, 0.0)), slope)
    above = (max(low, 0.0), max(high, 0.0))
    if low >= 0:
        return Range(*above)
    return Range(*below) if high <= 0 else Range(min(below[0], 0.0), max(below[1], above[1]))


def _div(at: _Around) -> Range:
    left, right = at.inputs[0], at.inputs[-1]
    below = at.producers.get(at.node.inputs[-1])
    while below is not None and below.op in ("Add", "Clip", "Expand", "Max"):  # not to divide by 0
        below = at.producers.get(below.inputs[0])
    is_share = (
        below is not None
        and below.op in ("ReduceL1", "ReduceSum")
        and below.inputs[0] == at.node.inputs[0]
    )
    if is_share and left.low >= 0 and right.low >= 0:
        return Range(0, 1)
    if right.low > 0 or right.high < 0:
        quotients = [
            0.0 if a == 0 or math.isinf(b) else a / b
            for a in (left.low, left.high)
            for b in (right.low, right.high)
        ]
        return Range(min(quotients), max(quotients))
    return Range(0, INF) if left.low >= 0 and right.low >= 0 else Range()


def _neg(at: _Around) -> Range:
    return Range(-at.inputs[0].high, -at.inputs[0].low)


def _abs(at: _Around) -> Range:
    low, high, _ = at.inputs[0]
    return Range(0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high)))


def _relu(at: _Around) -> Range:
    return Range(max(0.0, at.inputs[0].low), max(0.0, at.inputs[0].high))


def _clip(at: _Around) -> Range:
    low, high, _ = at.inputs[0]
    names = [name for name in at.node.inputs if name]
    bounds = dict(zip(names, at.inputs, strict=True))
    if least := at.node.input(1):
        low, high = max(low, bounds[least].low), max(high, bounds[least].low)
    if most := at.node.input(2):
        low, high = min(low, bounds[most].high), min(high, bounds[most].high)
    return Range(low, high)


def _max(at: _Around) -> Range:
    return Range(max(r.low for r in at.inputs), max(r.high for r in at.inputs))


def _min(at: _Around) -> Range:
    return Range(min(r.low for r in at.inputs), min(r.high for r in at.inputs))


def _exp(at: _Around) -> Range:
    low, high = (math.exp(v) if v < 700 else INF for v in at.inputs[0][:2])
    return Range(low, high)


def _log(at: _Around) -> Range:
    low, high, _ = at.inputs[0]
    return Range(math.log(low) if low > 0 else -INF, math.log(high) if 0 < high < INF else INF)


def _sqrt(at: _Around) -> Range:
    low, high = (math.sqrt(max(v, 0.0)) for v in at.inputs[0][:2])
    return Range(low, high)


def _reciprocal(at: _Around) -> Range:
    low, high, _ = at.inputs[0]
    return Range(1 / high, 1 / low) if low > 0 else Range(0 if low == 0 else -INF, INF)


def _pow(at: _Around) -> Range:
    base, exponent = at.inputs[0], at.inputs[1]
    is_even = exponent.low == exponent.high and exponent.low % 2 == 0
    if base.is_within(0, 1) and exponent.low >= 0:
        return Range(0, 1)
    return Range(0, INF) if base.low >= 0 or is_even else Range()


def _reduce_sum(at: _Around) -> Range:
    low, high, _ = at.inputs[0]
    return Range(0 if low >= 0 else -INF, 0 if high <= 0 else INF)


def _reduce_prod(at: _Around) -> Range:
    return Range(0, 1) if at.inputs[0].is_within(0, 1) else Range()


def _where(at: _Around) -> Range:
    chosen = at.inputs[1:]
    return Range(min(r.low for r in chosen), max(r.high for r in chosen))


def _pad(at: _Around) -> Range:
    """Of the input, and of what it is padded with: 0 unless said."""
    low, high, _ = at.inputs[0]
    if at.node.attributes.get("mode", "constant") != "constant":
        return Range(low, high)
    fill = at.inputs[2] if at.node.input(2) and at.node.input(1) else Range(0, 0)
    return Range(min(low, fill.low), max(high, fill.high))


def _recurrent(at: _Around) -> Range:
    """What tanh and gates between 0 and 1 leave; of an LSTM's cells, or from a given state, all."""
    activations = [name.lower() for name in at.node.attributes.get("activations", ())]
    is_plain = all(name in ("hardsigmoid", "sigmoid", "tanh") for name in activations)
    has_cells = len(at.node.outputs) > 2 and at.node.outputs[2] != ""
    return Range(-1, 1) if is_plain and not has_cells and not at.node.input(5) else Range()


def _with_zero(at: _Around) -> Range:
    low, high, _ = at.inputs[0]
    return Range(min(low, 0.0), max(high, 0.0))


def _above(low: float) -> Callable[[_Around], Range]:
    """Of what falls to a bottom somewhere left of 0, and rises like x."""
    return lambda at: Range(low, max(0.0, at.inputs[0].high))


RULES: dict[str, Callable[[_Around], Range]] = {
    "Abs": _abs,
    "Add": _add,
    "Cast": lambda at: at.inputs[0],
    "Celu": lambda at: Range(-at.node.attributes.get("alpha", 1.0), max(0.0, at.inputs[0].high)),
    "Clip": _clip,
    "Div": _div,
    "Elu": lambda at: Range(-at.node.attributes.get("alpha", 1.0), max(0.0, at.inputs[0].high)),
    "Exp": _exp,
    "GRU": _recurrent,
    "Gelu": _above(-0.2),
    "HardSwish": _above(-0.4),
    "LSTM": _recurrent,
    "LeakyRelu": _leaky,
    "Log": _log,
    "Max": _max,
    "Min": _min,
    "Mish": _above(-0.4),
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _leaky,
    "Pad": _pad,
    "Pow": _pow,
    "RNN": _recurrent,
    "Reciprocal": _reciprocal,
    "ReduceProd": _reduce_prod,
    "ReduceSum": _reduce_sum,
    "Relu": _relu,
    "Selu": _above(-1.8),
    "Sqrt": _sqrt,
    "Sub": _sub,
    "Sum": _sum,
    "ThresholdedRelu": _relu,
    "Trilu": _with_zero,
    "Where": _where,
}
