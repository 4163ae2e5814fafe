"""Cases of `models.graph.gradients.gradients_reduce`."""

import numpy as np
import torch
from gradient_case import BATCH, IMAGE, POSITIVE, Case, X, floats, ints, unary
from torch.nn import functional as nnf

SILENT = X.copy()
SILENT[1] = 0  # one sample of nothing but zeros
SILENT[0, 2] = 0

MASKED = np.where(floats(BATCH, 4, 5, high=1.0) > 0, X, -np.inf).astype(np.float32)
MASKED[1, 2] = -np.inf

ONE_ZERO = X.copy()
ONE_ZERO[0, 1, 2] = 0
ONE_ZERO[1, 2, :2] = 0


def log_sum_exp(x: torch.Tensor) -> torch.Tensor:
    """Without the rows of -inf alone, where torch's gradient is NaN."""
    dead = x.isinf().all(2)
    return x.masked_fill(dead[..., None], 0).logsumexp(2).masked_fill(dead, 0)


def mean_variance(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((1, 2), True)) / (x.std((1, 2), correction=0, keepdim=True) + 1e-9)


REDUCE = [
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
    Case("ReduceMax of ties", "ReduceMax", [X.round(), ints(2)], lambda x: x.amax(2, True)),
    Case("ReduceMin of all", "ReduceMin", [X], lambda x: x.amin(), {"keepdims": 0}),
    Case("ReduceL1", "ReduceL1", [SILENT, ints(2)], lambda x: x.norm(1, dim=2, keepdim=True)),
    Case("ReduceL1 flat", "ReduceL1", [X, ints(1)], lambda x: x.norm(1, dim=1), {"keepdims": 0}),
    Case("ReduceL2 flat", "ReduceL2", [X, ints(1)], lambda x: x.norm(dim=1), {"keepdims": 0}),
    Case("ReduceL2 of zeros", "ReduceL2", [SILENT, ints(2)], lambda x: x.norm(dim=2, keepdim=True)),
    Case("ReduceLogSum", "ReduceLogSum", [POSITIVE, ints(1)], lambda x: x.sum(1, True).log()),
    Case("ReduceLogSumExp", "ReduceLogSumExp", [X, ints(2)], lambda x: x.logsumexp(2, True)),
    Case(
        "ReduceLogSumExp of a masked row",
        "ReduceLogSumExp",
        [MASKED, ints(2)],
        log_sum_exp,
        {"keepdims": 0},
    ),
    Case("ReduceProd", "ReduceProd", [X, ints(2)], lambda x: x.prod(2, True)),
    Case(
        "ReduceProd zeros", "ReduceProd", [ONE_ZERO, ints(2)], lambda x: x.prod(2), {"keepdims": 0}
    ),
    Case("ReduceSumSquare", "ReduceSumSquare", [X, ints(1)], lambda x: (x**2).sum(1, True)),
    Case(
        "ReduceSumSquare flat",
        "ReduceSumSquare",
        [X, ints(2, 1)],
        lambda x: (x**2).sum((1, 2)),
        {"keepdims": 0},
    ),
    unary("LpNormalization", lambda x: nnf.normalize(x, dim=-1)),
    unary("LpNormalization", lambda x: nnf.normalize(x, p=1, dim=1), p=1, axis=1),
    unary("MeanVarianceNormalization", mean_variance, axes=[1, 2]),
    unary("GlobalLpPool", lambda x: x.norm(dim=(2, 3), keepdim=True), x=IMAGE),
    unary("GlobalLpPool", lambda x: x.norm(3, dim=(2, 3), keepdim=True), x=IMAGE, p=3),
    unary("LpPool", lambda x: nnf.lp_pool2d(x, 2, 2), x=IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    Case(
        "LpPool overlapping, of order 3",
        "LpPool",
        [np.abs(IMAGE) + 0.1],
        lambda x: nnf.lp_pool2d(x, 3, (3, 2), 1),
        {"kernel_shape": [3, 2], "strides": [1, 1], "p": 3},
    ),
]
