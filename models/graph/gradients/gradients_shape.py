"""Gradient rules of operators that move elements without changing them. Pure."""

from collections.abc import Sequence

import numpy as np

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import Node

__all__ = ["SHAPE", "fixed"]


def _first(node: Node, dX: str) -> Gradients:
    return [dX, *[None] * (len(node.inputs) - 1)]


def fixed(b: Backward, node: Node, name: str, axis: int) -> int:
    """Return the size of an axis that must not depend on the batch."""
    d = b.shape(name)[axis]
    if d is None:
        raise UsageError(
            f"node {node.name!r} ({node.op}) works along the batch; its gradient is not supported"
        )
    return d


def reshape(b: Backward, node: Node, dY: str) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    return _first(node, b.reshape_like(dY, node.inputs[0]))


def transpose(b: Backward, node: Node, dY: str) -> Gradients:
    rank = b.rank(node.inputs[0])
    perm = list(node.attributes.get("perm", range(rank - 1, -1, -1)))
    return [b.graph.transpose(dY, [perm.index(axis) for axis in range(rank)])]


def concat(b: Backward, node: Node, dY: str) -> Gradients:
    axis = node.attributes["axis"] % b.rank(node.outputs[0])
    gradients: list[str | None] = []
    start = 0
    for name in node.inputs:
        size = fixed(b, node, name, axis)
        wanted = b.wants(name)
        gradients.append(b.graph.slice(dY, [axis], [start], [start + size]) if wanted else None)
        start += size
    return gradients


def split(b: Backward, node: Node, dY: str) -> Gradients:
    """The outputs' gradients side by side, zeros for an output that leads nowhere."""
    g, X = b.graph, node.inputs[0]
    axis = node.attributes.get("axis", 0) % b.rank(X)
    parts = [
        b.gradient(output) or g.emit("Expand", g.scalar(0), b.shape_input(output))
        for output in node.outputs
    ]
    return _first(node, g.concat(parts, axis))


def slice_(b: Backward, node: Node, dY: str) -> Gradients:
    """Put the gradient back in its place: reversed, spread by the step, padded with zeros."""
    g, X = b.graph, node.inputs[0]
    rank = b.rank(X)
    starts, ends = (b.value(node.inputs[i], node).reshape(-1).tolist() for i in (1, 2))
    axes = list(range(len(starts)))
    if node.input(3):
        axes = b.value(node.input(3), node).reshape(-1).tolist()
    steps = [1] * len(starts)
    if node.input(4):
        steps = b.value(node.input(4), node).reshape(-1).tolist()
    before, after = [0] * rank, [0] * rank
    dX = dY
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= rank
        if b.shape(X)[axis] is None and (start, step) == (0, 1) and end >= 2**31 - 1:
            continue  # the whole axis, whatever its size
        size = fixed(b, node, X, axis)
        picked = range(size)[slice(start, None if end < -size else end, step)]
        if not picked:
            return [None] * len(node.inputs)
        low, stride = (picked[0], step) if step > 0 else (picked[-1], -step)
        if step < 0:
            dX = g.slice(dX, [axis], [-1], [-(2**31)], [-1])
        if stride > 1:
            dX = _spread(b, dX, b.shape(node.outputs[0]), axis, stride)
        before[axis] = low
        after[axis] = size - low - len(picked) * stride
    return _first(node, g.pad(dX, before, after))


def _spread(b: Backward, value: str, shape: Sequence[int | None], axis: int, stride: int) -> str:
    """Follow each element along ``axis`` by ``stride - 1`` zeros; sizes of other axes are kept."""
    g, rank = b.graph, len(shape)
    apart = g.emit("Unsqueeze", value, g.ints([axis + 1]))
    apart = g.pad(
        apart, [0] * (rank + 1), [(stride - 1) * (i == axis + 1) for i in range(rank + 1)]
    )
    # -1 for this axis and 0, "as it is", for those before it; those after it have moved by one.
    tail = g.emit("Shape", value, start=axis + 1)
    target = g.concat([g.ints([0] * axis + [-1]), tail], 0)
    return g.emit("Reshape", apart, target)


def expand(b: Backward, node: Node, dY: str) -> Gradients:
    X, (Y,) = node.inputs[0], node.outputs
    return _first(node, b.unbroadcast(dY, b.shape(Y), X))


def tile(b: Backward, node: Node, dY: str) -> Gradients:
    """Sum over the copies."""
    g, X = b.graph, node.inputs[0]
    shape, tiled = b.shape(X), b.shape(node.outputs[0])
    apart: list[int | None] = []
    for axis, (d, total) in enumerate(zip(shape, tiled, strict=True)):
        if d == 1:
            apart += [total, 1]  # the copies may be one per sample: nobody needs their number
        elif d is None or total is None:
            apart += [int(b.value(node.inputs[1], node).reshape(-1)[axis]), d]
        else:
            apart += [total // d, d]
    dX = g.reduce_sum(g.reshape(dY, apart), range(0, len(apart), 2))
    return _first(node, dX)


def trilu(b: Backward, node: Node, dY: str) -> Gradients:
    """The upper or lower triangle; zeros elsewhere."""
    upper = node.attributes.get("upper", 1)
    return _first(node, b.graph.emit("Trilu", dY, *node.inputs[1:], upper=upper))


def cum_sum(b: Backward, node: Node, dY: str) -> Gradients:
    """An element is in the sums from its place on: the sum of their gradients, from the end."""
    exclusive, reverse = (node.attributes.get(name, 0) for name in ("exclusive", "reverse"))
    axis = node.inputs[1]
    return _first(node, b.graph.emit("CumSum", dY, axis, exclusive=exclusive, reverse=1 - reverse))


def reverse_sequence(b: Backward, node: Node, dY: str) -> Gradients:
    """Its own inverse."""
    return [b.graph.emit("ReverseSequence", dY, node.inputs[1], **node.attributes), None]


def depth_to_space(b: Backward, node: Node, dY: str) -> Gradients:
    """The inverse: of DCR it is SpaceToDepth; of CRD (PixelShuffle), ONNX has no operator."""
    g, (X,) = b.graph, node.inputs
    block = node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "DCR":
        return [g.emit("SpaceToDepth", dY, blocksize=block)]
    channels, height, width = (fixed(b, node, node.outputs[0], axis) for axis in (1, 2, 3))
    apart = g.reshape(dY, [None, channels, height // block, block, width // block, block])
    return [b.reshape_like(g.transpose(apart, [0, 1, 3, 5, 2, 4]), X)]


def space_to_depth(b: Backward, node: Node, dY: str) -> Gradients:
    return [b.graph.emit("DepthToSpace", dY, blocksize=node.attributes["blocksize"])]


def pad(b: Backward, node: Node, dY: str) -> Gradients:
    """Crop what was padded, pad what was cropped (negative pads).

    What was padded with copies of elements (reflect, edge, wrap) adds up at these.
    """
    g, X = b.graph, node.inputs[0]
    mode = node.attributes.get("mode", "constant")
    rank = b.rank(X)
    widths = [int(width) for width in b.value(node.inputs[1], node).reshape(-1)]
    axes = list(range(rank))
    if node.input(3):
        axes = [int(axis) % rank for axis in b.value(node.input(3), node).reshape(-1)]
    if mode == "constant":
        before, after = [0] * rank, [0] * rank
        for i, axis in enumerate(axes):
            before[axis], after[axis] = -widths[i], -widths[len(axes) + i]
        dX = g.pad(dY, before, after)
        if not node.input(2) or not b.wants(node.input(2)):
            return _first(node, dX)
        outside = g.sub(g.sum_all(dY), g.sum_all(dX))
        dvalue = b.reshape_like(outside, node.input(2))
        return [dX, None, dvalue, None][: len(node.inputs)]
    dX = dY
    for i, axis in enumerate(axes):
        low, high = widths[i], widths[len(axes) + i]
        if low or high:
            size = fixed(b, node, X, axis)
            dX = _gathered(b, dX, rank, axis, size, _places(size, low, high, mode))
    return _first(node, dX)


def _places(size: int, low: int, high: int, mode: str) -> list[int]:
    """Return which element of an axis each place of the padded axis is a copy of."""
    left = np.arange(size)[max(-low, 0) : size - max(-high, 0)]
    return [int(at) for at in np.pad(left, (max(low, 0), max(high, 0)), mode=mode)]  # type: ignore[call-overload]


def _gathered(
    b: Backward, value: str, rank: int, axis: int, size: int, places: Sequence[int]
) -> str:
    """Add up the elements along ``axis`` at ``places`` of a new axis of ``size``, run by run."""
    g = b.graph
    total: str | None = None
    start = 0
    while start < len(places):
        end, step = start + 1, 0
        if end < len(places) and abs(places[end] - places[start]) <= 1:
            step = places[end] - places[start]
            while end < len(places) and places[end] - places[end - 1] == step:
                end += 1
        part = g.slice(value, [axis], [start], [end])
        if step < 0:
            part = g.slice(part, [axis], [-1], [-(2**31)], [-1])
        elif step == 0 and end - start > 1:
            part = g.reduce_sum(part, [axis], keepdims=True)
        first, last = min(places[start:end]), max(places[start:end])
        before = [first * (i == axis) for i in range(rank)]
        after = [(size - 1 - last) * (i == axis) for i in range(rank)]
        part = g.pad(part, before, after)
        total = part if total is None else g.add(total, part)
        start = end
    assert total is not None  # an axis of size 0 reaches no loss
    return total


SHAPE: dict[str, Rule] = {
    "Concat": concat,
    "CumSum": cum_sum,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Pad": pad,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": reshape,
}
