"""Equivalent forms of a forward graph that take less work to train. Pure."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from models.graph.facts.shape_facts import Facts
from models.graph.gradients.spatial.convolution import Window
from models.graph.graph_builder import GraphBuilder, Node, Shape

__all__ = ["fold_norms", "multiply_small_images", "pool_first"]

SMALL_IMAGES = 64 * 64  # places in times places out, up to which a matrix is the better kernel


def pool_first(nodes: Sequence[Node], facts: Facts, g: GraphBuilder, output: str) -> list[Node]:
    """Turn Relu - MaxPool into MaxPool - Relu where nobody else reads the Relu.

    The result is the same to the bit, on a fraction of the elements, forward and backward.
    ``facts`` learns of the new value between the two; ``output`` stays as it is.
    """
    readers = Counter(name for node in nodes for name in node.inputs)
    relus = {
        node.outputs[0]: node
        for node in nodes
        if node.op == "Relu" and readers[node.outputs[0]] == 1 and node.outputs[0] != output
    }
    pools = {
        node.outputs[0]: node.inputs[0]
        for node in nodes
        if node.op == "MaxPool" and len(node.outputs) == 1 and node.inputs[0] in relus
    }
    result = []
    for node in nodes:
        pooled = node.outputs[0]
        if pooled in pools.values():
            continue
        if pooled not in pools:
            result.append(node)
            continue
        relu = relus[pools[pooled]]
        between = g.fresh(f"{pooled}/maxpool")
        result.append(node._replace(inputs=relu.inputs, outputs=(between,)))
        result.append(relu._replace(inputs=(between,), outputs=(pooled,)))
        facts.shapes[between], facts.dtypes[between] = facts.shapes[pooled], facts.dtypes[pooled]
    return result


def fold_norms(
    nodes: Sequence[Node], facts: Facts, trainable: Collection[str], g: GraphBuilder
) -> list[Node]:
    """Turn Conv - BatchNormalization into one Conv whose weights are scaled in the graph.

    With frozen statistics a batch norm is W' = W s, b' = bias + (b - mean) s for
    s = scale / sqrt(variance + epsilon): a few operations on weights instead of several on whole
    activations, forward and backward, and one activation less to keep. Not where only the norm is
    trained and the convolution is not: its own rule is cheaper then. Constants go to ``g``;
    ``facts`` learns of the new values.
    """
    readers = Counter(name for node in nodes for name in node.inputs)
    convolutions = {node.outputs[0]: node for node in nodes if node.op == "Conv"}
    norms = {
        node.outputs[0]: convolutions[node.inputs[0]]
        for node in nodes
        if node.op == "BatchNormalization"
        and readers[node.inputs[0]] == 1
        and node.inputs[0] in convolutions
        and (
            convolutions[node.inputs[0]].inputs[1] in trainable
            or not any(name in trainable for name in node.inputs[1:3])
        )
    }
    folded = {conv.outputs[0] for conv in norms.values()}
    result = []
    for node in nodes:
        if node.outputs[0] in folded:
            continue
        if node.outputs[0] in norms:
            result += _folded(norms[node.outputs[0]], node, facts, g)
        else:
            result.append(node)
    return result


def _folded(conv: Node, norm: Node, facts: Facts, g: GraphBuilder) -> list[Node]:
    scale, bias, mean, variance = norm.inputs[1:]
    weight, old_bias = conv.inputs[1], conv.input(2)
    filters, rank = facts.shapes[weight][0], len(facts.shapes[weight])
    new = _NewNodes(norm.outputs[0], facts, g)
    vector = (filters,)
    epsilon = g.scalar(norm.attributes.get("epsilon", 1e-5))
    deviation = new.add("Sqrt", new.add("Add", variance, epsilon, shape=vector), shape=vector)
    s = new.add("Div", scale, deviation, shape=vector)
    column = g.ints([-1, *[1] * (rank - 1)])
    s_column = new.add("Reshape", s, column, shape=(filters, *[1] * (rank - 1)))
    new_weight = new.add("Mul", weight, s_column, shape=facts.shapes[weight])
    center = new.add("Sub", mean, old_bias, shape=vector) if old_bias else mean
    new_bias = new.add("Sub", bias, new.add("Mul", center, s, shape=vector), shape=vector)
    inputs = (conv.inputs[0], new_weight, new_bias)
    return [*new.nodes, conv._replace(inputs=inputs, outputs=norm.outputs)]


def multiply_small_images(nodes: Sequence[Node], facts: Facts, g: GraphBuilder) -> list[Node]:
    """Turn a depthwise Conv on a small image into one product per channel.

    Where an image has a few dozen places, the matrix [places in, places out] that a kernel stands
    for is small, and one product with all samples is cheaper than sliding over each: on 4x4 six
    times. Constants go to ``g``; ``facts`` learns of the new values.
    """
    result = []
    for node in nodes:
        if node.op == "Conv" and _is_small_depthwise(node, facts):
            result += _multiplied(node, facts, g)
        else:
            result.append(node)
    return result


def _is_small_depthwise(node: Node, facts: Facts) -> bool:
    weight, image = facts.shapes[node.inputs[1]], facts.shapes.get(node.inputs[0], ())
    out = facts.shapes.get(node.outputs[0], ())
    if None in (*weight, *image[1:], *out[1:]) or len(image) < 3:
        return False
    depthwise = weight[0] == image[1] == node.attributes.get("group", 1) and weight[1] == 1
    places = math.prod(d for d in (*image[2:], *out[2:]) if d is not None)
    return depthwise and places <= SMALL_IMAGES


def _multiplied(node: Node, facts: Facts, g: GraphBuilder) -> list[Node]:
    X, W = node.inputs[:2]
    bias, (Y,) = node.input(2), node.outputs
    channels = _known(facts.shapes[X])[0]
    size, out = _known(facts.shapes[X])[1:], _known(facts.shapes[Y])[1:]
    kernel = _known(facts.shapes[W])[1:]
    inside, outside, taps = math.prod(size), math.prod(out), math.prod(kernel)
    seen = _places_seen(Window.of(node, size, kernel), size, out)
    # One where place p is what tap k of output place q saw: [taps, p, q].
    everywhere = g.constant(np.arange(inside).reshape(1, -1, 1))
    pattern = g.cast(g.emit("Equal", everywhere, g.constant(seen.reshape(taps, 1, outside))))
    pattern = g.reshape(pattern, [taps, inside * outside])
    facts.shapes[pattern], facts.dtypes[pattern] = (taps, inside * outside), facts.dtypes[W]

    new = _NewNodes(Y, facts, g)
    flat = (channels, inside * outside)
    w = new.add("Reshape", W, g.ints([channels, taps]), shape=(channels, taps))
    matrices = new.add(
        "Reshape",
        new.add("MatMul", w, pattern, shape=flat),
        g.ints([channels, inside, outside]),
        shape=(channels, inside, outside),
    )
    rows = new.add("Reshape", X, g.ints([-1, channels, inside]), shape=(None, channels, inside))
    by_channel = new.add("Transpose", rows, shape=(channels, None, inside), perm=[1, 0, 2])
    product = new.add("MatMul", by_channel, matrices, shape=(channels, None, outside))
    if bias:
        column = new.add("Reshape", bias, g.ints([-1, 1, 1]), shape=(channels, 1, 1))
        product = new.add("Add", product, column, shape=(channels, None, outside))
    back = new.add("Transpose", product, shape=(None, channels, outside), perm=[1, 0, 2])
    shape = g.ints([-1, channels, *out])
    return [*new.nodes, Node(Y, "Reshape", (back, shape), (Y,), {})]


def _known(shape: Shape) -> tuple[int, ...]:
    return tuple(d for d in shape[1:] if d is not None)


def _places_seen(
    window: Window, size: tuple[int, ...], out: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, per tap and output place, the input place that it sees, -1 outside: [taps, *out]."""
    maps = []
    for tap in itertools.product(*map(range, window.kernel)):
        place = np.zeros((), np.int64)
        valid = np.ones((), bool)
        for axis, (n, o) in enumerate(zip(size, out, strict=True)):
            at = np.arange(o) * window.strides[axis] - window.pads[axis]
            at = at + tap[axis] * window.dilations[axis]
            place = np.add.outer(place * n, at)
            valid = np.logical_and.outer(valid, (at >= 0) & (at < n))
        maps.append(np.where(valid, place, -1))
    return np.stack(maps)


class _NewNodes:
    """Nodes that together make one value, with the facts about the values between."""

    def __init__(self, stem: str, facts: Facts, g: GraphBuilder) -> None:
        self.nodes: list[Node] = []
        self._g = g
        self._stem = stem
        self._facts = facts

    def add(self, op: str, *inputs: str, shape: Shape, **attributes: Any) -> str:
        name = self._g.fresh(f"{self._stem}/{op.lower()}")
        self.nodes.append(Node(name, op, inputs, (name,), attributes))
        self._facts.shapes[name] = shape
        self._facts.dtypes[name] = self._facts.dtypes[self._stem]
        return name
