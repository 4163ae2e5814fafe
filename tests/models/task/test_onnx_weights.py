"""Weights in the bytes of an ONNX file, as onnx and onnxruntime read them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.errors import PayloadError
from models.task.onnx_weights import find_weights, read_weights, replace_weights
from models.task.spec import Role, TensorSpec

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(16, 4, 3, 3)).astype(np.float32)
NORM = RANDOM.random(16).astype(np.float32)
X = RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)


def convolution_and_norm() -> bytes:
    """A model whose weights onnxruntime folds together and reorders when it loads them."""
    names = ["scale", "shift", "mean", "variance"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", *names], ["y"]),
        ],
        "folds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 8, 8])],
        [numpy_helper.from_array(KERNEL, "kernel")]
        + [numpy_helper.from_array(NORM, name) for name in names]
        + [numpy_helper.from_array(np.int64([1]), "integers")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


MODEL = convolution_and_norm()


def run(model: bytes) -> np.ndarray:
    return ort.InferenceSession(model).run(None, {"x": X})[0]


def test_places_are_where_onnx_sees_the_values() -> None:
    found = find_weights(MODEL)
    assert list(found) == ["kernel", "scale", "shift", "mean", "variance"]
    for tensor in onnx.load_from_string(MODEL).graph.initializer[:5]:
        weight = found[tensor.name]
        assert weight.shape == tuple(tensor.dims)
        assert MODEL[weight.start : weight.end] == tensor.raw_data


def test_onnxruntime_computes_with_the_new_weights() -> None:
    """Linear in the kernel: twice the kernel is twice the answer, when nothing is subtracted."""
    plain = replace_weights(
        MODEL, {name: memoryview(np.zeros(16, np.float32)) for name in ("mean", "shift")}
    )
    twice = replace_weights(plain, {"kernel": memoryview(2 * KERNEL)})
    np.testing.assert_allclose(run(twice), 2 * run(plain), rtol=1e-4, atol=1e-5)


def test_own_values_give_the_same_file() -> None:
    assert replace_weights(MODEL, {"kernel": memoryview(KERNEL)}) == MODEL
    assert replace_weights(MODEL, {}) == MODEL


@pytest.mark.parametrize(
    ("name", "value"),
    [("kernel", KERNEL[:8]), ("kernel", KERNEL.reshape(4, 16, 3, 3)), ("nobody", NORM)],
)
def test_what_does_not_fit_is_refused(name: str, value: np.ndarray) -> None:
    with pytest.raises(PayloadError, match=name):
        replace_weights(MODEL, {name: memoryview(value)})


def test_packed_dimensions_are_understood() -> None:
    """protobuf readers must accept repeated numbers packed and unpacked."""
    tensor = b"\x0a\x02\x02\x03" + b"\x10\x01" + b"\x42\x01w" + b"\x4a\x18" + bytes(24)
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    assert find_weights(b"\x3a" + bytes([len(graph)]) + graph)["w"].shape == (2, 3)


def test_any_damage_is_a_payload_error_or_a_value() -> None:
    short = MODEL[: find_weights(MODEL)["kernel"].start + 40]
    for end in range(len(short)):
        with pytest.raises(PayloadError):
            find_weights(short[:end])
    for at in [*range(120), *range(len(MODEL) - 400, len(MODEL))]:
        damaged = bytearray(MODEL)
        for value in (0, 0x7F, 0x80, 0xFF):
            damaged[at] = value
            try:
                find_weights(bytes(damaged))
            except PayloadError:
                continue


TENSORS = (
    TensorSpec("kernel", KERNEL.shape, Role.SHARED),
    TensorSpec("scale", (16,), Role.PERSONAL),
)


def packed() -> bytes:
    """The same model with values that are not raw data."""
    model = onnx.load_from_string(MODEL)
    for tensor in model.graph.initializer[:5]:
        values = numpy_helper.to_array(tensor)
        plain = helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel())
        tensor.CopyFrom(plain)
        assert not tensor.raw_data
    return model.SerializeToString()


def test_values_are_those_that_onnx_reads() -> None:
    found = read_weights(MODEL, TENSORS)
    for tensor in onnx.load_from_string(MODEL).graph.initializer[:2]:
        np.testing.assert_array_equal(np.array(found[tensor.name]), numpy_helper.to_array(tensor))


def test_values_outside_raw_data_are_found_too() -> None:
    found = read_weights(packed(), TENSORS)
    np.testing.assert_array_equal(np.array(found["kernel"]), KERNEL)
    np.testing.assert_array_equal(np.array(found["scale"]), NORM)


@pytest.mark.parametrize("model", [MODEL, packed()], ids=["raw", "packed"])
def test_onnx_writes_the_same_weights_into_it(model: bytes) -> None:
    theirs = onnx.load_from_string(model)
    for tensor in theirs.graph.initializer[:5]:
        values = numpy_helper.to_array(tensor) * np.float32(3)
        replacement = numpy_helper.from_array(values, tensor.name)
        if not tensor.raw_data:
            replacement = helper.make_tensor(tensor.name, 1, values.shape, values.ravel())
        tensor.CopyFrom(replacement)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer[:5]}
    ours = replace_weights(model, {name: memoryview(value) for name, value in values.items()})
    assert onnx.load_from_string(ours) == theirs
    assert ours == theirs.SerializeToString()


@pytest.mark.parametrize(
    "tensor", [TensorSpec("c", (3,), Role.SHARED), TensorSpec("scale", (4,), Role.SHARED)]
)
def test_what_is_not_there_in_its_shape_is_an_error(tensor: TensorSpec) -> None:
    with pytest.raises(PayloadError, match=tensor.name):
        read_weights(MODEL, (tensor,))


@given(st.binary(max_size=200) | st.integers(0, len(MODEL)).map(lambda n: MODEL[:n]))
@settings(deadline=None)
def test_any_bytes_give_values_or_a_payload_error(data: bytes) -> None:
    try:
        found = read_weights(data, TENSORS)
    except PayloadError:
        return
    assert set(found) == {"kernel", "scale"}
