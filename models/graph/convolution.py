"""The geometry of sliding windows, and the gradient of a convolution's weights. Pure."""

import itertools
import math
from typing import Any, NamedTuple

from models.graph.graph_builder import GraphBuilder, Node

FEW_CHANNELS = 16  # up to here one product over all taps at once beats one product per tap


class Window(NamedTuple):
    """How a kernel slides over an image; one number per spatial axis, pads as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # all begins, then all ends

    @classmethod
    def of(cls, node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> "Window":
        """Read the window of a Conv or a pooling node over an image of ``size``."""
        ones = (1,) * len(size)
        strides = tuple(node.attributes.get("strides", ones))
        dilations = tuple(node.attributes.get("dilations", ones))
        automatic = node.attributes.get("auto_pad", "NOTSET")
        pads = tuple(node.attributes.get("pads", (0,) * 2 * len(size)))
        if automatic == "VALID":
            pads = (0,) * 2 * len(size)
        elif automatic.startswith("SAME"):
            totals = [
                max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                for n, s, k, d in zip(size, strides, kernel, dilations, strict=True)
            ]
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


def weight_gradient(
    g: GraphBuilder,
    X: str,
    dY: str,
    window: Window,
    channels: int,
    filters: int,
    out: tuple[int, ...],
    group: int,
) -> str:
    """Return dW, shape [filters, channels / group, *kernel].

    ``X`` is [batch, channels, ...], ``dY`` is [batch, filters, *out]. Each tap of the kernel saw
    a strided slice of the padded X; its gradient is that slice times dY, summed over batch and
    places. Products run per sample, so that no batch-sized transpose is made.
    """
    axes = len(out)
    places = math.prod(out)
    begins, ends = window.pads[:axes], window.pads[axes:]
    padded = g.pad(X, [0, 0, *begins], [0, 0, *ends])
    taps = []
    for place in itertools.product(*map(range, window.kernel)):
        starts = [t * d for t, d in zip(place, window.dilations, strict=True)]
        stops = [
            start + (n - 1) * s + 1 for start, n, s in zip(starts, out, window.strides, strict=True)
        ]
        if math.prod(window.kernel) == 1 and all(s == 1 for s in window.strides):
            taps.append(padded)
        else:
            taps.append(g.slice(padded, range(2, 2 + axes), starts, stops, window.strides))
    if group == 1 and channels <= FEW_CHANNELS:
        columns = g.concat([g.reshape(tap, [None, channels, 1, places]) for tap in taps], 2)
        columns = g.reshape(columns, [None, channels * len(taps), places])
        rows = g.transpose(g.reshape(dY, [None, filters, places]), [0, 2, 1])
        dW = g.transpose(g.reduce_sum(g.emit("MatMul", columns, rows), [0]), [1, 0])
        return g.reshape(dW, [filters, channels, *window.kernel])
    rows = g.reshape(dY, [None, group, filters // group, places])
    products = []
    for tap in taps:
        columns = g.transpose(
            g.reshape(tap, [None, group, channels // group, places]), [0, 1, 3, 2]
        )
        products.append(g.reduce_sum(g.emit("MatMul", rows, columns), [0]))
    shape = [filters, channels // group]
    stacked = g.concat([g.reshape(product, [*shape, 1]) for product in products], 2)
    return g.reshape(stacked, [*shape, *window.kernel])
