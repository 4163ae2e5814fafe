"""What one time of RNN, LSTM and GRU gives back: gradients of their pre-activations. Pure."""

from collections.abc import Callable

from models.graph.gradients.recurrent.recurrent_run import (
    Found,
    Run,
    slope,
    split_parts,
    summed_product,
)
from models.graph.graph_builder import GraphBuilder, Node

__all__ = ["BACKWARD"]


def _rnn(run: Run, node: Node) -> Found:
    """h' = f(x Wᵀ + h Rᵀ + b)."""

    def step(
        g: GraphBuilder, dh: str, given: str | None, slope: str
    ) -> tuple[list[str], list[str]]:
        total = g.add(dh, given) if given else dh
        side = g.mul(total, slope)
        return [g.emit("MatMul", side, run.r)], [side]

    slopes = slope(run.g, run.h, run.activation)
    dh0, side = run.scan(step, [run.dh_end], [run.dh, slopes], backward=True, outputs=1)
    before = run.before(run.h, run.h0)
    return Found(side, side, summed_product(run.g, side, before), dh0, None)


def _lstm(run: Run, node: Node) -> Found:
    """Hochreiter and Schmidhuber 1997, with forget gates; gates in the order i, o, f, c.

    c' = f c + i g, h' = o tanh(c'). The cell states are computed again: no output has them all.
    """
    g = run.g
    before = run.before(run.h, run.h0)
    gates = g.add(run.gates(run.x, run.w, run.w_bias), run.gates(before, run.r, run.r_bias))
    raw = split_parts(g, gates, axis=2, parts=4)
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
        g.mul(new, slope(g, i, "sigmoid")),
        g.mul(c, slope(g, o, "sigmoid")),
        g.mul(old, slope(g, f, "sigmoid")),
        g.mul(i, slope(g, new, "tanh")),
    ]
    through = g.mul(o, slope(g, c, "tanh"))  # from the state to its cell

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
    return Found(side, side, summed_product(g, side, before), dh0, dc0)


def _gru(run: Run, node: Node) -> Found:
    """Cho et al., arXiv:1406.1078; gates in the order z, r, n; h' = (1 - z) n + z h.

    Linear before the reset (torch): n = tanh(x Wᵀ + b + r (h Rᵀ + b')); otherwise
    n = tanh(x Wᵀ + b + (r h) Rᵀ + b').
    """
    g = run.g
    before = run.before(run.h, run.h0)
    linear_first = bool(node.attributes.get("linear_before_reset", 0))
    x_side = split_parts(g, run.gates(run.x, run.w, run.w_bias), axis=2, parts=3)
    h_side = split_parts(g, run.gates(before, run.r, run.r_bias), axis=2, parts=3)
    z, r = (g.emit("Sigmoid", g.add(x_side[i], h_side[i])) for i in (0, 1))
    if linear_first:
        inner = g.mul(r, h_side[2])
    else:
        weight = split_parts(g, run.r, axis=0, parts=3)[2]
        bias = split_parts(g, run.r_bias, axis=0, parts=3)[2] if run.r_bias else None
        inner = run.gates(g.mul(r, before), weight, bias)
    n = g.emit("Tanh", g.add(x_side[2], inner))
    # Gradients of the pre-activations, as factors of the state's gradient.
    of_z = g.mul(g.sub(before, n), slope(g, z, "sigmoid"))
    of_n = g.mul(g.sub(g.scalar(1), z), slope(g, n, "tanh"))
    if linear_first:
        return _linear_steps(run, before, z, r, of_z, of_n, h_side[2])
    return _steps(run, before, z, r, of_z, of_n)


def _linear_steps(
    run: Run, before: str, z: str, r: str, of_z: str, of_n: str, h_part: str
) -> Found:
    """Everything is a factor of the state's gradient, known for all times beforehand."""
    g = run.g
    of_r = g.mul(of_n, g.mul(h_part, slope(g, r, "sigmoid")))
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
    x_side = g.concat([*split_parts(g, r_side, axis=2, parts=3)[:2], g.mul(states, of_n)], 2)
    return Found(x_side, r_side, summed_product(g, r_side, before), dh0, None)


def _steps(run: Run, before: str, z: str, r: str, of_z: str, of_n: str) -> Found:
    """The reset lies before the product, so that its gradient comes out of one step by step."""
    g = run.g
    of_reset = g.mul(before, slope(g, r, "sigmoid"))
    *early_weights, last_weight = split_parts(g, run.r, axis=0, parts=3)
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
    of_r = [summed_product(g, early, before), summed_product(g, dn, g.mul(r, before))]
    return Found(side, side, g.concat(of_r, 0), dh0, None)


BACKWARD: dict[str, Callable[[Run, Node], Found]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
