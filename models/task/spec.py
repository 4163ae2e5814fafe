"""The tensor contract of a task: names, shapes and roles, input, loss. Pure; without numpy.

A spec travels as ``spec.json`` in a bundle. Everything that decodes bytes bounds itself by it.
"""

import math
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from models.errors import PayloadError
from models.protocol.names import Name

__all__ = [
    "MAX_NAME",
    "MAX_NAMED_CLASSES",
    "MAX_PARAMETERS",
    "USUAL_MOMENTUM",
    "ArraySpec",
    "Role",
    "TaskSpec",
    "TensorSpec",
    "decode_spec",
    "encode_spec",
]

MAX_TENSORS = 4096
MAX_PARAMETERS = 1 << 28  # a gigabyte of float32: more than any board of ours can train

Dimension = Annotated[int, msgspec.Meta(ge=0, le=MAX_PARAMETERS)]
TensorName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
MAX_NAME = 200  # letters of a class
ClassName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
MAX_NAMED_CLASSES = 10_000
ClassWeight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
MAX_WEIGHTS = 1 << 16
USUAL_MOMENTUM = 0.9  # what `task create` takes: of it, specs say nothing


class Role(StrEnum):
    """What happens to a tensor in learning."""

    SHARED = "shared"  # trained on the device, sent as a delta, folded into the next release
    PERSONAL = "personal"  # trained on the device, never sent
    FROZEN = "frozen"  # as it is in the bundle; not an input of the training graph


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One float32 tensor of the model.

    ``kind`` says what a batch norm that adapts has of it: its scale or shift ("norm"), its mean or
    variance ("statistic"). Where batch norm stays frozen, all are "weight", as they always were.
    """

    name: TensorName
    shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=8)]
    role: Role
    kind: Literal["weight", "norm", "statistic"] = "weight"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class ArraySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sample of ``x`` or ``y``: the batch dimension is not part of ``shape``."""

    dtype: Literal["float32", "uint8", "int64", "int32"]
    shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=8)]


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The contract of one task; see docs/bundle.md.

    ``tensors`` are in the order in which they form the flat vectors (`models.task.params`).
    ``classes`` is 0 for regression. ``slots`` are the optimizer's, in the training graph's names.
    ``class_names`` are what people call the classes, in order of their labels; () where nobody
    named them. ``class_weights``: what a training sample of each class counts; () for 1 each.
    ``resize_images``: devices scale pictures of other sizes to ``x``; else they wait. ``pixels``:
    how ``x`` holds them: plain bytes of uint8, or float32 from 0 to 1; bytes from 0 to 255 in
    float32; none: in some way of the author's, so that a device can make no sample of a picture.
    ``answers`` says what the first output of infer.onnx is: logits or probabilities
    (of mse neither), "" in specs from before it was said (`scoring.py` has the rule for those).
    ``momentum`` is None where it is `USUAL_MOMENTUM`, or there is none: see `local_momentum`.
    """

    format: Literal[1]
    task: Name
    net: Annotated[str, msgspec.Meta(max_length=128)]
    tensors: Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=MAX_TENSORS)]
    x: ArraySpec
    y: ArraySpec
    classes: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    loss: Literal["cross_entropy", "mse", "bce"]
    metric: Literal["accuracy", "mse"]
    optimizer: Literal["sgd", "adam"]
    proximal: bool
    infer_input: TensorName
    infer_output: TensorName
    slots: Annotated[tuple[TensorName, ...], msgspec.Meta(max_length=2 * MAX_TENSORS)]
    class_names: Annotated[tuple[ClassName, ...], msgspec.Meta(max_length=MAX_NAMED_CLASSES)] = ()
    class_weights: Annotated[tuple[ClassWeight, ...], msgspec.Meta(max_length=MAX_WEIGHTS)] = ()
    resize_images: bool = False
    pixels: Literal["plain", "bytes", "none"] = "plain"
    answers: Literal["", "logits", "probabilities"] = ""
    momentum: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None  # of sgd

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("two tensors of one name")
        if sum(tensor.size for tensor in self.tensors) > MAX_PARAMETERS:
            raise ValueError(f"more than {MAX_PARAMETERS} parameters")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.classes} classes")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("two classes of one name")
        if self.class_weights and (
            self.y.shape or len(self.class_weights) != self.classes or not any(self.class_weights)
        ):
            raise ValueError(
                f"{len(self.class_weights)} class weights: one for each class, not all 0"
            )

    def with_role(self, *roles: Role) -> tuple[TensorSpec, ...]:
        """Return the tensors of ``roles``, in spec order."""
        return tuple(tensor for tensor in self.tensors if tensor.role in roles)

    @property
    def shared(self) -> tuple[TensorSpec, ...]:
        return self.with_role(Role.SHARED)

    @property
    def trainable(self) -> tuple[TensorSpec, ...]:
        """Return what training changes: statistics that adapt too."""
        return self.with_role(Role.SHARED, Role.PERSONAL)

    @property
    def learned(self) -> tuple[TensorSpec, ...]:
        """Return what has a gradient, and so slots and an anchor: ``trainable`` but statistics."""
        return tuple(tensor for tensor in self.trainable if tensor.kind != "statistic")

    @property
    def norms_adapt(self) -> bool:
        """Return whether some batch norm normalizes by the batch in training."""
        return len(self.learned) < len(self.trainable)

    @property
    def local_momentum(self) -> float:
        """Return the momentum of the training graph's SGD; 0 without, and for adam."""
        if not any(slot.startswith("momentum/") for slot in self.slots):
            return 0.0
        return USUAL_MOMENTUM if self.momentum is None else self.momentum

    @property
    def shared_size(self) -> int:
        """The length of a delta: how many parameters travel."""
        return sum(tensor.size for tensor in self.shared)


def encode_spec(spec: TaskSpec) -> bytes:
    """Return ``spec`` as canonical JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=1) + b"\n"


def decode_spec(data: bytes) -> TaskSpec:
    """Read ``spec.json``.

    Raises:
        PayloadError: not a spec, or one beyond our limits.
    """
    try:
        return msgspec.json.decode(data, type=TaskSpec)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PayloadError(f"spec.json: {error}") from None
