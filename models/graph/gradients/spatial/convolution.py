"""The geometry of sliding windows, and the gradient of a convolution's weights. Pure."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from models.errors import UsageError
from models.graph.graph_builder import GraphBuilder, Node

__all__ = ["Correlation", "Window", "weight_gradient"]

WIDEST_BAND = 64  # columns; a wider image wastes too much of a product on the band's surroundings
FEW_CHANNELS = 16  # up to here one product over all taps at once beats one product per tap


class Window(NamedTuple):
    """How a kernel slides over an image; one number per spatial axis, pads as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # all begins, then all ends

    @classmethod
    def of(cls, node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> "Window":
        """Read the window of a Conv or a pooling node over an image of ``size``.

        Raises:
            UsageError: a pooling node that runtimes do not agree on.
        """
        ones = (1,) * len(size)
        strides = tuple(node.attributes.get("strides", ones))
        dilations = tuple(node.attributes.get("dilations", ones))
        automatic = node.attributes.get("auto_pad", "NOTSET")
        pads = tuple(node.attributes.get("pads", (0,) * 2 * len(size)))
        if automatic == "VALID":
            pads = (0,) * 2 * len(size)
        elif automatic.startswith("SAME"):
            totals = [
                (-(-n // s) - 1) * s + (k - 1) * d + 1 - n
                for n, s, k, d in zip(size, strides, kernel, dilations, strict=True)
            ]
            if min(totals) < -1 and node.op != "Conv":  # where onnxruntime crops, on one side
                raise UsageError(
                    f"node {node.name!r} ({node.op}) has auto_pad {automatic} and strides wider "
                    "than its window, of which runtimes do not say the same; export it with pads"
                )
            totals = [max(total, 0) for total in totals]
            pads = _halved(totals, more_first=automatic == "SAME_LOWER")
        return cls(kernel, strides, dilations, pads)

    @classmethod
    def of_transposed(
        cls, node: Node, size: tuple[int, ...], out: tuple[int, ...], kernel: tuple[int, ...]
    ) -> "Window":
        """Read the window of a ConvTranspose node that makes ``out`` from ``size``."""
        ones = (1,) * len(size)
        strides = tuple(node.attributes.get("strides", ones))
        dilations = tuple(node.attributes.get("dilations", ones))
        automatic = node.attributes.get("auto_pad", "NOTSET")
        pads = tuple(node.attributes.get("pads", (0,) * 2 * len(size)))
        if automatic != "NOTSET" or "output_shape" in node.attributes:
            extra = node.attributes.get("output_padding", (0,) * len(size))
            totals = [
                max(s * (n - 1) + e + (k - 1) * d + 1 - o, 0)
                for n, s, e, k, d, o in zip(
                    size, strides, extra, kernel, dilations, out, strict=True
                )
            ]
            pads = _halved(totals, more_first=automatic != "SAME_UPPER")
        return cls(kernel, strides, dilations, pads)

    @property
    def touches_once(self) -> bool:
        """Return whether the kernel is a single element that meets every place (1x1)."""
        return (
            math.prod(self.kernel) == 1 and all(s == 1 for s in self.strides) and not any(self.pads)
        )

    def mirrored(self, size: tuple[int, ...], out: tuple[int, ...]) -> list[int] | None:
        """Return the pads of a stride-1 convolution from ``out`` back to ``size``; None if none."""
        reach = [(k - 1) * d for k, d in zip(self.kernel, self.dilations, strict=True)]
        begins = [r - p for r, p in zip(reach, self.pads, strict=False)]
        ends = [n + r - o - b for n, r, o, b in zip(size, reach, out, begins, strict=True)]
        fits = all(s == 1 for s in self.strides) and min(*begins, *ends) >= 0
        return [*begins, *ends] if fits else None

    def transposed(self, size: tuple[int, ...], out: tuple[int, ...]) -> dict[str, Any]:
        """Return the attributes of a ConvTranspose that makes ``size`` from ``out``.

        Elements at the end that no window saw become output padding; windows that reach beyond
        the padded image (ceil_mode) are cut.
        """
        axes = len(size)
        pads, unseen = list(self.pads), []
        for axis in range(axes):
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            full = (out[axis] - 1) * self.strides[axis] + reach
            rest = size[axis] + pads[axis] + pads[axes + axis] - full
            unseen.append(max(rest, 0))
            pads[axes + axis] += max(-rest, 0)
        return {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": pads,
            "output_padding": unseen,
        }


def _halved(totals: list[int], *, more_first: bool) -> tuple[int, ...]:
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*large, *small) if more_first else (*small, *large)


class Correlation(NamedTuple):
    """What the gradient of a convolution's weights is made of."""

    x: str  # [batch, channels, *size]
    dy: str  # [batch, filters, *out]
    window: Window
    channels: int
    filters: int
    size: tuple[int, ...]
    out: tuple[int, ...]
    group: int


def weight_gradient(g: GraphBuilder, c: Correlation) -> str:
    """Return dW, shape [filters, channels / group, *kernel].

    Each tap of the kernel saw a strided part of the padded X; its gradient is that part times dY,
    summed over batch and places. How to sum is a question of speed; times are of onnxruntime 1.31
    with one thread at batch 32, in docs/training-graphs.md.
    """
    channels, filters, group = c.channels, c.filters, c.group
    places, taps = math.prod(c.out), math.prod(c.window.kernel)
    if group == channels == filters and len(c.out) <= 2 and c.size[-1] <= WIDEST_BAND:
        return _banded_gradient(g, c)
    if group == 1 and channels <= FEW_CHANNELS:
        return _columns_gradient(g, c)
    if group == 1 and (taps > 1 or channels * filters > 2 * places * (channels + filters)):
        return _gathered_gradient(g, c)
    rows = g.reshape(c.dy, [None, group, filters // group, places])
    products = []
    for tap in _taps(g, c.x, c.window, c.out):
        columns = g.reshape(tap, [None, group, channels // group, places])
        product = g.emit("MatMul", rows, g.transpose(columns, [0, 1, 3, 2]))
        products.append(g.reduce_sum(product, [0]))
    return _stacked(g, products, [filters, channels // group], c.window)


def _columns_gradient(g: GraphBuilder, c: Correlation) -> str:
    """Return dW by one product per sample for all taps together: few channels make thin ones."""
    places = math.prod(c.out)
    seen = _taps(g, c.x, c.window, c.out)
    taps = [g.reshape(tap, [None, c.channels, 1, places]) for tap in seen]
    columns = g.reshape(g.concat(taps, 2), [None, c.channels * len(taps), places])
    rows = g.transpose(g.reshape(c.dy, [None, c.filters, places]), [0, 2, 1])
    dW = g.transpose(g.reduce_sum(g.emit("MatMul", columns, rows), [0]), [1, 0])
    return g.reshape(dW, [c.filters, c.channels, *c.window.kernel])


def _taps(g: GraphBuilder, X: str, window: Window, out: tuple[int, ...]) -> list[str]:
    """Return, per tap of the kernel, the part of the padded X that it sees: [..., ..., *out]."""
    axes = len(out)
    padded = g.pad(X, [0, 0, *window.pads[:axes]], [0, 0, *window.pads[axes:]])
    if window.touches_once:
        return [padded]
    taps = []
    for place in itertools.product(*map(range, window.kernel)):
        starts = [t * d for t, d in zip(place, window.dilations, strict=True)]
        stops = [
            start + (n - 1) * s + 1 for start, n, s in zip(starts, out, window.strides, strict=True)
        ]
        taps.append(g.slice(padded, range(2, 2 + axes), starts, stops, window.strides))
    return taps


def _gathered_gradient(g: GraphBuilder, c: Correlation) -> str:
    """Return dW by one product per tap over batch and places together.

    Moving the batch inside pays where several taps share it, and where images are so small and
    channels so many that a product [filters, channels] per sample is the larger thing to move.
    """
    order = [1, 0, *range(2, 2 + len(c.out))]
    rows = g.reshape(g.transpose(c.dy, order), [c.filters, None])
    products = [
        g.emit("Gemm", rows, g.reshape(tap, [c.channels, None]), transB=1)
        for tap in _taps(g, g.transpose(c.x, order), c.window, c.out)
    ]
    return _stacked(g, products, [c.filters, c.channels], c.window)


def _stacked(g: GraphBuilder, products: list[str], shape: list[int], window: Window) -> str:
    """Put one matrix per tap together to the shape of the kernel."""
    columns = [g.reshape(product, [*shape, 1]) for product in products]
    return g.reshape(g.concat(columns, 2), [*shape, *window.kernel])


def _banded_gradient(g: GraphBuilder, c: Correlation) -> str:
    """Return dW [channels, 1, *kernel] of a depthwise convolution with one or two spatial axes.

    Per channel and row of the kernel, rows of X times rows of dY, summed over batch and rows, is
    one product [columns in, columns out]; the kernel's row is the sums along its diagonals.
    Elementwise products per tap take twice as long, products per sample and tap four times.
    """
    window, channels, out = c.window, c.channels, c.out
    columns_in, columns_out = c.size[-1], out[-1]
    k, s, d, before = (
        window.kernel[-1],
        window.strides[-1],
        window.dilations[-1],
        window.pads[len(out) - 1],
    )
    # The column of X that tap j of output column o saw; beyond the edges it equals no column.
    seen = np.arange(columns_out)[:, None] * s + np.arange(k) * d - before
    diagonals = g.cast(
        g.emit(
            "Equal",
            g.constant(np.arange(columns_in).reshape(-1, 1, 1)),
            g.constant(seen[None]),
        )
    )
    diagonals = g.reshape(diagonals, [columns_in * columns_out, k])
    order = [1, 0, *range(2, 2 + len(out))]
    images, upstream = g.transpose(c.x, order), g.transpose(c.dy, order)
    rows_out = g.reshape(upstream, [channels, None, columns_out])
    rows = [images]
    if len(out) == 2:
        padded = g.pad(images, [0, 0, window.pads[0], 0], [0, 0, window.pads[2], 0])
        starts = [i * window.dilations[0] for i in range(window.kernel[0])]
        reach = (out[0] - 1) * window.strides[0] + 1
        rows = [
            g.slice(padded, [2], [start], [start + reach], window.strides[:1]) for start in starts
        ]
    products = [
        g.emit(
            "MatMul", g.transpose(g.reshape(row, [channels, None, columns_in]), [0, 2, 1]), rows_out
        )
        for row in rows
    ]
    flat = [g.reshape(product, [channels, 1, columns_in * columns_out]) for product in products]
    return g.reshape(g.emit("MatMul", g.concat(flat, 1), diagonals), [channels, 1, *window.kernel])
