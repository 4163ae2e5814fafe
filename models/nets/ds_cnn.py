"""Keyword spotting: a small depthwise-separable net on log-mel spectrograms.

DS-CNN of Zhang, Suda, Lai, Chandra, "Hello Edge: Keyword Spotting on Microcontrollers",
arXiv:1711.07128, in its small size (64 channels, four separable blocks).
"""

from torch import nn

from models.nets.layers import MeanOverSpace, conv_norm, require_image, separable

__all__ = ["ds_cnn"]

CHANNELS = 64
BLOCKS = 4


def ds_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return DS-CNN for ``shape`` (1, frames, mel bands), e.g. (1, 64, 32); at least 4x4."""
    channels, _, _ = require_image("ds_cnn", shape, smallest=4)
    layers = conv_norm(channels, CHANNELS, (10, 4), stride=2, padding=(5, 2), activation=nn.ReLU())
    for _ in range(BLOCKS):
        layers += separable(CHANNELS, CHANNELS, stride=1, activation=nn.ReLU())
    return nn.Sequential(*layers, MeanOverSpace(), nn.Linear(CHANNELS, classes))
