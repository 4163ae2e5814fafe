"""The user's arrays go into the graph as they are stored."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError
from models.graph.forward_graph import input_array, weights
from models.graph.input_contract import with_input_conversion

RNG = np.random.default_rng(0)


def net(*shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model that returns its input, as float32."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["in"], ["out"], to=TensorProto.FLOAT)],
        "net",
        [helper.make_tensor_value_info("in", dtype, ["n", *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    (value,) = session.run(None, {"x": x})
    return np.asarray(value)


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (2, *shape), dtype=np.uint8)


def test_bytes_become_numbers_from_zero_to_one() -> None:
    x = images(3, 5, 4)
    model = with_input_conversion(net(3, 5, 4), dtype="uint8", sample_shape=(3, 5, 4))
    np.testing.assert_allclose(run(model, x), x / np.float32(255), rtol=1e-6)
    assert input_array(model) == ("x", "uint8", (3, 5, 4))
    assert not weights(model)


@pytest.mark.parametrize(
    ("stored", "wanted", "convert"),
    [
        ((28, 28), (1, 28, 28), lambda x: x[:, None]),
        ((8, 9, 3), (3, 8, 9), lambda x: x.transpose(0, 3, 1, 2)),
        ((28, 28), (784,), lambda x: x.reshape(2, -1)),
        ((28, 28), (784, 1), lambda x: x.reshape(2, -1, 1)),
    ],
)
def test_images_are_brought_into_the_model_s_shape(
    stored: tuple[int, ...], wanted: tuple[int, ...], convert: Any
) -> None:
    x = images(*stored).astype(np.float32)
    model = with_input_conversion(net(*wanted), dtype="float32", sample_shape=stored)
    np.testing.assert_array_equal(run(model, x), convert(x))


def test_scale_mean_and_std_apply_in_this_order() -> None:
    x = images(3, 5, 4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    model = with_input_conversion(
        net(3, 5, 4), dtype="uint8", sample_shape=(3, 5, 4), scale=0.01, mean=mean, std=std
    )
    column = (1, 3, 1, 1)
    expected = (x * 0.01 - np.reshape(mean, column)) / np.reshape(std, column)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


def test_tokens_stay_whole_numbers() -> None:
    x = images(80)
    model = with_input_conversion(
        net(80, dtype=TensorProto.INT64), dtype="uint8", sample_shape=(80,)
    )
    np.testing.assert_array_equal(run(model, x), x)
    with pytest.raises(UsageError, match="cannot be scaled"):
        with_input_conversion(
            net(80, dtype=TensorProto.INT64), dtype="uint8", sample_shape=(80,), scale=0.5
        )


def test_the_data_close_what_the_model_leaves_open() -> None:
    model = with_input_conversion(net(1, "h", "w"), dtype="float32", sample_shape=(6, 7))
    x = images(6, 7).astype(np.float32)
    np.testing.assert_array_equal(run(model, x), x[:, None])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "float64"}, "dtype float64"),
        ({"sample_shape": (28, 27)}, r"shape \[28, 27\], but the model wants \[1, 28, 28\]"),
        ({"mean": [1.0, 2.0]}, "2 numbers"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"dtype": "uint8", "sample_shape": (28, 28), **settings}
    with pytest.raises(UsageError, match=words):
        with_input_conversion(net(1, 28, 28), **given)


def test_nothing_is_added_where_nothing_is_to_be_done() -> None:
    model = with_input_conversion(net(5), dtype="float32", sample_shape=(5,))
    assert [node.op_type for node in model.graph.node] == ["Cast"]


def test_weights_keep_their_values_under_conversion() -> None:
    model = net(4)
    w = RNG.standard_normal((4, 3)).astype(np.float32)
    model.graph.node.append(helper.make_node("Gemm", ["out", "w"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    model.graph.output[0].name = "logits"
    converted = with_input_conversion(
        model, dtype="uint8", sample_shape=(4,), mean=[1, 2, 3, 4], std=2
    )
    found = weights(converted)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], w)
