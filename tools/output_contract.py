"""The answer of ``infer.onnx`` as its loss wants it: one axis of classes, or probabilities."""

import math

import onnx
from onnx import helper

from models.errors import UsageError
from models.graph.forward_graph import output_array

__all__ = ["with_loss_output"]


def with_loss_output(infer: onnx.ModelProto, loss: str) -> onnx.ModelProto:
    """Return ``infer`` (normalized) with a first output that fits ``loss``; else as it was.

    For cross_entropy, axes of length 1 behind the classes go: [batch, 1000, 1, 1] becomes
    [batch, 1000], also below a final softmax. For bce, a model that ends in logits gets a sigmoid,
    so that all models of this loss answer with probabilities.

    Raises:
        UsageError: the output has no classes.
    """
    shape = output_array(infer).shape
    if loss == "bce":
        return infer if _last_node(infer).op_type == "Sigmoid" else _with_sigmoid(infer)
    if loss != "cross_entropy":
        return infer
    if not shape or math.prod(shape) < 2:
        raise UsageError(
            f"the model's output {output_array(infer).name} has shape {shape}: cross_entropy needs "
            f"one value per class (choose another with --output, or another --loss)"
        )
    if len(shape) > 1 and math.prod(shape[1:]) == 1:
        return _with_flat_output(infer, shape[0])
    return infer


def _last_node(model: onnx.ModelProto) -> onnx.NodeProto:
    wanted = model.graph.output[0].name
    for node in model.graph.node:
        if wanted in node.output:
            return node
    raise UsageError(f"no node computes the model's output {wanted}")


def _with_sigmoid(infer: onnx.ModelProto) -> onnx.ModelProto:
    model = _copy(infer)
    output = model.graph.output[0].name
    logits = _fresh(model, f"{output}_logits")
    _rename_output(_last_node(model), output, logits)
    model.graph.node.append(helper.make_node("Sigmoid", [logits], [output]))
    return model


def _with_flat_output(infer: onnx.ModelProto, classes: int) -> onnx.ModelProto:
    model = _copy(infer)
    output = model.graph.output[0]
    last = _last_node(model)
    flat = _fresh(model, f"{output.name}_flat")
    if last.op_type in ("Softmax", "LogSoftmax"):
        flatten = helper.make_node("Flatten", [last.input[0]], [flat], axis=1)
        last.input[0] = flat
        del last.attribute[:]
        last.attribute.append(helper.make_attribute("axis", -1))
        at = list(model.graph.node).index(last)
        model.graph.node.insert(at, flatten)
    else:
        _rename_output(last, output.name, flat)
        model.graph.node.append(helper.make_node("Flatten", [flat], [output.name], axis=1))
    batch = output.type.tensor_type.shape.dim[0].dim_param
    output.CopyFrom(
        helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, [batch, classes])
    )
    del model.graph.value_info[:]  # may speak of the old shape
    return model


def _rename_output(node: onnx.NodeProto, old: str, new: str) -> None:
    node.output[list(node.output).index(old)] = new


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _fresh(model: onnx.ModelProto, wish: str) -> str:
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    while wish in taken:
        wish += "_"
    return wish
