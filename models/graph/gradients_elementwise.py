"""Gradient rules of operators that work element by element, with broadcasting. Pure."""

import math

from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import Node


def _through(b: Backward, node: Node, dX: str | None) -> Gradients:
    """Return ``dX`` for the first input, and nothing for the others."""
    return [dX if b.wants(node.inputs[0]) else None, *[None] * (len(node.inputs) - 1)]


def _broadcast(b: Backward, node: Node, gradients: list[str | None]) -> Gradients:
    """Sum each gradient, of the output's shape, down to the shape of its input."""
    shape = b.shape(node.outputs[0])
    return [
        None if gradient is None else b.unbroadcast(gradient, shape, name)
        for gradient, name in zip(gradients, node.inputs, strict=True)
    ]


def add(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A + B + …: the gradient goes to each; also the rule of Sum."""
    return _broadcast(b, node, [dY if b.wants(name) else None for name in node.inputs])


def mean(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = (A + B + …) / n."""
    return add(b, node, b.graph.mul(dY, b.graph.scalar(1 / len(node.inputs))))


def sub(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A - B."""
    A, B = node.inputs
    return _broadcast(
        b, node, [dY if b.wants(A) else None, b.graph.neg(dY) if b.wants(B) else None]
    )


def mul(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A B."""
    A, B = node.inputs
    return _broadcast(
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
    return _broadcast(
        b, node, [dA if b.wants(A) else None, g.neg(g.mul(dA, Y)) if b.wants(B) else None]
    )


def power(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X^p: dX = dY p X^(p-1), dp = dY Y ln X (0 where X <= 0)."""
    g, (X, p), (Y,) = b.graph, node.inputs, node.outputs
    dX = dp = None
    if b.wants(X):
        exponent = g.emit("CastLike", p, X)
        slope = g.mul(exponent, g.emit("Pow", X, g.sub(exponent, g.scalar(1))))
        dX = g.mul(dY, slope)
    if b.wants(p):
        positive = g.emit("Greater", X, g.scalar(0))
        log = g.emit("Log", g.emit("Where", positive, X, g.scalar(1)))
        dp = g.mul(g.mul(dY, Y), log)
    return _broadcast(b, node, [dX, dp])


def extreme(b: Backward, node: Node, dY: str) -> Gradients:
    """Max and Min: the gradient is shared equally by the inputs that attain the extreme."""
    g, (Y,) = b.graph, node.outputs
    masks = [g.cast(g.emit("Equal", name, Y)) for name in node.inputs]
    count = masks[0]
    for mask in masks[1:]:
        count = g.add(count, mask)
    share = g.div(dY, count)
    return _broadcast(
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
    return _broadcast(
        b,
        node,
        [
            None,
            g.emit("Where", condition, dY, zero) if b.wants(X) else None,
            g.emit("Where", condition, zero, dY) if b.wants(Z) else None,
        ],
    )


def sqrt(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.div(b.graph.mul(dY, b.graph.scalar(0.5)), node.outputs[0]))


def exp(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.mul(dY, node.outputs[0]))


def log(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.div(dY, node.inputs[0]))


def neg(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.neg(dY))


def absolute(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.mul(dY, b.graph.emit("Sign", node.inputs[0])))


def reciprocal(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = 1 / X: dX = -dY Y²."""
    g, (Y,) = b.graph, node.outputs
    return _through(b, node, g.neg(g.mul(dY, g.mul(Y, Y))))


def sine(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.mul(dY, b.graph.emit("Cos", node.inputs[0])))


def cosine(b: Backward, node: Node, dY: str) -> Gradients:
    return _through(b, node, b.graph.neg(b.graph.mul(dY, b.graph.emit("Sin", node.inputs[0]))))


def flat(b: Backward, node: Node, dY: str) -> Gradients:
    """Sign, Floor, Ceil, Round: constant almost everywhere, so the gradient is zero."""
    return [None] * len(node.inputs)


def relu(b: Backward, node: Node, dY: str) -> Gradients:
    """The mask is read off the output, so that the input need not be kept; 0 at 0 as in torch."""
    g, (Y,) = b.graph, node.outputs
    return _through(b, node, g.mul(dY, g.cast(g.emit("Greater", Y, g.scalar(0)))))


def leaky_relu(b: Backward, node: Node, dY: str) -> Gradients:
    g, (X,) = b.graph, node.inputs
    slope = g.scalar(node.attributes.get("alpha", 0.01))
    positive = g.emit("Greater", X, g.scalar(0))
    return _through(b, node, g.emit("Where", positive, dY, g.mul(dY, slope)))


def prelu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where X > 0, else slope X."""
    g, (X, slope) = b.graph, node.inputs
    positive = g.emit("Greater", X, g.scalar(0))
    dX = dslope = None
    if b.wants(X):
        dX = g.emit("Where", positive, dY, g.mul(dY, slope))
    if b.wants(slope):
        dslope = g.emit("Where", positive, g.scalar(0), g.mul(dY, X))
    return _broadcast(b, node, [dX, dslope])


def clip(b: Backward, node: Node, dY: str) -> Gradients:
    """The gradient passes strictly inside the limits, as torch has it for relu6."""
    g, (Y,) = b.graph, node.outputs
    inside = [
        g.emit(op, Y, limit)
        for op, limit in (("Greater", node.input(1)), ("Less", node.input(2)))
        if limit
    ]
    if not inside:
        return _through(b, node, dY)
    mask = inside[0] if len(inside) == 1 else g.emit("And", *inside)
    return _through(b, node, g.mul(dY, g.cast(mask)))


def sigmoid(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY Y (1 - Y)."""
    g, (Y,) = b.graph, node.outputs
    return _through(b, node, g.mul(dY, g.mul(Y, g.sub(g.scalar(1), Y))))


def hard_sigmoid(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = clip(alpha X + beta, 0, 1)."""
    g, (Y,) = b.graph, node.outputs
    inside = g.emit("And", g.emit("Greater", Y, g.scalar(0)), g.emit("Less", Y, g.scalar(1)))
    slope = g.scalar(node.attributes.get("alpha", 0.2))
    return _through(b, node, g.mul(dY, g.mul(g.cast(inside), slope)))


def hard_swish(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X clip(X / 6 + 1/2, 0, 1): slope X / 3 + 1/2 between -3 and 3, else 0 or 1."""
    g, (X,) = b.graph, node.inputs
    slope = g.add(g.mul(X, g.scalar(1 / 3)), g.scalar(0.5))
    slope = g.emit("Where", g.emit("Less", X, g.scalar(3)), slope, g.scalar(1))
    slope = g.emit("Where", g.emit("Greater", X, g.scalar(-3)), slope, g.scalar(0))
    return _through(b, node, g.mul(dY, slope))


def tanh(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY (1 - Y²)."""
    g, (Y,) = b.graph, node.outputs
    return _through(b, node, g.mul(dY, g.sub(g.scalar(1), g.mul(Y, Y))))


def erf(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY 2 / sqrt(pi) exp(-X²)."""
    g, (X,) = b.graph, node.inputs
    bell = g.emit("Exp", g.neg(g.mul(X, X)))
    return _through(b, node, g.mul(dY, g.mul(bell, g.scalar(2 / math.sqrt(math.pi)))))


def gelu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X Phi(X): dX = dY (Phi(X) + X phi(X)), or the derivative of the tanh form."""
    g, (X,) = b.graph, node.inputs
    half, one = g.scalar(0.5), g.scalar(1)
    square = g.mul(X, X)
    if node.attributes.get("approximate", "none") == "tanh":
        # Y = X/2 (1 + t), t = tanh(c (X + 0.044715 X³)), c = sqrt(2 / pi)
        c = math.sqrt(2 / math.pi)
        inner = g.mul(X, g.add(g.mul(square, g.scalar(0.044715 * c)), g.scalar(c)))
        t = g.emit("Tanh", inner)
        inner_slope = g.add(g.mul(square, g.scalar(3 * 0.044715 * c)), g.scalar(c))
        bend = g.mul(g.mul(X, inner_slope), g.sub(one, g.mul(t, t)))
        slope = g.mul(half, g.add(g.add(one, t), bend))
        return _through(b, node, g.mul(dY, slope))
    phi = g.mul(g.emit("Exp", g.mul(square, g.scalar(-0.5))), g.scalar(1 / math.sqrt(2 * math.pi)))
    cumulative = g.mul(half, g.add(one, g.emit("Erf", g.mul(X, g.scalar(math.sqrt(0.5))))))
    return _through(b, node, g.mul(dY, g.add(cumulative, g.mul(X, phi))))


def elu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where X > 0, else alpha (exp(X) - 1): slope there Y + alpha. Also Celu with alpha 1."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    slope = g.add(Y, g.scalar(node.attributes.get("alpha", 1.0)))
    positive = g.emit("Greater", X, g.scalar(0))
    return _through(b, node, g.mul(dY, g.emit("Where", positive, g.scalar(1), slope)))


def selu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = gamma X where X > 0, else gamma alpha (exp(X) - 1): slope there Y + gamma alpha."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    alpha = node.attributes.get("alpha", 1.6732632423543772)
    gamma = node.attributes.get("gamma", 1.0507009873554805)
    positive = g.emit("Greater", X, g.scalar(0))
    slope = g.emit("Where", positive, g.scalar(gamma), g.add(Y, g.scalar(alpha * gamma)))
    return _through(b, node, g.mul(dY, slope))


def softplus(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = ln(1 + exp X): dX = dY sigmoid(X)."""
    return _through(b, node, b.graph.mul(dY, b.graph.emit("Sigmoid", node.inputs[0])))


def softsign(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X / (1 + |X|): dX = dY / (1 + |X|)²."""
    g, (X,) = b.graph, node.inputs
    scale = g.add(g.emit("Abs", X), g.scalar(1))
    return _through(b, node, g.div(dY, g.mul(scale, scale)))


def cast(b: Backward, node: Node, dY: str) -> Gradients:
    """Float to float; a cast from or to integers carries no gradient and never gets here."""
    return _through(b, node, b.graph.emit("CastLike", dY, node.inputs[0]))


def identity(b: Backward, node: Node, dY: str) -> Gradients:
    """Identity, and Dropout in its inference form."""
    return _through(b, node, dY)


ELEMENTWISE: dict[str, Rule] = {
    "Abs": absolute,
    "Add": add,
    "Cast": cast,
    "CastLike": cast,
    "Ceil": flat,
    "Clip": clip,
    "Cos": cosine,
    "Div": div,
    "Dropout": identity,
    "Elu": elu,
    "Erf": erf,
    "Exp": exp,
    "Floor": flat,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": identity,
    "LeakyRelu": leaky_relu,
    "Log": log,
    "Max": extreme,
    "Mean": mean,
    "Min": extreme,
    "Mul": mul,
    "Neg": neg,
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": reciprocal,
    "Relu": relu,
    "Round": flat,
    "Selu": selu,
    "Sigmoid": sigmoid,
    "Sign": flat,
    "Sin": sine,
    "Softplus": softplus,
    "Softsign": softsign,
    "Sqrt": sqrt,
    "Sub": sub,
    "Sum": add,
    "Tanh": tanh,
    "Where": where,
}
