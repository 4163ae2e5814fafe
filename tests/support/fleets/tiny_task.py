"""A model of four numbers and three answers, and data for it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.author.data.labeled_data import Dataset

__all__ = ["linear_model", "some_data"]


def linear_model(outputs: int = 3, inputs: int = 4) -> Path:
    """Write x [batch, inputs] -> Gemm -> y [batch, outputs]; return where."""
    random = np.random.default_rng(0)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
        [
            numpy_helper.from_array(random.normal(size=(inputs, outputs)).astype(np.float32), "w"),
            numpy_helper.from_array(np.zeros(outputs, np.float32), "b"),
        ],
    )
    path = Path(tempfile.mkdtemp()) / "linear.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path
    )
    return path


def some_data(**change: Any) -> Dataset:
    x = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    base = Dataset("some", x, np.arange(60) % 3, None, np.arange(60) % 5 == 0, False)
    return base._replace(**change)
