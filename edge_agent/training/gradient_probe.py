"""Loss and gradient where a model stands: one run of train.onnx, and nothing moves. Needs numpy.

No graph of its own: with slots of zeros the gradient stands in what train.onnx answers anyway.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.errors import PayloadError, UsageError
from models.learning.measurement import checked_tensor
from models.learning.onnx_session import Session, run_session
from models.samples.sample_check import samples_of
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import TaskSpec

__all__ = ["Probe", "Probed", "mean_over"]

Array = npt.NDArray[Any]
FIRST_MOMENT = 0.1  # 1 - beta1 of Adam, in every graph of ours (`models.graph.training.optimizers`)
FAR = 2.0**20  # a rate so large that of w - lr g, in float32, w takes no digit away from g


class Probed(NamedTuple):
    """The loss of the data, and its gradient over the shared tensors; NaN or infinite as found."""

    loss: float
    gradient: Vector  # float32, shape (d,), in spec order


class Probe:
    """The objective of one device: a function of the shared tensors, everything else held fixed.

    With weight decay the gradient has it in it, as training does, and the loss has not. A proximal
    term is left out: at its anchor it is zero.
    """

    def __init__(
        self, session: Session, spec: TaskSpec, personal: Mapping[str, Tensor] | None = None
    ) -> None:
        """``session`` is of train.onnx; ``personal`` has the tensors of that role, if any.

        Raises:
            PayloadError: graph, spec and tensors do not fit each other.
        """
        self._session, self._spec = session, spec
        shapes = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
        shared = {tensor.name for tensor in spec.shared}
        others = [tensor for tensor in spec.trainable if tensor.name not in shared]
        self._held = {tensor.name: checked_tensor(personal or {}, tensor) for tensor in others}
        self._fixed: dict[str, Array] = {"lr": np.array(FAR, np.float32)}
        for slot in spec.slots:
            if any(not isinstance(side, int) for side in shapes.get(slot, (None,))):
                raise PayloadError(f"train.onnx has no input {slot} of a fixed shape")
            self._fixed[slot] = np.zeros(shapes[slot], np.float32)
        if spec.proximal:
            self._fixed["mu"] = np.zeros((), np.float32)
        answers = {entry.name for entry in session.get_outputs()}
        self._places = [_place_of(tensor.name, answers) for tensor in spec.shared]

    def __call__(
        self, flat: Vector, x: Array, y: Array, weight: npt.NDArray[np.float32] | None = None
    ) -> Probed:
        """Return loss and gradient at ``flat``, the shared tensors, on all of ``x`` and ``y``.

        ``weight``: one number >= 0 for each sample, default 1; multiplied by the spec's
        ``class_weights``, as in training.

        Raises:
            UsageError: samples that do not fit the spec.
            PayloadError: ``flat`` does not fit it, or the graph does not run.
        """
        x, y = samples_of(self._spec, x, y)
        weights = np.ones(len(x), np.float32) if weight is None else weight
        if self._spec.class_weights:
            weights = weights * np.array(self._spec.class_weights, np.float32)[y]
        tensors = unflatten(flat, self._spec.shared) | self._held
        feeds = {"x": x, "y": y, "sample_weight": weights} | self._fixed | tensors
        if self._spec.proximal:
            feeds |= {f"anchor/{name}": value for name, value in tensors.items()}
        loss, *found = run_session(self._session, ["loss", *self._places], feeds)
        gradient = {
            tensor.name: _gradient(place, tensors[tensor.name], value)
            for tensor, place, value in zip(self._spec.shared, self._places, found, strict=True)
        }
        return Probed(float(loss), flatten(gradient, self._spec.shared))


def mean_over(
    probe: Probe, spec: TaskSpec, flat: Vector, x: Array, y: Array, *, batch: int
) -> Probed:
    """Return loss and gradient at ``flat`` over all samples, ``batch`` of them in memory at a time.

    Sums are in float64, each run weighs what its samples do.

    Raises:
        UsageError, PayloadError: as `Probe`.
    """
    gradient = np.zeros(flat.size)
    loss = mass = 0.0
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        share = float(len(x[rows]))
        if spec.class_weights:
            share = float(np.array(spec.class_weights)[y[rows]].sum())
        if share == 0:
            continue
        found = probe(flat, x[rows], y[rows])
        gradient += share * found.gradient.astype(np.float64)
        loss += share * found.loss
        mass += share
    if mass == 0:
        raise UsageError("no sample of a class that has a weight")
    return Probed(loss / mass, (gradient / mass).astype(np.float32))


def _place_of(name: str, answers: set[str]) -> str:
    """Return the output from which the gradient of a tensor can be read."""
    for place in (f"new/momentum/{name}", f"new/adam_m/{name}", f"new/{name}"):
        if place in answers:
            return place
    raise PayloadError(f"train.onnx and spec.json do not agree on {name}")


def _gradient(place: str, before: Tensor, after: Array) -> Tensor:
    """Return g from v' = g, from m' = (1 - beta1) g, or from w' = w - lr g."""
    if place.startswith("new/momentum/"):
        return np.asarray(after, np.float32)
    if place.startswith("new/adam_m/"):
        return np.asarray(after.astype(np.float64) / FIRST_MOMENT, np.float32)
    return np.asarray((before.astype(np.float64) - after) / FAR, np.float32)
