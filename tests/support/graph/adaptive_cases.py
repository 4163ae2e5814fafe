"""Cases of `models.graph.gradients.gradients_adaptive`: batch norm by what a batch shows."""

import numpy as np
import torch
from gradient_case import BATCH, Case, Const, floats
from torch.nn import functional as nnf

EQUAL = np.full((1, BATCH), 1 / BATCH, np.float32)
UNEVEN = np.array([[0.5, 0.0, 0.5]], np.float32)  # the row between is padding: it is not counted


def by_batch(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return nnf.batch_norm(x, None, None, scale, bias, training=True, eps=1e-3)


def by_counted_rows(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Normalize all rows by mean and variance of those that count."""
    axes = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x[::2], axes, correction=0, keepdim=True)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return (x - mean) / (variance + 1e-3).sqrt() * scale.reshape(shape) + bias.reshape(shape)


ADAPTIVE = [
    Case(
        f"adaptive norm of {rank}-D, {label}",
        "AdaptiveNormalization",
        [floats(BATCH, 4, *(5, 3, 2)[: rank - 2]), floats(4), floats(4, high=1), Const(share)],
        oracle,
        {"epsilon": 1e-3},
        (),
    )
    for rank in (2, 3, 4, 5)
    for label, share, oracle in (
        ("equal rows", EQUAL, by_batch),
        ("padding among them", UNEVEN, by_counted_rows),
    )
]
