"""Gradient rule of GroupNormalization, as opset 21 has it: scale and bias per channel. Pure."""

import math

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import Node


def group_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """Wu and He, arXiv:1803.08494: layer normalization over each group of channels.

    With n = (X - mean) / deviation per group and dn = dY scale:
    dX = (dn - mean(dn) - n mean(dn n)) / deviation.
    """
    g, (X, scale, bias) = b.graph, node.inputs
    shape = b.shape(X)
    sizes = [d for d in shape[1:] if d is not None]
    if len(sizes) + 1 != len(shape):
        raise UsageError(f"node {node.name!r} ({node.op}): the size of its image is not fixed")
    groups = node.attributes["num_groups"]
    flat = (shape[0], groups, math.prod(sizes) // groups)
    column = [-1, *[1] * (len(shape) - 2)]
    inner, others = g.ints([2]), [0, *range(2, len(shape))]

    def mean(value: str) -> str:
        return g.emit("ReduceMean", value, inner, keepdims=1)

    x = g.reshape(X, flat)
    center = g.sub(x, mean(x))
    epsilon = g.scalar(node.attributes.get("epsilon", 1e-5))
    deviation = g.emit("Sqrt", g.add(mean(g.mul(center, center)), epsilon))
    normal = g.div(center, deviation)
    dX = dscale = None
    if b.wants(X):
        dn = g.reshape(g.mul(dY, g.reshape(scale, column)), flat)
        rest = g.sub(g.sub(dn, mean(dn)), g.mul(normal, mean(g.mul(dn, normal))))
        dX = b.reshape_like(g.div(rest, deviation), X)
    if b.wants(scale):
        dscale = g.reduce_sum(g.mul(dY, b.reshape_like(normal, X)), others)
    return [dX, dscale, g.reduce_sum(dY, others) if b.wants(bias) else None]


GROUP_NORM: dict[str, Rule] = {"GroupNormalization": group_normalization}
