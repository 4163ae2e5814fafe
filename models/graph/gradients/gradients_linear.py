"""Gradient rules of products, soft maxima and normalizations. Pure."""

from models.graph.backward import Backward, Gradients, Rule
from models.graph.graph_builder import GraphBuilder, Node, Shape

__all__ = ["LINEAR"]


def _swap_last(g: GraphBuilder, value: str, rank: int) -> str:
    """Transpose the last two axes; stock onnxruntime folds this into the product that follows."""
    return g.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


def gemm(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = alpha op(A) op(B) + beta C, op transposing or not."""
    g, (A, B) = b.graph, node.inputs[:2]
    C = node.input(2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    turn_a, turn_b = node.attributes.get("transA", 0), node.attributes.get("transB", 0)
    dA = dB = dC = None
    if b.wants(A):
        if turn_a:
            dA = g.emit("Gemm", B, dY, transA=turn_b, transB=1, alpha=alpha)
        else:
            dA = g.emit("Gemm", dY, B, transB=1 - turn_b, alpha=alpha)
    if b.wants(B):
        if turn_b:
            dB = g.emit("Gemm", dY, A, transA=1, transB=turn_a, alpha=alpha)
        else:
            dB = g.emit("Gemm", A, dY, transA=1 - turn_a, alpha=alpha)
    if C and b.wants(C):
        scaled = dY if beta == 1.0 else g.mul(dY, g.scalar(beta))
        dC = b.unbroadcast(scaled, b.shape(node.outputs[0]), C)
    return [dA, dB, dC][: len(node.inputs)]


def matmul(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = A B as numpy's matmul: batched, broadcast, and with vectors."""
    g, (A, B) = b.graph, node.inputs
    a_shape, b_shape, y_shape = b.shape(A), b.shape(B), b.shape(node.outputs[0])
    # A vector is a matrix of one row (A) or one column (B) whose axis the output lacks.
    left, right = A, B
    if len(a_shape) == 1:
        a_shape, y_shape = (1, *a_shape), (*y_shape[: len(b_shape) - 2], 1, *y_shape[-1:])
        if len(b_shape) == 1:
            y_shape = (1,)
        left = g.reshape(A, a_shape)
    if len(b_shape) == 1:
        b_shape, y_shape = (*b_shape, 1), (*y_shape, 1)
        right = g.reshape(B, b_shape)
    dZ = dY if y_shape == b.shape(node.outputs[0]) else g.reshape(dY, y_shape)
    dA = dB = None
    if b.wants(A):
        product = g.emit("MatMul", dZ, _swap_last(g, right, len(b_shape)))
        dA = _fold(b, product, (*y_shape[:-1], a_shape[-1]), a_shape, A)
    if b.wants(B):
        if len(b_shape) == 2 and len(a_shape) > 2:
            rows = g.reshape(left, (None, a_shape[-1]))
            dB = g.emit("Gemm", rows, g.reshape(dZ, (None, y_shape[-1])), transA=1)
            dB = dB if b.rank(B) == 2 else b.reshape_like(dB, B)
        else:
            product = g.emit("MatMul", _swap_last(g, left, len(a_shape)), dZ)
            dB = _fold(b, product, (*y_shape[:-2], *b_shape[-2:]), b_shape, B)
    return [dA, dB]


def _fold(b: Backward, product: str, product_shape: Shape, matrix_shape: Shape, name: str) -> str:
    """Sum a product over the axes along which ``name``, as a matrix, was broadcast."""
    lead = len(product_shape) - len(matrix_shape)
    product = b.graph.reduce_sum(product, list(range(lead)))
    stretched = [
        axis
        for axis, d in enumerate(matrix_shape[:-2])
        if d == 1 and product_shape[lead + axis] != 1
    ]
    product = b.graph.reduce_sum(product, stretched, keepdims=True)
    return product if b.rank(name) == len(matrix_shape) else b.reshape_like(product, name)


def softmax(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = Y (dY - sum(dY Y)).

    Where the forward graph replaces the NaN of rows that are masked as a whole, as torch's
    attention does, these have gradient 0.
    """
    g, (Y,) = b.graph, node.outputs
    if (masked := b.asked_for_nan(Y)) is not None:
        Y = g.emit("Where", masked, g.scalar(0), Y)
    axis = node.attributes.get("axis", -1)
    weighted = g.mul(dY, Y)
    return [g.sub(weighted, g.mul(Y, g.reduce_sum(weighted, [axis], keepdims=True)))]


def log_softmax(b: Backward, node: Node, dY: str) -> Gradients:
    """dX = dY - exp(Y) sum(dY)."""
    g, (Y,) = b.graph, node.outputs
    axis = node.attributes.get("axis", -1)
    return [g.sub(dY, g.mul(g.emit("Exp", Y), g.reduce_sum(dY, [axis], keepdims=True)))]


def batch_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = (X - mean) s + bias, s = scale / sqrt(variance + eps); the statistics are frozen.

    dscale = (sum(dY X) - mean sum(dY)) / sqrt(variance + eps), so that no normalized copy of X
    is ever made.
    """
    g = b.graph
    X, scale, bias, mean, variance = node.inputs
    rank = b.rank(X)
    others = [0, *range(2, rank)]
    deviation = g.emit("Sqrt", g.add(variance, g.scalar(node.attributes.get("epsilon", 1e-5))))
    dX = dscale = dbias = None
    if b.wants(X):
        factor = g.reshape(g.div(scale, deviation), [-1, *[1] * (rank - 2)])
        dX = g.mul(dY, factor)
    if b.wants(bias) or b.wants(scale):
        dbias = g.reduce_sum(dY, others)
    if b.wants(scale) and dbias is not None:
        products = g.reduce_sum(g.mul(dY, X), others)
        dscale = g.div(g.sub(products, g.mul(mean, dbias)), deviation)
    return [dX, dscale, dbias if b.wants(bias) else None, None, None]


def layer_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """Ba, Kiros, Hinton, arXiv:1607.06450; mean and 1/deviation come from the forward node.

    With n = (X - mean) / deviation and dn = dY scale:
    dX = (dn - mean(dn) - n mean(dn n)) / deviation.
    """
    g = b.graph
    X, scale = node.inputs[:2]
    bias = node.input(2)
    rank = b.rank(X)
    axes = list(range(node.attributes.get("axis", -1) % rank, rank))
    center, inverse = b.extra_output(node, 1), b.extra_output(node, 2)
    normal = g.mul(g.sub(X, center), inverse)
    dX = dscale = dbias = None
    if b.wants(X):
        dn = g.mul(dY, scale)
        means = [
            g.emit("ReduceMean", value, g.ints(axes), keepdims=1)
            for value in (dn, g.mul(dn, normal))
        ]
        dX = g.mul(inverse, g.sub(g.sub(dn, means[0]), g.mul(normal, means[1])))
    if b.wants(scale):
        dscale = b.unbroadcast(g.mul(dY, normal), b.shape(X), scale)
    if bias and b.wants(bias):
        dbias = b.unbroadcast(dY, b.shape(X), bias)
    return [dX, dscale, dbias][: len(node.inputs)]


def instance_normalization(b: Backward, node: Node, dY: str) -> Gradients:
    """As layer normalization, per sample and channel; scale and bias per channel."""
    g = b.graph
    X, scale, bias = node.inputs
    rank = b.rank(X)
    inner = g.ints(range(2, rank))
    center = g.sub(X, g.emit("ReduceMean", X, inner, keepdims=1))
    variance = g.emit("ReduceMean", g.mul(center, center), inner, keepdims=1)
    epsilon = g.scalar(node.attributes.get("epsilon", 1e-5))
    inverse = g.emit("Reciprocal", g.emit("Sqrt", g.add(variance, epsilon)))
    normal = g.mul(center, inverse)
    others = [0, *range(2, rank)]
    dX = None
    if b.wants(X):
        dn = g.mul(dY, g.reshape(scale, [-1, *[1] * (rank - 2)]))
        means = [
            g.emit("ReduceMean", value, inner, keepdims=1) for value in (dn, g.mul(dn, normal))
        ]
        dX = g.mul(inverse, g.sub(g.sub(dn, means[0]), g.mul(normal, means[1])))
    dscale = g.reduce_sum(g.mul(dY, normal), others) if b.wants(scale) else None
    dbias = g.reduce_sum(dY, others) if b.wants(bias) else None
    return [dX, dscale, dbias]


LINEAR: dict[str, Rule] = {
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": log_softmax,
    "MatMul": matmul,
    "Softmax": softmax,
}
