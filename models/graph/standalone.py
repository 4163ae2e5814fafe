"""Brings any ONNX model to our opset, or refuses what is not self-contained. Pure; no files.

What comes out is one flat list of standard nodes: no functions, no control flow, no custom
operators, no data outside the file, no initializers among the inputs, nothing in training mode.
"""

import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from models.errors import UsageError
from models.graph.graph_builder import IR_VERSION, OPSET


def first_line(error: Exception) -> str:
    """Return what a library's exception says, without its trace."""
    return str(error).strip().split("\n")[0]


def standalone(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of ``model`` in our opset and IR, functions inlined.

    Raises:
        UsageError: it is not valid, or not self-contained; the node or weight is named.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not copy.graph.node or not copy.graph.output:
        raise UsageError("the model has no nodes or no outputs: it is empty or not an ONNX file")
    for tensor in copy.graph.initializer:
        _refuse_unreadable(tensor)
    if copy.graph.sparse_initializer:
        raise UsageError("the model has sparse initializers; export it with dense weights")
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
        del copy.functions[:]
    for node in copy.graph.node:
        _refuse_node(node)
    _check(copy)
    _refuse_training_mode(copy.graph)
    del copy.metadata_props[:]
    known = {tensor.name for tensor in copy.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in known]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    version = max(
        (opset.version for opset in copy.opset_import if opset.domain in ("", "ai.onnx")), default=0
    )
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", version))
    copy.ir_version = IR_VERSION
    return copy if version == OPSET else _converted(copy, version)


def _converted(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        converted = version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises bare RuntimeError and others
        raise UsageError(
            f"the model's opset {version} cannot be converted to {OPSET}: {first_line(error)}; "
            f"export it with opset {OPSET}"
        ) from None
    converted.ir_version = IR_VERSION
    return converted


def _check(model: onnx.ModelProto) -> None:
    shapeless = [v for v in model.graph.output if not v.type.tensor_type.HasField("shape")]
    try:
        for value in shapeless:  # we work the shapes out anyway, but the checker insists on some
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
        for value in shapeless:
            value.type.tensor_type.ClearField("shape")
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UsageError(f"the model is not valid ONNX: {first_line(error)}") from None


def _refuse_training_mode(graph: onnx.GraphProto) -> None:
    """Refuse nodes that an export in training mode leaves behind."""
    true = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.BOOL and numpy_helper.to_array(tensor).any()
    }
    true |= {
        node.output[0]
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and attribute.t.data_type == TensorProto.BOOL
        if numpy_helper.to_array(attribute.t).any()
    }
    for node in graph.node:
        trains = any(a.name == "training_mode" and a.i for a in node.attribute) or (
            node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in true
        )
        if trains:
            raise UsageError(
                f"node {node.name or node.output[0]!r} ({node.op_type}) was exported in training "
                "mode; export the model in evaluation mode"
            )


def lies_outside(name: str) -> str:
    """Return what to say of a weight that an exporter wrote into another file."""
    return (
        f"weight {name!r} lies outside the ONNX file; save the model as one file: "
        "torch.onnx.export(..., external_data=False), or onnx.save(onnx.load(FILE), ANOTHER_FILE)"
    )


def _refuse_unreadable(tensor: onnx.TensorProto) -> None:
    """Refuse values outside the file, and such as do not have the size that they claim."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise UsageError(lies_outside(tensor.name))
    try:
        numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UsageError(f"weight {tensor.name!r} is damaged: {first_line(error)}") from None


def _refuse_node(node: onnx.NodeProto) -> None:
    name = node.name or (node.output[0] if node.output else "")
    if node.domain not in ("", "ai.onnx"):
        raise UsageError(
            f"node {name!r} is {node.op_type} of domain {node.domain!r}; only standard ONNX "
            "operators can be used"
        )
    node.domain = ""
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise UsageError(
                f"node {name!r} is control flow ({node.op_type}), which cannot be differentiated; "
                "export the model with fixed shapes and without loops or branches"
            )
        if attribute.HasField("t"):
            _refuse_unreadable(attribute.t)
        if attribute.ref_attr_name:
            raise UsageError(
                f"node {name!r} refers to an attribute of a function that is not there"
            )
