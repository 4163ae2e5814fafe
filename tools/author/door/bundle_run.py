"""The two graphs of a bundle, run on a few rows by onnxruntime: answers, losses, single steps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from models.learning.scoring import score
from models.task.bundle import Bundle
from models.task.params import Tensor
from models.task.spec import TaskSpec

__all__ = ["Array", "BundleRun", "Rows", "run_quietly", "with_open_weights"]

Array = npt.NDArray[Any]
LEAST = 1e-4  # a probability below it has lost digits that its logarithm needs


class Rows(NamedTuple):
    """Some rows of the data; ``numbers`` are theirs in the file."""

    x: Array
    y: Array
    numbers: npt.NDArray[np.int64]

    def first(self, count: int) -> "Rows":
        return self.only(list(range(count)))

    def only(self, chosen: Sequence[int]) -> "Rows":
        places = list(chosen)
        return Rows(self.x[places], self.y[places], self.numbers[places])


class BundleRun(NamedTuple):
    """A bundle that runs, with the values of its trainable tensors."""

    bundle: Bundle
    infer: ort.InferenceSession
    train: ort.InferenceSession
    trained: ort.InferenceSession  # infer.onnx as training sees it: itself if no norm adapts
    tensors: dict[str, Tensor]

    @property
    def spec(self) -> TaskSpec:
        return self.bundle.spec

    @property
    def input(self) -> str:
        return self.spec.infer_input

    def answers(self, x: Array) -> Array:
        """Return what infer.onnx answers, [len(x), ...]."""
        (found,) = run_quietly(self.infer, [self.spec.infer_output], {self.input: x})
        return found

    def trained_answers(self, x: Array) -> Array:
        """Return what the loss of a training step is of, for a batch of just these samples."""
        (found,) = run_quietly(self.trained, [self.spec.infer_output], {self.input: x})
        return found

    @property
    def learned(self) -> dict[str, Tensor]:
        """The values of what has a gradient."""
        return {tensor.name: self.tensors[tensor.name] for tensor in self.spec.learned}

    def step(
        self, rows: Rows, *, rate: float, tensors: Mapping[str, Tensor] | None = None
    ) -> dict[str, Array]:
        """Return all outputs of one training step from fresh slots, every row of weight 1."""
        values = self.tensors if tensors is None else tensors
        shapes = {entry.name: entry.shape for entry in self.train.get_inputs()}
        feeds: dict[str, Array] = {
            "x": rows.x,
            "y": rows.y,
            "sample_weight": np.ones(len(rows.x), np.float32),
            "lr": np.array(rate, np.float32),
            **values,
            **{slot: np.zeros(shapes[slot], np.float32) for slot in self.spec.slots},
        }
        if self.spec.proximal:
            feeds["mu"] = np.array(0, np.float32)
            feeds |= {f"anchor/{name}": value for name, value in values.items()}
        names = [entry.name for entry in self.train.get_outputs()]
        wanted = {name: value for name, value in feeds.items() if name in shapes}
        return dict(zip(names, run_quietly(self.train, names, wanted), strict=True))

    def loss_of(self, answers: Array, y: Array) -> float:
        """Return the mean loss of ``answers`` as device and server count it."""
        return score(self.spec, answers, y).loss

    def measurable(self, answers: Array, y: Array) -> npt.NDArray[np.bool_]:
        """Return for which rows the loss can be told from the answers in float32.

        Where they are probabilities that round to 0 for what is true, it cannot.
        """
        count = len(answers)
        if self.spec.loss == "mse":
            return np.ones(count, bool)
        if self.spec.loss == "bce":
            flat, target = answers.reshape(count, -1), y.reshape(count, -1)
            if flat.shape != target.shape:
                return np.ones(count, bool)
            right = np.where(target > 0, flat, 1.0).clip(max=np.where(target < 1, 1 - flat, 1.0))
            return np.asarray((right >= LEAST).all(axis=1))
        if answers.size % max(y.size, 1) or (answers < 0).any():
            return np.ones(count, bool)
        scores = answers.reshape(y.size, -1)
        if not np.allclose(scores.sum(axis=1), 1, atol=1e-3) or y.max() >= scores.shape[1]:
            return np.ones(count, bool)  # logits
        chosen = scores[np.arange(y.size), y.reshape(-1)].reshape(count, -1)
        return np.asarray((chosen >= LEAST).all(axis=1))


def run_quietly(
    session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Array]
) -> list[Array]:
    """Run a session; what is wrong arrives as an exception, and is not printed besides."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    return [np.asarray(value) for value in session.run(list(names), dict(feeds), options)]


def with_open_weights(infer: bytes, names: Sequence[str]) -> bytes:
    """Return the model with its initializers ``names`` as inputs, to be given at each run."""
    model = onnx.load_from_string(infer)
    opened = set(names)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in opened:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
            )
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return bytes(model.SerializeToString())
