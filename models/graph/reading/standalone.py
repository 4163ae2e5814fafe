"""Brings any ONNX model to our opset, or refuses what is not self-contained. Pure; no files.

What comes out is one flat list of standard nodes: no functions, no control flow, no custom
operators, no data outside the file, no initializers among the inputs, nothing in training mode.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, version_converter

from models.errors import UsageError
from models.graph.graph_builder import IR_VERSION, OPSET
from models.graph.reading.constant_branches import fold_branches
from models.graph.reading.group_norm_form import without_group_norms
from models.graph.reading.needed_part import (
    STANDARD,
    choose_output,
    has_subgraph,
    keep_needed,
    sort_nodes,
)
from models.graph.reading.newer_operators import in_older_operators, under_other_names
from models.graph.reading.number_types import refuse_quantized, widen_floats
from models.graph.reading.recurrent_forms import time_first, without_zero_states
from models.graph.reading.sklearn_nodes import LEARNING_DOMAIN, without_maps, without_scalers

__all__ = ["first_line", "lies_outside", "standalone"]

FIRST_COORDINATES = 11  # the opset in which a Resize says how it maps coordinates
RANDOM = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    "RandomUniformLike",
}


def first_line(error: Exception) -> str:
    """Return what a library's exception says, without its trace."""
    line = str(error).strip().split("\n")[0]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)[:300]


def standalone(
    model: onnx.ModelProto,
    *,
    output: str | None = None,
    on_note: Callable[[str], None] = lambda words: None,
) -> onnx.ModelProto:
    """Return a copy of ``model`` in our opset and IR, functions inlined, ``output`` first.

    What ``output`` (by default the first) does not need is gone: other outputs stay only where
    standard operators make them of the same input. ``on_note`` is told what became of weights of
    other types than float32.

    Raises:
        UsageError: it is not valid, or not self-contained; the node or weight is named.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not copy.graph.node or not copy.graph.output:
        raise UsageError("the model has no nodes or no outputs: it is empty or not an ONNX file")
    _refuse_damaged_names(copy.graph)
    del copy.metadata_props[:]
    if copy.functions:
        copy = _inlined(copy)
    version = max(
        (opset.version for opset in copy.opset_import if opset.domain in STANDARD), default=0
    )
    graph = copy.graph
    for node in graph.node:
        node.domain = "" if node.domain in STANDARD else node.domain
    without_maps(graph)
    without_scalers(graph)
    sort_nodes(graph)
    choose_output(graph, output)
    keep_needed(graph)
    for tensor in graph.initializer:
        _refuse_unreadable(tensor)
    fold_branches(graph, version)
    keep_needed(graph)
    if graph.sparse_initializer:
        raise UsageError("the model has sparse initializers; export it with dense weights")
    refuse_quantized(graph)
    for node in graph.node:
        _refuse_node(node)
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", version))
    widen_floats(copy, on_note)
    without_group_norms(copy)
    _check(copy)
    _no_training(graph, on_note)
    _refuse_training_mode(graph)
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    del graph.input[:]
    graph.input.extend(inputs)
    copy.ir_version = IR_VERSION
    result = copy if version == OPSET else _converted(copy, version)
    without_zero_states(result.graph)
    time_first(result.graph)
    return result


def _refuse_damaged_names(graph: onnx.GraphProto) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes."""
    names: list[object] = [tensor.name for tensor in graph.initializer]
    names += [value.name for value in (*graph.input, *graph.output)]
    for node in graph.node:
        names += [node.op_type, node.domain, node.name, *node.input, *node.output]
        names += [attribute.name for attribute in node.attribute]
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"the model is damaged: a name in it is not text ({name!r:.60})")


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        copy = inliner.inline_local_functions(model)
    except Exception as error:  # the library raises bare RuntimeError and others
        raise UsageError(
            f"the functions of the model cannot be resolved: {first_line(error)}; export it "
            "without local functions"
        ) from None
    del copy.functions[:]
    return copy


def _no_training(graph: onnx.GraphProto, on_note: Callable[[str], None]) -> None:
    """Take an input that only says whether to train as no, in place."""
    readers: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, set()).add((node.op_type, place))
    for value in list(graph.input):
        kind = value.type.tensor_type
        is_flag = kind.elem_type == TensorProto.BOOL and readers.get(value.name) == {("Dropout", 2)}
        if is_flag:
            graph.initializer.append(numpy_helper.from_array(np.array(False), value.name))
            graph.input.remove(value)
            on_note(f"input {value.name!r} says whether to train and is taken as no")


def _converted(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    model = in_older_operators(model, version)
    undo = under_other_names(model) if version > OPSET else None
    try:
        converted = version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises bare RuntimeError and others
        raise UsageError(
            f"the model's opset {version} cannot be converted to {OPSET}: {first_line(error)}; "
            f"export it with opset {OPSET}"
        ) from None
    if undo is not None:
        undo(converted)
    if version < FIRST_COORDINATES:
        _as_resized_before(converted.graph)
    converted.ir_version = IR_VERSION
    return converted


def _as_resized_before(graph: onnx.GraphProto) -> None:
    """Say of every Resize, in place, how older opsets resize: the converter does not."""
    factors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Resize":
            given = factors.get(node.input[2]) if len(node.input) > 2 else None
            # onnxruntime rounds up where it makes smaller, and down where larger.
            rounding = "floor" if given is None or (given >= 1).all() else "ceil"
            settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
            node.attribute.extend(helper.make_attribute(*item) for item in settings.items())


def _check(model: onnx.ModelProto) -> None:
    known = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in known and not value.type.tensor_type.HasField("shape"):
            raise UsageError(
                f"input {value.name!r} of the model has no shape: export it with one, the batch "
                "first ([batch, ...])"
            )
    shapeless = [v for v in model.graph.output if not v.type.tensor_type.HasField("shape")]
    try:
        for value in shapeless:  # we work the shapes out anyway, but the checker insists on some
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
        for value in shapeless:
            value.type.tensor_type.ClearField("shape")
    except Exception as error:  # ValidationError, and what protobuf and the C++ side raise
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
        if node.op_type in RANDOM:
            raise UsageError(
                f"node {node.name or node.output[0]!r} ({node.op_type}) makes random numbers; "
                "export the model in evaluation mode"
            )
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
    if node.domain:
        remedy = (
            "scikit-learn's other steps and models: convert the net alone, and do in x what stands "
            "before it"
            if node.domain == LEARNING_DOMAIN
            else "export the model without a runtime's own optimizations and operators"
        )
        raise UsageError(
            f"node {name!r} is {node.op_type} of domain {node.domain!r}; only standard ONNX "
            f"operators can be used ({remedy})"
        )
    if has_subgraph(node):
        raise UsageError(
            f"node {name!r} is control flow ({node.op_type}), which cannot be differentiated; "
            "export the model with fixed shapes and without loops or branches"
        )
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _refuse_unreadable(attribute.t)
        if attribute.ref_attr_name:
            raise UsageError(
                f"node {name!r} refers to an attribute of a function that is not there"
            )
