"""Gradient rule of Resize: interpolation is linear, one matrix per axis. Pure."""

import math
from collections.abc import Sequence
from fractions import Fraction

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node

__all__ = ["RESIZE"]

# What the matrix of one axis depends on, beside its sizes.
INTERPOLATION = (
    *("mode", "coordinate_transformation_mode", "nearest_mode"),
    *("cubic_coeff_a", "exclude_outside", "antialias"),
)


def resize(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = X R per axis, so dX = dY Rᵀ.

    R [n_in, n_out] is what the operator itself makes of the identity: whatever the mode, forward
    and backward cannot disagree, and onnxruntime computes it once, when it loads the graph. Where
    each element is merely repeated, the gradient is the sum over its copies.
    """
    _refuse(node)
    X, Y = node.inputs[0], node.outputs[0]
    scales, rank = _scales(b, node), b.rank(X)
    shape = list(b.shape(Y))
    blocks = {}
    dX = dY
    for axis, (n, m) in enumerate(zip(b.shape(X), b.shape(Y), strict=True)):
        scale = scales.get(axis)
        if n == m and (scale is None or scale == 1):
            continue
        if n is None or m is None:
            raise UsageError(
                f"node {node.name!r} (Resize) resizes the batch, axis {axis}; resize only the "
                "axes after it"
            )
        if axis >= 2 and rank <= 5 and _repeats(node, n, m, scale):
            blocks[axis] = m // n
            continue
        product = _multiplied(b.graph, dX, _matrix(b.graph, node, n, m, scale), shape, axis)
        shape[axis] = n
        dX = product if axis + 2 >= rank else b.graph.reshape(product, shape)
    if blocks:
        dX = _block_sums(b.graph, dX, rank, blocks)
    return [dX, *[None] * (len(node.inputs) - 1)]


def _refuse(node: Node) -> None:
    """Refuse what is no linear map per axis, or what is not needed by any exporter."""
    coordinates = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    if coordinates == "tf_crop_and_resize":
        raise UsageError(
            f"node {node.name!r} (Resize): the gradient of coordinate_transformation_mode "
            "'tf_crop_and_resize' is not supported; export with 'half_pixel', 'align_corners' or "
            "'asymmetric'"
        )
    if policy != "stretch" and node.input(3):
        raise UsageError(
            f"node {node.name!r} (Resize): the gradient of keep_aspect_ratio_policy {policy!r} is "
            "not supported; export with 'stretch' and the sizes that come out"
        )


def _scales(b: Backward, node: Node) -> dict[int, float]:
    """Return the given factor per axis; nothing where the sizes are given."""
    if not node.input(2) or node.input(3):
        return {}
    if not b.is_constant(node.input(2)):
        raise UsageError(
            f"node {node.name!r} (Resize): its factors {node.input(2)!r} are computed at run time; "
            "export the model with fixed factors or sizes"
        )
    rank = b.rank(node.inputs[0])
    axes = [axis % rank for axis in node.attributes.get("axes", range(rank))]
    factors = b.value(node.input(2), node).reshape(-1).tolist()
    return dict(zip(axes, factors, strict=True))


def _repeats(node: Node, n: int, m: int, scale: float | None) -> bool:
    """Return whether each of the n elements simply appears m / n times in a row."""
    if node.attributes.get("mode", "nearest") != "nearest" or m % n:
        return False
    if scale is not None and Fraction(scale) != m // n:
        return False
    coordinates = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
    if coordinates == "asymmetric":
        return bool(rounding == "floor")
    # The middle of a copy lies less than half an element away from its source.
    return bool(coordinates.startswith("half_pixel") and rounding.startswith("round"))


def _matrix(g: GraphBuilder, node: Node, n: int, m: int, scale: float | None) -> str:
    """Resize the identity along its second axis: [n, m]."""
    options = {name: node.attributes[name] for name in INTERPOLATION if name in node.attributes}
    identity = g.emit("EyeLike", g.emit("ConstantOfShape", g.ints([n, n])))
    if scale is not None:
        return g.emit("Resize", identity, "", g.constant([1.0, scale], "float32"), **options)
    return g.emit("Resize", identity, "", "", g.ints([n, m]), **options)


def _multiplied(
    g: GraphBuilder, value: str, matrix: str, shape: Sequence[int | None], axis: int
) -> str:
    """Multiply one axis of ``value``, of this shape, by the matrix [n, its size]."""
    if axis + 1 == len(shape):
        return g.emit("MatMul", value, g.transpose(matrix, [1, 0]))
    if axis + 2 == len(shape):
        return g.emit("MatMul", matrix, value)
    # The axes before this one count as samples; the sizes after it are fixed.
    rest = math.prod(d for d in shape[axis + 1 :] if d is not None)
    return g.emit("MatMul", matrix, g.reshape(value, [None, shape[axis], rest]))


def _block_sums(g: GraphBuilder, value: str, rank: int, blocks: dict[int, int]) -> str:
    """Sum over the copies of each element, by pooling: four times faster than a reduction."""
    kernel = [blocks.get(axis, 1) for axis in range(2, rank)]
    means = g.emit("AveragePool", value, kernel_shape=kernel, strides=kernel)
    return g.mul(means, g.scalar(math.prod(kernel)))


RESIZE: dict[str, Rule] = {"Resize": resize}
