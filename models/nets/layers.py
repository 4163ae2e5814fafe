"""What several nets share: blocks with batch norm, pooling over space, checks of shapes."""

import torch
from torch import nn

from models.errors import UsageError

__all__ = ["MeanOverSpace", "conv_norm", "require_image", "separable"]


class MeanOverSpace(nn.Module):
    """Global average pooling: [batch, channels, ...] -> [batch, channels]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=tuple(range(2, x.dim())))


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> list[nn.Module]:
    """Return convolution without bias, batch norm and (if given) an activation."""
    block: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return block if activation is None else [*block, activation]


def separable(inputs: int, outputs: int, *, stride: int, activation: nn.Module) -> list[nn.Module]:
    """Return a depthwise 3x3 and a pointwise convolution, each with batch norm (MobileNet)."""
    return [
        *conv_norm(
            inputs, inputs, 3, stride=stride, padding=1, groups=inputs, activation=activation
        ),
        *conv_norm(inputs, outputs, 1, activation=activation),
    ]


def require_image(net: str, shape: tuple[int, ...], *, smallest: int) -> tuple[int, int, int]:
    """Return ``shape`` as (channels, height, width).

    Raises:
        UsageError: not three axes, or a side shorter than ``smallest``.
    """
    if len(shape) != 3:
        raise UsageError(
            f"{net} takes samples of (channels, height, width), images, not {shape}; "
            f"try {'har_cnn for windows of (channels, time), or ' if len(shape) == 2 else ''}mlp"
        )
    channels, height, width = shape
    if channels < 1 or min(height, width) < smallest:
        cure = "try mlp"
        if width < smallest <= min(channels, height):
            cure = "if the last axis holds channels, save np.moveaxis(x, -1, 1)"
        raise UsageError(
            f"{net} needs at least {smallest}x{smallest} pixels, not {height}x{width} "
            f"(samples are (channels, height, width)): {cure}"
        )
    return channels, height, width
