"""Gradient rules of convolutions and pooling, in one, two or three dimensions. Pure."""

import itertools
import math

import numpy as np

from models.errors import UsageError
from models.graph.backward import Backward, Gradients, Rule
from models.graph.gradients.spatial.convolution import Correlation, Window, weight_gradient
from models.graph.graph_builder import GraphBuilder, Node, Shape

__all__ = ["SPATIAL"]

MOST_PARTS = 9  # places in a tiling window up to which taking it apart is cheaper


def _extent(b: Backward, node: Node, name: str) -> tuple[int, ...]:
    """Return the spatial sizes of a forward value [batch, channels, ...]."""
    sizes = tuple(d for d in b.shape(name)[2:] if d is not None)
    if len(sizes) != len(b.shape(name)) - 2:
        raise UsageError(f"node {node.name!r} ({node.op}): the size of its image is not fixed")
    return sizes


def _channels(shape: Shape) -> int:
    channels = shape[1]
    assert channels is not None  # checked by shape inference: the weight's shape fixes it
    return channels


def conv(b: Backward, node: Node, dY: str) -> Gradients:
    """Y = W * X + B.

    dX is the transposed convolution of dY with W; dW correlates X with dY
    (`models.graph.gradients.spatial.convolution`); dB sums dY.
    """
    g, (X, W) = b.graph, node.inputs[:2]
    B = node.input(2)
    size, out = _extent(b, node, X), _extent(b, node, node.outputs[0])
    kernel = tuple(d for d in b.shape(W)[2:] if d is not None)
    window = Window.of(node, size, kernel)
    group = node.attributes.get("group", 1)
    dX = dW = dB = None
    if b.wants(X):
        dX = _upstream(g, W, dY, b.shape(W), window, size, out, group)
    if b.wants(W):
        channels, filters = _channels(b.shape(X)), _channels(b.shape(node.outputs[0]))
        parts = Correlation(X, dY, window, channels, filters, size, out, group)
        dW = weight_gradient(g, parts)
    if B and b.wants(B):
        dB = g.reduce_sum(dY, [0, *range(2, 2 + len(size))])
    return [dX, dW, dB][: len(node.inputs)]


def _upstream(
    g: GraphBuilder,
    W: str,
    dY: str,
    shape: Shape,
    window: Window,
    size: tuple[int, ...],
    out: tuple[int, ...],
    group: int,
) -> str:
    """Return dX of a convolution in the form that onnxruntime computes fastest.

    That is a transposed convolution, but for 1x1 (a plain product) and depthwise kernels at stride
    1: these as a convolution with the kernel turned around.
    """
    axes = range(2, 2 + len(size))
    if window.touches_once and group == 1:
        return g.emit("Conv", dY, g.transpose(W, [1, 0, *axes]))
    pads = window.mirrored(size, out)
    if group == shape[0] and shape[1] == 1 and pads is not None:
        turned = g.slice(W, axes, [-1] * len(size), [-(2**31)] * len(size), [-1] * len(size))
        return g.emit("Conv", dY, turned, pads=pads, dilations=list(window.dilations), group=group)
    return g.emit("ConvTranspose", dY, W, group=group, **window.transposed(size, out))


def conv_transpose(b: Backward, node: Node, dY: str) -> Gradients:
    """The convolution's rule read backward: dX convolves dY with W, dW correlates dY with X."""
    g, (X, W) = b.graph, node.inputs[:2]
    B = node.input(2)
    size, out = _extent(b, node, X), _extent(b, node, node.outputs[0])
    kernel = tuple(d for d in b.shape(W)[2:] if d is not None)
    window = Window.of_transposed(node, size, out, kernel)
    group = node.attributes.get("group", 1)
    dX = dW = dB = None
    if b.wants(X):
        dX = g.emit(
            "Conv",
            dY,
            W,
            strides=list(window.strides),
            dilations=list(window.dilations),
            pads=list(window.pads),
            group=group,
        )
    if b.wants(W):
        channels, filters = _channels(b.shape(node.outputs[0])), _channels(b.shape(X))
        parts = Correlation(dY, X, window, channels, filters, out, size, group)
        dW = weight_gradient(g, parts)
    if B and b.wants(B):
        dB = g.reduce_sum(dY, [0, *range(2, 2 + len(size))])
    return [dX, dW, dB][: len(node.inputs)]


def max_pool(b: Backward, node: Node, dY: str) -> Gradients:
    """Send each gradient to the first element that won.

    Windows that tile the image are taken apart: onnxruntime finds a maximum's index seven times
    slower than the maximum. Otherwise the forward node is asked for the indices.
    """
    g, X, Y = b.graph, node.inputs[0], node.outputs[0]
    kernel = tuple(node.attributes["kernel_shape"])
    size, out = _extent(b, node, X), _extent(b, node, Y)
    window = Window.of(node, size, kernel)
    if node.attributes.get("storage_order", 0):
        raise UsageError(f"node {node.name!r} (MaxPool): storage_order 1 is not supported")
    tiles = window.strides == kernel and not any(window.pads) and max(window.dilations) == 1
    if tiles and math.prod(kernel) <= MOST_PARTS and _inside(out, kernel, size):
        return [_tiled_max(g, X, Y, dY, kernel, size, out)]
    indices = b.extra_output(node, 1)  # into the flattened X, batch and channels included
    zeros = g.emit("Expand", g.scalar(0), g.reshape(g.emit("Size", X), [1]))
    flat = g.emit(
        "ScatterElements",
        zeros,
        g.reshape(indices, [None]),
        g.reshape(dY, [None]),
        axis=0,
        reduction="add",
    )
    return [b.reshape_like(flat, X)]


def _inside(out: tuple[int, ...], kernel: tuple[int, ...], size: tuple[int, ...]) -> bool:
    return all(o * k <= n for o, k, n in zip(out, kernel, size, strict=True))


def _tiled_max(
    g: GraphBuilder,
    X: str,
    Y: str,
    dY: str,
    kernel: tuple[int, ...],
    size: tuple[int, ...],
    out: tuple[int, ...],
) -> str:
    """Offer the gradient to each place in the window in turn; the first that equals Y takes it."""
    axes = range(2, 2 + len(size))
    ends = [o * k for o, k in zip(out, kernel, strict=True)]
    places = list(itertools.product(*map(range, kernel)))
    taken, left = [], dY
    for place in places[:-1]:
        part = g.slice(X, axes, place, ends, kernel)
        share = g.mul(left, g.cast(g.emit("Equal", part, Y)))
        taken.append(share)
        left = g.sub(left, share)
    image = _interleaved(g, [*taken, left], kernel, out)
    rest = [n - end for n, end in zip(size, ends, strict=True)]
    return g.pad(image, [0] * (2 + len(size)), [0, 0, *rest])


def _interleaved(
    g: GraphBuilder, parts: list[str], kernel: tuple[int, ...], out: tuple[int, ...]
) -> str:
    """Put images of every kernel-th element back together, last axis first; batch unknown."""
    sizes = list(out)
    for axis in range(len(kernel) - 1, -1, -1):
        k = kernel[axis]
        sizes[axis] *= k
        at = g.ints([axis + 3])
        parts = [
            g.emit(
                "Reshape",
                g.concat([g.emit("Unsqueeze", part, at) for part in parts[i : i + k]], axis + 3),
                g.ints([0, 0, *sizes]),
            )
            for i in range(0, len(parts), k)
        ]
    return parts[0]


def average_pool(b: Backward, node: Node, dY: str) -> Gradients:
    """Spread each gradient evenly over its window."""
    g, X, Y = b.graph, node.inputs[0], node.outputs[0]
    kernel = tuple(node.attributes["kernel_shape"])
    size, out = _extent(b, node, X), _extent(b, node, Y)
    window = Window.of(node, size, kernel)
    counts = _counts(window, size, out, padded=bool(node.attributes.get("count_include_pad", 0)))
    share = g.mul(dY, g.constant(1 / counts, np.float32))
    channels = _channels(b.shape(X))
    if window.strides == kernel and not any(window.pads) and _product(out, kernel) == size:
        # Windows that tile the image: repeat each element, no arithmetic.
        apart = [n for d in out for n in (d, 1)]
        repeat = [n for k in kernel for n in (1, k)]
        tiles = g.emit(
            "Expand", g.reshape(share, [None, channels, *apart]), g.ints([1, 1, *repeat])
        )
        return [g.reshape(tiles, [None, channels, *size])]
    # Every channel alike, so that channels count as samples: the kernel is all ones.
    planes = g.emit(
        "ConvTranspose",
        g.reshape(share, [None, 1, *out]),
        g.constant(np.ones((1, 1, *kernel), np.float32)),
        **window.transposed(size, out),
    )
    return [g.reshape(planes, [None, channels, *size])]


def _product(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(left, right, strict=True))


def _counts(
    window: Window, size: tuple[int, ...], out: tuple[int, ...], *, padded: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return how many elements each window averages, shape ``out``."""
    total = np.ones(())
    for axis, (n, count) in enumerate(zip(size, out, strict=True)):
        low = -window.pads[axis] if padded else 0
        high = n + window.pads[len(size) + axis] if padded else n
        starts = np.arange(count) * window.strides[axis] - window.pads[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        total = np.multiply.outer(total, ((taps >= low) & (taps < high)).sum(1))
    return total


def global_average_pool(b: Backward, node: Node, dY: str) -> Gradients:
    size = _extent(b, node, node.inputs[0])
    share = b.graph.mul(dY, b.graph.scalar(1 / math.prod(size)))
    return [b.graph.emit("Expand", share, b.graph.ints([1, 1, *size]))]


def global_max_pool(b: Backward, node: Node, dY: str) -> Gradients:
    """Shared equally by the elements that attain the maximum."""
    g, (X,), (Y,) = b.graph, node.inputs, node.outputs
    mask = g.cast(g.emit("Equal", X, Y))
    count = g.reduce_sum(mask, range(2, b.rank(X)), keepdims=True)
    return [g.mul(mask, g.div(dY, count))]


def lrn(b: Backward, node: Node, dY: str) -> Gradients:
    """Y_c = X_c S_c^-beta, S_c = bias + alpha/size sum over the size channels around c of X².

    dX = dY S^-beta - 2 alpha beta / size X sum over the channels around c of dY X S^(-beta-1);
    the window of channels is a product with a banded matrix of ones.
    """
    g, (X,) = b.graph, node.inputs
    channels = _channels(b.shape(X))
    size = _extent(b, node, X)
    width = node.attributes["size"]
    alpha, beta = node.attributes.get("alpha", 1e-4), node.attributes.get("beta", 0.75)
    low, high = (width - 1) // 2, -(-(width - 1) // 2)
    band = np.zeros((channels, channels), np.float32)
    for c, other in itertools.product(range(channels), repeat=2):
        band[c, other] = -low <= other - c <= high
    x, dy = (g.reshape(value, [None, channels, math.prod(size)]) for value in (X, dY))
    around = g.emit("MatMul", g.constant(band), g.mul(x, x))
    scale = g.add(
        g.mul(around, g.scalar(alpha / width)), g.scalar(node.attributes.get("bias", 1.0))
    )
    shrunk = g.mul(dy, g.emit("Pow", scale, g.scalar(-beta)))
    across = g.emit("MatMul", g.constant(band.T.copy()), g.div(g.mul(shrunk, x), scale))
    dx = g.sub(shrunk, g.mul(g.mul(x, across), g.scalar(2 * alpha * beta / width)))
    return [b.reshape_like(dx, X)]


SPATIAL: dict[str, Rule] = {
    "AveragePool": average_pool,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "LRN": lrn,
    "MaxPool": max_pool,
}
