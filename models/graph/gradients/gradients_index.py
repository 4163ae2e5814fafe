"""Gradient rules of operators that read or write by computed indices. Pure.

What was read several times adds up. Indices carry no gradient.
"""

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.gradients.gradients_shape import fixed
from models.graph.graph_builder import Node

__all__ = ["INDEX"]


def _zeros(b: Backward, name: str) -> str:
    return b.graph.emit("Expand", b.graph.scalar(0), b.shape_input(name))


def gather(b: Backward, node: Node, dY: str) -> Gradients:
    """Rows that were read several times add up (an embedding)."""
    g, (X, indices) = b.graph, node.inputs
    rank, index_shape = b.rank(X), b.shape(indices)
    axis = node.attributes.get("axis", 0) % rank
    shape = b.shape(X)
    if index_shape == () and shape[axis] is not None and b.is_constant(indices):
        size = fixed(b, node, X, axis)
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
    return [g.emit("ScatterElements", _zeros(b, X), place, dY, axis=axis, reduction="add"), None]


def gather_elements(b: Backward, node: Node, dY: str) -> Gradients:
    """Y[i, j] = X[index[i, j], j] along axis 0, and so on."""
    X, indices = node.inputs
    axis = node.attributes.get("axis", 0)
    dX = b.graph.emit("ScatterElements", _zeros(b, X), indices, dY, axis=axis, reduction="add")
    return [dX, None]


def gather_nd(b: Backward, node: Node, dY: str) -> Gradients:
    """Y[i] = X[index[i]], a row of indices pointing at an element or a slice."""
    g, (X, indices) = b.graph, node.inputs
    own = node.attributes.get("batch_dims", 0)
    if own:
        indices = _with_batch(b, X, indices, own)
    return [g.emit("ScatterND", _zeros(b, X), indices, dY, reduction="add"), None]


def _with_batch(b: Backward, X: str, indices: str, own: int) -> str:
    """Put the numbers of the ``own`` leading axes before the indices, as ScatterND wants them."""
    g, rank = b.graph, b.rank(indices)
    lead = g.emit("Shape", indices, end=rank - 1)
    target = g.concat([lead, g.ints([1])], 0)
    columns = []
    for axis in range(own):
        size = g.emit("Gather", b.shape_input(X), g.constant(axis, "int64"))
        numbers = g.emit("Range", g.constant(0, "int64"), size, g.constant(1, "int64"))
        along = [1] * axis + [-1] + [1] * (rank - 1 - axis)
        columns.append(g.emit("Expand", g.reshape(numbers, along), target))
    return g.concat([*columns, indices], rank - 1)


def scatter_nd(b: Backward, node: Node, dY: str) -> Gradients:
    """Y is the data, with rows replaced by the updates, or added to."""
    g, (data, indices, updates) = b.graph, node.inputs
    ddata = dupdates = None
    if b.wants(data):
        ddata = dY
        if not _adds(node):
            ddata = g.emit("ScatterND", dY, indices, _zeros(b, updates))
    if b.wants(updates):
        dupdates = g.emit("GatherND", dY, indices)
    return [ddata, None, dupdates]


def scatter_elements(b: Backward, node: Node, dY: str) -> Gradients:
    """Y is the data, with elements along an axis replaced by the updates, or added to."""
    g, (data, indices, updates) = b.graph, node.inputs
    axis = node.attributes.get("axis", 0)
    adds = _adds(node)
    ddata = dupdates = None
    if b.wants(data):
        ddata = dY
        if not adds:
            ddata = g.emit("ScatterElements", dY, indices, _zeros(b, updates), axis=axis)
    if b.wants(updates):
        dupdates = g.emit("GatherElements", dY, indices, axis=axis)
    return [ddata, None, dupdates]


def _adds(node: Node) -> bool:
    """Return whether updates are added; if not, they replace."""
    reduction = node.attributes.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise UsageError(
            f"node {node.name!r} ({node.op}): the gradient of reduction {reduction!r} is not "
            "supported, only those of 'none' and 'add'"
        )
    return bool(reduction == "add")


def top_k(b: Backward, node: Node, dY: str) -> Gradients:
    """The gradient of each value goes to the place that it was taken from."""
    X = node.inputs[0]
    axis = node.attributes.get("axis", -1)
    places = b.extra_output(node, 1)
    dX = b.graph.emit("ScatterElements", _zeros(b, X), places, dY, axis=axis, reduction="add")
    return [dX, None]


INDEX: dict[str, Rule] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
}
