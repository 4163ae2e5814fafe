"""Weights of a bundle: read, replaced, exported with those of a release."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from models.errors import PayloadError
from models.protocol.npz import read_vector
from models.task.bundle import Bundle
from models.task.onnx_weights import replace_weights
from models.task.params import Tensor, unflatten
from models.task.spec import Role
from tools.author.model.given_model import parsed_model

__all__ = ["export_model", "named_tensors", "read_tensors", "replace_tensors"]


def read_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """Return the values of all trainable tensors in ``infer.onnx``, by name."""
    values = named_tensors(bundle.infer)
    if missing := [t.name for t in bundle.spec.trainable if t.name not in values]:
        raise PayloadError(f"infer.onnx has no initializer {missing[0]}, which spec.json names")
    return {tensor.name: values[tensor.name] for tensor in bundle.spec.trainable}


def named_tensors(infer: bytes) -> dict[str, Tensor]:
    """Return all float32 initializers of a model that are not scalars, by name."""
    return {
        tensor.name: np.array(numpy_helper.to_array(tensor), np.float32)
        for tensor in parsed_model(infer, "infer.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims
    }


def replace_tensors(infer: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the model with ``tensors`` in place of its initializers of these names."""
    values = {n: np.ascontiguousarray(v, np.float32).data for n, v in tensors.items()}
    return replace_weights(infer, values)


def export_model(bundle: Bundle, parameters: bytes, personal: bytes | None = None) -> bytes:
    """Return a stand-alone ONNX model with the values of a release (and of one device).

    ``parameters`` and ``personal`` are npz files with the member of that name.

    Raises:
        PayloadError: they are not vectors of this task.
    """
    shared, own = bundle.spec.with_role(Role.SHARED), bundle.spec.with_role(Role.PERSONAL)
    tensors = unflatten(read_vector(parameters, size=bundle.spec.shared_size), shared)
    if personal is not None:
        size = sum(tensor.size for tensor in own)
        tensors |= unflatten(read_vector(personal, size=size, name="personal"), own)
    return replace_tensors(bundle.infer, tensors)
