"""The answer of ``infer.onnx`` as its loss wants it: the classes last, or probabilities."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError
from models.graph.facts.shape_facts import infer_facts
from models.graph.reading.forward_graph import output_array
from models.graph.training.model_end import class_axis, final_activation, model_end
from models.learning.onnx_session import open_session, run_session

__all__ = ["LossOutput", "check_answers", "with_loss_output"]

Loss = Literal["cross_entropy", "mse", "bce"]


class LossOutput(NamedTuple):
    """A model that answers as its loss wants it."""

    model: onnx.ModelProto
    answers: Literal["", "logits", "probabilities"]  # of `TaskSpec.answers`
    words: tuple[str, ...] = ()  # what was done that its author may not expect
    doubted: str = ""  # a node that may hide an activation; `check_answers` looks at values


def with_loss_output(
    infer: onnx.ModelProto,
    loss: Loss,
    *,
    y_shape: Sequence[int] = (),
    class_axis: int | None = None,
) -> LossOutput:
    """Return ``infer`` (normalized) with a first output that fits ``loss`` and such labels.

    For cross_entropy the classes go to the last axis behind those of ``y_shape``: torch's [batch,
    classes, T] becomes [batch, T, classes], and [batch, 1000, 1, 1] becomes [batch, 1000].
    ``class_axis`` (of the output, the batch is axis 0) says where they are if several fit. For bce,
    a model that ends in logits gets a sigmoid, so that all models of this loss answer with
    probabilities.

    Raises:
        UsageError: the output fits no such labels, several axes may be the classes, or the model
            ends in something that is neither logits nor probabilities.
    """
    output = output_array(infer)
    if output.dtype != "float32":
        raise UsageError(
            f"the model's output {output.name!r} is {output.dtype}: {loss} needs float32 (choose "
            "another with --output)"
        )
    if loss == "mse":
        return LossOutput(infer, "")
    if loss == "bce":
        return _yes_or_no(infer, output.shape, y_shape)
    at = _axis_of_classes(infer, output.shape, tuple(y_shape), class_axis)
    moved = _with_classes_last(infer, at, tuple(y_shape))
    end = model_end(moved, loss, infer_facts(moved))
    words: tuple[str, ...] = ()
    if any(size != 1 for size in output.shape[at + 1 :]):
        words = (
            f"the model has its classes in axis {at + 1} of {_text(output.shape)}; infer.onnx "
            f"answers with them last, {_text(output_array(moved).shape)}",
        )
    return LossOutput(moved, end.answers, words, end.unknown)


def check_answers(made: LossOutput, x: npt.NDArray[Any]) -> None:
    """Check on real samples that what was taken for logits does not look like probabilities.

    Only a graph with a node that hides what comes out of it leaves such a doubt; else nothing runs.

    Raises:
        UsageError: all logits are in [0, 1], and those of classes have a sum of 1.
        PayloadError: onnxruntime does not run the model on them.
    """
    if not made.doubted:
        return
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    name = model.graph.output[0].name
    is_bce = made.answers == "probabilities"
    if is_bce:  # the sigmoid is ours: look at what goes into it
        model.graph.output[0].name = model.graph.node[-1].input[0]
        del model.graph.node[-1]
    session = open_session(model.SerializeToString())
    values = run_session(session, [model.graph.output[0].name], {model.graph.input[0].name: x})[0]
    are_shares = bool(((values >= 0) & (values <= 1)).all())
    if not is_bce and are_shares:
        are_shares = bool(np.allclose(values.sum(axis=-1), 1, atol=1e-3))
    if are_shares:
        raise UsageError(
            f"the model's output {name!r} looks like probabilities, but behind node {made.doubted} "
            f"it cannot be seen what they come from: end the model in a "
            f"{'Sigmoid' if is_bce else 'Softmax'}, or in logits"
        )


def _yes_or_no(
    infer: onnx.ModelProto, shape: tuple[int, ...], y_shape: Sequence[int]
) -> LossOutput:
    if math.prod(shape) != math.prod(y_shape):
        raise UsageError(
            f"the model answers a sample with {math.prod(shape)} values, but y has "
            f"{math.prod(y_shape)} for each: bce compares one by one (a yes or no with two outputs "
            "is two classes: --loss cross_entropy with labels 0 and 1)"
        )
    end = model_end(infer, "bce", infer_facts(infer))
    if end.answers == "probabilities":
        return LossOutput(infer, "probabilities")
    where = f"node {end.node.name!r} ({end.node.op})" if end.node else "its input"
    words = (
        f"the model ends in logits ({where}): a sigmoid was put behind them, so that infer.onnx "
        "answers with probabilities",
    )
    return LossOutput(_with_sigmoid(infer), "probabilities", words, end.unknown)


def _axis_of_classes(
    infer: onnx.ModelProto, shape: tuple[int, ...], y_shape: tuple[int, ...], wanted: int | None
) -> int:
    """Return the axis of the classes in ``shape``, that of one answer."""
    name = output_array(infer).name
    if math.prod(shape) < 2:
        raise UsageError(
            f"the model's output {name!r} has shape {_text(shape)}: cross_entropy needs one value "
            "per class (for a yes or no from one value --loss bce; or choose another with --output)"
        )
    possible = [
        at
        for at, size in enumerate(shape)
        if size > 1 and _without_ones(shape[:at] + shape[at + 1 :]) == _without_ones(y_shape)
    ]
    if not possible:
        raise UsageError(
            f"the model's output {name!r} has shape {_text(shape)} for a sample whose labels have "
            f"shape {_text(y_shape)}: cross_entropy needs that shape and one more axis, of classes "
            "(choose another with --output, or another --loss)"
        )
    if wanted is not None:
        at = wanted - 1 if wanted > 0 else wanted + len(shape)
        if at not in possible:
            raise UsageError(
                f"axis {wanted} of the model's output {name!r} cannot be the classes: a sample has "
                f"answers of shape {_text(shape)} and labels of shape {_text(y_shape)}"
            )
        return at
    facts = infer_facts(infer)
    final = final_activation(infer, facts)
    if final.kind in ("softmax", "log_softmax"):
        over = class_axis(final, name, facts)
        if over is not None and over - 1 in possible:
            return over - 1
    if len(possible) > 1:
        axes = " or ".join(str(at + 1) for at in possible)
        raise UsageError(
            f"the classes of the model's output {name!r} may be in axis {axes} of [batch, "
            f"{', '.join(map(str, shape))}]: end the model in a softmax over them, or name the axis"
            " with --class-axis"
        )
    return possible[0]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _with_classes_last(
    infer: onnx.ModelProto, at: int, y_shape: tuple[int, ...]
) -> onnx.ModelProto:
    """Return ``infer`` with answers of shape [batch, *y_shape, classes]."""
    shape = output_array(infer).shape
    wanted = (*y_shape, shape[at])
    are_last = all(size == 1 for size in shape[at + 1 :])
    if shape == wanted and are_last:
        return infer
    model, value = _opened(infer, "as_given")
    output = model.graph.output[0]
    if not are_last:
        others = [axis for axis in range(len(shape) + 1) if axis != at + 1]
        is_done = (*shape[:at], *shape[at + 1 :], shape[at]) == wanted
        moved = output.name if is_done else _fresh(model, f"{output.name}_moved")
        model.graph.node.append(
            helper.make_node(
                "Transpose", [value], [moved], f"{moved}/transpose", perm=[*others, at + 1]
            )
        )
        value = moved
    if value != output.name:
        target = _fresh(model, f"{output.name}_shape")
        model.graph.initializer.append(
            numpy_helper.from_array(np.array([-1, *wanted], np.int64), target)
        )
        model.graph.node.append(helper.make_node("Reshape", [value, target], [output.name], target))
    batch = output.type.tensor_type.shape.dim[0].dim_param
    output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [batch, *wanted]))
    return model


def _with_sigmoid(infer: onnx.ModelProto) -> onnx.ModelProto:
    model, logits = _opened(infer, "logits")
    output = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Sigmoid", [logits], [output], f"{output}/sigmoid"))
    return model


def _opened(infer: onnx.ModelProto, what: str) -> tuple[onnx.ModelProto, str]:
    """Return a copy whose output value has another name, and that name; the output is free."""
    model = onnx.ModelProto()
    model.CopyFrom(infer)
    output = model.graph.output[0].name
    value = _fresh(model, f"{output}_{what}")
    for node in model.graph.node:
        node.input[:] = [value if name == output else name for name in node.input]
        node.output[:] = [value if name == output else name for name in node.output]
    del model.graph.value_info[:]  # may speak of the old shape
    return model, value


def _fresh(model: onnx.ModelProto, wish: str) -> str:
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    while wish in taken:
        wish += "_"
    return wish
