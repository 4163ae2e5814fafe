"""Cases of `models.graph.gradients.spatial.gradients_spatial`: sliding windows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gradient_case import BATCH, IMAGE, Case, apart, floats, unary
from torch.nn import functional as nnf


def pool_case(label: str, op: str, oracle: Callable[..., Any], x: np.ndarray, **attributes: Any):
    return Case(f"{op} {label}", op, [x], oracle, attributes)


def conv_case(
    label: str,
    w: tuple[int, ...],
    x: np.ndarray = IMAGE,
    *,
    bias: bool = True,
    pads: Sequence[int] | None = None,
    auto_pad: str | None = None,
    **attributes: Any,
) -> Case:
    """A Conv node; asymmetric pads are applied by hand in the oracle."""
    axes = len(w) - 2
    if auto_pad is not None:
        pads, total = [], []
        for n, k, s in zip(x.shape[2:], w[2:], attributes.get("strides", [1] * axes), strict=True):
            total.append(max((-(-n // s) - 1) * s + k - n, 0))
        small = [t // 2 for t in total]
        large = [t - t // 2 for t in total]
        pads = [*small, *large] if auto_pad == "SAME_UPPER" else [*large, *small]
    given = pads or [0] * 2 * axes
    widths = [p for i in reversed(range(axes)) for p in (given[i], given[axes + i])]
    function = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}[axes]

    def oracle(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return function(
            nnf.pad(x, widths),
            w,
            b,
            attributes.get("strides", 1),
            0,
            attributes.get("dilations", 1),
            attributes.get("group", 1),
        )

    if auto_pad is not None:
        attributes["auto_pad"] = auto_pad
    elif pads is not None:
        attributes["pads"] = pads
    inputs = [x, floats(*w), *([floats(w[0])] if bias else [])]
    return Case(f"Conv {label}", "Conv", inputs, oracle, attributes)


def transposed_case(label: str, w: tuple[int, ...], x: np.ndarray = IMAGE, **attributes: Any):
    function = {1: nnf.conv_transpose1d, 2: nnf.conv_transpose2d}[len(w) - 2]
    axes = len(w) - 2
    group = attributes.get("group", 1)

    def oracle(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return function(
            x,
            w,
            b,
            attributes.get("strides", 1),
            attributes.get("pads", [0] * axes)[:axes],
            attributes.get("output_padding", 0),
            group,
            attributes.get("dilations", 1),
        )

    return Case(
        f"ConvTranspose {label}",
        "ConvTranspose",
        [x, floats(*w), floats(w[1] * group)],
        oracle,
        attributes,
    )


SPATIAL = [
    conv_case("3x3", (6, 4, 3, 3)),
    conv_case("3x3 padded", (6, 4, 3, 3), pads=[1, 1, 1, 1]),
    conv_case("many channels", (6, 20, 3, 3), floats(BATCH, 20, 6, 5), pads=[1, 1, 1, 1]),
    conv_case("1x1", (6, 4, 1, 1), bias=False),
    conv_case("1x1 wide", (6, 20, 1, 1), floats(BATCH, 20, 6, 5)),
    conv_case("1x1 strided", (6, 4, 1, 1), strides=[2, 2]),
    conv_case("strided", (6, 4, 3, 3), strides=[2, 3], pads=[1, 0, 1, 2]),
    conv_case("strided, many channels", (6, 20, 3, 3), floats(BATCH, 20, 6, 5), strides=[2, 2]),
    conv_case("small image", (48, 40, 3, 3), floats(BATCH, 40, 3, 2), pads=[1, 1, 1, 1]),
    conv_case("wide image", (4, 1, 3, 3), floats(BATCH, 4, 5, 70), group=4, pads=[1, 1, 1, 1]),
    conv_case("dilated", (6, 4, 3, 2), dilations=[2, 3], pads=[2, 1, 1, 2]),
    conv_case("strided and dilated", (6, 4, 2, 3), dilations=[3, 2], strides=[2, 2]),
    conv_case("grouped", (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1]),
    conv_case("depthwise", (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    conv_case("depthwise strided", (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
    conv_case("depthwise 5x3", (4, 1, 5, 3), group=4, pads=[2, 0, 1, 1]),
    conv_case("depthwise dilated", (4, 1, 3, 3), group=4, dilations=[2, 2], pads=[2, 2, 2, 2]),
    conv_case("depthwise multiplied", (8, 1, 3, 3), group=4),
    conv_case("same upper", (6, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv_case("same lower", (6, 4, 3, 2), auto_pad="SAME_LOWER", strides=[2, 2]),
    conv_case("1-D", (6, 4, 5), floats(BATCH, 4, 20), pads=[2, 2]),
    conv_case("1-D strided", (6, 4, 5), floats(BATCH, 4, 20), strides=[3]),
    conv_case("1-D depthwise", (4, 1, 3), floats(BATCH, 4, 20), group=4, pads=[1, 1]),
    conv_case("3-D", (6, 4, 2, 3, 2), floats(BATCH, 4, 5, 6, 7), strides=[1, 2, 2]),
    transposed_case("2x2", (4, 6, 2, 2), strides=[2, 2]),
    transposed_case("3x3", (4, 6, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], output_padding=[1, 1]),
    transposed_case("grouped", (4, 3, 3, 3), group=2, dilations=[2, 2]),
    transposed_case("1-D", (4, 6, 4), floats(BATCH, 4, 11), strides=[2], pads=[1, 1]),
    pool_case(
        "2x2", "MaxPool", lambda x: nnf.max_pool2d(x, 2), apart(BATCH, 4, 8, 6),
        kernel_shape=[2, 2], strides=[2, 2],
    ),
    pool_case(
        "2x2 with a remainder", "MaxPool", lambda x: nnf.max_pool2d(x, 2), apart(BATCH, 4, 9, 7),
        kernel_shape=[2, 2], strides=[2, 2],
    ),
    pool_case(
        "overlapping and padded", "MaxPool", lambda x: nnf.max_pool2d(x, 3, 2, 1),
        apart(BATCH, 4, 9, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
    ),
    pool_case(
        "ceil mode", "MaxPool", lambda x: nnf.max_pool2d(x, 3, 2, ceil_mode=True),
        apart(BATCH, 4, 10, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
    ),
    pool_case(
        "of ties", "MaxPool", lambda x: nnf.max_pool2d(x, 2), np.ones((BATCH, 4, 8, 6), np.float32),
        kernel_shape=[2, 2], strides=[2, 2],
    ),
    pool_case(
        "1-D", "MaxPool", lambda x: nnf.max_pool1d(x, 2), apart(BATCH, 4, 9),
        kernel_shape=[2], strides=[2],
    ),
    pool_case(
        "dilated", "MaxPool", lambda x: nnf.max_pool2d(x, 2, 1, dilation=2), apart(BATCH, 4, 9, 8),
        kernel_shape=[2, 2], dilations=[2, 2],
    ),
    pool_case(
        "2x2", "AveragePool", lambda x: nnf.avg_pool2d(x, 2), floats(BATCH, 4, 8, 6),
        kernel_shape=[2, 2], strides=[2, 2],
    ),
    pool_case(
        "with a remainder", "AveragePool", lambda x: nnf.avg_pool2d(x, 2), IMAGE,
        kernel_shape=[2, 2], strides=[2, 2],
    ),
    pool_case(
        "overlapping", "AveragePool", lambda x: nnf.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
    ),
    pool_case(
        "pads counted", "AveragePool", lambda x: nnf.avg_pool2d(x, 3, 2, 1, count_include_pad=True),
        IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1,
    ),
    pool_case(
        "ceil mode", "AveragePool", lambda x: nnf.avg_pool2d(x, 3, 2, ceil_mode=True),
        floats(BATCH, 4, 10, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
    ),
    pool_case(
        "1-D", "AveragePool", lambda x: nnf.avg_pool1d(x, 3, 1, 1, count_include_pad=True),
        floats(BATCH, 4, 9), kernel_shape=[3], pads=[1, 1], count_include_pad=1,
    ),
    unary("GlobalAveragePool", lambda x: x.mean((2, 3), True), x=IMAGE),
    unary("GlobalMaxPool", lambda x: x.amax((2, 3), True), x=apart(BATCH, 4, 6, 5)),
    Case(
        "LRN", "LRN", [IMAGE], lambda x: nnf.local_response_norm(x, 3, 0.1, 0.7, 2.0),
        {"size": 3, "alpha": 0.1, "beta": 0.7, "bias": 2.0},
    ),
]  # fmt: skip
