"""Any forward ONNX model in the one form that the rest of us reads. Pure; no files, no runtime.

Opset 21, IR 10, one input ``x`` whose first dimension is the batch, every weight an initializer,
no control flow, no functions, no data outside the file, no shape arithmetic that can be done now.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from models.errors import UsageError
from models.graph.batch.free_batch import free_batch
from models.graph.facts.constants import STATISTIC_INPUTS, constants, inputs_of
from models.graph.facts.shape_facts import BATCH, fold_shapes, infer_facts
from models.graph.facts.size_limits import check_filled, refuse_huge
from models.graph.reading.merged_constants import separate_merged
from models.graph.reading.split_sequences import without_sequences
from models.graph.reading.standalone import first_line, standalone

__all__ = [
    "INPUT",
    "ArrayInfo",
    "input_array",
    "normalize_forward",
    "output_array",
    "statistics",
    "tensors_behind",
    "weights",
]

INPUT = "x"
RESERVED = {INPUT, "y", "sample_weight", "lr", "mu", "loss", "grad_norm", "adam_step"}
RESERVED_PREFIXES = ("new/", "anchor/", "momentum/", "adam_m/", "adam_v/")


class ArrayInfo(NamedTuple):
    """An input or output, without the batch dimension."""

    name: str
    dtype: str  # as numpy calls it
    shape: tuple[int, ...]


def normalize_forward(
    model: onnx.ModelProto,
    *,
    sample_shape: Sequence[int] | None = None,
    output: str | None = None,
    on_note: Callable[[str], None] = lambda words: None,
) -> onnx.ModelProto:
    """Return ``model`` in our form; ``model`` itself is untouched, and doing it twice is harmless.

    ``sample_shape`` is the shape of one sample as the model wants it, needed only when the model
    leaves more dimensions open than the batch. ``output`` names the output to learn from, by
    default the first; it becomes the first, the others stay where standard operators make them.
    ``on_note`` is told what was done to weights that their author may not expect.

    Raises:
        UsageError: control flow, custom operators, external data, several inputs, an unknown
            output, a batch that cannot be made symbolic, or not a valid model at all.
    """
    normal = standalone(model, output=output, on_note=on_note)
    refuse_huge(normal.graph)
    _weights_as_initializers(normal.graph)
    without_sequences(normal.graph)
    separate_merged(normal.graph, on_note)
    _single_input(normal.graph, sample_shape)
    _rename_reserved(normal.graph)
    _drop_unused(normal.graph)
    free_batch(normal)
    fold_shapes(normal)
    _declare_outputs(normal)
    _drop_unused(normal.graph)
    _name_nodes(normal.graph)
    try:
        onnx.checker.check_model(normal)
    except Exception as error:  # ValidationError, and what protobuf and the C++ side raise
        raise UsageError(f"the model is not valid ONNX: {first_line(error)}") from None
    return normal


def weights(forward: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights that could be trained, by name, in the order of their first use.

    ``forward`` is normalized. Batch-norm statistics, integers, single numbers that merely
    parameterize a formula, masks, tables of sines and constants that scale the input are no
    weights; `models.graph.facts.constants.constants` says why.
    """
    values = {tensor.name: tensor for tensor in forward.graph.initializer}
    return {
        constant.name: numpy_helper.to_array(values[constant.name])
        for constant in constants(forward)
        if constant.is_trained
    }


def tensors_behind(forward: onnx.ModelProto, output: str) -> set[str]:
    """Return what ``output`` of a normalized model is computed from, by name."""
    needed = {output}
    for node in reversed(forward.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    return needed


def statistics(forward: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    """Return the means and variances of a normalized model's batch norms, by name."""
    names = inputs_of(forward.graph, STATISTIC_INPUTS)
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in forward.graph.initializer
        if tensor.name in names
    }


def input_array(forward: onnx.ModelProto) -> ArrayInfo:
    """Describe the input of a normalized model."""
    return _array_info(forward.graph.input[0])


def output_array(forward: onnx.ModelProto) -> ArrayInfo:
    """Describe the first output of a normalized model."""
    return _array_info(forward.graph.output[0])


def _array_info(value: onnx.ValueInfoProto) -> ArrayInfo:
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return ArrayInfo(value.name, dtype, tuple(d.dim_value for d in tensor.shape.dim[1:]))


def _weights_as_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes, and ConstantOfShape nodes of known shape, into initializers, all raw."""
    values: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = _constant_value(node)
        elif node.op_type == "ConstantOfShape" and node.input[0] in values:
            tensor = _filled(node, numpy_helper.to_array(values[node.input[0]]))
        else:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        values[tensor.name] = tensor
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)
    for tensor in graph.initializer:  # devices change weights as raw bytes
        if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto:
    if len(node.attribute) != 1:
        raise UsageError(f"the model is not valid ONNX: constant {node.output[0]!r} has no value")
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        copy = onnx.TensorProto()
        copy.CopyFrom(value)
        return copy
    dtypes: dict[str, Any] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in dtypes:
        raise UsageError(f"constant {node.output[0]!r} holds {attribute.name}, not numbers")
    return numpy_helper.from_array(np.asarray(value, dtypes[attribute.name]))


def _filled(node: onnx.NodeProto, shape: npt.NDArray[Any]) -> onnx.TensorProto:
    check_filled(node, shape.reshape(-1))
    value = np.zeros(1, np.float32)
    for attribute in node.attribute:
        value = numpy_helper.to_array(attribute.t)
    return numpy_helper.from_array(np.full([int(d) for d in shape], value.reshape(-1)[0]))


def _dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the dimensions, None where open; some exporters write -1 for that."""
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in value.type.tensor_type.shape.dim
    ]


def _single_input(graph: onnx.GraphProto, sample_shape: Sequence[int] | None) -> None:
    """Leave one input of known shape but for the batch, whose old size stays for `free_batch`."""
    if len(graph.input) != 1:
        described = ", ".join(f"{v.name} {_shape_text(_dims(v))}" for v in graph.input)
        raise UsageError(
            f"the model wants {len(graph.input)} inputs ({described}); a model to train has "
            "one: make the others constants, or compute them inside the model (in torch: export a "
            "module whose forward takes x alone)"
        )
    value = graph.input[0]
    dims = _dims(value)
    if not dims:
        raise UsageError(f"input {value.name!r} has no dimensions; the first must be the batch")
    inner = dims[1:]
    if sample_shape is not None:
        fits = len(inner) == len(sample_shape) and all(
            d in (None, n) for d, n in zip(inner, sample_shape, strict=True)
        )
        if not fits:
            raise UsageError(
                f"the model wants samples of shape {_shape_text(inner)}, not {list(sample_shape)}"
            )
        inner = list(sample_shape)
    if None in inner:
        raise UsageError(
            f"input {value.name!r} is {_shape_text(dims)}: give the shape of one sample, since "
            "only the batch may stay open"
        )
    batch: int | str = dims[0] if dims[0] is not None else BATCH
    value.CopyFrom(
        helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, [batch, *inner])
    )


def _shape_text(dims: Iterable[int | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def _rename_reserved(graph: onnx.GraphProto) -> None:
    """Call the input ``x``, and keep the names of the training graph's inputs and outputs free."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    changes = {}
    for name in sorted(taken):
        if name in RESERVED or name.startswith(RESERVED_PREFIXES):
            fresh = f"net/{name}"
            while fresh in taken:
                fresh += "_"
            changes[name] = fresh
    changes[graph.input[0].name] = INPUT
    for node in graph.node:
        node.input[:] = [changes.get(name, name) for name in node.input]
        node.output[:] = [changes.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = changes.get(value.name, value.name)
    del graph.value_info[:]


def _drop_unused(graph: onnx.GraphProto) -> None:
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own: the given one, or that of its first output."""
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            node.name = node.output[0]
        seen.add(node.name)


def _declare_outputs(model: onnx.ModelProto) -> None:
    """Write the inferred shapes into the outputs; forget minor outputs without any."""
    facts = infer_facts(model)
    outputs = list(model.graph.output)
    if outputs[0].name not in facts.shapes:
        raise UsageError(f"the shape of output {outputs[0].name!r} cannot be worked out")
    del model.graph.output[:]
    for name in [value.name for value in outputs if value.name in facts.shapes]:
        dims = [BATCH if d is None else d for d in facts.shapes[name]]
        model.graph.output.append(helper.make_tensor_value_info(name, facts.dtypes[name], dims))
