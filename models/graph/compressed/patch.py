"""A delta as an ONNX graph: old tensors in, new tensors out, for any stock onnxruntime.

The graph holds what the payload holds (codebooks, gaps, factors), not the dense delta; an entropy
decoder does not fit into a graph, so it is two to three times as large as the payload. It
computes in float32: results agree with the decoder's to about a millionth of the delta.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from models.codec.payload import frame_of
from models.codec.sparse import coreset_frame
from models.codec.sparse.coreset_frame import decode_coreset
from models.codec.transform.frame import read_frame
from models.codec.transform.low_rank import unit_rows
from models.codec.transform.matrices import TRANSFORM_BITS, whole_cosines
from models.codec.transform.quantize import FRACTION_BITS, Offsets, reconstruct
from models.codec.transform.shared_basis import UNIT_BITS
from models.codec.transform.stages import Part
from models.graph.compressed.quantized_values import ValueNodes
from models.graph.graph_builder import IR_VERSION, OPSET
from models.task.params import Vector, unflatten
from models.task.spec import TensorSpec

__all__ = ["patch_model"]

NEW = "new/"  # before the name of a tensor: its new value


def patch_model(
    payload: bytes, tensors: Sequence[TensorSpec], *, context: Vector | None = None
) -> ModelProto:
    """Return a model with the inputs ``<name>`` and the outputs ``new/<name>`` of ``tensors``.

    Raises:
        PayloadError: ``payload`` is none for ``tensors``, or was made in another context.
    """
    size = sum(tensor.size for tensor in tensors)
    frame = frame_of(payload, size)
    graph = ValueNodes()
    deltas: dict[str, str] = {}
    if frame[:1] == bytes([coreset_frame.TAG]):
        for name, values in unflatten(decode_coreset(frame, size), tensors).items():
            deltas[name] = graph.values(values)
    else:
        read = read_frame(frame, tensors, context)
        for part in read.parts:
            deltas |= _part(graph, part, read.step, read.offsets, tensors)
    for tensor in tensors:
        new = NEW + tensor.name
        if tensor.name in deltas:
            graph.add("Add", tensor.name, deltas[tensor.name], output=new)
        else:
            graph.add("Identity", tensor.name, output=new)

    def described(prefix: str) -> list[object]:
        return [
            helper.make_tensor_value_info(prefix + t.name, TensorProto.FLOAT, t.shape)
            for t in tensors
        ]

    whole = helper.make_graph(
        graph.nodes, "patch", described(""), described(NEW), graph.initializers
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(whole, opset_imports=[opset], ir_version=IR_VERSION)


def _part(
    graph: ValueNodes, part: Part, step: float, offsets: Offsets, tensors: Sequence[TensorSpec]
) -> dict[str, str]:
    """Return the name of the delta of each tensor in ``part`` that it changes."""
    members = [tensors[number] for number in part.group.tensors]
    if part.low_rank is None:
        values = part.value(step, offsets)
        if part.group.transposed:
            values = np.ascontiguousarray(values.T)
        found, at = {}, 0
        for tensor in members:
            own = values.reshape(-1)[at : at + tensor.size].reshape(tensor.shape)
            at += tensor.size
            if own.any():
                found[tensor.name] = graph.values(own)
        return found
    product = _low_rank(graph, part, step, offsets)
    if part.group.transposed:
        product = graph.add("Transpose", product, perm=[1, 0])
    (tensor,) = members
    return {tensor.name: graph.reshape(product, tensor.shape)}


def _low_rank(graph: ValueNodes, part: Part, step: float, offsets: Offsets) -> str:
    factors = part.low_rank
    assert factors is not None
    scale = step * 2.0**-FRACTION_BITS
    right = graph.values((reconstruct(factors.right, offsets) * scale).astype(np.float32))
    if factors.coordinates is not None and factors.basis is not None:
        inside = reconstruct(factors.coordinates, Offsets()) * scale
        directions = _whole(graph, factors.basis.directions.astype(np.int16), 2.0**-UNIT_BITS)
        known = graph.add("MatMul", graph.values(inside.astype(np.float32)), directions)
        right = graph.add("Add", right, known)
    if part.grid != (1, 1):
        down, across = (
            _whole(graph, waves.astype(np.int16), 2.0**-TRANSFORM_BITS)
            for waves in (whole_cosines(part.grid[0]).T, whole_cosines(part.grid[1]))
        )
        cells = graph.add("MatMul", graph.reshape(right, (-1, *part.grid)), across)
        right = graph.reshape(graph.add("MatMul", down, cells), factors.right.shape)
    units = _whole(graph, unit_rows(factors.left).astype(np.int16), 2.0**-UNIT_BITS)
    return graph.add("MatMul", graph.add("Transpose", units, perm=[1, 0]), right)


def _whole(graph: ValueNodes, values: npt.NDArray[np.int16], scale: float) -> str:
    wide = graph.add("Cast", graph.constant(values), to=TensorProto.FLOAT)
    return graph.add("Mul", wide, graph.constant(np.array(scale, np.float32)))
