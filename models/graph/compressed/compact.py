"""A model whose weights are few centers and the numbers of those centers, for stock onnxruntime.

onnxruntime folds the codebooks when it loads the model: it runs as fast as before and takes as
much memory, but the file is an eighth (16 centers) or a quarter (256) of the size.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from models.codec.sparse.coreset import kmeans_centers, nearest
from models.errors import UsageError
from models.graph.compressed.quantized_values import ValueNodes

__all__ = ["SMALLEST", "Compacted", "compact_model"]

SMALLEST = 256  # values; smaller tensors stay as they are


class Compacted(NamedTuple):
    """A compact model, and what became of its tensors."""

    model: ModelProto
    errors: dict[str, float]  # squared error over squared length, of each compacted tensor


def compact_model(
    model: ModelProto, *, centers: int = 16, only: Collection[str] | None = None
) -> Compacted:
    """Return a copy of ``model`` whose float32 initializers are codebooks of exact 1-D k-means.

    ``only``: the names to compact; all of at least ``SMALLEST`` values without.

    Raises:
        UsageError: more centers than a byte can number, or fewer than two.
    """
    if not 2 <= centers <= 256:
        raise UsageError(f"{centers} centers: between 2 and 256 are possible")
    compact = ModelProto()
    compact.CopyFrom(model)
    graph = ValueNodes()
    kept: list[TensorProto] = []
    errors: dict[str, float] = {}
    for initializer in compact.graph.initializer:
        wanted = initializer.name in only if only is not None else True
        if not wanted or initializer.data_type != TensorProto.FLOAT:
            kept.append(initializer)
            continue
        values = numpy_helper.to_array(initializer)
        if values.size < SMALLEST or not np.isfinite(values).all():
            kept.append(initializer)
            continue
        codebook = kmeans_centers(values.reshape(-1), centers)
        numbers = nearest(values.reshape(-1), codebook)
        missed = float(np.square(values.reshape(-1) - codebook[numbers]).sum())
        errors[initializer.name] = missed / max(float(np.square(values).sum()), 1e-30)
        graph.table(numbers.reshape(values.shape), codebook, output=initializer.name)
    inputs = [value for value in compact.graph.input if value.name not in errors]
    nodes = [*graph.nodes, *compact.graph.node]
    for field, values in (
        ("initializer", [*kept, *graph.initializers]),
        ("node", nodes),
        ("input", inputs),
    ):
        # The elements are copied before the field that owns them is cleared.
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        compact.graph.ClearField(field)
        getattr(compact.graph, field).extend(copies)
    return Compacted(compact, errors)
