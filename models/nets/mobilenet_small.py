"""A MobileNet for small images: depthwise-separable convolutions, batch norm, ReLU6.

Howard et al., "MobileNets", arXiv:1704.04861, with fewer channels and, for small images, fewer
strides than for ImageNet.
"""

from torch import nn

from models.nets.layers import MeanOverSpace, conv_norm, require_image, separable

__all__ = ["mobilenet_small"]

STEM = 16
BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))  # channels, stride
LARGE = 64  # pixels; from here the stem halves the image


def mobilenet_small(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the net for ``shape`` (channels, height, width), at least 8x8."""
    channels, height, width = require_image("mobilenet_small", shape, smallest=8)
    layers = conv_norm(
        channels,
        STEM,
        3,
        stride=2 if min(height, width) >= LARGE else 1,
        padding=1,
        activation=nn.ReLU6(),
    )
    inputs = STEM
    for outputs, stride in BLOCKS:
        layers += separable(inputs, outputs, stride=stride, activation=nn.ReLU6())
        inputs = outputs
    return nn.Sequential(*layers, MeanOverSpace(), nn.Linear(inputs, classes))
