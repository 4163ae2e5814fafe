"""Gradient rules of arithmetic, element by element, with broadcasting. Pure.

Where a slope is infinite at one point (a root at 0, an arc sine at 1), the gradient there is 0:
torch's norm and deviation have it so, and are exported as roots.
"""

from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node

__all__ = ["ELEMENTWISE", "broadcast", "divided", "flat", "through"]

STRICT_LIMITS = ((0.0, 6.0), (-1.0, 1.0))  # of relu6 and hardtanh


def through(b: Backward, node: Node, dX: str | None) -> Gradients:
    """Return ``dX`` for the first input, and nothing for the others."""
    return [dX if b.wants(node.inputs[0]) else None, *[None] * (len(node.inputs) - 1)]


def broadcast(b: Backward, node: Node, gradients: list[str | None]) -> Gradients:
    """Sum each gradient, of the output's shape, down to the shape of its input."""
    shape = b.shape(node.outputs[0])
    return [
        None if gradient is None else b.unbroadcast(gradient, shape, name)
        for gradient, name in zip(gradients, node.inputs, strict=True)
    ]


def add(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A + B + …: the gradient goes to each; also the rule of Sum."""
    return broadcast(b, node, [dY if b.wants(name) else None for name in node.inputs])


def mean(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = (A + B + …) / n."""
    return add(b, node, b.graph.mul(dY, b.graph.scalar(1 / len(node.inputs))))


def sub(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A - B."""
    A, B = node.inputs
    return broadcast(b, node, [dY if b.wants(A) else None, b.graph.neg(dY) if b.wants(B) else None])


def mul(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A B."""
    A, B = node.inputs
    return broadcast(
        b,
        node,
        [
            b.graph.mul(dY, B) if b.wants(A) else None,
            b.graph.mul(dY, A) if b.wants(B) else None,
        ],
    )


def div(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A / B: dA = dY / B, dB = -dY Y / B."""
    g, (A, B), (Y,) = b.graph, node.inputs, node.outputs
    dA = g.div(dY, B)
    return broadcast(
        b, node, [dA if b.wants(A) else None, g.neg(g.mul(dA, Y)) if b.wants(B) else None]
    )


def divided(g: GraphBuilder, value: str, by: str) -> str:
    """Return value / by, and 0 where ``by`` is 0."""
    nothing = g.emit("Equal", by, g.scalar(0))
    return g.emit("Where", nothing, g.scalar(0), g.div(value, by))


def power(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X^p: dX = dY p X^(p-1), dp = dY Y ln X (0 where X <= 0).

    dX is 0 where X is 0 and p < 1: a norm of any order is exported as sum(|X|^p)^(1/p).
    """
    g, (X, p), (Y,) = b.graph, node.inputs, node.outputs
    dX = dp = None
    if b.wants(X):
        exponent = g.emit("CastLike", p, X)
        slope = g.mul(exponent, g.emit("Pow", X, g.sub(exponent, g.scalar(1))))
        if not b.is_constant(p) or (b.value(p, node) < 1).any():
            steep = g.emit("Less", exponent, g.scalar(1))
            steep = g.emit("And", g.emit("Equal", X, g.scalar(0)), steep)
            slope = g.emit("Where", steep, g.scalar(0), slope)
        dX = g.mul(dY, slope)
    if b.wants(p):
        positive = g.emit("Greater", X, g.scalar(0))
        log = g.emit("Log", g.emit("Where", positive, X, g.scalar(1)))
        dp = g.mul(g.mul(dY, Y), log)
    return broadcast(b, node, [dX, dp])


def mod(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A - n B for a whole number n: dA = dY, dB = -n dY."""
    g, (A, B), (Y,) = b.graph, node.inputs, node.outputs
    dB = None
    if b.wants(B):
        dB = g.mul(dY, g.emit("Round", g.div(g.sub(Y, A), B)))
    return broadcast(b, node, [dY if b.wants(A) else None, dB])


def extreme(b: Backward, node: Node, dY: str) -> Gradients:
    """Max and Min: the gradient is shared equally by the inputs that attain the extreme."""
    g, (Y,) = b.graph, node.outputs
    masks = [g.cast(g.emit("Equal", name, Y)) for name in node.inputs]
    count = masks[0]
    for mask in masks[1:]:
        count = g.add(count, mask)
    share = g.div(dY, count)
    return broadcast(
        b,
        node,
        [
            g.mul(share, mask) if b.wants(name) else None
            for name, mask in zip(node.inputs, masks, strict=True)
        ],
    )


def where(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where the condition holds, else Z."""
    g, (condition, X, Z) = b.graph, node.inputs
    zero = g.scalar(0)
    return broadcast(
        b,
        node,
        [
            None,
            g.emit("Where", condition, dY, zero) if b.wants(X) else None,
            g.emit("Where", condition, zero, dY) if b.wants(Z) else None,
        ],
    )


def sqrt(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY / 2Y; 0 where Y is 0."""
    g, (Y,) = b.graph, node.outputs
    return through(b, node, divided(g, g.mul(dY, g.scalar(0.5)), Y))


def exp(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.mul(dY, node.outputs[0]))


def log(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.div(dY, node.inputs[0]))


def neg(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.neg(dY))


def absolute(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.mul(dY, b.graph.emit("Sign", node.inputs[0])))


def reciprocal(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = 1 / X: dX = -dY Y²."""
    g, (Y,) = b.graph, node.outputs
    return through(b, node, g.neg(g.mul(dY, g.mul(Y, Y))))


def sine(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.mul(dY, b.graph.emit("Cos", node.inputs[0])))


def cosine(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.neg(b.graph.mul(dY, b.graph.emit("Sin", node.inputs[0]))))


def tangent(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY (1 + Y²)."""
    g, (Y,) = b.graph, node.outputs
    return through(b, node, g.mul(dY, g.add(g.mul(Y, Y), g.scalar(1))))


def hyperbolic_sine(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.mul(dY, b.graph.emit("Cosh", node.inputs[0])))


def hyperbolic_cosine(b: Backward, node: Node, dY: str) -> Gradients:
    return through(b, node, b.graph.mul(dY, b.graph.emit("Sinh", node.inputs[0])))


def arc_sine(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY / sqrt(1 - X²); 0 at -1 and 1."""
    g, (X,) = b.graph, node.inputs
    root = g.emit("Sqrt", g.sub(g.scalar(1), g.mul(X, X)))
    return through(b, node, divided(g, dY, root))


def arc_cosine(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = -dY / sqrt(1 - X²); 0 at -1 and 1."""
    return arc_sine(b, node, b.graph.neg(dY))


def arc_tangent(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY / (1 + X²)."""
    g, (X,) = b.graph, node.inputs
    return through(b, node, g.div(dY, g.add(g.scalar(1), g.mul(X, X))))


def area_sine(b: Backward, node: Node, dY: str) -> Gradients:
    """Asinh: dX = dY / sqrt(X² + 1)."""
    g, (X,) = b.graph, node.inputs
    return through(b, node, g.div(dY, g.emit("Sqrt", g.add(g.mul(X, X), g.scalar(1)))))


def area_cosine(b: Backward, node: Node, dY: str) -> Gradients:
    """Acosh: dX = dY / sqrt(X² - 1); 0 at 1."""
    g, (X,) = b.graph, node.inputs
    root = g.emit("Sqrt", g.sub(g.mul(X, X), g.scalar(1)))
    return through(b, node, divided(g, dY, root))


def area_tangent(b: Backward, node: Node, dY: str) -> Gradients:
    """Atanh: dX = dY / (1 - X²)."""
    g, (X,) = b.graph, node.inputs
    return through(b, node, g.div(dY, g.sub(g.scalar(1), g.mul(X, X))))


def flat(b: Backward, node: Node, dY: str) -> Gradients:
    """Sign, Floor, Ceil, Round, Hardmax, EyeLike: constant almost everywhere, so that the
    gradient is zero."""
    return [None] * len(node.inputs)


def clip(b: Backward, node: Node, dY: str) -> Gradients:
    """The gradient passes inside the limits; what lies outside goes to the limit, if it is trained.

    At a limit itself it passes as for torch's clamp, but does not for the limits of relu6 and
    hardtanh, which torch exports as the same operator.
    """
    g, (X, low, high) = b.graph, (node.input(i) for i in range(3))
    limits = tuple(
        b.value(name, node).item() for name in (low, high) if name and b.is_constant(name)
    )
    above, below, of = "GreaterOrEqual", "LessOrEqual", X
    if limits in STRICT_LIMITS:
        above, below, of = "Greater", "Less", node.outputs[0]  # so that X need not be kept
    inside = [g.emit(op, of, limit) for op, limit in ((above, low), (below, high)) if limit]
    gradients: list[str | None] = [dY, None, None]
    if inside and b.wants(X):
        mask = inside[0] if len(inside) == 1 else g.emit("And", *inside)
        gradients[0] = g.mul(dY, g.cast(mask))
    for i, op, limit in ((1, "Less", low), (2, "Greater", high)):
        if limit and b.wants(limit):
            gradients[i] = g.sum_all(g.mul(dY, g.cast(g.emit(op, X, limit))))
    return [gradients[i] if b.wants(name) else None for i, name in enumerate(node.inputs)]


def cast(b: Backward, node: Node, dY: str) -> Gradients:
    """Float to float; a cast from or to integers carries no gradient and never gets here."""
    return through(b, node, b.graph.emit("CastLike", dY, node.inputs[0]))


def identity(b: Backward, node: Node, dY: str) -> Gradients:
    """Identity, and Dropout in its inference form."""
    return through(b, node, dY)


ELEMENTWISE: dict[str, Rule] = {
    "Abs": absolute,
    "Acos": arc_cosine,
    "Acosh": area_cosine,
    "Add": add,
    "Asin": arc_sine,
    "Asinh": area_sine,
    "Atan": arc_tangent,
    "Atanh": area_tangent,
    "Cast": cast,
    "CastLike": cast,
    "Ceil": flat,
    "Clip": clip,
    "Cos": cosine,
    "Cosh": hyperbolic_cosine,
    "Div": div,
    "Dropout": identity,
    "Exp": exp,
    "EyeLike": flat,
    "Floor": flat,
    "Hardmax": flat,
    "Identity": identity,
    "Log": log,
    "Max": extreme,
    "Mean": mean,
    "Min": extreme,
    "Mod": mod,
    "Mul": mul,
    "Neg": neg,
    "Pow": power,
    "Reciprocal": reciprocal,
    "Round": flat,
    "Sign": flat,
    "Sin": sine,
    "Sinh": hyperbolic_sine,
    "Sqrt": sqrt,
    "Sub": sub,
    "Sum": add,
    "Tan": tangent,
    "Where": where,
}
