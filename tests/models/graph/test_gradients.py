"""Every rule of GRADIENTS against torch's autograd, at two batch sizes with the same graph."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as nnf

from models.graph.backward import Backward
from models.graph.gradients import GRADIENTS
from models.graph.graph_builder import IR_VERSION, OPSET, GraphBuilder, read_node

BATCH = 3
TOLERANCE = 1e-4  # of the largest element, float32


class Case(NamedTuple):
    """One node with its inputs and torch's function of its float inputs that are not constant."""

    label: str
    op: str
    inputs: Sequence[Any]  # arrays; a Const is no variable; None is left out
    oracle: Callable[..., Any]
    attributes: Mapping[str, Any] = MappingProxyType({})
    follows: tuple[int, ...] = (0,)  # inputs whose first dimension is the batch; () for none
    unread: tuple[int, ...] = ()  # outputs that lead nowhere, so that they have no gradient


class Const(NamedTuple):
    value: Any


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    seed = sum((i + 1) * d for i, d in enumerate(shape)) + int(10 * high)
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def apart(*shape: int) -> np.ndarray:
    """Numbers without ties and away from each other, so that a maximum is clear."""
    order = np.random.default_rng(7).permutation(int(np.prod(shape)))
    return (order.reshape(shape) / order.size * 4 - 2).astype(np.float32)


def ints(*values: int) -> Const:
    return Const(np.array(values, np.int64))


X = floats(BATCH, 4, 5)
POSITIVE = floats(BATCH, 4, 5, low=0.2)
IMAGE = floats(BATCH, 4, 9, 8)


def unary(op: str, oracle: Callable[..., Any], x: np.ndarray = X, **attributes: Any) -> Case:
    return Case(op.lower() + "".join(f" {k}" for k in attributes), op, [x], oracle, attributes)


def binary(op: str, oracle: Callable[..., Any]) -> list[Case]:
    """All the ways in which two shapes may broadcast."""
    right = floats(BATCH, 4, 5, low=0.3, high=1.7)
    return [
        Case(f"{op} same", op, [POSITIVE, right], oracle, follows=(0, 1)),
        Case(f"{op} vector", op, [POSITIVE, right[0, 0]], oracle),
        Case(f"{op} channel", op, [POSITIVE, right[0, :, :1]], oracle),
        Case(f"{op} stretched left", op, [POSITIVE[:, :1], right[0]], oracle),
        Case(f"{op} scalar", op, [POSITIVE, right[0, 0, 0]], oracle),
        Case(f"{op} one in the batch", op, [POSITIVE, right[:1]], oracle),
        Case(
            f"{op} constant", op, [POSITIVE, Const(right[0])], lambda a: oracle(a, right_t(right))
        ),
        Case(f"{op} by itself", op, [POSITIVE[:, 0], right[0, :1]], oracle),
    ]


def right_t(right: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(right[0])


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


SPLIT = Case(
    "Split",
    "Split",
    [floats(BATCH, 6, 2), ints(1, 2, 3)],
    lambda x: torch.split(x, [1, 2, 3], 1),
    {"axis": 1},
)
MEAN, VARIANCE = floats(4), floats(4, low=0.5)
TABLE = floats(6, 5)
INDICES = np.array([[0, 1, 1], [5, 1, 0], [2, 2, 2]], np.int64)

CASES = [
    unary("Abs", torch.abs),
    *binary("Add", torch.add),
    *binary("Sub", torch.sub),
    *binary("Mul", torch.mul),
    *binary("Div", torch.div),
    *binary("Pow", torch.pow),
    *binary("Max", torch.maximum),
    *binary("Min", torch.minimum),
    Case("Pow 2", "Pow", [X, Const(np.float32(2))], lambda x: x**2),
    Case("Pow 3", "Pow", [X, Const(np.float32(3))], lambda x: x**3),
    Case("Pow int", "Pow", [X, Const(np.int64(2))], lambda x: x**2),
    Case("Sum", "Sum", [X, X[:, :1], X[0]], lambda a, b, c: a + b + c, follows=(0, 1)),
    Case("Mean", "Mean", [X, X[:, :1], X[0]], lambda a, b, c: (a + b + c) / 3, follows=(0, 1)),
    Case("Max of ties", "Max", [X, X], torch.maximum, follows=(0, 1)),
    unary("Cast", lambda x: x.double(), to=TensorProto.DOUBLE),
    Case("CastLike", "CastLike", [X, Const(np.float64(0))], lambda x: x.double()),
    unary("Ceil", lambda x: x * 0),
    unary("Floor", lambda x: x * 0),
    unary("Round", lambda x: x * 0),
    unary("Sign", lambda x: x * 0),
    Case("Clip", "Clip", [X, *map(Const, np.float32([0, 1]))], lambda x: x.clamp(0, 1)),
    Case("Clip low", "Clip", [X, Const(np.float32(-1))], lambda x: x.clamp(min=-1)),
    Case("Clip high", "Clip", [X, None, Const(np.float32(1))], lambda x: x.clamp(max=1)),
    unary("Clip", lambda x: x),
    unary("Cos", torch.cos),
    unary("Sin", torch.sin),
    unary("Dropout", lambda x: x),
    unary("Identity", lambda x: x),
    unary("Elu", nnf.elu),
    unary("Elu", lambda x: nnf.elu(x, 0.5), alpha=0.5),
    unary("Erf", torch.erf),
    unary("Exp", torch.exp),
    unary("Gelu", nnf.gelu),
    unary("Gelu", lambda x: nnf.gelu(x, approximate="tanh"), approximate="tanh"),
    unary("HardSigmoid", nnf.hardsigmoid, alpha=1 / 6, beta=0.5, x=X * 3),
    unary("HardSwish", nnf.hardswish, x=X * 3),
    unary("LeakyRelu", nnf.leaky_relu),
    unary("LeakyRelu", lambda x: nnf.leaky_relu(x, 0.3), alpha=0.3),
    unary("Log", torch.log, x=POSITIVE),
    unary("Neg", torch.neg),
    Case("PRelu", "PRelu", [X, floats(4, 1)], lambda x, s: torch.where(x > 0, x, s * x)),
    unary("Reciprocal", torch.reciprocal, x=POSITIVE),
    unary("Relu", torch.relu),
    unary("Selu", nnf.selu),
    unary("Sigmoid", torch.sigmoid),
    unary("Softplus", nnf.softplus),
    unary("Softsign", nnf.softsign),
    unary("Sqrt", torch.sqrt, x=POSITIVE),
    unary("Tanh", torch.tanh),
    Case(
        "Where",
        "Where",
        [Const(X[0] > 0), X, floats(4, 1)],
        lambda a, b: torch.where(torch.from_numpy(X[0] > 0), a, b),
        follows=(1,),
    ),
    # Products and normalizations.
    Case("Gemm", "Gemm", [X[:, 0], floats(5, 7), floats(7)], lambda a, b, c: a @ b + c),
    Case(
        "Gemm transposed B",
        "Gemm",
        [X[:, 0], floats(7, 5), floats(1, 7)],
        lambda a, b, c: 2 * a @ b.T + 0.5 * c,
        {"transB": 1, "alpha": 2.0, "beta": 0.5},
    ),
    Case(
        "Gemm transposed A",
        "Gemm",
        [floats(5, 3), floats(5, 7)],
        lambda a, b: a.T @ b,
        {"transA": 1},
        (),
    ),
    Case(
        "Gemm transposed both",
        "Gemm",
        [floats(5, 3), floats(7, 5), floats(3, 1)],
        lambda a, b, c: a.T @ b.T + c,
        {"transA": 1, "transB": 1},
        (),
    ),
    Case("MatMul 2-D", "MatMul", [X[:, 0], floats(5, 7)], torch.matmul),
    Case("MatMul 3-D by 2-D", "MatMul", [X, floats(5, 7)], torch.matmul),
    Case("MatMul 2-D by 3-D", "MatMul", [floats(2, 4), X], torch.matmul, {}, (1,)),
    Case("MatMul batched", "MatMul", [X, floats(BATCH, 5, 7)], torch.matmul, {}, (0, 1)),
    Case("MatMul broadcast", "MatMul", [floats(BATCH, 2, 4, 5), floats(2, 5, 7)], torch.matmul),
    Case("MatMul stretched", "MatMul", [floats(BATCH, 1, 4, 5), floats(6, 5, 7)], torch.matmul),
    Case("MatMul by vector", "MatMul", [X, floats(5)], torch.matmul),
    Case("MatMul vector by", "MatMul", [floats(4), X], torch.matmul, {}, (1,)),
    Case("MatMul vectors", "MatMul", [floats(4), floats(4, high=1)], torch.matmul, {}, ()),
    Case("ReduceMean", "ReduceMean", [X, ints(1)], lambda x: x.mean(1, True)),
    Case("ReduceMean flat", "ReduceMean", [X, ints(-1)], lambda x: x.mean(-1), {"keepdims": 0}),
    Case("ReduceMean batch", "ReduceMean", [X, ints(0)], lambda x: x.mean(0), {"keepdims": 0}),
    Case("ReduceSum", "ReduceSum", [X, ints(2, 1)], lambda x: x.sum((1, 2)), {"keepdims": 0}),
    Case("ReduceSum all", "ReduceSum", [X], lambda x: x.sum(), {"keepdims": 0}),
    Case(
        "ReduceSum of nothing",
        "ReduceSum",
        [X, ints()],
        lambda x: x,
        {"noop_with_empty_axes": 1},
    ),
    Case("ReduceMax", "ReduceMax", [X, ints(2)], lambda x: x.amax(2, True)),
    Case("ReduceMin", "ReduceMin", [X, ints(1)], lambda x: x.amin(1), {"keepdims": 0}),
    Case("ReduceL2", "ReduceL2", [X, ints(2)], lambda x: x.norm(dim=2, keepdim=True)),
    unary("Softmax", lambda x: x.softmax(-1)),
    unary("Softmax", lambda x: x.softmax(1), axis=1),
    unary("LogSoftmax", lambda x: x.log_softmax(-1)),
    unary("LogSoftmax", lambda x: x.log_softmax(1), axis=1),
    Case(
        "BatchNormalization",
        "BatchNormalization",
        [IMAGE, floats(4), floats(4, high=1), Const(MEAN), Const(VARIANCE)],
        lambda x, s, b: nnf.batch_norm(
            x, torch.from_numpy(MEAN), torch.from_numpy(VARIANCE), s, b, eps=1e-3
        ),
        {"epsilon": 1e-3},
    ),
    Case(
        "LayerNormalization",
        "LayerNormalization",
        [X, floats(5), floats(5, high=1)],
        lambda x, s, b: nnf.layer_norm(x, (5,), s, b),
    ),
    Case(
        "LayerNormalization over two axes",
        "LayerNormalization",
        [X, floats(4, 5)],
        lambda x, s: nnf.layer_norm(x, (4, 5), s),
        {"axis": 1},
    ),
    Case(
        "InstanceNormalization",
        "InstanceNormalization",
        [IMAGE, floats(4), floats(4, high=1)],
        lambda x, s, b: nnf.instance_norm(x, weight=s, bias=b),
    ),
    # Moving elements.
    unary("Flatten", lambda x: x.flatten(1)),
    unary("Flatten", lambda x: x.flatten(0, 1), axis=2),
    Case("Reshape", "Reshape", [X, ints(-1, 20)], lambda x: x.reshape(-1, 20)),
    Case("Reshape kept", "Reshape", [X, ints(0, 2, -1)], lambda x: x.reshape(len(x), 2, -1)),
    Case("Squeeze", "Squeeze", [X[:, :1], ints(1)], lambda x: x.squeeze(1)),
    Case("Unsqueeze", "Unsqueeze", [X, ints(1, -1)], lambda x: x[:, None, ..., None]),
    unary("Transpose", lambda x: x.permute(0, 2, 1), perm=[0, 2, 1]),
    Case("Transpose all", "Transpose", [floats(4, 5)], lambda x: x.T, {}, ()),
    Case(
        "Concat",
        "Concat",
        [X, X[:, :2], floats(BATCH, 1, 5)],
        lambda *x: torch.cat(x, 1),
        {"axis": 1},
        (0, 1, 2),
    ),
    Case(
        "Concat with a constant",
        "Concat",
        [Const(floats(2, 5)), floats(3, 5)],
        lambda x: torch.cat([torch.from_numpy(floats(2, 5)), x]),
        {"axis": -2},
        (),
    ),
    SPLIT,
    SPLIT._replace(
        label="Split in part",
        oracle=lambda x: (x[:, :1], x[:, 1:3] * 0, x[:, 3:]),
        unread=(1,),
    ),
    Case("Slice", "Slice", [X, ints(1), ints(3), ints(1)], lambda x: x[:, 1:3]),
    Case(
        "Slice by steps",
        "Slice",
        [floats(BATCH, 8, 9), ints(1, 0), ints(2**40, -1), ints(1, 2), ints(3, 2)],
        lambda x: x[:, 1::3, 0:-1:2],
    ),
    Case(
        "Slice backward",
        "Slice",
        [X, ints(-1, 3), ints(-(2**40), 0), ints(2, 1), ints(-1, -2)],
        lambda x: x.flip(2)[:, [3, 1]],
    ),
    Case(
        "Slice of all",
        "Slice",
        [X, ints(0, 1), ints(2**40, 2**40)],
        lambda x: x[:, 1:],
    ),
    Case(
        "Gather rows",
        "Gather",
        [TABLE, Const(INDICES)],
        lambda t: nnf.embedding(torch.from_numpy(INDICES), t),
        follows=(1,),
    ),
    Case("Gather vector", "Gather", [X, ints(1, 1, -1)], lambda x: x[:, [1, 1, -1]], {"axis": 1}),
    Case("Gather one", "Gather", [X, Const(np.int64(-2))], lambda x: x[..., -2], {"axis": 2}),
    Case(
        "Gather matrix inside",
        "Gather",
        [X, Const(np.array([[0, 1], [1, 3]]))],
        lambda x: x[:, torch.tensor([[0, 1], [1, 3]])],
        {"axis": 1},
    ),
    Case("Expand", "Expand", [X[0], ints(2, 4, 5)], lambda x: x.expand(2, 4, 5), {}, ()),
    Case("Expand tail", "Expand", [X[:, :1], ints(1, 4, 1)], lambda x: x.expand(-1, 4, -1)),
    Case("Pad", "Pad", [X, ints(0, 1, 2, 0, 0, 3)], lambda x: nnf.pad(x, (2, 3, 1, 0))),
    Case("Pad by -1", "Pad", [X, ints(0, 1, -1, 0, 0, 3)], lambda x: nnf.pad(x, (-1, 3, 1, 0))),
    Case(
        "Pad of named axes",
        "Pad",
        [X, ints(1, 2), Const(np.float32(5)), ints(-1)],
        lambda x: nnf.pad(x, (1, 2), value=5.0),
    ),
    # Sliding windows.
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


def symbolic(shape: tuple[int, ...], follows: bool) -> tuple[int | None, ...]:
    return (None, *shape[1:]) if follows and shape else shape


def gradient_model(case: Case, results: Sequence[torch.Tensor]) -> tuple[bytes, list[str]]:
    """Build the node and its gradients; returns the model and its inputs' names in order."""
    names = [f"in{i}" if value is not None else "" for i, value in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(len(results))]
    proto = helper.make_node(case.op, names, outputs, case.label, **case.attributes)
    shapes: dict[str, tuple[int | None, ...]] = {}
    constants, wanted, declared = {}, set(), []
    for i, (name, value) in enumerate(zip(names, case.inputs, strict=True)):
        if value is None:
            continue
        array = value.value if isinstance(value, Const) else value
        follows = i in case.follows
        shapes[name] = symbolic(array.shape, follows)
        if isinstance(value, Const) and not follows:
            constants[name] = np.asarray(array)
            continue
        if not isinstance(value, Const):
            wanted.add(name)
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        dims = ["batch" if d is None else d for d in shapes[name]]
        declared.append(helper.make_tensor_value_info(name, dtype, dims))
    g = GraphBuilder(names)
    node = read_node(proto)
    g.emit_many(node.op, node.inputs, node.outputs, **node.attributes)
    for name, result in zip(outputs, results, strict=True):
        keeps_batch = bool(case.follows) and result.shape[:1] == (BATCH,)
        shapes[name] = symbolic(tuple(result.shape), keeps_batch)
    if case.label == "flatten axis":  # [batch * 4, 5]
        shapes["out0"] = (None, *results[0].shape[1:])
    backward = Backward(g, shapes, constants, wanted)
    for i, (name, result) in enumerate(zip(outputs, results, strict=True)):
        if i in case.unread:
            continue
        dtype = TensorProto.DOUBLE if result.dtype == torch.float64 else TensorProto.FLOAT
        declared.append(helper.make_tensor_value_info(f"d{name}", dtype, None))
        backward.collect(name, f"d{name}")
    gradients = GRADIENTS[case.op](backward, node, "dout0")
    assert len(gradients) == len(node.inputs)
    for name, gradient in zip(node.inputs, gradients, strict=True):
        if name in wanted:
            if gradient is None:
                gradient = g.mul(name, g.scalar(0))
            g.emit("Identity", gradient, output=f"d{name}")
    results_info = [
        helper.make_tensor_value_info(f"d{name}", TensorProto.FLOAT, None)
        for name in sorted(wanted)
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        g.nodes, "case", declared, results_info, [*initializers, *g.initializers()]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return model.SerializeToString(), sorted(wanted)


def oracle_gradients(
    case: Case, batch: int
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Any]]:
    """Return torch's outputs, the gradients of them that we feed, and those of the inputs."""
    variables = [
        torch.from_numpy(np.array(value[:batch] if i in case.follows else value)).requires_grad_()
        for i, value in enumerate(case.inputs)
        if value is not None and not isinstance(value, Const)
    ]
    found = case.oracle(*variables)
    outputs = list(found) if isinstance(found, tuple) else [found]
    generator = torch.Generator().manual_seed(5)
    upstream = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    return outputs, upstream, list(torch.autograd.grad(outputs, variables, upstream))


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_a_rule_gives_torch_s_gradients(case: Case) -> None:
    outputs, _, _ = oracle_gradients(case, BATCH)
    model, wanted = gradient_model(case, outputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    constant_rows = any(isinstance(case.inputs[i], Const) for i in case.follows)
    for batch in (BATCH,) if constant_rows or not case.follows else (BATCH, 1):
        _, upstream, expected = oracle_gradients(case, batch)
        feed = {
            f"in{i}": np.array(value[:batch] if i in case.follows else value)
            for i, value in enumerate(v.value if isinstance(v, Const) else v for v in case.inputs)
            if value is not None
        }
        feed |= {f"dout{i}": gradient.numpy() for i, gradient in enumerate(upstream)}
        names = {value.name for value in session.get_inputs()}
        found = session.run(
            [f"d{name}" for name in wanted], {k: v for k, v in feed.items() if k in names}
        )
        for name, ours, theirs in zip(wanted, found, expected, strict=True):
            reference = theirs.numpy()
            assert ours.shape == reference.shape, f"{name}, batch {batch}"
            scale = max(np.abs(reference).max(), 1e-6)
            assert np.abs(ours - reference).max() / scale < TOLERANCE, f"{name}, batch {batch}"


def test_every_rule_has_a_case() -> None:
    assert {case.op for case in CASES} == set(GRADIENTS)
