"""One direction of a recurrent node, as its gradient sees it: runs through time in a Scan. Pure.

Shapes: T times, N samples, I inputs, H hidden, G gates; per direction W [GH, I], R [GH, H].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from models.graph.graph_builder import GraphBuilder

__all__ = ["Found", "Run", "slope", "split_parts", "summed_product"]


class Run(NamedTuple):
    """One direction of one node: what its gradient is made of."""

    g: GraphBuilder
    x: str  # [T, N, I]
    w: str
    r: str
    w_bias: str | None  # [GH]
    r_bias: str | None
    h: str  # states after each time, in the order of the times: [T, N, H]
    h0: str | None  # [1, N, H]
    c0: str | None  # [1, N, H]
    times: int
    forward: bool
    activation: str  # of the last gate
    dh: str | None  # gradient of the states at each time, from Y: [T, N, H]
    dh_end: str | None  # of the last state, from Y_h: [N, H]
    dc_end: str | None

    def before(self, values: str, first: str | None) -> str:
        """Return what each time of [T, N, H] starts from; zeros where ``first`` is None."""
        g, end = self.g, self.times - 1
        if first is None:
            early, late = ([1, 0, 0], [-1, 0, 0]) if self.forward else ([-1, 0, 0], [1, 0, 0])
            return g.pad(values, early, late)
        if not end:
            return first
        if self.forward:
            return g.concat([first, g.slice(values, [0], [0], [end])], 0)
        return g.concat([g.slice(values, [0], [1], [self.times]), first], 0)

    def gates(self, value: str, weight: str, bias: str | None) -> str:
        """Return value weightᵀ + bias for all times: [T, N, GH]."""
        product = self.g.emit("MatMul", value, self.g.transpose(weight, [1, 0]))
        return product if bias is None else self.g.add(product, bias)

    def scan(
        self,
        body: Callable[..., tuple[Sequence[str], Sequence[str]]],
        states: Sequence[str | None],
        sequences: Sequence[str | None],
        *,
        backward: bool,
        outputs: int,
    ) -> tuple[str, ...]:
        """Run ``body`` for each time, in the node's order or, ``backward``, against it.

        ``body`` gets a graph to put its nodes into, the names of the states [N, H] and of each
        sequence's part at that time (None where the sequence is); it returns the names of the new
        states and of the ``outputs`` to be stacked. A state that is None starts with zeros.
        Returns the last states and the stacked outputs [T, N, ...], in the order of the times.
        """
        g = self.g
        inner = g.nested("scan")
        zeros = [g.emit("Shape", self.h, start=1)] if None in states else []
        starts = [state or g.emit("Expand", g.scalar(0), *zeros) for state in states]
        given = [sequence for sequence in sequences if sequence is not None]
        own_states = [inner.fresh("state") for _ in starts]
        own_parts = [None if sequence is None else inner.fresh("part") for sequence in sequences]
        new, stacked = body(inner, *own_states, *own_parts)
        assert len(stacked) == outputs
        names = [*own_states, *(part for part in own_parts if part is not None)]
        # A body's outputs are made by its nodes, and each once.
        results = [inner.emit_new("Identity", name) for name in (*new, *stacked)]
        graph = helper.make_graph(
            inner.nodes,
            "one_time",
            [_matrix_info(name) for name in names],
            [_matrix_info(name) for name in results],
            inner.initializers(),
        )
        last_first = int(self.forward == backward)
        return g.emit_many(
            "Scan",
            [*starts, *given],
            [None] * (len(starts) + outputs),
            body=graph,
            num_scan_inputs=len(given),
            scan_input_directions=[last_first] * len(given),
            scan_output_directions=[last_first] * outputs,
        )


class Found(NamedTuple):
    """The gradients of one direction's pre-activations, and of its first states."""

    x_side: str  # of X Wᵀ + b for all times: [T, N, GH]
    r_side: str  # of H Rᵀ + b, the same but for a GRU that is linear before its reset
    of_r: str  # of R
    dh0: str  # [N, H]
    dc0: str | None


def summed_product(g: GraphBuilder, left: str, right: str) -> str:
    """Sum leftᵀ right over all times and samples."""
    rows = [g.emit("Flatten", value, axis=2) for value in (left, right)]
    return g.emit("Gemm", *rows, transA=1)


def split_parts(g: GraphBuilder, value: str, *, axis: int, parts: int) -> tuple[str, ...]:
    """Take ``value`` apart in equal parts."""
    return g.emit_many("Split", [value], [None] * parts, axis=axis, num_outputs=parts)


def slope(g: GraphBuilder, activated: str, activation: str) -> str:
    """Return the derivative of an activation, from its value."""
    if activation == "relu":
        return g.cast(g.emit("Greater", activated, g.scalar(0)))
    if activation == "tanh":
        return g.sub(g.scalar(1), g.mul(activated, activated))
    return g.mul(activated, g.sub(g.scalar(1), activated))


def _matrix_info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])
