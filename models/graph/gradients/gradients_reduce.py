"""Gradient rules of reductions over axes: sums, means, extremes, lengths. Pure.

A length of 0 has gradient 0, as torch's norm has it.
"""

import math

import numpy as np

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.gradients.gradients_elementwise import divided
from models.graph.gradients.gradients_shape import fixed
from models.graph.gradients.spatial.convolution import Window
from models.graph.graph_builder import Node

__all__ = ["REDUCE"]


def _reduced_axes(b: Backward, node: Node) -> list[int]:
    rank = b.rank(node.inputs[0])
    if node.input(1):
        axes = [int(axis) for axis in b.value(node.input(1), node).reshape(-1)]
    else:
        axes = list(node.attributes.get("axes", []))
    if not axes:
        return [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def _spread(b: Backward, node: Node, gradient: str) -> str:
    """Give a reduction's gradient, or its output, the rank that broadcasts against its input."""
    if node.attributes.get("keepdims", 1):
        return gradient
    return b.graph.emit("Unsqueeze", gradient, b.graph.ints(_reduced_axes(b, node)))


def _first(node: Node, dX: str) -> Gradients:
    return [dX, *[None] * (len(node.inputs) - 1)]


def _refuse_noop(b: Backward, node: Node) -> None:
    """Refuse a reduction over no axes, of which ONNX and runtimes do not say the same."""
    if not _reduced_axes(b, node) and b.rank(node.inputs[0]):
        raise UsageError(
            f"node {node.name!r} ({node.op}) reduces over no axis (noop_with_empty_axes); its "
            "gradient is not supported: leave it out, or name its axes"
        )


def reduce_sum(b: Backward, node: Node, dY: str) -> Gradients:
    X = node.inputs[0]
    if not _reduced_axes(b, node):
        return _first(node, dY)
    dX = b.graph.emit("Expand", _spread(b, node, dY), b.shape_input(X))
    return _first(node, dX)


def reduce_mean(b: Backward, node: Node, dY: str) -> Gradients:
    """As the sum, divided by the number of elements that each output averages."""
    g, X = b.graph, node.inputs[0]
    count = 1
    for axis in _reduced_axes(b, node):
        d = b.shape(X)[axis]
        if d is None:  # a mean over the batch
            sizes = [g.cast(g.emit("Size", name)) for name in (node.outputs[0], X)]
            return reduce_sum(b, node, g.mul(dY, g.div(*sizes)))
        count *= d
    return reduce_sum(b, node, g.mul(dY, g.scalar(1 / count)))


def reduce_extreme(b: Backward, node: Node, dY: str) -> Gradients:
    """ReduceMax and ReduceMin: shared equally by the elements that attain it, as torch's amax.

    torch's max along a dimension, exported as the same operator, gives all to one of them.
    """
    if not _reduced_axes(b, node):
        return _first(node, dY)
    g, X, Y = b.graph, node.inputs[0], node.outputs[0]
    mask = g.cast(g.emit("Equal", X, _spread(b, node, Y)))
    count = g.reduce_sum(mask, _reduced_axes(b, node), keepdims=True)
    dX = g.mul(mask, g.div(_spread(b, node, dY), count))
    return _first(node, dX)


def reduce_l1(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = sum |X|: dX = dY sign(X)."""
    _refuse_noop(b, node)
    g, X = b.graph, node.inputs[0]
    return _first(node, g.mul(g.emit("Sign", X), _spread(b, node, dY)))


def reduce_l2(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = sqrt(sum X²): dX = dY X / Y; 0 where Y is 0."""
    _refuse_noop(b, node)
    g, X, Y = b.graph, node.inputs[0], node.outputs[0]
    return _first(node, g.mul(X, _spread(b, node, divided(g, dY, Y))))


def reduce_sum_square(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = sum X²: dX = 2 dY X."""
    _refuse_noop(b, node)
    g, X = b.graph, node.inputs[0]
    return _first(node, g.mul(X, _spread(b, node, g.mul(dY, g.scalar(2)))))


def reduce_log_sum(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = ln(sum X): dX = dY / exp(Y)."""
    _refuse_noop(b, node)
    g, (Y,) = b.graph, node.outputs
    return reduce_sum(b, node, g.mul(dY, g.emit("Exp", g.neg(Y))))


def reduce_log_sum_exp(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = ln(sum exp X): dX = dY exp(X - Y); 0 where everything is masked by -inf."""
    _refuse_noop(b, node)
    g, X, Y = b.graph, node.inputs[0], node.outputs[0]
    masked = g.emit("Equal", Y, g.scalar(-math.inf))
    total = _spread(b, node, g.emit("Where", masked, g.scalar(0), Y))
    return _first(node, g.mul(g.emit("Exp", g.sub(X, total)), _spread(b, node, dY)))


def reduce_prod(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = prod X: dX is dY times the product of the others, also where some X are 0."""
    _refuse_noop(b, node)
    g, X = b.graph, node.inputs[0]
    zero, one = g.scalar(0), g.scalar(1)
    axes = _reduced_axes(b, node)
    is_zero = g.emit("Equal", X, zero)
    zeros = g.reduce_sum(g.cast(is_zero), axes, keepdims=True)
    filled = g.emit("Where", is_zero, one, X)
    product = g.emit("ReduceProd", filled, g.ints(axes), keepdims=1)
    # The others hold a zero, unless this is the only one or there is none at all.
    others = g.emit("Equal", g.sub(zeros, g.cast(is_zero)), zero)
    slope = g.emit("Where", others, g.div(product, filled), zero)
    return _first(node, g.mul(slope, _spread(b, node, dY)))


def lp_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X / N for a length N along an axis: dX = (dY - dN sum(dY Y)) / N; 0 where N is 0.

    dN, the slope of N, is Y for the Euclidean length and sign(X) for the sum of absolute values.
    """
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    axes = [node.attributes.get("axis", -1) % b.rank(X)]
    euclidean = node.attributes.get("p", 2) == 2
    length = g.emit("ReduceL2" if euclidean else "ReduceL1", X, g.ints(axes), keepdims=1)
    slope = Y if euclidean else g.emit("Sign", X)
    along = g.reduce_sum(g.mul(dY, Y), axes, keepdims=True)
    return [divided(g, g.sub(dY, g.mul(slope, along)), length)]


def mean_variance_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = (X - mean) / deviation over fixed axes, deviation = sqrt(variance) + 1e-9.

    dX = (dY - mean(dY) - Y mean(dY Y)) / deviation.
    """
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    axes = sorted(axis % b.rank(X) for axis in node.attributes.get("axes", [0, 2, 3]))
    if any(b.shape(X)[axis] is None for axis in axes):
        raise UsageError(
            f"node {node.name!r} ({node.op}) normalizes over the batch, so that the samples of a "
            "batch change each other; its gradient is not supported: normalize each sample "
            "(axes [1, 2, 3] or [2, 3]), or use batch norm in evaluation mode"
        )
    at = g.ints(axes)
    center = g.sub(X, g.emit("ReduceMean", X, at, keepdims=1))
    variance = g.emit("ReduceMean", g.mul(center, center), at, keepdims=1)
    deviation = g.add(g.emit("Sqrt", variance), g.scalar(1e-9))
    means = [g.emit("ReduceMean", value, at, keepdims=1) for value in (dY, g.mul(dY, Y))]
    return [g.div(g.sub(g.sub(dY, means[0]), g.mul(Y, means[1])), deviation)]


def global_lp_pool(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = (sum |X|^p)^(1/p) over an image: dX = dY sign(X) (|X| / Y)^(p-1); 0 where Y is 0."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    p = node.attributes.get("p", 2)
    share = g.emit("Pow", divided(g, g.emit("Abs", X), Y), g.scalar(p - 1))
    return [g.mul(g.mul(g.emit("Sign", X), share), dY)]


def lp_pool(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = (sum |X|^p)^(1/p) over windows: dX = sign(X) |X|^(p-1) times their sum of dY Y^(1-p)."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    p = node.attributes.get("p", 2)
    axes = range(2, b.rank(X))
    size, out = (tuple(fixed(b, node, name, axis) for axis in axes) for name in (X, Y))
    kernel = tuple(node.attributes["kernel_shape"])
    share = divided(g, dY, g.emit("Pow", Y, g.scalar(p - 1)))
    # Every channel alike, so that channels count as samples: the kernel is all ones.
    spread = g.emit(
        "ConvTranspose",
        g.reshape(share, [None, 1, *out]),
        g.constant(np.ones((1, 1, *kernel), np.float32)),
        **Window.of(node, size, kernel).transposed(size, out),
    )
    slope = g.mul(g.emit("Sign", X), g.emit("Pow", g.emit("Abs", X), g.scalar(p - 1)))
    return [g.mul(slope, b.reshape_like(spread, X))]


REDUCE: dict[str, Rule] = {
    "GlobalLpPool": global_lp_pool,
    "LpNormalization": lp_normalization,
    "LpPool": lp_pool,
    "MeanVarianceNormalization": mean_variance_normalization,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_extreme,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_extreme,
    "ReduceProd": reduce_prod,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
}
