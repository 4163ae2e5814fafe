"""The table of nets, and what they have in common: how samples become inputs. Author side."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import nn

from models.errors import UsageError
from models.nets.cnn import cnn
from models.nets.cnn_norm import cnn_norm
from models.nets.ds_cnn import ds_cnn
from models.nets.har_cnn import har_cnn
from models.nets.lenet import lenet
from models.nets.mlp import mlp
from models.nets.mobilenet_small import mobilenet_small
from models.nets.resnet18 import resnet18

__all__ = ["NETS", "Net", "build_net", "find_net", "input_shape"]

Builder = Callable[[tuple[int, ...], int], nn.Module]  # (input shape of one sample, classes)


class Net(NamedTuple):
    """One row of the zoo."""

    build: Builder
    takes: Literal["anything", "images", "windows"]
    summary: str

    @property
    def shape(self) -> str:
        """Which samples it takes, in words."""
        return SHAPES[self.takes]


SHAPES = {
    "anything": "samples of any shape",
    "images": "images: [height, width], [channels, height, width], or [height, width, channels] "
    "with 1, 3 or 4 channels",
    "windows": "windows of sensor values: [channels, time]",
}


def input_shape(name: str, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the input shape of net ``name`` for samples as they are in the user's file.

    For nets that take images, [height, width] gets a channel axis, and [height, width, channels]
    with 1, 3 or 4 channels becomes [channels, height, width].

    Raises:
        UsageError: there is no such net.
    """
    if find_net(name).takes != "images":
        return sample_shape
    if len(sample_shape) == 2:
        return (1, *sample_shape)
    if len(sample_shape) == 3 and sample_shape[2] in (1, 3, 4) and sample_shape[0] > 4:
        return (sample_shape[2], sample_shape[0], sample_shape[1])
    return sample_shape


def build_net(name: str, shape: tuple[int, ...], classes: int, *, seed: int) -> nn.Module:
    """Return net ``name`` for inputs of ``shape`` (`input_shape`), initialized by ``seed``.

    It is in evaluation mode: batch norm uses its statistics. The state of torch's global random
    generator is as before.

    Raises:
        UsageError: there is no such net, or it cannot take this shape.
    """
    net = find_net(name)
    if classes < 1:
        raise UsageError(f"{name} needs at least one output, not {classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return net.build(shape, classes).eval()


def find_net(name: str) -> Net:
    """Return the row of ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in NETS:
        raise UsageError(f"there is no net {name!r}; the zoo has {', '.join(NETS)}")
    return NETS[name]


NETS = {
    "mlp": Net(mlp, "anything", "two hidden layers on flattened samples of any shape"),
    "cnn": Net(cnn, "images", "two convolutions, two dense layers; 421,642 parameters on 28x28"),
    "cnn_norm": Net(cnn_norm, "images", "two 5x5 convolutions with batch norm; 54,100 parameters"),
    "lenet": Net(
        lenet, "images", "LeNet's layers, as published comparisons use; 44,426 parameters"
    ),
    "ds_cnn": Net(ds_cnn, "images", "keyword spotting on log-mel spectrograms"),
    "har_cnn": Net(har_cnn, "windows", "1-D convolutions on windows of inertial sensors"),
    "mobilenet_small": Net(mobilenet_small, "images", "depthwise-separable, for small images"),
    "resnet18": Net(resnet18, "images", "ResNet-18; 11 million parameters"),
}
