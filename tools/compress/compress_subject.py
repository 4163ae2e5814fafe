"""What ``edgefold compress`` works on: a model, those of its weights that are coded, and data."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from models.errors import UsageError
from models.graph.compressed.compact import SMALLEST
from models.graph.reading.standalone import lies_outside
from models.task.bundle import Bundle, read_bundle
from models.task.params import Vector, flatten, unflatten
from models.task.spec import Role, TensorSpec
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.export_model import read_tensors
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset
from tools.author.model.given_model import parsed_model
from tools.compress.compress_training import Samples
from tools.given_file import given

__all__ = ["Split", "Subject", "read_subject", "split"]

VALIDATION = 1 / 12  # of the training rows: what choices are made on


class Subject(NamedTuple):
    """A model and its weights as one vector, in the order of ``specs``."""

    model: ModelProto
    specs: tuple[TensorSpec, ...]
    weights: Vector

    def with_weights(self, weights: Vector) -> ModelProto:
        """Return a copy of the model with other weights."""
        copy = ModelProto()
        copy.CopyFrom(self.model)
        values = unflatten(weights, self.specs)
        for tensor in copy.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
        return copy


class Split(NamedTuple):
    """Rows to learn from, to choose by, and to report; disjoint."""

    learning: Samples
    validation: Samples
    test: Samples


def read_subject(path: Path, data: Dataset | None) -> Subject:
    """Return the model in an ONNX file or a bundle.

    With ``data``, which is then trained on, an ONNX file becomes a task for it: all that can be
    trained is coded, as in a bundle. Without, all initializers of ``SMALLEST`` values or more.

    Raises:
        UsageError: there is none, or it has no weights, or cannot be trained on ``data``.
    """
    if path.is_dir():
        return _of_bundle(read_bundle(path))
    if data is not None:
        return _of_bundle(create_task("compressed", data, TaskOptions(model=path)))
    with given(path):
        model = parsed_model(path.read_bytes(), str(path))
    if outside := next((t.name for t in model.graph.initializer if t.external_data), None):
        raise UsageError(lies_outside(outside))
    subject = _of_model(model)
    if not subject.specs:
        raise UsageError(f"{path} has no float32 weights of {SMALLEST} values or more")
    return subject


def split(data: Dataset, *, seed: int = 0) -> Split:
    """Return the test rows of ``data`` and, drawn from the others, those to choose by."""
    rows = np.random.default_rng(seed).permutation(data.train_rows)
    held = max(1, round(VALIDATION * len(rows)))
    parts = rows[held:], rows[:held], data.test_rows
    return Split(*(Samples(data.x[part], data.y[part]) for part in parts))


def _of_bundle(bundle: Bundle) -> Subject:
    specs = bundle.spec.learned  # a variance that is nearly right may be negative
    return Subject(onnx.load_from_string(bundle.infer), specs, flatten(read_tensors(bundle), specs))


def _of_model(model: ModelProto) -> Subject:
    specs, values = [], {}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            if array.size >= SMALLEST and np.isfinite(array).all():
                specs.append(TensorSpec(tensor.name, tuple(array.shape), Role.SHARED))
                values[tensor.name] = array
    return Subject(model, tuple(specs), flatten(values, specs))
