"""Gradient descent on an ONNX model at weights of the caller's choice, by stock onnxruntime.

The training graph that `autodiff.py` derives is run with a rate of 1 and no momentum, so
that "before minus after" is the gradient; the optimizer is then a few lines of numpy. The point
where the gradient is taken (pruned, on a grid) and the weights that move may thus differ: that is
the straight-through estimator (Bengio et al., arXiv:1308.3432).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper, numpy_helper

from models.errors import UsageError
from models.graph.training.autodiff import derive_training_graph
from models.graph.training.optimizers import Sgd
from models.learning.onnx_session import open_session
from models.task.params import Vector, unflatten
from models.task.spec import TensorSpec

__all__ = ["Classifier", "Descent", "Plan", "Samples", "augmented", "descend"]

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

MOMENTUM = 0.9
_BETA_1, _BETA_2 = 0.9, 0.999
_WARM_UP = 0.05  # share of all steps in which the rate rises
_CLIP = 5.0  # length of a gradient, at most: early steps of a pruned net can be wild
_BATCH_TO_EVALUATE = 500
_TEMPERATURE = 2.0  # of a teacher; squared distances of logits served a pruned cnn less well


class Samples(NamedTuple):
    """What is learned from: x of the model's dtype, labels from 0."""

    x: Array
    y: Array


class Plan(NamedTuple):
    """How to descend."""

    epochs: int
    learning_rate: float  # at its peak; it rises, then falls to zero as a cosine
    batch: int = 64
    weight_decay: float = 0.0
    adam: bool = False  # Kingma, Ba, arXiv:1412.6980; else SGD with momentum, gradients clipped
    flip: bool = False  # images are mirrored at random
    shift: int = 0  # and moved by as many pixels at most
    seed: int = 0


class Classifier:
    """The answers of a model of which some weights are inputs."""

    def __init__(self, model: ModelProto) -> None:
        self._session = open_session(model.SerializeToString())
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: Array) -> npt.NDArray[np.float32]:
        """Return the first output, [samples, classes].

        Raises:
            UsageError: the model takes other samples.
        """
        parts = []
        for at in range(0, len(x), _BATCH_TO_EVALUATE):
            rows = x[at : at + _BATCH_TO_EVALUATE]
            try:
                parts.append(self._session.run(None, {self._input: rows})[0])
            except Exception as error:  # onnxruntime's classes are not public
                raise UsageError(
                    f"the model does not take samples of {x.dtype} {list(x.shape[1:])}; "
                    f"edgefold task create makes a bundle that does: {error}"
                ) from None
        return np.concatenate(parts).reshape(len(x), -1)

    def check(self, samples: Samples, name: str) -> None:
        """Make sure, by one sample, that the model takes those of ``name``.

        Raises:
            UsageError: it does not; says which does.
        """
        wanted = self._session.get_inputs()[0]
        sides = [side if isinstance(side, int) else "any" for side in wanted.shape[1:]]
        x = samples.x[:1]
        try:
            self._session.run(None, {self._input: x})
        except Exception:  # onnxruntime's classes are not public
            kind = wanted.type.removeprefix("tensor(").removesuffix(")")
            kind = {"float": "float32"}.get(kind, kind)
            raise UsageError(
                f"the model takes {kind} {sides}, {name} has {x.dtype} {list(x.shape[1:])}: use "
                "infer.onnx of the bundle that edgefold task create makes for these data (or name "
                "the bundle itself)"
            ) from None

    def accuracy(self, samples: Samples) -> float:
        return float((self(samples.x).argmax(axis=1) == samples.y).mean())


class Descent:
    """Loss and gradient of a classifier, at any weights.

    ``teacher``: whose probabilities to imitate, made softer by a temperature (Hinton, Vinyals,
    Dean, arXiv:1503.02531); None: the labels. By cross-entropy, both.
    """

    def __init__(
        self,
        model: ModelProto,
        specs: Sequence[TensorSpec],
        *,
        classes: int,
        teacher: Classifier | None = None,
    ) -> None:
        graph = derive_training_graph(
            model if teacher is None else _cooled(model),
            trainable=[tensor.name for tensor in specs],
            loss="cross_entropy",
            optimizer=Sgd(momentum=0.0),
            classes=classes,
            y_dtype="int64" if teacher is None else "float32",
            y_shape=() if teacher is None else (classes,),
        )
        self._session = open_session(graph.SerializeToString())
        self._teacher = teacher
        size = sum(tensor.size for tensor in specs)
        self.point: Vector = np.zeros(size, np.float32)  # where the gradient is taken
        self._after: Vector = np.zeros(size, np.float32)
        self._specs = tuple(specs)

    def gradient(self, samples: Samples) -> tuple[float, Vector]:
        """Return loss and gradient at ``point`` over a batch."""
        target = samples.y if self._teacher is None else _softened(self._teacher(samples.x))
        binding = self._session.io_binding()
        rate, loss = np.ones((), np.float32), np.zeros((), np.float32)
        feeds: dict[str, Array] = {
            "x": np.ascontiguousarray(samples.x),
            "y": np.ascontiguousarray(target),
            "sample_weight": np.ones(len(samples.x), np.float32),
            "lr": rate,
            **unflatten(self.point, self._specs),
        }
        for name, value in feeds.items():
            binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        results: dict[str, Array] = {
            f"new/{name}": value for name, value in unflatten(self._after, self._specs).items()
        }
        for name, value in (results | {"loss": loss}).items():
            binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        self._session.run_with_iobinding(binding)
        return float(loss), self.point - self._after


def _cooled(model: ModelProto) -> ModelProto:
    """Return a copy of ``model``, which answers logits, that divides them by the temperature."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    output = graph.output[0].name
    warm, factor = f"{output}/warm", f"{output}/one over temperature"
    for node in graph.node:
        node.input[:] = [warm if name == output else name for name in node.input]
        node.output[:] = [warm if name == output else name for name in node.output]
    graph.initializer.append(
        numpy_helper.from_array(np.array(1 / _TEMPERATURE, np.float32), factor)
    )
    graph.node.append(helper.make_node("Mul", [warm, factor], [output]))
    return copy


def _softened(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities at the temperature, [samples, classes]."""
    powers: npt.NDArray[np.float32] = np.exp(
        (logits - logits.max(axis=1, keepdims=True)) / np.float32(_TEMPERATURE)
    )
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def descend(
    descent: Descent,
    weights: Vector,
    samples: Samples,
    plan: Plan,
    *,
    constrain: Callable[[Vector, float], Vector] | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Vector:
    """Return ``weights`` after SGD with momentum; the argument is left as it was.

    ``constrain(weights, done)`` returns the point at which to take the gradient when the share
    ``done`` of all steps lies behind, and may change the weights; default: the weights
    themselves. ``on_progress(done, words)`` is called after each step.

    Raises:
        UsageError: training diverged.
    """
    moving = weights.copy()
    move = _adam(moving) if plan.adam else _momentum(moving)
    random = np.random.default_rng(plan.seed)
    plan = plan._replace(batch=min(plan.batch, len(samples.x)))
    steps = plan.epochs * (len(samples.x) // plan.batch)
    for number, rows in enumerate(_batches(len(samples.x), plan, random)):
        done = number / steps
        descent.point[:] = moving if constrain is None else constrain(moving, done)
        batch = Samples(augmented(samples.x[rows], plan, random), samples.y[rows])
        loss, gradient = descent.gradient(batch)
        length = math.sqrt(float(gradient @ gradient))
        if not math.isfinite(length):
            raise UsageError(
                f"training diverged at step {number + 1}: lower the rate, now {plan.learning_rate}"
            )
        if plan.weight_decay:
            gradient += np.float32(plan.weight_decay) * moving
        move(gradient, _rate(plan, done))
        if on_progress:
            on_progress((number + 1) / steps, f"loss {loss:.3f}")
    return moving


def _momentum(moving: Vector) -> Callable[[Vector, float], None]:
    velocity = np.zeros_like(moving)

    def move(gradient: Vector, rate: float) -> None:
        nonlocal velocity
        length = math.sqrt(float(gradient @ gradient))
        velocity *= np.float32(MOMENTUM)
        velocity += gradient * np.float32(min(1.0, _CLIP / max(length, 1e-30)))
        np.subtract(moving, np.float32(rate) * velocity, out=moving)

    return move


def _adam(moving: Vector) -> Callable[[Vector, float], None]:
    mean, square = np.zeros_like(moving), np.zeros_like(moving)
    number = 0

    def move(gradient: Vector, rate: float) -> None:
        nonlocal number, mean, square
        number += 1
        mean += np.float32(1 - _BETA_1) * (gradient - mean)
        square += np.float32(1 - _BETA_2) * (gradient * gradient - square)
        scale = np.sqrt(square) * np.float32(1 / math.sqrt(1 - _BETA_2**number))
        scale += np.float32(1e-8)
        step = mean / scale
        step *= np.float32(rate / (1 - _BETA_1**number))
        np.subtract(moving, step, out=moving)

    return move


def augmented(x: Array, plan: Plan, random: np.random.Generator) -> Array:
    """Return images mirrored and moved at random, each by itself; [n, (channels,) height, width].

    What moves in is zero.
    """
    if plan.flip:
        turned = random.random(len(x)) < 0.5
        x = x.copy()
        x[turned] = x[turned, ..., ::-1]
    if plan.shift:
        reach = plan.shift
        around = [(0, 0)] * (x.ndim - 2) + [(reach, reach)] * 2
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, around), x.shape[-2:], axis=(-2, -1)
        )  # [n, (channels,) 2 reach + 1, 2 reach + 1, height, width]
        down, right = random.integers(0, 2 * reach + 1, (2, len(x)))
        x = np.stack([w[..., a, b, :, :] for w, a, b in zip(windows, down, right, strict=True)])
    return x


def _batches(count: int, plan: Plan, random: np.random.Generator) -> Iterator[Rows]:
    for _ in range(plan.epochs):
        order = random.permutation(count)
        for at in range(0, count - plan.batch + 1, plan.batch):
            yield order[at : at + plan.batch]


def _rate(plan: Plan, done: float) -> float:
    if done < _WARM_UP:
        return plan.learning_rate * (done + 0.001) / _WARM_UP
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
