"""Human activity recognition: 1-D convolutions over windows of inertial sensors."""

from torch import nn

from models.errors import UsageError
from models.nets.layers import MeanOverSpace

__all__ = ["har_cnn"]

SHORTEST = 8  # samples in a window: two poolings must leave something to convolve


def har_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a net for ``shape`` (channels, time), e.g. (9, 128): accelerometer and gyroscope."""
    if len(shape) != 2:
        raise UsageError(f"har_cnn takes samples of (channels, time), not {shape}; try mlp or cnn")
    channels, time = shape
    if channels < 1 or time < SHORTEST:
        cure = "try mlp"
        if channels >= SHORTEST:
            cure = "if these are (time, channels), save np.swapaxes(x, 1, 2)"
        raise UsageError(
            f"har_cnn takes samples of (channels, time) with a time of at least {SHORTEST}, not "
            f"{shape}: {cure}"
        )
    return nn.Sequential(
        nn.Conv1d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 3, padding=1),
        nn.ReLU(),
        MeanOverSpace(),
        nn.Linear(64, classes),
    )
