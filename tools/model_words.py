"""What ``task create`` understood of a model itself: its answers, its loss, its constants. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from models.graph.forward_graph import STATISTIC_INPUTS, WEIGHT_INPUTS
from models.spec import Role, TaskSpec

__all__ = ["ModelWords", "model_words", "shown"]

PASSING = {"Cast", "Clip", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
MEANINGS = {"Sigmoid": "probabilities", "Softmax": "probabilities", "LogSoftmax": "logits"}
MASKED = -1e4  # what a mask adds where nothing may be seen
SHOWN = 3
LOSS_WORDS = {
    "cross_entropy": "y holds labels",
    "mse": "y holds numbers",
    "bce": "y holds 0 and 1",
}


class ModelWords(NamedTuple):
    """All of it in words; each may be "" or ()."""

    answers: str  # what the outputs mean, and by which node
    loss: str  # why this loss
    trained: tuple[str, ...]  # constants that are no layer's weights, and are trained
    left: tuple[str, ...]  # constants of the model that are left alone, with the reason


def model_words(
    infer: bytes, spec: TaskSpec, given: onnx.ModelProto, *, loss_was_asked_for: bool
) -> ModelWords:
    """Return what a person should know of a bundle's model; ``given`` is what it was made of."""
    model = onnx.load_from_string(infer)
    reason = "as --loss says" if loss_was_asked_for else f"since {LOSS_WORDS[spec.loss]}"
    trained, left = _constants(model, spec, given)
    theirs = {node.name for node in given.graph.node}
    return ModelWords(_answers(model, spec, theirs), f"{spec.loss}, {reason}", trained, left)


def _answers(model: onnx.ModelProto, spec: TaskSpec, theirs: set[str]) -> str:
    makers = {name: node for node in model.graph.node for name in node.output}
    output = next(value for value in model.graph.output if value.name == spec.infer_output)
    shape = [d.dim_value for d in output.type.tensor_type.shape.dim[1:]]
    node = makers.get(output.name)
    last = node
    while last is not None and last.op_type in PASSING and last.input[0] in makers:
        last = makers[last.input[0]]
    named = last if last is not None and last.op_type in MEANINGS else node
    if spec.loss == "mse":
        meaning = "numbers"
    else:
        said = getattr(spec, "answers", "")  # as the bundle itself says
        found = MEANINGS.get(last.op_type, "logits") if last is not None else "logits"
        meaning = said or found
    what = f"{meaning} of {spec.classes} classes" if spec.classes else meaning
    by = ""
    if named is not None:  # a name of ours tells nobody anything
        by = (
            f", by {named.op_type} {named.name!r}"
            if named.name in theirs
            else f", by {named.op_type}"
        )
    return f"{what}, {shape}{by}"


def _constants(
    model: onnx.ModelProto, spec: TaskSpec, given: onnx.ModelProto
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    by_definition = _read_at(model, WEIGHT_INPUTS)
    statistics = _read_at(model, STATISTIC_INPUTS)
    trainable = {tensor.name for tensor in spec.trainable}
    listed = {tensor.name for tensor in spec.tensors}
    theirs = {tensor.name for tensor in given.graph.initializer} | {
        node.output[0] for node in given.graph.node if node.op_type == "Constant"
    }
    trained, left = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < 2:
            continue
        name, said = tensor.name, f"{tensor.name} {list(tensor.dims)}"
        if name in trainable and name not in by_definition and _is_special(tensor):
            trained.append(said)
        elif name not in listed and (name in theirs or name.removeprefix("net/") in theirs):
            left.append(f"{said} ({_why(tensor)})")
    if statistics:
        left.insert(0, f"{len(statistics)} batch-norm statistics")
    frozen = [t for t in spec.with_role(Role.FROZEN) if t.name not in statistics]
    if frozen:
        left.insert(0, f"{len(frozen)} weights that --trainable does not name")
    return tuple(trained), tuple(left)


def _read_at(model: onnx.ModelProto, places: Mapping[str, tuple[int, ...]]) -> set[str]:
    return {
        node.input[place]
        for node in model.graph.node
        for place in places.get(node.op_type, ())
        if place < len(node.input) and node.input[place]
    }


def _is_special(tensor: onnx.TensorProto) -> bool:
    """Return whether it is no bias: that has one long axis, and is not all ones."""
    long = [side for side in tensor.dims if side > 1]
    return len(long) > 1 or bool((numpy_helper.to_array(tensor) == 1).all())


def _why(tensor: onnx.TensorProto) -> str:
    values = numpy_helper.to_array(tensor)
    if not np.isfinite(values).all() or (values.min() <= MASKED and len(np.unique(values)) <= 2):
        return "a mask"
    return "no weight meets it before"


def shown(names: Sequence[str]) -> str:
    """Return the first few of ``names``, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
