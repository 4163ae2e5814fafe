"""What a case of `test_gradients` is, and the arrays that cases share."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

BATCH = 3


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
