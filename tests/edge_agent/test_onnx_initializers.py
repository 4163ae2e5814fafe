"""Initializers without the onnx package: as onnx itself reads them, or a `PayloadError`."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_fleet import infer_model

from models.errors import PayloadError
from models.learning.onnx_initializers import read_initializers
from models.task.spec import Role, TensorSpec

TENSORS = (TensorSpec("W", (4, 3), Role.SHARED), TensorSpec("b", (3,), Role.PERSONAL))
MODEL = infer_model()


def test_values_are_those_that_onnx_reads() -> None:
    found = read_initializers(MODEL, TENSORS)
    for tensor in onnx.load_from_string(MODEL).graph.initializer:
        np.testing.assert_array_equal(found[tensor.name], numpy_helper.to_array(tensor))


def test_values_outside_raw_data_are_found_too() -> None:
    model = onnx.load_from_string(MODEL)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        packed = helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel())
        assert not packed.raw_data
        tensor.CopyFrom(packed)
    found = read_initializers(model.SerializeToString(), TENSORS)
    np.testing.assert_array_equal(found["b"], [1, 2, 3])


@pytest.mark.parametrize(
    "tensor", [TensorSpec("c", (3,), Role.SHARED), TensorSpec("b", (4,), Role.SHARED)]
)
def test_what_is_not_there_in_its_shape_is_an_error(tensor: TensorSpec) -> None:
    with pytest.raises(PayloadError, match=tensor.name):
        read_initializers(MODEL, (tensor,))


@given(st.binary(max_size=200) | st.integers(0, len(MODEL)).map(lambda n: MODEL[:n]))
@settings(deadline=None)
def test_any_bytes_give_values_or_a_payload_error(data: bytes) -> None:
    try:
        found = read_initializers(data, TENSORS)
    except PayloadError:
        return
    assert set(found) == {"W", "b"}
