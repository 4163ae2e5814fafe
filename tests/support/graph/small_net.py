"""What a net of `hundred_nets` is: parts, and a function of these and a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

CLASSES = 4


class Net(nn.Module):
    """Parts by name (modules, or arrays to learn), and what they make of a batch."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **parts: Any) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(self, x)


class Brought(NamedTuple):
    """A net, the shape of one sample, and what is learned."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: str = "cross_entropy"
    tokens: int = 0  # samples hold whole numbers below this
    # Whether exporters may compute ahead of time what depends on weights alone. Then the result is
    # a weight of its own, no more normalized or tied to another, and no importer can tell.
    folding: bool = True


def chain(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)
