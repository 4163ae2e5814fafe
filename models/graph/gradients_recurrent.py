"""Gradient rules of RNN, GRU and LSTM: through time, over the fixed length of the sequence. Pure.

The forward node stays. Its states, the output Y, say what every gate was, for all times in one
product; only what truly depends on the next time runs step by step, backward: a few nodes each.
Shapes: T times, N samples, I inputs, H hidden, G gates; per direction W [GH, I], R [GH, H].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node

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
    before: str  # states before each time: [T, N, H]
    c0: str | None  # [1, N, H]
    times: Sequence[int]  # in the order in which the node works
    size: int  # H
    activation: str  # of the last gate
    dh: list[str | None]  # gradient of the state at each time, from Y: [1, N, H]
    dh_end: str | None  # of the last state, from Y_h: [1, N, H]
    dc_end: str | None

    @property
    def last(self) -> int:
        return self.times[-1]

    def split(self, value: str, *, axis: int, parts: int) -> tuple[str, ...]:
        """Take ``value`` apart in equal parts."""
        if parts == 1:
            return (value,)
        return self.g.emit_many("Split", [value], [None] * parts, axis=axis, num_outputs=parts)

    def each_time(self, value: str) -> tuple[str, ...]:
        """Take [T, ...] apart by time, each [1, ...]."""
        return self.split(value, axis=0, parts=len(self.times))

    def gates(self, value: str, weight: str, bias: str | None) -> str:
        """Return value weightᵀ + bias for all times: [T, N, GH]."""
        product = self.g.emit("MatMul", value, self.g.transpose(weight, [1, 0]))
        return product if bias is None else self.g.add(product, bias)


class _Found(NamedTuple):
    """The gradients of one direction's pre-activations, and of its first states."""

    x_side: str  # of X Wᵀ + b for all times: [T, N, GH]
    r_side: str  # of H Rᵀ + b, the same but for a GRU that is linear before its reset
    of_r: str  # of R
    dh0: str  # [1, N, H]
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
    size = b.shape(node.inputs[R])[2]
    assert times is not None
    assert size is not None
    at = g.constant(d, "int64")

    def own(value: str, axis: int = 0) -> str:
        """Return this direction's part, without the axis of directions."""
        if directions == 1:
            return g.emit("Squeeze", value, g.ints([axis]))
        return g.emit("Gather", value, at, axis=axis)

    def first(name: str) -> str | None:
        """Return this direction's first or last state, its axis kept as that of the time."""
        if not name or directions == 1:
            return name or None
        return g.slice(name, [0], [d], [d + 1])

    h = own(states, axis=1)
    h0 = first(node.input(H0))
    early, late = ([1, 0, 0], [-1, 0, 0]) if step > 0 else ([-1, 0, 0], [1, 0, 0])
    if h0 is None:
        before = g.pad(h, early, late)
    elif times == 1:
        before = h0
    elif step > 0:
        before = g.concat([h0, g.slice(h, [0], [0], [times - 1])], 0)
    else:
        before = g.concat([g.slice(h, [0], [1], [times]), h0], 0)
    w_bias = r_bias = None
    if node.input(B):
        half = GATES[node.op] * size
        w_bias, r_bias = g.emit_many(
            "Split", [own(node.input(B))], [None, None], axis=0, num_outputs=2
        )
        assert b.shape(node.input(B))[1] == 2 * half
    order = range(times) if step > 0 else range(times - 1, -1, -1)
    run = _Run(
        g,
        node.inputs[X],
        own(node.inputs[W]),
        own(node.inputs[R]),
        w_bias,
        r_bias,
        h,
        before,
        first(node.input(C0)) if node.op == "LSTM" else None,
        order,
        size,
        activations[-1],
        [None] * times,
        first(upstream[Y_H] or ""),
        first(upstream[Y_C] or ""),
    )
    if upstream[Y] is not None:
        run.dh[:] = run.each_time(own(upstream[Y], axis=1))
    return run


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
        parts[H0] = found.dh0
    if node.input(C0) and b.wants(node.input(C0)):
        parts[C0] = found.dc0
    return parts


def _product(g: GraphBuilder, left: str, right: str) -> str:
    """Sum leftᵀ right over all times and samples."""
    rows = [g.emit("Flatten", value, axis=2) for value in (left, right)]
    return g.emit("Gemm", *rows, transA=1)


def _sum(g: GraphBuilder, *values: str | None) -> str | None:
    """Add what is there."""
    total: str | None = None
    for value in values:
        if value is not None:
            total = value if total is None else g.add(total, value)
    return total


def _in_order(g: GraphBuilder, parts: dict[int, str]) -> str:
    return g.concat([parts[t] for t in sorted(parts)], 0)


def _slope(g: GraphBuilder, activated: str, activation: str) -> str:
    """Return the derivative of an activation, from its value."""
    if activation == "relu":
        return g.cast(g.emit("Greater", activated, g.scalar(0)))
    if activation == "tanh":
        return g.sub(g.scalar(1), g.mul(activated, activated))
    return g.mul(activated, g.sub(g.scalar(1), activated))


def _rnn(run: _Run, node: Node) -> _Found:
    """h' = f(x Wᵀ + h Rᵀ + b)."""
    g = run.g
    slopes = run.each_time(_slope(g, run.h, run.activation))
    before_end = run.dh_end
    found: dict[int, str] = {}
    for t in reversed(run.times):
        dh = _sum(g, run.dh[t], before_end)
        assert dh is not None
        found[t] = g.mul(dh, slopes[t])
        before_end = g.emit("MatMul", found[t], run.r)
    assert before_end is not None
    side = _in_order(g, found)
    return _Found(side, side, _product(g, side, run.before), before_end, None)


def _lstm(run: _Run, node: Node) -> _Found:
    """Hochreiter and Schmidhuber 1997, with forget gates; gates in the order i, o, f, c.

    c' = f c + i g, h' = o tanh(c'). The cell states are computed again: no output has them all.
    """
    g = run.g
    gates = g.add(run.gates(run.x, run.w, run.w_bias), run.gates(run.before, run.r, run.r_bias))
    raw = run.split(gates, axis=2, parts=4)
    i, o, f = (g.emit("Sigmoid", part) for part in raw[:3])
    new = g.emit("Tanh", raw[3])
    kept, added = run.each_time(f), run.each_time(g.mul(i, new))
    cells: dict[int, str] = {}
    cell = run.c0
    for t in run.times:
        cell = added[t] if cell is None else g.add(g.mul(kept[t], cell), added[t])
        cells[t] = cell
    c = g.emit("Tanh", _in_order(g, cells))
    c0 = run.c0 or g.mul(added[run.times[0]], g.scalar(0))
    old = _in_order(
        g, {t: c0 if n == 0 else cells[run.times[n - 1]] for n, t in enumerate(run.times)}
    )
    # The gradient of each gate is that of the new cell, or of the state (o), times a factor.
    factors = [
        g.mul(new, _slope(g, i, "sigmoid")),
        g.mul(c, _slope(g, o, "sigmoid")),
        g.mul(old, _slope(g, f, "sigmoid")),
        g.mul(i, _slope(g, new, "tanh")),
    ]
    factor = run.each_time(g.concat(factors, 2))
    through = run.each_time(g.mul(o, _slope(g, c, "tanh")))  # from the state to its cell
    dh_next, dc_next = run.dh_end, run.dc_end
    found: dict[int, str] = {}
    for t in reversed(run.times):
        dh = _sum(g, run.dh[t], dh_next)
        if dh is None:  # only the last cell was read
            assert dc_next is not None
            dh = g.mul(dc_next, g.scalar(0))
        dc = _sum(g, dc_next, g.mul(dh, through[t]))
        assert dc is not None
        found[t] = g.mul(g.concat([dc, dh, dc, dc], 2), factor[t])
        dh_next = g.emit("MatMul", found[t], run.r)
        dc_next = g.mul(dc, kept[t])
    side = _in_order(g, found)
    assert dh_next is not None
    return _Found(side, side, _product(g, side, run.before), dh_next, dc_next)


def _gru(run: _Run, node: Node) -> _Found:
    """Cho et al., arXiv:1406.1078; gates in the order z, r, n; h' = (1 - z) n + z h.

    Linear before the reset (torch): n = tanh(x Wᵀ + b + r (h Rᵀ + b')); otherwise
    n = tanh(x Wᵀ + b + (r h) Rᵀ + b').
    """
    g = run.g
    linear_first = bool(node.attributes.get("linear_before_reset", 0))
    x_side = run.split(run.gates(run.x, run.w, run.w_bias), axis=2, parts=3)
    h_side = run.split(run.gates(run.before, run.r, run.r_bias), axis=2, parts=3)
    z, r = (g.emit("Sigmoid", g.add(x_side[i], h_side[i])) for i in (0, 1))
    weights = run.split(run.r, axis=0, parts=3)
    if linear_first:
        inner = g.mul(r, h_side[2])
    else:
        biases = run.split(run.r_bias, axis=0, parts=3) if run.r_bias else (None,) * 3
        inner = run.gates(g.mul(r, run.before), weights[2], biases[2])
    n = g.emit("Tanh", g.add(x_side[2], inner))
    # Gradients of the pre-activations, as factors of the state's gradient.
    of_z = g.mul(g.sub(run.before, n), _slope(g, z, "sigmoid"))
    of_n = g.mul(g.sub(g.scalar(1), z), _slope(g, n, "tanh"))
    step = _linear_steps if linear_first else _steps
    return step(run, z, r, of_z, of_n, h_side[2] if linear_first else "", weights)


def _linear_steps(
    run: _Run, z: str, r: str, of_z: str, of_n: str, h_part: str, weights: Sequence[str]
) -> _Found:
    """Everything is a factor of the state's gradient, known for all times beforehand."""
    g = run.g
    of_r = g.mul(of_n, g.mul(h_part, _slope(g, r, "sigmoid")))
    of_h = g.concat([of_z, of_r, g.mul(of_n, r)], 2)
    factor, kept = run.each_time(of_h), run.each_time(z)
    states: dict[int, str] = {}
    r_side: dict[int, str] = {}
    dh_next = run.dh_end
    for t in reversed(run.times):
        dh = _sum(g, run.dh[t], dh_next)
        assert dh is not None
        states[t] = dh
        r_side[t] = g.mul(g.concat([dh] * 3, 2), factor[t])
        dh_next = g.add(g.emit("MatMul", r_side[t], run.r), g.mul(dh, kept[t]))
    assert dh_next is not None
    dh_all, r_all = _in_order(g, states), _in_order(g, r_side)
    x_all = g.concat([*run.split(r_all, axis=2, parts=3)[:2], g.mul(dh_all, of_n)], 2)
    return _Found(x_all, r_all, _product(g, r_all, run.before), dh_next, None)


def _steps(
    run: _Run, z: str, r: str, of_z: str, of_n: str, h_part: str, weights: Sequence[str]
) -> _Found:
    """The reset lies before the product, so that its gradient comes out of one step by step."""
    g = run.g
    of_reset = g.mul(run.before, _slope(g, r, "sigmoid"))
    factors = [run.each_time(value) for value in (of_z, of_n, of_reset, r, z)]
    z_and_r = g.concat(weights[:2], 0)
    sides: dict[int, str] = {}
    dh_next = run.dh_end
    for t in reversed(run.times):
        dh = _sum(g, run.dh[t], dh_next)
        assert dh is not None
        f_z, f_n, f_reset, reset, kept = (factor[t] for factor in factors)
        dz, dn = g.mul(dh, f_z), g.mul(dh, f_n)
        inner = g.emit("MatMul", dn, weights[2])
        early = g.concat([dz, g.mul(inner, f_reset)], 2)
        sides[t] = g.concat([early, dn], 2)
        by_gates = g.add(g.emit("MatMul", early, z_and_r), g.mul(inner, reset))
        dh_next = g.add(by_gates, g.mul(dh, kept))
    assert dh_next is not None
    side = _in_order(g, sides)
    dz, dr, dn = run.split(side, axis=2, parts=3)
    dR = g.concat(
        [
            _product(g, g.concat([dz, dr], 2), run.before),
            _product(g, dn, g.mul(r, run.before)),
        ],
        0,
    )
    return _Found(side, side, dR, dh_next, None)


BACKWARD: dict[str, Callable[[_Run, Node], _Found]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}

RECURRENT: dict[str, Rule] = dict.fromkeys(BACKWARD, recurrent)
