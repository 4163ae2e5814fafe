"""Plain convolutional net for small images: 421,642 parameters on 1x28x28 and 10 classes."""

from torch import nn

from models.nets.layers import require_image

__all__ = ["cnn"]


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return conv 32 - pool - conv 64 - pool - dense 128 - dense ``classes``.

    ``shape`` is (channels, height, width), at least 4x4.
    """
    channels, height, width = require_image("cnn", shape, smallest=4)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
