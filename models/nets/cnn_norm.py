"""Small convolutional net with batch norm: 54,100 parameters on 1x28x28 and 10 classes.

Two 5x5 convolutions and one hidden layer, as the nets of FedBN (Li et al., arXiv:2102.07623) and
FedLTN (Mugunthan et al., arXiv:2204.06078) are built, in a size for small boards.
"""

from torch import nn

from models.nets.layers import conv_norm, require_image

__all__ = ["cnn_norm"]


def cnn_norm(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return conv 16 - norm - pool - conv 32 - norm - pool - dense 78 - dense ``classes``.

    ``shape`` is (channels, height, width), at least 16x16.
    """
    channels, height, width = require_image("cnn_norm", shape, smallest=16)
    return nn.Sequential(
        *conv_norm(channels, 16, 5, activation=nn.ReLU()),
        nn.MaxPool2d(2),
        *conv_norm(16, 32, 5, activation=nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * _left(height) * _left(width), 78),
        nn.ReLU(),
        nn.Linear(78, classes),
    )


def _left(side: int) -> int:
    """Return what both convolutions and pools leave of a side."""
    return ((side - 4) // 2 - 4) // 2
