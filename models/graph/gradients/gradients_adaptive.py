"""Batch norm that normalizes by the batch: our one internal operator and its gradients. Pure.

Ioffe, Szegedy, arXiv:1502.03167, with samples that count by weight. For values x of one channel and
q = w / (places sum(w)) of each, w the weight of the sample that it belongs to::

    mu = sum q x      v = sum q (x - mu)^2      s = 1 / sqrt(v + eps)      n = (x - mu) s
    y = scale n + bias
    dscale = sum dy n      dbias = sum dy      dx = scale s (dy - q dbias - q n dscale)

So padding, of weight 0, has no part in the statistics. No runtime knows the operator: what it is
is written out in standard ones, where `forward_of` and the rule ask for the same values.
"""

import math
from typing import NamedTuple

import numpy as np

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node, Shape

__all__ = [
    "ADAPTIVE",
    "ADAPTIVE_NORM",
    "BatchStatistics",
    "adaptive_normalization",
    "batch_statistics",
    "forward_of",
]

ADAPTIVE_NORM = "AdaptiveNormalization"  # (X [rows, C, ...], scale [C], bias [C], share [1, rows])


class BatchStatistics(NamedTuple):
    """Values by name, for X [rows, C, ...]."""

    center: str  # X - mean, in its shape
    mean: str  # [C]
    variance: str  # [C], of the batch as it is: divided by its number of values
    places: int  # values of a channel in one row


def batch_statistics(g: GraphBuilder, node: Node, shape: Shape) -> BatchStatistics:
    """Emit what the batch says of its channels; ``shape`` is that of X.

    ``share`` holds how much of the batch each row is: it sums to 1.

    Raises:
        UsageError: only the rows may depend on the batch.
    """
    X, share = node.inputs[0], node.inputs[3]
    channels, *inner = shape[1:]
    places = math.prod(d for d in inner if d is not None)
    if channels is None or None in inner or not places:
        raise UsageError(
            f"node {node.name!r} (BatchNormalization) cannot adapt: its input has shape {shape}, "
            "of which only the first axis may depend on the batch; --norms frozen keeps it as it is"
        )
    axes = g.ints(range(2, len(shape)))
    means = g.emit("ReduceMean", X, axes, keepdims=0) if inner else X
    mean = g.emit("MatMul", share, means)
    center = g.sub(X, g.reshape(mean, [1, channels, *[1] * len(inner)]))
    # Not ReduceSumSquare, whose kernel takes three times as long as these two together.
    squares = g.mul(center, center)
    if inner:
        squares = g.emit("ReduceMean", squares, axes, keepdims=0)
    variance = g.emit("MatMul", share, squares)
    mean, variance = (g.reshape(value, [channels]) for value in (mean, variance))
    return BatchStatistics(center, mean, variance, places)


def forward_of(g: GraphBuilder, node: Node, shape: Shape) -> None:
    """Emit the node's output, for X of ``shape``."""
    found = batch_statistics(g, node, shape)
    nothing = g.constant(np.zeros(shape[1] or 0, np.float32))
    inputs = (found.center, *node.inputs[1:3], nothing, found.variance)
    g.emit("BatchNormalization", *inputs, output=node.outputs[0], epsilon=_epsilon(node))


def adaptive_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """As above; q is the share of a row, divided by the places of a channel in it.

    With f = scale s: dx = f dy - (center (q f s dscale) + q f dbias), where what is in brackets is
    a line for each channel of each row.
    """
    g = b.graph
    X, scale, _, share = node.inputs
    shape = b.shape(X)
    found = batch_statistics(g, node, shape)
    others = [0, *range(2, len(shape))]
    deviation = g.emit("Sqrt", g.add(found.variance, g.scalar(_epsilon(node))))
    dbias = g.reduce_sum(dY, others)
    dscale = g.div(g.reduce_sum(g.mul(dY, found.center), others), deviation)
    if not b.wants(X):
        return [None, dscale, dbias, None]
    factor = g.div(scale, deviation)
    q = g.mul(g.reshape(share, [None, 1]), g.scalar(1 / found.places))

    def of_rows(value: str) -> str:
        """Return q f value, [rows, C], of a value [C]."""
        return g.mul(q, g.reshape(g.mul(factor, value), [1, shape[1]]))

    slope, offset = of_rows(g.div(dscale, deviation)), of_rows(dbias)
    if len(shape) == 2:
        line = g.add(g.mul(found.center, slope), offset)
    else:
        line = b.reshape_like(_lines(g, found, slope, offset), X)
    part = g.mul(dY, g.reshape(factor, [1, shape[1], *[1] * (len(shape) - 2)]))
    return [g.sub(part, line), dscale, dbias, None]


def _lines(g: GraphBuilder, found: BatchStatistics, slope: str, offset: str) -> str:
    """Return center slope + offset, [1, rows C, places].

    Written as a batch norm of one sample with as many channels, which goes over the values once.
    """
    values = g.reshape(found.center, [1, None, found.places])
    slopes, offsets = (g.reshape(value, [None]) for value in (slope, offset))
    means = g.sub(offsets, offsets)
    variances = g.add(means, g.scalar(1))
    inputs = (values, slopes, offsets, means, variances)
    return g.emit("BatchNormalization", *inputs, epsilon=0.0)


def _epsilon(node: Node) -> float:
    return float(node.attributes.get("epsilon", 1e-5))


ADAPTIVE: dict[str, Rule] = {ADAPTIVE_NORM: adaptive_normalization}
