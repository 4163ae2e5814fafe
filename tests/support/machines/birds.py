"""A stranger's own model and data, as README's commands name them: birds.onnx, birds.npz, ..."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["SAMPLES", "write_data", "write_model", "write_photos", "write_samples"]

FEATURES, HIDDEN, CLASSES = 12, 16, 3
SAMPLES = 200  # of one board


def write_model(path: Path) -> None:
    """Write a forward model whose last layer is called ``head.*``."""
    rng = np.random.default_rng(0)
    shapes = {
        "body.weight": (HIDDEN, FEATURES),
        "body.bias": (HIDDEN,),
        "head.weight": (CLASSES, HIDDEN),
        "head.bias": (CLASSES,),
    }
    weights = [
        numpy_helper.from_array(np.asarray(rng.normal(0, 0.3, shape), np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "body.weight", "body.bias"], ["sums"], transB=1),
        helper.make_node("Relu", ["sums"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "birds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))


def write_data(path: Path) -> None:
    """Write the author's data: ``x``, ``y``, and ``test`` for a fifth of the rows."""
    x, y = _drawn(400, seed=1)
    np.savez(path, x=x, y=y, test=(np.arange(len(y)) % 5 == 0).astype(np.int64))


def write_samples(path: Path) -> None:
    """Write `SAMPLES` samples of one board."""
    x, y = _drawn(SAMPLES, seed=2)
    np.savez(path, x=x, y=y)


def write_photos(path: Path) -> None:
    """Write five things to ask about."""
    np.savez(path, x=_drawn(5, seed=3)[0])


def _drawn(count: int, *, seed: int) -> "tuple[np.ndarray, np.ndarray]":
    """Return ``count`` samples around one center per class, and their classes."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(0, 1, (CLASSES, FEATURES))
    y = rng.integers(0, CLASSES, count)
    x = centers[y] + rng.normal(0, 0.7, (count, FEATURES))
    return x.astype(np.float32), y.astype(np.int64)
