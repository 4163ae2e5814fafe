"""LeNet-like net for small images: 44,426 parameters on 1x28x28 and 10 classes.

The layers of LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) with max pooling and ReLU, as studies of
federated learning use it (Li et al., "Federated Learning on Non-IID Data Silos", arXiv:2102.02079).
"""

from torch import nn

from models.nets.layers import require_image

__all__ = ["lenet"]


def lenet(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return conv 6 - pool - conv 16 - pool - dense 120 - dense 84 - dense ``classes``.

    Convolutions are 5x5 without padding; ``shape`` is (channels, height, width), at least 16x16.
    """
    channels, height, width = require_image("lenet", shape, smallest=16)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * _left(height) * _left(width), 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def _left(side: int) -> int:
    """Return what two convolutions and two poolings leave of a side."""
    return ((side - 4) // 2 - 4) // 2
