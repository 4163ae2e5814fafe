"""Gradient rules of operators that move elements without changing them. Pure."""

from collections.abc import Sequence

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import Node


def _first(node: Node, dX: str) -> Gradients:
    return [dX, *[None] * (len(node.inputs) - 1)]


def _fixed(b: Backward, node: Node, name: str, axis: int) -> int:
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
        size = _fixed(b, node, name, axis)
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
        size = _fixed(b, node, X, axis)
        picked = range(size)[slice(start, None if end < -size else end, step)]
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


def gather(b: Backward, node: Node, dY: str) -> Gradients:
    """Rows that were read several times add up (an embedding)."""
    g, (X, indices) = b.graph, node.inputs
    rank, index_shape = b.rank(X), b.shape(indices)
    axis = node.attributes.get("axis", 0) % rank
    shape = b.shape(X)
    if index_shape == () and shape[axis] is not None and b.is_constant(indices):
        size = _fixed(b, node, X, axis)
        at = int(b.value(indices, node)) % size
        row = g.emit("Unsqueeze", dY, g.ints([axis]))
        before, after = [at * (i == axis) for i in range(rank)], [0] * rank
        after[axis] = size - 1 - at
        return [g.pad(row, before, after), None]
    # As one axis of indices: dY is [*X before axis, number of indices, *X after axis].
    place = g.reshape(indices, [None])
    if len(index_shape) != 1:
        lead = g.emit("Shape", X, end=axis) if axis else None
        tail = g.emit("Shape", X, start=axis + 1) if axis + 1 < rank else None
        parts = [part for part in (lead, g.emit("Size", indices), tail) if part is not None]
        parts[1 if lead else 0] = g.reshape(g.emit("Size", indices), [1])
        dY = g.emit("Reshape", dY, g.concat(parts, 0))
    place = g.reshape(place, [None, *[1] * (rank - 1 - axis)])
    place = g.emit("Expand", place, g.emit("Shape", dY))
    zeros = g.emit("Expand", g.scalar(0), b.shape_input(X))
    return [g.emit("ScatterElements", zeros, place, dY, axis=axis, reduction="add"), None]


def expand(b: Backward, node: Node, dY: str) -> Gradients:
    X, (Y,) = node.inputs[0], node.outputs
    return _first(node, b.unbroadcast(dY, b.shape(Y), X))


def pad(b: Backward, node: Node, dY: str) -> Gradients:
    """Crop what was padded, pad what was cropped (negative pads)."""
    mode = node.attributes.get("mode", "constant")
    if mode != "constant":
        raise UsageError(
            f"node {node.name!r} (Pad): the gradient of mode {mode!r} is not supported, "
            "only that of 'constant'"
        )
    rank = b.rank(node.inputs[0])
    widths = [int(width) for width in b.value(node.inputs[1], node).reshape(-1)]
    axes = list(range(rank))
    if node.input(3):
        axes = [int(axis) % rank for axis in b.value(node.input(3), node).reshape(-1)]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = -widths[i], -widths[len(axes) + i]
    return _first(node, b.graph.pad(dY, before, after))


SHAPE: dict[str, Rule] = {
    "Concat": concat,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": reshape,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
