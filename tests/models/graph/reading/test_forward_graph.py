"""Normalized forward models: the same function, in one form, for any batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sessions import session_of

from models.errors import UsageError
from models.graph.reading.forward_graph import (
    input_array,
    normalize_forward,
    output_array,
    statistics,
    weights,
)

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    *,
    shape: Sequence[int | str | None] = (1, 3, 4, 4),
    outputs: Sequence[str] = ("out",),
    opset: int = 21,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("input", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (value,) = session_of(model).run([model.graph.output[0].name], {model.graph.input[0].name: x})
    return np.asarray(value)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"{op} {output}", **attributes)


def shape_of(*dims: int) -> np.ndarray:
    return np.array(dims, np.int64)


FIXED_BATCH = {
    "size written out": ([node("Reshape", "input s", "out")], {"s": shape_of(1, 48)}),
    "size worked out": ([node("Reshape", "input s", "out")], {"s": shape_of(1, -1)}),
    "shape read at run time": (
        [
            node("Shape", "input", "shape"),
            node("Gather", "shape zero", "n", axis=0),
            node("Unsqueeze", "n axes", "n1"),
            node("Concat", "n1 rest", "s", axis=0),
            node("Reshape", "input s", "out"),
        ],
        {"zero": np.array(0), "axes": shape_of(0), "rest": shape_of(-1)},
    ),
    "sizes multiplied at run time": (
        [
            node("Shape", "input", "shape"),
            node("Slice", "shape one three", "two"),
            node("ReduceProd", "two", "product", keepdims=1),
            node("Concat", "minus product", "s", axis=0),
            node("Reshape", "input s", "out"),
        ],
        {"one": shape_of(1), "three": shape_of(4), "minus": shape_of(-1)},
    ),
    "constants cast and joined": (
        [
            node("Cast", "a", "b", to=TensorProto.INT64),
            node("Concat", "minus b", "s", axis=0),
            node("Reshape", "input s", "out"),
        ],
        {"a": np.array([48], np.int32), "minus": shape_of(1)},
    ),
}


@pytest.mark.parametrize("case", FIXED_BATCH)
def test_a_fixed_batch_of_one_becomes_any_batch(case: str) -> None:
    nodes, tensors = FIXED_BATCH[case]
    model = model_of(nodes, tensors)
    normal = normalize_forward(model)
    x = floats(5, 3, 4, 4)
    np.testing.assert_array_equal(run(normal, x), x.reshape(5, 48))
    np.testing.assert_array_equal(run(normal, x[:1]), run(model, x[:1]))
    assert not {"Shape", "Concat", "Cast"} & {n.op_type for n in normal.graph.node}
    assert normal.graph.input[0].name == "x"
    assert output_array(normal).shape == (48,)
    assert normalize_forward(normal) == normal


def test_a_model_for_one_batch_only_is_refused_with_the_node_that_fixes_it() -> None:
    model = model_of([node("Reshape", "input s", "out")], {"s": shape_of(4, 12)})
    with pytest.raises(UsageError, match="'Reshape out'"):
        normalize_forward(model)


def test_weights_are_found_wherever_they_lie_and_statistics_are_none() -> None:
    w, b = floats(5, 3, 1, 1), floats(5)
    model = model_of(
        [
            node("Sub", "input mean", "centered"),
            node("Constant", "", "w", value=numpy_helper.from_array(w)),
            node("Constant", "", "ones", value_ints=[5]),
            node("ConstantOfShape", "ones", "b"),
            node("Conv", "centered w b", "c"),
            node("BatchNormalization", "c scale bias middle var", "n"),
            node("Mul", "n gain", "g"),
            node("Mul", "g half", "out"),
        ],
        {
            "mean": floats(3, 1, 1),
            **{name: np.abs(floats(5)) for name in ("scale", "bias", "middle", "var")},
            "gain": floats(5, 1, 1),
            "half": np.float32(0.5),
        },
    )
    normal = normalize_forward(model)
    found = weights(normal)
    assert list(found) == ["w", "b", "scale", "bias", "gain"]
    np.testing.assert_array_equal(found["w"], w)
    np.testing.assert_array_equal(found["b"], 0 * b)
    assert set(statistics(normal)) == {"middle", "var"}
    x = floats(2, 3, 4, 4)
    np.testing.assert_allclose(run(normal, x[:1]), run(model, x[:1]), rtol=1e-5)


def test_weights_that_are_moved_before_use_are_weights() -> None:
    model = model_of(
        [
            node("Transpose", "w", "wt", perm=[1, 0]),
            node("MatMul", "input wt", "h"),
            node("Unsqueeze", "b axes", "b2"),
            node("Add", "h b2", "out"),
        ],
        {"w": floats(5, 4), "b": floats(5), "axes": shape_of(0)},
        shape=(None, 4),
    )
    assert list(weights(normalize_forward(model))) == ["w", "b"]


def test_statistics_that_an_exporter_merged_with_weights_get_their_own_tensors() -> None:
    model = model_of(
        [
            node("Identity", "zeros", "mean1"),
            node("BatchNormalization", "input ones zeros mean1 ones", "a"),
            node("BatchNormalization", "a ones zeros zeros ones", "out"),
        ],
        {"zeros": np.zeros(3, np.float32), "ones": np.ones(3, np.float32)},
    )
    normal = normalize_forward(model)
    assert list(weights(normal)) == ["ones", "zeros", "out/weight_1"]  # and one of two scales
    assert len(statistics(normal)) == 4
    assert "mean1" in statistics(normal)
    x = floats(2, 3, 4, 4)
    np.testing.assert_allclose(run(normal, x[:1]), run(model, x[:1]), rtol=1e-6)


def test_names_of_the_training_graph_are_kept_free() -> None:
    model = model_of(
        [node("Gemm", "input lr", "loss"), node("Gemm", "loss new/w", "out")],
        {"lr": floats(4, 4), "new/w": floats(4, 2)},
        shape=(None, 4),
    )
    normal = normalize_forward(model)
    assert list(weights(normal)) == ["net/lr", "net/new/w"]
    x = floats(3, 4)
    np.testing.assert_array_equal(run(normal, x), run(model, x))


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 20, 22])
def test_other_opsets_are_converted(opset: int) -> None:
    old = opset < 13
    axes = {"axes": shape_of(1)}
    model = model_of(
        [
            node("Conv", "input w", "c"),
            node("Softmax", "c", "p", axis=1) if opset >= 13 else node("Sigmoid", "c", "p"),
            node("Unsqueeze", "p", "u", axes=[1]) if old else node("Unsqueeze", "p axes", "u"),
            node("Squeeze", "u", "out", axes=[1]) if old else node("Squeeze", "u axes", "out"),
        ],
        {"w": floats(5, 3, 1, 1), **({} if old else axes)},
        opset=opset,
    )
    normal = normalize_forward(model)
    assert [(o.domain, o.version) for o in normal.opset_import] == [("", 21)]
    assert normal.ir_version == 10
    x = floats(1, 3, 4, 4)
    np.testing.assert_allclose(run(normal, x), run(model, x), rtol=1e-6)


def test_the_chosen_output_comes_first_and_the_others_stay() -> None:
    model = model_of(
        [node("Conv", "input w", "a"), node("Relu", "a", "b")],
        {"w": floats(5, 3, 1, 1)},
        outputs=("a", "b"),
    )
    assert [v.name for v in normalize_forward(model, output="b").graph.output] == ["b", "a"]
    with pytest.raises(UsageError, match="no output 'c'; its outputs are a, b"):
        normalize_forward(model, output="c")


def test_open_dimensions_are_closed_by_the_sample_s_shape() -> None:
    model = model_of([node("Relu", "input", "out")], {}, shape=("n", 3, "height", None))
    with pytest.raises(UsageError, match="give the shape of one sample"):
        normalize_forward(model)
    normal = normalize_forward(model, sample_shape=(3, 8, 9))
    assert input_array(normal).shape == output_array(normal).shape == (3, 8, 9)
    with pytest.raises(UsageError, match="wants samples of shape"):
        normalize_forward(model, sample_shape=(4, 8, 9))


def refused(model: onnx.ModelProto) -> str:
    with pytest.raises(UsageError) as caught:
        normalize_forward(model)
    return str(caught.value)


def test_what_cannot_be_differentiated_or_trusted_is_refused_by_name() -> None:
    branch = helper.make_graph(
        [node("Identity", "input", "inner")],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        node("ReduceMax", "input", "top", keepdims=0),
        node("Greater", "top zero", "c"),
        node("If", "c", "out", then_branch=branch, else_branch=branch),
    ]
    assert "'If out' is control flow" in refused(model_of(nodes, {"zero": np.float32(0)}))

    custom = helper.make_node("Fancy", ["input"], ["out"], "mine", domain="com.example")
    assert "'mine' is Fancy of domain 'com.example'" in refused(model_of([custom], {}))

    outside = model_of([node("Conv", "input w", "out")], {"w": floats(5, 3, 1, 1)})
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = outside.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    assert "'w' lies outside" in (told := refused(outside))
    assert "torch.onnx.export(..., external_data=False)" in told

    two = model_of([node("Add", "input other", "out")], {})
    two.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 4, 4]))
    assert "wants 2 inputs (input [1, 3, 4, 4], other [1, 3, 4, 4])" in refused(two)

    assert "empty or not an ONNX file" in refused(onnx.ModelProto())
    assert "not valid ONNX" in refused(model_of([node("Relu", "nowhere", "out")], {}))


def test_an_export_in_training_mode_is_refused() -> None:
    dropout = model_of(
        [node("Dropout", "input half yes", "out")],
        {"half": np.float32(0.5), "yes": np.array(True)},
    )
    assert "'Dropout out' (Dropout) was exported in training mode" in refused(dropout)
    norm = model_of(
        [node("BatchNormalization", "input s b m v", "out", training_mode=1)],
        {name: np.ones(3, np.float32) for name in "sbmv"},
    )
    assert "training mode" in refused(norm)


def test_whatever_bytes_come_out_is_a_model_or_one_sentence() -> None:
    """Bit flips in a real file: most still parse, and then every part may be nonsense."""
    model = model_of(
        [
            node("Conv", "input w", "c", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "c s b m v", "n"),
            node("MaxPool", "n", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Reshape", "p shape", "f"),
            node("Gemm", "f g", "out", transB=1),
        ],
        {
            "w": floats(2, 3, 3, 3),
            **{name: np.ones(2, np.float32) for name in "sbmv"},
            "shape": shape_of(1, -1),
            "g": floats(3, 8),
        },
        opset=11,
    )
    good = model.SerializeToString()
    generator = np.random.default_rng(4)
    outcomes = {"model": 0, "sentence": 0, "unreadable": 0}
    for _ in range(300):
        bytes_ = bytearray(good)
        for place in generator.integers(0, len(bytes_), 2):
            bytes_[place] ^= 1 << int(generator.integers(0, 8))
        damaged = onnx.ModelProto()
        try:
            damaged.ParseFromString(bytes(bytes_))
        except Exception:  # protobuf's own error, before it is ours to say
            outcomes["unreadable"] += 1
            continue
        try:
            normal = normalize_forward(damaged)
        except UsageError as error:
            outcomes["sentence" if "\n" not in str(error) else "several lines"] += 1
            continue
        weights(normal), statistics(normal), input_array(normal), output_array(normal)
        outcomes["model"] += 1
    assert min(outcomes["model"], outcomes["sentence"]) > 10, outcomes


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
    )
    model = model_of([helper.make_node("Twice", ["input"], ["out"], domain="local")], {})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    x = floats(2, 3, 4, 4)
    np.testing.assert_array_equal(run(normalize_forward(model), x), 2 * x)
