"""Shapes that are known ahead of time, whatever they are computed from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sessions import session_of

from models.errors import UsageError
from models.graph.facts.shape_facts import infer_facts
from models.graph.reading.forward_graph import normalize_forward, output_array


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    names = [name if name != "-" else "" for name in inputs.split()]
    return helper.make_node(op, names, output.split(), f"{op} {output}", **attributes)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, Any],
    *,
    shape: Sequence[int | str] = ("n", 2, 4, 6),
    opset: int = 21,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


BATCH_OF = [node("Shape", "input", "shape"), node("Gather", "shape zero", "n0", axis=0)]
AS_LIST = [*BATCH_OF, node("Unsqueeze", "n0 zeros", "n")]
INTS = {"zero": np.array(0), "zeros": np.array([0]), "one": np.array(1), "ones": np.array([1])}
ONE = np.ones(1, np.int64)
HALF = np.array([1, 1, 0.5, 2], np.float32)

CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...]]] = {
    "enlarged by constant factors": (
        [node("Resize", "input - factors", "out", mode="nearest")],
        {"factors": HALF},
        (2, 2, 12),
    ),
    "enlarged by factors that are put together": (
        [
            node("Concat", "left right", "factors", axis=0),
            node("Resize", "input - factors", "out", mode="linear"),
        ],
        {"left": HALF[:2], "right": HALF[2:]},
        (2, 2, 12),
    ),
    "enlarged to sizes that are computed": (
        [
            node("Shape", "input", "shape"),
            node("Slice", "shape zeros two", "front"),
            node("Slice", "shape two four", "back"),
            node("Mul", "back two", "larger"),
            node("Concat", "front larger", "sizes", axis=0),
            node("Resize", "input - - sizes", "out", mode="nearest"),
        ],
        {"two": np.array([2]), "four": np.array([4])},
        (2, 8, 12),
    ),
    "enlarged by float arithmetic on sizes": (
        [
            node("Shape", "input", "shape"),
            node("Slice", "shape two four", "back"),
            node("Cast", "back", "wide", to=TensorProto.FLOAT),
            node("Mul", "wide factor", "larger"),
            node("Floor", "larger", "whole"),
            node("Cast", "whole", "whole_ints", to=TensorProto.INT64),
            node("Slice", "shape zeros two", "front"),
            node("Concat", "front whole_ints", "sizes", axis=0),
            node("Resize", "input - - sizes", "out", mode="nearest"),
        ],
        {"two": np.array([2]), "four": np.array([4]), "factor": np.float32(1.6)},
        (2, 6, 9),
    ),
    "a token expanded by where and equal": (
        [
            *AS_LIST,
            node("Concat", "n minus minus minus", "wish", axis=0),
            node("Shape", "wish", "rank"),
            node("ConstantOfShape", "rank", "filled", value=numpy_helper.from_array(ONE)),
            node("Equal", "wish minuses", "kept"),
            node("Where", "kept filled wish", "target"),
            node("Expand", "token target", "tokens"),
            node("Concat", "tokens input", "out", axis=2),
        ],
        {
            "minus": np.array([-1]),
            "minuses": np.full(4, -1),
            "token": np.zeros((1, 2, 1, 6), np.float32),
        },
        (2, 5, 6),
    ),
    "a token tiled": (
        [
            *AS_LIST,
            node("Concat", "n ones ones ones", "times", axis=0),
            node("Tile", "token times", "tokens"),
            node("Concat", "tokens input", "out", axis=2),
        ],
        {"token": np.zeros((1, 2, 1, 6), np.float32)},
        (2, 5, 6),
    ),
    "zeros of a computed shape": (
        [
            *AS_LIST,
            node("Concat", "n two four ones", "target", axis=0),
            node("ConstantOfShape", "target", "pad"),
            node("Concat", "input pad", "out", axis=3),
        ],
        {"two": np.array([2]), "four": np.array([4])},
        (2, 4, 7),
    ),
    "positions by a range": (
        [
            node("Shape", "input", "shape"),
            node("Gather", "shape last", "length", axis=0),
            node("Range", "zero length one", "places"),
            node("Gather", "table places", "rows", axis=0),
            node("Add", "input rows", "out"),
        ],
        {"last": np.array(3), "table": np.zeros((9, 1), np.float32)[:, 0]},
        (2, 4, 6),
    ),
    "cut by division and remainder": (
        [
            node("Shape", "input", "shape"),
            node("Gather", "shape three", "length", axis=0),
            node("Div", "length four", "parts"),
            node("Mod", "length four", "rest"),
            node("Add", "parts rest", "end"),
            node("Unsqueeze", "end zeros", "ends"),
            node("Slice", "input zeros ends axes", "out"),
        ],
        {"three": np.array(3), "four": np.array(4), "axes": np.array([3])},
        (2, 4, 3),
    ),
    "reshaped by a product": (
        [
            node("Shape", "input", "shape"),
            node("Slice", "shape ones four", "inner"),
            node("ReduceProd", "inner", "size", keepdims=1),
            node("Slice", "shape zeros ones", "n"),
            node("Concat", "n size", "target", axis=0),
            node("Reshape", "input target", "out"),
        ],
        {"four": np.array([4])},
        (48,),
    ),
    "split into parts of a computed size": (
        [
            node("Shape", "input", "shape"),
            node("Gather", "shape last", "length", axis=0),
            node("Div", "length two", "half"),
            node("Unsqueeze", "half zeros", "halves"),
            node("Concat", "halves halves", "sizes", axis=0),
            node("Split", "input sizes", "out rest", axis=3),
        ],
        {"last": np.array(3), "two": np.array(2)},
        (2, 4, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_shape_that_follows_the_batch_through_arithmetic_is_known(case: str) -> None:
    nodes, tensors, shape = CASES[case]
    given = model_of(nodes, {**INTS, **tensors})
    normal = normalize_forward(given)
    assert output_array(normal).shape == shape
    for size in (1, 3):
        x = np.random.default_rng(0).standard_normal((size, 2, 4, 6)).astype(np.float32)
        (before,) = session_of(given).run(None, {"input": x})
        (after,) = session_of(normal).run(None, {"x": x})
        assert after.shape == (size, *shape)
        np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("op", ["AveragePool", "LpPool", "MaxPool"])
def test_windows_that_would_begin_in_the_padding_are_not_counted(op: str) -> None:
    settings = {"kernel_shape": [1, 2], "strides": [3, 5], "pads": [0, 1, 0, 1], "ceil_mode": 1}
    given = model_of([node(op, "input", "out", **settings)], {})
    (answer,) = session_of(given).run(None, {"input": np.zeros((1, 2, 4, 6), np.float32)})
    assert output_array(normalize_forward(given)).shape == answer.shape[1:] == (2, 2, 2)
    longer = model_of([node(op, "input", "out", **settings)], {}, shape=("n", 2, 6, 5))
    (answer,) = session_of(longer).run(None, {"input": np.zeros((1, 2, 6, 5), np.float32)})
    assert output_array(normalize_forward(longer)).shape == answer.shape[1:] == (2, 2, 2)


def test_upsampling_of_old_opsets_is_known() -> None:
    for opset in (7, 9, 10):
        op = "Upsample" if opset < 10 else "Resize"
        if opset == 7:
            nodes = [node("Upsample", "input", "out", scales=[1.0, 1.0, 2.0, 2.0])]
        else:
            nodes = [node(op, "input factors", "out", mode="nearest")]
        tensors = {} if opset == 7 else {"factors": np.array([1, 1, 2, 2], np.float32)}
        normal = normalize_forward(model_of(nodes, tensors, opset=opset))
        assert output_array(normal).shape == (2, 8, 12)


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("factors", [[1, 1, 2, 2], [1, 1, 1.5, 2.3]])
def test_old_opsets_are_resized_as_before(opset: int, mode: str, factors: list[float]) -> None:
    op = "Upsample" if opset < 10 else "Resize"
    if opset == 10:
        factors = [*factors[:2], 1 / factors[2], 1 / factors[3]]
    if opset == 7:
        given = model_of(
            [node(op, "input", "out", mode=mode, scales=[float(f) for f in factors])], {}, opset=7
        )
    else:
        tensors = {"factors": np.array(factors, np.float32)}
        given = model_of([node(op, "input factors", "out", mode=mode)], tensors, opset=opset)
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 6)).astype(np.float32)
    (before,) = session_of(given).run(None, {"input": x})
    (after,) = session_of(normalize_forward(given)).run(None, {"x": x})
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_shape_that_depends_on_the_numbers_is_refused_with_its_node() -> None:
    model = model_of([node("NonZero", "input", "places"), node("Cast", "places", "out", to=1)], {})
    with pytest.raises(UsageError, match=r"'out' cannot be worked out: node 'NonZero places'"):
        normalize_forward(model)


def test_what_does_not_fit_is_refused_with_its_node() -> None:
    unfit = {
        "Add": ([node("Add", "input c", "out")], {"c": np.zeros(5, np.float32)}),
        "MatMul": ([node("MatMul", "input c", "out")], {"c": np.zeros((5, 5), np.float32)}),
        "Reshape": ([node("Reshape", "input c", "out")], {"c": np.array([-1, 5])}),
        "Concat": (
            [node("Concat", "input c", "out", axis=1)],
            {"c": np.zeros((1, 2, 4, 5), np.float32)},
        ),
    }
    for op, (nodes, tensors) in unfit.items():
        with pytest.raises(UsageError, match=rf"node '{op} out' \({op}\)"):
            normalize_forward(model_of(nodes, tensors))


def test_facts_of_operators_that_are_functions_of_others_are_known() -> None:
    nodes = [
        node("GroupNormalization", "input s b", "g", num_groups=2),
        node("Mish", "g", "m"),
        node("Celu", "m", "out"),
    ]
    ones = np.ones(2, np.float32)
    normal = normalize_forward(model_of(nodes, {"s": ones, "b": 0 * ones}))
    assert infer_facts(normal).shapes["out"] == (None, 2, 4, 6)
