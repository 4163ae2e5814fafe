"""ResNet-18 (He, Zhang, Ren, Sun, arXiv:1512.03385), with the small stem for small images."""

import torch
from torch import nn

from models.nets.layers import MeanOverSpace, conv_norm, require_image

__all__ = ["Residual", "resnet18"]

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first of two blocks
LARGE = 64  # pixels; from here the stem is the 7x7 one of the paper


class Residual(nn.Module):
    """Two 3x3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, outputs, 3, stride=stride, padding=1, activation=nn.ReLU()),
            *conv_norm(outputs, outputs, 3, padding=1),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(*conv_norm(inputs, outputs, 1, stride=stride))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return ResNet-18 for ``shape`` (channels, height, width), at least 8x8."""
    channels, height, width = require_image("resnet18", shape, smallest=8)
    width_0 = STAGES[0][0]
    if min(height, width) < LARGE:
        layers = conv_norm(channels, width_0, 3, padding=1, activation=nn.ReLU())
    else:
        layers = conv_norm(channels, width_0, 7, stride=2, padding=3, activation=nn.ReLU())
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    inputs = width_0
    for outputs, stride in STAGES:
        layers += [Residual(inputs, outputs, stride), Residual(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, MeanOverSpace(), nn.Linear(inputs, classes))
