"""Loss and gradient where a model stands: one run of train.onnx, and nothing moves. Needs numpy.

No graph of its own: with slots of zeros the gradient stands in what train.onnx answers anyway.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.training.local_steps import effective_steps, smoothness
from models.errors import PayloadError, UsageError
from models.learning.measurement import checked_tensor
from models.learning.onnx_session import Session, run_session
from models.protocol.update import Extras
from models.samples.sample_check import samples_of
from models.task.params import Tensor, Vector, flatten, unflatten
from models.task.spec import TaskSpec

__all__ = ["Probe", "Probed", "looked_back", "mean_over"]

Array = npt.NDArray[Any]
FIRST_MOMENT = 0.1  # 1 - beta1 of Adam, in every graph of ours (`models.graph.training.optimizers`)
LOOKED_AT = 64  # samples, before and after a training
LARGEST = 1e30  # that a header takes
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
        feeds = {"x": x, "y": y, "sample_weight": weights} | self._fixed
        loss, *found = self._run(["loss", *self._places], feeds, tensors)
        gradient = {
            tensor.name: _gradient(place, tensors[tensor.name], value)
            for tensor, place, value in zip(self._spec.shared, self._places, found, strict=True)
        }
        return Probed(float(loss), flatten(gradient, self._spec.shared))

    def momentum(self, flat: Vector, x: Array, y: Array) -> float:
        """Return mu of v' = mu v + g, as the graph has it; 0 for one without such slots."""
        places = [place for place in self._places if place.startswith("new/momentum/")]
        if not places:
            return 0.0
        x, y = samples_of(self._spec, x[:1], y[:1])
        tensors = unflatten(flat, self._spec.shared) | self._held
        feeds = {"x": x, "y": y, "sample_weight": np.ones(1, np.float32)} | self._fixed
        ones = {slot: np.ones_like(self._fixed[slot]) for slot in self._spec.slots}
        still, moving = (self._run(places, feeds | slots, tensors) for slots in ({}, ones))
        apart = [np.median(b.astype(np.float64) - a) for a, b in zip(still, moving, strict=True)]
        found = float(np.median(apart))  # a gradient so large that it drowns mu is an odd one
        return round(found, 6) if 0 <= found < 1 else 0.0

    def _run(
        self, places: list[str], feeds: Mapping[str, Array], tensors: Mapping[str, Tensor]
    ) -> list[Array]:
        anchors = {f"anchor/{name}": value for name, value in tensors.items()}
        given = {**feeds, **tensors, **(anchors if self._spec.proximal else {})}
        return run_session(self._session, places, given)


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


def looked_back(
    probe: Probe, base: Vector, delta: Vector, x: Array, y: Array, *, steps: int, seed: int
) -> Extras:
    """Return what a training of ``steps`` steps from ``base`` by ``delta`` saw of the loss.

    On one batch of at most `LOOKED_AT` of the samples, where it began and where it ended; and how
    many plain steps those amount to.

    Raises:
        UsageError, PayloadError: as `Probe`.
    """
    rows = np.random.default_rng(seed).permutation(len(x))[:LOOKED_AT]
    batch = x[rows], y[rows]
    began, ended = probe(base, *batch), probe(base + delta, *batch)
    seen = smoothness(
        ended.loss - began.loss,
        _length(ended.gradient.astype(np.float64) - began.gradient),
        _length(delta),
    )
    momentum = probe.momentum(base, *batch)
    return Extras(
        rho=_told(seen.rho),
        beta=_told(seen.beta),
        gradient_norm=_told(_length(began.gradient)),
        effective=effective_steps(steps, momentum),
    )


def _length(vector: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))


def _told(value: float | None) -> float | None:
    """Return ``value`` where a header can hold it."""
    return value if value is not None and 0 <= value <= LARGEST else None


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
