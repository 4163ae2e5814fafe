"""Files with more in them than is learned, in any order, of any type: the part that is needed."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sessions import session_of

from models.errors import UsageError
from models.graph.reading.forward_graph import input_array, normalize_forward, output_array, weights

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 3)).astype(np.float32)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    domain = attributes.pop("domain", "")
    return helper.make_node(
        op, inputs.split(), outputs.split(), f"{op} {outputs}", domain=domain, **attributes
    )


def value(name: str, dtype: int = FLOAT, *dims: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims or None)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    tensors: dict[str, Any] | None = None,
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 21,
    ml: int = 3,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [value("input", FLOAT, "n", 6), *inputs],
        list(outputs),
        [numpy_helper.from_array(np.asarray(v), n) for n, v in {"w": W, **(tensors or {})}.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


SCORES = [node("MatMul", "input w", "logits"), node("Softmax", "logits", "scores")]
LABEL_BRANCHES = {
    "a label picked by number": (
        [
            node("ArgMax", "scores", "best"),
            node("ArrayFeatureExtractor", "classes best", "label", domain="ai.onnx.ml"),
        ],
        value("label", INT),
        {"classes": np.array([0, 1, 2])},
    ),
    "a label's name": (
        [
            node("ArgMax", "scores", "best"),
            node(
                "LabelEncoder",
                "best",
                "label",
                domain="ai.onnx.ml",
                keys_int64s=[0, 1, 2],
                values_strings=["a", "b", "c"],
            ),
        ],
        value("label", TensorProto.STRING),
        {},
    ),
    "a map of names": (
        [
            node(
                "ZipMap",
                "scores",
                "label",
                domain="ai.onnx.ml",
                classlabels_strings=["a", "b", "c"],
            )
        ],
        onnx.ValueInfoProto(name="label"),
        {},
    ),
    "a sequence": (
        [node("SequenceConstruct", "scores logits", "label")],
        helper.make_tensor_sequence_value_info("label", FLOAT, None),
        {},
    ),
    "somebody's own operator": (
        [node("Fancy", "scores", "label", domain="com.example")],
        value("label"),
        {},
    ),
}


@pytest.mark.parametrize("case", LABEL_BRANCHES)
@pytest.mark.parametrize("first", [True, False])
def test_what_another_output_needs_does_not_matter(case: str, first: bool) -> None:
    nodes, label, tensors = LABEL_BRANCHES[case]
    outputs = [label, value("scores")] if first else [value("scores"), label]
    normal = normalize_forward(model_of([*SCORES, *nodes], outputs, tensors), output="scores")
    left = ["label"] if case == "a map of names" else []  # which is the scores once more
    assert [v.name for v in normal.graph.output] == ["scores", *left]
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    scores = session_of(normal).run(None, {"x": x})[0]
    expected = np.exp(x @ W) / np.exp(x @ W).sum(1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_map_of_names_is_the_scores_that_it_is_made_of() -> None:
    nodes, label, _ = LABEL_BRANCHES["a map of names"]
    normal = normalize_forward(model_of([*SCORES, *nodes], [label]))
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    (scores,) = session_of(normal).run(None, {"x": x})
    expected = np.exp(x @ W) / np.exp(x @ W).sum(1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "case", [c for c in LABEL_BRANCHES if "own" not in c and c != "a map of names"]
)
def test_a_first_output_without_scores_is_refused_with_those_that_have_them(case: str) -> None:
    nodes, label, tensors = LABEL_BRANCHES[case]
    model = model_of([*SCORES, *nodes], [label, value("logits"), value("scores")], tensors)
    with pytest.raises(UsageError, match=r"'label' holds .*--output logits or --output scores"):
        normalize_forward(model)


def test_a_label_as_float_is_a_label_still() -> None:
    nodes = [*SCORES, node("ArgMax", "scores", "best"), node("Cast", "best", "label", to=FLOAT)]
    with pytest.raises(UsageError, match=r"labels \(ArgMax\).*--output scores"):
        normalize_forward(model_of(nodes, [value("label"), value("scores")]))
    with pytest.raises(UsageError, match="export the model so that it answers with scores"):
        normalize_forward(model_of(nodes, [value("label")]))


def test_other_outputs_of_standard_operators_stay() -> None:
    nodes = [*SCORES, node("ArgMax", "scores", "best")]
    normal = normalize_forward(model_of(nodes, [value("scores"), value("best", INT)]))
    assert [v.name for v in normal.graph.output] == ["scores", "best"]


def test_inputs_that_nothing_needed_reads_are_none() -> None:
    other = value("other", FLOAT, "n", 2)
    branch = [node("MatMul", "other v", "more"), node("Softmax", "more", "aside")]
    model = model_of(
        [*SCORES, *branch],
        [value("scores"), value("aside")],
        {"v": W[:2]},
        inputs=[other, value("unused", INT, "n"), value("w", FLOAT, 6, 3)],
    )
    normal = normalize_forward(model)
    assert [v.name for v in normal.graph.input] == ["x"]
    assert [v.name for v in normal.graph.output] == ["scores"]
    with pytest.raises(UsageError, match=r"wants 2 inputs"):
        normalize_forward(
            model_of([*SCORES, node("Add", "scores other", "out")], [value("out")], inputs=[other])
        )


def test_an_input_that_says_whether_to_train_is_taken_as_no() -> None:
    notes: list[str] = []
    model = model_of(
        [*SCORES, node("Dropout", "scores half train", "out")],
        [value("out")],
        {"half": np.float32(0.5)},
        inputs=[helper.make_tensor_value_info("train", TensorProto.BOOL, [])],
    )
    normal = normalize_forward(model, on_note=notes.append)
    assert [v.name for v in normal.graph.input] == ["x"]
    assert notes == ["input 'train' says whether to train and is taken as no"]


def test_nodes_in_any_order_are_sorted_and_a_circle_is_refused() -> None:
    nodes = [*SCORES, node("Relu", "scores", "out")]
    for order in ([2, 1, 0], [1, 2, 0]):
        model = model_of([nodes[i] for i in order], [value("out")])
        assert [n.op_type for n in normalize_forward(model).graph.node] == [
            "MatMul",
            "Softmax",
            "Relu",
        ]
    circle = [node("Add", "input b", "a"), node("Relu", "a", "b")]
    with pytest.raises(UsageError, match="needs its own result"):
        normalize_forward(model_of(circle, [value("b")]))
    twice = [node("Relu", "input", "a"), node("Sigmoid", "input", "a")]
    with pytest.raises(UsageError, match="two nodes make 'a'"):
        normalize_forward(model_of(twice, [value("a")]))


def test_training_mode_and_control_flow_behind_other_outputs_do_not_matter() -> None:
    noise = node("RandomNormalLike", "scores", "noise")
    flags = {"half": np.float32(0.5), "yes": np.array(True)}
    dropped = node("Dropout", "scores half yes", "dropped")
    for extra, name in ((noise, "noise"), (dropped, "dropped")):
        model = model_of([*SCORES, extra], [value(name), value("scores")], flags)
        with pytest.raises(UsageError, match="evaluation mode"):
            normalize_forward(model, output=name)


def branch(op: str, name: str, **attributes: Any) -> onnx.GraphProto:
    inner = [node(op, "logits", "inner", **attributes), node("Identity", "inner", name)]
    return helper.make_graph(inner, name, [], [value(name)])


@pytest.mark.parametrize("opset", [11, 21])
def test_a_branch_that_every_batch_takes_is_no_branch(opset: int) -> None:
    """What torch writes for a squeeze of an axis of unknown size."""
    nodes = [
        node("MatMul", "input w", "logits"),
        node("Shape", "logits", "shape"),
        node("Gather", "shape place", "size", axis=0),
        node("Equal", "size three", "condition"),
        node(
            "If",
            "condition",
            "chosen",
            then_branch=branch("Tanh", "yes"),
            else_branch=branch("Sigmoid", "no"),
        ),
        node("Relu", "chosen", "out"),
    ]
    model = model_of(
        nodes, [value("out")], {"place": np.array(1), "three": np.array(3)}, opset=opset
    )
    normal = normalize_forward(model)
    assert [n.op_type for n in normal.graph.node if n.op_type != "Identity"] == [
        "MatMul",
        "Tanh",
        "Relu",
    ]
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(4), "three"))
    assert "Sigmoid" in {n.op_type for n in normalize_forward(model).graph.node}
    model.graph.initializer[-2].CopyFrom(numpy_helper.from_array(np.array(0), "place"))
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array(7), "three"))
    with pytest.raises(UsageError, match="is control flow"):
        normalize_forward(model)  # the batch decides


NARROW = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("own_input", [True, False])
def test_weights_of_another_float_type_are_made_float32_and_that_is_said(
    kind: str, own_input: bool
) -> None:
    notes: list[str] = []
    w = W.astype(NARROW[kind])
    dtype = helper.np_dtype_to_tensor_dtype(w.dtype)
    nodes = [
        *([] if own_input else [node("Cast", "input", "small", to=dtype)]),
        node("MatMul", ("input" if own_input else "small") + " w", "logits"),
        node("Constant", "", "bias", value=numpy_helper.from_array(np.ones(3, w.dtype))),
        node("Add", "logits bias", "sum"),
        *([] if own_input else [node("Cast", "sum", "out", to=FLOAT)]),
    ]
    model = model_of(
        nodes, [value("sum" if own_input else "out", dtype if own_input else FLOAT)], {"w": w}
    )
    if own_input:
        model.graph.input[0].type.tensor_type.elem_type = dtype
    normal = normalize_forward(model, on_note=notes.append)
    assert notes == [f"2 weights of the file are {kind}: they are made float32"]
    assert input_array(normal).dtype == output_array(normal).dtype == "float32"
    assert {name: v.dtype for name, v in weights(normal).items()} == {
        "w": np.float32,
        "bias": np.float32,
    }
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    (answer,) = session_of(normal).run(None, {"x": x})
    np.testing.assert_allclose(answer, x @ w.astype(np.float32) + 1, rtol=1e-5)


def quantized(op: str) -> onnx.ModelProto:
    tensors: dict[str, Any] = {
        "q": (W * 20).astype(np.int8),
        "s": np.float32(0.05),
        "z": np.int8(0),
        "zu": np.uint8(0),
    }
    nodes = {
        "DequantizeLinear": [
            node("DequantizeLinear", "q s z", "v"),
            node("MatMul", "input v", "out"),
        ],
        "QLinearMatMul": [
            node("QuantizeLinear", "input s z", "i"),
            node("QLinearMatMul", "i s z q s z s z", "o"),
            node("DequantizeLinear", "o s z", "out"),
        ],
        "MatMulInteger": [
            node("DynamicQuantizeLinear", "input", "i is iz"),
            node("MatMulInteger", "i q iz z", "o"),
            node("Cast", "o", "out", to=FLOAT),
        ],
    }[op]
    return model_of(nodes, [value("out")], tensors)


@pytest.mark.parametrize("op", ["DequantizeLinear", "QLinearMatMul", "MatMulInteger"])
def test_a_quantized_model_is_refused_for_its_weights(op: str) -> None:
    with pytest.raises(
        UsageError, match=r"the weights are int8 .*give the float32 file from before its quant"
    ):
        normalize_forward(quantized(op))


def test_sizes_computed_in_another_type_change_nothing() -> None:
    """Arithmetic on sizes in float64, as old exporters write it, is exact only in that."""
    nodes = [
        node("Shape", "input", "shape"),
        node("Cast", "shape", "wide", to=TensorProto.DOUBLE),
        node("Mul", "wide factor", "larger"),
        node("Floor", "larger", "whole"),
        node("Cast", "whole", "sizes", to=INT),
        node("Slice", "sizes one two", "size"),
        node("Concat", "rest size", "target", axis=0),
        node("Reshape", "input target", "same"),
        node("MatMul", "same w", "out"),
    ]
    tensors = {
        "factor": np.float64(1.0),
        "one": np.array([1]),
        "two": np.array([2]),
        "rest": np.array([-1]),
    }
    notes: list[str] = []
    normal = normalize_forward(model_of(nodes, [value("out")], tensors), on_note=notes.append)
    assert notes == []
    assert {n.op_type for n in normal.graph.node} == {"Reshape", "MatMul"}


def test_names_may_be_missing_repeated_long_or_strange() -> None:
    long = "a" * 5000
    nodes = [
        helper.make_node("MatMul", ["input", "w"], [long]),
        helper.make_node("Relu", [long], ["Küche/ä b"], "same"),
        helper.make_node("Tanh", ["Küche/ä b"], ["out"], "same"),
    ]
    normal = normalize_forward(model_of(nodes, [value("out")]))
    names = [n.name for n in normal.graph.node]
    assert len(set(names)) == 3
    assert all(names)


@pytest.mark.parametrize("dims", [("n", 6), (-1, 6), (0, 6), ("n", "n"), ("unk__1", "unk__2")])
def test_open_dimensions_may_be_written_in_any_way(dims: tuple[int | str, ...]) -> None:
    model = model_of(SCORES, [value("scores")])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", FLOAT, dims))
    normal = normalize_forward(model, sample_shape=(6,))
    assert output_array(normal).shape == (3,)


@pytest.mark.parametrize("dtype", [FLOAT, TensorProto.DOUBLE, INT])
@pytest.mark.parametrize("count", [1, 6])
def test_a_scaler_in_front_is_a_difference_and_a_product(dtype: int, count: int) -> None:
    offset, scale = RNG.standard_normal((2, count)).astype(np.float32)
    front = node("Scaler", "raw", "in", domain="ai.onnx.ml", offset=offset, scale=scale)
    nodes = [front, node("MatMul", "in w", "logits")]
    model = model_of(nodes, [value("logits")])
    model.graph.input[0].CopyFrom(value("raw", dtype, "n", 6))
    normal = normalize_forward(model)
    x = (3 * RNG.standard_normal((4, 6))).astype(np.int64 if dtype == INT else np.float32)
    (found,) = session_of(normal).run(None, {"x": x})
    np.testing.assert_allclose(found, (x - offset) * scale @ W, rtol=1e-4, atol=1e-5)


def test_other_steps_of_scikit_learn_are_refused_with_what_to_do() -> None:
    nodes = [node("Normalizer", "in", "n", domain="ai.onnx.ml"), node("MatMul", "n w", "logits")]
    with pytest.raises(UsageError, match="convert the net alone, and do in x what stands before"):
        normalize_forward(model_of(nodes, [value("logits")]))
