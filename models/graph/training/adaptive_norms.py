"""Batch norms that adapt: normalized by the batch, with statistics that follow what it shows. Pure.

What the training graph does with a BatchNormalization whose statistics are not frozen. The formulas
of a step are in `gradients_adaptive.py`; here is where samples lie in the rows of its input, and
how the running statistics move, as torch's do::

    mean' = mean + m (mu - mean)      variance' = variance + m (v N / (N - 1) - variance)

with m = 1 - the node's momentum, and N the values of a channel that count at all (w > 0).
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import onnx

from models.errors import UsageError
from models.graph.batch.batch_place import BatchPlaces, Place
from models.graph.facts.constants import STATISTIC_INPUTS
from models.graph.gradients.gradients_adaptive import ADAPTIVE_NORM, batch_statistics
from models.graph.graph_builder import GraphBuilder, Node, Shape

__all__ = ["AdaptiveNorm", "adaptive_norms", "emit_statistics"]

USUAL_MOMENTUM = 0.9  # of the operator, and of torch (which says 0.1)
LEAST_MASS = 1e-12  # of a batch of padding alone


class AdaptiveNorm(NamedTuple):
    """A batch norm that adapts."""

    node: Node  # the internal one
    mean: str
    variance: str
    weights: str  # of its rows, [rows]


def adaptive_norms(
    nodes: Sequence[Node],
    adaptive: Collection[str],
    forward: onnx.ModelProto,
    g: GraphBuilder,
) -> tuple[list[Node], list[AdaptiveNorm]]:
    """Return ``nodes`` with internal ones for the norms whose statistics are ``adaptive``.

    Raises:
        UsageError: a name is no statistic of theirs, only one of two is named, or a norm mixes
            samples in a way that a weight of samples says nothing about.
    """
    if not adaptive:
        return list(nodes), []
    places = _places(forward)
    result, norms = [], []
    known: set[str] = set()
    for node in nodes:
        pair = [node.input(i) for i in STATISTIC_INPUTS.get(node.op, ())]
        chosen = [name for name in pair if name in adaptive]
        if not chosen:
            result.append(node)
            continue
        if len(chosen) < len(pair) or not known.isdisjoint(chosen):
            raise UsageError(
                f"node {node.name!r} ({node.op}) adapts with both of its statistics, which no "
                f"other node has, or not at all: {', '.join(pair)}"
            )
        known.update(chosen)
        weights = _row_weights(g, node, places.get(node.inputs[0]))
        mass = g.emit("Max", g.sum_all(weights), g.scalar(LEAST_MASS))
        share = g.emit("Unsqueeze", g.div(weights, mass), g.ints([0]))
        internal = node._replace(op=ADAPTIVE_NORM, inputs=(*node.inputs[:3], share))
        result.append(internal)
        norms.append(AdaptiveNorm(internal, pair[0], pair[1], weights))
    if lost := sorted(set(adaptive) - known):
        raise UsageError(f"{lost[0]!r} is no statistic of a batch norm on the way to the loss")
    return result, norms


def emit_statistics(g: GraphBuilder, norm: AdaptiveNorm, shape: Shape) -> None:
    """Emit ``new/<mean>`` and ``new/<variance>``, for a norm that reads a value of ``shape``."""
    found = batch_statistics(g, norm.node, shape)
    kept = norm.node.attributes.get("momentum", USUAL_MOMENTUM)
    # Some exporters write 0 or 1 here, of a model that was only ever to be asked.
    share = g.scalar(1 - (kept if 0 < kept < 1 else USUAL_MOMENTUM))
    counted = g.sum_all(g.cast(g.emit("Greater", norm.weights, g.scalar(0))))
    values = g.mul(counted, g.scalar(found.places))
    others = g.emit("Max", g.sub(values, g.scalar(1)), g.scalar(1))
    variance = g.mul(found.variance, g.div(values, others))
    for name, value in ((norm.mean, found.mean), (norm.variance, variance)):
        g.emit("Add", name, g.mul(g.sub(value, name), share), output=f"new/{name}")


def _places(forward: onnx.ModelProto) -> dict[str, Place]:
    """Return where the batch is in every value."""
    followed = BatchPlaces(forward.graph, 0)
    for node in forward.graph.node:
        followed.step(node)
        followed.nodes.append(node)
        for name in node.output:
            followed.find_place(node, name)
    return followed.places


def _row_weights(g: GraphBuilder, node: Node, place: Place | None) -> str:
    """Return the weight of each row that ``node`` reads: that of the sample that it is of."""
    if place is None or place.axis != 0:
        raise UsageError(
            f"node {node.name!r} ({node.op}) cannot adapt: its input has no samples along its "
            "first axis, so that its statistics would be of other things; --norms frozen keeps it "
            "as it is"
        )
    weights = "sample_weight"
    if place.factor == 1:
        return weights
    column = g.reshape(weights, [1, None, 1])
    return g.reshape(g.emit("Expand", column, g.ints([place.outer, 1, place.inner])), [None])
