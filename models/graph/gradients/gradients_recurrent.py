"""Gradient rules of RNN, GRU and LSTM: through time, over the fixed length of the sequence. Pure.

The forward node stays. Its states, the output Y, say what every gate was, for all times in one
product; only what truly depends on the next time runs step by step, in a Scan: unrolled, a thousand
times would be nine thousand nodes, and onnxruntime would load them for two minutes.
Shapes: T times, N samples, I inputs, H hidden, G gates; per direction W [GH, I], R [GH, H].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node

__all__ = ["RECURRENT"]

X, W, R, B, LENGTHS, H0, C0, PEEPHOLES = range(8)  # inputs
Y, Y_H, Y_C = range(3)  # outputs
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# The only ones that torch has, per direction.
ACTIVATIONS = {
    "RNN": (("tanh",), ("relu",)),
    "GRU": (("sigmoid", "tanh"),),
    "LSTM": (("sigmoid", "tanh", "tanh"),),
}


class _Run(NamedTuple):
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


class _Found(NamedTuple):
    """The gradients of one direction's pre-activations, and of its first states."""

    x_side: str  # of X Wᵀ + b for all times: [T, N, GH]
    r_side: str  # of H Rᵀ + b, the same but for a GRU that is linear before its reset
    of_r: str  # of R
    dh0: str  # [N, H]
    dc0: str | None


def recurrent(b: Backward, node: Node, dY: str) -> Gradients:
    """RNN, GRU and LSTM, in one or both directions, with or without bias and first states."""
    g = b.graph
    _refuse(b, node)
    activations = _activations(node)
    backward_too = node.attributes.get("direction", "forward")
    directions = {"forward": [1], "reverse": [-1]}.get(backward_too, [1, -1])
    states = b.extra_output(node, Y)
    names = [*node.outputs, "", ""][:3]
    upstream = [b.gradient(name) if name else None for name in names]
    parts: list[list[str | None]] = [[] for _ in range(C0 + 1)]
    for d, step in enumerate(directions):
        run = _run(b, node, d, step, states, upstream, activations[d], len(directions))
        found = BACKWARD[node.op](run, node)
        for i, part in enumerate(_of_inputs(b, node, run, found)):
            parts[i].append(part)
    gradients: list[str | None] = []
    for i in range(len(node.inputs)):
        of_directions = [part for part in parts[i] if part is not None] if i <= C0 else []
        if not of_directions:
            gradients.append(None)
        elif i == X:
            total = of_directions[0]
            for part in of_directions[1:]:
                total = g.add(total, part)
            gradients.append(total)
        else:
            gradients.append(g.concat(of_directions, 0))
    return gradients


def _refuse(b: Backward, node: Node) -> None:
    """Refuse what torch's networks do not have, and lengths that are known only at run time."""

    def refused(what: str, remedy: str) -> UsageError:
        return UsageError(
            f"node {node.name!r} ({node.op}): the gradient with {what} is not supported; {remedy}"
        )

    times = b.shape(node.inputs[X])[0]
    if times is None:
        raise UsageError(
            f"node {node.name!r} ({node.op}): its number of times, the first axis of input "
            f"{node.inputs[X]!r}, is not fixed; export the model with sequences of one length and "
            "the batch first (batch_first=True)"
        )
    if node.input(PEEPHOLES):
        raise refused("peepholes", "use a network without them")
    for name, meaning in (("clip", "clipped gates"), ("input_forget", "coupled gates")):
        if node.attributes.get(name, 0):
            raise refused(f"{meaning} ({name})", "use a network without them")
    lengths = node.input(LENGTHS)
    if lengths and not (b.is_constant(lengths) and (b.value(lengths, node) == times).all()):
        raise refused(
            "sequences of different lengths (sequence_lens)",
            "export the model without packed sequences or masks",
        )


def _activations(node: Node) -> list[tuple[str, ...]]:
    """Return the activations of each direction, or refuse such as we have no gradient for."""
    possible = ACTIVATIONS[node.op]
    directions = 2 if node.attributes.get("direction", "forward") == "bidirectional" else 1
    given = [
        (name.decode() if isinstance(name, bytes) else name).lower()
        for name in node.attributes.get("activations", [])
    ] or list(possible[0]) * directions
    width = len(possible[0])
    found = [tuple(given[i : i + width]) for i in range(0, len(given), width)]
    for names in found:
        if names not in possible:
            raise UsageError(
                f"node {node.name!r} ({node.op}): the gradient with activations "
                f"{', '.join(names)} is not supported; use {' or '.join(map(', '.join, possible))}"
            )
    return found


def _run(
    b: Backward,
    node: Node,
    d: int,
    step: int,
    states: str,
    upstream: Sequence[str | None],
    activations: Sequence[str],
    directions: int,
) -> _Run:
    g = b.graph
    times = b.shape(node.inputs[X])[0]
    assert times is not None
    at = g.constant(d, "int64")

    def own(value: str, axis: int = 0) -> str:
        """Return this direction's part, without the axis of directions."""
        if directions == 1:
            return g.emit("Squeeze", value, g.ints([axis]))
        return g.emit("Gather", value, at, axis=axis)

    def first(name: str) -> str | None:
        """Return this direction's first state, its axis kept as that of the time."""
        if not name or directions == 1:
            return name or None
        return g.slice(name, [0], [d], [d + 1])

    w_bias = r_bias = None
    if node.input(B):
        w_bias, r_bias = _split(g, own(node.input(B)), axis=0, parts=2)
    dy, *ends = upstream
    gradients = [None if end is None else own(end) for end in ends]
    return _Run(
        g,
        node.inputs[X],
        own(node.inputs[W]),
        own(node.inputs[R]),
        w_bias,
        r_bias,
        own(states, axis=1),
        first(node.input(H0)),
        first(node.input(C0)) if node.op == "LSTM" else None,
        times,
        step > 0,
        activations[-1],
        None if dy is None else own(dy, axis=1),
        *gradients,
    )


def _of_inputs(b: Backward, node: Node, run: _Run, found: _Found) -> Gradients:
    """Return the gradients of X, W, R, B, -, H0, C0 of one direction."""
    g = run.g
    parts: list[str | None] = [None] * (C0 + 1)
    first = g.ints([0])
    if b.wants(node.inputs[X]):
        parts[X] = g.emit("MatMul", found.x_side, run.w)
    if b.wants(node.inputs[W]):
        parts[W] = g.emit("Unsqueeze", _product(g, found.x_side, run.x), first)
    if b.wants(node.inputs[R]):
        parts[R] = g.emit("Unsqueeze", found.of_r, first)
    if node.input(B) and b.wants(node.input(B)):
        sums = [g.reduce_sum(side, [0, 1]) for side in (found.x_side, found.r_side)]
        parts[B] = g.emit("Unsqueeze", g.concat(sums, 0), first)
    if node.input(H0) and b.wants(node.input(H0)):
        parts[H0] = g.emit("Unsqueeze", found.dh0, first)
    if node.input(C0) and b.wants(node.input(C0)) and found.dc0 is not None:
        parts[C0] = g.emit("Unsqueeze", found.dc0, first)
    return parts


def _product(g: GraphBuilder, left: str, right: str) -> str:
    """Sum leftᵀ right over all times and samples."""
    rows = [g.emit("Flatten", value, axis=2) for value in (left, right)]
    return g.emit("Gemm", *rows, transA=1)


def _split(g: GraphBuilder, value: str, *, axis: int, parts: int) -> tuple[str, ...]:
    """Take ``value`` apart in equal parts."""
    return g.emit_many("Split", [value], [None] * parts, axis=axis, num_outputs=parts)


def _slope(g: GraphBuilder, activated: str, activation: str) -> str:
    """Return the derivative of an activation, from its value."""
    if activation == "relu":
        return g.cast(g.emit("Greater", activated, g.scalar(0)))
    if activation == "tanh":
        return g.sub(g.scalar(1), g.mul(activated, activated))
    return g.mul(activated, g.sub(g.scalar(1), activated))


def _matrix_info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None])


def _rnn(run: _Run, node: Node) -> _Found:
    """h' = f(x Wᵀ + h Rᵀ + b)."""

    def step(
        g: GraphBuilder, dh: str, given: str | None, slope: str
    ) -> tuple[list[str], list[str]]:
        total = g.add(dh, given) if given else dh
        side = g.mul(total, slope)
        return [g.emit("MatMul", side, run.r)], [side]

    slopes = _slope(run.g, run.h, run.activation)
    dh0, side = run.scan(step, [run.dh_end], [run.dh, slopes], backward=True, outputs=1)
    before = run.before(run.h, run.h0)
    return _Found(side, side, _product(run.g, side, before), dh0, None)


def _lstm(run: _Run, node: Node) -> _Found:
    """Hochreiter and Schmidhuber 1997, with forget gates; gates in the order i, o, f, c.

    c' = f c + i g, h' = o tanh(c'). The cell states are computed again: no output has them all.
    """
    g = run.g
    before = run.before(run.h, run.h0)
    gates = g.add(run.gates(run.x, run.w, run.w_bias), run.gates(before, run.r, run.r_bias))
    raw = _split(g, gates, axis=2, parts=4)
    i, o, f = (g.emit("Sigmoid", part) for part in raw[:3])
    new = g.emit("Tanh", raw[3])

    def next_cell(g: GraphBuilder, cell: str, kept: str, added: str) -> tuple[list[str], list[str]]:
        following = g.add(g.mul(kept, cell), added)
        return [following], [following]

    c0 = g.emit("Squeeze", run.c0, g.ints([0])) if run.c0 else None
    _, cells = run.scan(next_cell, [c0], [f, g.mul(i, new)], backward=False, outputs=1)
    c, old = g.emit("Tanh", cells), run.before(cells, run.c0)
    # The gradient of each gate is that of the new cell, or of the state (o), times a factor.
    factors = [
        g.mul(new, _slope(g, i, "sigmoid")),
        g.mul(c, _slope(g, o, "sigmoid")),
        g.mul(old, _slope(g, f, "sigmoid")),
        g.mul(i, _slope(g, new, "tanh")),
    ]
    through = g.mul(o, _slope(g, c, "tanh"))  # from the state to its cell

    def step(
        g: GraphBuilder, dh: str, dc: str, given: str | None, factor: str, through: str, kept: str
    ) -> tuple[list[str], list[str]]:
        of_state = g.add(dh, given) if given else dh
        of_cell = g.add(dc, g.mul(of_state, through))
        side = g.mul(g.concat([of_cell, of_state, of_cell, of_cell], 1), factor)
        return [g.emit("MatMul", side, run.r), g.mul(of_cell, kept)], [side]

    dh0, dc0, side = run.scan(
        step,
        [run.dh_end, run.dc_end],
        [run.dh, g.concat(factors, 2), through, f],
        backward=True,
        outputs=1,
    )
    return _Found(side, side, _product(g, side, before), dh0, dc0)


def _gru(run: _Run, node: Node) -> _Found:
    """Cho et al., arXiv:1406.1078; gates in the order z, r, n; h' = (1 - z) n + z h.

    Linear before the reset (torch): n = tanh(x Wᵀ + b + r (h Rᵀ + b')); otherwise
    n = tanh(x Wᵀ + b + (r h) Rᵀ + b').
    """
    g = run.g
    before = run.before(run.h, run.h0)
    linear_first = bool(node.attributes.get("linear_before_reset", 0))
    x_side = _split(g, run.gates(run.x, run.w, run.w_bias), axis=2, parts=3)
    h_side = _split(g, run.gates(before, run.r, run.r_bias), axis=2, parts=3)
    z, r = (g.emit("Sigmoid", g.add(x_side[i], h_side[i])) for i in (0, 1))
    if linear_first:
        inner = g.mul(r, h_side[2])
    else:
        weight = _split(g, run.r, axis=0, parts=3)[2]
        bias = _split(g, run.r_bias, axis=0, parts=3)[2] if run.r_bias else None
        inner = run.gates(g.mul(r, before), weight, bias)
    n = g.emit("Tanh", g.add(x_side[2], inner))
    # Gradients of the pre-activations, as factors of the state's gradient.
    of_z = g.mul(g.sub(before, n), _slope(g, z, "sigmoid"))
    of_n = g.mul(g.sub(g.scalar(1), z), _slope(g, n, "tanh"))
    if linear_first:
        return _linear_steps(run, before, z, r, of_z, of_n, h_side[2])
    return _steps(run, before, z, r, of_z, of_n)


def _linear_steps(
    run: _Run, before: str, z: str, r: str, of_z: str, of_n: str, h_part: str
) -> _Found:
    """Everything is a factor of the state's gradient, known for all times beforehand."""
    g = run.g
    of_r = g.mul(of_n, g.mul(h_part, _slope(g, r, "sigmoid")))
    factors = g.concat([of_z, of_r, g.mul(of_n, r)], 2)

    def step(
        g: GraphBuilder, dh: str, given: str | None, factor: str, kept: str
    ) -> tuple[list[str], list[str]]:
        total = g.add(dh, given) if given else dh
        side = g.mul(g.concat([total] * 3, 1), factor)
        return [g.add(g.emit("MatMul", side, run.r), g.mul(total, kept))], [total, side]

    dh0, states, r_side = run.scan(
        step, [run.dh_end], [run.dh, factors, z], backward=True, outputs=2
    )
    x_side = g.concat([*_split(g, r_side, axis=2, parts=3)[:2], g.mul(states, of_n)], 2)
    return _Found(x_side, r_side, _product(g, r_side, before), dh0, None)


def _steps(run: _Run, before: str, z: str, r: str, of_z: str, of_n: str) -> _Found:
    """The reset lies before the product, so that its gradient comes out of one step by step."""
    g = run.g
    of_reset = g.mul(before, _slope(g, r, "sigmoid"))
    *early_weights, last_weight = _split(g, run.r, axis=0, parts=3)
    early_weight = g.concat(early_weights, 0)

    def step(
        g: GraphBuilder,
        dh: str,
        given: str | None,
        f_z: str,
        f_n: str,
        f_reset: str,
        reset: str,
        kept: str,
    ) -> tuple[list[str], list[str]]:
        total = g.add(dh, given) if given else dh
        dn = g.mul(total, f_n)
        inner = g.emit("MatMul", dn, last_weight)
        early = g.concat([g.mul(total, f_z), g.mul(inner, f_reset)], 1)
        by_gates = g.add(g.emit("MatMul", early, early_weight), g.mul(inner, reset))
        return [g.add(by_gates, g.mul(total, kept))], [early, dn]

    dh0, early, dn = run.scan(
        step, [run.dh_end], [run.dh, of_z, of_n, of_reset, r, z], backward=True, outputs=2
    )
    side = g.concat([early, dn], 2)
    of_r = [_product(g, early, before), _product(g, dn, g.mul(r, before))]
    return _Found(side, side, g.concat(of_r, 0), dh0, None)


BACKWARD: dict[str, Callable[[_Run, Node], _Found]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}

RECURRENT: dict[str, Rule] = dict.fromkeys(BACKWARD, recurrent)
