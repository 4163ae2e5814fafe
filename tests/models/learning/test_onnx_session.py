"""What onnxruntime says, as one sentence with the node and without its own paths."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import PayloadError
from models.learning.onnx_session import open_session, run_session
from models.learning.onnxruntime_errors import runtime_sentence


def model_of(*nodes: onnx.NodeProto, **constants: np.ndarray) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


FOR_ONE_SAMPLE = model_of(
    helper.make_node("Reshape", ["x", "shape"], ["p"], "fixed"), shape=np.array([1, 4])
)


def test_a_model_that_does_not_run_is_named_with_its_node() -> None:
    session = open_session(FOR_ONE_SAMPLE)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(run_session(session, ["p"], {"x": x})[0], x)
    for batch in (2, 7):
        with pytest.raises(PayloadError) as error:
            run_session(session, None, {"x": np.ones((batch, 4), np.float32)})
        said = str(error.value)
        assert said.startswith("the model does not run: node 'fixed' (Reshape): ")
        assert "onnxruntime" not in said.lower()
        assert ".cc" not in said
        assert "/" not in said.split(": ", 2)[2]


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.ones((1, 4), np.float32)},
        {"x": np.ones((1, 4), np.float64)},
        {"x": np.ones((1, 5), np.float32)},
        {"x": np.ones(4, np.float32)},
    ],
)
def test_inputs_that_do_not_fit_are_one_sentence(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(PayloadError, match="the model does not run: ") as error:
        run_session(open_session(FOR_ONE_SAMPLE), ["p"], feeds)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"no model",
        FOR_ONE_SAMPLE[:40],
        model_of(helper.make_node("NoSuchOperator", ["x"], ["p"], "odd")),
        model_of(helper.make_node("Add", ["x", "missing"], ["p"], "odd")),
    ],
)
def test_a_model_that_does_not_load_is_one_sentence(model: bytes) -> None:
    with pytest.raises(PayloadError, match="onnxruntime refuses the model: ") as error:
        open_session(model)
    assert "\n" not in str(error.value)
    assert "[ONNXRuntimeError]" not in str(error.value)


def test_an_exception_without_words_has_its_kind_and_a_long_one_ends() -> None:
    assert runtime_sentence(RuntimeError()) == "RuntimeError"
    assert len(runtime_sentence(RuntimeError("a b\n" * 1000))) <= 304
