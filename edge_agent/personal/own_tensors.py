"""The personal tensors of a device: as it trained them last, or as the model has them."""

import sys
from pathlib import Path

import numpy as np

from edge_agent.board.problems import sentence_of
from edge_agent.samples.segment_reading import content
from models.errors import PayloadError
from models.protocol.npz import read_vector
from models.task.onnx_weights import read_weights
from models.task.params import Tensor, unflatten
from models.task.spec import Role, TaskSpec

__all__ = ["bundled_tensors", "personal_tensors"]


def personal_tensors(path: str | None, infer_model: str, spec: TaskSpec) -> dict[str, Tensor]:
    """Return this device's own tensors from the file at ``path``, else as the model has them."""
    tensors = spec.with_role(Role.PERSONAL)
    if not tensors:
        return {}
    if path is not None:
        try:
            size = sum(tensor.size for tensor in tensors)
            return unflatten(read_vector(content(path), size=size, name="personal"), tensors)
        except (FileNotFoundError, PayloadError) as error:
            print(f"personal values start anew: {sentence_of(error)}", file=sys.stderr)
    return bundled_tensors(infer_model, spec)


def bundled_tensors(infer_model: str, spec: TaskSpec) -> dict[str, Tensor]:
    """Return the personal tensors as the model has them."""
    values = read_weights(Path(infer_model).read_bytes(), spec.with_role(Role.PERSONAL))
    return {name: np.array(value) for name, value in values.items()}
