"""Cases of `models.graph.gradients.gradients_elementwise`."""

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


ZEROS = np.abs(X) * (floats(BATCH, 4, 5, high=1.0) > 0)

ENDS = (X / 2).round(1).clip(-1, 1)

WHOLE = (X * 4).round()


def masked(x: torch.Tensor, inside: torch.Tensor, function: Callable[..., Any]) -> torch.Tensor:
    """Apply the function inside, where it has a slope; the rest is constant."""
    return torch.where(inside, function(torch.where(inside, x, 0.5 + 1.0 * (x >= 1))), 0)


def power_of(p: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A power below 1, with slope 0 at 0 as torch's norm has it."""
    return lambda x: torch.where(x > 0, torch.where(x > 0, x, 1) ** p, 0)


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
    Case("Pow 1/2 with zeros", "Pow", [ZEROS, Const(np.float32(0.5))], power_of(1 / 2)),
    Case("Pow 1/3 of a length", "Pow", [ZEROS, Const(np.float32(1 / 3))], power_of(1 / 3)),
    Case("Pow 0", "Pow", [ZEROS, Const(np.float32(0))], lambda x: x**0),
    Case("Pow 1", "Pow", [ZEROS, Const(np.float32(1))], lambda x: x**1),
    Case("Pow computed", "Pow", [ZEROS, floats(5, low=1.2)], torch.pow),
    Case("Sqrt with zeros", "Sqrt", [ZEROS], power_of(1 / 2)),
    Case("Abs with zeros", "Abs", [ZEROS], torch.abs),
    Case("Acos at the ends", "Acos", [ENDS], lambda x: masked(x, x.abs() < 1, torch.acos)),
    Case("Asin at the ends", "Asin", [ENDS], lambda x: masked(x, x.abs() < 1, torch.asin)),
    Case("Acosh at 1", "Acosh", [ENDS.clip(1) + 0], lambda x: masked(x, x > 1, torch.acosh)),
    unary("Acos", torch.acos, x=X / 2.1),
    unary("Acosh", torch.acosh, x=POSITIVE + 1),
    unary("Asin", torch.asin, x=X / 2.1),
    unary("Asinh", torch.asinh),
    unary("Atan", torch.atan),
    unary("Atanh", torch.atanh, x=X / 2.1),
    unary("Cosh", torch.cosh),
    unary("Sinh", torch.sinh),
    unary("Tan", torch.tan, x=X / 2),
    unary("Hardmax", lambda x: x * 0),
    Case("EyeLike", "EyeLike", [X[0]], lambda x: torch.eye(4, 5) * x.sum() * 0, {}, ()),
    Case("Mod", "Mod", [X, floats(5, low=0.3)], torch.fmod, {"fmod": 1}),
    Case("Clip relu6", "Clip", [WHOLE, *map(Const, np.float32([0, 6]))], nnf.relu6),
    Case("Clip hardtanh", "Clip", [WHOLE, *map(Const, np.float32([-1, 1]))], nnf.hardtanh),
    Case(
        "Clip at limits",
        "Clip",
        [WHOLE, *map(Const, np.float32([-1, 2]))],
        lambda x: x.clamp(-1, 2),
    ),
    Case("Clip at its low", "Clip", [WHOLE, Const(np.float32(0))], lambda x: x.clamp(min=0)),
    Case("Clip trained", "Clip", [X, np.float32(-1), np.float32(1)], lambda *x: torch.clamp(*x)),
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
    unary("Exp", torch.exp),
    unary("Log", torch.log, x=POSITIVE),
    unary("Neg", torch.neg),
    unary("Reciprocal", torch.reciprocal, x=POSITIVE),
    unary("Sqrt", torch.sqrt, x=POSITIVE),
    Case(
        "Where",
        "Where",
        [Const(X[0] > 0), X, floats(4, 1)],
        lambda a, b: torch.where(torch.from_numpy(X[0] > 0), a, b),
        follows=(1,),
    ),
]
