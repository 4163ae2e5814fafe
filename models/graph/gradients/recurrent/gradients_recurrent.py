"""Gradient rules of RNN, GRU and LSTM: through time, over the fixed length of the sequence. Pure.

The forward node stays. Its states, the output Y, say what every gate was, for all times in one
product; only what truly depends on the next time runs step by step, in a Scan: unrolled, a thousand
times would be nine thousand nodes, and onnxruntime would load them for two minutes.
Shapes: T times, N samples, I inputs, H hidden, G gates; per direction W [GH, I], R [GH, H].
"""

from collections.abc import Sequence

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.gradients.recurrent.recurrent_cells import BACKWARD
from models.graph.gradients.recurrent.recurrent_run import (
    Found,
    Run,
    split_parts,
    summed_product,
)
from models.graph.graph_builder import Node

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
) -> Run:
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
        w_bias, r_bias = split_parts(g, own(node.input(B)), axis=0, parts=2)
    dy, *ends = upstream
    gradients = [None if end is None else own(end) for end in ends]
    return Run(
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


def _of_inputs(b: Backward, node: Node, run: Run, found: Found) -> Gradients:
    """Return the gradients of X, W, R, B, -, H0, C0 of one direction."""
    g = run.g
    parts: list[str | None] = [None] * (C0 + 1)
    first = g.ints([0])
    if b.wants(node.inputs[X]):
        parts[X] = g.emit("MatMul", found.x_side, run.w)
    if b.wants(node.inputs[W]):
        parts[W] = g.emit("Unsqueeze", summed_product(g, found.x_side, run.x), first)
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


RECURRENT: dict[str, Rule] = dict.fromkeys(BACKWARD, recurrent)
