"""Gradient rules of activation functions. Pure."""

import math

from models.graph.backward import Backward, Gradients, Rule
from models.graph.gradients.gradients_elementwise import broadcast, through
from models.graph.graph_builder import Node

__all__ = ["ACTIVATION"]


def relu(b: Backward, node: Node, dY: str) -> Gradients:
    """The mask is read off the output, so that the input need not be kept; 0 at 0 as in torch."""
    g, (Y,) = b.graph, node.outputs
    return through(b, node, g.mul(dY, g.cast(g.emit("Greater", Y, g.scalar(0)))))


def leaky_relu(b: Backward, node: Node, dY: str) -> Gradients:
    g, (X,) = b.graph, node.inputs
    slope = g.scalar(node.attributes.get("alpha", 0.01))
    positive = g.emit("Greater", X, g.scalar(0))
    return through(b, node, g.emit("Where", positive, dY, g.mul(dY, slope)))


def prelu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where X > 0, else slope X."""
    g, (X, slope) = b.graph, node.inputs
    positive = g.emit("Greater", X, g.scalar(0))
    dX = dslope = None
    if b.wants(X):
        dX = g.emit("Where", positive, dY, g.mul(dY, slope))
    if b.wants(slope):
        dslope = g.emit("Where", positive, g.scalar(0), g.mul(dY, X))
    return broadcast(b, node, [dX, dslope])


def sigmoid(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY Y (1 - Y)."""
    g, (Y,) = b.graph, node.outputs
    return through(b, node, g.mul(dY, g.mul(Y, g.sub(g.scalar(1), Y))))


def hard_sigmoid(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = clip(alpha X + beta, 0, 1)."""
    g, (Y,) = b.graph, node.outputs
    inside = g.emit("And", g.emit("Greater", Y, g.scalar(0)), g.emit("Less", Y, g.scalar(1)))
    slope = g.scalar(node.attributes.get("alpha", 0.2))
    return through(b, node, g.mul(dY, g.mul(g.cast(inside), slope)))


def hard_swish(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X clip(X / 6 + 1/2, 0, 1): slope X / 3 + 1/2 between -3 and 3, else 0 or 1."""
    g, (X,) = b.graph, node.inputs
    slope = g.add(g.mul(X, g.scalar(1 / 3)), g.scalar(0.5))
    slope = g.emit("Where", g.emit("Less", X, g.scalar(3)), slope, g.scalar(1))
    slope = g.emit("Where", g.emit("Greater", X, g.scalar(-3)), slope, g.scalar(0))
    return through(b, node, g.mul(dY, slope))


def tanh(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY (1 - Y²)."""
    g, (Y,) = b.graph, node.outputs
    return through(b, node, g.mul(dY, g.sub(g.scalar(1), g.mul(Y, Y))))


def erf(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY 2 / sqrt(pi) exp(-X²)."""
    g, (X,) = b.graph, node.inputs
    bell = g.emit("Exp", g.neg(g.mul(X, X)))
    return through(b, node, g.mul(dY, g.mul(bell, g.scalar(2 / math.sqrt(math.pi)))))


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
        return through(b, node, g.mul(dY, slope))
    phi = g.mul(g.emit("Exp", g.mul(square, g.scalar(-0.5))), g.scalar(1 / math.sqrt(2 * math.pi)))
    cumulative = g.mul(half, g.add(one, g.emit("Erf", g.mul(X, g.scalar(math.sqrt(0.5))))))
    return through(b, node, g.mul(dY, g.add(cumulative, g.mul(X, phi))))


def elu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where X > 0, else alpha (exp(X) - 1): slope there Y + alpha."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    slope = g.add(Y, g.scalar(node.attributes.get("alpha", 1.0)))
    positive = g.emit("Greater", X, g.scalar(0))
    return through(b, node, g.mul(dY, g.emit("Where", positive, g.scalar(1), slope)))


def selu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = gamma X where X > 0, else gamma alpha (exp(X) - 1): slope there Y + gamma alpha."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    alpha = node.attributes.get("alpha", 1.6732632423543772)
    gamma = node.attributes.get("gamma", 1.0507009873554805)
    positive = g.emit("Greater", X, g.scalar(0))
    slope = g.emit("Where", positive, g.scalar(gamma), g.add(Y, g.scalar(alpha * gamma)))
    return through(b, node, g.mul(dY, slope))


def softplus(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = ln(1 + exp X): dX = dY sigmoid(X)."""
    return through(b, node, b.graph.mul(dY, b.graph.emit("Sigmoid", node.inputs[0])))


def softsign(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X / (1 + |X|): dX = dY / (1 + |X|)²."""
    g, (X,) = b.graph, node.inputs
    scale = g.add(g.emit("Abs", X), g.scalar(1))
    return through(b, node, g.div(dY, g.mul(scale, scale)))


def celu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where X > 0, else alpha (exp(X / alpha) - 1): slope there Y / alpha + 1."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    slope = g.add(g.mul(Y, g.scalar(1 / node.attributes.get("alpha", 1.0))), g.scalar(1))
    positive = g.emit("Greater", X, g.scalar(0))
    return through(b, node, g.mul(dY, g.emit("Where", positive, g.scalar(1), slope)))


def mish(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X t, t = tanh(softplus X): dX = dY (t + X (1 - t²) sigmoid(X))."""
    g, (X,) = b.graph, node.inputs
    t = g.emit("Tanh", g.emit("Softplus", X))
    bend = g.mul(g.sub(g.scalar(1), g.mul(t, t)), g.emit("Sigmoid", X))
    return through(b, node, g.mul(dY, g.add(t, g.mul(X, bend))))


def thresholded_relu(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X where X > alpha, else 0."""
    g, (X,) = b.graph, node.inputs
    above = g.emit("Greater", X, g.scalar(node.attributes.get("alpha", 1.0)))
    return through(b, node, g.mul(dY, g.cast(above)))


def shrink(b: Backward, node: Node, dY: str) -> Gradients:
    """Y is X moved towards 0 by the bias where |X| > lambd, else 0."""
    g, (X,) = b.graph, node.inputs
    outside = g.emit("Greater", g.emit("Abs", X), g.scalar(node.attributes.get("lambd", 0.5)))
    return through(b, node, g.mul(dY, g.cast(outside)))


ACTIVATION: dict[str, Rule] = {
    "Celu": celu,
    "Elu": elu,
    "Erf": erf,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "Mish": mish,
    "PRelu": prelu,
    "Relu": relu,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": sigmoid,
    "Softplus": softplus,
    "Softsign": softsign,
    "Tanh": tanh,
    "ThresholdedRelu": thresholded_relu,
}
