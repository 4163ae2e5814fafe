"""What an author may choose for a task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.graph.training.losses import LossName

__all__ = ["TaskOptions"]


@dataclass(frozen=True)
class TaskOptions:
    """How to make a task; exactly one of ``net`` (a name of the zoo) and ``model`` is given."""

    net: str | None = None
    model: Path | None = None  # an ONNX file
    loss: LossName | None = None  # default: cross_entropy for labels, mse for numbers
    classes: int | None = None  # default: the highest label of the data plus 1
    class_names: tuple[str, ...] = ()  # in order of their labels; default: those of the data
    trainable: tuple[str, ...] = ("*",)  # shell patterns of tensor names
    personal: tuple[str, ...] = ()  # of those, which never leave a device
    # Batch norm: as it is in the model, or normalizing by the batch, with scale, shift and
    # statistics that each device keeps (FedBN) or that are averaged as all else (FedAvg). The last
    # is a baseline for experiments alone: what a lossy delta does to a variance may be negative.
    norms: Literal["frozen", "personal", "shared"] = "frozen"
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    proximal: bool = False
    scale: float | None = None  # input conversion: x * scale, then (x - mean) / std
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    transpose: tuple[int, ...] = ()  # the stored axes of a sample in the order of the model's
    resize: bool = False  # images: x to what the model takes, and a device's pictures to x
    resize_on_devices: bool = False  # only the latter
    balance: bool = False  # rare classes count more in training
    output: str | None = None  # which output of an ONNX file is learned
    class_axis: int | None = None  # of that output, where its shape leaves two; the batch is axis 0
    pretrain: float = 0.0  # epochs
    learning_rate: float = 0.01  # of pretraining
    batch: int = 32
    seed: int = 0
