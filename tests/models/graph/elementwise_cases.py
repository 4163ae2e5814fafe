"""Cases of `models.graph.gradients_elementwise`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gradient_case import BATCH, POSITIVE, Case, Const, X, floats, unary
from onnx import TensorProto
from torch.nn import functional as nnf


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


ELEMENTWISE = [
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
]
