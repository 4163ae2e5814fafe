"""Patch graphs and compact models, run by stock onnxruntime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.codec.budget import Budget
from models.codec.payload import compress, decompress
from models.errors import PayloadError, UsageError
from models.graph.compressed.compact import compact_model
from models.graph.compressed.patch import patch_model
from models.protocol.manifest import CodecPlan
from models.task.params import unflatten
from models.task.spec import Role, TensorSpec

TENSORS = [
    TensorSpec("conv", (16, 8, 3, 3), Role.SHARED),
    TensorSpec("bias", (16,), Role.SHARED),
    TensorSpec("dense", (40, 16 * 49), Role.SHARED),
    TensorSpec("tall", (300, 20), Role.SHARED),
    TensorSpec("scalar", (), Role.SHARED),
    TensorSpec("still", (50, 50), Role.SHARED),
]


def delta_of(seed: int, *, dense_rows: int = 0) -> np.ndarray:
    """Low rank in the matrices, a few large values elsewhere, nothing in the last."""
    shared, rng = np.random.default_rng(9), np.random.default_rng(seed)
    waves = np.cos(np.outer(np.arange(1, 4), np.arange(7)))
    right = np.einsum("ka,kc,kb->kcab", waves, shared.normal(size=(3, 16)), waves)
    dense = rng.normal(size=(40, 3)) @ right.reshape(3, -1)
    dense += rng.normal(size=dense.shape) * 0.01
    parts = [rng.laplace(size=1152), rng.normal(size=16), dense.reshape(-1)]
    parts += [
        np.outer(rng.normal(size=300), rng.normal(size=20)).reshape(-1),
        [0.5],
        np.zeros(2500),
    ]
    return (np.concatenate(parts) * 0.01).astype(np.float32)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize(
    "plan",
    [
        CodecPlan(keep=0.05, method="coreset"),
        CodecPlan(keep=0.9, centers=100, method="coreset"),
        Budget(nmse=0.5),
        Budget(nmse=0.05),
        Budget(nmse=1e-4),
    ],
)
@pytest.mark.parametrize("in_context", [False, True])
def test_onnxruntime_applies_a_payload_as_numpy_does(plan, in_context: bool) -> None:
    before = decompress(compress(delta_of(1), TENSORS, Budget(nmse=0.1)), TENSORS)
    context = before if in_context else None
    payload = compress(delta_of(2), TENSORS, plan, context=context)
    delta = decompress(payload, TENSORS, context=context)
    rng = np.random.default_rng(0)
    old = {t.name: np.asarray(rng.normal(size=t.shape), np.float32) for t in TENSORS}
    new = run(patch_model(payload, TENSORS, context=context), old)
    for name, change in unflatten(delta, TENSORS).items():
        np.testing.assert_allclose(new[f"new/{name}"], old[name] + change, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(new["new/still"], old["still"])


def test_a_patch_of_factors_is_far_smaller_than_the_dense_delta() -> None:
    payload = compress(delta_of(2), TENSORS, Budget(nmse=0.3))
    assert len(patch_model(payload, TENSORS).SerializeToString()) < 0.2 * 4 * delta_of(2).size


def test_a_hostile_payload_makes_no_graph() -> None:
    payload = compress(delta_of(2), TENSORS, Budget(nmse=0.3))
    with pytest.raises(PayloadError):
        patch_model(payload[:-3], TENSORS)


def linear_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 33)).astype(np.float32)
    odd = rng.normal(size=(33, 9)).astype(np.float32)
    tiny = rng.normal(size=33).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["h"]),
        helper.make_node("Add", ["h", "tiny"], ["i"]),
        helper.make_node("MatMul", ["i", "odd"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 9])],
        [
            numpy_helper.from_array(v, n)
            for n, v in (("weight", weight), ("tiny", tiny), ("odd", odd))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("centers", "error"), [(16, 0.02), (256, 0.001)])
def test_a_compact_model_answers_almost_as_before(centers: int, error: float) -> None:
    model = linear_model()
    compacted = compact_model(model, centers=centers)
    assert set(compacted.errors) == {"weight", "odd"}
    assert max(compacted.errors.values()) < error
    x = np.random.default_rng(1).normal(size=(20, 64)).astype(np.float32)
    before, after = run(model, {"x": x})["y"], run(compacted.model, {"x": x})["y"]
    assert np.square(after - before).sum() < 2.5 * error * np.square(before).sum()


def test_sixteen_centers_take_an_eighth_of_the_bytes() -> None:
    model = linear_model()
    dense = sum(len(i.raw_data) for i in model.graph.initializer)
    compact = compact_model(model, only={"weight"}).model
    numbers = next(i for i in compact.graph.initializer if i.data_type == TensorProto.UINT4)
    assert len(numbers.raw_data) == 64 * 33 // 2
    assert len(compact.SerializeToString()) < dense - 64 * 33 * 4 + 64 * 33 // 2 + 900
    assert {i.name for i in compact.graph.initializer} >= {"odd", "tiny"}


def test_impossible_numbers_of_centers_are_refused() -> None:
    with pytest.raises(UsageError, match="between 2 and 256"):
        compact_model(linear_model(), centers=300)
