"""Multilayer perceptron: two hidden layers on the flattened sample."""

import math

from torch import nn

__all__ = ["mlp"]

HIDDEN = (128, 64)


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return an MLP for samples of any ``shape``; ``classes`` outputs."""
    first, second = HIDDEN
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, classes),
    )
