"""What is a device's own, from its files; one that is damaged or gone is as if it never was."""

import sys
from pathlib import Path

import numpy as np

from edge_agent.board.problems import sentence_of
from edge_agent.samples.segment_reading import content
from models.errors import PayloadError
from models.protocol.npz import read_vector
from models.task.onnx_weights import read_weights
from models.task.params import Tensor, Vector, unflatten
from models.task.spec import Role, TaskSpec

__all__ = ["bundled_tensors", "own_vector", "personal_tensors"]


def personal_tensors(path: str | None, infer_model: str, spec: TaskSpec) -> dict[str, Tensor]:
    """Return this device's own tensors from the file at ``path``, else as the model has them."""
    tensors = spec.with_role(Role.PERSONAL)
    if not tensors:
        return {}
    found = own_vector(path, "personal", size=sum(tensor.size for tensor in tensors))
    return bundled_tensors(infer_model, spec) if found is None else unflatten(found, tensors)


def own_vector(path: str | None, name: str, *, size: int) -> Vector | None:
    """Return the vector ``name``, float32 of shape (``size``,), from the file at ``path``.

    None without a path, and where the file is damaged or gone, which is said.
    """
    if path is None:
        return None
    try:
        return read_vector(content(path), size=size, name=name)
    except (FileNotFoundError, PayloadError) as error:
        print(f"{name}: starts anew: {sentence_of(error)}", file=sys.stderr)
        return None


def bundled_tensors(infer_model: str, spec: TaskSpec) -> dict[str, Tensor]:
    """Return the personal tensors as the model has them."""
    values = read_weights(Path(infer_model).read_bytes(), spec.with_role(Role.PERSONAL))
    return {name: np.array(value) for name, value in values.items()}
