"""Batch sizes that are written into a graph: how they are told from others. Pure."""

import numpy as np
import onnx

from models.errors import UsageError
from models.graph.facts.shape_trace import node_name
from models.graph.graph_builder import Array

__all__ = ["ContradictionError", "WrittenError", "mixes_axes", "repeats", "written_shape"]


class WrittenError(UsageError):
    """A graph that declares an open batch has a size written into it."""

    def __init__(self, size: int, error: UsageError) -> None:
        super().__init__(str(error))
        self.size = size


class ContradictionError(UsageError):
    """The graph does not even fit for the size that is written into it."""


def repeats(value: Array, axis: int, part: int) -> bool:
    """Return whether parts of this size along an axis are all equal."""
    rows = np.moveaxis(value, axis, 0)
    rows = rows.reshape(-1, part, *rows.shape[1:])
    return bool((rows == rows[:1]).all())


def written_shape(node: onnx.NodeProto) -> str:
    return (
        f"node {node_name(node)} works for one batch size only; export the model with a dynamic "
        "batch"
    )


def mixes_axes(node: onnx.NodeProto) -> str:
    return (
        f"node {node_name(node)} works on all samples of a batch together, and so the answer for "
        "one depends on the others; export the model with the batch as first dimension "
        "(batch_first=True in torch's layers), or without that node"
    )
