"""Losses and their gradients, each sum(w l) / sum(w) over the samples of a batch. Pure.

A weight of 0 is padding. l of a sample is the mean over its positions or elements, as torch has
it with ``reduction="mean"`` on one sample. A batch whose weights are all 0 has loss and gradient 0.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import onnx

from models.errors import UsageError
from models.graph.graph_builder import GraphBuilder, Shape

__all__ = [
    "LOSSES",
    "Loss",
    "LossName",
    "Target",
    "binary_cross_entropy",
    "cross_entropy",
    "mean_squared_error",
]

LossName = Literal["cross_entropy", "mse", "bce"]


class Target(NamedTuple):
    """What is compared: values by name, shapes with the batch first."""

    output: str
    output_shape: Shape
    y: str
    y_shape: Shape
    weight: str  # float32 [batch]
    y_is_float: bool = False


class Loss(NamedTuple):
    value: str  # scalar
    gradient: str  # of the output, in its shape


def _normalized(g: GraphBuilder, weight: str, positions: int) -> str:
    """Return w / sum(w) / positions, shape [batch, 1]."""
    total = g.emit("Max", g.sum_all(weight), g.scalar(1e-12))
    share = g.div(weight, g.mul(total, g.scalar(positions)))
    return g.emit("Unsqueeze", share, g.ints([1]))


def cross_entropy(g: GraphBuilder, target: Target) -> Loss:
    """Softmax cross-entropy of logits [batch, (T,) classes] and integer labels [batch (, T)].

    d = (softmax - onehot) w / sum(w). A y of floats in the shape of the logits holds probabilities
    instead of onehot vectors.

    Raises:
        UsageError: the shapes do not fit together.
    """
    shape = _without_ones(target.output_shape, len(target.y_shape))
    are_probabilities = target.y_is_float and shape == target.y_shape
    if not are_probabilities:
        shape = _without_ones(target.output_shape, len(target.y_shape) + 1)
    classes = shape[-1]
    if classes is None or not (are_probabilities or shape[:-1] == target.y_shape):
        raise UsageError(
            f"cross-entropy wants an output of shape [{_text(target.y_shape)}, classes] for labels "
            f"of shape [{_text(target.y_shape)}], but output {target.output!r} is "
            f"[{_text(target.output_shape)}]"
        )
    positions = math.prod(d for d in shape[1:-1] if d is not None)
    logits = target.output
    if len(target.output_shape) != 2:
        logits = g.reshape(logits, [None, classes])
    weight = _normalized(g, target.weight, positions)
    if positions > 1:
        weight = g.reshape(g.emit("Expand", weight, g.ints([1, positions])), [None, 1])
    logs = g.emit("LogSoftmax", logits, axis=1)
    if are_probabilities:
        hot = g.reshape(g.cast(target.y), [None, classes])
    else:
        labels = g.reshape(g.cast(target.y, onnx.TensorProto.INT64), [None])
        hot = g.emit(
            "OneHot", labels, g.constant(classes, "int64"), g.constant([0, 1], "float32"), axis=-1
        )
    weighted = g.mul(hot, weight)
    # A class that a net masks has -inf here, and is no label: nothing, not -inf times 0.
    counted = g.emit("Where", g.emit("Equal", weighted, g.scalar(0)), g.scalar(0), logs)
    value = g.neg(g.sum_all(g.mul(counted, weighted)))
    gradient = g.mul(g.sub(g.emit("Exp", logs), hot), weight)
    if len(target.output_shape) != 2:
        gradient = g.reshape(gradient, target.output_shape)
    return Loss(value, gradient)


def _without_ones(shape: Shape, dimensions: int) -> Shape:
    """Return [batch, classes] of [batch, classes, 1, 1]: of a net that ends in a global pool."""
    while len(shape) > dimensions and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _elements(g: GraphBuilder, target: Target) -> tuple[str, str, str]:
    """Return output and y as [batch, elements], and the weight of each element [batch, 1]."""
    sizes = [
        math.prod(d for d in shape[1:] if d is not None)
        for shape in (target.output_shape, target.y_shape)
    ]
    if sizes[0] != sizes[1] or None in target.output_shape[1:]:
        raise UsageError(
            f"y has shape [{_text(target.y_shape)}], but output {target.output!r} is "
            f"[{_text(target.output_shape)}]: they must have as many elements; save y in that "
            "shape, or choose another output with --output"
        )
    output = target.output
    if len(target.output_shape) != 2:
        output = g.reshape(output, [None, sizes[0]])
    y = g.reshape(g.cast(target.y), [None, sizes[0]])
    return output, y, _normalized(g, target.weight, sizes[0])


def mean_squared_error(g: GraphBuilder, target: Target) -> Loss:
    """l = mean (p - y)², d = 2 (p - y) w / sum(w) / elements."""
    output, y, weight = _elements(g, target)
    error = g.sub(output, y)
    weighted = g.mul(error, weight)
    value = g.sum_all(g.mul(weighted, error))
    return Loss(value, _like_output(g, g.mul(weighted, g.scalar(2)), target))


def binary_cross_entropy(g: GraphBuilder, target: Target) -> Loss:
    """On logits z: l = mean softplus(z) - z y, d = (sigmoid(z) - y) w / sum(w) / elements."""
    output, y, weight = _elements(g, target)
    losses = g.sub(g.emit("Softplus", output), g.mul(output, y))
    value = g.sum_all(g.mul(losses, weight))
    gradient = g.mul(g.sub(g.emit("Sigmoid", output), y), weight)
    return Loss(value, _like_output(g, gradient, target))


def _like_output(g: GraphBuilder, gradient: str, target: Target) -> str:
    if len(target.output_shape) == 2:
        return gradient
    return g.reshape(gradient, target.output_shape)


def _text(shape: Shape) -> str:
    return ", ".join("batch" if d is None else str(d) for d in shape)


LOSSES: dict[LossName, Callable[[GraphBuilder, Target], Loss]] = {
    "bce": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "mse": mean_squared_error,
}
