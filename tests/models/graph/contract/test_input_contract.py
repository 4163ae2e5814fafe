"""The user's arrays go into the graph as they are stored."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import UsageError
from models.graph.contract.input_contract import convert_input
from models.graph.reading.forward_graph import input_array, weights

RNG = np.random.default_rng(0)


def net(*shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model that returns its input, as float32."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["in"], ["out"], to=TensorProto.FLOAT)],
        "net",
        [helper.make_tensor_value_info("in", dtype, ["n", *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def converted(model: onnx.ModelProto, **given: Any) -> onnx.ModelProto:
    return convert_input(model, **given).model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString())
    (value,) = session.run(None, {"x": x})
    return np.asarray(value)


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (2, *shape), dtype=np.uint8)


def test_bytes_become_numbers_from_zero_to_one() -> None:
    x = images(3, 5, 4)
    model = converted(net(3, 5, 4), dtype="uint8", sample_shape=(3, 5, 4))
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
        ((64, 3), (3, 64), lambda x: x.transpose(0, 2, 1)),
        ((3, 8, 9), (8, 9, 3), lambda x: x.transpose(0, 2, 3, 1)),
        ((8, 9, 3), (3, "h", "w"), lambda x: x.transpose(0, 3, 1, 2)),
        ((64, 3), (3, "t"), lambda x: x.transpose(0, 2, 1)),
        ((12,), (1, 3, 4), lambda x: x.reshape(2, 1, 3, 4)),
    ],
)
def test_images_are_brought_into_the_model_s_shape(
    stored: tuple[int, ...], wanted: tuple[int | str, ...], convert: Any
) -> None:
    x = images(*stored).astype(np.float32)
    model = converted(net(*wanted), dtype="float32", sample_shape=stored)
    np.testing.assert_array_equal(run(model, x), convert(x))


def test_scale_mean_and_std_apply_in_this_order() -> None:
    x = images(3, 5, 4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    model = converted(
        net(3, 5, 4), dtype="uint8", sample_shape=(3, 5, 4), scale=0.01, mean=mean, std=std
    )
    column = (1, 3, 1, 1)
    expected = (x * 0.01 - np.reshape(mean, column)) / np.reshape(std, column)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


def test_tokens_stay_whole_numbers() -> None:
    x = images(80)
    model = converted(net(80, dtype=TensorProto.INT64), dtype="uint8", sample_shape=(80,))
    np.testing.assert_array_equal(run(model, x), x)
    with pytest.raises(UsageError, match="cannot be scaled"):
        converted(net(80, dtype=TensorProto.INT64), dtype="uint8", sample_shape=(80,), scale=0.5)


def test_the_data_close_what_the_model_leaves_open() -> None:
    model = converted(net(1, "h", "w"), dtype="float32", sample_shape=(6, 7))
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
        converted(net(1, 28, 28), **given)


def first(*nodes: onnx.NodeProto, **values: np.ndarray) -> onnx.ModelProto:
    """A model for images [3, 5, 4] that begins with ``nodes``, from ``in`` to ``out``."""
    model = net(3, 5, 4)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in values.items()
    )
    return model


@pytest.mark.parametrize(
    "model",
    [
        first(helper.make_node("Div", ["in", "c"], ["out"]), c=np.array(255)),
        first(helper.make_node("Mul", ["in", "c"], ["out"]), c=np.array(1 / 255)),
        first(helper.make_node("Mul", ["c", "in"], ["out"]), c=np.array(1 / 127.5)),
        first(helper.make_node("Sub", ["in", "c"], ["out"]), c=np.full((3, 1, 1), 110)),
        first(
            helper.make_node("Transpose", ["in"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Identity", ["t"], ["i"]),
            helper.make_node("Div", ["i", "c"], ["out"]),
            c=np.array([58.4, 57.1, 57.4]),
        ),
        first(
            helper.make_node("BatchNormalization", ["in", "a", "b", "m", "v"], ["out"]),
            a=np.ones(3),
            b=np.zeros(3),
            m=np.array([123, 117, 104]),
            v=np.ones(3),
        ),
    ],
)
def test_bytes_are_not_divided_for_a_model_that_does_it_itself(model: onnx.ModelProto) -> None:
    said: list[str] = []
    x = images(3, 5, 4)
    model_after = converted(model, dtype="uint8", sample_shape=(3, 5, 4), on_step=said.append)
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(
        None, {"in": x.astype(np.float32)}
    )
    np.testing.assert_allclose(run(model_after, x), expected, rtol=1e-5)
    assert any("not divided by 255, since the model's node" in words for words in said)


@pytest.mark.parametrize(
    "model",
    [
        first(helper.make_node("Mul", ["in", "c"], ["out"]), c=np.array(2)),
        first(helper.make_node("Sub", ["in", "c"], ["out"]), c=np.full((3, 1, 1), 0.45)),
        first(helper.make_node("Div", ["in", "c"], ["out"]), c=np.full((3, 1, 1), 0.22)),
        first(helper.make_node("Div", ["c", "in"], ["r"]), helper.make_node("Relu", ["r"], ["out"]),
              c=np.array(0.5)),
        first(helper.make_node("Relu", ["in"], ["out"])),
    ],
)  # fmt: skip
def test_bytes_are_divided_for_every_other_model(model: onnx.ModelProto) -> None:
    said: list[str] = []
    converted(model, dtype="uint8", sample_shape=(3, 5, 4), on_step=said.append)
    assert "divided by 255" in said


def test_a_mean_per_channel_goes_with_the_axis_that_has_the_channels() -> None:
    x = images(5, 4, 3)
    model = converted(
        net(5, 4, 3), dtype="uint8", sample_shape=(5, 4, 3), scale=1, mean=[1, 2, 3], std=[4, 5, 6]
    )
    expected = (x.astype(np.float32) - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5)


def test_numbers_with_a_point_are_no_tokens() -> None:
    with pytest.raises(UsageError, match=r"x holds float32, but .* save x.astype\(np.int64\)"):
        converted(net(80, dtype=TensorProto.INT64), dtype="float32", sample_shape=(80,))


def test_nothing_is_added_where_nothing_is_to_be_done() -> None:
    model = converted(net(5), dtype="float32", sample_shape=(5,))
    assert [node.op_type for node in model.graph.node] == ["Cast"]


def test_weights_keep_their_values_under_conversion() -> None:
    model = net(4)
    w = RNG.standard_normal((4, 3)).astype(np.float32)
    model.graph.node.append(helper.make_node("Gemm", ["out", "w"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    model.graph.output[0].name = "logits"
    model_after = converted(model, dtype="uint8", sample_shape=(4,), mean=[1, 2, 3, 4], std=2)
    found = weights(model_after)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], w)


@pytest.mark.parametrize(
    ("shape", "stored", "words"),
    [
        ([4], (4,), "it has no axis for the batch"),
        ([3, 8, 8], (3, 8, 8), "it has no axis for the batch"),
        ([20, "n", 3], (20, 3), "the batch is axis 1"),
        ([20, 1, 3], (20, 3), "the batch is axis 1"),
    ],
)
def test_a_model_whose_first_axis_is_not_the_batch_is_refused_by_that(
    shape: list[int | str], stored: tuple[int, ...], words: str
) -> None:
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("in", "out")
    )
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["in"], ["out"])], "g", [x], [y])
    with pytest.raises(UsageError, match=words):
        converted(onnx.helper.make_model(graph), dtype="float32", sample_shape=stored)
