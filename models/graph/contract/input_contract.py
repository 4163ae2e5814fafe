"""The user's arrays as they are, converted inside the graph to what the model wants. Pure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError
from models.graph.contract.input_layout import Layout, find_layout
from models.graph.facts.shape_facts import BATCH
from models.graph.graph_builder import GraphBuilder
from models.graph.reading.forward_graph import INPUT, input_array, normalize_forward

__all__ = ["DTYPES", "Conversion", "Converted", "convert_input"]

DTYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}
BYTE = 1 / 255
LARGE = 8.0  # a mean beyond it is one of 0..255, not of 0..1
DIVISOR = 50.0  # likewise a deviation; such of 0..255 are about 57
PASSING = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


class Conversion(NamedTuple):
    """What is done to samples before the model gets them, in this order."""

    layout: Layout
    dtype: str  # of the model's input
    scale: float  # times
    mean: npt.NDArray[np.float32] | None  # minus; of a shape that goes with the model's sample
    std: npt.NDArray[np.float32] | None  # divided by


class Converted(NamedTuple):
    """A model whose input is the user's array, and what was put in front of it for that."""

    model: onnx.ModelProto
    conversion: Conversion


def _check_cast(dtype: str, wanted: str) -> None:
    if wanted not in DTYPES:
        raise UsageError(f"the model wants an input of dtype {wanted}, not {dtype}")
    if dtype == "float32":
        raise UsageError(
            f"x holds float32, but the model wants whole numbers ({wanted}): save "
            f"x.astype(np.{wanted}) if it holds such"
        )


def convert_input(
    model: onnx.ModelProto,
    *,
    dtype: str,
    sample_shape: Sequence[int],
    transpose: Sequence[int] | None = None,
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    output: str | None = None,
    on_step: Callable[[str], None] = lambda words: None,
    on_note: Callable[[str], None] = lambda words: None,
) -> Converted:
    """Return the normalized model whose input ``x`` is the user's array, and how it gets there.

    ``dtype`` ("float32", "uint8", "int64", "int32") and ``sample_shape`` are those of one sample as
    it is stored. In this order: its axes brought into the model's order and shape (`find_layout`;
    ``transpose`` is an order that was asked for), cast, times ``scale`` (by default 1/255 from
    uint8 to a float input, unless the model does that itself, else 1), minus ``mean``, by ``std``
    (each one number, or one per channel: the first axis of the model's sample, or the last where
    only that has as many).

    ``on_step`` is told, in a few words, each of these that is done; ``on_note`` what could have
    been meant too.

    Raises:
        UsageError: the shapes do not fit, or as `normalize_forward`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"x has dtype {dtype}; it must be one of {', '.join(DTYPES)}")
    stored = tuple(sample_shape)
    dims = _wanted_dims(model)
    try:
        layout = None if dims is None else find_layout(stored, dims, transpose=transpose)
    except UsageError as error:
        raise UsageError(_about_batch(model, stored) or str(error)) from None
    if words := _about_batch(model, stored, is_open=True):
        raise UsageError(words)
    forward = normalize_forward(
        model,
        sample_shape=None if layout is None else layout.shape,
        output=output,
        on_note=on_note,
    )
    _, wanted_dtype, wanted = input_array(forward)
    if layout is None:
        layout = find_layout(stored, wanted, transpose=transpose)
    if layout.note:
        on_note(layout.note)
    if layout.words:
        on_step(layout.words)
    if dtype != wanted_dtype:
        _check_cast(dtype, wanted_dtype)
        on_step(f"made {wanted_dtype}")
    is_float = wanted_dtype == "float32"
    if scale is None:
        scale = 1.0
        if dtype == "uint8" and is_float:
            if (node := _scales_itself(forward)) is None:
                scale = BYTE
            else:
                on_step(f"not divided by 255, since the model's node {node!r} takes 0..255")
    if (scale != 1.0 or mean is not None or std is not None) and not is_float:
        raise UsageError(f"the model's input is {wanted_dtype}: it cannot be scaled or normalized")
    if scale != 1.0:
        on_step("divided by 255" if scale == BYTE else f"times {scale:g}")
    conversion = Conversion(
        layout,
        wanted_dtype,
        scale,
        None if mean is None else _per_channel(mean, wanted, "mean"),
        None if std is None else _per_channel(std, wanted, "std"),
    )
    if mean is not None:
        on_step("minus the mean")
    if std is not None:
        on_step("divided by the deviation")
    _put_in_front(forward, conversion, dtype, stored)
    return Converted(forward, conversion)


def _put_in_front(
    forward: onnx.ModelProto, conversion: Conversion, dtype: str, stored: tuple[int, ...]
) -> None:
    g = GraphBuilder(
        {name for node in forward.graph.node for name in (*node.input, *node.output)}
        | {tensor.name for tensor in forward.graph.initializer}
    )
    layout, value = conversion.layout, INPUT
    if layout.turns:
        value = g.transpose(value, [0, *(axis + 1 for axis in layout.order)])
    if tuple(stored[axis] for axis in layout.order) != layout.shape:
        value = g.reshape(value, [None, *layout.shape])
    if dtype != conversion.dtype:
        value = g.cast(value, DTYPES[conversion.dtype])
    if conversion.scale != 1.0:
        value = g.mul(value, g.scalar(conversion.scale))
    if conversion.mean is not None:
        value = g.sub(value, g.constant(conversion.mean))
    if conversion.std is not None:
        value = g.div(value, g.constant(conversion.std))
    if value != INPUT:
        _prepend(forward, g, value, dtype, stored)


def _wanted_dims(model: onnx.ModelProto) -> list[int | None] | None:
    """Return the dimensions of one sample of the model's input, None where they are open.

    None for all of it where `normalize_forward` will say what is wrong with the inputs.
    """
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    if len(inputs) != 1:
        return None
    dims = [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in inputs[0].type.tensor_type.shape.dim
    ]
    if len(dims) < 2:
        return None
    _close_by_weights(dims, model, inputs[0].name, known)
    return dims[1:]


def _close_by_weights(
    dims: list[int | None], model: onnx.ModelProto, name: str, known: dict[str, onnx.TensorProto]
) -> None:
    """Write, where channels or features are left open, those of the first weight into ``dims``."""
    places = list(range(len(dims)))  # of the input's axes in the value that is followed
    for node in model.graph.node:
        if name not in node.input:
            continue
        settings = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Transpose" and "perm" in settings:
            places = [places[axis] for axis in settings["perm"].ints]
        elif node.op_type not in ("Cast", "Identity"):
            weight = known.get(node.input[1]) if len(node.input) > 1 else None
            if node.op_type == "Conv" and weight is not None and len(weight.dims) == len(dims):
                group = settings["group"].i if "group" in settings else 1
                place, size = places[1], weight.dims[1] * group
            elif node.op_type == "MatMul" and weight is not None and len(weight.dims) == 2:
                place, size = places[-1], weight.dims[0]
            else:
                return
            dims[place] = size if dims[place] is None and place else dims[place]
            return
        name = node.output[0]


def _scales_itself(forward: onnx.ModelProto) -> str | None:
    """Return the node that brings values of 0..255 into the range of the rest, if there is one."""
    values = {tensor.name: tensor for tensor in forward.graph.initializer}
    name = INPUT
    for node in forward.graph.node:
        if name not in node.input:
            continue
        if node.op_type in PASSING:
            name = node.output[0]
            continue
        others = [values.get(other) for other in node.input if other != name]
        constants = [np.abs(numpy_helper.to_array(other)) for other in others if other is not None]
        if len(constants) != len(others) or not constants or not constants[0].size:
            return None
        first = constants[0]
        if node.op_type == "BatchNormalization":
            takes_bytes = len(constants) == 4 and float(constants[2].max()) > LARGE
        else:
            takes_bytes = (
                (node.op_type == "Div" and float(first.min()) > DIVISOR)
                or (node.op_type == "Mul" and 0 < float(first.max()) < 1 / DIVISOR)
                or (node.op_type in ("Add", "Sub") and float(first.max()) > LARGE)
            )
        return node.name if takes_bytes else None
    return None


def _per_channel(
    values: float | Sequence[float], wanted: tuple[int, ...], what: str
) -> npt.NDArray[np.float32]:
    array = np.asarray(values, np.float32)
    if array.ndim == 0 or array.size == 1:
        return array.reshape(())
    if array.ndim == 1 and array.size == wanted[0]:
        return array.reshape(-1, *[1] * (len(wanted) - 1))
    if array.ndim == 1 and array.size == wanted[-1]:
        return array
    raise UsageError(
        f"{what} has {array.size} numbers, but the model's input {list(wanted)} has "
        f"{wanted[0]} channels"
    )


def _prepend(
    forward: onnx.ModelProto, g: GraphBuilder, value: str, dtype: str, stored: tuple[int, ...]
) -> None:
    graph = forward.graph
    for node in graph.node:
        node.input[:] = [value if name == INPUT else name for name in node.input]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*g.nodes, *nodes])
    graph.initializer.extend(g.initializers())
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, DTYPES[dtype], [BATCH, *stored]))


def _about_batch(model: onnx.ModelProto, stored: tuple[int, ...], *, is_open: bool = False) -> str:
    """Return what to say of an input whose first axis is not the batch, "" where it may be.

    ``is_open``: only where another axis is open, which the first is not.
    """
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    if len(inputs) != 1:
        return ""
    dims = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
    shown = "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
    said = f"input {inputs[0].name!r} of the model is {shown}"
    if tuple(dims) == stored and not (is_open and len(dims) > 1):
        return (
            f"{said}, as one sample of x is: it has no axis for the batch; export the model with "
            "one, as first axis"
        )
    for axis, size in enumerate(dims):
        is_free = size is None or (size == 1 and not is_open)
        if axis and is_free and tuple(dims[:axis] + dims[axis + 1 :]) == stored:
            return (
                f"{said}, and one sample of x {list(stored)}: the batch is axis {axis}; export the "
                "model with the batch first (batch_first=True in torch's layers)"
            )
    return ""
