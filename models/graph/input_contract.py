"""The user's arrays as they are, converted inside the graph to what the model wants. Pure."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.errors import UsageError
from models.graph.forward_graph import INPUT, input_array, normalize_forward
from models.graph.graph_builder import GraphBuilder
from models.graph.shape_facts import BATCH

DTYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def with_input_conversion(
    model: onnx.ModelProto,
    *,
    dtype: str,
    sample_shape: Sequence[int],
    scale: float | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    output: str | None = None,
    on_step: Callable[[str], None] = lambda words: None,
) -> onnx.ModelProto:
    """Return the normalized model whose input ``x`` is the user's array.

    ``dtype`` ("float32", "uint8", "int64", "int32") and ``sample_shape`` are those of one sample as
    it is stored. In this order: reshape to what the model wants (a missing axis of one channel is
    added, [height, width, channels] is transposed to [channels, height, width], any other shape of
    equal size is reshaped), cast, times ``scale`` (by default 1/255 from uint8 to a float input,
    else 1), minus ``mean``, by ``std`` (each one number, or one per channel = the first axis of
    the model's sample).

    ``on_step`` is told, in a few words, each of these that is done.

    Raises:
        UsageError: the shapes do not fit, or as `normalize_forward`.
    """
    if dtype not in DTYPES:
        raise UsageError(f"x has dtype {dtype}; it must be one of {', '.join(DTYPES)}")
    stored = tuple(sample_shape)
    forward = normalize_forward(model, sample_shape=_wanted_shape(model, stored), output=output)
    _, wanted_dtype, wanted = input_array(forward)
    g = GraphBuilder(
        {name for node in forward.graph.node for name in (*node.input, *node.output)}
        | {tensor.name for tensor in forward.graph.initializer}
    )
    is_float = wanted_dtype == "float32"
    value = _moved(g, stored, wanted, on_step)
    if dtype != wanted_dtype:
        if wanted_dtype not in DTYPES:
            raise UsageError(f"the model wants an input of dtype {wanted_dtype}, not {dtype}")
        value = g.cast(value, DTYPES[wanted_dtype])
        on_step(f"made {wanted_dtype}")
    if scale is None:
        scale = 1 / 255 if dtype == "uint8" and is_float else 1.0
    if (scale != 1.0 or mean is not None or std is not None) and not is_float:
        raise UsageError(f"the model's input is {wanted_dtype}: it cannot be scaled or normalized")
    if scale != 1.0:
        value = g.mul(value, g.scalar(scale))
        on_step("divided by 255" if scale == 1 / 255 else f"times {scale:g}")
    if mean is not None:
        value = g.sub(value, _per_channel(g, mean, wanted, "mean"))
        on_step("minus the mean")
    if std is not None:
        value = g.div(value, _per_channel(g, std, wanted, "std"))
        on_step("divided by the deviation")
    if value == INPUT:
        return forward
    _prepend(forward, g, value, dtype, stored)
    return forward


def _wanted_shape(model: onnx.ModelProto, stored: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the stored shape where the model leaves its own open and the two could be equal."""
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    if len(inputs) != 1:
        return None  # refused by normalize_forward, which says why
    dims = [
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
        for d in inputs[0].type.tensor_type.shape.dim
    ][1:]
    if None not in dims:
        return None
    for candidate in (stored, (1, *stored), (stored[-1:] + stored[:-1])):
        if len(candidate) == len(dims) and all(
            d in (None, n) for d, n in zip(dims, candidate, strict=True)
        ):
            return candidate
    return None


def _moved(
    g: GraphBuilder,
    stored: tuple[int, ...],
    wanted: tuple[int, ...],
    on_step: Callable[[str], None],
) -> str:
    if stored == wanted:
        return INPUT
    if len(stored) == len(wanted) == 3 and (stored[2], *stored[:2]) == wanted:
        on_step(f"channels put first, {list(wanted)}")
        return g.transpose(INPUT, [0, 3, 1, 2])
    if np.prod(stored) != np.prod(wanted):
        raise UsageError(
            f"one sample of x has shape {list(stored)}, but the model wants {list(wanted)}: "
            "resize the data, or export the model for it"
        )
    what = "a channel axis added" if wanted == (1, *stored) else "reshaped"
    on_step(f"{what}, {list(wanted)}")
    return g.reshape(INPUT, [None, *wanted])


def _per_channel(
    g: GraphBuilder, values: float | Sequence[float], wanted: tuple[int, ...], what: str
) -> str:
    array = np.asarray(values, np.float32)
    if array.ndim == 0 or array.size == 1:
        return g.scalar(float(array.reshape(-1)[0]))
    if array.ndim != 1 or array.size != wanted[0]:
        raise UsageError(
            f"{what} has {array.size} numbers, but the model's input {list(wanted)} has "
            f"{wanted[0]} channels"
        )
    return g.constant(array.reshape(-1, *[1] * (len(wanted) - 1)))


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
