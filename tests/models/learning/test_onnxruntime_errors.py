"""What onnxruntime says becomes one sentence with the node and the reason."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.learning.onnxruntime_errors import failing_node, runtime_sentence

NUMBERS = np.ones((3, 4), np.float32)


def error_of(node: onnx.NodeProto, constant: np.ndarray, x: np.ndarray) -> Exception:
    """Run x [n, 4] and ``constant`` through ``node`` and return how onnxruntime fails."""
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(constant, "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception) as raised:  # noqa: PT011  # onnxruntime's have no common class
        ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    return raised.value


@pytest.mark.parametrize(
    ("node", "constant", "x", "says"),
    [
        (
            helper.make_node("Reshape", ["x", "c"], ["y"], name="/a/R"),
            np.array([1, 4]),
            NUMBERS,
            "node '/a/R' (Reshape): The input tensor cannot be reshaped to the requested shape. "
            "Input shape:{3,4}, requested shape:{1,4}",
        ),
        (
            helper.make_node("Gather", ["c", "x"], ["y"], name="g"),
            np.ones((5, 2), np.float32),
            np.full((3, 4), 9),
            "node 'g' (Gather): indices element out of data bounds, idx=9",
        ),
        (
            helper.make_node("Add", ["x", "c"], ["y"], name="a"),
            np.ones((2, 4), np.float32),
            NUMBERS,
            "node 'a' (Add): Attempting to broadcast",
        ),
        (
            helper.make_node("Concat", ["x", "c"], ["y"], name="k", axis=1),
            np.ones((1, 4), np.float32),
            NUMBERS,
            "node 'k' (Concat): Non concat axis dimensions must match",
        ),
    ],
)
def test_a_failing_node_is_named_with_its_reason(
    node: onnx.NodeProto, constant: np.ndarray, x: np.ndarray, says: str
) -> None:
    error = error_of(node, constant, x)
    assert runtime_sentence(error).startswith(says)
    assert failing_node(error) == (node.name, node.op_type)


@pytest.mark.parametrize("error", [ValueError(""), RuntimeError("a\nb " * 500), KeyError("x")])
def test_any_other_error_is_one_line_of_bounded_length(error: Exception) -> None:
    said = runtime_sentence(error)
    assert said
    assert "\n" not in said
    assert len(said) < 400
    assert failing_node(error) == ("", "")
